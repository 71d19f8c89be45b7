"""The demo itself, with a short document."""

import json
import subprocess
import sys


def test_the_fact_is_found_compressed_and_with_the_full_cache() -> None:
    command = [sys.executable, "-m", "snapkv_local", "demo", "--tokens", "1k", "-t", "1", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout)
    assert [answer["right"] for answer in answers.values()] == [True, True]
    compressed, full = answers["compressed"], answers["full cache"]
    assert compressed["n_prompt"] == full["n_prompt"] > 1024
    assert compressed["n_kept"] == 128
    assert compressed["bytes_kv"] - compressed["bytes_decode_cells"] < full["bytes_kv"] / 7
