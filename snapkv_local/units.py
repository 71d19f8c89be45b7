"""Numbers for people."""

from __future__ import annotations

import re

from snapkv_local.errors import ConfigError

_UNITS = {
    "": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4,
    "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4,
    "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
}  # fmt: skip


def size(n_bytes: int) -> str:
    """Bytes for people."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def parse_size(text: str) -> int:
    """Bytes of 8GiB, 8GB (of 1000^3 bytes), 8192MiB or 8G (of 1024^3 bytes).

    Raises:
        ConfigError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?(?:i?b)?)", text.strip().lower())
    unit = match[2] if match else None
    if unit in ("b", "ib"):
        unit = "" if unit == "b" else None
    if match is None or unit not in _UNITS or float(match[1]) == 0:
        raise ConfigError(repr(text), "is no size in bytes", "write 8GiB, 8GB or 8192MiB")
    return int(float(match[1]) * _UNITS[unit])
