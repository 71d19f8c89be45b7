"""PDF files to read."""

import io

import pytest


def pdf(*pages: str, password: str | None = None, **options) -> bytes:
    """One with a line of text a page; "" for a page without."""
    pypdf = pytest.importorskip("pypdf")
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    def names(**entries):
        return DictionaryObject(
            {
                NameObject(f"/{key}"): NameObject(value) if isinstance(value, str) else value
                for key, value in entries.items()
            }
        )

    writer = pypdf.PdfWriter()
    font = names(Type="/Font", Subtype="/Type1", BaseFont="/Helvetica")
    for text in pages:
        page = writer.add_blank_page(300, 300)
        if text:
            stream = DecodedStreamObject()
            stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
            page[NameObject("/Resources")] = names(Font=names(F1=font))
            page[NameObject("/Contents")] = writer._add_object(stream)
    if password is not None:
        writer.encrypt(password, algorithm="AES-256", **options)
    data = io.BytesIO()
    writer.write(data)
    return data.getvalue()
