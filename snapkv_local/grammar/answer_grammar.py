"""What an answer is held to: a JSON schema as llguidance obeys it, or GBNF; and how it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from snapkv_local.errors import GrammarError
from snapkv_local.grammar.json_schema import SchemaReader

_MOST_BYTES = 1024 * 1024
_MOST_NAMED = 3
# words of llguidance, the keywords that they are about, and better words
_REASONS = (
    ("coerce_one_of", {"oneOf"}, "schemas of oneOf may fit the same value; anyOf allows it"),
    ("regex parse error", {"pattern", "patternProperties"}, ""),
    (
        "patternProperty",
        {"patternProperties"},
        "patterns of patternProperties may fit the same name",
    ),
    ("circular references", {"allOf"}, "a $ref leads back to itself"),
)


@dataclass(frozen=True)
class AnswerGrammar:
    """What an answer is held to, in the place of a LlamaGrammar.

    Attributes:
        name: what it is called in errors.
        schema: JSON that llguidance obeys, or GBNF.
        heavy: places of keywords that may be too much.
        is_gbnf: it is GBNF.
    """

    name: str
    schema: str
    heavy: tuple[str, ...] = ()
    is_gbnf: bool = False

    @classmethod
    def of_schema(cls, schema: Any, name: str = "schema") -> AnswerGrammar:
        """For JSON that fits a schema.

        Raises:
            GrammarError: it has a keyword that cannot be obeyed.
        """
        reader = SchemaReader()
        return cls._of(reader, {"allOf": [reader.read(schema, name)]}, name)

    @classmethod
    def of_gbnf(cls, text: str) -> AnswerGrammar:
        """For what llama.cpp's grammars describe.

        Raises:
            GrammarError: it is too long.
        """
        cls._check_length(text, "grammar")
        return cls("grammar", text, is_gbnf=True)

    @classmethod
    def any_object(cls) -> AnswerGrammar:
        """For any JSON object."""
        return cls.of_schema({"type": "object"}, "any JSON object")

    @classmethod
    def of_arguments(cls, parameters: dict[str, Any] | None, name: str) -> AnswerGrammar:
        """For the arguments of a function.

        Raises:
            GrammarError: as of_schema().
        """
        reader = SchemaReader()
        return cls._of(reader, {"allOf": [_arguments(reader, parameters, name)]}, name)

    @classmethod
    def of_calls(cls, functions: list[tuple[str, dict[str, Any] | None]]) -> AnswerGrammar:
        """For {"name": ..., "arguments": ...} of one of these functions.

        Args:
            functions: names and JSON schemas of parameters; None for a function without.

        Raises:
            GrammarError: as of_schema().
        """
        reader = SchemaReader()
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    "arguments": _arguments(reader, parameters, f"{name}.parameters"),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, parameters in functions
        ]
        return cls._of(reader, {"anyOf": calls}, "tools")

    @classmethod
    def _of(cls, reader: SchemaReader, part: dict[str, Any], name: str) -> AnswerGrammar:
        text = reader.whole(part)
        cls._check_length(text, name)
        return cls(name, text, tuple(reader.heavy))

    @staticmethod
    def _check_length(text: str, name: str) -> None:
        if len(text) > _MOST_BYTES:
            raise GrammarError(name, f"has more than {_MOST_BYTES:,} bytes", "use a smaller one")

    def refusal(self, reason: str) -> GrammarError:
        """What it is refused with; names the keywords that the reason is about, if it says so."""
        for words, keywords, plain in _REASONS:
            if words in reason:
                named = [at for at in self.heavy if at.rpartition(".")[2] in keywords]
                reason = plain or reason.rpartition("error: ")[2]
                break
        else:
            named = list(self.heavy)
        reason = " ".join(reason.split())[:300].rstrip(" .")
        more = ", ..." if len(named) > _MOST_NAMED else ""
        if self.is_gbnf:
            return GrammarError(
                self.name,
                f"answers cannot be held to this GBNF: {reason}",
                "correct or simplify it",
            )
        return GrammarError(
            self.name,
            f"answers cannot be held to this JSON schema: {reason}",
            f"look at {', '.join(named[:_MOST_NAMED])}{more}" if named else "use a simpler schema",
        )


def _arguments(reader: SchemaReader, parameters: dict[str, Any] | None, name: str) -> Any:
    if not parameters:
        return {"type": "object", "additionalProperties": False}
    if parameters.get("type", "object") != "object":
        raise GrammarError(
            f"{name}.type", 'is not "object"', "the arguments of a function are an object"
        )
    return {"allOf": [reader.read(parameters, name), {"type": "object"}]}
