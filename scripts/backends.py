"""The table of ggml's backends in docs/gpus.md, from the register of csrc/upstream/devices.cpp.

    scripts/backends.py           # rewrite it
    scripts/backends.py --check   # fail if it differs

It asks the native library, which has to be built.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from table_parts import table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "gpus.md"
BEGIN = "<!-- backends: scripts/backends.py writes this -->\n"
END = "\n<!-- backends end -->"


def render(text: str) -> str:
    """The page with the table as the library has it."""
    from snapkv_local.native.register import register

    rows = [
        [
            line.name if line.title == line.name else f"{line.title} (`{line.name}`)",
            line.state,
            line.path,
            line.evidence,
        ]
        for line in register()
    ]
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    head = ["backend", "models are", "rows are scored and evicted by", "why"]
    table_text = "\n".join(table(head, rows))
    return f"{before}{BEGIN}{table_text}{END}{after}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    text = PAGE.read_text(encoding="utf-8")
    found = render(text)
    if args.check:
        if text != found:
            print(f"{PAGE.name} does not show the register; run `make tables`", file=sys.stderr)
        return int(text != found)
    PAGE.write_text(found, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
