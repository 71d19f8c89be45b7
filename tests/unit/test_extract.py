"""Passages of texts and of source code, and what scores them; no model is loaded."""

import numpy as np
import pytest
from click.testing import CliRunner

from snapkv_local.cli import main
from snapkv_local.cli.loading import read_exactly
from snapkv_local.errors import ConfigError
from snapkv_local.extract.passages import cut


def passages(text, unit="auto", name=""):
    found = cut(text, unit, name)
    assert found == sorted(found)
    assert all(text[a:b].strip() == text[a:b] != "" for a, b in found)
    return [text[a:b] for a, b in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "Go." Then he went.', ['He said "Go."', "Then he went."]),
        (
            "It is 3.5 km. far, e.g. Rome, says Dr. No.",
            ["It is 3.5 km. far, e.g. Rome, says Dr. No."],
        ),
        ("Wrapped\nlines are one. Next", ["Wrapped\nlines are one.", "Next"]),
        ("Title\n\nText here.", ["Title", "Text here."]),
        ("Title\r\n\r\nText here.", ["Title", "Text here."]),
        ("Of these:\n- one\n- two\n2. three", ["Of these:", "- one", "- two", "2. three"]),
        ("第一。第二\uff01", ["第一。", "第二\uff01"]),
        ("Émile came. Étienne left. 7 stayed.", ["Émile came.", "Étienne left.", "7 stayed."]),
        (" \n\n ", []),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert passages(text, "sentence") == expected
    assert passages(text, "auto", "a.txt") == expected


def test_lines_and_paragraphs():
    text = "a\n  b \n\n \nc\r\nd"
    assert passages(text, "line") == ["a", "b", "c", "d"]
    assert passages(text, "paragraph") == ["a\n  b", "c\r\nd"]


PYTHON = '''import os

@decorated
def one(x):
    def inner():
        return x
    return inner  # why

class Box:
    """A box."""

    size = 1

    async def two(self):
        pass

class Point:
    x: int
    y: int

if os.name == "posix":
    def three(): return 3
else:
    def three(): return 4
try:
    pass
except OSError:
    def four(): pass
match os.name:
    case "nt":
        def five(): pass
'''


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_functions_of_python(end):
    found = passages(PYTHON.replace("\n", end), "auto", "a.py")
    assert [f.split("(")[0].split(end)[-1].strip() for f in found] == [
        "def one", "async def two", "y: int", "def three", "def three", "def four",
        "def five",
    ]  # fmt: skip
    assert found[0].startswith("@decorated")
    assert found[0].endswith("return inner  # why")
    assert found[2].startswith("class Point")


def test_a_form_feed_and_a_byte_order_mark_move_nothing():
    assert passages("\ufeffx = '\x0c'\n\x0c\ndef f():\n    pass\n", "auto", "a.py") == [
        "def f():\n    pass"
    ]
    assert passages("\ufeffdef f(): pass\n", "auto", "a.py") == ["def f(): pass"]


def test_python_of_another_version_is_cut_by_indentation():
    text = "def f(x):\n    print x\n\ny = 1\ndef g():\n    exec 'a'\n"
    assert passages(text, "auto", "old.py") == ["def f(x):\n    print x", "def g():\n    exec 'a'"]


C = """#include <x.h>
#define M(a) { a }
// adds { two
static int add(int a, int b) {
  if (a) { return 1; }
  return "}"[0];
}
namespace q { class A { public: void f(int x) const { g(); } int v; }; }
struct P { int x; };
int table[] = { 1, 2 };
char c = '{';
void last() { for (;;) {} }
"""


def test_functions_in_braces():
    found = passages(C, "auto", "a.cpp")
    assert [f.split("(")[0].split("\n")[-1] for f in found] == [
        "static int add", "public: void f", "void last",
    ]  # fmt: skip
    assert found[0].startswith("// adds { two\n")
    assert found[0].endswith("[0];\n}")


def test_functions_by_indentation():
    ruby = (
        "x = 1\ndef a(b)\n  c do\n\n    d\n  end\nend\n\nlocal function z()\n  return 1\nend\ny\n"
    )
    assert passages(ruby, "auto", "a.rb") == [
        "def a(b)\n  c do\n\n    d\n  end\nend", "local function z()\n  return 1\nend",
    ]  # fmt: skip


def test_source_code_without_functions_has_paragraphs():
    assert passages("a = 1\nb = 2\n\nc = 3\n", "auto", "a.py") == ["a = 1\nb = 2", "c = 3"]
    with pytest.raises(ConfigError, match="no function is in it"):
        cut("a = 1", "function", "a.py")
    with pytest.raises(ConfigError, match="no function is in it"):
        cut("Only prose.", "function")


def test_functions_of_a_language_that_no_name_tells():
    assert passages("def f():\n    return 1\n", "function") == ["def f():\n    return 1"]
    assert passages("int f(void) { return 1; }\n", "function") == ["int f(void) { return 1; }"]


def test_an_unknown_unit():
    with pytest.raises(ConfigError, match="unit='word': is not known; choose one of auto"):
        cut("a", "word")


@pytest.fixture
def votes():
    """Votes for tokens of 10 characters each."""
    from snapkv_local.extract.votes import _Votes

    def make(values):
        starts = np.arange(len(values)) * 10
        return _Votes(starts, starts + 10, np.array(values))

    return make


def test_a_score_is_what_a_question_gives_above_a_neutral_one(votes):
    from snapkv_local.extract.votes import _score

    asked, neutral = votes([0.4, 1.2, 2.0, 0.4]), votes([2.8, 0.4, 0.4, 0.4])
    assert _score(asked, neutral, (10, 30)) == (2, pytest.approx((0.8 + 1.6) / 2))
    assert _score(asked, neutral, (0, 10))[1] < 0  # what any question attends to
    assert _score(asked, neutral, (30, 40))[1] == 0
    assert _score(asked, asked, (0, 40)) == (4, 0)


def test_tokens_across_the_border_count_and_others_do_not(votes):
    from snapkv_local.extract.votes import _score

    asked, neutral = votes([0.4, 1.2, 2.0, 0.4]), votes([1.0] * 4)
    assert _score(asked, neutral, (15, 21))[0] == 2
    assert _score(asked, neutral, (40, 50)) == (0, 0.0)


def test_files_are_read_as_they_are(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("  é\r\nb\r \n".encode())
    assert read_exactly(path) == "  é\r\nb\r \n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["extract", "demo", "--query", "x"], "--file"),
        (["extract", "demo", "--file", __file__], "--query"),
        (["extract", "demo", "--file", __file__, "--query", " "], "the query is empty"),
        (["extract", "demo", "--file", __file__, "--query", "x", "--top", "0"], "--top"),
        (["extract", "demo", "--file", __file__, "--query", "x", "--unit", "word"], "'word'"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, says):
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
