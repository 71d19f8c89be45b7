"""Bring the pinned llama.cpp source into vendor/llama.cpp/source and print where it is.

The source is taken out of the llama-cpp-python source distribution: that package's ctypes bindings
match exactly one llama.cpp commit, and the file comes from the package index that pip already uses.
Standard library only, since CMake runs this before anything is installed.

    SNAPKV_LLAMA_CPP_SOURCE=DIR   use this llama.cpp tree, fetch nothing
    SNAPKV_SDIST=FILE             take the source distribution from this file, for machines without
                                  a package index; its hash is checked all the same
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

HERE = Path(__file__).resolve().parent
PIN: dict[str, Any] = json.loads((HERE / "pin.json").read_text(encoding="utf-8"))
SOURCE = HERE / "source"
STAMP = ".complete.json"


class FetchError(Exception):
    """The pinned source cannot be had; the message says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sdist",
        action="store_true",
        help="fetch the llama-cpp-python source distribution and print its path instead",
    )
    args = parser.parse_args()
    try:
        print(sdist() if args.sdist else source())
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def source() -> Path:
    """The llama.cpp tree to build from: complete, and of the pinned version."""
    local = os.environ.get("SNAPKV_LLAMA_CPP_SOURCE")
    if local:
        return local_tree(Path(local))
    if not is_complete(SOURCE):
        extract(sdist(), SOURCE)
    return SOURCE


def sdist() -> Path:
    """The llama-cpp-python source distribution, its hash checked."""
    given = os.environ.get("SNAPKV_SDIST")
    if given:
        if not Path(given).is_file():
            raise FetchError(
                f"SNAPKV_SDIST={given} is not a file; name {PIN['sdist']} or unset it."
            )
        return verified(Path(given))
    path = HERE / PIN["sdist"]
    if not path.exists():
        download(path)
    return verified(path)


def verified(path: Path) -> Path:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != PIN["sha256"]:
        raise FetchError(
            f"{path} has SHA-256 {digest.hexdigest()}, pinned is {PIN['sha256']}: it is truncated "
            "or not the pinned file. Delete it and run again; if that repeats, your package index "
            "serves another file, so name a good one with SNAPKV_SDIST."
        )
    return path


def download(dest: Path) -> None:
    """pip gets the file, so index, proxy and certificates are the user's own."""
    name = "llama-cpp-python"
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=HERE) as tmp:
        # With a hash pip refuses a wrong file before it runs any code out of it to read metadata.
        requirement = Path(tmp, "requirement.txt")
        requirement.write_text(f"{name}=={PIN['llama_cpp_python']} --hash=sha256:{PIN['sha256']}\n")
        command = [*pip_command(), "download", "--no-deps", "--no-binary", name]
        command += ["--dest", tmp, "--requirement", str(requirement)]
        # stdout carries the resulting path, so pip's progress goes to stderr
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
            raise FetchError(
                f"pip could not download {PIN['sdist']}; its message is above. Repair the "
                "connection to the package index, or get the file elsewhere and name it with "
                f"SNAPKV_SDIST, or name a llama.cpp tree of commit {PIN['llama_cpp_commit'][:9]} "
                "with SNAPKV_LLAMA_CPP_SOURCE."
            )
        verified(Path(tmp, PIN["sdist"])).replace(dest)


def pip_command() -> list[str]:
    """A pip that runs. The interpreter of an isolated build environment often has none itself."""
    base: str | None = getattr(sys, "_base_executable", None)
    commands = [[sys.executable, "-m", "pip"], [sys.executable, "-I", "-m", "pip"]]
    commands += [[python, "-m", "pip"] for python in (base, shutil.which("python3")) if python]
    commands += [[pip] for pip in (shutil.which("pip3"), shutil.which("pip")) if pip]
    for command in commands:
        version = subprocess.run([*command, "--version"], capture_output=True, check=False)
        if version.returncode == 0:
            return command
    raise FetchError(
        f"no pip found to download {PIN['sdist']} with. Install pip for {sys.executable}, or name "
        "the file with SNAPKV_SDIST, or name a llama.cpp tree with SNAPKV_LLAMA_CPP_SOURCE."
    )


def extract(archive: Path, dest: Path) -> None:
    """Unpack the needed part beside dest and rename it: dest is whole or absent at any time."""
    root = PurePosixPath(PIN["sdist"].removesuffix(".tar.gz"), "vendor", "llama.cpp")
    print(f"-- extracting llama.cpp from {archive}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix=".extract-", dir=dest.parent) as tmp:
        tree = Path(tmp, "tree")
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not member.isfile() or root not in path.parents:
                    continue
                path = path.relative_to(root)
                if ".." in path.parts or not is_needed(path):
                    continue
                target = tree / path
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                if content:
                    with target.open("wb") as file:
                        shutil.copyfileobj(content, file)
        missing = [path for path in PIN["paths"] if not (tree / path).exists()]
        if missing:
            raise FetchError(f"{archive} lacks {', '.join(missing)}: correct paths in pin.json.")
        (tree / STAMP).write_text(json.dumps(stamp(tree)))
        if dest.exists():
            dest.rename(Path(tmp, "old"))
        tree.rename(dest)


def is_needed(path: PurePosixPath) -> bool:
    return any(str(p) in PIN["paths"] for p in (path, *path.parents))


def is_complete(tree: Path) -> bool:
    file = tree / STAMP
    return file.is_file() and json.loads(file.read_text()) == stamp(tree)


def stamp(tree: Path) -> dict[str, object]:
    """Tells a tree that is damaged, or was extracted for another pin, from a complete one."""
    sizes = [p.stat().st_size for p in tree.rglob("*") if p.is_file() and p.name != STAMP]
    return {"pin": PIN, "files": len(sizes), "bytes": sum(sizes)}


def local_tree(tree: Path) -> Path:
    """A tree that the user names: it must be llama.cpp, and of the version that the pin names."""
    tree = tree.resolve()
    missing = [path for path in PIN["paths"] if not (tree / path).exists()]
    if missing:
        raise FetchError(
            f"SNAPKV_LLAMA_CPP_SOURCE={tree} is not a llama.cpp tree, it has no {missing[0]}: name "
            "a checkout of llama.cpp, or unset it."
        )
    text = (tree / "CMakeLists.txt").read_text(encoding="utf-8")
    parts = re.findall(r"set\(LLAMA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)\)", text)
    if ".".join(parts) != PIN["llama_cpp_version"]:
        raise FetchError(
            f"SNAPKV_LLAMA_CPP_SOURCE={tree} is llama.cpp {'.'.join(parts) or 'of no version'}, "
            f"pinned is {PIN['llama_cpp_version']}: the bindings of llama-cpp-python "
            f"{PIN['llama_cpp_python']} fit no other. Check out {PIN['llama_cpp_commit']}."
        )
    return tree


if __name__ == "__main__":
    sys.exit(main())
