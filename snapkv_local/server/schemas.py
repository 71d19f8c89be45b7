"""What chats and completions may hold, once fields.py has read them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator
from typing_extensions import Self

from snapkv_local.server import fields
from snapkv_local.server.common import CommonRequest, JsonObject, Name, TokenId

KwargText = Annotated[str, Field(max_length=200)]
TemplateOptions = Annotated[dict[Name, StrictBool | int | float | KwargText], Field(max_length=32)]


class PromptString(BaseModel):
    """A prompt of text, as llama-server writes one that has no pictures."""

    model_config = ConfigDict(extra="forbid")

    prompt_string: str


# text and tokens in a row
Mixed = Annotated[list[TokenId | str], Field(min_length=1)]
Prompt = (
    str
    | PromptString
    | Annotated[
        list[TokenId | str | PromptString | Mixed], Field(min_length=1, max_length=2_000_000)
    ]
)


def prompts(prompt: Prompt) -> list[list[int | str]]:
    """One prompt or several, each of texts and tokens; a list with tokens in it is one."""
    if not isinstance(prompt, list):
        prompt = [prompt]
    elif is_one(prompt):
        prompt = [[part for part in prompt if isinstance(part, int | str)]]
    return [_mixed(part) for part in prompt]


def is_one(prompt: Prompt) -> bool:
    """Whether it is one prompt, and no list of them."""
    return not isinstance(prompt, list) or any(isinstance(part, int) for part in prompt)


def _mixed(part: int | str | PromptString | list[int | str]) -> list[int | str]:
    if isinstance(part, list):
        return part
    return [part.prompt_string if isinstance(part, PromptString) else part]


class CompletionRequest(CommonRequest):
    """POST /v1/completions."""

    table = fields.COMPLETION

    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: StrictBool = False


class NativeRequest(CommonRequest):
    """POST /completion, which is llama-server's own."""

    table = fields.NATIVE

    prompt: Prompt
    n_probs: Annotated[int, Field(ge=0, le=100)] = 0
    post_sampling_probs: StrictBool = False
    response_fields: list[Annotated[str, Field(max_length=1000)]] = Field([], max_length=100)
    return_tokens: StrictBool = False


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
    reasoning_content: str | None = None

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

    name: Name | None = None
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
    chat_template_kwargs: TemplateOptions | None = Field(
        None, description="What the chat template may read, such as enable_thinking."
    )
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] = "auto"
    reasoning_effort: KwargText | None = None
    add_generation_prompt: StrictBool | None = None
    continue_final_message: StrictBool | None = None

    @model_validator(mode="after")
    def _check_last(self) -> Self:
        goes_on = bool(self.messages) and self.messages[-1].role == "assistant"
        if self.continue_final_message not in (None, goes_on):
            fields.refuse(
                "continue_final_message",
                "an answer goes on from a last message of the assistant's, and from no other: leave it out",
            )
        if self.add_generation_prompt is bool(self.continue_final_message):
            fields.refuse(
                "add_generation_prompt",
                "an answer begins with it, or goes on from the last message: leave it out",
            )
        return self


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Every answer other than success."""

    error: ErrorDetail
