"""Memory that really runs out. In processes of their own, which have an address space to limit."""

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and RLIMIT_AS")

SETUP = """
import os, resource
from pathlib import Path
from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import OutOfMemoryError

def limit(mib):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + mib * 2**20, resource.RLIM_INFINITY))

def unlimit():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def make(**config):
    settings = dict(n_ctx=65_536, n_batch=128, n_ubatch=128, n_threads=1, n_threads_batch=1)
    snapkv = SnapKVConfig(window_size=16, **config)
    return Llama(os.environ["MODEL"], snapkv=snapkv, verbose=False, **settings)
"""


def test_a_prefill_that_finds_no_memory_leaves_the_context_usable(python):
    # all layers of 64,000 tokens take 190 MiB
    result = python(f"""{SETUP}
llm = make(budget=64, decode_cells=64, layer_group=6)
short = list(range(1000, 1100))
llm.prefill(short)
kept = llm.kept_positions()
limit(150)
try:
    llm.prefill(short * 640)
except OutOfMemoryError as e:
    print(e)
assert (llm.n_tokens, llm.last_prefill) == (0, None)
llm.prefill(short)  # within the same limit
assert (llm.kept_positions() == kept).all()
assert llm._ctx.n_free() == 64
""")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "; lower n_ctx, budget, layer_group or n_ubatch, or free memory" in result.stdout


def test_a_cache_that_finds_no_memory_is_an_error_and_no_crash(python):
    # 65,536 cells take 192 MiB
    result = python(f"""{SETUP}
make(budget=64, decode_cells=64).close()
limit(150)
try:
    make(budget=64_000, decode_cells=1536)
except OutOfMemoryError as e:
    print(e)
unlimit()
make(budget=64_000, decode_cells=1536).prefill([1000])
""")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "out of memory" in result.stdout


def test_no_memory_for_a_graphs_metadata_is_an_error_and_no_crash(python):
    # ggml would end the process where it gets none. How much a prefill takes depends on what the heap
    # still holds, so the limits climb, finely enough to meet every allocation, until one is enough.
    result = python(f"""{SETUP}
llm = make(budget=64, decode_cells=64)
short = list(range(1000, 1100))
llm.prefill(short)
kept = llm.kept_positions()
for mib in [*range(2, 140), 400]:
    limit(mib)
    try:
        llm.prefill(short)
        print("fits")
    except OutOfMemoryError as e:
        print(e)
    unlimit()
llm.prefill(short)
assert (llm.kept_positions() == kept).all()
""")
    assert result.returncode == 0, result.stderr[-2000:]
    outcomes = result.stdout.splitlines()
    assert "out of memory" in outcomes[0]
    assert outcomes[-1] == "fits"
    assert all("out of memory" in line or line == "fits" for line in outcomes), outcomes


@pytest.mark.parametrize("snapkv", ["SnapKVConfig(budget=2000)", "None"])
def test_a_model_that_finds_no_memory_is_an_error_wherever_it_is_missing(python, snapkv):
    # llama.cpp's context, llama_cpp's arrays, NumPy: each has its own word for it
    result = python(f"""{SETUP}
settings = dict(n_ctx=65_536, n_threads=1, n_threads_batch=1, verbose=False, flash_attn=True)
Llama(os.environ["MODEL"], n_ctx=64, verbose=False).close()  # what stays is loaded
for mib in [*range(10, 700, 45), 1000]:
    limit(mib)
    try:
        Llama(os.environ["MODEL"], snapkv={snapkv}, **settings).close()
        print("fits")
    except OutOfMemoryError as e:
        print(e)
    unlimit()
""")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stderr == ""
    outcomes = result.stdout.splitlines()
    assert "out of memory" in outcomes[0]
    assert outcomes[-1] == "fits"


def test_threads_that_cannot_start_are_an_error_and_no_crash(python):
    # OpenMP would end the process. A stack each, 8 MiB by default
    result = python(f"""{SETUP}
resource.setrlimit(resource.RLIMIT_STACK, (8 * 2**20, resource.RLIM_INFINITY))
for snapkv in (None, SnapKVConfig(budget=64, window_size=16, decode_cells=64)):
    settings = dict(n_ctx=256, n_batch=128, n_threads=100, n_threads_batch=100, verbose=False)
    llm = Llama(os.environ["MODEL"], snapkv=snapkv, flash_attn=True, **settings)
    limit(400)
    for n in (1, 100):
        llm.reset()
        try:
            llm.eval([1000] * n)
        except OutOfMemoryError as e:
            print(e)
    unlimit()
""")
    assert result.returncode == 0, result.stderr[-2000:]
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert all("100 thread(s) want 856 MiB" in line for line in lines), lines
