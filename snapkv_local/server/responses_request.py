"""Requests of OpenAI's Responses API: the chats that they ask for. Nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from snapkv_local.server import fields
from snapkv_local.server.common import CommonRequest, JsonObject, Name
from snapkv_local.server.fields import refused, table
from snapkv_local.server.schemas import ChatRequest, KwargText, TemplateOptions

_STATELESS = "this server stores no answers: send the whole conversation as input"
_ELSEWHERE = "it runs on OpenAI's servers: describe a function of your own"
_KINDS = "an item of this type is not there: send messages, function calls and their outputs"

RESPONSES = fields.LLAMA | table(
    "model input instructions max_output_tokens stream temperature top_p top_k tools tool_choice "
    "text reasoning document chat_template_kwargs timings_per_token return_progress",
    "metadata user store parallel_tool_calls include service_tier safety_identifier "
    "prompt_cache_key prompt_cache_options prompt_cache_retention stream_options moderation "
    "max_tool_calls access_programs background_options image client_metadata",
    previous_response_id=refused(_STATELESS, ""),
    conversation=refused(_STATELESS),
    prompt=refused("there are no prompts here to name: send its text as instructions"),
    background=refused("an answer is sent to who asked for it: leave it out", False),
    truncation=refused("nothing of the input is left out: shorten it", "disabled"),
    context_management=refused("nothing of the input is left out: shorten it", []),
    top_logprobs=refused("POST /v1/chat/completions has them", 0),
)
_ITEMS = {
    "message": table("type role content", "id status phase"),
    "function_call": table("type call_id name namespace arguments", "id status caller"),
    "function_call_output": table("type call_id output", "id status caller"),
    "reasoning": table("type content", "id status summary encrypted_content"),
}
_PART = table("type text refusal", "annotations logprobs prompt_cache_breakpoint")
_TOOL = table("type name description parameters", "strict output_schema")
_NAMESPACE = table("type name tools", "description")
_CHOICE = table("type name", "")
_TEXT = table("format", "verbosity")
_FORMAT = table("type schema", "name description strict")
_REASONING = table("effort", "summary generate_summary")


class Reader(fields.Reader):
    """Reads a request of the Responses API."""

    def nested(self, data: dict[str, Any]) -> None:
        """As fields.Reader has it."""
        self._each(data, "input", self._item)
        self._each(data, "tools", self._tool)
        self._inner(data, "tool_choice", _CHOICE, "")
        self._inner(data, "reasoning", _REASONING, "")
        self._inner(data, "text", _TEXT, "")
        if isinstance(text := data.get("text"), dict):
            self._inner(text, "format", _FORMAT, "text.")

    def _item(self, data: dict[str, Any], at: str) -> dict[str, Any]:
        kind = data.get("type") or "message"
        if not isinstance(kind, str) or kind not in _ITEMS:
            fields.refuse(f"{at}type", _KINDS)
        item = self._fields({**data, "type": kind}, _ITEMS[kind], at)
        self._each(item, "content", self._content, at)
        self._each(item, "output", self._content, at)
        return item

    def _content(self, data: dict[str, Any], at: str) -> dict[str, Any]:
        kind = data.get("type")
        known = {"input_image": "image", "input_file": "file"}
        if isinstance(kind, str) and (why := fields.PARTS.get(known.get(kind, kind))):
            fields.refuse(at[:-1], why)
        part = self._fields(data, _PART, at)
        if kind == "refusal":
            return {"type": "output_text", "text": part.get("refusal", "")}
        return part

    def _tool(self, data: dict[str, Any], at: str) -> dict[str, Any]:
        if data.get("type") == "namespace":
            space = self._fields(data, _NAMESPACE, at)
            self._each(space, "tools", self._tool, at)
            return space
        if data.get("type") != "function":
            fields.refuse(f"{at}type", _ELSEWHERE)
        return self._fields(data, _TOOL, at)


class Part(BaseModel):
    """Text."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    text: str


Content = str | list[Part]


class MessageItem(BaseModel):
    """One turn of a conversation."""

    type: Literal["message"]
    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class CallItem(BaseModel):
    """What an earlier answer called."""

    type: Literal["function_call"]
    call_id: str = Field(max_length=1000)
    name: Name
    namespace: Name | None = None
    arguments: str


class OutputItem(BaseModel):
    """What that gave."""

    type: Literal["function_call_output"]
    call_id: str = Field(max_length=1000)
    output: Content


class ReasoningItem(BaseModel):
    """What an earlier answer thought."""

    type: Literal["reasoning"]
    content: list[Part] | None = None


Item = Annotated[MessageItem | CallItem | OutputItem | ReasoningItem, Field(discriminator="type")]


class FunctionTool(BaseModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: JsonObject | None = None


class NamespaceTool(BaseModel):
    """Functions of one namespace; in the chat a name has that of the namespace before it."""

    type: Literal["namespace"]
    name: Name
    tools: list[FunctionTool] = Field(max_length=128)


Tool = Annotated[FunctionTool | NamespaceTool, Field(discriminator="type")]


class NamedFunction(BaseModel):
    """The function that must be called."""

    type: Literal["function"]
    name: Name


class TextFormat(BaseModel):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    schema_: JsonObject | None = Field(None, alias="schema")


class TextConfig(BaseModel):
    """What the answer's text is like."""

    format: TextFormat | None = None


class Reasoning(BaseModel):
    """How much is thought, where the chat template can say it."""

    effort: KwargText | None = None


class ResponsesRequest(CommonRequest):
    """POST /v1/responses."""

    table = RESPONSES
    reader = Reader

    input: str | Annotated[list[Item], Field(min_length=1, max_length=10_000)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    document: Name | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: TemplateOptions | None = None

    def chat(self) -> ChatRequest:
        """The chat that is asked for."""
        own = set(ResponsesRequest.model_fields) - set(CommonRequest.model_fields)
        body: dict[str, Any] = self.model_dump(exclude=own, exclude_none=True)
        body |= {
            "messages": self._messages(),
            "max_tokens": self.max_output_tokens,
            "document": self.document,
            "chat_template_kwargs": self.chat_template_kwargs,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
        }
        if self.tools is not None:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        **tool.model_dump(exclude={"type"}, exclude_none=True),
                        "name": _in_chat(tool.name, space),
                    },
                }
                for tool, space in self._functions()
            ]
        if isinstance(self.tool_choice, NamedFunction):
            asked = self.tool_choice.name
            named = [_in_chat(*each) for each in self._names() if each[0] == asked]
            body["tool_choice"] = {"type": "function", "function": {"name": (named or [asked])[0]}}
        else:
            body["tool_choice"] = self.tool_choice
        form = self.text.format if self.text else None
        if form is not None and form.type == "json_schema":
            schema = {"schema": form.schema_ or {}}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif form is not None:
            body["response_format"] = {"type": form.type}
        return ChatRequest.model_validate(body)

    def called(self, name: str) -> dict[str, str]:
        """A function that the chat calls by a name: its own, and its namespace if it has one."""
        for own, space in self._names():
            if space is not None and _in_chat(own, space) == name:
                return {"name": own, "namespace": space}
        return {"name": name}

    def _names(self) -> list[tuple[str, str | None]]:
        return [(tool.name, space) for tool, space in self._functions()]

    def _functions(self) -> Iterator[tuple[FunctionTool, str | None]]:
        """All functions, each with its namespace."""
        for tool in self.tools or []:
            if isinstance(tool, NamespaceTool):
                yield from ((each, tool.name) for each in tool.tools)
            else:
                yield tool, None

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for item in self.input:
            if isinstance(item, OutputItem):
                content = _text(item.output)
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
            elif isinstance(item, MessageItem) and item.role != "assistant":
                messages.append({"role": item.role, "content": _text(item.content)})
            else:
                _add_to_answer(messages, item)
        return messages


def _add_to_answer(
    messages: list[dict[str, Any]], item: MessageItem | CallItem | ReasoningItem
) -> None:
    """Text, calls and thoughts of one answer are items of their own, and one message of a chat."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    answer = messages[-1]
    if isinstance(item, CallItem):
        function = {"name": _in_chat(item.name, item.namespace), "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        answer.setdefault("tool_calls", []).append(call)
    elif isinstance(item, ReasoningItem):
        if item.content:
            answer["reasoning_content"] = _text(item.content)
    else:
        answer["content"] += _text(item.content)


def _in_chat(name: str, namespace: str | None) -> str:
    return name if namespace is None else f"{namespace}__{name}"


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
