"""Vulkan without a GPU, on Mesa's lavapipe, which runs shaders on the processor: our prefill is exact there.

    python tests/vulkan/lavapipe.py build/vulkan/bin

Runs test-snapkv-exact on the package's two models with all layers on that device and a cache in f16. The
Mesa of Debian 12 (22.3) crashes in its own threads: always where a cache is in q8_0 or a
model has sliding windows, and at times otherwise. Started by `make test.vulkan`, which builds for Vulkan;
not part of `make test`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from snapkv_local.models.resolve import demo_model, needle_model

TRIES = 3  # as Mesa may crash
DRIVERS = Path("/usr/share/vulkan/icd.d")
GROUPS = "1,2,0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bin", type=Path, help="folder with the programs of a build for Vulkan")
    args = parser.parse_args()
    lavapipe = next(DRIVERS.glob("lvp_icd*.json"), None)
    if lavapipe is None:
        sys.exit(f"error: no lavapipe in {DRIVERS}: apt-get install mesa-vulkan-drivers")
    # llama.cpp leaves out Vulkan devices that are processors unless one is named, and we what is not proven
    os.environ |= {"VK_DRIVER_FILES": str(lavapipe), "VK_ICD_FILENAMES": str(lavapipe)}
    os.environ |= {"GGML_VK_VISIBLE_DEVICES": "0", "GGML_VK_DISABLE_ASYNC": "1"}
    os.environ["SNAPKV_UNPROVEN"] = "1"

    failed = False
    for model in (needle_model(), demo_model()):
        options = ("-n", "120", "-u", "64", "-g", GROUPS, "-b", "64", "-w", "16")
        found = json.loads(said(args.bin / "test-snapkv-exact", *options, str(model)))
        runs = [(run["G"], run["max_diff"]) for run in found["runs"]]
        print(model.name, ", ".join(f"G = {group}: difference {diff}" for group, diff in runs))
        failed |= not runs or any(diff != 0 for _, diff in runs)
    return int(failed)


def said(program: Path, *options: str) -> str:
    """What it prints on stdout; it has to find lavapipe."""
    for _ in range(TRIES):
        done = subprocess.run([program, *options], capture_output=True, text=True)
        if done.returncode >= 0:
            break
        print(f"{program.name}: ended by signal {-done.returncode}", file=sys.stderr)
    heard = done.stdout + done.stderr
    if "llvmpipe" not in heard or done.returncode != 0:
        sys.exit(f"error: {program.name} ended with {done.returncode}:\n{heard[-2000:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
