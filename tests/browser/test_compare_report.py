"""The page of `snapkv-local compare` in a browser: light, dark, and on a phone."""

import json
from functools import partial
from pathlib import Path

import pytest

from snapkv_local.compare.page import page
from snapkv_local.compare.reader import load, read

ROOT = Path(__file__).resolve().parents[2]
GPU_RECORD = ROOT / "results" / "gpu-nvidia-h100-80gb-hbm3.json"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of two records, one of them under another device's name."""
    other = {**json.loads(GPU_RECORD.read_text()), "device": {"name": "Another GPU"}}
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page([load(GPU_RECORD), read(other, "other.json")]), encoding="utf-8")
    return path


@pytest.fixture
def view(view_file, report):
    """The page in a window of a width and a colour scheme, with its noise."""
    return partial(view_file, report)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(view, width):
    found, noise = view(width, "light")
    assert found.evaluate("document.documentElement.scrollWidth") <= width
    widths = found.eval_on_selector_all(
        "figure svg", "all => all.map(svg => svg.getBoundingClientRect().width)"
    )
    assert len(widths) == 10
    assert all(250 < w <= width for w in widths)
    assert noise == [found.url]


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_page_and_its_plots_have_the_scheme(view, scheme, dark):
    found, _ = view(1280, scheme)

    def brightness(selector, name):
        colour = found.eval_on_selector(selector, f"e => getComputedStyle(e).{name}")
        parts = [int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(", ")]
        return sum(parts) / 3

    assert (brightness("body", "backgroundColor") < 60) == dark
    assert (brightness("figure svg text", "fill") > 200) == dark


def test_labels_of_an_axis_do_not_touch(view):
    found, _ = view(390, "light")
    overlaps = found.evaluate(
        """() => [...document.querySelectorAll('[id^="matplotlib.axis_"]')].flatMap(axis => {
            const boxes = [...axis.querySelectorAll('[id^="xtick"] text, [id^="ytick"] text')]
                .map(text => text.getBoundingClientRect());
            return boxes.filter((a, i) => boxes.slice(i + 1).some(b =>
                a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom));
        }).length"""
    )
    assert overlaps == 0
