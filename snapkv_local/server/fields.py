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


def refused(why: str, *off: Any) -> Field:
    """A field that is refused, but for values that ask for nothing."""
    return Field(why, off=off)


def table(obeyed: str, no_effect: str, **others: Field) -> dict[str, Field]:
    """Fields by name: names of those that are obeyed, of those without effect, and others."""
    return {
        **dict.fromkeys(obeyed.split(), OBEYED),
        **dict.fromkeys(no_effect.split(), NO_EFFECT),
        **others,
    }


_NO_AUDIO = "this server reads and writes text only: send what was said as text"
_SAMPLER = "this way of sampling is not there: leave it out, and use mirostat, top_p or min_p"
_LAZY = "a grammar holds from the first token on: leave it out"
_THOUGHTS = (
    'thoughts are not cut: leave it out, or send "chat_template_kwargs": {"enable_thinking": false}'
)

# llama-server's own, which every API takes
LLAMA = table(
    "min_p typical_p top_n_sigma presence_penalty frequency_penalty repeat_penalty repeat_last_n "
    "dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers "
    "xtc_probability xtc_threshold dynatemp_range dynatemp_exponent mirostat mirostat_tau "
    "mirostat_eta min_keep samplers seed logit_bias ignore_eos grammar json_schema cache_prompt "
    "id_slot snapkv",
    "slot_id n_keep n_discard n_cache_reuse sse_ping_interval backend_sampling",
    adaptive_target=refused(_SAMPLER, -1),
    adaptive_decay=refused(_SAMPLER, 0.9),
    n_indent=refused("text is not cut by its indentation: leave it out", 0),
    t_max_predict_ms=refused("an answer is cut by tokens: use max_tokens", 0, -1),
    lora=refused("the adapter is chosen when the server starts: leave it out", []),
    grammar_lazy=refused(_LAZY, False),
    grammar_triggers=refused(_LAZY, []),
    preserved_tokens=refused(_LAZY, []),
    reasoning_budget_tokens=refused(_THOUGHTS, -1),
    thinking_budget_tokens=refused(_THOUGHTS, -1),
)
COMMON = LLAMA | table(
    "model stream stream_options max_tokens n_predict temperature top_p top_k stop n "
    "timings_per_token return_progress verbose",
    "user metadata store",
)
_N_PROBS = {
    "n_probs": refused("ask with OpenAI's logprobs and top_logprobs", 0),
    "post_sampling_probs": refused("POST /completion has them", False),
    "response_fields": refused("POST /completion has it", []),
    "return_tokens": refused("POST /completion has them", False),
}
CHAT = (
    COMMON
    | _N_PROBS
    | table(
        "messages document max_completion_tokens tools tool_choice response_format logprobs "
        "top_logprobs chat_template_kwargs reasoning_format reasoning_effort "
        "add_generation_prompt continue_final_message",
        "parallel_tool_calls prompt_cache_key prompt_cache_options prompt_cache_retention "
        "safety_identifier service_tier verbosity prediction moderation cache_control",
        audio=refused(_NO_AUDIO),
        modalities=refused(_NO_AUDIO, ["text"], []),
        functions=refused("send them as tools, which have taken their place in OpenAI's API", []),
        function_call=refused("use tool_choice, which has taken its place", "none", "auto"),
        web_search_options=refused("there is no network here: put what was found into a message"),
        parse_tool_calls=refused("calls are always read: send no tools for text", True),
    )
)
COMPLETION = (
    COMMON
    | _N_PROBS
    | table(
        "prompt logprobs echo",
        "",
        best_of=refused("no answer is judged: ask for n of them", 1),
        suffix=refused("text is continued, not filled in: send what stands before", ""),
    )
)
NATIVE = COMMON | table(
    "prompt n_probs post_sampling_probs response_fields return_tokens",
    "",
)
MESSAGE = table(
    "role content name tool_calls tool_call_id refusal reasoning_content",
    "annotations cache_control reasoning parsed",
    audio=refused(_NO_AUDIO),
    function_call=refused("send it in tool_calls, which have taken its place", {}),
)
PART = table("type text refusal", "cache_control prompt_cache_breakpoint citations annotations")
TOOL = table("type function", "cache_control")
FUNCTION = table("name description parameters", "strict cache_control")
TOOL_CALL = table("id type function", "index")
CALLED = table("name arguments", "parsed_arguments")
NAMED_TOOL = table("type function", "")
FORMAT = table("type json_schema schema", "")
JSON_SCHEMA = table("name schema", "description strict")
STREAM_OPTIONS = table("include_usage", "include_obfuscation")

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

    def request(self, data: Any, fields: dict[str, Field]) -> Any:
        """The request as its model takes it.

        Raises:
            PydanticCustomError: a field is refused, or the JSON is too deep or no text.
        """
        _check_json(data)
        if not isinstance(data, dict):
            return data
        data = self._fields(data, fields, "")
        n_predict = data.pop("n_predict", None)
        if n_predict is not None:  # llama-server's name
            data.setdefault("max_tokens", n_predict)
        for name in ("max_tokens", "max_completion_tokens"):
            if data.get(name) == -1:  # no limit
                del data[name]
        if isinstance(settings := data.get("snapkv"), dict):
            data["snapkv"] = {k: v for k, v in settings.items() if v is not None}
        self.nested(data)
        return data

    def nested(self, data: dict[str, Any]) -> None:
        """Read what lies within the request's fields."""
        self._each(data, "messages", self._message)
        self._each(data, "tools", self._tool)
        self._inner(data, "tool_choice", NAMED_TOOL, "")
        self._inner(data, "response_format", FORMAT, "")
        if isinstance(form := data.get("response_format"), dict):
            self._inner(form, "json_schema", JSON_SCHEMA, "response_format.")
        self._inner(data, "stream_options", STREAM_OPTIONS, "")

    def _fields(self, data: dict[str, Any], known: dict[str, Field], at: str) -> dict[str, Any]:
        kept = {}
        for name, value in data.items():
            field = known.get(name)
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

    def _inner(self, data: dict[str, Any], name: str, known: dict[str, Field], at: str) -> None:
        if isinstance(value := data.get(name), dict):
            _check_kind(value, f"{at}{name}.")
            data[name] = self._fields(value, known, f"{at}{name}.")

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
