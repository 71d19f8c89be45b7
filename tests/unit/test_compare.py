"""Records side by side: what the reader makes of both kinds, what fits, terminal, page and plots."""

import html.parser
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from snapkv_local.bench.session import Settings
from snapkv_local.cli import main
from snapkv_local.compare import words
from snapkv_local.compare.fits import fits, sizes
from snapkv_local.compare.page import page
from snapkv_local.compare.plots import DARK, LIGHT, plots_of, series_of, svg
from snapkv_local.compare.reader import PARTS, load, models, read
from snapkv_local.errors import ConfigError

GPU_RECORD = Path(__file__).resolve().parents[2] / "results" / "gpu-nvidia-h100-80gb-hbm3.json"
MIB = 2**20


def run(n_prompt, budget=None, peak=100 * MIB, decode=(10.0,), **changes):
    config = None if budget is None else {"budget": budget, "layer_group": "auto"}
    settings = {**Settings("", n_prompt, config, n_gpu_layers=0).to_dict(), **changes}
    stats = {"bytes_kv_full": 64 * MIB, **dict.fromkeys(PARTS, MIB)}
    return {
        "case": f"{n_prompt}-{budget or 'full'}" + "".join(f"-{v}" for v in changes.values()),
        "label": "",
        "against": None if budget is None else f"{n_prompt}-full",
        "commit": "0123456789abcdef+",
        "settings": {**settings, "model": "Small", "weights": "q4_0"},
        "seconds_first_token": 2.0 if budget else 1.0,
        "seconds_prefill": 2.0,
        "prefill_tokens_per_second": n_prompt / 2,
        "decode_tokens_per_second": list(decode),
        "bytes_kept": 64 * MIB if budget is None else 3 * MIB // 4,
        "stats": stats if budget else None,
        "peak_device": None,
        "peak_rss": peak,
    }


def record(*runs, **changes):
    return {
        "format": 2,
        "date": "2026-01-02",
        "version": "1.2.3",
        "machine": {"cpu": "A processor", "cores": 4, "ram_total": 2**34, "system": "Linux"},
        "device": {"name": "A laptop", "kind": "cpu", "backend": "CPU", "memory_total": 2**34},
        "build": {"llama_cpp_commit": "abcdef0123456", "system": "Linux", "compiler": "GNU 1"},
        "runs": list(runs),
        "failures": [],
        **changes,
    }


@pytest.fixture
def laptop():
    """Two lengths, compressed and full; the full cache grows by 100 MiB in 1,000 tokens."""
    found = record(
        run(1000, peak=200 * MIB),
        run(1000, 64, decode=(30.0, 10.0, 20.0)),
        run(2000, peak=300 * MIB),
        run(2000, 64),
        note="a <note> & more",
        failures=[{"case": "4000-full", "error": "trace\nno memory"}],
    )
    return read(found, "laptop.json")


@pytest.fixture
def server():
    return load(GPU_RECORD)


def write(tmp_path, found, name="a.json"):
    path = tmp_path / name
    path.write_text(json.dumps(found))
    return path


def invoke(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def test_a_record_of_bench(laptop):
    assert (laptop.device, laptop.memory, laptop.on_gpu) == ("A laptop", 2**34, False)
    assert (laptop.commits, laptop.version, laptop.llama_cpp) == (
        "012345678+",
        "1.2.3",
        "abcdef0123456",
    )
    assert laptop.failures == (("4000-full", "no memory"),)
    case = laptop.case("1000-64")
    assert (case.decode.median, case.decode.low, case.decode.high, case.decode.n) == (20, 10, 30, 3)
    assert case.peak.median == 100 * MIB  # of the process
    assert (case.bytes_kept, case.bytes_kv_full) == (3 * MIB // 4, 64 * MIB)  # without room
    assert laptop.case(case.against).is_full


def test_a_record_of_a_gpu_machine(server):
    raw = json.loads(GPU_RECORD.read_text())
    assert server.device == "NVIDIA H100 80GB HBM3"
    assert server.memory == 81559 * MIB
    assert server.on_gpu
    for case in server.cases:
        summary = raw["summary"][case.name]
        assert case.peak.median == summary["peak_device"]
        assert case.decode.median == summary["decode_tokens_per_second"]
        assert case.n_runs == summary["n_runs"]
        # several sequences have no single first token
        assert (case.first_token is None) == (summary["n_seq"] > 1)
    by_name = {case.name: case for case in server.cases}
    assert by_name["decode-7b-64k"].series == "budget 2048, G = 32"
    assert by_name["memory-8b-128k-g1-host"].cache == "budget 2048, G = 1, hidden_state host"
    assert by_name["partial-8b-32k"].details == "17 layers on the GPU"
    assert by_name["memory-8b-128k-cap8"].details == "8 GiB of device memory"
    # the full cache's size is that which the compressed run beside it would have
    assert by_name["decode-7b-64k-plain"].bytes_kv_full == by_name["decode-7b-64k"].bytes_kv_full
    assert {case.model for case in server.cases} == {
        f"{shape} shape, random weights" for shape in ("llama31-8b", "llama2-7b")
    }


def test_what_was_not_measured_is_said_so():
    raw = run(1000, 64, n_seq=2)
    del raw["seconds_first_token"]
    found = read(record(raw), "x")
    (case,) = found.cases
    assert case.against is None  # named, and not in the record
    cells = dict(zip(words.HEAD, words.row(case, found), strict=True))
    assert cells["first token, s"] == "not measured"
    assert "x)" not in cells["decode, tok/s"]


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"runs": [{}]}', '{"runs": 3}', "\x00"])
def test_no_record(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json: .*; give what `snapkv-local bench --json"):
        load(path)


@pytest.mark.parametrize("changes", [{"format": 1}, {"format": None}])
def test_a_record_of_another_format_is_refused(changes):
    with pytest.raises(ConfigError, match=r"x\.json: is a record of another version .*; measure"):
        read(record(run(2000), **changes), "x.json")


def test_a_record_without_runs(tmp_path):
    with pytest.raises(ConfigError, match="has no runs"):
        load(write(tmp_path, record()))


def test_ratios_are_against_the_full_cache(laptop):
    cells = words.row(laptop.case("1000-64"), laptop)
    assert cells == [
        "1,000",
        "budget 64, G = auto",
        "1",
        "2.00 (2.00x)",
        "500 (1.00x)",
        "20.0 [10.0..30.0] (2.00x)",
        "100 MiB (0.50x)",
        "768 KiB of 64.0 MiB",
    ]


def test_models_are_apart_and_machines_together(laptop, server):
    other = read(record(run(4000)), "other.json")
    found = models([laptop, server, other])
    assert [(title, len(sides)) for title, sides in found] == [
        ("Small, q4_0", 2),
        ("llama31-8b shape, random weights, q4_0", 1),
        ("llama2-7b shape, random weights, q4_0", 1),
    ]
    lengths = [case.n_prompt for case in found[1][1][0][1]]
    assert lengths == sorted(lengths)


def test_what_fits(laptop):
    by_series = {fit.series: fit for fit in fits([laptop])}
    full = by_series["full cache"]
    assert full.measured == ((1000, 200 * MIB), (2000, 300 * MIB))
    # 90 % of 1 GiB, 100 MiB before the first token and 0.1 MiB a token
    assert full.along[1] == pytest.approx((0.9 * 1024 - 100) * 10, abs=2)
    assert full.fits[1] == 2000
    compact = by_series["budget 64, G = auto"]
    assert compact.along[1] is None  # it does not grow
    assert words.fit_cell(compact, 1) == "2K"


def test_no_prompt_is_longer_than_the_model_was_trained_for():
    models = {"Small-q4_0": {"name": "Small", "n_ctx_train": 4096}}
    raw = record(run(1000, peak=200 * MIB), run(2000, peak=300 * MIB), models=models)
    (fit,) = fits([read(raw, "x")])
    assert (fit.along[1] > 4096, words.fit_cell(fit, 1)) == (True, "4K*")


def test_where_memory_is_short_less_may_do(server):
    runs = [
        {**run(n, 64, peak=1), "peak_device": peak * MIB}
        for n, peak in ((10_000, 5000), (20_000, 6000))
    ]
    gpu = {"name": "A GPU", "kind": "gpu", "backend": "CUDA", "memory_total": 2**34}
    (auto,) = fits([read(record(*runs, device=gpu), "x")])
    assert auto.adapts
    assert [words.fit_cell(auto, gib) for gib in (4, 8)] == ["?", "~33K+"]
    by_series = {(fit.model, fit.series): fit for fit in fits([server])}
    one = by_series[
        "llama31-8b shape, random weights, q4_0", "budget 2048, G = 1, hidden_state host"
    ]
    # 128K and 512K are measured, and 8 GiB lie between
    assert words.fit_cell(one, 4) == "-"
    assert words.fit_cell(one, 8) == "~458K"


def test_sizes_have_each_machine(laptop):
    odd = read(record(run(10), device={"name": "odd", "memory_total": 11 * 2**30}), "odd")
    assert 11 in sizes([laptop, odd])
    assert sizes([laptop]) == sizes([])


def test_command(tmp_path):
    path = write(tmp_path, record(run(1000), run(1000, 64)))
    found = invoke(path, GPU_RECORD)
    assert found.exit_code == 0
    for text in ("A laptop", "NVIDIA H100 80GB HBM3", "What fits where", "commit 012345678+"):
        assert text in found.stdout
    assert found.stderr == ""


def test_command_as_json(tmp_path):
    path = write(tmp_path, record(run(1000)))
    found = json.loads(invoke(path, "--json").stdout)
    assert found["records"][0]["cases"][0]["decode"]["median"] == 10.0
    assert found["fits"][0]["fits"]["8"] == 1000


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("/no/such.json",), 2)])
def test_wrong_usage(arguments, code):
    assert invoke(*arguments).exit_code == code


def test_a_file_that_is_no_record_is_an_error(tmp_path):
    found = invoke(write(tmp_path, {"model": 1}))
    assert found.exit_code == 1
    assert "a.json: is not a record of speed and memory; give" in found.stderr


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ("eval-smollm2-2k-text.json", "a record of `snapkv-local eval`"),
        ("speed-smollm2-8k.json", "a record of a script"),
        ("kvpress-quality.json", "a record of a script"),
    ],
)
def test_records_of_other_kinds_are_skipped_and_named(tmp_path, other, says):
    ours, path = write(tmp_path, record(run(1000))), GPU_RECORD.parent / other
    found = invoke(path, ours)
    assert found.exit_code == 0
    assert "A laptop" in found.stdout
    assert found.stderr == f"Skipped {other}: it is {says}, and no record of speed and memory\n"
    alone = invoke(path)
    assert (alone.exit_code, alone.stdout) == (1, "")
    assert alone.stderr.startswith(f"Error: {other}: is {says}, and no record of speed")


def test_a_record_from_before_rows_were_counted_says_that_room_is_in_it():
    raw = run(1000, 64)
    del raw["bytes_kept"]
    (case,) = read(record(raw), "x").cases
    assert words.kv(case) == "1.0 MiB, room included, of 64.0 MiB"


@pytest.mark.parametrize(
    ("n", "says"),
    [
        (3, "3"),
        (512, "512"),
        (1024, "1K"),
        (1536, "1.5K"),
        (2000, "2K"),
        (4500, "4.4K"),
        (131072, "128K"),
    ],
)
def test_few_tokens_are_not_0K(n, says):
    assert words.short_tokens(n) == says


def test_a_short_prompt_that_fits_is_no_0K():
    (fit,) = fits([read(record(run(512, 64)), "x")])
    assert words.fit_cell(fit, 1) == "512"


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_needs_nothing_else(laptop, server):
    pytest.importorskip("matplotlib")
    text = page([laptop, server])
    tags = Tags(text).found
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "image"}
    links = [v for _, attrs in tags for k, v in attrs.items() if k in ("src", "href", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_the_page_says_what_was_measured(laptop, server):
    pytest.importorskip("matplotlib")
    text = page([laptop, server])
    assert "a &lt;note&gt; &amp; more" in text
    for said in (
        "A laptop",
        "012345678+",
        "f54f9e7",
        "no memory",
        "not measured",
        "20.0 [10.0..30.0]",
    ):
        assert said in text


def test_plots_have_the_colours_of_the_page(laptop):
    pytest.importorskip("matplotlib")
    ((_, sides),) = models([laptop])
    for plot in plots_of(series_of(sides)):
        text = svg(plot)
        assert text == svg(plot)  # a record that did not change gives the same page
        assert "currentColor" in text
        assert "var(--s0)" in text or "var(--s7)" in text
        colours = set(re.findall(r"#[0-9a-f]{6}\b", text))
        assert colours <= {"#ffffff", "#000000"}, colours


def contrast(a, b):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("colours", "background"), [(LIGHT, "#ffffff"), (DARK, "#0d1117")])
def test_colours_can_be_told_from_the_page(colours, background):
    assert min(contrast(colour, background) for colour in colours) > 4.5


def test_pngs(tmp_path):
    pytest.importorskip("matplotlib")
    path = write(tmp_path, record(run(1000), run(1000, 64)))
    assert invoke(path, "--png", tmp_path / "plots").exit_code == 0
    files = sorted(file.name for file in (tmp_path / "plots").iterdir())
    quantities = ("decode", "first-token", "memory", "parts", "prefill")
    assert files == [f"small-q4-0-{name}.png" for name in quantities]
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in (tmp_path / "plots").iterdir())


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(laptop, monkeypatch, missing):
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(ConfigError, match=r'pip install "snapkv-local\[report\]"'):
        page([laptop])
