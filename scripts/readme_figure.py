"""README's figure, from the records in results/: memory and decode speed by the prompt's length.

    scripts/readme_figure.py           # draw it, docs/assets/memory-and-speed.svg
    scripts/readme_figure.py --check   # fail if it shows other numbers than the records

Matplotlib's versions draw the same numbers with other bytes. So the file holds its numbers as text,
too, and these are what is compared.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from pathlib import Path
from typing import Any

from snapkv_local.report.units import GIB

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
FIGURE = ROOT / "docs" / "assets" / "memory-and-speed.svg"

# Of the 8B shape, alone on the card, all layers on it; with SnapKV one layer at a time. By record,
# and by whether it is the full cache.
CASES = {
    "gpu-nvidia-h200": {
        "SnapKV": ["prefill-8b-16k", "decode-8b-64k", "prefill-8b-128k"],
        "full cache": ["prefill-8b-16k-plain", "prefill-8b-128k-plain"],
    },
    "gpu-nvidia-h100-80gb-hbm3": {
        "SnapKV": ["prefill-8b-128k-g1", "headline-8b-512k"],
        "full cache": ["prefill-8b-128k-plain"],
    },
}
# Okabe and Ito's blue and vermilion differ for all eyes, and on paper in lightness
COLOURS = {"SnapKV": "#0072b2", "full cache": "#d55e00"}
MARKERS = {"H200": "o", "H100": "s"}
INK = "#1f2933"

Points = list[dict[str, Any]]


def points(results: Path) -> Points:
    """A line for each card and way: tokens of the prompt, bytes of the device, tokens/s.

    Raises:
        KeyError: a record has not got one of the cases.
    """
    lines = []
    for name, ways in CASES.items():
        record = json.loads((results / f"{name}.json").read_text())
        card = re.search(r"[A-Z]+\d+", record["device"]["name"])
        assert card is not None, name
        for way, cases in ways.items():
            found = [record["summary"][case] for case in cases]
            lines.append(
                {
                    "card": card[0],
                    "way": way,
                    "n_prompt": [case["n_prompt"] for case in found],
                    "bytes": [case["peak_device"] for case in found],
                    "decode": [round(case["decode_tokens_per_second"], 1) for case in found],
                }
            )
    return lines


def drawn(figure: str) -> Points | None:
    """The numbers that a figure was drawn from; None if it holds none."""
    held = re.search(r"<dc:description>(.*?)</dc:description>", figure, re.DOTALL)
    found: Points | None = json.loads(html.unescape(held[1])) if held else None
    return found


def draw(lines: Points, file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(
        {
            "svg.hashsalt": "snapkv-local",
            "font.size": 11,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": "#9aa5b1",
            "xtick.color": INK,
            "ytick.color": INK,
        }
    )
    # a ground of its own, so that it reads on dark pages as on light ones
    figure, (memory, speed) = plt.subplots(1, 2, figsize=(9, 3.6), facecolor="white")
    for line in lines:
        style = {
            "color": COLOURS[line["way"]],
            "marker": MARKERS[line["card"]],
            "linestyle": "-" if line["way"] == "SnapKV" else "--",
            "label": f"{line['way']}, {line['card']}",
            "linewidth": 2,
            "markersize": 7,
        }
        memory.plot(line["n_prompt"], [value / GIB for value in line["bytes"]], **style)
        speed.plot(line["n_prompt"], line["decode"], **style)
    memory.axhline(8, color="#5b6773", linewidth=1, linestyle=":")
    memory.annotate("8 GiB", (2**19, 8), (0, 4), textcoords="offset points", ha="right")
    memory.set_title("Peak GPU memory, GiB", loc="left")
    speed.set_title("Decode, tokens per second", loc="left")
    for axes in (memory, speed):
        axes.set_xscale("log", base=2)
        axes.set_xticks([2**n for n in range(14, 20)], [f"{2 ** (n - 10)}K" for n in range(14, 20)])
        axes.set_xlim(2**13.7, 2**19.3)
        axes.set_xlabel("tokens of the prompt")
        axes.set_ylim(bottom=0)
        axes.margins(y=0.15)
        axes.grid(axis="y", color="#e4e8ec")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    memory.set_ylim(0, 24)
    speed.set_ylim(0, 360)
    handles, labels = memory.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    metadata = {
        "Title": "Memory and decode speed by the length of the prompt",
        "Description": json.dumps(lines),
        "Date": None,
    }
    figure.savefig(file, metadata=metadata)
    plt.close(figure)
    # matplotlib leaves blanks at the ends of lines
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if it differs")
    check = parser.parse_args().check
    lines = points(RESULTS)
    if FIGURE.exists() and drawn(FIGURE.read_text(encoding="utf-8")) == lines and check:
        return 0
    if check:
        name = FIGURE.relative_to(ROOT)
        print(f"{name} does not show results/; run `make tables`", file=sys.stderr)
        return 1
    draw(lines, FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
