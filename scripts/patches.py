"""The patch queue in patches/: apply, check, export, rebase, stats.

patches/series names the patches in order, patches/README.md says what a patch looks like. Each
upstream file belongs to one patch, so that an edited tree can be written back without further
bookkeeping. Standard library only, since CMake uses this before anything is installed.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from patchfile import Hunk, Patch, PatchError, apply_hunks, diff, parse, read, split_lines, write

ROOT = Path(__file__).resolve().parent.parent
QUEUE = ROOT / "patches"
VENDOR = ROOT / "vendor" / "llama.cpp"
MAX_ADDED = 150  # lines in the whole queue: it holds hooks only, real code is in csrc/


def load_queue(queue: Path = QUEUE) -> list[Patch]:
    names = [line.strip() for line in read(queue / "series").splitlines()]
    patches = []
    for name in names:
        if not name or name.startswith("#"):
            continue
        if not (queue / name).is_file():
            raise PatchError(
                f"patches/series names {name}, which is missing: add it or drop the line."
            )
        patches.append(parse(name, read(queue / name)))
    owner: dict[str, str] = {}
    for patch in patches:
        for file in patch.files:
            if owner.setdefault(file, patch.name) != patch.name:
                raise PatchError(
                    f"{patch.name}: {file} belongs to {owner[file]} already; list it once."
                )
    return patches


def patched(patches: list[Patch], original: Callable[[str], str]) -> dict[str, str]:
    """New text of every file that the queue changes; original(file) gives the old one."""
    texts: dict[str, str] = {}
    for patch in patches:
        changed = {f: apply_hunks(patch.name, f, h, original(f)) for f, h in patch.diffs.items()}
        for hook in patch.hooks if changed else []:
            if not any(re.search(rf"\b{re.escape(hook)}\b", text) for text in changed.values()):
                raise PatchError(f"{patch.name}: hook {hook} is not in the files it changes.")
        texts.update(changed)
    return texts


def reader(tree: Path) -> Callable[[str], str]:
    def original(file: str) -> str:
        if not (tree / file).is_file():
            raise PatchError(
                f"a patch changes {file}, which {tree} lacks: is it the pinned llama.cpp?"
            )
        return read(tree / file)

    return original


def apply(patches: list[Patch], tree: Path) -> None:
    """Patch the tree in place; it stays as it was unless the whole queue fits."""
    for file, text in patched(patches, reader(tree)).items():
        write(tree / file, text)


def check(patches: list[Patch], source: Path, queue: Path = QUEUE) -> None:
    """The queue applies on the source, and export would write the same bytes."""
    texts = patched(patches, reader(source))
    for patch in patches:
        unchanged = [file for file in patch.files if file not in patch.diffs]
        if unchanged:
            raise PatchError(f"{patch.name} lists {', '.join(unchanged)} but does not change it.")
        if rendered(patch, reader(source), texts.__getitem__) != read(queue / patch.name):
            raise PatchError(
                f"{patch.name} is not as export writes it: run scripts/patches.py export."
            )


def export(patches: list[Patch], source: Path, edited: Path, queue: Path = QUEUE) -> None:
    """Write the diff of each patch anew from an edited tree; the headers stay."""
    owned = {file for patch in patches for file in patch.files}
    for file in sorted(needed_files(source) | needed_files(edited)):
        if not (edited / file).is_file():
            raise PatchError(f"{edited} lacks {file}: put it back, hooks delete no upstream file.")
        if not (source / file).is_file():
            raise PatchError(f"{edited / file} is not upstream's: move it to csrc/, or delete it.")
        if file not in owned and (edited / file).read_bytes() != (source / file).read_bytes():
            names = ", ".join(patch.name for patch in patches) or "a new patch"
            raise PatchError(f"{file} is changed and in no patch: list it under Files: in {names}.")
    for patch in patches:
        write(queue / patch.name, rendered(patch, reader(source), reader(edited)))


def rendered(patch: Patch, old: Callable[[str], str], new: Callable[[str], str]) -> str:
    diffs = [diff(file, old(file), new(file)) for file in sorted(patch.files)]
    return patch.header.rstrip("\n") + "\n\n" + "".join(diffs)


def needed_files(tree: Path) -> set[str]:
    """Relative POSIX paths of the files that the build needs, by the list in the pin."""
    files: set[str] = set()
    for part in json.loads(read(VENDOR / "pin.json"))["paths"]:
        found = [tree / part] if (tree / part).is_file() else (tree / part).rglob("*")
        files.update(path.relative_to(tree).as_posix() for path in found if path.is_file())
    return files


def rebase(patches: list[Patch], old: Path, new: Path, out: Path) -> list[str]:
    """Copy the new source to out with every hunk that still fits. Returns the conflicts, which are
    to be solved there by hand before the export."""
    if out.exists():
        raise PatchError(f"{out} exists: delete it, or name another folder with --out.")
    for file in sorted(needed_files(new)):
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(new / file, out / file)
    conflicts = []
    texts = patched(patches, reader(old))
    for patch in patches:
        for file in patch.diffs:
            if not (new / file).is_file():
                conflicts.append(f"{patch.name}: {file} is gone")
                continue
            merged, failed = merge(read(old / file), texts[file], read(new / file))
            write(out / file, merged)
            conflicts += [f"{patch.name}: {file}: {reason}" for reason in failed]
    return conflicts


def merge(base: str, ours: str, theirs: str) -> tuple[str, list[str]]:
    """Three-way merge by lines: a change of ours goes where its lines and both neighbours went."""
    a, b, c = split_lines(base), split_lines(ours), split_lines(theirs)
    went = {-1: -1, len(a): len(c)}  # line of base -> line of theirs, for unchanged lines
    for block in difflib.SequenceMatcher(None, a, c, autojunk=False).get_matching_blocks():
        went.update((block.a + i, block.b + i) for i in range(block.size))
    out = list(c)
    failed: list[str] = []
    changes = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    for tag, i1, i2, j1, j2 in reversed(changes):  # from the end, so that line numbers hold
        if tag == "equal":
            continue
        before = went.get(i1 - 1)
        if before is not None and all(
            went.get(i1 + k) == before + 1 + k for k in range(i2 - i1 + 1)
        ):
            out[before + 1 : before + 1 + i2 - i1] = b[j1:j2]
        else:
            lines = [f"    -{line}" for line in a[i1:i2]] + [f"    +{line}" for line in b[j1:j2]]
            failed.append(f"old line {i1 + 1} moved or changed, do by hand:\n{''.join(lines)}")
    return "".join(out), failed[::-1]


def stats(patches: list[Patch]) -> tuple[list[tuple[int, int, str, str]], list[str]]:
    """Rows (added lines, removed lines, file, patch), and what breaks the queue's rules."""
    rows, broken = [], []
    for patch in patches:
        for file, hunks in patch.diffs.items():
            tags = [tag for hunk in hunks for tag, _ in hunk.lines]
            rows.append((tags.count("+"), tags.count("-"), file, patch.name))
            for line in [line for hunk in hunks for line in plain_deletions(hunk)]:
                broken.append(
                    f"{patch.name}: {file} deletes {line.strip()!r} and replaces it by nothing"
                )
    added = sum(row[0] for row in rows)
    if added > MAX_ADDED:
        broken.append(f"{added} added lines, at most {MAX_ADDED} are allowed: move code to csrc/")
    return rows, broken


def plain_deletions(hunk: Hunk) -> Iterator[str]:
    """Removed lines that no added line of the same block takes up: a line that a hook is put into
    keeps at least half of its characters."""
    removed: list[str] = []
    added: list[str] = []
    for tag, text in (*hunk.lines, (" ", "")):
        if tag == "+":
            added.append(text.strip())
        elif tag == "-" and not added:
            removed.append(text.strip())
        else:
            for line in removed:
                close = difflib.get_close_matches(line, added, n=1, cutoff=0.5)
                if not close:
                    yield line
                else:
                    added.remove(close[0])
            removed, added = ([text.strip()] if tag == "-" else []), []


def pinned_source() -> Path:
    command = [sys.executable, str(VENDOR / "fetch.py")]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise PatchError("the pinned source is not there; the reason is above.")
    return Path(result.stdout.strip())


def main() -> int:
    parser = argparse.ArgumentParser(description="Work on the patch queue in patches/.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("apply", help="patch a llama.cpp tree in place")
    verb.add_argument("tree", type=Path)
    verbs.add_parser("check", help="the queue applies, and export would write the same bytes")
    verb = verbs.add_parser("export", help="write the patches anew from an edited llama.cpp tree")
    verb.add_argument("tree", type=Path)
    verb = verbs.add_parser("rebase", help="carry the queue over to another llama.cpp")
    verb.add_argument("old", type=Path, help="tree that the queue applies to")
    verb.add_argument("new", type=Path, help="tree to carry it over to")
    verb.add_argument("--out", type=Path, default=ROOT / "build" / "rebase", help="merged tree")
    verbs.add_parser("stats", help="count lines; fails when the queue breaks its rules")
    args = parser.parse_args()
    try:
        return run(args)
    except PatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    patches = load_queue()
    failures: list[str] = []
    if args.verb == "apply":
        apply(patches, args.tree)
        print(f"{len(patches)} patches applied")
    elif args.verb == "check":
        check(patches, pinned_source())
        print(f"{len(patches)} patches apply, and export writes the same bytes")
    elif args.verb == "export":
        export(patches, pinned_source(), args.tree)
        print("\n".join(f"patches/{patch.name}" for patch in patches))
    elif args.verb == "rebase":
        failures = rebase(patches, args.old, args.new, args.out)
        print(f"{len(failures)} conflicts; the merged tree is {args.out}")
    else:
        rows, failures = stats(patches)
        total = (sum(row[0] for row in rows), sum(row[1] for row in rows))
        for added, removed, *what in [
            *rows,
            (*total, f"{len(rows)} files", f"{len(patches)} patches"),
        ]:
            print(f"+{added:<4} -{removed:<4} {'  '.join(what)}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
