"""Numbers for people."""

from __future__ import annotations

import re

from snapkv_local.errors import ConfigError

MIB = 1024**2
GIB = 1024**3

_UNITS = {
    "": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4,
    "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4,
    "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
}  # fmt: skip

_LEAST_WITHOUT_UNIT = 1_000_000


def size(n_bytes: int) -> str:
    """Bytes for people."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def parse_size(text: str) -> int:
    """Bytes of 8GiB, 8GB (of 1000^3 bytes), 8192MiB, 8G (of 1024^3 bytes) or 8B.

    Raises:
        ConfigError: it is no size, or a number below a million without a unit, which nobody means
            in bytes.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?(?:i?b)?)", text.strip().lower())
    unit = match[2] if match else None
    if unit in ("b", "ib"):
        unit = "" if unit == "b" else None
    if match is None or unit not in _UNITS or float(match[1]) == 0:
        raise ConfigError(repr(text), "is not a size in bytes", "write 8GiB, 8GB or 8192MiB")
    if match[2] == "" and float(match[1]) < _LEAST_WITHOUT_UNIT:
        raise ConfigError(
            repr(text), "has no unit", f"write {match[1]}GiB, or {match[1]}B if bytes are meant"
        )
    return int(float(match[1]) * _UNITS[unit])


def duration(seconds: float) -> str:
    """A time for people: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def score(value: float) -> str:
    """A score for people: three digits after the point, and more where these would be zeros."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1g}"
