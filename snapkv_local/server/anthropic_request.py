"""Requests of Anthropic's API: the chats that they ask for."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool

from snapkv_local.server import fields
from snapkv_local.server.common import CommonRequest, JsonObject, Name, StopText
from snapkv_local.server.fields import refused, table
from snapkv_local.server.schemas import ChatRequest, TemplateOptions

_CHECKSUM = re.compile(r"\A(x-anthropic-billing-header:[^\n]*?\bcch=)[0-9a-f]{5}(?=;)")
_HERE = "it runs on Anthropic's servers: describe a function of your own"
_RICH = "its source is no text: send what it says as text"

MESSAGES = fields.LLAMA | table(
    "model messages max_tokens system stop_sequences stream temperature top_p top_k tools "
    "tool_choice thinking output_config document chat_template_kwargs",
    "metadata cache_control service_tier inference_geo user_profile_id workspace_id diagnostics "
    "speed betas",
    container=refused("there is no container to run code in: leave it out"),
    mcp_servers=refused("this server calls no others: call them yourself, as tools", []),
    context_management=refused("messages stay as they are: leave out what need not be read"),
)
_MESSAGE = table("role content", "id type model stop_reason stop_sequence usage")
_CACHED = "cache_control"
_BLOCKS = {
    "text": table("type text", f"{_CACHED} citations parsed_output"),
    "thinking": table("type thinking", "signature"),
    "redacted_thinking": table("type", "data"),
    "tool_use": table("type id name input", f"{_CACHED} caller"),
    "tool_result": table("type tool_use_id content is_error", _CACHED),
    "document": table("type source title context", f"{_CACHED} citations"),
}
_TOOL = table(
    "type name description input_schema",
    f"{_CACHED} strict eager_input_streaming input_examples",
    defer_loading=refused("all tools are told to the model: leave it out", False),
    allowed_callers=refused("only the model calls tools: leave it out", ["direct"]),
)
_CHOICE = table("type name", "disable_parallel_tool_use")
_THINKING = table("type", "budget_tokens display")
_OUTPUT = table("format", "effort")
_FORMAT = table("type schema", "name")
_SOURCE = table("type data", "media_type")


class Reader(fields.Reader):
    """Reads a request of Anthropic's."""

    def nested(self, data: dict[str, Any]) -> None:
        """As fields.Reader has it."""
        self._each(data, "messages", self._message)
        self._each(data, "system", self._block)
        self._each(data, "tools", self._tool)
        self._inner(data, "tool_choice", _CHOICE, "")
        self._inner(data, "thinking", _THINKING, "")
        self._inner(data, "output_config", _OUTPUT, "")
        if isinstance(output := data.get("output_config"), dict):
            self._inner(output, "format", _FORMAT, "output_config.")

    def _message(self, data: dict[str, Any], at: str) -> dict[str, Any]:
        message = self._fields(data, _MESSAGE, at)
        self._each(message, "content", self._block, at)
        return message

    def _block(self, data: dict[str, Any], at: str) -> dict[str, Any]:
        kind = data.get("type")
        if kind == "document" and isinstance(source := data.get("source"), dict):
            if source.get("type") != "text":
                fields.refuse(at + "source", _RICH)
        elif isinstance(kind, str) and kind in fields.PARTS:
            fields.refuse(at[:-1], fields.PARTS[kind])
        block = self._fields(data, _BLOCKS.get(str(kind), _BLOCKS["text"]), at)
        self._inner(block, "source", _SOURCE, at)
        self._each(block, "content", self._block, at)
        return block

    def _tool(self, data: dict[str, Any], at: str) -> dict[str, Any]:
        if data.get("type") not in (None, "custom"):
            fields.refuse(f"{at}type", _HERE)
        return self._fields(data, _TOOL, at)


class Text(BaseModel):
    """Text."""

    type: Literal["text"]
    text: str


class Source(BaseModel):
    """What a document says."""

    type: Literal["text"]
    data: str


class DocumentBlock(BaseModel):
    """A document of plain text."""

    type: Literal["document"]
    source: Source
    title: str | None = None
    context: str | None = None

    @property
    def text(self) -> str:
        """Title, context and what it says."""
        return "\n".join(filter(None, [self.title, self.context, self.source.data]))


class Thinking(BaseModel):
    """What an earlier answer thought."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinking(BaseModel):
    """What nobody here can read."""

    type: Literal["redacted_thinking"]


class ToolUse(BaseModel):
    """What an earlier answer called."""

    type: Literal["tool_use"]
    id: str = Field(max_length=1000)
    name: Name
    input: JsonObject


class ToolResult(BaseModel):
    """What that gave."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(max_length=1000)
    content: str | list[Annotated[Text | DocumentBlock, Field(discriminator="type")]] | None = None
    is_error: StrictBool = False

    def text(self) -> str:
        """The result, which says that it is an error if it is one."""
        said = _joined(self.content or "")
        return f"Error: {said}" if self.is_error else said


Block = Annotated[
    Text | DocumentBlock | Thinking | RedactedThinking | ToolUse | ToolResult,
    Field(discriminator="type"),
]


class Turn(BaseModel):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    def messages(self) -> list[dict[str, Any]]:
        """As OpenAI's messages: results of tools are messages of their own, before other text."""
        blocks = self.content if isinstance(self.content, list) else []
        results = [
            {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.text()}
            for block in blocks
            if isinstance(block, ToolResult)
        ]
        calls = [
            {
                "id": block.id,
                "type": "function",
                "function": {"name": block.name, "arguments": json.dumps(block.input)},
            }
            for block in blocks
            if isinstance(block, ToolUse)
        ]
        thoughts = [block.thinking for block in blocks if isinstance(block, Thinking)]
        texts = [block for block in blocks if isinstance(block, Text | DocumentBlock)]
        content = self.content if isinstance(self.content, str) else _joined(texts)
        if not (content or calls or thoughts) and results:
            return results
        message: dict[str, Any] = {"role": self.role, "content": content}
        if calls:
            message["tool_calls"] = calls
        if thoughts:
            message["reasoning_content"] = "\n".join(thoughts)
        return [*results, message]


class ToolSpec(BaseModel):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    input_schema: JsonObject


class Choice(BaseModel):
    """Whether a tool must be called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None


class ThinkingConfig(BaseModel):
    """Whether the model thinks before it answers, where its chat template leaves the choice."""

    type: Literal["enabled", "disabled", "adaptive"]


class OutputFormat(BaseModel):
    """The schema that an answer must fit."""

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(BaseModel):
    """The form of an answer."""

    format: OutputFormat | None = None


class MessagesRequest(CommonRequest):
    """POST /v1/messages, and /v1/messages/count_tokens."""

    table = MESSAGES
    reader = Reader

    messages: Annotated[list[Turn], Field(max_length=10_000)]
    document: Name | None = None
    system: str | list[Text] | None = None
    stop_sequences: list[StopText] | None = Field(None, max_length=16)
    tools: list[ToolSpec] | None = Field(None, max_length=128)
    tool_choice: Choice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: TemplateOptions | None = None

    def chat(self) -> ChatRequest:
        """The chat that is asked for."""
        own = set(MessagesRequest.model_fields) - set(CommonRequest.model_fields)
        body: dict[str, Any] = self.model_dump(exclude=own, exclude_none=True, by_alias=True)
        messages = [message for turn in self.messages for message in turn.messages()]
        if self.system:
            messages.insert(0, {"role": "system", "content": _stamped(_joined(self.system))})
        body |= {"messages": messages, "document": self.document, "stop": self.stop_sequences}
        body["chat_template_kwargs"] = self.chat_template_kwargs
        if self.tools is not None:
            body["tools"] = [_function(tool) for tool in self.tools]
        if self.tool_choice is not None:
            body["tool_choice"] = _choice(self.tool_choice)
        if self.thinking is not None:
            thinks = {"enable_thinking": self.thinking.type != "disabled"}
            body["chat_template_kwargs"] = {**thinks, **(self.chat_template_kwargs or {})}
        if self.output_config is not None and self.output_config.format is not None:
            schema = {"name": "answer", "schema": self.output_config.format.schema_}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return ChatRequest.model_validate(body)


def _joined(content: str | list[Any]) -> str:
    """Text, or the texts of blocks one below the other."""
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _stamped(system: str) -> str:
    """A system prompt without what changes from request to request, as llama-server has it.

    Claude Code's begins with a checksum, which would make each prompt a new one.
    """
    return _CHECKSUM.sub(r"\g<1>fffff", system, count=1)


def _function(tool: ToolSpec) -> dict[str, Any]:
    function = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _choice(choice: Choice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name or ""}}
    return {"any": "required"}.get(choice.type, choice.type)
