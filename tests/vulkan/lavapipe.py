"""Vulkan without a GPU, on Mesa's lavapipe, which runs shaders on the processor: our prefill is exact there.

    python tests/vulkan/lavapipe.py build/vulkan/bin

Runs test-snapkv-exact on the package's two models with all layers on that device and a cache in f16 and in
q8_0. The Mesa of Debian 12 (22.3) writes into buffers that are gone, so kept-buffers.c keeps them. Started by
`make test.vulkan`, which builds for Vulkan; not part of `make test`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

from snapkv_local.models.resolve import demo_model, needle_model

DRIVERS = Path("/usr/share/vulkan/icd.d")
GROUPS = "1,2,0"
KEPT_BUFFERS = Path(__file__).with_name("kept-buffers.c")


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
    kept_buffers = (args.bin / "kept-buffers.so").resolve()
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", kept_buffers, KEPT_BUFFERS, "-ldl"]
    subprocess.run(command, check=True)

    failed = False
    for model, kv_type in product((needle_model(), demo_model()), ("f16", "q8_0")):
        options = ("-n", "120", "-u", "64", "-g", GROUPS, "-b", "64", "-w", "16", "-t", kv_type)
        found = said(kept_buffers, args.bin / "test-snapkv-exact", *options, str(model))
        runs = [(run["G"], run["max_diff"]) for run in json.loads(found)["runs"]]
        differences = ", ".join(f"G = {group}: difference {diff}" for group, diff in runs)
        print(f"{model.name}, KV in {kv_type}: {differences}", flush=True)
        failed |= not runs or any(diff != 0 for _, diff in runs)
    return int(failed)


def said(preloaded: Path, program: Path, *options: str) -> str:
    """What it prints on stdout; it has to find lavapipe."""
    environment = {**os.environ, "LD_PRELOAD": str(preloaded)}
    done = subprocess.run([program, *options], env=environment, capture_output=True, text=True)
    heard = done.stdout + done.stderr
    if "llvmpipe" not in heard or done.returncode != 0:
        sys.exit(f"error: {program.name} ended with {done.returncode}:\n{heard[-2000:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
