"""Collect the licences of what is linked into our libraries out of a staged llama.cpp tree.

Run by CMake; the result is installed as snapkv_local/licenses. Some single-file libraries carry
their licence only inside the source file, so it is cut out of there. GCC's OpenMP library, which
auditwheel puts into wheels, has its own beside them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

# name of the licence file -> (file in the tree, pattern of the licence in it; None: the whole file)
LICENSES: dict[str, tuple[str, str | None]] = {
    "llama.cpp": ("LICENSE", None),
    "llamafile-sgemm": ("ggml/src/ggml-cpu/llamafile/sgemm.cpp", r"\A(?://.*\n)+"),
    "yarn": (
        "ggml/src/ggml-cpu/ops.cpp",
        r"// YaRN algorithm .*\n// MIT licensed\. Copyright .*\n",
    ),
    "miniaudio": ("vendor/miniaudio/miniaudio.h", r"/\*\nThis software is available as [\s\S]*\*/"),
    "rotate-bits": ("vendor/hash/rotate-bits/LICENSE.md", None),
    "sha1": ("vendor/hash/sha1/sha1.c", r"/\*[\s\S]*?\*/"),
    "sha256": ("vendor/hash/sha256/LICENSE", None),
    "xxhash": ("vendor/hash/xxhash/LICENSE", None),
    "sheredom-subprocess": (
        "vendor/sheredom/subprocess.h",
        r"/\*\s+This is free and unencumbered [\s\S]*?\*/",
    ),
    "stb_image": (
        "vendor/stb/stb_image.h",
        r"/\*\n-+\nThis software is available under [\s\S]*\*/",
    ),
}
LIBGOMP = Path(__file__).resolve().parent.parent / "cmake" / "libgomp.txt"
# Vendored libraries seen to; cpp-httplib and nlohmann are linked into test programs only.
VENDORED = {"cpp-httplib", "hash", "miniaudio", "nlohmann", "sheredom", "stb"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path, help="llama.cpp tree")
    parser.add_argument("dest", type=Path, help="folder for the licence files")
    args = parser.parse_args()
    new = {path.name for path in (args.tree / "vendor").iterdir() if path.is_dir()} - VENDORED
    if new:
        names = ", ".join(sorted(new))
        print(
            f"error: llama.cpp vendors {names} now: add the licence to {__file__}.", file=sys.stderr
        )
        return 1
    args.dest.mkdir(parents=True, exist_ok=True)
    for name, (file, pattern) in LICENSES.items():
        text = (args.tree / file).read_text(encoding="utf-8")
        match = re.search(pattern, text) if pattern else None
        if pattern and not match:
            print(f"error: no licence found in {file}: correct {__file__}.", file=sys.stderr)
            return 1
        licence = match[0].rstrip() + "\n" if match else text
        (args.dest / f"{name}.txt").write_text(licence, encoding="utf-8")
    shutil.copyfile(LIBGOMP, args.dest / LIBGOMP.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
