"""Text of PDF files, with pypdf, of the extra `docs`."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING

from snapkv_local.errors import TextFileError

if TYPE_CHECKING:
    from collections.abc import Callable

_END = b"%%EOF"
# behind it: some writers add bytes
_TAIL = 2048


def read_pdf(data: bytes, name: str, warn: Callable[[str], object] | None) -> str:
    """The pages' texts, with an empty line between two.

    Args:
        name: of the file, for errors.
        warn: gets a sentence if some of the pages have no text; None refuses these.

    Raises:
        TextFileError: pypdf is not installed, or the file is encrypted, truncated, damaged, or has
            pictures of its pages only.
    """
    try:
        import pypdf
    except ModuleNotFoundError as e:
        raise TextFileError(
            name, f"is a PDF, and {e.name} is not installed", 'pip install "snapkv-local[docs]"'
        ) from e
    # it would find what is left of it, and nobody would know that pages are missing
    if _END not in data.rstrip(b"\0\r\n\t ")[-_TAIL:]:
        raise TextFileError(name, "is a truncated PDF: its end is missing", "get it again")
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        # many are encrypted only to forbid printing, and open without a password
        if reader.is_encrypted and not reader.decrypt(""):
            raise TextFileError(name, "is a PDF with a password", "save it without one")
        pages = [page.extract_text().strip() for page in reader.pages]
    except TextFileError:
        raise
    except Exception as e:  # of any kind: it reads what others have written
        raise TextFileError(
            name, f"is a damaged PDF ({type(e).__name__}: {e})", "save its text, and give that"
        ) from e
    n_blank = pages.count("")
    if n_blank == len(pages) or (n_blank and warn is None):
        of = "no page" if n_blank == len(pages) else f"{n_blank} pages"
        verb = "has text" if n_blank == len(pages) else "have no text"
        raise TextFileError(
            name,
            f"is a PDF of which {of} of {len(pages)} {verb}: they may be pictures",
            "recognize its text first, for example with OCRmyPDF",
        )
    if n_blank and warn is not None:
        warn(f"{name}: {n_blank} of {len(pages)} pages have no text, and may be pictures")
    return "\n\n".join(filter(None, pages))
