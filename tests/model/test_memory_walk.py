"""Less and less address space: scripts/memory_walk.py at a few limits near its edges."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc")

SCRIPT = Path(__file__).parents[2] / "scripts" / "memory_walk.py"


@pytest.fixture(scope="module")
def walk():
    spec = importlib.util.spec_from_file_location("memory_walk", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


# before the engine is loaded, in the context, in llama_cpp's arrays, in a batch, enough
@pytest.mark.parametrize("mb", [100, 180, 300, 450, 540, 600, 640, 1000])
def test_run_says_that_memory_has_run_out(walk, mb, tmp_path):
    outcome = walk.walk("run", mb, tmp_path)
    assert outcome.fault == "", outcome
    assert (outcome.status == 0) == (mb == 1000), outcome
    assert mb == 1000 or "memory" in outcome.said or "address space" in outcome.said


@pytest.mark.parametrize("mb", [300, 640, 700])
def test_ingest(walk, mb, tmp_path):
    (tmp_path / "text").write_text("The pump stands in room 4711. " * 6)
    outcome = walk.walk("ingest", mb, tmp_path)
    assert outcome.fault == "", outcome
    assert outcome.status in (0, 1)


@pytest.mark.parametrize("mb", [450, 640, 690, 1000])
def test_serve_ends_or_answers(walk, mb, tmp_path):
    outcome = walk.walk("serve", mb, tmp_path)
    assert outcome.fault == "", outcome
    assert outcome.status == 0 or outcome.said.startswith("Error: ")
    if mb == 1000:
        assert outcome.said == "answered with 200"


def test_where_ggml_aborts_the_process_ends_with_one_line():
    code = (
        "from snapkv_local import process; process.is_own = True\n"
        "from snapkv_local.native import api, binding\n"
        "import ctypes\n"
        "abort = ctypes.CDLL(str(binding.LIB_DIR / 'libggml-base.so')).ggml_abort\n"
        "abort(b'/build/ggml.c', 7, b'GGML_ASSERT(%s) failed', b'x')\n"
    )
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr == (
        "Error: llama.cpp: ended the process (ggml.c:7: GGML_ASSERT(x) failed); "
        "this is a fault: please report this line\n"
    )
