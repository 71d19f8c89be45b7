"""The texts that name a policy and its options, as on the command line.

    name[:key=value[+key=value...]]

A policy inside another is its option `of`, which comes last and takes the rest of the text:
`pyramid:beta=10+of=snapkv:kernel_size=13+pooling=max`.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, get_type_hints

from snapkv_local import declared
from snapkv_local.errors import ConfigError


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
            "has an option without a colon before it",
            "write name:key=value+key=value, an outer policy's options before of=",
        )
    if name not in policies:
        raise ConfigError(
            f"policy={text!r}", "is not a policy", f"choose one of {', '.join(policies)}"
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
                f"is not an option of {name}",
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


def _read(kind: type[Any], field: dataclasses.Field[Any], text: str, subject: str) -> Any:
    """The value of an option that is not a policy; declared.check() knows its choices and its range."""
    hint = get_type_hints(kind)[field.name]
    kinds, words = declared.kinds_and_words(hint)
    if not kinds or text in words:
        return text
    if text == "None" and type(None) in kinds:
        return None
    try:
        return float(text) if float in kinds else int(text)
    except ValueError:
        raise ConfigError(
            subject, f"is not a {declared.number_wanted(hint, field)}", "give one"
        ) from None
