"""JSON schemas that answers are held to: every keyword is obeyed, without effect, or refused."""

import json
import math
import re
from typing import Any

import jsonschema_specifications
import pytest

from snapkv_local.errors import GrammarError
from snapkv_local.grammar.json_keywords import NO_EFFECT, REFUSED
from snapkv_local.grammar.json_schema import MOST_NESTED, OBEYED, SchemaReader

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = {**OBJECT, "additionalProperties": False}


def read(schema: Any) -> Any:
    reader = SchemaReader()
    return json.loads(reader.whole({"root": reader.read(schema, "schema")}))


def root(schema: Any) -> Any:
    return read(schema)["root"]


def nested(n: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(n):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "draft",
    ["draft-07/schema", "draft/2019-09/schema", "draft/2020-12/schema"],
)
def test_every_keyword_of_json_schema_is_known(draft: str) -> None:
    found: set[str] = set()
    for address in jsonschema_specifications.REGISTRY:
        if address.split("json-schema.org/")[-1].startswith(draft.removesuffix("/schema") + "/"):
            found |= set(jsonschema_specifications.REGISTRY.contents(address).get("properties", {}))
    assert len(found) > 40
    assert found - {"$id"} <= OBEYED | NO_EFFECT | REFUSED
    assert not OBEYED & REFUSED and not (OBEYED | REFUSED) & NO_EFFECT


@pytest.mark.parametrize("keyword", sorted(REFUSED))
def test_what_cannot_be_obeyed_is_refused_by_name(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a": {keyword: True if "que" in keyword else [1]}}}
    with pytest.raises(GrammarError, match=re.escape(f"schema.properties.a.{keyword}: ")):
        read(schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"maxLenght": 4}, r"schema.maxLenght: is not a keyword"),
        ({"properties": {"a": {"type": "none"}}}, r"properties.a.type: \"none\" is not a type"),
        ({"type": []}, r"type"),
        ({"maxLength": -1}, r"maxLength: -1 is not a count"),
        ({"maxLength": True}, r"maxLength"),
        ({"minLength": 2_000_000}, r"minLength"),
        ({"minimum": "5"}, r"minimum: \"5\" is not a number"),
        ({"minimum": math.nan}, r"minimum"),
        ({"maximum": math.inf}, r"maximum"),
        ({"maximum": 10**400}, r"maximum"),
        ({"exclusiveMinimum": True}, r"exclusiveMinimum"),
        ({"multipleOf": 0}, r"multipleOf"),
        ({"multipleOf": 999_983}, r"multipleOf: 999983 is too large"),
        ({"pattern": "a?" * 20_000}, r"pattern: has 40,000 characters"),
        ({"format": "colour"}, r"format: \"colour\" is not known"),
        ({"format": ["date"]}, r"format"),
        ({"enum": []}, r"enum"),
        ({"const": [math.nan]}, r"const: has a number that is not finite"),
        ({"const": nested(30)}, r"const: has a value of more than"),
        ({"anyOf": []}, r"anyOf"),
        ({"anyOf": [{}, {"not": {}}]}, r"anyOf\[1\].not"),
        ({"required": "a"}, r"required"),
        ({"properties": {str(i): True for i in range(1001)}}, r"properties: has 1001 names"),
        ({"items": {"$id": "other.json"}}, r"items.\$id"),
        ({"$ref": "https://example.org/schema.json"}, r"\$ref: .* nothing is fetched"),
        ({"$ref": "#name"}, r"\$ref"),
        ({"$ref": "#/$defs/a"}, r"\$ref: .* is not there"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"not": {}}}}, r"\$ref\(#/\$defs/a\).not"),
        ({"$ref": "#/examples/0", "examples": [{"if": {}}]}, r"examples/0\).if"),
        ("string", r"is not a JSON schema"),
        (nested(MOST_NESTED + 1), r"levels deep"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        read(schema)


def test_references_count_as_levels() -> None:
    def chain(n: int, first: int) -> Any:
        definitions = {
            str(i): {"type": "array", "items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(n)
        }
        order = [{"$ref": f"#/$defs/{(i + first) % n}"} for i in range(n)]
        return {"prefixItems": order, "$defs": {**definitions, str(n): {"type": "string"}}}

    read(chain(MOST_NESTED // 2 - 2, 0))
    with pytest.raises(GrammarError, match="levels deep"):
        read(chain(MOST_NESTED, 0))
    with pytest.raises(GrammarError, match="references"):  # the deepest one first
        n = 2000
        schema = chain(n, 0)
        schema["prefixItems"].reverse()
        read(schema)


def test_bounds_beyond_any_answer_are_the_same_as_none() -> None:
    assert root({"maxLength": 2**31 - 1}) == {"maxLength": 1_000_000}
    assert root({"maxLength": 4000, "minItems": 2.0}) == {"maxLength": 4000, "minItems": 2}


def test_what_has_no_effect_goes() -> None:
    schema = {"title": "T", "x-order": 1, "uniqueItems": False, "propertyNames": {}, "$id": "u"}
    assert root({**schema, "type": ["string", "string"]}) == {"type": ["string"]}
    assert root({"type": "integer", "format": "int32"}) == {"type": "integer"}


def test_older_keywords_become_those_of_2020() -> None:
    assert root({"items": [True], "additionalItems": False}) == {
        "prefixItems": [True],
        "items": False,
    }
    assert root({"items": True, "additionalItems": False}) == {"items": True}


def test_named_properties_are_all_there_are() -> None:
    assert root(OBJECT) == CLOSED
    assert root({"properties": {}})["type"] == "object"
    assert root({"items": OBJECT}) == {"items": CLOSED}
    assert root({"anyOf": [OBJECT, True]}) == {"anyOf": [CLOSED, True]}
    assert root({"allOf": [OBJECT]}) == {"allOf": [CLOSED]}


@pytest.mark.parametrize(
    "schema",
    [
        {**OBJECT, "additionalProperties": True},
        {**OBJECT, "patternProperties": {"^x": True}},
        {**OBJECT, "minProperties": 2},
        {**OBJECT, "required": ["b"]},
        {**OBJECT, "anyOf": [{"required": ["b"]}, {"required": ["c"]}]},
        {"allOf": [OBJECT, {"properties": {"b": True}}]},
        {"allOf": [{"properties": {"b": OBJECT}}, {"properties": {"b": OBJECT}}]},
    ],
)
def test_others_may_come_where_they_are_asked_for(schema: Any) -> None:
    assert '"additionalProperties": false' not in json.dumps(read(schema))


def test_references_of_several_schemas_stay_apart() -> None:
    reader = SchemaReader()
    parts = [
        reader.read({"$ref": "#/$defs/a", "$defs": {"a": {"const": i}, "b": {"not": {}}}}, str(i))
        for i in range(2)
    ]
    found = json.loads(reader.whole({"anyOf": parts}))
    values = [found["$defs"][part["$ref"].split("/")[-1]] for part in found["anyOf"]]
    assert values == [{"const": 0}, {"const": 1}]
    recursive = read({"items": {"$ref": "#"}})
    assert recursive["$defs"]["0"]["items"]["$ref"] == "#/$defs/0"
    assert root({"$ref": "#/properties/a~1%62", "properties": {"a/b": {"const": 1}}})["$ref"]
