"""`snapkv-local bench` without a model: its cases, its record, its command line."""

import json
import sys

import pytest
from click.testing import CliRunner

from snapkv_local.bench import nvml, process, runner
from snapkv_local.bench.make_model import make_model
from snapkv_local.bench.matrix import Matrix, Model
from snapkv_local.bench.record import commit, package_commit
from snapkv_local.bench.runner import Machine, measure, start_record
from snapkv_local.bench.session import Settings
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.bench.summary import first_token, summarize
from snapkv_local.cli import main
from snapkv_local.errors import ConfigError, LibraryError

CPU = {
    "name": "CPU",
    "backend": "CPU",
    "description": "A processor",
    "kind": "cpu",
    "memory_free": 1,
    "memory_total": 2**34,
}
GPU = {**CPU, "name": "CUDA0", "backend": "CUDA", "description": "A GPU", "kind": "gpu"}


def result(decode=10.0):
    return {
        "seconds_first_token": 1.5,
        "seconds_prefill": 2.0,
        "prefill_tokens_per_second": 50.0,
        "decode_tokens_per_second": [decode],
        "stats": None,
        "peak_device": None,
        "peak_rss": 2**30,
    }


@pytest.fixture
def model(write_gguf):
    return Model.read(write_gguf("Small-Q4_0.gguf"))


def invoke(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)], prog_name="snapkv-local")


def test_every_combination_is_a_case(tmp_path):
    matrix = Matrix((4096, 8192), (512, 1024), (1, "auto"), ("f16", "q8_0"), full=True)
    cases = matrix.cases(tmp_path)
    names = [case.name for case in cases]
    assert len(names) == len(set(names)) == 2 * 2 * (1 + 2 * 2)
    by_name = {case.name: case for case in cases}
    for case in cases:
        assert (case.settings.config is None) == (case.against is None)
        if case.against is not None:
            full = by_name[case.against].settings
            assert (full.n_prompt, full.kv_type, full.config) == (
                case.settings.n_prompt,
                case.settings.kv_type,
                None,
            )
    assert cases[0].label == "4,096 tokens, full cache, f16 KV"
    assert cases[1].settings.config == {"budget": 512, "layer_group": 1}


def test_without_the_full_cache_there_is_nothing_to_compare_with(tmp_path):
    (case,) = Matrix((4096,), (512,)).cases(tmp_path)
    assert case.against is None


def test_there_is_room_for_all_decoded_tokens(tmp_path):
    (case,) = Matrix((4096,), (512,), n_decode=2000).cases(tmp_path)
    assert case.settings.decode_cells >= 2000 + case.settings.n_warmup


def test_a_budget_that_compresses_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds all 1,024 tokens"):
        Matrix((4096, 1024), (1024,)).cases(tmp_path)


def test_settings_of_a_case_that_says_more():
    given = {"path": "p", "n_prompt": 5, "config": None, "weights": "q4_0", "leave_free": None}
    assert Settings.take(given) == Settings("p", 5, None)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Small-Q4_0.gguf", "Small-Q4_0"),  # its metadata name no type
        ("Small-00001-of-00001.gguf", "Small"),
    ],
)
def test_a_model_is_named_after_its_file(write_gguf, file, name):
    found = Model.read(write_gguf(file))
    assert (found.name, found.weights) == (name, "weights of unknown type")
    assert found.n_ctx_train == 1024
    assert found.to_dict()["path"] == file


def test_a_made_model_says_so(tmp_path):
    path = tmp_path / "tiny-q8_0.gguf"
    make_model(SHAPES["tiny"], "q8_0", path, name="tiny shape, random weights")
    assert Model.read(path).name == "tiny shape, random weights"


def test_the_type_of_the_weights_is_not_in_the_name(write_gguf):
    found = Model.read(write_gguf("Small.Q4_1.gguf", file_type=3))
    assert (found.name, found.weights) == ("Small", "q4_1")


@pytest.mark.parametrize(
    ("devices", "wanted", "layers"),
    [
        ([CPU], "auto", 0),
        ([CPU], 0, 0),
        ([CPU, GPU], "auto", -1),
        ([CPU, GPU], "all", -1),
        ([CPU, GPU], 12, 12),
        ([CPU, GPU], 0, 0),
    ],
)
def test_layers_on_gpus(devices, wanted, layers):
    assert Machine({}, devices).n_gpu_layers(wanted) == layers


@pytest.mark.parametrize("wanted", ["all", 12])
def test_a_gpu_that_is_not_there_is_refused(wanted):
    with pytest.raises(ConfigError, match="finds no GPU"):
        Machine({}, [CPU]).n_gpu_layers(wanted)


def test_the_device_is_what_computes():
    machine = Machine({}, [CPU, GPU, GPU])
    assert machine.device(-1) == {
        "name": "2 x A GPU",
        "kind": "gpu",
        "backend": "CUDA",
        "memory_total": 2**35,
    }
    assert machine.device(0)["kind"] == "cpu"


def run_all(monkeypatch, model, tmp_path, answers, repeat=2):
    """measure() with a worker that answers by the prompt's length."""
    calls = []

    def work(verb, settings):
        calls.append(settings["n_prompt"])
        return answers[settings["n_prompt"]]

    monkeypatch.setattr(runner, "work", work)
    record = start_record(Machine({"version": "0"}, [CPU]), model, 0, "a note")
    out = tmp_path / "out.json"
    cases = Matrix((4096, 8192), (512,)).cases(model.path)
    nothing = lambda *_: None  # noqa: E731
    measure(record, model, cases, repeat, out=out, before=nothing, after=nothing)
    return calls, json.loads(out.read_text())


def test_runs_alternate_and_every_one_is_kept(monkeypatch, model, tmp_path):
    answers = {4096: (result(), ""), 8192: (result(20.0), "")}
    calls, record = run_all(monkeypatch, model, tmp_path, answers)
    assert calls == [4096, 8192] * 2
    assert len(record["runs"]) == 4
    assert {"date", "version", "commit", "machine", "device", "build", "note"} <= set(record)
    for run in record["runs"]:
        assert run["settings"]["model"] == model.name
        assert "path" not in run["settings"]
    (case, other) = record["summary"].values()
    assert (case["n_runs"], case["seconds_first_token"]) == (2, 1.5)
    assert other["decode_tokens_per_second"] == 20.0
    # a record says nothing of folders
    assert str(tmp_path) not in json.dumps(record)


def test_what_fails_is_recorded_and_not_run_again(monkeypatch, model, tmp_path):
    answers = {4096: (None, "ended with 1: no memory"), 8192: (result(), "")}
    calls, record = run_all(monkeypatch, model, tmp_path, answers)
    assert calls == [4096, 8192, 8192]
    (failure,) = record["failures"]
    assert failure["error"] == "ended with 1: no memory"
    assert len(record["runs"]) == 2


def test_the_summary_has_the_spread():
    stamp = {"case": "a", "label": "A", "against": None, "settings": {"n_prompt": 9, "n_seq": 1}}
    found = summarize([{**stamp, **result(decode)} for decode in (3.0, 1.0, 2.0)])["a"]
    assert found["decode_tokens_per_second"] == 2.0
    assert found["spread"]["decode_tokens_per_second"] == [1.0, 3.0]
    assert found["peak_device"] is None
    assert found["spread"]["peak_device"] is None


def test_the_first_token_of_older_records_is_that_of_one_sequence():
    run = {**result(), "settings": {"n_seq": 1}}
    assert first_token(run) == 1.5
    del run["seconds_first_token"]
    assert first_token(run) == 2.0
    assert first_token({**run, "settings": {"n_seq": 2}}) is None


def test_a_worker_that_fails_says_why():
    found, error = process.work("run", {"path": "/no/such.gguf", "n_prompt": 1, "config": None})
    assert found is None
    assert error.startswith("ended with 1: ")


def test_a_worker_that_fails_with_bytes_that_are_no_text(monkeypatch):
    code = "import os; os.write(2, b'caf\\xe9'); os._exit(3)"
    monkeypatch.setattr(process, "of_module", lambda module: [sys.executable, "-c", code])
    assert process.work("run") == (None, "ended with 3: caf\N{REPLACEMENT CHARACTER}")


def test_a_worker_that_takes_too_long_is_stopped():
    assert process.work("describe", timeout=0.001) == (None, "stopped after 0 s")


def test_commits(tmp_path):
    assert commit(tmp_path) == "unknown"
    assert package_commit() == "unknown" or len(package_commit()) in (40, 41)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Usage: snapkv-local bench"),
        (("--full", "--json", "demo"), "name one MODEL"),
        (("demo", "--prompt-tokens", "4k,x"), "'x' is not a number of tokens"),
        (("demo", "--budget", ""), "'' is not a number of tokens"),
        (("demo", "--kv-type", "f16,f8"), "'f8' is not one of 'f16', 'q8_0', 'q4_0'"),
        (("demo", "--layer-group", "1,all"), "'all' is not a number of layers"),
        (("demo", "--repeat", "0"), "0 is not in the range"),
        (("make-model",), "Missing option '--shape'"),
    ],
)
def test_wrong_usage(arguments, says):
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert says in found.stderr


def test_a_missing_model_is_an_error():
    found = invoke("/no/such.gguf")
    assert found.exit_code == 1
    assert "/no/such.gguf: does not exist" in found.stderr


def test_help_names_the_subcommand_too():
    text = invoke("--help").stdout
    assert "snapkv-local bench [OPTIONS] MODEL" in text
    assert "make-model" in text
    assert "snapkv-local bench make-model [OPTIONS]" in invoke("make-model", "--help").stdout


class FakeNvml:
    """Two GPUs and the processes on them."""

    class NVMLError(Exception):
        pass

    class Thing:
        def __init__(self, **values):
            self.__dict__.update(values)

    refuses = False

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, name):
        return {"GPU-b": 1}[name]

    def nvmlDeviceGetMemoryInfo(self, handle):
        return self.Thing(used=(100, 1000)[handle])

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        if self.refuses:
            raise self.NVMLError
        return [
            self.Thing(pid=7, usedGpuMemory=(30, 300)[handle]),
            self.Thing(pid=8, usedGpuMemory=None),
        ]


@pytest.mark.parametrize(
    ("visible", "used", "own"),
    [(None, 1100, 330), ("0", 100, 30), ("1", 1000, 300), ("GPU-b", 1000, 300), ("1,0", 1100, 330)],
)
def test_gpus_that_cuda_sees(visible, used, own):
    gpus = nvml.Gpus(FakeNvml(), visible)
    assert gpus.used() == used
    assert gpus.used_by(7) == own
    assert gpus.used_by(8) is None  # the driver does not tell
    assert gpus.used_by(9) is None


def test_the_growth_stands_in_where_the_driver_does_not_tell(monkeypatch):
    fake = FakeNvml()
    fake.refuses = True
    monkeypatch.setattr(nvml, "_PERIOD", 0.0)
    watch = nvml.PeakMemory(nvml.Gpus(fake, "0"))
    fake.nvmlDeviceGetMemoryInfo = lambda handle: fake.Thing(used=150)
    with watch:
        assert watch.look() == 50
        while watch.to_dict()["peak_device"] == 0:
            pass
    found = watch.to_dict()
    assert (found["peak_device"], found["peak_device_from"]) == (50, "growth of the device's")


def test_each_of_several_gpus_has_its_own_peak(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setattr(nvml, "_PERIOD", 0.0)
    watch = nvml.PeakMemory(nvml.Gpus(fake, None))
    fake.nvmlDeviceGetMemoryInfo = lambda handle: fake.Thing(used=(150, 1700)[handle])
    with watch:
        while watch.to_dict()["peak_device_growth"] == 0:
            pass
    found = watch.to_dict()
    assert (found["peak_device_growth"], found["peak_device_growth_each"]) == (750, [50, 700])


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(nvml, "NVML", "libnone.so")
    assert nvml.Gpus.open() is None
    with nvml.PeakMemory(None) as watch:
        assert watch.look() == 0
    assert watch.to_dict() == {"peak_device": None, "peak_device_from": None}


def test_a_driver_without_the_package_is_an_error(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(nvml.ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr(nvml.importlib, "import_module", missing)
    with pytest.raises(LibraryError, match=r'pip install "snapkv-local\[nvml\]"'):
        nvml.Gpus.open()
