"""Length by depth: what a record's cases come to, the pictures, and several records as one."""

import json

import numpy as np
import pytest

from snapkv_local.bench import record as records
from snapkv_local.errors import ConfigError
from snapkv_local.eval import heatmap
from snapkv_local.eval.cell import Cell, cells_of
from snapkv_local.eval.joined import join

CELLS = [*cells_of(("snapkv", "random"), (128, 512), "f16"), Cell("full", 0, "q4_0")]


def case(length, depth, exact, task="needle", cells=CELLS):
    return {
        "task": task,
        "length": length,
        "depth": depth,
        "digest": f"{length} {depth}",
        "bytes": {cell.name: 1 for cell in cells},
        "scores": {cell.name: {"exact": exact} for cell in cells},
    }


def record(cases, cells=CELLS, **settings):
    return {
        "kind": "eval",
        "format": records.FORMAT,
        "model": {"name": "fake", "type": "f16"},
        "settings": {
            "tasks": {"needle": {}}, "lengths": [], "policies": [], "budgets": [], "kv_types": [],
            "full_kv_types": [], "questions": 1, "depths": 2, "seed": 0, "split": "test",
            "window_size": 32, "protect_system": False, **settings,
        },
        "cells": {cell.name: cell.to_dict() for cell in cells},
        "cases": dict(enumerate(cases)),
    }  # fmt: skip


def test_shares_by_depth_and_length():
    cases = [case(2048, 0.25, 1.0), case(2048, 0.25, 0.0), case(1024, 0.75, 1.0)]
    (heat,) = heatmap.of(record(cases))
    assert (heat.lengths, heat.n_depths, heat.n_cases) == ((1024, 2048), 2, (1, 2))
    full, snapkv, random = heat.rows
    assert [panel.cell.kv_type for panel in full] == ["f16", "q4_0"]
    assert [panel.cell.budget for panel in snapkv] == [128, 512]
    np.testing.assert_equal(random[1].shares, [[np.nan, 0.5], [1.0, np.nan]])
    assert random[1].mean == 0.75


def test_depths_that_are_all_different_are_put_into_tenths():
    (heat,) = heatmap.of(record([case(1024, 0.0, 1.0), case(1024, 0.99, 0.0)], depths=None))
    shares = heat.rows[0][0].shares[:, 0]
    assert shares[0] == 1 and shares[9] == 0 and np.isnan(shares[1:9]).all()


def test_each_task_has_a_map_and_what_has_no_depth_none():
    cases = [case(1024, 0.5, 1.0), case(1024, 0.5, 1.0, task="keys")]
    cases += [case(1024, None, 1.0, task="count"), case(None, 0.5, 1.0, task="jsonl:x")]
    assert [heat.task for heat in heatmap.of(record(cases))] == ["needle", "keys"]


def test_pictures_hold_their_numbers_and_differ_by_theme_and_task(tmp_path):
    image = pytest.importorskip("PIL.Image")
    cells = [Cell("snapkv", 128, "f16")]
    cases = [case(1024, 0.25, 1.0, cells=cells), case(2048, 0.75, 0.0, cells=cells)]
    cases.append(case(1024, 0.5, 1.0, task="keys", cells=cells))
    files = heatmap.write_pngs(record(cases, cells), tmp_path / "new" / "map.png")
    assert [file.name for file in files] == [
        "map-needle.png", "map-needle-dark.png", "map-keys.png", "map-keys-dark.png"
    ]  # fmt: skip
    pictures = [image.open(file) for file in files]
    for picture in pictures[:2]:
        told = json.loads(picture.text["Description"])
        assert told["exact"] == {"snapkv/128/f16": [[1.0, None], [None, 0.0]]}
    corners = [sum(picture.convert("RGB").getpixel((1, 1))) for picture in pictures]
    assert corners[0] > 600 > 100 > corners[1]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ConfigError, match="--heatmap"):
        heatmap.write_pngs(record([case(1024, None, 1.0)]), tmp_path / "map.png")


def test_the_pages_drawing_has_the_pages_colours():
    pytest.importorskip("matplotlib")
    (heat,) = heatmap.of(record([case(1024, 0.5, 1.0)]))
    text = heatmap.svg(heat)
    assert text.startswith("<svg ") and "currentColor" in text and "var(--grid)" in text
    assert ">128 rows: 100%<" in text


def write(folder, name, data):
    path = folder / name
    path.write_text(json.dumps(data))
    return path


def test_records_of_other_lengths_and_policies_are_one(tmp_path):
    long, other = case(4096, 0.25, 1.0), case(1024, 0.25, 0.0, cells=[Cell("h2o", 128, "f16")])
    first = record([case(1024, 0.25, 1.0)], lengths=[1024])
    second = record([long, other], [Cell("h2o", 128, "f16")], lengths=[1024, 4096])
    second["cases"] = {"0": other, "1": long}
    found = join([write(tmp_path, "a.json", first), write(tmp_path, "b.json", second)])
    assert found["settings"]["lengths"] == [1024, 4096]
    assert set(found["cases"]["0"]["scores"]) == {*(cell.name for cell in CELLS), "h2o/128/f16"}
    assert found["cases"]["1"]["length"] == 4096
    assert "h2o/128/f16" in found["cells"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"name": "other", "type": "f16"}}, "model, name"),
        ({"cases": {"0": {**case(1024, 0.25, 1.0), "digest": "x"}}}, "tokens of case 0"),
        ({"kind": "bench"}, "not a record of an evaluation"),
    ],
)
def test_records_that_do_not_belong_together(tmp_path, change, says):
    first = record([case(1024, 0.25, 1.0)])
    paths = [write(tmp_path, "a.json", first), write(tmp_path, "b.json", {**first, **change})]
    with pytest.raises(ConfigError, match=says):
        join(paths)


def test_records_of_other_seeds(tmp_path):
    first, second = record([case(1024, 0.25, 1.0)]), record([case(1024, 0.25, 1.0)], seed=1)
    with pytest.raises(ConfigError, match="seed: 1 there, 0 here"):
        join([write(tmp_path, "a.json", first), write(tmp_path, "b.json", second)])
