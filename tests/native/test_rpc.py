"""llama.cpp's RPC backend with a server on this machine is exact. For builds with -DGGML_RPC=ON."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapkv_local.models.resolve import needle_model

pytestmark = pytest.mark.native

# what llama.cpp's rpc-server does, which its source distribution leaves out: one CPU, one thread
SERVER = """
import ctypes, sys
folder, endpoint = sys.argv[1:]
names = ("libggml-base.so", "libggml-cpu.so", "libggml-rpc.so", "libggml.so")
libraries = [ctypes.CDLL(f"{folder}/{name}", mode=ctypes.RTLD_GLOBAL) for name in names]
rpc, ggml = libraries[2:]
ggml.ggml_backend_load_all()
ggml.ggml_backend_dev_by_name.restype = ctypes.c_void_p
devices = (ctypes.c_void_p * 1)(ggml.ggml_backend_dev_by_name(b"CPU"))
size = ctypes.c_size_t
rpc.ggml_backend_rpc_start_server(endpoint.encode(), None, size(1), size(1), devices)
"""


@pytest.fixture(scope="module")
def endpoint(binaries: Path) -> Iterator[str]:
    """Of a server."""
    if not (binaries / "libggml-rpc.so").exists():
        pytest.skip("this build has no RPC backend: build with CMAKE_ARGS=-DGGML_RPC=ON")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    command = [sys.executable, "-c", SERVER, str(binaries), address]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + 120
        while time.monotonic() < ends:
            assert server.poll() is None
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


def exact(binaries: Path, endpoint: str, *args: object, unproven: str = "1") -> list[dict]:
    """What test-snapkv-exact says of models whose layers are on the server's device."""
    command = [binaries / "test-snapkv-exact", "-r", endpoint, *args]
    result = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "SNAPKV_UNPROVEN": unproven},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_server_is_not_proven(binaries: Path, endpoint: str) -> None:
    (record,) = exact(binaries, endpoint, needle_model(), unproven="0")
    assert not record["supported"]
    assert "backend RPC" in record["reason"]
    assert endpoint in record["reason"]


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_server_is_exact_by_ops_of_ggml(
    binaries: Path, endpoint: str, arch_models: Path, kv_type: str
) -> None:
    """The fused ops cannot cross: the server would end at one, and its device says that it knows all."""
    names = ("llama-dense", "gemma3-dense", "gpt-oss-moe", "gemma4-shared-dense", "qwen35-dense")
    models = [needle_model(), *(arch_models / f"{name}.gguf" for name in names)]
    options = ["-n", 201, "-u", 49, "-g", "1,0", "-s", 2, "-t", kv_type]
    for record in exact(binaries, endpoint, *options, *models):
        assert record["exact"], record
        assert [(r["max_diff"], r["state_diff"], r["fused"]) for r in record["runs"]] == [
            (0, 0, 0)
        ] * 2, record
