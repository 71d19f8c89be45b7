"""JSON schemas that answers are held to: read keyword by keyword, obeyed as a whole or refused.

What comes out is what llguidance obeys, in the words of draft 2020-12: references point into one
set of definitions, older keywords have become newer ones, and nothing is left that has no effect.
A keyword that it does not obey is refused with its place, since an answer outside of the schema
would come without a word. Nothing is ever fetched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from snapkv_local.errors import GrammarError

# levels of schemas, through references too: the native side goes down once for each of them
MOST_NESTED = 50
# levels of a value, as in const; llguidance's JSON parser takes 127 in all
_MOST_NESTED_VALUE = 20
# characters, items or properties: no answer is longer, so a larger bound is the same
_MOST_COUNT = 1_000_000
# the native side goes through as many states
_MOST_MULTIPLE = 100_000
# the time of a grammar grows with their square
_MOST_PROPERTIES = 1_000
_MOST_PATTERN = 10_000
_MOST_DEFINITIONS = 500
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
# what the native side may find too much, or contradictory; a failure of it names these
_HEAVY = frozenset(
    {
        *("pattern", "multipleOf", "format", "oneOf", "allOf", "patternProperties"),
        *("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength"),
        *(
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
            "enum",
            "const",
            "required",
        ),
    }
)

Schema = Any
_Read = Callable[["SchemaReader", Any, str, int, bool], Any]


class SchemaReader:
    """Reads schemas, each a document of its own, into parts of one schema.

    Attributes:
        heavy: places of keywords that may be too much for the native side.
    """

    def __init__(self) -> None:
        self.heavy: list[str] = []
        self._definitions: dict[str, Schema] = {}
        self._names: dict[tuple[int, str, bool], str] = {}
        self._root: Schema = None
        # keeps each document alive, as references are known by its id()
        self._roots: list[Schema] = []

    def read(self, schema: Schema, name: str) -> Schema:
        """A part for whole().

        Args:
            name: what the schema is called in errors.

        Raises:
            GrammarError: it has a keyword that cannot be obeyed, or is no schema.
        """
        self._root = schema
        self._roots.append(schema)
        return self._schema(schema, name, 0, False)

    def whole(self, part: dict[str, Any]) -> str:
        """A schema of parts as JSON, with the definitions that they refer to."""
        return json.dumps({**part, "$defs": self._definitions})

    def _schema(self, schema: Schema, at: str, depth: int, is_merged: bool) -> Schema:
        """One schema.

        Args:
            is_merged: others apply to the same value, so that its properties are not all there are.
        """
        if depth > MOST_NESTED:
            raise GrammarError(
                f"{at[:60]} ... {at[-20:]}",
                f"is nested more than {MOST_NESTED} levels deep, references counted",
                "use a flatter schema",
            )
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise GrammarError(at, "is no JSON schema", "give an object, true or false")
        found = {
            name: value for name, value in schema.items() if not _is_without_effect(name, value)
        }
        if depth == 0:
            found.pop("$id", None)
        in_place = found.keys() & {"allOf", "anyOf", "oneOf", "$ref"}
        if in_place and (len(found) > 1 or len(_as_list(found.get("allOf"))) > 1):
            is_merged = True
        if isinstance(found.get("items"), list):
            found["prefixItems"] = found.pop("items")
            if "additionalItems" in found:
                found["items"] = found.pop("additionalItems")
        found.pop("additionalItems", None)  # without a list in items it has no effect
        if "format" in found and "string" not in _as_list(found.get("type", "string")):
            del found["format"]
        result = {}
        for keyword, value in found.items():
            place = f"{at}.{keyword}"
            read = _READ.get(keyword)
            if read is None:
                raise GrammarError(
                    place,
                    "this keyword of JSON Schema cannot be obeyed here"
                    if keyword in REFUSED or keyword == "$id"
                    else "is no keyword of JSON Schema",
                    "leave it out, or say it with other keywords",
                )
            result[keyword] = read(self, value, place, depth, is_merged)
            if keyword in _HEAVY:
                self.heavy.append(place)
        if not is_merged and _names_all_properties(result):
            # models would add others, and few want them
            result["additionalProperties"] = False
            if not result.keys() & {"enum", "const"}:
                result.setdefault("type", "object")
        return result

    def _reference(self, value: Any, at: str, depth: int, is_merged: bool) -> str:
        """A $ref, as one to a definition."""
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise GrammarError(
                at,
                f"{_quote(value)} is not within the schema",
                "refer to a place in it, such as #/$defs/NAME: nothing is fetched",
            )
        key = (id(self._root), value, is_merged)
        if key not in self._names:
            if len(self._names) >= _MOST_DEFINITIONS:
                raise GrammarError(
                    at, f"is one of more than {_MOST_DEFINITIONS} references", "use fewer"
                )
            name = self._names[key] = str(len(self._names))
            target = self._at(value, at)
            self._definitions[name] = self._schema(target, f"{at}({value})", depth + 1, is_merged)
        return f"#/$defs/{self._names[key]}"

    def _at(self, pointer: str, at: str) -> Schema:
        found = self._root
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = found[part]
            else:
                raise GrammarError(at, f"{_quote(pointer)} is not there", "correct the reference")
        return found

    def _one(self, value: Any, at: str, depth: int, is_merged: bool) -> Schema:
        return self._schema(value, at, depth + 1, is_merged)

    def _list(self, value: Any, at: str, depth: int, is_merged: bool) -> list[Schema]:
        if not isinstance(value, list) or not value:
            raise GrammarError(at, "is no list of schemas", "give at least one")
        return [
            self._schema(item, f"{at}[{i}]", depth + 1, is_merged) for i, item in enumerate(value)
        ]

    def _map(self, value: Any, at: str, depth: int, is_merged: bool) -> dict[str, Schema]:
        if not isinstance(value, dict):
            raise GrammarError(at, "is no object of schemas", "give one for each name")
        if len(value) > _MOST_PROPERTIES:
            raise GrammarError(at, f"has {len(value)} names", f"give up to {_MOST_PROPERTIES}")
        return {
            name: self._schema(item, f"{at}.{name}", depth + 1, is_merged)
            for name, item in value.items()
        }

    def _type(self, value: Any, at: str, _depth: int, _is_merged: bool) -> Any:
        if not value or any(name not in _TYPES for name in _as_list(value)):
            raise GrammarError(
                at, f"{_quote(value)} is no type", f"give one of {', '.join(_TYPES)}"
            )
        return list(dict.fromkeys(value)) if isinstance(value, list) else value

    def _names_required(self, value: Any, at: str, _depth: int, _is_merged: bool) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise GrammarError(at, "is no list of names", 'give one such as ["city"]')
        if len(value) > _MOST_PROPERTIES:
            raise GrammarError(at, f"has {len(value)} names", f"give up to {_MOST_PROPERTIES}")
        return list(dict.fromkeys(value))

    def _value(self, value: Any, at: str, _depth: int, _is_merged: bool) -> Any:
        _check_value(value, at, _MOST_NESTED_VALUE)
        return value

    def _values(self, value: Any, at: str, _depth: int, _is_merged: bool) -> Any:
        if not isinstance(value, list) or not value:
            raise GrammarError(at, "is no list of values", "give at least one")
        _check_value(value, at, _MOST_NESTED_VALUE)
        return value

    def _most(self, value: Any, at: str, _depth: int, _is_merged: bool) -> int:
        return min(_count(value, at), _MOST_COUNT)

    def _least(self, value: Any, at: str, _depth: int, _is_merged: bool) -> int:
        if _count(value, at) > _MOST_COUNT:
            raise GrammarError(at, f"{value} is more than any answer has", f"up to {_MOST_COUNT:,}")
        return _count(value, at)

    def _number(self, value: Any, at: str, _depth: int, _is_merged: bool) -> float | int:
        if not _is_number(value):
            raise GrammarError(at, f"{_quote(value)} is no number", "give a number")
        if not abs(value) <= _MOST_NUMBER:
            raise GrammarError(at, "is too large to be obeyed", "leave it out")
        return value  # type: ignore[no-any-return]

    def _multiple(self, value: Any, at: str, _depth: int, _is_merged: bool) -> float | int:
        if not _is_number(value) or not 0 < value < math.inf:
            raise GrammarError(at, f"{_quote(value)} is no number above 0", "correct it")
        if value > _MOST_MULTIPLE:
            raise GrammarError(
                at, f"{value} is too large to be obeyed", f"up to {_MOST_MULTIPLE:,}"
            )
        return value  # type: ignore[no-any-return]

    def _pattern(self, value: Any, at: str, _depth: int, _is_merged: bool) -> str:
        if not isinstance(value, str):
            raise GrammarError(at, f"{_quote(value)} is no text", "give a regular expression")
        if len(value) > _MOST_PATTERN:
            raise GrammarError(
                at, f"has {len(value):,} characters", f"give up to {_MOST_PATTERN:,}"
            )
        return value

    def _format(self, value: Any, at: str, _depth: int, _is_merged: bool) -> Any:
        if not isinstance(value, str) or value not in FORMATS:
            raise GrammarError(
                at, f"{_quote(value)} is not known", f"use one of {', '.join(sorted(FORMATS))}"
            )
        return value


_READ: dict[str, _Read] = {
    "$ref": SchemaReader._reference,
    "type": SchemaReader._type,
    "const": SchemaReader._value,
    "enum": SchemaReader._values,
    "allOf": SchemaReader._list,
    "anyOf": SchemaReader._list,
    "oneOf": SchemaReader._list,
    "properties": SchemaReader._map,
    "patternProperties": SchemaReader._map,
    "additionalProperties": SchemaReader._one,
    "required": SchemaReader._names_required,
    "minProperties": SchemaReader._least,
    "maxProperties": SchemaReader._most,
    "items": SchemaReader._one,
    "prefixItems": SchemaReader._list,
    "minItems": SchemaReader._least,
    "maxItems": SchemaReader._most,
    "minLength": SchemaReader._least,
    "maxLength": SchemaReader._most,
    "pattern": SchemaReader._pattern,
    "format": SchemaReader._format,
    "minimum": SchemaReader._number,
    "maximum": SchemaReader._number,
    "exclusiveMinimum": SchemaReader._number,
    "exclusiveMaximum": SchemaReader._number,
    "multipleOf": SchemaReader._multiple,
}

# additionalItems goes with a list in items, which draft 2020-12 calls prefixItems
OBEYED = frozenset({*_READ, "additionalItems"})


def _is_without_effect(keyword: str, value: Any) -> bool:
    if keyword == "uniqueItems":
        return value is False
    if keyword == "propertyNames":  # as some libraries write for every object
        return value in (True, {}, {"type": "string"})
    return keyword in NO_EFFECT or keyword.startswith("x-")


def _names_all_properties(schema: dict[str, Any]) -> bool:
    """Whether an object's properties are named, and nothing asks for others."""
    others = {"additionalProperties", "patternProperties", "minProperties"}
    return (
        "properties" in schema
        and not schema.keys() & others
        and set(schema.get("required", ())) <= schema["properties"].keys()
    )


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
        raise GrammarError(at, f"{_quote(value)} is no count", "give a whole number from 0")
    return int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _quote(value: Any) -> str:
    """A value as JSON, cut."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
