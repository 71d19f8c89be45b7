"""Try a wheel as somebody does who has no compiler, and write results/wheel-PLATFORM.json.

    python3 measure/wheel.py snapkv_local-VERSION-TAG.whl

A new virtual environment gets the wheel with pip, as README tells it, and `snapkv-local run` then
reads a document with the package's own model. The PATH of all that has the environment's programs
and nothing else, so that a compiler or CMake would be missed. Times include what pip downloads; on a busy
machine the seconds of the processor say more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # as they are here, installed or not

from licenses import LIBGOMP, LICENSES  # noqa: E402
from snapkv_local.bench import record as records  # noqa: E402

DOCUMENT = ROOT / "snapkv_local" / "demo" / "station.txt"
QUESTION = "In which room does the cooling pump stand?"
TOOLS = ("gcc", "g++", "cc", "c++", "clang", "cmake", "ninja", "make")
# what a wheel consists of: the first folder or ending that fits
PARTS = (
    ("libraries", lambda name: "/lib/" in name or ".libs/" in name),
    ("licences", lambda name: "/licenses/" in name),
    ("model", lambda name: name.endswith(".gguf")),
    ("python", lambda name: True),
)


def contents(wheel: Path) -> dict[str, Any]:
    """Sizes in bytes, as files and packed, and the names of the libraries and licences.

    Args:
        wheel: a file.

    Returns:
        Also what the libraries were built with, as their own file has it.
    """
    parts = {part: {"files": 0, "bytes": 0, "bytes_packed": 0} for part, _ in PARTS}
    names: dict[str, list[str]] = {"libraries": [], "licences": []}
    with zipfile.ZipFile(wheel) as archive:
        build = json.loads(archive.read("snapkv_local/lib/build.json"))
        for entry in archive.infolist():
            if entry.is_dir():  # auditwheel writes entries of folders, too
                continue
            part = next(part for part, fits in PARTS if fits(entry.filename))
            parts[part]["files"] += 1
            parts[part]["bytes"] += entry.file_size
            parts[part]["bytes_packed"] += entry.compress_size
            if part in names:
                names[part].append(entry.filename.rpartition("/")[2])
    return {
        "bytes": wheel.stat().st_size,
        "bytes_unpacked": sum(part["bytes"] for part in parts.values()),
        "parts": parts,
        "build": build,
        **{kind: sorted(found) for kind, found in names.items()},
    }


def missing_licences(found: dict[str, Any]) -> list[str]:
    """Names of licence files that the wheel should have, and has not.

    Args:
        found: of contents().
    """
    needed = {"LICENSE", *(f"{name}.txt" for name in LICENSES)}
    if any(name.startswith("libgomp") for name in found["libraries"]):
        needed.add(LIBGOMP.name)  # put into the wheel by auditwheel
    return sorted(needed - set(found["licences"]))


class Place:
    """A new environment in a folder, whose PATH holds its own programs only.

    Args:
        folder: where to; its home is there, too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        self.environment = {"PATH": str(self.bin), "HOME": str(folder), "LANG": "C.UTF-8"}
        self.run(sys.executable, "-m", "venv", str(folder / "venv"))

    def run(self, *command: str) -> float:
        """Seconds that a command takes.

        Raises:
            SystemExit: it fails, with the end of what it says.
        """
        began = time.monotonic()
        result = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True
        )
        if result.returncode != 0:
            end = "\n".join((result.stdout + result.stderr).splitlines()[-20:])
            raise SystemExit(f"error: {' '.join(command)} failed:\n{end}")
        return time.monotonic() - began

    def pip(self, *arguments: str) -> float:
        """Seconds of an installation; nothing that pip has kept is used."""
        pip = [str(self.bin / "python"), "-m", "pip", "--disable-pip-version-check"]
        return self.run(*pip, "install", "--no-cache-dir", "--quiet", *arguments)

    def tools(self) -> list[str]:
        """Compilers and the like that the environment finds."""
        return [tool for tool in TOOLS if shutil.which(tool, path=self.environment["PATH"])]

    def ask(self) -> dict[str, Any]:
        """An answer of the package's own model: its text, and seconds until it begins and ends."""
        command = [str(self.bin / "snapkv-local"), "run", "needle", "--file", str(DOCUMENT)]
        began, first, text = time.monotonic(), None, b""
        with (self.folder / "run.log").open("w+b") as log:
            process = subprocess.Popen(
                [*command, "--prompt", QUESTION],
                env=self.environment,
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            assert process.stdout is not None
            while letter := process.stdout.read(1):
                first = first or time.monotonic() - began
                text += letter
            if process.wait() != 0 or first is None:
                log.seek(0)
                raise SystemExit(f"error: snapkv-local run failed:\n{log.read().decode()}")
        return {
            "question": QUESTION,
            "answer": text.decode().strip(),
            "seconds_to_first_token": round(first, 2),
            "seconds": round(time.monotonic() - began, 2),
        }


def installed(wheel: Path, folder: Path) -> dict[str, Any]:
    """What installing a wheel takes, and what it then does."""
    load = os.getloadavg()[0]
    place = Place(folder)
    bindings = place.pip("-r", str(ROOT / "requirements.txt"))
    package = place.pip(str(wheel))
    answers = [place.ask() for _ in range(2)]  # the first one compiles the Python files
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    tree = folder / "venv" / "lib"
    ours = [path for path in tree.rglob("snapkv_local*/**/*") if path.is_file()]
    everything = [path for path in tree.rglob("*") if path.is_file()]
    return {
        "tools_on_the_path": place.tools(),
        "processes_before": round(load, 1),
        "seconds_processor": round(used.ru_utime + used.ru_stime, 1),
        "seconds_install": round(bindings + package, 2),
        "seconds_install_bindings": round(bindings, 2),
        "seconds_to_first_token": round(
            bindings + package + answers[0]["seconds_to_first_token"], 2
        ),
        "bytes_installed": sum(path.stat().st_size for path in ours),
        "bytes_installed_with_all_it_needs": sum(path.stat().st_size for path in everything),
        "answers": answers,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder for the record")
    parser.add_argument("--note", help="what a reader of the record should know")
    args = parser.parse_args(arguments)
    wheel = args.wheel.resolve()
    found = contents(wheel)
    if missing := missing_licences(found):
        raise SystemExit(f"error: {wheel.name} lacks the licences {', '.join(missing)}.")
    with tempfile.TemporaryDirectory() as folder:
        result = installed(wheel, Path(folder))
    platform = wheel.stem.rpartition("-")[2]
    record = {
        "format": records.FORMAT,
        "date": date.today().isoformat(),
        "command": f"python3 measure/wheel.py {wheel.name}",
        "commit": records.commit(ROOT),
        "machine": records.machine(),
        "python": sys.version.split()[0],
        "wheel": wheel.name,
        "note": args.note,
        "contents": found,
        "installed": result,
    }
    name = "wheel-linux-x86_64" if platform.endswith("linux_x86_64") else f"wheel-{platform}"
    if "manylinux" in platform:
        name = "wheel-linux-" + platform.split("_", 3)[3]
    args.out.mkdir(parents=True, exist_ok=True)
    records.write(args.out / f"{name}.json", record)
    print(f"{wheel.name}: {found['bytes'] / 2**20:.1f} MiB, {result['answers'][0]['answer']!r}")
    print(f"installed and first token after {result['seconds_to_first_token']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
