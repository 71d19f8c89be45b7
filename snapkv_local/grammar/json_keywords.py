"""Keywords of JSON Schema: which are obeyed, and what their values may be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from snapkv_local.errors import GrammarError

# levels of a value, as in const; llguidance's JSON parser takes 127 in all
_MOST_NESTED_VALUE = 20
# characters, items or properties: no answer is longer, so a larger bound is the same
_MOST_COUNT = 1_000_000
# the native side goes through as many states
_MOST_MULTIPLE = 100_000
# the time of a grammar grows with their square
MOST_PROPERTIES = 1_000
_MOST_PATTERN = 10_000
# what is far beyond has no grammar
_MOST_NUMBER = 2**63

# of draft 2020-12 and older; they say nothing about which values are right
NO_EFFECT = frozenset(
    {
        *("$schema", "$comment", "$anchor", "$vocabulary", "$defs", "definitions"),
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("contentEncoding", "contentMediaType", "contentSchema", "$recursiveAnchor"),
        # OpenAPI's
        *("example", "discriminator", "externalDocs", "xml"),
    }
)
REFUSED = frozenset(
    {
        *("$dynamicRef", "$dynamicAnchor", "$recursiveRef"),
        *("not", "if", "then", "else", "dependencies", "dependentSchemas", "dependentRequired"),
        *("contains", "minContains", "maxContains", "propertyNames", "uniqueItems"),
        *("unevaluatedItems", "unevaluatedProperties"),
    }
)
FORMATS = frozenset(
    {
        *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6"),
        *("uuid", "uri"),
    }
)
_TYPES = ("null", "boolean", "object", "array", "number", "string", "integer")


def is_without_effect(keyword: str, value: Any) -> bool:
    """Whether a keyword says nothing about which values are right."""
    if keyword == "uniqueItems":
        return value is False
    if keyword == "propertyNames":  # as some libraries write for every object
        return value in (True, {}, {"type": "string"})
    return keyword in NO_EFFECT or keyword.startswith("x-")


def _type(value: Any, at: str) -> Any:
    if not value or any(name not in _TYPES for name in as_list(value)):
        raise GrammarError(at, f"{quote(value)} is not a type", f"give one of {', '.join(_TYPES)}")
    return list(dict.fromkeys(value)) if isinstance(value, list) else value


def _names_required(value: Any, at: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise GrammarError(at, "is not a list of names", 'give one such as ["city"]')
    if len(value) > MOST_PROPERTIES:
        raise GrammarError(at, f"has {len(value)} names", f"give up to {MOST_PROPERTIES}")
    return list(dict.fromkeys(value))


def _value(value: Any, at: str) -> Any:
    _check_value(value, at, _MOST_NESTED_VALUE)
    return value


def _values(value: Any, at: str) -> Any:
    if not isinstance(value, list) or not value:
        raise GrammarError(at, "is not a list of values", "give at least one")
    _check_value(value, at, _MOST_NESTED_VALUE)
    return value


def _most(value: Any, at: str) -> int:
    return min(_count(value, at), _MOST_COUNT)


def _least(value: Any, at: str) -> int:
    if _count(value, at) > _MOST_COUNT:
        raise GrammarError(
            at, f"{value} is more than any answer has", f"give up to {_MOST_COUNT:,}"
        )
    return _count(value, at)


def _number(value: Any, at: str) -> float | int:
    if not _is_number(value):
        raise GrammarError(at, f"{quote(value)} is not a number", "give a number")
    if not abs(value) <= _MOST_NUMBER:
        raise GrammarError(at, "is too large to be obeyed", "leave it out")
    return value  # type: ignore[no-any-return]


def _multiple(value: Any, at: str) -> float | int:
    if not _is_number(value) or not 0 < value < math.inf:
        raise GrammarError(at, f"{quote(value)} is not a number above 0", "correct it")
    if value > _MOST_MULTIPLE:
        raise GrammarError(
            at, f"{value} is too large to be obeyed", f"give up to {_MOST_MULTIPLE:,}"
        )
    return value  # type: ignore[no-any-return]


def _pattern(value: Any, at: str) -> str:
    if not isinstance(value, str):
        raise GrammarError(at, f"{quote(value)} is not a text", "give a regular expression")
    if len(value) > _MOST_PATTERN:
        raise GrammarError(at, f"has {len(value):,} characters", f"give up to {_MOST_PATTERN:,}")
    return value


def _format(value: Any, at: str) -> Any:
    if not isinstance(value, str) or value not in FORMATS:
        raise GrammarError(
            at, f"{quote(value)} is not known", f"use one of {', '.join(sorted(FORMATS))}"
        )
    return value


# takes a value and its place, and gives the value that is obeyed
VALUES: dict[str, Callable[[Any, str], Any]] = {
    "type": _type,
    "const": _value,
    "enum": _values,
    "required": _names_required,
    "minProperties": _least,
    "maxProperties": _most,
    "minItems": _least,
    "maxItems": _most,
    "minLength": _least,
    "maxLength": _most,
    "pattern": _pattern,
    "format": _format,
    "minimum": _number,
    "maximum": _number,
    "exclusiveMinimum": _number,
    "exclusiveMaximum": _number,
    "multipleOf": _multiple,
}


def _check_value(value: Any, at: str, levels: int) -> None:
    if levels == 0:
        raise GrammarError(
            at, f"has a value of more than {_MOST_NESTED_VALUE} levels", "use a flatter one"
        )
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_value(item, at, levels - 1)
    elif isinstance(value, float | int) and not abs(value) <= 2**1023:
        raise GrammarError(at, "has a number that is not finite", "correct it")


def _count(value: Any, at: str) -> int:
    if not _is_number(value) or value < 0 or value % 1:
        raise GrammarError(at, f"{quote(value)} is not a count", "give a whole number from 0")
    return int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def as_list(value: Any) -> list[Any]:
    """What may be a list, or one value of it."""
    return value if isinstance(value, list) else [value]


def quote(value: Any) -> str:
    """A value as JSON, cut."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
