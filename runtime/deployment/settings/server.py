"""The server's settings: every environment variable in one class, with default, unit and meaning.

`docs/environment.md` is generated from it by `python -m pipeline.generated_docs`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic_settings import BaseSettings, SettingsConfigDict

from runtime import defaults
from runtime.artifact import LaneName
from runtime.deployment.settings.access import AccessSettings
from runtime.deployment.settings.connections import ConnectionSettings
from runtime.deployment.settings.declaring import ANY_CASE, var
from runtime.deployment.settings.engine import EngineSettings
from runtime.deployment.settings.replies import ReplySettings
from runtime.deployment.settings.sessions import SessionSettings
from runtime.wire.messages import Grammar


class ServedSettings(BaseSettings):
    """What is served."""

    artifact: str | None = var(None, "the artifact: a folder, or `hf:org/repo@revision` on the hub")
    artifact_cache_dir: Path | None = var(
        None, "folder of fetched artifacts; `$XDG_CACHE_HOME/yap-runtime` or `~/.cache/yap-runtime`"
    )
    artifact_public_key_file: Path | None = var(
        None, "public key (PEM); when set, nothing is served that was not signed with its private key"
    )
    artifact_trust: Annotated[Literal["signed", "unsigned"], ANY_CASE] = var(
        "signed",
        "whose compile caches are run: those of signed artifacts (ARTIFACT_PUBLIC_KEY_FILE), or `unsigned` ones too; "
        "what is not run is compiled anew",
    )
    deploy_mode: Annotated[Literal["chat", "tool", "both"] | None, ANY_CASE] = var(
        None, "which models are served; by default those that the artifact holds"
    )
    inference_engine: Annotated[LaneName | None, ANY_CASE] = var(
        None, "must agree with the artifact's engine when set; `cpu` is vLLM on a CPU"
    )


# The last base's variables come first in every list of them.
class RuntimeSettings(
    EngineSettings, ReplySettings, SessionSettings, ConnectionSettings, AccessSettings, ServedSettings
):
    """The runtime's variables, one field each. An empty variable counts as unset."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, validate_default=True)

    # Operation
    drain_timeout_s: float = var(25, "time that running turns have after SIGTERM", unit="s", ge=0)
    log_dir: Path = var(
        Path(),
        f"folder of `{defaults.LOG_NAME}`, rotated at {defaults.LOG_MEGABYTES} MB, {defaults.LOG_FILES} kept, "
        "compressed",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], ANY_CASE] = var(
        "info", "least severe events that are logged"
    )
    log_turns: bool = var(
        False, "log an event for each turn that ends: outcome, key's name, tokens, times; nothing of what was said"
    )
    log_format: Annotated[Literal["json", "console"], ANY_CASE] = var("json", "form of the log on standard output")

    def grammar(self, max_tokens: int = defaults.OUTPUT_TOKENS) -> Grammar:
        """The parts of the protocol that the operator sets, as the decoder needs them.

        Args:
            max_tokens: the longest reply that a client may ask for.
        """
        return Grammar(self.bounds(), self.ws_cancel_sentinel, self.ws_end_sentinel, max_tokens)
