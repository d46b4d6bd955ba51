"""The classifier: its tools, and from which probability each is asked for."""

from __future__ import annotations

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from runtime import defaults
from runtime.artifact.files.paths import ArtifactPath
from runtime.artifact.schema.entry import Entry, Source

TOOL_FOLDER = "tool"
# The tool that a client is asked for where the classifier has one alone.
SCREENSHOT_TOOL = "take_screenshot"


class ToolLabel(Entry):
    """A tool that the classifier can ask for, and the label that asks for it."""

    label: int = Field(ge=0, description="index of the logit")
    name: str = Field(pattern=r"^[\w.:-]{1,64}$", description="of the tool, as `toolcall` says it")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="probability from which it is asked for; none takes the classifier's"
    )


def served_tools(positive_label: int | None, tools: tuple[ToolLabel, ...]) -> tuple[ToolLabel, ...]:
    """The table of tools: the one that was written, or `take_screenshot` alone."""
    if tools or positive_label is None:
        return tools
    return (ToolLabel(label=positive_label, name=SCREENSHOT_TOOL),)


class ToolModel(Entry):
    """The classifier, always in float."""

    source: Source = Field(description="where it came from")
    path: ArtifactPath = Field(default=TOOL_FOLDER, description="its folder")
    # A reader that does not know `tools` refuses null: it would take another tool, or another kind of probability, for
    # the screenshot's.
    positive_label: int | None = Field(
        default=1, ge=0, description="index of the logit that means: take a screenshot; none where only `tools` says it"
    )
    tools: tuple[ToolLabel, ...] = Field(
        default=(), description="the tools of a classifier with several; left out for `take_screenshot` alone"
    )
    max_tokens: int = Field(ge=1, description="the classifier's window")
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="probability from which the decision is yes; none takes the server's default",
    )
    accuracy: float | None = Field(default=None, ge=0, le=1, description="on held-out utterances")

    @model_validator(mode="after")
    def _unmistakable(self) -> ToolModel:
        if self.positive_label is None and not self.tools:
            raise ValueError("expected positive_label, or a table of tools")
        for what, values in (
            ("names", [tool.name for tool in self.tools]),
            ("labels", [tool.label for tool in self.tools]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"expected different {what} of tools, found {values}")
        return self

    @model_serializer(mode="wrap")
    def _without_an_empty_table(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out an empty table, so that metadata with one tool are written as they always were."""
        fields: dict[str, object] = written(self)
        return fields if self.tools else {name: value for name, value in fields.items() if name != "tools"}

    @property
    def served_tools(self) -> tuple[ToolLabel, ...]:
        """The table of tools: the one that was written, or `take_screenshot` alone."""
        return served_tools(self.positive_label, self.tools)

    def threshold_of(self, tool: ToolLabel) -> float:
        """The probability from which a tool is asked for, unless the operator sets another: gated and served alike."""
        return defaults.first_set(tool.threshold, default=self.default_threshold)

    @property
    def default_threshold(self) -> float:
        """The probability from which the decision is yes, unless the operator sets another: gated and served alike."""
        return defaults.first_set(self.threshold, default=defaults.TOOL_THRESHOLD)

    @property
    def default_tokens(self) -> int:
        """The tokens that the classifier sees at most, unless the operator sets fewer: gated and served alike."""
        return min(defaults.TOOL_TOKENS, self.max_tokens)
