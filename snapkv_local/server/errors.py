"""Errors in the form of OpenAI's API: {"error": {message, type, param, code}}."""

from __future__ import annotations

import logging
from typing import Any

from snapkv_local import foreign
from snapkv_local.errors import (
    ConfigError,
    ConversationError,
    DocumentError,
    ModelFileError,
    NoRoomError,
    OutOfMemoryError,
    PromptError,
    SnapKVError,
)

logger = logging.getLogger("snapkv_local.server")


class ApiError(Exception):
    """An answer other than success.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        code: a word that programs can compare.
        param: the field of the request at fault.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}

    @property
    def type(self) -> str:
        """The kind of error, in OpenAI's words."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


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
