"""Passages that a question points at; SmolLM2 ranks them."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapkv_local.errors import ConfigError, PromptError
from snapkv_local.extract.passages import cut
from snapkv_local.extract.votes import CONFIG, Extractor

NEEDLE = "The emerald of the countess was sewn into the lining of a blue coat."
QUERY = "Where was the emerald of the countess sewn in?"


@pytest.fixture(scope="module")
def reader(make, smollm2):
    return make(CONFIG, smollm2, keep_scores=True, n_ctx=320)


@pytest.fixture(scope="module")
def text(document):
    """A document with a passage planted between two paragraphs."""
    parts = document[4000:5200].split("\n\n")
    return "\n\n".join([*parts[:1], NEEDLE, *parts[1:]])


def around(text, before, after):
    """The planted passage with some characters on either side."""
    at = text.index(NEEDLE)
    return text[max(at - before, 0) : at + after]


def test_the_planted_sentence_comes_first_with_its_place(reader, text):
    short = around(text, 250, 350)
    extractor = Extractor(reader, [short], [cut(short)])
    assert extractor.parts(short, QUERY) == [(0, len(short))]
    found = extractor.rank(QUERY)
    assert found[0].text == NEEDLE
    assert all(short[p.start : p.end] == p.text for p in found)
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    assert sorted((p.start, p.end) for p in found) == cut(short)


def test_a_document_beyond_the_context_is_read_in_parts(reader, text):
    extractor = Extractor(reader, ["", text], [[], cut(text)])
    parts = extractor.parts(text, QUERY)
    assert len(parts) >= 2
    assert (parts[0][0], parts[-1][1]) == (0, len(text))
    assert all(a[1] > b[0] for a, b in itertools.pairwise(parts))  # they overlap
    found = extractor.rank(QUERY)
    assert (found[0].document, found[0].text) == (1, NEEDLE)
    # the neutral question is read once for each part, whatever is asked
    assert len(extractor._neutral) == len(parts)


def test_without_a_chat_template(reader, text):
    short = around(text, 200, 300)
    assert Extractor(reader, [short], [cut(short)], raw=True).rank(QUERY)[0].text == NEEDLE


def test_what_cannot_be_asked(reader, text):
    extractor = Extractor(reader, [text], [cut(text)])
    with pytest.raises(PromptError, match="the query: is empty"):
        extractor.rank(" \n")
    with pytest.raises(PromptError, match=r"query of \d+ tokens.*is longer than 511; shorten it"):
        extractor.rank("why " * 520)
    with pytest.raises(PromptError, match="no room for a document"):
        extractor.rank("why " * 280)
    with pytest.raises(ConfigError, match="keeps no scores"):
        Extractor(SimpleNamespace(keep_scores=False), [text], [cut(text)])


def test_the_command(text, tmp_path):
    prose, code = tmp_path / "a.txt", tmp_path / "b.py"
    prose.write_bytes(b"  " + around(text, 300, 300).replace("\n", "\r\n").encode())
    code.write_text("def f(x):\n    return x\n\n\ndef countess():\n    return 'emerald'\n")
    command = [sys.executable, "-m", "snapkv_local", "extract", "needle", "--threads", "1"]
    command += ["--file", str(prose), "--file", str(code), "--query", QUERY, "--ctx", "512"]

    def run(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)

    result = run("--json", "--top", "3")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["passages"]
    assert len(found) == 3
    for passage in found:
        content = Path(passage["file"]).read_bytes().decode()
        assert content[passage["start"] : passage["end"]] == passage["text"]

    piped = run("--top", "100")
    assert piped.returncode == 0, piped.stderr
    assert "\x1b" not in piped.stdout
    assert f"    {NEEDLE}\n" in piped.stdout
    assert f"{code}:0-" in piped.stdout
