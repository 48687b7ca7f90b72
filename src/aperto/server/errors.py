"""Errors as clients read them: a status and OpenAI's error object, or another door's shape."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from aperto.errors import (
    ApertoError,
    CheckpointError,
    ContextLengthError,
    DownloadError,
    EngineClosedError,
    ModelNotFoundError,
    QueueFullError,
    ResourceError,
    TemplateError,
    UsageError,
)
from aperto.server.sse import JsonResponse

_log = logging.getLogger(__name__)

RETRY_AFTER_S = 5
"""Seconds after which a refused request is worth another try."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Body of every failed request."""

    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request cannot be served as it is."},
    401: {"model": ErrorBody, "description": "The API key is missing or wrong."},
    403: {"model": ErrorBody, "description": "The request's host or origin is not allowed."},
    404: {"model": ErrorBody, "description": "No such model or object."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    429: {"model": ErrorBody, "description": "Too many requests wait; see Retry-After."},
    500: {"model": ErrorBody, "description": "The server failed."},
    501: {"model": ErrorBody, "description": "This server was not set up for that."},
    503: {"model": ErrorBody, "description": "The model cannot be loaded, or the server stops."},
}
"""For `APIRouter(responses=...)`: the error shape in the OpenAPI document."""


class ApiError(Exception):
    """A request that fails with a status.

    Args:
        status: HTTP status.
        message: what was found, what was expected, what to do.
        type: OpenAI's kind of error; by default what fits the status.
        code: a word for programs, such as "context_length_exceeded".
        param: the field of the request that is to blame.
        headers: more headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or default_type(status)
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def default_type(status: int) -> str:
    """OpenAI's kind of error for a status."""
    known = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return known.get(status, "invalid_request_error" if status < 500 else "server_error")


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    error: type[ApertoError]
    status: int
    code: str | None
    param: str | None = None


# The first that fits; an error of any other kind is the server's own.
_KINDS = (
    _Kind(ContextLengthError, 400, "context_length_exceeded", "messages"),
    _Kind(QueueFullError, 429, "rate_limit_exceeded"),
    _Kind(EngineClosedError, 503, "server_shutting_down"),
    _Kind(ModelNotFoundError, 404, "model_not_found", "model"),
    _Kind(TemplateError, 400, "invalid_messages", "messages"),
    _Kind(UsageError, 400, "invalid_value"),
    _Kind(CheckpointError, 503, "model_not_loadable"),
    _Kind(ResourceError, 503, "insufficient_resources"),
    _Kind(DownloadError, 503, "download_failed"),
)


def as_api_error(error: BaseException) -> ApiError:
    """The error as a client sees it; one that is not deliberate is logged and kept vague."""
    if isinstance(error, ApiError):
        return error
    for kind in _KINDS:
        if isinstance(error, kind.error):
            headers = {"Retry-After": str(RETRY_AFTER_S)} if kind.status in (429, 503) else None
            return ApiError(
                kind.status, str(error), code=kind.code, param=kind.param, headers=headers
            )
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return ApiError(error.status_code, str(error.detail), code=code, headers=headers)
    _log.error("a request failed on an internal error", exc_info=error)
    if isinstance(error, ApertoError):
        return ApiError(500, str(error), code="engine_error")
    return ApiError(500, f"internal error: {type(error).__name__}; the server's log has more")


Encoder = Callable[[ApiError], dict[str, Any]]
"""Body of a failed request in the shape of one door."""

_encoders: dict[str, Encoder] = {}


def register_error_shape(path_prefix: str, encode: Encoder) -> None:
    """Let errors of paths that begin with `path_prefix` have another body than OpenAI's."""
    _encoders[path_prefix] = encode


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """Body of a failed request to a path; the longest registered prefix decides."""
    fitting = [prefix for prefix in _encoders if path.startswith(prefix)]
    return _encoders[max(fitting, key=len)](error) if fitting else error.body()


def error_response(path: str, error: BaseException) -> Response:
    """The response of a failed request to a path."""
    api_error = as_api_error(error)
    return JsonResponse(error_body(path, api_error), api_error.status, api_error.headers)


def _from_validation(error: RequestValidationError) -> ApiError:
    """One line a field that does not fit, the first of them as `param`."""
    if isinstance(error.body, bytes):  # it was not read as JSON at all
        message = "the body was not read, as its Content-Type is not JSON; send application/json"
        return ApiError(400, message, code="invalid_value")
    fields = [".".join(str(part) for part in item["loc"][1:]) for item in error.errors()]
    lines = [
        f"{field or 'the body'}: {item['msg']}"
        for field, item in zip(fields, error.errors(), strict=True)
    ]
    more = f" (and {len(lines) - 5} more)" if len(lines) > 5 else ""
    return ApiError(400, "; ".join(lines[:5]) + more, code="invalid_value", param=fields[0] or None)


def add_handlers(app: FastAPI) -> None:
    """Make every failure of the app an error body."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            error = _from_validation(error)
        return error_response(request.url.path, error)

    for kind in (ApiError, ApertoError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)
