"""Tables of machines: a wheel that was installed, Vulkan beside llama.cpp, several GPUs, fused ops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from snapkv_local.report.units import size
from table_parts import commit, table


def wheel(results: Path) -> str:
    """What wheels weigh, and how long their installation takes without a compiler."""
    files = sorted(results.glob("wheel-*.json"))
    return "\n\n".join(map(_wheel, files)) or "Wheels are not measured yet."


def _wheel(file: Path) -> str:
    record = json.loads(file.read_text())
    found, installed = record["contents"], record["installed"]
    n_backends = sum(name.startswith("libggml-cpu") for name in found["libraries"])
    backends = "one CPU backend" if n_backends == 1 else f"{n_backends} CPU backends"
    native = "GGML_NATIVE" in found["build"]["options"]
    cells = [
        ["the wheel", size(found["bytes"])],
        ["installed", size(installed["bytes_installed"])],
        ["with all that it needs", size(installed["bytes_installed_with_all_it_needs"])],
        ["installation by pip", f"{installed['seconds_install']:.0f} s"],
        [
            "from there to the first token",
            f"{installed['answers'][0]['seconds_to_first_token']:.1f} s",
        ],
        ["of all that, the processor's", f"{installed['seconds_processor']:.0f} s"],
    ]
    said = (
        f"\nOn a Python {record['python']} whose PATH has no compiler and no CMake "
        f"({record['machine']['cpu']}, {record['machine']['cores']} cores, with "
        f"a load of {installed['processes_before']:.1f}; commit {commit(record)}). The wheel, "
        f"{record['wheel']}, has {backends}{', for the processor that built it' if native else ''}, "
        "and the model `needle`, which answered."
    )
    said += f" {record['note']}" if record.get("note") else ""
    return "\n".join([*table(["", ""], cells), said])


def vulkan(results: Path) -> str:
    """A prompt through Vulkan, compressed and with the full cache."""
    files = sorted(results.glob("bench-*-vulkan.json"))
    return "\n\n".join(map(_vulkan, files)) or "Vulkan is not measured yet."


def _vulkan(file: Path) -> str:
    record = json.loads(file.read_text())
    cells = [
        [
            case["label"],
            f"{case['seconds_first_token']:.2f}",
            f"{case['decode_tokens_per_second']:.0f}",
            size(round(case["peak_device"])),
        ]
        for case in record["summary"].values()
    ]
    model = next(iter(record["models"])).removesuffix("-q8_0")
    head = ["prompt", "first token, s", "tokens/s after it", "device memory"]
    said = f"\n{model}, in q8_0, through Vulkan on {record['device']['name']}, without its matrix cores."
    return "\n".join([*table(head, cells), f"{said} Commit {commit(record)}."])


def several(results: Path) -> str:
    """Prompts on several GPUs, and whether they are exact."""
    files = sorted(results.glob("several-*.json"))
    return "\n\n".join(map(_several, files)) or "Several GPUs are not measured yet."


def _several(file: Path) -> str:
    record = json.loads(file.read_text())
    runs = [*record.get("speed", []), *record.get("single", [])]
    cells = [[str(run["gpus"]), _prompt(run), _cache(run), *_figures(run)] for run in runs]
    head = [
        "GPUs",
        "prompt, tokens",
        "cache",
        "prefill, s",
        "tokens/s after it",
        "memory of each GPU",
    ]
    exact = [run for run in record.get("exact", []) if "runs" in run]
    zero = sum(run["exact"] for run in exact)
    said = [
        f"{record['device'].get('name', 'no GPU')}, {record['n_devices']} of them, "
        f"commit {commit(record)}."
    ]
    if exact:
        said.append(f"Exact: {zero} of {len(exact)} runs of real shapes.")
    if "sweep" in record:
        sweep = record["sweep"]
        said.append(
            f"Of small models of all architectures: {sweep['exact']} of {sweep['supported']}."
        )
    if record.get("note"):
        said.append(record["note"])
    return "\n".join([*table(head, cells), "", " ".join(said)])


def _prompt(run: dict[str, Any]) -> str:
    return f"{run['n_prompt']:,}"


def _cache(run: dict[str, Any]) -> str:
    """Which cache, in which type, and how many layers were computed at a time."""
    kv_type = run.get("kv_type", "f16")
    if run["config"] is None:
        return f"full, {kv_type}"
    group = (run.get("stats") or {}).get("layer_group")
    chosen = "" if "layer_group" in run["config"] else ", as auto chose"
    layers = f", G = {group}{chosen}" if group else ""
    return f"budget {run['config']['budget']:,}, {kv_type}{layers}"


def _figures(run: dict[str, Any]) -> list[str]:
    """Of a run, or its error."""
    if "error" in run:
        return [run["error"], "-", "-"]
    each = run.get("peak_device_growth_each") or [run["peak_device"] or 0]
    return [
        f"{run['seconds_prefill']:.1f}",
        f"{max(run['decode_tokens_per_second']):.1f}",
        ", ".join(map(size, each)),
    ]


def ops(results: Path) -> str:
    """Fused ops on a GPU, with tensor cores and without, beside ggml's ops."""
    files = sorted(results.glob("ops-*.json"))
    return "\n\n".join(map(_ops, files)) or "Kernels without tensor cores are not measured yet."


def _ops(file: Path) -> str:
    record = json.loads(file.read_text())
    where = f"{record['device']['name']}, commit {commit(record)}"
    by_kernels = [found.get("perf", []) for found in record["kernels"].values()]
    if len(by_kernels) < 2 or not all(by_kernels):
        cases = record["kernels"]["mma"]["cases"]
        return f"Times are not measured yet. `test-snapkv-ops` on an {where}: {cases}."
    cells = [
        [
            f"{mma['head_dim']}",
            f"{mma['group']}",
            f"{row['n']:,}",
            f"{row['fused_ms']:.2f}",
            f"{other['fused_ms']:.2f}",
            f"{row['stock_ms']:.1f}",
        ]
        for mma, portable in zip(*by_kernels, strict=True)
        for row, other in zip(mma["rows"], portable["rows"], strict=True)
    ]
    head = ["dims of a head", "query heads of a KV head", "prompt, tokens"]
    head += ["with tensor cores, ms", "without, ms", "ggml's ops, ms"]
    said = "\nOne layer with 8 KV heads, a window of 32, 1,024 kept rows and a cache in f16: "
    return "\n".join([*table(head, cells), f"{said}{where}."])
