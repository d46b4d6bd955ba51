"""Where the server listens, and who may come in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import BaseSettings, NoDecode

from runtime import defaults
from runtime.deployment import session_store
from runtime.deployment.keys import ApiKey, KeysError, from_file, from_variable
from runtime.deployment.settings.declaring import STRIPPED, SettingsError, origins, resolvable, var


class AccessSettings(BaseSettings):
    """Addresses and keys."""

    # Where
    host: Annotated[str, STRIPPED, AfterValidator(resolvable)] = var(defaults.HOST, "address to listen on")
    port: int = var(defaults.PORT, "port to listen on", ge=1, le=65535)

    admin_port: int | None = var(
        None, "port for `POST /drain`, which does what SIGTERM does; none where it is not set", ge=1, le=65535
    )
    admin_host: Annotated[str, STRIPPED, AfterValidator(resolvable)] = var(
        defaults.ADMIN_HOST, "address of that port; beyond this machine only with a token"
    )
    admin_token_file: Path | None = var(None, "file with the token that it asks for, on one line")

    # Who
    text_api_key: SecretStr | None = var(None, "API keys, comma separated; required, here or in a file")
    text_api_key_file: Path | None = var(
        None, "file that holds the API keys, a line each: `key`, `name: key` or `name=key`; read again on SIGHUP"
    )
    ws_allowed_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(origins)] = var(
        (), "browser origins that may connect, comma separated; empty, or `*` among them: all"
    )
    playground: bool = var(
        False,
        "serve a page at `/` to try the server with; its own address must be in WS_ALLOWED_ORIGINS when that is set",
    )

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
