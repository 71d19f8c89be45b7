"""Bytes of files and of stdin as text."""

import io
import json
import os
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_pdf import pdf

from snapkv_local.cli import main
from snapkv_local.errors import TextFileError
from snapkv_local.reading import docx as docx_module
from snapkv_local.reading import pdf as pdf_module
from snapkv_local.reading import text as text_module
from snapkv_local.reading.text import read_text
from snapkv_local.storage import sealed

WORDS = "Grüße, 世界 🎉\r\n"
LATIN = ("Über die Brücke zum Tor. " * 9).encode("latin-1")


@pytest.fixture
def read(tmp_path):
    """Bytes through a file; the text and what was warned of."""

    def read(data: bytes, name: str = "a.txt", warns: bool = True) -> tuple[str, list[str]]:
        warnings: list[str] = []
        (tmp_path / name).write_bytes(data)
        return read_text(tmp_path / name, warnings.append if warns else None), warnings

    return read


TEXTS = {
    "UTF-8": WORDS.encode(),
    "UTF-8 with its mark": WORDS.encode("utf-8-sig"),
    "UTF-16 LE": b"\xff\xfe" + WORDS.encode("utf-16-le"),
    "UTF-16 BE": b"\xfe\xff" + WORDS.encode("utf-16-be"),
    "UTF-32 LE": b"\xff\xfe\0\0" + WORDS.encode("utf-32-le"),
    "UTF-32 BE": b"\0\0\xfe\xff" + WORDS.encode("utf-32-be"),
}


@pytest.mark.parametrize("data", TEXTS.values(), ids=TEXTS)
def test_text_is_the_same_in_each_encoding(read, data):
    assert read(data, warns=False) == (WORDS, [])


REFUSED = {
    "nothing": (b"", "is empty; give a file with text"),
    "a byte order mark": (b"\xef\xbb\xbf", "is empty"),
    "blanks": (b" \r\n\t", "has nothing but white space"),
    "zeros": (b"text\0text", "is not text: it has zero bytes; give plain text, PDF or DOCX"),
    "UTF-16 without its mark": (WORDS.encode("utf-16-le"), "UTF-16 without a byte order mark"),
    "half a character": (b"\xff\xfea\0b", "byte order mark of UTF-16, and is not UTF-16 at byte 2"),
    "zeros in UTF-16": (b"\xfe\xff\0a\0\0", "is not text: it has zeros in its UTF-16"),
    "Latin-1": (LATIN, "is not UTF-8 at 18 places of 225 bytes, the first at byte 0; .*iconv"),
    "random": (bytes(range(1, 256)), "is not UTF-8"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0", "is a PNG picture, and no text"),
    "JPEG": (b"\xff\xd8\xff\xe0\x01", "is a JPEG picture"),
    "old Word": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old format, or one with a password"),
    "RTF": (b"{\\rtf1 Hello}", "is RTF"),
    "a model": (b"GGUF\x03\0\0\0", "is a model, as the argument MODEL takes it"),
    "a document": (sealed.MAGIC + b"\1\0\0\0", "as --document takes it"),
    "half a zip file": (b"PK\x03\x04\x14\0", "truncated or damaged zip file, which DOCX is"),
}


@pytest.mark.parametrize(("data", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_text_is_refused_with_its_name(read, data, says):
    with pytest.raises(TextFileError, match=f"a.txt: .*{says}"):
        read(data)


def test_a_few_wrong_bytes_are_replaced_and_said(read):
    own = "\N{REPLACEMENT CHARACTER}"  # which is right where the file itself has it
    line = f"A log's line, and {own}\n".encode()
    text, warnings = read(line * 100 + b"\xe9" + line)
    assert text.count(own) == 102
    assert len(warnings) == 1
    assert "a.txt: what is not UTF-8 became \ufffd, 1 times, first at byte 2,200" in warnings[0]
    assert read(line)[1] == []
    with pytest.raises(TextFileError, match="is not UTF-8 at 1 place"):
        read(line * 100 + b"\xe9" + line, warns=False)
    n = text_module.BYTES_PER_WRONG_ONE
    assert len(read(b"x" * (n - 1) + b"\xff")[1]) == 1
    with pytest.raises(TextFileError, match="is not UTF-8"):
        read(b"x" * (n - 2) + b"\xff")


def test_what_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(TextFileError, match=r"none\.txt: cannot be read"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(TextFileError, match="cannot be read"):
        read_text(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(TextFileError, match="stdin: is closed"):
        read_text("-")


def test_pdf(read):
    two = pdf("The code is 4711.", "It is the last page.")
    assert read(two, "a.pdf", warns=False) == ("The code is 4711.\n\nIt is the last page.", [])
    assert read(pdf("Free", password="", owner_password="x"), warns=False)[0] == "Free"
    text, warnings = read(pdf("One", "", "Three"))
    assert text == "One\n\nThree"
    assert "1 of 3 pages have no text" in warnings[0]
    for data, says in [
        (pdf("Secret", password="x"), "is a PDF with a password; save it without one"),
        (pdf("", ""), "is a PDF of which no page of 2 has text: .*; recognize its text first"),
        (two[: len(two) // 2], "is a truncated PDF: its end is missing"),
        (two[:9] + b"%%EOF", "is a damaged PDF"),
    ]:
        with pytest.raises(TextFileError, match=f"a.txt: {says}"):
            read(data)


def test_damaged_pdf_never_raises_anything_else(read):
    whole = pdf("The code is 4711.", "It is the last page.")
    for at in range(9, len(whole) - 30, 7):
        try:
            read(whole[:at] + b"\xffz]" + whole[at + 3 :])
        except TextFileError as e:
            assert "PDF" in e.problem


@pytest.fixture
def word() -> bytes:
    """A DOCX with a heading, a table with merged cells, and a paragraph."""
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("Report")
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, ("a", "b", "wide", ""), strict=True):
        cell.text = text
    table.cell(1, 0).merge(table.cell(1, 1))
    document.add_paragraph("The code is 4711.")
    data = io.BytesIO()
    document.save(data)
    return data.getvalue()


def zipped(**parts: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return data.getvalue()


def test_docx(read, word):
    text = read(word, "a.docx", warns=False)[0]
    assert text.split("\n")[:2] == ["Report", "a\tb"]
    assert text.count("wide") == 1
    assert text.endswith("The code is 4711.")
    bomb = zipped(**{"word/document.xml": bytes(docx_module.MAX_UNPACKED + 1)})
    assert len(bomb) < 2**20
    for data, says in [
        (bomb, "unpacks to 128.* MiB, and the limit is"),
        (word[: len(word) // 2], "truncated or damaged zip file"),
        (zipped(**{"word/document.xml": b"<w"}), "is a damaged DOCX"),
        (zipped(**{"xl/workbook.xml": b""}), "is an Excel workbook, and no text"),
        (zipped(**{"META-INF/container.xml": b""}), "is an EPUB book"),
        (zipped(**{"META-INF/manifest.xml": b""}), "is an OpenDocument file"),
        (zipped(a=b"x"), "is a zip archive"),
    ]:
        with pytest.raises(TextFileError, match=says):
            read(data)


@pytest.mark.parametrize(("package", "kind"), [("pypdf", "PDF"), ("docx", "DOCX")])
def test_without_the_extra_the_error_names_it(read, word, monkeypatch, package, kind):
    data = {"PDF": pdf("Hello"), "DOCX": word}[kind]
    monkeypatch.setitem(sys.modules, package, None)
    says = rf'is a {kind}, and {package}.* is not installed; pip install "snapkv-local\[docs\]"'
    with pytest.raises(TextFileError, match=says):
        read(data)


@pytest.mark.parametrize(
    "command",
    [
        "run MODEL --prompt x --file",
        "ingest MODEL --out OUT --file",
        "inspect MODEL --prompt x --file",
        "extract MODEL --query x --file",
        "tune MODEL --file",
    ],
)
@pytest.mark.parametrize("door", ["file", "stdin"])
@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n\0", b"", LATIN], ids=["PNG", "empty", "Latin"]
)
def test_each_command_refuses_what_is_no_text(tmp_path, write_gguf, command, door, data):
    file = tmp_path / "given"
    file.write_bytes(data)
    named = {"MODEL": str(write_gguf()), "OUT": str(tmp_path / "out.snapkv")}
    words = [named.get(word, word) for word in command.split()]
    result = CliRunner().invoke(main, [*words, str(file) if door == "file" else "-"], input=data)
    assert result.exit_code == 1, result.output
    name = "stdin" if door == "stdin" else str(file)
    assert result.stderr.startswith(f"Error: {name}: "), result.output


def test_a_question_on_stdin_is_text(write_gguf):
    for data, says in [(b" ", "has nothing but white"), (b"\0", "is not text")]:
        result = CliRunner().invoke(main, ["run", str(write_gguf())], input=data)
        assert result.exit_code == 2
        assert f"no question: stdin: {says}" in " ".join(result.stderr.split())
        assert "--prompt" in result.stderr


def node() -> Path:
    """Playwright's, so that no other needs to be there."""
    playwright = pytest.importorskip("playwright")
    return Path(playwright.__file__).parent / "driver" / "node"


def test_the_chat_page_reads_alike(tmp_path):
    """But for PDF, DOCX and UTF-32, which a page does not read, and says so."""
    line = "A log's line, and \ufffd\n".encode()
    given = [*TEXTS.values(), *(data for data, _ in REFUSED.values())]
    given += [b"%PDF-1.4", line * 100 + b"\xe9" + line, b"x" * 999 + b"\xff", b"x" * 998 + b"\xff"]
    script = files("snapkv_local.server").joinpath("page", "reading.js").read_text() + (
        "\nconst given = JSON.parse(require('fs').readFileSync(0));"
        "console.log(JSON.stringify(given.map((hex) => { try {"
        "return textOf(new Uint8Array(Buffer.from(hex, 'hex')), 'a.txt') }"
        "catch (e) { return {error: e.message} } })));"
    )
    result = subprocess.run(
        [node(), "-e", script],
        input=json.dumps([data.hex() for data in given]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "NODE_OPTIONS": ""},
    )
    for data, found in zip(given, json.loads(result.stdout), strict=True):
        warnings: list[str] = []
        if (
            b"%PDF-" in data[:5]
            or data[:2] == b"PK"
            or data in (TEXTS["UTF-32 LE"], TEXTS["UTF-32 BE"])
        ):
            assert found["error"].startswith("a.txt is "), found
            continue
        try:
            text = text_module.decode(data, "a.txt", warnings.append)
        except TextFileError:
            text = ""
        if text.strip():
            assert found == {"text": text, "warning": found["warning"]}
            assert (found["warning"] != "") == (len(warnings) == 1)
        else:
            assert found["error"].startswith("a.txt is ") or "begins like" in found["error"]


def test_limits_are_those_of_the_page():
    script = files("snapkv_local.server").joinpath("page", "reading.js").read_text()
    assert f"BYTES_PER_WRONG_ONE = {text_module.BYTES_PER_WRONG_ONE};" in script
    assert pdf_module._END == b"%%EOF"
