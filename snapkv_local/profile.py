"""A profile: settings that suit a kind of document and a model, as `snapkv-local tune` writes them.

A TOML file. [snapkv] has fields of SnapKVConfig, [model] says what they were measured with, and
[measured] what came out:

    SnapKVConfig(**profile.load("mine.toml").settings)
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import ConfigError
from snapkv_local.reading.text import decode
from snapkv_local.storage.fingerprint import digest_of
from snapkv_local.storage.new_file import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TABLES = ("model", "snapkv", "measured")
_MODEL = ("name", "file", "digest")


@dataclass(frozen=True)
class Profile:
    """What a file says.

    Attributes:
        settings: fields of SnapKVConfig.
        model: name, file, and digest of the model, as fingerprint.digest_of(); may be empty.
        measured: figures, for people.
        version: of the package that wrote it.
        date: of the measurement, ISO 8601.
    """

    settings: dict[str, Any]
    model: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    date: str = ""

    def other_model(self, path: Path) -> str | None:
        """Says that a model is not the one that was measured; None if it is, or none is named."""
        wanted = self.model.get("digest")
        if wanted is None or wanted == digest_of(path):
            return None
        name = self.model.get("name") or self.model.get("file") or "another model"
        return (
            f"the profile was measured with {name}, and {path.name} is another file: "
            "measure again with `snapkv-local tune`"
        )


def load(path: str | Path) -> Profile:
    """Read a profile.

    Raises:
        ConfigError: it cannot be read, is not TOML, or has keys or values that are not known.
        TextFileError: it is not text.
    """
    path = Path(path)
    data = _parse(path)
    known = ("version", "date", *_TABLES)
    for key in data:
        if key not in known:
            raise _unknown(path, key, known)
    tables = {name: _table(path, data, name) for name in _TABLES}
    names = tuple(f.name for f in fields(SnapKVConfig))
    for key in tables["snapkv"]:
        if key not in names:
            raise _unknown(path, f"[snapkv] {key}", names)
    for key in tables["model"]:
        if key not in _MODEL:
            raise _unknown(path, f"[model] {key}", _MODEL)
    if not tables["snapkv"]:
        raise ConfigError(
            str(path), "has no settings", "give it a table [snapkv], or `snapkv-local tune --save`"
        )
    texts = {f"[model] {key}": value for key, value in tables["model"].items()}
    texts.update({key: data[key] for key in ("version", "date") if key in data})
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ConfigError(f"{path}, {key}={value!r}", "is not a text", "put it in quotes")
    try:
        SnapKVConfig(**tables["snapkv"])
    except ConfigError as e:
        raise ConfigError(f"{path}, [snapkv] {e.subject}", e.problem, e.cure) from e
    return Profile(
        settings=tables["snapkv"],
        model=tables["model"],
        measured=tables["measured"],
        version=data.get("version", ""),
        date=data.get("date", ""),
    )


def save(path: str | Path, profile: Profile) -> None:
    """Write a profile; one that was there before stays whole until the new one is."""
    lines = [f"version = {_value(profile.version)}", f"date = {_value(profile.date)}"]
    tables = {"model": profile.model, "snapkv": profile.settings, "measured": profile.measured}
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    write_text(Path(path), "\n".join(lines) + "\n")


def merge(settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a profile under those that were given; a given budget replaces a ratio, too."""
    found = dict(settings)
    for one, other in (("budget", "keep_ratio"), ("keep_ratio", "budget")):
        if one in given and other not in given:
            found.pop(other, None)
    return {**found, **given}


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(decode(path.read_bytes(), str(path)))
    except OSError as e:
        raise ConfigError(str(path), f"cannot be read ({e.strerror})", "check the path") from e
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(
            str(path), f"is not TOML ({e})", "correct it, or write one with `snapkv-local tune`"
        ) from e


def _table(path: Path, data: dict[str, Any], name: str) -> dict[str, Any]:
    table = data.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}, {name}={table!r}", "is not a table", f"write [{name}] above it")
    return table


def _unknown(path: Path, key: str, known: tuple[str, ...]) -> ConfigError:
    return ConfigError(f"{path}, {key}", "is not known", f"known are {', '.join(known)}")


def _value(value: Any) -> str:
    """TOML of a text, a number or a list of them, which is JSON but for one character."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
