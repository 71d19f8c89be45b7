"""What a DLL exports, and which other DLLs it needs: tables of a PE file, from which Windows looks both up.

Source: Microsoft, "PE Format", sections "Optional header data directories", "The .edata section", "The
.idata section" and "Delay-load import tables".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_EXPORTS, _IMPORTS, _DELAYED = 0, 1, 13  # data directories


class _Image:
    """The bytes of a DLL for processors of 64 bits, by address relative to where it is loaded."""

    def __init__(self, dll: str, data: bytes) -> None:
        self.dll, self.data = dll, data
        (pe,) = struct.unpack_from("<I", data, 0x3C)
        if data[:2] != b"MZ" or data[pe : pe + 4] != b"PE\0\0":
            raise ValueError(f"{dll} is no DLL")
        n_sections, n_optional = struct.unpack_from("<H12xH", data, pe + 6)
        optional = pe + 24
        (magic,) = struct.unpack_from("<H", data, optional)
        if magic != 0x20B:
            raise ValueError(f"{dll} is not of 64 bits")
        (n_tables,) = struct.unpack_from("<I", data, optional + 108)
        self.tables = [
            struct.unpack_from("<I", data, optional + 112 + 8 * i)[0] for i in range(n_tables)
        ]
        self.sections = [
            struct.unpack_from("<8x4I", data, optional + n_optional + 40 * i)
            for i in range(n_sections)
        ]

    def place(self, address: int) -> int:
        """Where an address is in the file."""
        for size, start, n_bytes, offset in self.sections:
            if start <= address < start + max(size, n_bytes):
                return int(offset + address - start)
        raise ValueError(f"{self.dll}: {address:#x} lies in no section")

    def name(self, address: int) -> str:
        """What stands there, up to a zero."""
        at = self.place(address)
        return self.data[at : self.data.index(b"\0", at)].decode("ascii")

    def rows(self, table: int, form: str) -> Iterator[tuple[int, ...]]:
        """Of a table that ends with zeros; none where there is no such table."""
        if table >= len(self.tables) or self.tables[table] == 0:
            return
        at = self.place(self.tables[table])
        while any(row := struct.unpack_from(form, self.data, at)):
            yield row
            at += struct.calcsize(form)


def exports(dll: Path) -> set[str]:
    """Names of functions and variables."""
    image = _Image(str(dll), dll.read_bytes())
    if image.tables[_EXPORTS] == 0:
        return set()
    n, names = struct.unpack_from("<I4xI", image.data, image.place(image.tables[_EXPORTS]) + 24)
    found = struct.iter_unpack("<I", image.data[image.place(names) :][: 4 * n])
    return {image.name(address) for (address,) in found}


def imports(dll: str, data: bytes) -> set[str]:
    """Names of DLLs in lower case, those that are loaded when they are first used included.

    Args:
        dll: its name, for errors.
        data: all of it.

    Raises:
        ValueError: it is no DLL for processors of 64 bits.
    """
    image = _Image(dll, data)
    found = {image.name(row[3]) for row in image.rows(_IMPORTS, "<5I")}
    found |= {image.name(row[1]) for row in image.rows(_DELAYED, "<8I")}
    return {name.lower() for name in found}
