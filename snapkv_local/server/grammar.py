"""From the forms of answers that a request may ask for to grammars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapkv_local.errors import GrammarError
from snapkv_local.server import tools
from snapkv_local.server.common import CommonRequest
from snapkv_local.server.errors import refusal
from snapkv_local.server.schemas import ChatRequest, Tool

if TYPE_CHECKING:
    from snapkv_local.grammar.answer_grammar import AnswerGrammar
    from snapkv_local.llama.llama import Llama


def of(
    llm: Llama, request: CommonRequest, offered: list[Tool] | None = None
) -> AnswerGrammar | None:
    """What the answer is held to; None for any text. It is tried before the prompt is evaluated.

    Args:
        offered: functions that the answer may call.

    Raises:
        ApiError: no answer can be held to it, or to all of what is asked for.
    """
    forms = _forms(request)
    if len(forms) > 1:
        raise refusal(f"{' and '.join(forms)}: an answer has one form: send one of them", forms[1])
    where = forms[0] if forms else ""
    try:
        grammar = _wanted(request, where, offered or [])
        if grammar is not None:
            llm.check_grammar(grammar)
    except GrammarError as e:
        raise refusal(str(e), where) from e
    return grammar


def _forms(request: CommonRequest) -> list[str]:
    """The fields that hold the answer to a form."""
    found = []
    if isinstance(request, ChatRequest):
        if tools.is_forced(request):
            found.append("tools")
        form = request.response_format
        if form is not None and form.type != "text" and not found:  # a call has a form of its own
            found.append("response_format")
    if request.grammar:
        found.append("grammar")
    if request.json_schema is not None:
        found.append("json_schema")
    return found


def _wanted(request: CommonRequest, where: str, offered: list[Tool]) -> AnswerGrammar | None:
    from snapkv_local.grammar.answer_grammar import AnswerGrammar

    match where:
        case "grammar":
            return AnswerGrammar.of_gbnf(request.grammar or "")
        case "json_schema":
            return AnswerGrammar.of_schema(request.json_schema or {"type": "object"})
        case "tools":
            functions = [tool.function for tool in offered]
            return AnswerGrammar.of_calls([(each.name, each.parameters) for each in functions])
    form = request.response_format if isinstance(request, ChatRequest) else None
    if form is None or form.type == "text":
        return None
    schema = form.schema_
    if form.type == "json_schema":
        if form.json_schema is None:
            raise refusal("json_schema is missing", "response_format")
        schema = form.json_schema.schema_
    return AnswerGrammar.any_object() if schema is None else AnswerGrammar.of_schema(schema)
