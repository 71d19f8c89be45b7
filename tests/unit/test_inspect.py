"""What was kept, on a terminal, in a pipe and as a page: a survey is made up, no model is loaded."""

import io
import re
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from snapkv_local.cli import main
from snapkv_local.errors import ConfigError
from snapkv_local.inspection import terminal
from snapkv_local.inspection.kept import Survey
from snapkv_local.inspection.page import page
from snapkv_local.prompt.build import Prompt, characters_before
from snapkv_local.stats import PrefillStats

WORDS = [
    "<s>",
    "The",
    " <b>pump</b>",
    " &",
    ' "stands"',
    " in",
    " room",
    " 417",
    ".",
    " Where",
    "?",
]
WINDOW = 2
LAYERS = (0, 3)
HEADS = 4


def make_survey(words=WORDS, counts=None, n_question=2):
    starts = np.cumsum([0, *map(len, words)])[:-1]
    if counts is None:
        # layer 0 keeps "room 417" in all heads, layer 3 nothing but the begin
        counts = np.zeros((2, len(words)), dtype=np.int32)
        counts[0, 6:8] = HEADS
        counts[1, 0] = HEADS
        counts[:, -WINDOW:] = HEADS
    figures = dict.fromkeys(PrefillStats.__dataclass_fields__, 0)
    return Survey(
        prompt=Prompt(list(range(len(words))), "".join(words), starts, (3, 40), n_question),
        stats=PrefillStats(**{**figures, "n_prompt": len(words), "n_kept": 4, "coverage": 0.75}),
        window_size=WINDOW,
        layers=LAYERS,
        n_head_kv=HEADS,
        counts=counts,
        coverage=np.array([[1, 1, 1, 0.6], [0.5, 0.5, 0.7, 0.7]], dtype=np.float32),
    )


def printed(survey, layer=None, n_spans=20, is_terminal=False):
    screen = io.StringIO()
    console = Console(
        file=screen,
        force_terminal=is_terminal,
        width=60,
        color_system="256" if is_terminal else None,
        legacy_windows=False,
    )
    terminal.show(console, survey, layer, n_spans)
    return screen.getvalue()


def test_shares_are_of_all_heads_or_of_one_layer():
    survey = make_survey()
    assert survey.shares()[6] == 0.5
    assert survey.shares(0)[6] == 1
    assert survey.shares(3)[6] == 0
    assert survey.shares()[-1] == 1
    assert survey.coverage_by_layer() == pytest.approx([0.9, 0.6])


def test_a_layer_without_a_compressed_cache_is_refused():
    with pytest.raises(ConfigError, match=r"layer 1: has no cache .* give one of 0, 3"):
        make_survey().shares(1)


def test_spans_are_what_is_kept_more_often_than_the_rest():
    first, second = make_survey().spans()
    assert (first.text, first.first, first.n_tokens, first.share) == (" room 417", 6, 2, 0.5)
    assert second.text == "<s>"
    text = make_survey().prompt.text
    assert all(text[span.start : span.end] == span.text for span in (first, second))
    assert [span.text for span in make_survey().spans(3)] == ["<s>"]


def test_a_span_goes_on_over_a_short_gap_only():
    counts = np.zeros((2, 20), dtype=np.int32)
    counts[:, [2, 5, 9]] = HEADS
    survey = make_survey([f"w{i} " for i in range(20)], counts)
    assert sorted((span.first, span.n_tokens) for span in survey.spans()) == [(2, 4), (9, 1)]


def test_nothing_stands_out_where_all_is_kept_alike():
    counts = np.ones((2, 20), dtype=np.int32)
    assert make_survey(["w"] * 20, counts).spans() == []


def test_json_has_offsets_that_fit_the_text():
    found = make_survey().to_dict(0)
    assert [found["text"][t["start"] : t["end"]] for t in found["tokens"]] == WORDS
    assert found["tokens"][7]["share"] == 1
    assert found["coverage_by_head"][0] == [1, 1, 1, 0.6]
    assert found["layer"] == 0


def test_a_pipe_gets_figures_and_spans_without_colours():
    text = printed(make_survey())
    assert "\x1b" not in text
    assert "Kept 4 of 11 prompt tokens in each of 8 KV heads (2 layers of 4)" in text
    assert "layer   0   90%  ███" in text
    assert re.search(r"^ 50% +6-7 +room 417$", text, re.MULTILINE)
    assert '"stands"' not in text  # the text itself is for terminals


def test_a_terminal_gets_the_text_in_colours():
    text = printed(make_survey(), is_terminal=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", text).startswith('<s>The <b>pump</b> & "stands" in room')
    assert "48;5;208m room" in text
    # every head of layer 0 keeps it: the darkest ground
    assert "48;5;124m room" in printed(make_survey(), 0, is_terminal=True)


def test_a_span_is_cut_to_the_terminal_only():
    words = ["<s>", *[" long"] * 40, " Where", "?"]
    counts = np.zeros((2, len(words)), dtype=np.int32)
    counts[:, 1:20] = HEADS
    survey = make_survey(words, counts)
    line = re.sub(r"\x1b\[[0-9;]*m", "", printed(survey, is_terminal=True).splitlines()[-1])
    assert len(line) == 60
    assert line.endswith("…")
    assert printed(survey).splitlines()[-1].endswith(" ".join(["long"] * 19))


@pytest.mark.parametrize(("n_question", "says"), [(2, False), (9, True)])
def test_a_window_that_misses_the_question_is_named(n_question, says):
    survey = make_survey(n_question=n_question)
    assert ("raise --window-size" in printed(survey)) is says
    assert ("Raise the window" in page(survey, "a", "b", "c")) is says


def test_the_page_escapes_what_it_shows_and_loads_nothing():
    html = page(make_survey(), "<i>.txt", "What is </script>?", "model.gguf", layer=3)
    assert "<b>pump</b>" not in html
    assert "&lt;b&gt;pump&lt;/b&gt;" in html
    assert "&lt;i&gt;.txt" in html
    assert "What is &lt;/script&gt;?" in html
    assert html.count("</script>") == 1
    assert "default-src 'none'" in html
    assert not re.search(r"https?://|src=|url\(|@import", html)
    assert '<option value="3" selected>' in html


def test_the_page_takes_models_of_many_heads():
    wide = Survey(**{**vars(make_survey()), "n_head_kv": 300})
    assert "Uint16Array(bytes.buffer)" in page(wide, "a", "b", "c")


def test_without_jinja2_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r'pip install "snapkv-local\[report\]"'):
        page(make_survey(), "a", "b", "c")


def test_characters_are_counted_where_they_begin():
    assert characters_before("aé漢b".encode()).tolist() == [0, 1, 2, 2, 3, 3, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "demo"], "--prompt"),
        (["inspect", "demo", "--prompt", "  "], "the question is empty"),
        (["inspect", "demo", "--prompt", "x", "--layer", "-1"], "--layer"),
        (["inspect", "demo", "--prompt", "x", "--file", "/no/such/file"], "/no/such/file"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, says):
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
