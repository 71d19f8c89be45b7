"""Errors in the form of OpenAI's API, {"error": {message, type, param, code}}, and of Anthropic's."""

from __future__ import annotations

import logging
from typing import Any

from snapkv_local import foreign
from snapkv_local.errors import (
    ConfigError,
    ConversationError,
    DocumentError,
    GrammarError,
    LongPromptError,
    ModelFileError,
    NoRoomError,
    OutOfMemoryError,
    PromptError,
    SnapKVError,
)

logger = logging.getLogger("snapkv_local.server")

# where paths of Anthropic's API begin
ANTHROPIC = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An answer other than success.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        code: a word that programs can compare.
        param: the field of the request at fault.
        headers: of the answer.
        more: further fields, as llama-server has them.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}
        self.more = more or {}

    @property
    def type(self) -> str:
        """The kind of error, in OpenAI's words."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        if self.code == "context_length_exceeded":
            return "exceed_context_size_error"  # llama-server's
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
                **self.more,
            }
        }

    def body_for(self, path: str) -> dict[str, Any]:
        """For JSON, in the form of the API that a path belongs to."""
        return anthropic_body(self) if path.startswith(ANTHROPIC) else self.body()


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """For JSON, in the form of Anthropic's API."""
    kind = _ANTHROPIC_TYPES.get(error.status) or (
        "invalid_request_error" if error.status < 500 else "api_error"
    )
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def refusal(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be done as it is."""
    return ApiError(400, message, code=code, param=param)


def from_exception(error: BaseException) -> ApiError:
    """What the caller gets to see of an exception; what nobody foresaw is logged."""
    if isinstance(error, ApiError):
        return error
    if foreign.is_out_of_memory(error) and not isinstance(error, SnapKVError):
        error = foreign.out_of_memory("memory", str(error))
    if isinstance(error, SnapKVError):
        says = error.says("server")
        if isinstance(error, ConversationError):
            return refusal(says, param="messages")
        if isinstance(error, GrammarError):
            return refusal(says)
        if isinstance(error, LongPromptError):
            more = {"n_prompt_tokens": error.n_tokens, "n_ctx": error.n_ctx}
            return ApiError(400, says, code="context_length_exceeded", more=more)
        if isinstance(error, PromptError):
            return refusal(says, code="context_length_exceeded")
        if isinstance(error, NoRoomError):
            return refusal(says, code="no_room")
        if isinstance(error, ConfigError):
            return refusal(says, param="snapkv", code="invalid_config")
        logger.error("%s", says)
        if isinstance(error, OutOfMemoryError):
            return ApiError(503, says, code="out_of_memory")
        if isinstance(error, DocumentError | ModelFileError):  # changed since the server started
            return ApiError(503, says, code="file_changed")
        return ApiError(500, says, code="engine_error")
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log has the reason", code="internal_error")
