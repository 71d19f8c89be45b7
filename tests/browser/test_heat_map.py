"""The page of `snapkv-local inspect` in a browser: light, dark, on a phone, and what it answers."""

from functools import partial

import numpy as np
import pytest

from snapkv_local.inspection.kept import Survey
from snapkv_local.inspection.page import page
from snapkv_local.prompt.build import Prompt
from snapkv_local.stats import PrefillStats

WORDS = [f"w{i} " for i in range(300)]
WORDS[40:43] = ["<b>", " room", " 417\n"]
WINDOW, HEADS, LAYERS = 8, 4, (0, 1, 5)


@pytest.fixture(scope="module")
def heat_map(tmp_path_factory):
    """Layer 0 keeps tokens 40 to 42 with all heads, layer 5 with one, layer 1 keeps token 0."""
    counts = np.zeros((3, len(WORDS)), dtype=np.int32)
    counts[0, 40:43] = HEADS
    counts[2, 40:43] = 1
    counts[1, 0] = HEADS
    counts[:, -WINDOW:] = HEADS
    figures = dict.fromkeys(PrefillStats.__dataclass_fields__, 0)
    starts = np.cumsum([0, *map(len, WORDS)])[:-1]
    survey = Survey(
        prompt=Prompt(list(range(len(WORDS))), "".join(WORDS), starts, (0, 9), 4),
        stats=PrefillStats(**{**figures, "n_prompt": len(WORDS), "n_kept": 11, "coverage": 0.8}),
        window_size=WINDOW,
        layers=LAYERS,
        n_head_kv=HEADS,
        counts=counts,
        coverage=np.full((3, HEADS), 0.8, dtype=np.float32),
    )
    path = tmp_path_factory.mktemp("heat") / "heat.html"
    path.write_text(page(survey, "a <script> & b", "Which room?", "model.gguf"), encoding="utf-8")
    return path


@pytest.fixture
def view(view_file, heat_map):
    """The page in a window of a width and a colour scheme, with its noise."""
    return partial(view_file, heat_map)


def alpha(found, i):
    """How strongly a token is coloured, as "rgba(r, g, b, a)" says; opaque colours have no a."""
    style = "e => getComputedStyle(e).backgroundColor"
    parts = found.locator("#text i").nth(i).evaluate(style).strip("rgba()").split(",")
    return float(parts[3]) if len(parts) == 4 else 1.0


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen_and_loads_nothing(view, width):
    found, noise = view(width, "light")
    assert found.evaluate("document.documentElement.scrollWidth") <= width
    assert noise == [found.url]
    assert found.title() == "What was kept of a <script> & b"
    assert found.locator("#text").text_content() == "".join(WORDS)


def test_light_and_dark_differ(view):
    grounds = [
        view(1280, scheme)[0].evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert grounds == ["rgb(255, 255, 255)", "rgb(13, 17, 23)"]


def test_a_token_is_coloured_by_its_share(view):
    found, _ = view(1280, "light")
    assert alpha(found, 10) == 0
    assert alpha(found, 41) > alpha(found, 0) > 0  # 5 of 12 heads, 4 of 12


def test_a_layer_can_be_chosen_by_list_and_by_bar(view):
    found, _ = view(1280, "light")
    found.select_option("#layer", "1")
    assert alpha(found, 41) == 0
    assert found.locator("#chart button[aria-pressed=true]").get_attribute("data-layer") == "1"
    found.locator("#chart button").nth(2).click()
    assert found.locator("#layer").input_value() == "5"
    assert alpha(found, 0) == 0
    found.locator("#chart button").nth(2).click()
    assert found.locator("#layer").input_value() == ""


def test_pointing_at_a_token_tells_what_it_is(view):
    found, _ = view(1280, "light")
    info = found.locator("#info")
    found.locator("#text i").nth(41).hover()
    assert "room" in info.text_content()
    assert "kept by 42% of all heads" in info.text_content()
    assert "position 41" in info.text_content()
    found.select_option("#layer", "5")
    assert "kept by 25% of heads of layer 5" in info.text_content()
    found.locator("#text").press("ArrowRight")
    assert "417↵" in info.text_content()
    assert "position 42" in info.text_content()


def test_a_tap_on_a_phone_tells_it_too(view):
    found, _ = view(390, "dark")
    found.locator("#text i").nth(40).tap()
    assert "position 40" in found.locator("#info").text_content()
    assert "<b>" in found.locator("#info").text_content()
    found.locator("#text i").nth(299).tap()
    assert "in the window" in found.locator("#info").text_content()


def test_a_span_leads_to_its_place(view):
    found, _ = view(390, "light")
    first = found.locator("#spans button").first
    assert first.text_content() == "42%<b> room 417"
    first.click()
    assert "position 40" in found.locator("#info").text_content()
    assert found.evaluate("getSelection().toString().trim()") == "<b> room 417"
    box = found.locator("#text i").nth(40).bounding_box()
    assert 0 < box["y"] < 800
