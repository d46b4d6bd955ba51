"""Errors in the shape of OpenAI's API: `{"error": {"message", "type", "param", "code"}}` under an HTTP status."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

# What `type` says beside a status; every other one below 500 is the request's fault.
_RATE_LIMIT = "rate_limit_error"
_SERVER = "server_error"
_REQUEST = "invalid_request_error"

_KINDS: Mapping[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    list: "an array",
    dict: "an object",
}


class _ErrorObject(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _ErrorBody(msgspec.Struct):
    error: _ErrorObject


class ApiError(Exception):
    """A request that is not answered as it asked, or not to its end.

    Attributes:
        status: of HTTP.
        message: a sentence for people.
        code: a word for programs.
        param: the field that is to blame, where one is.
        retry_after: whole seconds, where waiting helps.
        once: whether sending it again would only do harm; OpenAI's clients send again what fails with 408, 409, 429 or
            from 500 on, unless they are told.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        once: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.once = once

    def body(self) -> bytes:
        """The error as JSON.

        >>> ApiError(404, "No such model.", code="model_not_found", param="model").body().decode()
        '{"error":{"message":"No such model.","type":"invalid_request_error","param":"model","code":"model_not_found"}}'
        """
        kind = _RATE_LIMIT if self.status == 429 else _SERVER if self.status >= 500 else _REQUEST
        return msgspec.json.encode(_ErrorBody(_ErrorObject(self.message, kind, self.param, self.code)))


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """The error of a field that is not as it has to be."""
    return ApiError(400, message, code=code, param=param)


def invalid_type(param: str, expected: str, value: object) -> ApiError:
    """The error of a field of the wrong kind."""
    return invalid(param, f"{param}: expected {expected}, found {kind_of(value)}", "invalid_type")


def kind_of(value: object) -> str:
    """What came, by its kind alone.

    >>> kind_of([1, 2])
    'an array'
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    return _KINDS.get(type(value), "something else")
