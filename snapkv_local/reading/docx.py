"""Text of DOCX files, with python-docx, of the extra `docs`; other kinds of zip files are named."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from snapkv_local.errors import TextFileError
from snapkv_local.report.units import size

# of all parts; what reads their XML takes up to twenty times as much memory
MAX_UNPACKED = 128 * 2**20

_KINDS = {
    "xl/workbook.xml": "an Excel workbook",
    "ppt/presentation.xml": "a PowerPoint presentation",
    "META-INF/container.xml": "an EPUB book",
    "META-INF/manifest.xml": "an OpenDocument file",
}


def read_docx(data: bytes, name: str) -> str:
    """Paragraphs, a line each, and rows of tables, a line each with tabs between cells.

    Args:
        data: a zip file.
        name: of the file, for errors.

    Raises:
        TextFileError: it is a zip file of another kind, truncated, damaged, or unpacks to more than
            MAX_UNPACKED bytes; or python-docx is not installed.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    except Exception as e:  # of several kinds
        raise TextFileError(
            name,
            f"is a truncated or damaged zip file, which DOCX is, too ({e})",
            "get it again",
        ) from e
    if "word/document.xml" not in sizes:
        kind = next((kind for part, kind in _KINDS.items() if part in sizes), "a zip archive")
        raise TextFileError(name, f"is {kind}, and no text", "save its text, and give that")
    # zipfile unpacks no more of a part than it says here
    n_bytes = sum(sizes.values())
    if n_bytes > MAX_UNPACKED:
        raise TextFileError(
            name,
            f"is a DOCX that unpacks to {size(n_bytes)}, and the limit is {size(MAX_UNPACKED)}",
            "save its text, or leave pictures out",
        )
    try:
        import docx
        from docx.table import Table
    except ModuleNotFoundError as e:
        raise TextFileError(
            name, f"is a DOCX, and {e.name} is not installed", 'pip install "snapkv-local[docs]"'
        ) from e

    def lines(container: Any) -> list[str]:
        found = []
        for block in container.iter_inner_content():
            if not isinstance(block, Table):
                found.append(block.text)
                continue
            for row in block.rows:
                # cells that are merged come once for each that they were
                cells = {cell._tc: "\n".join(lines(cell)) for cell in row.cells}
                found.append("\t".join(cells.values()))
        return found

    try:
        return "\n".join(lines(docx.Document(io.BytesIO(data)))).strip()
    except Exception as e:  # of any kind: it reads what others have written
        raise TextFileError(
            name, f"is a damaged DOCX ({type(e).__name__}: {e})", "save its text, and give that"
        ) from e
