"""What requests may hold. Fields that OpenAI has and llama_cpp has not are refused, not ignored."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, model_validator

from snapkv_local.policies.scoring import MOST_OWN

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
_SURROGATE = re.compile("[\ud800-\udfff]")
# templates and encoders of JSON go down once for each level
_MOST_LEVELS = 100


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [value]
    for _ in range(_MOST_LEVELS):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
        if not level:
            return value
    raise ValueError(f"is nested more than {_MOST_LEVELS} levels deep")


JsonObject = Annotated[dict[str, Any], AfterValidator(_shallow)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Part):
    """What a stream has beside the answer."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False


class Overrides(_Part):
    """Settings of SnapKVConfig for one request. A budget above the server's finds no cells."""

    budget: Annotated[int, Field(ge=1, le=2**31)] | None = None
    ratio: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    window: Annotated[int, Field(ge=1, le=2**31)] | None = None
    kernel: Annotated[int, Field(ge=1, le=2**31)] | None = None
    pool: Literal["avg", "max", "trim"] | None = None
    reduce: Literal["sum", "max"] | None = None
    own: Annotated[float, Field(ge=0, le=MOST_OWN, allow_inf_nan=False)] | None = None
    sinks: Annotated[int, Field(ge=0, le=2**31)] | None = None
    policy: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    protect_system: StrictBool | None = None


def _check_text(value: Any) -> None:
    """Half of a surrogate pair passes as JSON, and has no bytes."""
    rest = [("", value)]
    while rest:
        at, value = rest.pop()
        if isinstance(value, str):
            if not value.isascii() and _SURROGATE.search(value):
                where = at[1:] if len(at) < 100 else f"{at[1:80]}..."
                raise ValueError(
                    f"{where} has half of a surrogate pair, which is no Unicode: send both halves"
                )
        elif isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            if isinstance(value, dict):
                rest += [(at, name) for name in value]
            rest += [
                (f"{at}.{name}", each)
                for name, each in items
                if isinstance(each, str | dict | list)
            ]


class CommonRequest(_Part):
    """What both kinds of completions take."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, data: Any) -> Any:
        _check_text(data)
        return data

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
    n: Literal[1] | None = None
    user: str | None = Field(None, description="Without effect.")
    metadata: JsonObject | None = Field(None, description="Without effect.")
    store: Literal[False] | None = None
    snapkv: Overrides | None = None


class CompletionRequest(CommonRequest):
    """POST /v1/completions."""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None


class TextPart(_Part):
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


class Message(_Part):
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
        return self.content or ""


class FunctionSpec(BaseModel):
    """A function that the model may call; parameters is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(_Part):
    """A function, the one kind of tool."""

    type: Literal["function"]
    function: FunctionSpec


class FunctionName(_Part):
    """Names a function."""

    name: Name


class NamedTool(_Part):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(BaseModel):
    """The schema that an answer must fit."""

    name: Name
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Part):
    """The form of the answer; schema beside json_object is llama_cpp's own form."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: JsonObject | None = Field(None, alias="schema")


class ChatRequest(CommonRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    document: Name | None = Field(
        None, description="One of GET /v1/documents; its text goes before the first message."
    )
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="One call an answer is made.")
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
