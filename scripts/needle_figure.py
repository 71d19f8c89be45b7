"""The needle model's answers by length and depth, from results/needle-depth-*.json.

    scripts/needle_figure.py           # draw docs/assets/needle.png and needle-dark.png
    scripts/needle_figure.py --check   # fail if they are not of these records

Without a record there is no figure.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import needle_tables
from snapkv_local.eval import heatmap

ROOT = Path(__file__).resolve().parent.parent
FIGURE = ROOT / "docs" / "assets" / "needle.png"
RESULTS = ROOT / "results"


def is_of(figure: Path, heat: heatmap.HeatMap) -> bool:
    """If a picture was drawn from these numbers, which it holds."""
    from PIL import Image

    if not figure.exists():
        return False
    with Image.open(figure) as picture:
        held = picture.info.get("Description")
    return held == json.dumps(heatmap.numbers(heat))


def main(results: Path = RESULTS, figure: Path = FIGURE) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if it differs")
    check = parser.parse_args().check
    record = needle_tables.joined(results, "needle-depth-*.json")
    if record is None:
        return 0
    (heat,) = heatmap.of(record)
    if all(is_of(heatmap.themed(figure, suffix), heat) for suffix in heatmap.THEMES):
        return 0
    if check:
        print(f"{figure.name} does not show results/; run `make tables`", file=sys.stderr)
        return 1
    heatmap.write_pngs(record, figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
