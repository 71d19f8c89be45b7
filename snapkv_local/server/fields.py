"""The fields of requests, by name: obeyed, without effect, or refused with a reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic_core import PydanticCustomError

_SURROGATE = re.compile("[\ud800-\udfff]")
# of a request's JSON: templates and encoders go down once for each level
MOST_LEVELS = 100
# whose JSON schemas, which schemas.py counts, lie that deep in them
_AROUND = {"tools": 4, "response_format": 2}


@dataclass(frozen=True)
class Field:
    """What the server does with a field.

    Attributes:
        refused: why it is; None if it is not.
        is_obeyed: it says something of the answer; otherwise it is accepted without effect.
        off: values that ask for nothing, which are accepted where others are refused.
    """

    refused: str | None = None
    is_obeyed: bool = False
    off: tuple[Any, ...] = ()


OBEYED = Field(is_obeyed=True)
NO_EFFECT = Field()


def _refused(why: str, *off: Any) -> Field:
    return Field(why, off=off)


def _table(obeyed: str, no_effect: str, **refused: Field) -> dict[str, Field]:
    return {
        **dict.fromkeys(obeyed.split(), OBEYED),
        **dict.fromkeys(no_effect.split(), NO_EFFECT),
        **refused,
    }


_ONE = "one answer is made for a request: leave it out, and send the request again for another"
_NO_AUDIO = "this server reads and writes text only: send what was said as text"
_SAMPLER = "this way of sampling is not there: leave it out, and use temperature, top_p or min_p"
_NO_RECORD = "it changes no answer here"

COMMON = _table(
    "model stream stream_options max_tokens n_predict temperature top_p top_k min_p typical_p "
    "presence_penalty frequency_penalty repeat_penalty logit_bias seed stop cache_prompt snapkv",
    "user metadata id_slot slot_id n_keep n_discard timings_per_token return_progress "
    "return_tokens samplers t_max_predict_ms lora",
    n=_refused(_ONE, 1),
    mirostat=_refused(_SAMPLER, 0),
    dynatemp_range=_refused(_SAMPLER, 0),
    xtc_probability=_refused(_SAMPLER, 0),
    dry_multiplier=_refused(_SAMPLER, 0),
    ignore_eos=_refused("answers end where the model ends them: raise max_tokens", False),
    n_probs=_refused("ask with OpenAI's logprobs and top_logprobs", 0),
)
CHAT = COMMON | _table(
    "messages document max_completion_tokens tools tool_choice response_format logprobs "
    "top_logprobs",
    "parallel_tool_calls store prompt_cache_key prompt_cache_options prompt_cache_retention "
    "reasoning_effort safety_identifier service_tier verbosity prediction moderation "
    "cache_control chat_template_kwargs reasoning_format",
    audio=_refused(_NO_AUDIO),
    modalities=_refused(_NO_AUDIO, ["text"], []),
    functions=_refused("send them as tools, which have taken their place in OpenAI's API", []),
    function_call=_refused("use tool_choice, which has taken its place", "none", "auto"),
    web_search_options=_refused("this server has no network: put what was found into a message"),
    grammar=_refused("the server takes JSON schemas only: use response_format", ""),
    json_schema=_refused("send it in response_format"),
)
COMPLETION = COMMON | _table(
    "prompt logprobs",
    "store",
    best_of=_refused(_ONE, 1),
    echo=_refused("the prompt is not said again: put it before the answer", False),
    suffix=_refused("text is continued, not filled in: send what stands before", ""),
    grammar=_refused("completions are free text: use response_format of a chat", ""),
    json_schema=_refused("completions are free text: use response_format of a chat"),
)
MESSAGE = _table(
    "role content name tool_calls tool_call_id refusal",
    "annotations cache_control reasoning reasoning_content parsed",
    audio=_refused(_NO_AUDIO),
    function_call=_refused("send it in tool_calls, which have taken its place", {}),
)
PART = _table("type text refusal", "cache_control prompt_cache_breakpoint citations annotations")
TOOL = _table("type function", "cache_control")
FUNCTION = _table("name description parameters", "strict cache_control")
TOOL_CALL = _table("id type function", "index")
CALLED = _table("name arguments", "parsed_arguments")
NAMED_TOOL = _table("type function", "")
FORMAT = _table("type json_schema schema", "")
JSON_SCHEMA = _table("name schema", "description strict")
STREAM_OPTIONS = _table("include_usage", "include_obfuscation")

# kinds of content that people send, and what to do instead
PARTS = {
    "image_url": "pictures cannot be seen by this server, which reads text: describe it in words",
    "image": "pictures cannot be seen by this server, which reads text: describe it in words",
    "input_audio": f"audio is refused: {_NO_AUDIO}",
    "file": "files cannot be read from a request: send their text in a part of type text",
    "document": "files cannot be read from a request: send their text in a part of type text",
}
_KINDS = {
    "custom": "tools of type custom are not there: describe it as a function",
    "allowed_tools": "a choice among some tools is not there: send only these in tools",
    "grammar": "the server takes JSON schemas only: use json_schema",
}


def refuse(where: str, says: str) -> NoReturn:
    """Within pydantic, which hands it on with the field's place."""
    raise PydanticCustomError("refused", "{says}", {"says": f"{where}: {says}", "param": where})


class Reader:
    """Reads a request's JSON: null is absent, what has no effect is left out, and so on.

    Attributes:
        ignored: places of fields that the server does not know.
    """

    def __init__(self) -> None:
        self.ignored: list[str] = []

    def request(self, data: Any, table: dict[str, Field]) -> Any:
        """The request as its model takes it.

        Raises:
            PydanticCustomError: a field is refused, or the JSON is too deep or no text.
        """
        _check_json(data)
        if not isinstance(data, dict):
            return data
        data = self._fields(data, table, "")
        n_predict = data.pop("n_predict", -1)
        if n_predict != -1:  # llama-server's name; -1 is no limit
            data.setdefault("max_tokens", n_predict)
        self._each(data, "messages", self._message)
        self._each(data, "tools", self._tool)
        self._inner(data, "tool_choice", NAMED_TOOL, "")
        self._inner(data, "response_format", FORMAT, "")
        if isinstance(form := data.get("response_format"), dict):
            self._inner(form, "json_schema", JSON_SCHEMA, "response_format.")
        self._inner(data, "stream_options", STREAM_OPTIONS, "")
        if isinstance(settings := data.get("snapkv"), dict):
            data["snapkv"] = {k: v for k, v in settings.items() if v is not None}
        return data

    def _fields(self, data: dict[str, Any], table: dict[str, Field], at: str) -> dict[str, Any]:
        kept = {}
        for name, value in data.items():
            field = table.get(name)
            if value is None:
                continue
            if field is None:
                self.ignored.append(at + name)
            elif field.is_obeyed:
                kept[name] = value
            elif field.refused is not None and not any(_same(value, off) for off in field.off):
                refuse(at + name, field.refused)
        return kept

    def _each(self, data: dict[str, Any], name: str, read: Any, at: str = "") -> None:
        if isinstance(values := data.get(name), list):
            data[name] = [
                read(value, f"{at}{name}.{i}.") if isinstance(value, dict) else value
                for i, value in enumerate(values)
            ]

    def _inner(self, data: dict[str, Any], name: str, table: dict[str, Field], at: str) -> None:
        if isinstance(value := data.get(name), dict):
            _check_kind(value, f"{at}{name}.")
            data[name] = self._fields(value, table, f"{at}{name}.")

    def _message(self, data: dict[str, Any], at: str) -> dict[str, Any]:
        if data.get("role") == "function":
            refuse(at + "role", "use tool, which has taken the place of function")
        message = self._fields(data, MESSAGE, at)
        self._each(message, "content", self._part, at)
        self._each(message, "tool_calls", self._tool_call, at)
        return message

    def _part(self, data: dict[str, Any], at: str) -> dict[str, Any]:
        kind = data.get("type")
        if isinstance(kind, str) and kind in PARTS:
            refuse(at[:-1], PARTS[kind])
        part = self._fields(data, PART, at)
        if kind == "refusal":  # what an earlier answer said
            return {"type": "text", "text": part.get("refusal", "")}
        return part

    def _tool(self, data: dict[str, Any], at: str) -> dict[str, Any]:
        _check_kind(data, at)
        tool = self._fields(data, TOOL, at)
        self._inner(tool, "function", FUNCTION, at)
        return tool

    def _tool_call(self, data: dict[str, Any], at: str) -> dict[str, Any]:
        _check_kind(data, at)
        call = self._fields(data, TOOL_CALL, at)
        self._inner(call, "function", CALLED, at)
        return call


def _check_kind(data: dict[str, Any], at: str) -> None:
    kind = data.get("type")
    if isinstance(kind, str) and kind in _KINDS:
        refuse(f"{at}type", _KINDS[kind])


def _same(value: Any, off: Any) -> bool:
    return bool(value == off) and isinstance(value, bool) == isinstance(off, bool)


def _check_json(data: Any) -> None:
    """Half of a surrogate pair passes as JSON, and has no bytes."""
    rest = [("", data, 0)]
    while rest:
        at, value, level = rest.pop()
        if isinstance(value, str):
            if not value.isascii() and _SURROGATE.search(value):
                where = at[1:] if len(at) < MOST_LEVELS else f"{at[1:80]}..."
                says = "has half of a surrogate pair, which is not Unicode: send both halves"
                raise PydanticCustomError(
                    "refused", "{says}", {"says": f"{where} {says}", "param": where}
                )
        elif isinstance(value, dict | list):
            where = at[1:].split(".", 1)[0]
            if level > MOST_LEVELS + _AROUND.get(where, 0):
                refuse(where, f"is nested more than {MOST_LEVELS} levels deep: send less deep JSON")
            items = value.items() if isinstance(value, dict) else enumerate(value)
            if isinstance(value, dict):
                rest += [(at, name, level) for name in value]
            rest += [
                (f"{at}.{name}", each, level + 1)
                for name, each in items
                if isinstance(each, str | dict | list)
            ]
