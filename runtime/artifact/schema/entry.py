"""What every part of the metadata is, and what both models say of where they came from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class Entry(BaseModel):
    """Base of everything in the metadata: frozen, and strict about unknown keys when written."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Entry):
    """Where a model came from."""

    repo: str = Field(description="hub id, `embedded`, or the name of a local folder")
    revision: str | None = Field(default=None, description="commit on the hub; none for a local folder")
    content_sha256: str = Field(description="hash over the source's own files")
    license: str | None = Field(default=None, description="as the model's card names it")
    license_name: str | None = Field(default=None, description="of a licence that is `other`")
    license_link: str | None = Field(default=None, description="to the text of that one")
    architecture: str | None = Field(default=None, description="`architectures[0]` of config.json")

    @model_serializer(mode="wrap")
    def _without_another_license(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out name and link where there are none, so that the others are written as they always were."""
        fields: dict[str, object] = written(self)
        return {name: value for name, value in fields.items() if value or not name.startswith("license_")}
