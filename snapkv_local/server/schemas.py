"""What requests may hold, once fields.py has read them."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StrictBool,
    model_validator,
)
from typing_extensions import Self

from snapkv_local.policies.scoring import MOST_SELF_WEIGHT, Aggregation, Pooling
from snapkv_local.server import fields

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [value]
    for _ in range(fields.MOST_LEVELS):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
        if not level:
            return value
    raise ValueError(f"is nested more than {fields.MOST_LEVELS} levels deep")


def _digits(name: str) -> str:
    if not re.fullmatch("[0-9]{1,9}", name):
        raise ValueError("is not a token id: digits only")
    return name


# as JSON has them, a text
BiasedToken = Annotated[str, AfterValidator(_digits)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_shallow)]


class StreamOptions(BaseModel):
    """What a stream has beside the answer."""

    include_usage: StrictBool = False


class Overrides(BaseModel):
    """Settings of SnapKVConfig for one request. A budget above the server's finds no cells."""

    model_config = ConfigDict(extra="forbid")

    budget: Annotated[int, Field(ge=1, le=2**31)] | None = None
    keep_ratio: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    window_size: Annotated[int, Field(ge=1, le=2**31)] | None = None
    kernel_size: Annotated[int, Field(ge=1, le=2**31)] | None = None
    pooling: Pooling | None = None
    aggregation: Aggregation | None = None
    self_weight: Annotated[float, Field(ge=0, le=MOST_SELF_WEIGHT, allow_inf_nan=False)] | None = (
        None
    )
    n_sink: Annotated[int, Field(ge=0, le=2**31)] | None = None
    policy: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    protect_system: StrictBool | None = None


class CommonRequest(BaseModel):
    """What both kinds of completions take."""

    table: ClassVar[dict[str, fields.Field]] = {}
    _ignored: list[str] = PrivateAttr(default_factory=list)

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        reader = fields.Reader()
        request = handler(reader.request(data, cls.table))
        request._ignored = reader.ignored
        return request

    @property
    def ignored(self) -> list[str]:
        """Places of fields that the server does not know."""
        return self._ignored

    model: str | None = Field(None, max_length=1000)
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    typical_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Field(ge=0.1, le=10, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    logit_bias: dict[BiasedToken, Bias] | None = Field(
        None, max_length=1024, description="Added to the logits of tokens, by id."
    )
    cache_prompt: StrictBool = Field(
        True,
        description="False: evaluate the whole prompt, whatever was evaluated before.",
    )
    snapkv: Overrides | None = None


class CompletionRequest(CommonRequest):
    """POST /v1/completions."""

    table = fields.COMPLETION

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TextPart(BaseModel):
    """The one kind of content: images and files are refused."""

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    """What an earlier answer called."""

    name: Name
    arguments: str


class ToolCall(BaseModel):
    """A call in an earlier answer."""

    id: str = Field(max_length=1000)
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = Field(None, max_length=1000)
    tool_calls: list[ToolCall] | None = Field(None, max_length=128)
    tool_call_id: str | None = Field(None, max_length=1000)
    refusal: str | None = None

    def text(self) -> str:
        """The content, its parts one below the other."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or self.refusal or ""


class FunctionSpec(BaseModel):
    """A function that the model may call; parameters is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: JsonObject | None = None


class Tool(BaseModel):
    """A function, the one kind of tool."""

    type: Literal["function"]
    function: FunctionSpec


class FunctionName(BaseModel):
    """Names a function."""

    name: Name


class NamedTool(BaseModel):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(BaseModel):
    """The schema that an answer must fit."""

    name: Name
    schema_: JsonObject = Field(alias="schema")


class ResponseFormat(BaseModel):
    """The form of the answer; schema beside json_object is llama_cpp's own form."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: JsonObject | None = Field(None, alias="schema")


class ChatRequest(CommonRequest):
    """POST /v1/chat/completions."""

    table = fields.CHAT

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    document: Name | None = Field(
        None, description="One of GET /v1/documents; its text goes before the first message."
    )
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: ResponseFormat | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Every answer other than success."""

    error: ErrorDetail
