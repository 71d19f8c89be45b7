"""JSON schemas that answers are held to: read keyword by keyword, obeyed as a whole or refused.

What comes out is what llguidance obeys, in the words of draft 2020-12: references point into one
set of definitions, older keywords have become newer ones, and nothing is left that has no effect.
A keyword that it does not obey is refused with its place, since an answer outside of the schema
would come without a word. Nothing is ever fetched.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from snapkv_local.errors import GrammarError
from snapkv_local.grammar.json_keywords import (
    MOST_PROPERTIES,
    REFUSED,
    VALUES,
    as_list,
    is_without_effect,
    quote,
)

# levels of schemas, through references too: the native side goes down once for each of them
MOST_NESTED = 50
_MOST_DEFINITIONS = 500
# what the native side may find too much, or contradictory; a failure of it names these
_HEAVY = frozenset(
    {
        *("pattern", "multipleOf", "format", "oneOf", "allOf", "patternProperties"),
        *("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
        *("enum", "const", "required"),
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
            raise GrammarError(at, "is not a JSON schema", "give an object, true or false")
        found = {
            name: value for name, value in schema.items() if not is_without_effect(name, value)
        }
        if depth == 0:
            found.pop("$id", None)
        in_place = found.keys() & {"allOf", "anyOf", "oneOf", "$ref"}
        if in_place and (len(found) > 1 or len(as_list(found.get("allOf"))) > 1):
            is_merged = True
        if isinstance(found.get("items"), list):
            found["prefixItems"] = found.pop("items")
            if "additionalItems" in found:
                found["items"] = found.pop("additionalItems")
        found.pop("additionalItems", None)  # without a list in items it has no effect
        if "format" in found and "string" not in as_list(found.get("type", "string")):
            del found["format"]
        result = {}
        for keyword, value in found.items():
            place = f"{at}.{keyword}"
            if keyword in VALUES:
                result[keyword] = VALUES[keyword](value, place)
            elif keyword in _READ:
                result[keyword] = _READ[keyword](self, value, place, depth, is_merged)
            else:
                raise GrammarError(
                    place,
                    "this keyword of JSON Schema cannot be obeyed here"
                    if keyword in REFUSED or keyword == "$id"
                    else "is not a keyword of JSON Schema",
                    "leave it out, or say it with other keywords",
                )
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
                f"{quote(value)} is not within the schema",
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
        for part in unquote(pointer).split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = found[part]
            else:
                raise GrammarError(at, f"{quote(pointer)} is not there", "correct the reference")
        return found

    def _one(self, value: Any, at: str, depth: int, is_merged: bool) -> Schema:
        return self._schema(value, at, depth + 1, is_merged)

    def _list(self, value: Any, at: str, depth: int, is_merged: bool) -> list[Schema]:
        if not isinstance(value, list) or not value:
            raise GrammarError(at, "is not a list of schemas", "give at least one")
        return [
            self._schema(item, f"{at}[{i}]", depth + 1, is_merged) for i, item in enumerate(value)
        ]

    def _map(self, value: Any, at: str, depth: int, is_merged: bool) -> dict[str, Schema]:
        if not isinstance(value, dict):
            raise GrammarError(at, "is not an object of schemas", "give one for each name")
        if len(value) > MOST_PROPERTIES:
            raise GrammarError(at, f"has {len(value)} names", f"give up to {MOST_PROPERTIES}")
        return {
            name: self._schema(item, f"{at}.{name}", depth + 1, is_merged)
            for name, item in value.items()
        }


_READ: dict[str, _Read] = {
    "$ref": SchemaReader._reference,
    "allOf": SchemaReader._list,
    "anyOf": SchemaReader._list,
    "oneOf": SchemaReader._list,
    "properties": SchemaReader._map,
    "patternProperties": SchemaReader._map,
    "additionalProperties": SchemaReader._one,
    "items": SchemaReader._one,
    "prefixItems": SchemaReader._list,
}
# additionalItems goes with a list in items, which draft 2020-12 calls prefixItems
OBEYED = frozenset({*_READ, *VALUES, "additionalItems"})


def _names_all_properties(schema: dict[str, Any]) -> bool:
    """Whether an object's properties are named, and nothing asks for others."""
    others = {"additionalProperties", "patternProperties", "minProperties"}
    return (
        "properties" in schema
        and not schema.keys() & others
        and set(schema.get("required", ())) <= schema["properties"].keys()
    )
