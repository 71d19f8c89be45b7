"""Stage llama.cpp for a build: copy the needed part of the source and patch the copy.

Files that are as they should be are not touched, so that a changed patch recompiles only what it
concerns. Standard library only, since CMake runs this before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

from patches import load_queue, needed_files, patched, pinned_source, reader
from patchfile import PatchError

MANIFEST = ".staged.json"  # file -> SHA-256, as staged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dest", type=Path, help="folder to stage into")
    parser.add_argument(
        "--unpatched", action="store_true", help="llama.cpp as it is, to compare with"
    )
    args = parser.parse_args()
    try:
        stage(pinned_source(), args.dest, args.unpatched)
    except PatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def stage(source: Path, dest: Path, unpatched: bool) -> None:
    contents = {file: (source / file).read_bytes() for file in needed_files(source)}
    patches = [] if unpatched else load_queue()
    for file, text in patched(patches, reader(source)).items():
        contents[file] = text.encode("utf-8")
    wanted = {file: digest(content) for file, content in contents.items()}
    manifest = dest / MANIFEST
    staged = json.loads(manifest.read_text()) if manifest.exists() else {}
    if staged == wanted:
        return  # and edits by hand stay: a hook is developed in the staged tree
    stop_at_edits(dest, staged, wanted)
    for file in staged.keys() - wanted.keys():
        (dest / file).unlink(missing_ok=True)
    written = 0
    for file, content in contents.items():
        target = dest / file
        if target.exists() and target.read_bytes() == content:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.write_bytes(content)
        partial.replace(target)
        written += 1
    manifest.write_text(json.dumps(wanted))
    print(f"-- staged llama.cpp with {len(patches)} patches: {written} files written")


def stop_at_edits(dest: Path, staged: dict[str, str], wanted: dict[str, str]) -> None:
    """Refuse to overwrite what was edited in the staged tree since and is in no patch yet."""
    for file, then in staged.items():
        target = dest / file
        if target.exists() and digest(target.read_bytes()) not in (then, wanted.get(file)):
            raise PatchError(
                f"{target} was edited and no patch has the edit: keep it with "
                f"'scripts/patches.py export {dest}', or delete {dest} to drop it."
            )


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
