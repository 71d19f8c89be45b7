"""Dataclasses whose fields declare what they can be: the settings, and the options of policies."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from numbers import Real
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from snapkv_local.errors import ConfigError

Default = TypeVar("Default")


def option(
    default: Default,
    *,
    least: float = 0,
    most: float = math.inf,
    above: bool = False,
    odd: bool = False,
    cure: str = "",
    instead: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """A field, and what it can be beside what its type says.

    Args:
        default: what it is where it is not given.
        least, most: range of a number, both included.
        above: the least number itself is refused.
        odd: even numbers are refused.
        cure: of the error, where "give one" would not help.
        instead: of words that it could be before, what to give now.
    """
    rule = {
        "least": least,
        "most": most,
        "above": above,
        "odd": odd,
        "cure": cure,
        "instead": instead,
    }
    return dataclasses.field(default=default, metadata=rule)


def check(of: Any, prefix: str = "") -> None:
    """Refuse values that the fields of a frozen dataclass cannot have.

    Numbers become an int or a float of Python's: ctypes takes no NumPy integer.

    Args:
        of: its numbers are fields made with option(); of others the type is enough.
        prefix: of an error's subject, before the field's name.

    Raises:
        ConfigError: with the field's name and its value.
    """
    hints = _hints(type(of))
    for field in dataclasses.fields(of):
        value = getattr(of, field.name)
        subject = f"{prefix}{field.name}={value!r}"
        object.__setattr__(of, field.name, _taken(subject, hints[field.name], field, value))


_known: dict[type[Any], dict[str, Any]] = {}


def _hints(of: type[Any]) -> dict[str, Any]:
    """get_type_hints(), which reads annotations anew each time."""
    if of not in _known:
        _known[of] = get_type_hints(of)
    return _known[of]


def kinds_and_words(hint: Any) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """The types that a field can have, and the words; either may be none."""
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = tuple(kind for kind in hints if get_origin(kind) is not Literal)
    return kinds, tuple(word for kind in hints if kind not in kinds for word in get_args(kind))


def words(of: type[Any], name: str) -> tuple[str, ...]:
    """The words that a dataclass's field can be."""
    return kinds_and_words(_hints(of)[name])[1]


def number_wanted(hint: Any, field: dataclasses.Field[Any]) -> str:
    """Which number a field can be, in words."""
    least, most = field.metadata["least"], field.metadata["most"]
    name = "number" if float in kinds_and_words(hint)[0] else "whole number"
    if field.metadata["above"]:
        return f"{name} above {least}, up to {most}"
    return f"{name} from {least}" if math.isinf(most) else f"{name} from {least} to {most}"


def _taken(subject: str, hint: Any, field: dataclasses.Field[Any], value: Any) -> Any:
    """A value as a field has it.

    Raises:
        ConfigError: the field cannot have it.
    """
    kinds, words = kinds_and_words(hint)
    if (value is None and type(None) in kinds) or (isinstance(value, str) and value in words):
        return value
    cure = field.metadata.get("cure", "")
    if int in kinds or float in kinds:
        number = _number(float if float in kinds else int, value)
        if number is None or not _is_within(field, number):
            others = (*words, *(["None"] if type(None) in kinds else []))
            cure = cure or ", or ".join(("give one", *others))
            raise ConfigError(subject, f"is not a {number_wanted(hint, field)}", cure)
        if field.metadata["odd"] and number % 2 == 0:
            raise ConfigError(
                subject,
                "an even number has no middle, and would shift the scores",
                f"use {number - 1} or {number + 1}",
            )
        return number
    if not kinds:
        instead = field.metadata.get("instead", {})
        if isinstance(value, str) and value in instead:
            cure = f"use {instead[value]!r}, which took its place"
            raise ConfigError(subject, "is no longer there", cure)
        raise ConfigError(subject, "is not known", f"choose one of {', '.join(words)}")
    if not isinstance(value, tuple(get_origin(kind) or kind for kind in kinds)):
        raise ConfigError(subject, "is of the wrong type", cure or "give True or False")
    return value


def _number(kind: type[Any], value: Any) -> Any:
    """A number of any type as an int or a float; None if it is none."""
    if isinstance(value, bool):
        return None
    try:
        if kind is int:
            return operator.index(value)
        return float(value) if isinstance(value, Real) and math.isfinite(value) else None
    except (TypeError, OverflowError):
        return None


def _is_within(field: dataclasses.Field[Any], number: float) -> bool:
    """Is a number in a field's range?"""
    least, most = field.metadata["least"], field.metadata["most"]
    return bool(least <= number <= most and not (field.metadata["above"] and number == least))
