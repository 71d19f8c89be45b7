"""The tables in README and docs/ are what the records give."""

import dataclasses
import json

import pytest

import cases
import former_table
import heads_table
import many
import many_table
import needle_figure
import needle_tables
import quality_tables
import readme_figure
import recall_table
import refit_table
import selective_table
import server_tables
import settings_table
import tables
import unasked_table
from snapkv_local import policies
from snapkv_local.bench import record as records
from snapkv_local.bench.summary import summarize
from snapkv_local.config import SnapKVConfig
from snapkv_local.eval.cell import Cell
from snapkv_local.eval.summary import summarize as summarize_eval

STATS = {"layer_group": 4, "n_ubatch": 512}


def run_of(case, speeds, bytes_plain=None, **others):
    """A run of a case: tokens/s compressed and with the full cache, which takes bytes_plain."""
    return {
        "case": case.name,
        "label": case.label,
        "against": case.against,
        "commit": "0123456789abcdef",
        "settings": case.settings(),
        "seconds_prefill": 10.0,
        "prefill_tokens_per_second": 1234.5,
        "decode_tokens_per_second": [speeds[0] if case.config else speeds[1]],
        "stats": STATS if case.config else None,
        "peak_device": 7 * 2**30 if case.config else bytes_plain,
        "peak_rss": 2**30,
        **others,
    }


def gpu_record():
    """Of three cases: one with its full cache, one without, and a full cache of its own."""
    names = ("decode-8b-16k", "decode-7b-64k", "decode-7b-64k-plain", "prefill-8b-128k-plain")
    runs = [run_of(case, (200.0, 80.0)) for case in cases.CASES if case.name in names]
    return {
        "device": {"name": "NVIDIA Test"},
        "runs": runs,
        "summary": summarize(runs),
        "checks": {
            "kept_sets": {
                "same_input": {"jaccard_mean": 0.9987},
                "f32_weights": {"jaccard_mean": 0.9876},
                "quantized_weights": {"jaccard_mean": 0.9543},
                "model": "m.gguf",
                "prompt": "station.txt",
            }
        },
    }


def test_pages_are_up_to_date():
    shown = set()
    for page in tables.pages():
        text = page.read_text(encoding="utf-8")
        assert text == tables.render(text, tables.RESULTS), f"{page.name}: run `make tables`"
        shown |= {m[2] for m in tables._MARKED.finditer(text)}
    assert shown == set(tables.TABLES)


def test_what_was_not_measured_has_no_numbers(tmp_path):
    for name, table in tables.TABLES.items():
        if name == "settings":
            continue  # of no record
        assert table(tmp_path).endswith("not measured yet."), name


def test_only_the_tables_change(tmp_path):
    text = "before\n<!-- table: gpu -->\nold\n<!-- end -->\nafter\n"
    expected = "before\n<!-- table: gpu -->\nGPUs are not measured yet.\n<!-- end -->\nafter\n"
    assert tables.render(text, tmp_path) == expected
    assert tables.render(expected, tmp_path) == expected


def test_unknown_table(tmp_path):
    with pytest.raises(KeyError, match="other"):
        tables.render("<!-- table: other -->\n<!-- end -->", tmp_path)


def test_gpu_table_has_the_full_cache_beside_each_case(tmp_path):
    (tmp_path / "gpu-test.json").write_text(json.dumps(gpu_record()))
    lines = tables.gpu(tmp_path).splitlines()
    assert lines[0].startswith("NVIDIA Test, with q4_0 weights and f16 KV.")
    assert lines[0].endswith("Commit 012345678.")
    assert lines[4:8] == [
        "| 8B, 16K | 4 | 1,234 | - | 200.0 | - | 7.0 GiB | - |",
        "| 7B, 64K | 4 | 1,234 | 1,234 | 200.0 | 80.0 | 7.0 GiB | - |",
        "| 8B, 128K, full cache, ubatch 512 | - | - | 1,234 | - | 80.0 | - | - |",
        "",
    ]
    assert "(m.gguf, station.txt)" in lines[8]
    assert [word for word in lines[8].split() if word.startswith("0.")] == [
        "0.999",
        "0.988",
        "0.954.",
    ]
    assert len({line.count("|") for line in lines[2:7]}) == 1


def test_the_short_gpu_table_begins_with_what_ran_in_8_gib(tmp_path):
    lines = tables.gpu_short(tables.RESULTS).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [
        *2 * ["| 8B, 128K, 8 GiB of device memory"],
        *2 * ["| 8B, 128K"],
    ]
    # a device that has none of these cases has no line
    (tmp_path / "gpu-test.json").write_text(json.dumps(gpu_record()))
    assert tables.gpu_short(tmp_path) == "GPUs are not measured yet."


def test_the_figure_shows_the_records():
    drawn = readme_figure.drawn(readme_figure.FIGURE.read_text(encoding="utf-8"))
    assert drawn == readme_figure.points(readme_figure.RESULTS), "run `make tables`"


def test_a_figure_holds_its_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    lines = readme_figure.points(readme_figure.RESULTS)
    lines[0]["decode"][0] += 1
    readme_figure.draw(lines, tmp_path / "a.svg")
    assert readme_figure.drawn((tmp_path / "a.svg").read_text(encoding="utf-8")) == lines
    assert readme_figure.drawn("<svg></svg>") is None


def test_settings_are_those_of_the_dataclass():
    said = settings_table.sentences()
    names = [field.name for field in dataclasses.fields(SnapKVConfig)]
    assert list(said) == names
    assert all(said.values())
    lines = settings_table.settings(tables.RESULTS).splitlines()[2:]
    for name, line in zip(names, lines, strict=True):
        default = getattr(SnapKVConfig(), name)
        shown = "" if default is None else f"{default} "
        assert line.startswith(f"| `{name}` | {shown}| {said[name]}")


def eval_record(
    exact, tasks=("needle",), types=("f16",), budgets=(64, 128), length=2048, prompts="a"
):
    """Of two documents for each task.

    Args:
        exact: by policy; KL is what is missing to 1, and a tenth of it in the other document.
        prompts: other ones with another text.
    """
    cells = {}
    for kv_type in types:
        cells[f"full/{kv_type}"] = {"policy": "full", "budget": None, "kv_type": kv_type}
        for policy in exact:
            for budget in budgets:
                key = f"{policy}/{budget}/{kv_type}"
                cells[key] = {"policy": policy, "budget": budget, "kv_type": kv_type}
    numbers = {"f16": 4, "q8_0": 2, "q4_0": 1}
    cases = {}
    for task in tasks:
        for document in range(2):
            scores, held = {}, {}
            for key, cell in cells.items():
                right = exact.get(cell["policy"], 1.0)
                kl = (1 - right) * (1 if document else 0.1)
                names = ("exact", "accuracy", "nll", "kl", "top1")
                scores[key] = dict(zip(names, (right, right, kl, kl, right), strict=True))
                held[key] = (cell["budget"] or length) * numbers[cell["kv_type"]] * 2**18
            cases[f"{task}-{document}"] = {
                "task": task,
                "length": length,
                "document": f"{task}-{document}",
                "digest": f"{task}-{length}-{prompts}-{document}",
                "scores": scores,
                "bytes": held,
            }
    record = {
        "model": {"name": "Test-1B"},
        "machine": {"cpu": "Test", "cores": 2},
        "commit": "0123456789abcdef",
        "settings": {
            "window_size": 32,
            "kv_types": list(types),
            "policies": list(exact),
            "snapkv": {},
        },
        "cells": cells,
        "cases": cases,
    }
    return {**record, "summary": summarize_eval(record, "snapkv-paper")}


def write(folder, name, record):
    (folder / f"eval-{name}.json").write_text(json.dumps(record))


def rows_below(text, heading):
    """The cells of the lines of the table below a heading, the head first."""
    lines = text[text.index(heading) :].splitlines()[2:]
    table = lines[: lines.index("")] if "" in lines else lines
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_default_beside_the_paper_s_form(tmp_path):
    ours = quality_tables.default_policy(128)
    exact = {"snapkv-paper": 0.5, ours: 1.0, "streaming": 0.25, "other": 0.75}
    write(tmp_path, "a", eval_record(exact, tasks=("continue", "needle"), budgets=(128,)))
    text = quality_tables.short(tmp_path)
    head, _, needle, text_task = rows_below(text, "**Test-1B, 128 rows**")
    named = ["all tokens", "default", "paper's form", "StreamingLLM"]
    assert head == ["", "cases (documents)", *named]
    assert needle[:2] == ["`needle`, 2K", "2 (2)"]
    # better than the paper's form by more than the interval
    assert needle[2:] == ["100 %, 0.00", "**100 %, 0.00**", "50 %, 0.28", "25 %, 0.41"]
    # without a right answer
    assert text_task[2:] == ["0.00", "**0.00**", "0.28", "0.41"]
    assert "64 rows" not in text


def test_what_is_worse_than_the_paper_s_form_is_marked(tmp_path):
    ours = quality_tables.default_policy(128)
    write(tmp_path, "a", eval_record({"snapkv-paper": 0.5, ours: 0.25}, budgets=(128,)))
    _, _, needle = rows_below(quality_tables.short(tmp_path), "**Test-1B, 128 rows**")
    assert needle[3] == "25 %, 0.41 †"


def test_what_is_equal_to_the_paper_s_form_has_no_mark(tmp_path):
    ours = quality_tables.default_policy(128)
    write(tmp_path, "a", eval_record({"snapkv-paper": 0.5, ours: 0.5}, budgets=(128,)))
    _, _, needle = rows_below(quality_tables.short(tmp_path), "**Test-1B, 128 rows**")
    assert needle[3] == needle[4] == "50 %, 0.28"


def test_a_row_is_of_the_same_prompts(tmp_path):
    """Those with most cases of the ones that the default has; other records may have some of them."""
    ours = quality_tables.default_policy(128)
    large = eval_record({"snapkv-paper": 0.5, ours: 1.0}, budgets=(128,))
    small = eval_record({"snapkv-paper": 0.25, ours: 0.75}, budgets=(128,), prompts="b")
    small["cases"] = {name: small["cases"][name] for name in list(small["cases"])[:1]}
    small["summary"] = summarize_eval(small, "snapkv-paper")
    same = eval_record({"snapkv-paper": 0.5, "streaming": 0.25}, budgets=(64, 128))
    others = eval_record({"random": 0.125}, budgets=(128,), prompts="c")
    for name, record in (("a", small), ("b", large), ("c", same), ("d", others)):
        write(tmp_path, name, record)
    rows = rows_below(quality_tables.short(tmp_path), "**Test-1B, 128 rows**")
    assert rows[0][4:] == ["paper's form", "StreamingLLM"]
    row = ["`needle`, 2K", "2 (2)", "100 %, 0.00", "**100 %, 0.00**", "50 %, 0.28", "25 %, 0.41"]
    assert rows[2:] == [row]


def test_a_default_that_is_not_measured_yet(tmp_path):
    """The rows are of the paper's form then, and what was the default before has a column."""
    exact = {
        "snapkv-paper": 0.5,
        "snapkv-paper:kernel_size=21+aggregation=max+observation=16": 0.75,
        "random": 0.0,
    }
    write(tmp_path, "a", eval_record(exact, budgets=(128,)))
    head, _, needle = rows_below(quality_tables.short(tmp_path), "**Test-1B, 128 rows**")
    assert head[3:] == ["default", "paper's form", "21, max", "random"]
    assert needle[2:] == ["100 %, 0.00", "-", "50 %, 0.28", "75 %, 0.14", "0 %, 0.55"]

    # a row of fewer cases, on which it is
    ours = quality_tables.default_policy(128)
    few = eval_record({"snapkv-paper": 0.25, ours: 1.0}, budgets=(128,), prompts="b")
    few["cases"] = {name: few["cases"][name] for name in list(few["cases"])[:1]}
    few["summary"] = summarize_eval(few, "snapkv-paper")
    write(tmp_path, "b", few)
    head, _, needle = rows_below(quality_tables.short(tmp_path), "**Test-1B, 128 rows**")
    assert head[3:] == ["default", "paper's form"]
    assert needle[1] == "1 (1)"


def test_other_policies_with_the_defaults_settings(tmp_path):
    given = "kernel_size=21+self_weight=0.25+pooling=nosink+aggregation=max"
    ours = quality_tables.default_policy(128)
    exact = {
        f"value:{given}+observation=16": 0.5,
        "question:kernel_size=21+aggregation=max": 0.75,
        f"question:{given}": 0.375,
        "snapkv:observation=16": 0.25,
        ours: 1.0,
    }
    write(tmp_path, "a", eval_record(exact, budgets=(128,)))
    head, _, needle = rows_below(quality_tables.short(tmp_path), "**Test-1B, 128 rows**")
    assert head[3:] == ["default", "last 16", "`value`"]
    assert [cell.split(",")[0] for cell in needle[3:]] == ["100 %", "25 %", "50 %"]
    # as they are written in records
    for policy in {*quality_tables.SHORT, ours}:
        assert policies.parse(policy).spec == policy


def test_devices_are_not_mixed_in_a_row(tmp_path):
    ours = quality_tables.default_policy(128)
    here = eval_record({"snapkv-paper": 0.5, ours: 1.0}, budgets=(128,))
    there = {**eval_record({"streaming": 0.25}, budgets=(128,)), "device": {"name": "GPU"}}
    write(tmp_path, "a", here)
    write(tmp_path, "b", there)
    assert "StreamingLLM" not in quality_tables.short(tmp_path)
    write(tmp_path, "b", {**there, "device": here.get("device")})
    assert "StreamingLLM" in quality_tables.short(tmp_path)


def test_the_model_with_most_tasks_comes_first(tmp_path):
    ours = quality_tables.default_policy(128)
    write(tmp_path, "a", {**eval_record({ours: 1.0}), "model": {"name": "Test-9B"}})
    write(tmp_path, "b", eval_record({ours: 1.0}, tasks=("needle", "code")))
    text = quality_tables.short(tmp_path)
    assert text.index("**Test-1B, 128 rows**") < text.index("**Test-9B, 128 rows**")


@pytest.mark.parametrize("budget", quality_tables.BUDGETS)
def test_the_default_is_that_of_the_engine(budget):
    assert quality_tables.default_policy(budget) == SnapKVConfig(budget=budget).as_policy().spec


def test_quantized_caches_by_bytes(tmp_path):
    ours = quality_tables.default_policy(512)
    types = ("f16", "q4_0")
    write(tmp_path, "a", eval_record({ours: 1.0}, types=types, budgets=(512,)))
    longer = eval_record({ours: 0.5}, ("needle",), types, budgets=(512,), length=4096)
    write(tmp_path, "b", longer)
    write(tmp_path, "c", eval_record({ours: 0.0}, tasks=("code",)))
    head, _, *rows = rows_below(quality_tables.by_bytes(tmp_path), "**Test-1B**")
    assert head[1:] == [
        "bytes at 2K",
        "bytes at 4K",
        "`needle`, 2K (2 cases)",
        "`needle`, 4K (2 cases)",
    ]
    assert rows == [
        ["default, 512 rows, q4_0", "128.0 MiB", "128.0 MiB", "100 %, 0.00", "50 %, 0.28"],
        ["default, 512 rows, f16", "512.0 MiB", "512.0 MiB", "100 %, 0.00", "50 %, 0.28"],
        ["all tokens, q4_0", "512.0 MiB", "1024.0 MiB", "100 %, 0.00", "100 %, 0.00"],
        ["all tokens, f16", "2048.0 MiB", "4096.0 MiB", "100 %, 0.00", "100 %, 0.00"],
    ]


def test_all_policies_of_all_records(tmp_path):
    write(tmp_path, "a", eval_record({"snapkv-paper": 0.5, "other:x=1": 0.75}))
    write(tmp_path, "b", eval_record({"random": 0.0}, tasks=("continue",), budgets=(64,)))
    text = quality_tables.everything(tmp_path)
    assert "`results/eval-a.json`. All tokens: f16 100 % (100 to 100), 0.00 in 2048.0 MiB." in text
    head, _, *rows = rows_below(text, "**needle, 2,048 tokens**")
    assert head == ["", "budget 64 (64.0 MiB)", "budget 128 (128.0 MiB)"]
    assert rows == [
        ["`snapkv-paper`", *2 * ["50 % (50 to 50), 0.28"]],
        ["`other:x=1`", *2 * ["75 % (75 to 75), 0.14"]],
    ]
    assert "**continue, 2,048 tokens**" in text


def test_recall_beside_what_is_without_it(tmp_path):
    assert "not measured yet" in recall_table.answers(tmp_path)
    shares = {"snapkv": 0.25, "recall": 0.75, "recall:delay=7": 0.5, "recall:asked=384": 0.75}
    record = eval_record(shares, ("in-turn",), budgets=(128, 512))
    (tmp_path / "recall-tiny-2k.json").write_text(json.dumps(record))
    _, _, *rows, _, last = recall_table.answers(tmp_path).splitlines()
    assert [row.split("|")[3].strip() for row in rows] == ["128", "512"]
    assert all(row.split("|")[1].strip().endswith("2K") for row in rows)
    shares = [cell.split(",")[0].strip() for cell in rows[0].split("|")[4:9]]
    assert shares == ["100 %", "25 %", "75 %", "50 %", "75 %"]
    assert "`results/recall-tiny-2k.json`" in last


def test_what_a_recall_costs(tmp_path):
    assert "not measured yet" in recall_table.cost(tmp_path)
    run = {"n_prompt": 2000, "budget": 512, "every": 16, "seconds_token": 0.02, "rows": 300}
    run |= {"seconds_rank": 0.05, "seconds_wait": 0.02, "seconds_copy": 0.001, "bytes": 2**20}
    run |= {"speed": 0.9, "speed_cpu": 0.875}
    machine = {"cpu": "a CPU", "cores": 2}
    record = {"model": "tiny.gguf", "machine": machine, "commit": "0" * 40, "threads": 1}
    (tmp_path / "recall-cost-tiny.json").write_text(json.dumps({**record, "runs": [run]}))
    assert [
        cell.strip() for cell in recall_table.cost(tmp_path).splitlines()[2].split("|")[1:-1]
    ] == [
        *(
            "tiny, 2,000",
            "512",
            "16",
            "20.0 ms",
            "50 ms",
            "20 ms",
            "1.0 ms",
            "300",
            "1.00 MiB",
            "90 %",
            "88 %",
        )
    ]


def test_refitted_values_beside_values_as_they_are(tmp_path):
    assert "not measured yet" in refit_table.decoded(tmp_path)
    assert "not measured yet" in refit_table.errors(tmp_path)

    def row(variant, kl, change, error):
        found = {"task": "needle", "length": 2048, "budget": 128, "variant": variant}
        found |= {"n_cases": 8, "n_documents": 8, "kl": kl, "kl_change": change, "exact": 0.75}
        return found | {"error": 0.1, "error_change": [error, error - 0.02, error + 0.02]}

    rows = [row("none", 0.5, [0, 0, 0], 0)]
    rows += [row(name, 0.4, [-0.1, -0.2, 0.1], -0.01) for name in refit_table.COLUMNS]
    rows[1] |= {"kl": 0.2, "kl_change": [-0.3, -0.4, -0.2], "error_change": [-0.3, -0.4, -0.2]}
    rows[2] |= {"kl": 0.9, "kl_change": [0.4, 0.1, 0.5], "error_change": [0.2, 0.1, 0.3]}
    record = {"summary": rows, "model": "tiny-1m-q8_0.gguf", "commit": "0123456789abcdef"}
    record["machine"] = {"cpu": "Test", "cores": 2}
    (tmp_path / "refit-tiny-2k.json").write_text(json.dumps(record))
    _, _, line, _, last = refit_table.decoded(tmp_path).splitlines()
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    assert cells[:5] == [
        "tiny-1m, `needle`, 2K (8), 128",
        "75 %, 0.500", "75 %, **0.200**", "75 %, *0.900*", "75 %, 0.400",
    ]  # fmt: skip
    assert "`refit-tiny-2k.json` (Test, 2 cores; commit 012345678)" in last
    _, _, *lines = refit_table.errors(tmp_path).splitlines()
    assert lines[:4] == [
        "| error as it is | 0.100 |",
        "| `window-16/0.1` | **-30 %** |",
        "| `window-16/1/by-vote` | *+20 %* |",
        "| `prompt-1024/0.1` | -1 % |",
    ]
    for found in rows:
        found["n_documents"] = 5
    (tmp_path / "refit-tiny-2k.json").write_text(json.dumps(record))
    assert "| 75 %, 0.200 | 75 %, 0.900 |" in refit_table.decoded(tmp_path)


def test_policies_that_look_at_no_question(tmp_path):
    assert "not measured yet" in unasked_table.unasked(tmp_path)
    right = {
        "snapkv": 0.0,
        "streaming": 0.25,
        "expected": 0.5,
        "replay": 0.75,
        "level:of=replay": 1.0,
    }
    write(
        tmp_path, "tiny-question-free", eval_record(right, ("question-after",), budgets=(64, 128))
    )
    write(tmp_path, "tiny-question-after", eval_record({"replay": 0.0}))
    text = unasked_table.unasked(tmp_path)
    head, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[:4]
    ]
    assert head[3:5] == ["all tokens", "default"]
    assert [row[2] for row in rows] == ["64", "128"]
    shares = ["100 %", "0 %", "25 % (25 to 25)", "50 % (50 to 50)", "75 % (75 to 75)", "100 %"]
    assert [cell.split(",")[0] for cell in rows[0][3:]] == shares
    assert "`results/eval-tiny-question-free.json`" in text.splitlines()[-1]


def test_answers_after_selective_prefills(tmp_path):
    assert "not measured yet" in selective_table.answers(tmp_path)
    right = {"exact": 0.75, "selective": 0.5, "selective:least=256": 0.25}
    for name, length in (("16k", 16384), ("2k-others", 2048), ("2k", 2048)):
        record = eval_record(right, budgets=(64,), length=length)
        for case in record["cases"].values():
            case["prefills"] = {
                cell: {"cpu_seconds": seconds}
                for cell, seconds in zip(record["cells"], (9.0, 4.0, 3.0, 2.0), strict=True)
            }
        record["summary"] = summarize_eval(record, "exact")
        record["device"] = {"name": "Test", "kind": "gpu" if name == "16k" else "cpu"}
        (tmp_path / f"selective-tiny-{name}.json").write_text(json.dumps(record))
    (tmp_path / "selective-tiny-8k-curve.json").write_text("{}")  # of another table
    lines = selective_table.answers(tmp_path).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:-2]]
    assert [row[0] for row in rows] == [
        "Test-1B, `needle`, 2K",
        "Test-1B, `needle`, 2K, `least=256`",
    ] * 2 + ["Test-1B, `needle`, 16K", "Test-1B, `needle`, 16K, `least=256`"]
    assert [row[8] for row in rows] == ["75%", "50%"] * 2 + ["-", "-"]
    assert rows[0][6].startswith("-25 ")


@pytest.mark.parametrize(
    ("kind", "figures", "told"),
    [
        ("gpu", ["8.0 s", "6.0 s", "4.0 s", "2.00", "1.50"], "Seconds to the first token"),
        ("cpu", ["7.0 s", "5.0 s", "2.0 s", "3.50", "2.50"], "CPU seconds to the first token"),
    ],
)
def test_seconds_to_the_first_token(tmp_path, kind, figures, told):
    assert "not measured yet" in selective_table.speed(tmp_path)
    runs = [
        {"way": way, "n_prompt": 4096, "seconds": s, "all_seconds": [s, s], "cpu_seconds": cpu}
        for way, s, cpu in (("plain", 8.0, 7.0), ("exact", 6.0, 5.0), ("selective", 4.0, 2.0))
    ]
    if kind == "gpu":
        runs.insert(0, {**runs[1], "way": "shipped", "seconds": 7.5})
    runs[-1]["stats"] = {"n_layer_all": 12, "n_selected": 1024, "seconds_select": 0.2}
    record = {
        "device": {"name": "Test", "kind": kind},
        "model": "tiny",
        "commit": "0123456789",
        "runs": runs,
    }
    (tmp_path / f"selective-{kind}-tiny.json").write_text(json.dumps(record))
    lines = selective_table.speed(tmp_path).splitlines()
    row = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert row == ["4,096", *figures, "12", "1,024", "5%", "+25%" if kind == "gpu" else "-"]
    assert lines[-1] == f"{told}; tiny, Test; commit 012345678, medians of 2."


def needle_record(lengths=(1024, 4096)):
    cells = [Cell("full", 0, "f16"), Cell("snapkv", 128, "f16")]
    settings = {
        name: [] for name in ("lengths", "policies", "budgets", "kv_types", "full_kv_types")
    }
    case = {"task": "needle", "bytes": {cell.name: 2**20 for cell in cells}}
    scores = dict.fromkeys(("accuracy", "nll", "kl", "top1"), 0.5)
    cases = {
        f"{length}/{i}": {
            **case,
            "length": length,
            "document": f"{length}/{i}",
            "depth": i / 4,
            "digest": "x",
            "scores": {
                cell.name: {**scores, "exact": float(cell.is_full or i > 0)} for cell in cells
            },
        }
        for length in lengths
        for i in range(4)
    }
    return {
        "kind": "eval",
        "format": records.FORMAT,
        "model": {"name": "needle", "type": "q8_0"},
        "settings": {**settings, "tasks": {"needle": {}}, "depths": 4},
        "cells": {cell.name: cell.to_dict() for cell in cells},
        "cases": cases,
        "against": "snapkv",
        "device": {"name": "a CPU"},
        "commit": "0123456789abcdef",
    }


def test_the_needle_models_answers_have_a_table_of_their_own(tmp_path):
    assert "not measured yet" in needle_tables.by_length(tmp_path)
    for length in (4096, 1024):
        record = needle_record((length,))
        (tmp_path / f"needle-depth-{length}.json").write_text(json.dumps(record))
    lines = needle_tables.by_length(tmp_path).splitlines()
    assert lines[0] == "`needle`, 4 cases a length; 95 % intervals over documents."
    assert lines[2] == "| | rows | type | KV at most | 1,024 | 4,096 |"
    assert "| full cache | all | f16 | 1.0 MiB | 100% (100..100) | 100% (100..100) |" in lines
    assert any(line.startswith("| snapkv | 128 | f16 | 1.0 MiB | 75% (") for line in lines)
    assert lines[-1] == "Measured with a CPU, commit 012345678."


def test_the_needle_models_figure_is_of_its_records(tmp_path, monkeypatch):
    figure = tmp_path / "needle.png"
    monkeypatch.setattr("sys.argv", ["needle_figure.py"])
    assert needle_figure.main(tmp_path, figure) == 0
    assert not figure.exists()
    (tmp_path / "needle-depth-1.json").write_text(json.dumps(needle_record((1024,))))
    assert needle_figure.main(tmp_path, figure) == 0
    assert figure.exists() and (tmp_path / "needle-dark.png").exists()
    monkeypatch.setattr("sys.argv", ["needle_figure.py", "--check"])
    assert needle_figure.main(tmp_path, figure) == 0
    (tmp_path / "needle-depth-2.json").write_text(json.dumps(needle_record((2048,))))
    assert needle_figure.main(tmp_path, figure) == 1


def test_the_default_before_is_compared_prompt_by_prompt(tmp_path):
    """What it lost by more than the interval is named, whatever the answers gained."""
    (tmp_path / "former").mkdir()
    before = eval_record({former_table.ASKED: 0.5}, budgets=(64, 128))
    today = eval_record({"snapkv": 0.5}, budgets=(64, 128))
    for case in today["cases"].values():
        case["scores"]["snapkv/128/f16"]["kl"] += 0.25
        case["scores"]["snapkv/64/f16"]["exact"] = 1.0
    write(tmp_path / "former", "a", before)
    write(tmp_path, "a", today)
    told, _, _, _, *rows = former_table.former(tmp_path).splitlines()
    assert told.startswith(
        "In 1 comparisons at 128 and 512 rows, which were fixed beforehand, today's default gives more "
        "right answers in 0 and fewer in 0, and is nearer to the full cache in 0 and farther from it in 1. "
    )
    assert [row.split(" | ")[2] for row in rows] == ["64", "128"]
    assert rows[0].endswith("| better |") and rows[1].endswith("| worse |")
    today["cases"]["needle-0"]["digest"] = today["cases"]["needle-1"]["digest"] = "other prompts"
    write(tmp_path, "a", today)
    assert "not measured yet" in former_table.former(tmp_path)


def rival_record():
    """Of 4 documents: streaming is right in all, q4_0 and the paper's form in none, the default in some."""
    record = needle_record((1024,))
    right = {"streaming/128/f16": 1.0, "snapkv-paper/128/f16": 0.0, "full/q4_0": 0.0}
    for cell in (
        Cell("streaming", 128, "f16"),
        Cell("snapkv-paper", 128, "f16"),
        Cell("full", 0, "q4_0"),
    ):
        record["cells"][cell.name] = cell.to_dict()
        for case in record["cases"].values():
            case["bytes"] = {**case["bytes"], cell.name: 2**20}
            case["scores"][cell.name] = {**case["scores"]["full/f16"], "exact": right[cell.name]}
    return record


def test_where_others_win_against_the_needle_models_default(tmp_path):
    assert "not measured yet" in needle_tables.rivals(tmp_path)
    record = rival_record()
    (tmp_path / "needle-depth-1.json").write_text(json.dumps(record))
    # 3 of 4 right: one document more is within the interval, three fewer are not
    assert needle_tables.rivals(tmp_path) == (
        "In 3 comparisons of StreamingLLM, the paper's form and a full cache in q4_0 with the default, case "
        "by case, they give fewer right answers in 2 by more than the 95 % interval, and more in 0."
    )
    for case in record["cases"].values():
        case["task"] = "trace"
        case["scores"]["snapkv/128/f16"]["exact"] = 0.0
        case["scores"]["full/q4_0"]["exact"] = 1.0
    (tmp_path / "needle-tasks-1.json").write_text(json.dumps(record))
    lines = needle_tables.rivals(tmp_path).splitlines()
    assert lines[0].startswith("In 6 comparisons ") and lines[0].endswith("and more in 2:")
    assert lines[4:] == [
        "| StreamingLLM | `trace` | 1,024 | 128 | 100% | +100 (+100..+100) |",
        "| full cache, q4_0 | `trace` | 1,024 | 128 | 100% | +100 (+100..+100) |",
    ]


def test_the_share_of_the_full_caches_right_answers(tmp_path):
    assert "not measured yet" in needle_tables.share(tmp_path)
    record = needle_record()
    record["settings"]["snapkv"] = {}
    record["cases"]["4096/3"]["scores"]["full/f16"]["exact"] = 0.0  # does not count
    (tmp_path / "needle-depth-1.json").write_text(json.dumps(record))
    lines = needle_tables.share(tmp_path).splitlines()
    assert lines[0].startswith("Right answers of the default with 128 rows")
    assert lines[2] == ("| tokens | cases | full cache right | 128 rows right | share | of those |")
    assert lines[4:] == ["| 1,024 | 4 | 4 | 3 | 75% | 75% |", "| 4,096 | 4 | 3 | 3 | 100% | 67% |"]


def test_the_needle_models_questions_are_apart_and_have_their_bytes(tmp_path):
    record = json.loads((tables.RESULTS / "questions-smollm2-6k.json").read_text())
    for row in record["rows"]:
        row["bytes_kv"] = 3 * 2**20
    record["device"] = {"name": "a GPU", "backend": "CUDA"}
    (tmp_path / "questions-needle-1.json").write_text(json.dumps(record))
    assert "not measured yet" in tables.conversation_tables.questions(tmp_path)
    text = tables.conversation_tables.needle_questions(tmp_path)
    assert "| right | KL | tokens computed | seconds | KV of the sequence |" in text
    assert text.count("| 3.0 MiB |") == len(record["rows"]) and "(a GPU; commit " in text
    record["settings"]["snapkv"]["pooling"] = "max"
    (tmp_path / "questions-needle-1.json").write_text(json.dumps(record))
    text = tables.conversation_tables.needle_questions(tmp_path)
    assert "; an earlier default, `pooling` max)." in text


def test_the_needle_models_figure_is_up_to_date(monkeypatch):
    monkeypatch.setattr("sys.argv", ["needle_figure.py", "--check"])
    assert needle_figure.main() == 0


def test_heads_that_choose_together_stand_beside_each_one(tmp_path):
    exact = {"snapkv": 1.0, "joint": 0.75, "snapkv-paper": 0.5, "joint:of=snapkv-paper": 0.25}
    record = eval_record(exact, tasks=("needle", "continue"), budgets=(128,))
    assert "not measured" in heads_table.heads(tmp_path)
    (tmp_path / "heads-a.json").write_text(json.dumps(record))
    text = heads_table.heads(tmp_path)
    _, _, *rows = rows_below(text, "**Test-1B**")
    found = {row[0]: row[1:] for row in rows}
    assert [cell.split(",")[0] for cell in found["`needle`, 2K (2 cases)"]] == [
        "128",
        "100 %",
        "75 %",
        "50 %",
        "25 %",
    ]
    assert "%" not in "".join(found["`continue`, 2K (2 cases)"])


def test_many_sequences_have_full_caches_beside_them_where_these_fit(tmp_path):
    chosen = cases.select(["many-7b-1*", "many-7b-32*"], many.CASES)
    runs = [
        run_of(
            case,
            (60.0, 15.0),
            2**37,
            bytes_kept=(2**28 if case.config else 2**31) * case.n_seq,
            last_tokens=case.n_seq * [1],
        )
        for case in chosen
        if case.name != "many-7b-32-plain"
    ]
    record = {
        "device": {"name": "NVIDIA Test", "memory.total": "143771 MiB"},
        "runs": runs,
        "summary": summarize(runs),
        "failures": [{"case": "many-7b-32-plain", "error": "no context"}],
    }
    (tmp_path / "many-test.json").write_text(json.dumps(record))
    lines = many_table.many(tmp_path).splitlines()
    assert "does not fit its 140 GiB has no run. Commit 012345678." in lines[0]
    assert lines[4:] == [
        "| 7B | 1 | 60 | 15 | 4.0 | 60.0 | 15.0 | 0.2 GiB | 2.0 GiB | 7.0 GiB | 128.0 GiB |",
        "| 7B | 16 | 960 | 240 | 4.0 | 60.0 | 15.0 | 4.0 GiB | 32.0 GiB | 7.0 GiB | 128.0 GiB |",
        "| 7B | 32 | 1,920 | does not fit | - | 60.0 | - | 8.0 GiB | - | 7.0 GiB | - |",
    ]
    assert len(many.lines(record)) == 6


def test_the_server_beside_llama_server(tmp_path):
    """From records of measure/serve.py; without them nothing is claimed."""
    assert "not measured" in server_tables.speed(tmp_path)
    names = ("ours", "llama-server")

    def spread(value):
        return {"median": value, "least": value / 2, "most": value * 2}

    settings = {"cpu": "Test", "cores": 2, "commit": "0123456789abcdef", "model": "demo"}
    settings |= {"threads": 1, "n_ctx": 8192, "budget": 512, "n_chunk": 512, "n_prompt": 4300}
    turns = [{"turn": 0, "n_prompt": 4300}, {"turn": 1, "n_prompt": 6100}]
    agents = {**settings, "turns": dict.fromkeys(names, turns)}
    agents["memory"] = {
        name: {"bytes_resident": (i + 1) << 28, "bytes_anonymous": (i + 1) << 27}
        for i, name in enumerate(names)
    }
    for key in ("seconds_first", "seconds_cpu", "n_evaluated"):
        for kind in ("later", "begun"):
            agents[f"{key}_{kind}"] = {name: spread(i + 1.25) for i, name in enumerate(names)}
        agents[f"{key}_ratio"] = spread(0.625)
    short = {**settings, "n_prompt": 7000}
    for name in names:
        short[name] = {"seconds_first_alone": 0.5, "seconds_prefill_alone": 90.0}
        short[name] |= {"seconds_first": spread(1.5), "seconds_prefill": spread(95.0)}
    for case, record in (("agents", agents), ("short", short)):
        (tmp_path / f"serve-{case}.json").write_text(json.dumps(record))
    text = server_tables.speed(tmp_path)
    assert "| | snapkv-local | llama-server |" in text
    assert "2 turns each, from 4,300 to 6,100 tokens" in text
    assert "| 1.25 (0.62 to 2.50) | 2.25 (1.12 to 4.50) |" in text
    assert "| 256.0 MiB | 512.0 MiB |" in text
    assert "takes 0.62 times as long" in text
