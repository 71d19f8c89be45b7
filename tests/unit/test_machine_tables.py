"""Tables of machines, from records as their commands write them."""

import json

import pytest

import machine_tables
from snapkv_local.report.units import GIB

SPEED = {
    "gpus": 2,
    "n_prompt": 130560,
    "kv_type": "q8_0",
    "config": {"budget": 2048},
    "stats": {"layer_group": 2},
    "seconds_prefill": 30.04,
    "decode_tokens_per_second": [250.0, 251.0],
    "peak_device": 9 * GIB,
    "peak_device_growth_each": [5 * GIB, 4 * GIB],
}
SEVERAL = {
    "device": {"name": "A GPU"},
    "n_devices": 2,
    "commit": "1234567890",
    "exact": [
        {"runs": [{"max_diff": 0}], "exact": True},
        {"runs": [{"max_diff": 1}], "exact": False},
        {"error": "ended with 1"},
    ],
    "speed": [SPEED, {"gpus": 2, "n_prompt": 8192, "config": None, "error": "no room"}],
    "single": [
        {**SPEED, "gpus": 1, "config": {"budget": 100, "layer_group": 2}},
        {**SPEED, "gpus": 1, "config": None, "peak_device_growth_each": []},
    ],
    "sweep": {"exact": 3, "supported": 4},
    "note": "A note.",
}


@pytest.mark.parametrize("name", ["wheel", "vulkan", "several"])
def test_without_a_record(name, tmp_path):
    assert getattr(machine_tables, name)(tmp_path).endswith("not measured yet.")


def test_a_wheel(tmp_path):
    record = {
        "python": "3.11.7",
        "machine": {"cpu": "A CPU", "cores": 2},
        "commit": "1234567890",
        "wheel": "a.whl",
        "note": "A note.",
        "contents": {
            "bytes": GIB,
            "libraries": ["libggml-cpu-a.so", "libggml-cpu-b.so", "libllama.so"],
            "build": {"options": ["GGML_CPU_ALL_VARIANTS"]},
        },
        "installed": {
            "processes_before": 0.7,
            "bytes_installed": 2 * GIB,
            "bytes_installed_with_all_it_needs": 3 * GIB,
            "seconds_install": 9.6,
            "seconds_processor": 14.2,
            "answers": [{"seconds_to_first_token": 1.18}, {"seconds_to_first_token": 1.1}],
        },
    }
    (tmp_path / "wheel-linux.json").write_text(json.dumps(record))
    lines = machine_tables.wheel(tmp_path).splitlines()
    cells = [line.strip("|").split("|")[1].strip() for line in lines[2:8]]
    assert cells == ["1.0 GiB", "2.0 GiB", "3.0 GiB", "10 s", "1.2 s", "14 s"]
    assert "(A CPU, 2 cores, with a load of 0.7; commit 123456789)" in lines[-1]
    assert "has 2 CPU backends, and the model" in lines[-1] and lines[-1].endswith("A note.")


def test_several_gpus(tmp_path):
    (tmp_path / "several-a.json").write_text(json.dumps(SEVERAL))
    lines = machine_tables.several(tmp_path).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert cells == [
        [
            "2",
            "130,560",
            "budget 2,048, q8_0, G = 2, as auto chose",
            "30.0",
            "251.0",
            "5.0 GiB, 4.0 GiB",
        ],
        ["2", "8,192", "full, f16", "no room", "-", "-"],
        ["1", "130,560", "budget 100, q8_0, G = 2", "30.0", "251.0", "5.0 GiB, 4.0 GiB"],
        ["1", "130,560", "full, q8_0", "30.0", "251.0", "9.0 GiB"],
    ]
    assert "Exact: 1 of 2 runs" in lines[-1] and lines[-1].endswith("3 of 4. A note.")
