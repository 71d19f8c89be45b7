"""From the forms of answers that a request may ask for to grammars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapkv_local.errors import GrammarError
from snapkv_local.server import tools
from snapkv_local.server.errors import refusal
from snapkv_local.server.schemas import ChatRequest, Tool

if TYPE_CHECKING:
    from snapkv_local.grammar.guide import JsonGrammar
    from snapkv_local.llama.llama import Llama


def of(llm: Llama, request: ChatRequest, offered: list[Tool]) -> JsonGrammar | None:
    """What the answer is held to; None for any text. It is tried before the prompt is evaluated.

    Args:
        offered: functions that the answer may call.

    Raises:
        ApiError: no answer can be held to it.
    """
    try:
        grammar = _wanted(request, offered)
        if grammar is not None:
            llm.check_grammar(grammar)
    except GrammarError as e:
        raise refusal(str(e), "tools" if tools.is_forced(request) else "response_format") from e
    return grammar


def _wanted(request: ChatRequest, offered: list[Tool]) -> JsonGrammar | None:
    from snapkv_local.grammar.guide import JsonGrammar

    if tools.is_forced(request):
        functions = [tool.function for tool in offered]
        return JsonGrammar.of_calls([(each.name, each.parameters) for each in functions])
    form = request.response_format
    if form is None or form.type == "text":
        return None
    schema = form.schema_
    if form.type == "json_schema":
        if form.json_schema is None:
            raise refusal("json_schema is missing", "response_format")
        schema = form.json_schema.schema_
    return JsonGrammar.any_object() if schema is None else JsonGrammar.of_schema(schema)
