"""Options of policies: their ranges, and the texts that name a policy on the command line.

    name[:key=value[+key=value...]]

A policy inside another is its option `of`, which comes last and takes the rest of the text:
`pyramid:beta=10+of=snapkv:kernel=13+pool=max`.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from snapkv_local.errors import ConfigError

Default = TypeVar("Default")


def option(default: Default, *, least: float = 0, most: float = math.inf, odd: bool = False) -> Any:
    """A field of a policy.

    Args:
        default: what the policy has without it.
        least, most: range of a number, both included.
        odd: even numbers are refused.
    """
    return dataclasses.field(default=default, metadata={"least": least, "most": most, "odd": odd})


def check(policy: Any) -> None:
    """Refuse options that are out of their ranges.

    Raises:
        ConfigError: with the option's name.
    """
    kind = type(policy)
    hints = get_type_hints(kind)
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        subject = f"policy {policy.name}, {field.name}={value!r}"
        if not _is_of(hints[field.name], value):
            raise ConfigError(subject, "is not known", f"give {_wanted(kind, field)}")
        if isinstance(value, (int, float)) and field.metadata:
            least, most = field.metadata["least"], field.metadata["most"]
            if not least <= value <= most:
                raise ConfigError(subject, "is out of range", f"give {_wanted(kind, field)}")
            if field.metadata["odd"] and value % 2 == 0:
                raise ConfigError(
                    subject,
                    "an even number has no middle, and would shift the scores",
                    f"use {value + 1}",
                )


def spec(policy: Any) -> str:
    """The text that parse() makes the policy from: options that differ from the defaults, `of` last."""
    parts = []
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        if value != field.default:
            text = spec(value) if field.name == "of" else str(value).removesuffix(".0")
            parts.append((field.name == "of", f"{field.name}={text}"))
    parts.sort(key=operator.itemgetter(0))
    return ":".join([policy.name, *(["+".join(part for _, part in parts)] if parts else [])])


def parse(text: str, policies: Mapping[str, type[Any]]) -> Any:
    """The policy that a text names.

    Args:
        text: as at the top of this file.
        policies: by their names.

    Raises:
        ConfigError: no such policy, option or value.
    """
    name, colon, rest = text.strip().partition(":")
    if "+" in name:
        raise ConfigError(
            f"policy={text!r}",
            "has an option without a colon before",
            "write name:key=value+key=value, an outer policy's options before of=",
        )
    if name not in policies:
        raise ConfigError(
            f"policy={text!r}", "no such policy", f"choose one of {', '.join(policies)}"
        )
    kind = policies[name]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {}
    while colon:
        is_last = rest.startswith("of=")
        part, colon, rest = (rest, "", "") if is_last else rest.partition("+")
        key, equals, value = part.partition("=")
        subject = f"policy={text!r}, {part!r}"
        if not equals or key not in fields:
            names = ", ".join(sorted(fields)) or "none"
            raise ConfigError(
                subject,
                f"is no option of {name}",
                f"its options are {names}, as in {name}:key=value+key=value; `of` comes last, and "
                "what follows it is the inner policy's",
            )
        if key in given:
            raise ConfigError(subject, "is given twice", "give it once")
        if key == "of":
            given[key] = parse(value, policies)
        else:
            given[key] = _read(kind, fields[key], value, subject)
    return kind(**given)


def _is_of(hint: Any, value: Any) -> bool:
    """Is a value of the type that a field has?"""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    kinds = get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def _read(kind: type[Any], field: dataclasses.Field[Any], text: str, subject: str) -> Any:
    """The value of an option that is not a policy."""
    hint = get_type_hints(kind)[field.name]
    if get_origin(hint) is Literal:
        return text  # check() knows the choices
    kinds = get_args(hint) or (hint,)
    if text == "None" and type(None) in kinds:
        return None
    try:
        return float(text) if float in kinds else int(text)
    except ValueError:
        raise ConfigError(subject, "is no number", f"give {_wanted(kind, field)}") from None


def _wanted(kind: type[Any], field: dataclasses.Field[Any]) -> str:
    """What an option can be, in words."""
    hint = get_type_hints(kind)[field.name]
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if not field.metadata:
        return "a policy that scores rows, such as snapkv"
    kinds = get_args(hint) or (hint,)
    least, most = field.metadata["least"], field.metadata["most"]
    number = "a number" if float in kinds else "a whole number"
    span = f"from {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
    return f"{number} {span}" + (", or None" if type(None) in kinds else "")
