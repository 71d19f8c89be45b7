"""What is wrong with a request, in our words: pydantic's are about types of Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# kinds of values, by pydantic's name of the error
_KINDS = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of at most 64 bits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def from_validation(errors: Sequence[Any], body: Any) -> tuple[str, str | None]:
    """Message and field of what is wrong first.

    Args:
        errors: pydantic's.
        body: the request's JSON.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be parsed")
        return f"body: is not JSON ({reason}): send a JSON object", None
    if first["type"] == "refused":
        return first["ctx"]["says"], first["ctx"]["param"]
    places = [_place(error["loc"], error["type"], body) for error in errors]
    # of the forms that a field may have, the one that the value came closest to; all at its place
    field = max((p for p in places if p[:1] == places[0][:1]), key=len)
    at = [e for e, place in zip(errors, places, strict=True) if place == field]
    name = ".".join(field)
    return f"{name or 'body'}: {_says(at)}", name or None


def _place(loc: Sequence[Any], kind: str, body: Any) -> tuple[str, ...]:
    """A field's place without pydantic's names for the members of unions."""
    place, value = [], body
    parts = [part for part in loc if part != "body"]
    for i, part in enumerate(parts):
        if _holds(value, part):
            value = value[part]
        elif i > 0 and (kind != "missing" or i < len(parts) - 1):
            continue
        place.append(str(part))
    return tuple(place)


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(part, int):
        return isinstance(value, list) and part < len(value)
    return isinstance(value, dict) and part in value


def _says(errors: Sequence[Any]) -> str:
    kinds = [_KINDS.get(error["type"]) or _other_form(error) for error in errors]
    for error, kind in zip(errors, kinds, strict=True):
        if kind is None:  # of the right kind, and wrong for another reason
            return _of_one(error)
    return f"must be {' or '.join(dict.fromkeys(filter(None, kinds)))}"


def _other_form(error: Any) -> str | None:
    return error["ctx"]["expected"] if error["type"] == "literal_error" else None


def _of_one(error: Any) -> str:
    kind, ctx = error["type"], error.get("ctx", {})
    bounds = {"greater_than_equal": "ge", "less_than_equal": "le", "greater_than": "gt"}
    if kind in bounds:
        words = {"ge": "at least", "le": "at most", "gt": "more than"}[bounds[kind]]
        return f"must be {words} {ctx[bounds[kind]]:.20g}"
    if kind in ("string_too_short", "too_short"):
        unit = "characters" if kind == "string_too_short" else "entries"
        least = ctx["min_length"]
        return "is empty: give at least one" if least == 1 else f"needs {least} {unit} or more"
    if kind in ("string_too_long", "too_long"):
        unit = "characters" if kind == "string_too_long" else "entries"
        return f"has more than {ctx['max_length']:,} {unit}: shorten it"
    if kind == "string_pattern_mismatch":
        return "may have characters of ids only: letters, digits, _, . and -"
    if kind == "missing":
        return "is missing: give it"
    if kind == "extra_forbidden":
        return "is not known: leave it out"
    if kind == "value_error":
        return str(ctx["error"])
    return "has a form that the server does not know: see GET /openapi.json"
