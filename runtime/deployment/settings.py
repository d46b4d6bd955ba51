"""The server's settings: every environment variable in one class, with default, unit and meaning.

Read once, at start, by `load`; every problem is reported at once, one line each. `docs/environment.md` is generated
from this class by `python -m pipeline.generated_docs`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from runtime import defaults
from runtime.artifact import ArtifactError, LaneName
from runtime.artifact.repository import Reference, named_on_hub
from runtime.deployment import session_store
from runtime.deployment.keys import ApiKey, KeysError, from_file, from_variable
from runtime.deployment.session_store import StoreSettings, StoreSettingsError
from runtime.engines import Sampling
from runtime.host import variables
from runtime.wire.messages import DEFAULT_BOUNDS, MAX_PREFIX_CHARS, Bound, Grammar

SAMPLING = Sampling()


class SettingsError(Exception):
    """The environment asks for something that cannot be. One problem a line."""

    text_may_be_logged = True

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def var(default: Any, meaning: str, *, unit: str = "", **constraints: Any) -> Any:  # noqa: ANN401 - as pydantic's Field
    """Declare one variable."""
    return Field(default=default, description=meaning, json_schema_extra={"unit": unit}, **constraints)


def open_var(fallback: float, meaning: str, *, unit: str = "", **constraints: Any) -> Any:  # noqa: ANN401 - as above
    """Declare a variable whose default depends on the artifact; where that has no say it is `fallback`.

    The meaning's `{}` shows it.
    """
    return Field(
        default=None,
        description=meaning.format(fallback),
        json_schema_extra={"unit": unit, "fallback": fallback},
        **constraints,
    )


def _lowered(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _listed(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _origins(value: object) -> object:
    """Origins as browsers send them: scheme and host in small letters, no default port. `*` is any, as without a list.

    A list with `*` in it is the empty one.
    """
    listed = _listed(value)
    if not isinstance(listed, tuple):
        return listed
    origins = tuple(canonical_origin(str(entry)) for entry in listed)
    return () if "*" in origins else origins


def canonical_origin(origin: str) -> str:
    """An origin as a browser sends it.

    >>> canonical_origin(" HTTPS://App.Example:443/ ")
    'https://app.example'
    """
    scheme, separator, host = origin.strip().rstrip("/").lower().partition("://")
    port = {"http": ":80", "https": ":443", "ws": ":80", "wss": ":443"}.get(scheme)
    return scheme + separator + (host.removesuffix(port) if port else host)


def _resolvable(value: str) -> str:
    try:
        value.encode("idna")
    except UnicodeError:
        raise PydanticCustomError("host", "a host name or an address") from None
    return value


_ANY_CASE = BeforeValidator(_lowered)
_STRIPPED = BeforeValidator(_stripped)


class RuntimeSettings(BaseSettings):
    """The runtime's variables, one field each. An empty variable counts as unset."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, validate_default=True)

    # What is served
    artifact: str | None = var(None, "the artifact: a folder, or `hf:org/repo@revision` on the hub")
    artifact_cache_dir: Path | None = var(
        None, "folder of fetched artifacts; `$XDG_CACHE_HOME/yap-runtime` or `~/.cache/yap-runtime`"
    )
    artifact_public_key_file: Path | None = var(
        None, "public key (PEM); when set, nothing is served that was not signed with its private key"
    )
    artifact_trust: Annotated[Literal["signed", "unsigned"], _ANY_CASE] = var(
        "signed",
        "whose compile caches are run: those of signed artifacts (ARTIFACT_PUBLIC_KEY_FILE), or `unsigned` ones too; "
        "what is not run is compiled anew",
    )
    deploy_mode: Annotated[Literal["chat", "tool", "both"] | None, _ANY_CASE] = var(
        None, "which models are served; by default those that the artifact holds"
    )
    inference_engine: Annotated[LaneName | None, _ANY_CASE] = var(
        None, "must agree with the artifact's engine when set; `cpu` is vLLM on a CPU"
    )

    # Where
    host: Annotated[str, _STRIPPED, AfterValidator(_resolvable)] = var(defaults.HOST, "address to listen on")
    port: int = var(defaults.PORT, "port to listen on", ge=1, le=65535)

    admin_port: int | None = var(
        None, "port for `POST /drain`, which does what SIGTERM does; none where it is not set", ge=1, le=65535
    )
    admin_host: Annotated[str, _STRIPPED, AfterValidator(_resolvable)] = var(
        defaults.ADMIN_HOST, "address of that port; beyond this machine only with a token"
    )
    admin_token_file: Path | None = var(None, "file with the token that it asks for, on one line")

    # Who
    text_api_key: SecretStr | None = var(None, "API keys, comma separated; required, here or in a file")
    text_api_key_file: Path | None = var(
        None, "file that holds the API keys, a line each: `key`, `name: key` or `name=key`; read again on SIGHUP"
    )
    ws_allowed_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)] = var(
        (), "browser origins that may connect, comma separated; empty, or `*` among them: all"
    )
    playground: bool = var(
        False,
        "serve a page at `/` to try the server with; its own address must be in WS_ALLOWED_ORIGINS when that is set",
    )

    # OpenAI's API
    openai_api: bool = var(True, "serve OpenAI's chat completions under `/v1` beside the WebSocket")
    served_model_names: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = var(
        (), "names of the model under `/v1`, comma separated, the first one listed; the model's own on the hub"
    )
    http_max_requests_per_window: int | None = var(
        None,
        "requests under `/v1` of one key's holder in WS_MESSAGE_WINDOW_SECONDS; WS_MAX_MESSAGES_PER_WINDOW for each "
        "connection that it may have: MAX_CONNECTIONS_PER_KEY, or all slots; 0: no limit",
        ge=0,
    )

    # Connections
    max_concurrent_connections: int = var(defaults.CONNECTIONS, "connection slots", ge=1)
    max_connections_per_key: int | None = var(
        None, "connections of one key's holder; with one holder all slots, with several half of them", ge=1
    )
    ws_handshake_acquire_timeout_s: float = var(defaults.HANDSHAKE_TIMEOUT_S, "longest wait for a slot", unit="s", ge=0)
    handshake_deadline_s: float = var(
        defaults.HANDSHAKE_DEADLINE_S,
        "time in which a socket must be admitted or its request answered; then it is dropped",
        unit="s",
        gt=0,
    )
    max_unadmitted_sockets: int | None = var(
        None,
        "open sockets that hold no slot; beyond it the one that was silent longest is dropped; "
        f"{defaults.UNADMITTED} and one a slot, or what the limit of open files leaves",
        ge=1,
    )
    ws_idle_timeout_s: float = var(
        defaults.IDLE_TIMEOUT_S, "silence after which a connection is closed", unit="s", gt=0
    )
    ws_close_idle_code: int = var(defaults.IDLE_CLOSE_CODE, "close code of an idle connection", ge=3000, le=4999)
    ws_max_message_bytes: int = var(
        defaults.MESSAGE_BYTES, "largest inbound frame, and largest body of a request", unit="bytes", ge=1024
    )
    ws_cancel_sentinel: Annotated[str, _STRIPPED] = var(
        defaults.CANCEL_SENTINEL, "raw text frame that means `cancel`; spaces around it do not count", min_length=1
    )
    ws_end_sentinel: Annotated[str, _STRIPPED] = var(
        defaults.END_SENTINEL, "raw text frame that means `end`; spaces around it do not count", min_length=1
    )

    # Rate limits; 0 disables
    ws_max_messages_per_window: int = var(
        defaults.MESSAGES, "messages per connection and window, counted on after a reconnect; 0: no limit", ge=0
    )
    ws_message_window_seconds: float = var(
        defaults.MESSAGE_WINDOW_S, "sliding window of the message limit", unit="s", gt=0
    )
    ws_max_cancels_per_window: int = var(
        defaults.CANCELS, "cancels per connection and window, counted on after a reconnect; 0: no limit", ge=0
    )
    ws_cancel_window_seconds: float = var(
        defaults.CANCEL_WINDOW_S, "sliding window of the cancel limit", unit="s", gt=0
    )
    chat_prompt_update_max_per_window: int = var(
        defaults.PERSONA_UPDATES, "persona updates per session and window; 0: no limit", ge=0
    )
    chat_prompt_update_window_seconds: float = var(
        defaults.PERSONA_UPDATE_WINDOW_S, "sliding window of that limit", unit="s", gt=0
    )

    # Sessions
    session_idle_ttl_seconds: float = var(1800, "how long a session outlives its connection", unit="s", gt=0)
    max_sessions: int = var(defaults.SESSIONS, "sessions kept", ge=1)
    max_sessions_per_key: int | None = var(
        None,
        "sessions kept of one key's holder; beyond it its own oldest without a connection go. MAX_SESSIONS, "
        "shared equally among the holders",
        ge=1,
    )
    max_session_bytes: int = var(defaults.SESSION_BYTES, "memory of all sessions' texts", unit="bytes", ge=1_048_576)
    max_session_bytes_per_key: int | None = var(
        None,
        "the same for one key's holder; MAX_SESSION_BYTES, shared equally among the holders",
        unit="bytes",
        ge=1_048_576,
    )

    session_store: Annotated[str, _STRIPPED] = var(
        session_store.MEMORY,
        "where sessions are kept for other servers: `memory` for nowhere, or `valkey://[user@]host[:6379][/0]`, "
        "`rediss://…` for TLS",
    )
    session_store_password_file: Path | None = var(None, "file with the password of that server's user")
    session_store_ca_file: Path | None = var(
        None, "certificates (PEM) that its certificate must come from, for `rediss://`; the system's"
    )
    session_store_key_file: Path | None = var(
        None,
        "file with keys that encrypt what is written there, a line each: 32 bytes in hexadecimal or base64; the first "
        "encrypts, all decrypt",
    )
    session_store_timeout_s: float = var(defaults.STORE_TIMEOUT_S, "longest wait for the store", unit="s", gt=0, le=10)
    session_store_max_bytes: int = var(
        defaults.STORED_SESSION_BYTES,
        "what it keeps of one session; beyond it the oldest of the history go",
        unit="bytes",
        ge=4096,
        le=16_777_216,
    )

    # Prompt and reply
    chat_prompt_max_tokens: int | None = open_var(
        defaults.PERSONA_TOKENS, "persona budget; {} or what the artifact allows", unit="tokens", ge=1
    )
    history_max_tokens: int | None = open_var(
        defaults.HISTORY_TOKENS, "history budget; {} or what the artifact allows", unit="tokens", ge=0
    )
    user_utt_max_tokens: int | None = open_var(
        defaults.UTTERANCE_TOKENS, "utterance budget; {} or what the artifact allows", unit="tokens", ge=1
    )
    chat_max_len: int | None = open_var(
        defaults.INPUT_TOKENS, "input budget; {} or what the artifact allows", unit="tokens", ge=1
    )
    chat_max_out: int | None = open_var(
        defaults.OUTPUT_TOKENS, "longest reply; {} or what the artifact allows", unit="tokens", ge=1
    )
    thinking_max_tokens: int | None = open_var(
        defaults.THINKING_TOKENS,
        "tokens that a model which always thinks may think, beside `CHAT_MAX_OUT`; {} or what the artifact was proven "
        "with; 0: such a model is refused",
        unit="tokens",
        ge=0,
    )
    gen_timeout_s: float = var(defaults.GENERATION_TIMEOUT_S, "longest turn", unit="s", gt=0)
    check_screen_prefix: str = var(
        "MUST CHECK SCREEN:", "precedes the utterance after a tool decision yes", max_length=MAX_PREFIX_CHARS
    )
    screen_checked_prefix: str = var(
        "ON THE SCREEN NOW:", "precedes the analysis in a `followup`", max_length=MAX_PREFIX_CHARS
    )

    # Sampling: defaults and bounds
    chat_temperature: float = var(SAMPLING.temperature, "default temperature")
    chat_temperature_min: float = var(DEFAULT_BOUNDS["temperature"].low, "lowest accepted temperature", ge=0)
    chat_temperature_max: float = var(DEFAULT_BOUNDS["temperature"].high, "highest accepted temperature")
    chat_top_p: float = var(SAMPLING.top_p, "default top_p")
    chat_top_p_min: float = var(DEFAULT_BOUNDS["top_p"].low, "lowest accepted top_p", gt=0)
    chat_top_p_max: float = var(DEFAULT_BOUNDS["top_p"].high, "highest accepted top_p", le=1)
    chat_top_k: int = var(SAMPLING.top_k, "default top_k; 0: all tokens")
    chat_top_k_min: int = var(int(DEFAULT_BOUNDS["top_k"].low), "lowest accepted top_k", ge=0)
    chat_top_k_max: int = var(int(DEFAULT_BOUNDS["top_k"].high), "highest accepted top_k")
    chat_min_p: float = var(SAMPLING.min_p, "default min_p")
    chat_min_p_min: float = var(DEFAULT_BOUNDS["min_p"].low, "lowest accepted min_p", ge=0)
    chat_min_p_max: float = var(DEFAULT_BOUNDS["min_p"].high, "highest accepted min_p", le=1)
    chat_repetition_penalty: float = var(SAMPLING.repetition_penalty, "default repetition_penalty; 1: none")
    chat_repetition_penalty_min: float = var(
        DEFAULT_BOUNDS["repetition_penalty"].low, "lowest accepted repetition_penalty", gt=0
    )
    chat_repetition_penalty_max: float = var(
        DEFAULT_BOUNDS["repetition_penalty"].high, "highest accepted repetition_penalty", le=2
    )
    chat_presence_penalty: float = var(SAMPLING.presence_penalty, "default presence_penalty")
    chat_presence_penalty_min: float = var(
        DEFAULT_BOUNDS["presence_penalty"].low, "lowest accepted presence_penalty", ge=-2
    )
    chat_presence_penalty_max: float = var(
        DEFAULT_BOUNDS["presence_penalty"].high, "highest accepted presence_penalty", le=2
    )
    chat_frequency_penalty: float = var(SAMPLING.frequency_penalty, "default frequency_penalty")
    chat_frequency_penalty_min: float = var(
        DEFAULT_BOUNDS["frequency_penalty"].low, "lowest accepted frequency_penalty", ge=-2
    )
    chat_frequency_penalty_max: float = var(
        DEFAULT_BOUNDS["frequency_penalty"].high, "highest accepted frequency_penalty", le=2
    )

    # Tool decision
    tool_decision_threshold: float | None = open_var(
        defaults.TOOL_THRESHOLD, "probability from which the decision is yes; the artifact's, else {}", ge=0, le=1
    )
    tool_history_tokens: int | None = open_var(
        defaults.TOOL_TOKENS, "what the classifier sees at most; {} or the model's window", unit="tokens", ge=1
    )
    tool_timeout_s: float = var(
        defaults.TOOL_TIMEOUT_S, "time after which an undecided classifier means no", unit="s", gt=0
    )

    # Engine
    chat_gpu_frac: float | None = var(
        None,
        f"part of the GPU's memory for the chat engine; {defaults.GPU_ALONE:.2f} alone, "
        f"{defaults.GPU_CHAT_BESIDE_TOOL:.2f} beside a tool model",
        gt=0,
        le=1,
    )
    tool_gpu_frac: float | None = var(
        None,
        f"part of the GPU's memory for the classifier; {defaults.GPU_ALONE:.2f} alone, "
        f"{defaults.GPU_TOOL_BESIDE_CHAT:.2f} beside a chat model",
        gt=0,
        le=1,
    )
    max_num_seqs_chat: int | None = var(None, "vLLM: sequences that run at once; the artifact's limit", ge=1)
    max_num_batched_tokens_chat: int | None = var(
        None, "vLLM: tokens in one scheduler step; vLLM's own choice", unit="tokens", ge=1
    )
    trt_batch_size: int | None = var(None, "TensorRT-LLM: sequences that run at once; the baked limit", ge=1)
    trt_kv_free_gpu_frac: float | None = var(
        None,
        "TensorRT-LLM: part of the memory that is free beside the weights for the KV cache; CHAT_GPU_FRAC",
        gt=0,
        le=1,
    )
    trt_kv_enable_block_reuse: bool = var(
        defaults.KV_BLOCK_REUSE, "TensorRT-LLM: keep prompts' KV cache for prompts that begin alike"
    )
    tensor_parallel_size: int | None = var(None, "GPUs that share every layer of the chat model; the artifact's", ge=1)
    pipeline_parallel_size: int | None = var(
        None, "vLLM: stages of the chat model's layers, each on TENSOR_PARALLEL_SIZE GPUs; the artifact's", ge=1
    )
    kv_dtype: str = var(defaults.KV_DTYPE, "type of the KV cache, such as `fp8`; `auto`: the model's own")
    vllm_attention_backend: str | None = var(None, "vLLM's attention kernel, such as `FLASH_ATTN`; vLLM's own choice")
    enforce_eager: bool | None = var(None, "vLLM without compiled graphs; on a CPU yes, on a GPU no")
    metrics_engine: bool = var(
        False, "vLLM keeps its own statistics, and `/metrics` has them too (`vllm:…`); costs CPU for every token"
    )
    vllm_allow_long_max_model_len: bool = var(False, "allow a context longer than the model's config says")
    vllm_cpu_kvcache_space: float = var(
        defaults.CPU_KV_CACHE_GIB, "vLLM on a CPU: size of the KV cache", unit="GiB", gt=0
    )
    cache_sharing: Annotated[Literal["key", "server"], _ANY_CASE] = var(
        "key",
        "who shares a prefix cache: `key`, each key's holder alone; `server`, all, and then a client can find out by "
        "time and `cached_tokens` what others' prompts begin with",
    )
    cache_reset_interval_seconds: float = var(
        600, "how often the engine's caches are reset while nothing runs; 0: never", unit="s", ge=0
    )

    # Operation
    drain_timeout_s: float = var(25, "time that running turns have after SIGTERM", unit="s", ge=0)
    log_dir: Path = var(
        Path(),
        f"folder of `{defaults.LOG_NAME}`, rotated at {defaults.LOG_MEGABYTES} MB, {defaults.LOG_FILES} kept, "
        "compressed",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _ANY_CASE] = var(
        "info", "least severe events that are logged"
    )
    log_turns: bool = var(
        False, "log an event for each turn that ends: outcome, key's name, tokens, times; nothing of what was said"
    )
    log_format: Annotated[Literal["json", "console"], _ANY_CASE] = var("json", "form of the log on standard output")

    def keys(self) -> tuple[ApiKey, ...]:
        """The keys with their holders' names, from the variable or from the file, which is read anew.

        Raises:
            SettingsError: neither gives a key, both are set, or the file cannot be read.
        """
        file = self.text_api_key_file
        if self.text_api_key is not None and file is not None:
            raise SettingsError(["TEXT_API_KEY: expected this or TEXT_API_KEY_FILE, found both; unset one"])
        if file is None:
            found = from_variable(self.text_api_key.get_secret_value() if self.text_api_key is not None else "")
        else:
            try:
                found = from_file(file.read_bytes())
            except OSError as error:
                raise SettingsError(
                    [f"TEXT_API_KEY_FILE: expected a readable file, found {file} ({error.strerror})"]
                ) from None
            except KeysError as error:
                raise SettingsError([f"TEXT_API_KEY_FILE: {file}, {problem}" for problem in error.problems]) from None
        if not found:
            raise SettingsError(
                ["TEXT_API_KEY: expected at least one API key, found none; set it or TEXT_API_KEY_FILE"]
            )
        return found

    def api_keys(self) -> tuple[SecretStr, ...]:
        """The keys alone.

        Raises:
            SettingsError: as `keys`.
        """
        return tuple(key.secret for key in self.keys())

    def requests_per_window(self) -> int:
        """Requests over HTTP that one key's holder may make in a window; 0 where any number.

        An agent speaks for all of its listeners with one key. Over `/ws` each of them would have a connection with
        a window of its own, so by default the holder has here what all of its connections have together there.
        """
        slots = self.max_concurrent_connections
        connections = min(slots, defaults.first_set(self.max_connections_per_key, default=slots))
        return defaults.first_set(
            self.http_max_requests_per_window, default=self.ws_max_messages_per_window * connections
        )

    def admin_token(self) -> SecretStr | None:
        """The token that the admin port asks for; none where it asks for none.

        Raises:
            SettingsError: the file cannot be read, or holds none.
        """
        file = self.admin_token_file
        if file is None:
            return None
        try:
            return SecretStr(session_store.read_password(file.read_bytes()))
        except OSError as error:
            problem = f"expected a readable file, found {file} ({error.strerror})"
        except ValueError:
            problem = f"expected a file with a token on one line, found something else in {file}"
        raise SettingsError([f"ADMIN_TOKEN_FILE: {problem}"])

    def store(self) -> StoreSettings | None:
        """Where sessions are kept beyond this process; none where they are not.

        Raises:
            SettingsError: the address is none, or a file cannot be read.
        """
        try:
            return session_store.gather(
                self.session_store,
                password_file=self.session_store_password_file,
                key_file=self.session_store_key_file,
                ca_file=self.session_store_ca_file,
            )
        except StoreSettingsError as error:
            raise SettingsError(list(error.problems)) from None

    def bounds(self) -> dict[str, Bound]:
        """The sampling parameters' ranges."""
        return {
            name: Bound(getattr(self, f"chat_{name}_min"), getattr(self, f"chat_{name}_max"), bound.whole)
            for name, bound in DEFAULT_BOUNDS.items()
        }

    def grammar(self, max_tokens: int = defaults.OUTPUT_TOKENS) -> Grammar:
        """The parts of the protocol that the operator sets, as the decoder needs them.

        Args:
            max_tokens: the longest reply that a client may ask for.
        """
        return Grammar(self.bounds(), self.ws_cancel_sentinel, self.ws_end_sentinel, max_tokens)

    def sampling(self, max_tokens: int) -> Sampling:
        """The server's default sampling."""
        return Sampling(**{name: getattr(self, f"chat_{name}") for name in DEFAULT_BOUNDS}, max_tokens=max_tokens)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def load() -> RuntimeSettings:
    """Read and check the process's environment.

    Raises:
        SettingsError: everything that is wrong.
    """
    read = look()
    if read.problems:
        raise SettingsError(list(read.problems))
    return read.settings


@dataclass(frozen=True, slots=True)
class Environment:
    """What the process's environment says.

    Attributes:
        settings: with defaults in place of what is wrong by itself.
        wrong: the fields that are.
        problems: everything that is wrong, one line each.
    """

    settings: RuntimeSettings
    wrong: frozenset[str]
    problems: tuple[str, ...]


def look() -> Environment:
    """Read the process's environment, whatever is wrong with it."""
    problems = []
    wrong: set[str] = set()
    try:
        settings = RuntimeSettings()
    except ValidationError as error:
        problems = [_problem(entry) for entry in error.errors()]
        # With defaults in place of what was wrong, so that the other checks have their say too.
        fields = RuntimeSettings.model_fields
        wrong = {str(entry["loc"][0]) for entry in error.errors() if entry["loc"]} & fields.keys()
        settings = RuntimeSettings(**{name: fields[name].default for name in wrong})
    problems += _contradictions(settings)
    return Environment(settings, frozenset(wrong), tuple(problems))


def _contradictions(settings: RuntimeSettings) -> list[str]:
    problems = []
    if settings.artifact is None:
        problems.append("ARTIFACT: expected the folder of an artifact, found nothing; make one with `yap-pipeline run`")
    elif named_on_hub(settings.artifact):
        try:
            Reference.parse(settings.artifact)
        except ArtifactError as error:
            problems.append(str(error))
    public_key = settings.artifact_public_key_file
    if public_key is not None and not variables.names_file(public_key):
        problems.append(f"ARTIFACT_PUBLIC_KEY_FILE: expected a file with a public key, found {public_key}")
    try:
        settings.api_keys()
    except SettingsError as error:
        problems += error.problems
    for read in (settings.store, settings.admin_token):
        try:
            read()
        except SettingsError as error:
            problems += error.problems
    if settings.admin_port is not None:
        if settings.admin_token_file is None and not is_loopback(settings.admin_host):
            problems.append(
                f"ADMIN_HOST: expected this machine's own address, or ADMIN_TOKEN_FILE beside it, "
                f"found {settings.admin_host}"
            )
        if settings.admin_port == settings.port:
            problems.append(f"ADMIN_PORT: expected another port than PORT, found {settings.admin_port}")
    for name, bound in settings.bounds().items():
        variable, default = f"CHAT_{name.upper()}", getattr(settings, f"chat_{name}")
        if bound.low > bound.high:
            problems.append(f"{variable}_MIN: expected at most {variable}_MAX ({bound.high:g}), found {bound.low:g}")
        elif not bound.low <= default <= bound.high:
            problems.append(f"{variable}: expected {bound}, found {default:g}")
    if settings.ws_cancel_sentinel == settings.ws_end_sentinel:
        problems.append(
            f"WS_END_SENTINEL: expected another text than WS_CANCEL_SENTINEL, found {settings.ws_end_sentinel!r}"
        )
    return problems


def _problem(error: ErrorDetails) -> str:
    name = str(error["loc"][0])
    field = RuntimeSettings.model_fields[name]
    return (
        f"{name.upper()}: expected {variables.expected(error, field)}, found {variables.found(error['input'], field)}"
    )
