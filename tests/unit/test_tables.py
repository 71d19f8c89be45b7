"""The tables in README and docs/ are what the records give."""

import json

import pytest

import cases
import tables
from snapkv_local.bench.summary import summarize

STATS = {"layer_group": 4, "chunk": 512}


def gpu_record():
    """Of three cases: one with its full cache, one without, and a full cache of its own."""
    names = ("decode-8b-16k", "decode-7b-64k", "decode-7b-64k-plain", "prefill-8b-128k-plain")
    runs = [
        {
            "case": case.name,
            "label": case.label,
            "against": case.against,
            "commit": "0123456789abcdef",
            "settings": case.settings(),
            "seconds_prefill": 10.0,
            "prefill_tokens_per_second": 1234.5,
            "decode_tokens_per_second": [200.0 if case.config else 80.0],
            "stats": STATS if case.config else None,
            "peak_device": 7 * 2**30 if case.config else None,
            "peak_rss": 2**30,
        }
        for case in cases.CASES
        if case.name in names
    ]
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
        assert table(tmp_path).endswith("not measured yet."), name


def test_only_the_tables_change(tmp_path):
    text = "before\n<!-- table: gpu -->\nold\n<!-- end -->\nafter\n"
    expected = "before\n<!-- table: gpu -->\nGPUs: not measured yet.\n<!-- end -->\nafter\n"
    assert tables.render(text, tmp_path) == expected
    assert tables.render(expected, tmp_path) == expected


def test_unknown_table(tmp_path):
    with pytest.raises(KeyError, match="other"):
        tables.render("<!-- table: other -->\n<!-- end -->", tmp_path)


def test_gpu_table_has_the_full_cache_beside_each_case(tmp_path):
    (tmp_path / "gpu-test.json").write_text(json.dumps(gpu_record()))
    lines = tables.gpu(tmp_path).splitlines()
    assert lines[0].startswith("NVIDIA Test, q4_0 weights, f16 KV.")
    assert lines[0].endswith("Commit 012345678.")
    assert lines[4:8] == [
        "| 8B, 16K | 1,234 | - | 200.0 | - | 7.0 GiB | - |",
        "| 7B, 64K | 1,234 | 1,234 | 200.0 | 80.0 | 7.0 GiB | - |",
        "| 8B, 128K, full cache, ubatch 512 | - | 1,234 | - | 80.0 | - | - |",
        "",
    ]
    assert "(m.gguf, station.txt)" in lines[8]
    assert [word for word in lines[8].split() if word.startswith("0.")] == [
        "0.999,",
        "0.988;",
        "0.954.",
    ]
    assert len({line.count("|") for line in lines[2:7]}) == 1
