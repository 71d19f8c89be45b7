"""What a DLL exports: the names in the export table of a PE file, which Windows looks functions up in."""

import struct
from pathlib import Path


def exports(dll: Path) -> set[str]:
    """Names of functions and variables.

    Source: Microsoft, "PE Format", sections "Optional header data directories" and "The .edata section".
    """
    data = dll.read_bytes()
    (pe,) = struct.unpack_from("<I", data, 0x3C)
    assert data[:2] == b"MZ" and data[pe : pe + 4] == b"PE\0\0", dll
    n_sections, n_optional = struct.unpack_from("<H12xH", data, pe + 6)
    optional = pe + 24
    (magic,) = struct.unpack_from("<H", data, optional)
    assert magic == 0x20B, f"{dll} is not of 64 bits"
    (table,) = struct.unpack_from("<I", data, optional + 112)
    sections = [
        struct.unpack_from("<8x4I", data, optional + n_optional + 40 * i) for i in range(n_sections)
    ]

    def place(address: int) -> int:
        """In the file, of an address relative to the image's."""
        for size, start, n_bytes, offset in sections:
            if start <= address < start + max(size, n_bytes):
                return offset + address - start
        raise AssertionError(f"{dll}: {address:#x} lies in no section")

    if table == 0:
        return set()
    n_names, names = struct.unpack_from("<I4xI", data, place(table) + 24)
    found = set()
    for (address,) in struct.iter_unpack("<I", data[place(names) :][: 4 * n_names]):
        at = place(address)
        found.add(data[at : data.index(b"\0", at)].decode("ascii"))
    return found
