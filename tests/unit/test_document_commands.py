"""ingest, ask, run --document and serve --document before any model is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import snapkv_local
from snapkv_local.cli import main
from snapkv_local.cli.types import NamedFile


def invoke(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin, prog_name="snapkv-local")


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path at which a document in q8_0 is opened, whose model is gone."""
    path = tmp_path / "book.snapkv"
    path.write_bytes(b"")

    class Opened(SimpleNamespace):
        @classmethod
        def open(cls, given: Path, mapped: bool) -> "Opened":
            assert (given, mapped) == (path, True)
            return cls(
                path=path,
                title="A book",
                text="Once upon a time",
                tokens=np.arange(12345, dtype=np.int32),
                n_bytes=3 * 2**30,
                kv_type="q8_0",
                model=SimpleNamespace(name="A model", path=str(tmp_path / "gone.gguf")),
            )

        def close(self) -> None:
            pass

    monkeypatch.setitem(vars(snapkv_local), "Document", Opened)
    return path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("ingest demo --out new.snapkv", "Missing option '-f' / '--file'"),
        ("ingest demo --file TEXT", "Missing option '--out'"),
        ("ingest demo --file TEXT --out TEXT", "is there already: --force replaces it"),
        ("ask", "Missing argument 'DOCUMENT'"),
        ("ask no.snapkv x", "'no.snapkv' does not exist"),
        ("ask BOOK", "give a QUESTION, or --info"),
        ("ask BOOK x --info", "give a QUESTION, or --info"),
        ("ask BOOK x ''", "a question is empty"),
        (
            "ask BOOK x --vault off",
            "a document takes the place of the vault: leave out --vault off",
        ),
        ("run --document BOOK --full --prompt x", "leave out --full"),
        ("run demo --model demo --document BOOK", "name one MODEL"),
        ("run --document no.snapkv", "'no.snapkv' does not exist"),
        ("serve demo --document no.snapkv", "--document no.snapkv: there is no such file"),
        ("serve demo --document a/b=BOOK", "'a/b' is not an id"),
        ("serve demo --document BOOK --document book=BOOK", "two documents have one id"),
        ("serve demo --document BOOK --full", "leave out --full"),
    ],
)
def test_wrong_usage_exits_with_2(tmp_path: Path, book: Path, arguments: str, says: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once")
    named = {"BOOK": str(book), "TEXT": str(text), "''": ""}
    words = arguments.split()
    for name, value in named.items():
        words = [value if word == name else word.replace(f"={name}", f"={value}") for word in words]
    result = invoke(*words, stdin="")
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert not Path("new.snapkv").exists()


def test_a_place_for_no_document_is_said_before_the_model_is_loaded(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once")
    for out, says in [
        (tmp_path / "no" / "book", "a folder that does not exist"),
        (tmp_path, "is a folder"),
    ]:
        result = invoke("ingest", "no.gguf", "--file", str(text), "--out", str(out), "--force")
        assert result.exit_code == 1
        assert says in result.stderr


def test_info_says_what_a_document_is(book: Path) -> None:
    shown = invoke("ask", str(book), "--info")
    assert shown.exit_code == 0, shown.stderr
    assert "A book: 12,345 tokens" in shown.stdout
    assert "3.0 GiB, K and V in q8_0" in shown.stdout
    assert "A model" in shown.stdout
    found = json.loads(invoke("ask", str(book), "--info", "--json").stdout)
    assert (found["title"], found["n_tokens"], found["n_bytes"]) == ("A book", 12345, 3 * 2**30)
    assert (found["document"], found["kv_type"]) == (str(book), "q8_0")


@pytest.mark.parametrize("command", [("ask", "BOOK", "x"), ("run", "--document", "BOOK")])
def test_a_model_that_is_gone_can_be_named(book: Path, command: tuple[str, ...]) -> None:
    result = invoke(*(str(book) if word == "BOOK" else word for word in command), stdin="x")
    assert result.exit_code == 1
    assert "was made with A model, which is no longer at" in result.stderr
    assert "--model" in result.stderr


@pytest.mark.parametrize("command", [("ask", "BOOK", "x"), ("run", "--document", "BOOK")])
def test_another_cache_type_is_refused(book: Path, command: tuple[str, ...]) -> None:
    words = [str(book) if word == "BOOK" else word for word in command]
    result = invoke(*words, "--kv-type", "f16", stdin="x")
    assert result.exit_code == 1
    assert "has K and V in q8_0, and the cache is f16; use --kv-type q8_0" in result.stderr


def test_ids_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("book.snapkv", "a=b.snapkv", "my book.snapkv"):
        Path(name).write_bytes(b"")

    def convert(value: Any) -> Any:
        return NamedFile().convert(value, None, None)

    assert convert("book.snapkv") == ("book", Path("book.snapkv"))
    assert convert("x=book.snapkv") == ("x", Path("book.snapkv"))
    assert convert("x=a=b.snapkv") == ("x", Path("a=b.snapkv"))
    assert convert(("x", Path("y"))) == ("x", Path("y"))
    for value in ("my book.snapkv", "a=b.snapkv", "=book.snapkv"):
        with pytest.raises(click.BadParameter, match="is not an id of letters"):
            convert(value)


@pytest.mark.parametrize("id_", ["a", "A-b_c.1", "a" * 64, "a" * 65, "", "a b", "ä", "a/b", "a\n"])
def test_ids_of_documents_are_those_that_requests_can_name(id_: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    from snapkv_local.server.common import Name

    def is_taken(convert: Callable[[], object]) -> bool:
        try:
            convert()
        except (ValidationError, click.BadParameter):
            return False
        return True

    in_requests = is_taken(lambda: TypeAdapter(Name).validate_python(id_))
    assert is_taken(lambda: NamedFile().convert(f"{id_}=x", None, None)) == in_requests
