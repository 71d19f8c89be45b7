"""The command line with a real model, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "snapkv_local"]
SMALL = [
    "--budget",
    "96",
    "--window-size",
    "16",
    "--decode-cells",
    "64",
    "--ctx",
    "1k",
    "--threads",
    "1",
]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory, document):
    path = tmp_path_factory.mktemp("cli") / "document.txt"
    path.write_text(document[-1500:], encoding="utf-8")
    return str(path)


def run(*arguments, stdin=""):
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=300
    )


def test_stdout_has_the_answer_and_nothing_else(text_file, shape):
    question = ["--file", text_file, "--prompt", "What is ready for a match?"]
    piped = run("run", "needle", *question, *SMALL, "--max-tokens", "12")
    answer = run("run", "needle", *question, *SMALL, "--max-tokens", "12", "--json")
    assert piped.returncode == 0, piped.stderr
    found = json.loads(answer.stdout)
    assert piped.stdout == found["text"] + "\n"
    *lines, figures = piped.stderr.splitlines()
    assert all(" so far" in line for line in lines)  # there are some where the prefill takes long
    assert f"kept 96 of {found['n_prompt']} prompt tokens" in figures
    assert found["prefill"]["n_kept"] == 96
    assert found["peak_rss"] > found["bytes_kv_full"] > found["bytes_kv"] > 0
    # rows and room apart: K and V of all layers and heads in f16, and their positions
    assert found["bytes_kv"] - found["bytes_decode_cells"] == pytest.approx(
        96 * shape.n_layer * 2 * shape.n_head_kv[0] * shape.head_k * 2, rel=0.03
    )


def test_sampling(text_file):
    question = ["-f", text_file, "-p", "What is ready for a match?", *SMALL, "-n", "8", "--json"]
    found = []
    for more in (
        ["--temp", "1.5", "-s", "7"],
        ["--temp", "1.5", "-s", "7"],
        ["--temp", "1.5", "-s", "7", "--top-k", "1"],
        [],
    ):
        answer = run("run", "needle", *question, *more)
        assert answer.returncode == 0, answer.stderr
        found.append(json.loads(answer.stdout)["text"])
    assert found[0] == found[1] != found[2]
    assert found[2] == found[3]


def test_types_of_k_and_v(text_file, tmp_path):
    """A document has them, and a question about it takes them."""
    book = str(tmp_path / "book.snapkv")
    made = run(
        "ingest", "needle", "-f", text_file, "--out", book, "-ctk", "q8_0", "-c", "1k", "-t", "1"
    )
    assert made.returncode == 0, made.stderr
    small = [*SMALL, "-n", "4"]
    answer = run("ask", book, "What is ready?", *small)
    assert answer.returncode == 0, answer.stderr
    assert run("ask", book, "What is ready?", *small, "-ctk", "q8_0").stdout == answer.stdout
    refused = run("ask", book, "What is ready?", *small, "-ctk", "f16")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "use -ctk q8_0 -ctv f16, or make it again with --kv-type f16" in refused.stderr


def test_on_a_gpu_k_and_v_have_one_type(monkeypatch):
    from snapkv_local import Llama  # isort: skip

    import llama_cpp

    from snapkv_local.errors import ConfigError
    from snapkv_local.llama.load_options import LoadOptions

    assert Llama
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    with pytest.raises(ConfigError, match="tested on the CPU only; give --kv-type"):
        LoadOptions(kv_type="q8_0/f16").arguments()
    assert LoadOptions(kv_type="q8_0/f16", gpu_layers=0).arguments()["type_k"] == 8


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {}),
        ({"main_gpu": 1}, {"main_gpu": 1, "split_mode": 0}),
        ({"tensor_split": (3.0, 1.0)}, {"tensor_split": [3.0, 1.0]}),
        ({"main_gpu": 2}, "is for 3 GPUs or more, and there are 2 here: A, B"),
        ({"tensor_split": (1.0, 1.0, 1.0)}, "is for 3 GPUs or more"),
        ({"tensor_split": (1.0,), "main_gpu": 0}, "give one of the two"),
    ],
)
def test_which_gpus_compute(monkeypatch, options, arguments):
    from snapkv_local import Llama  # isort: skip

    from snapkv_local.errors import ConfigError
    from snapkv_local.llama.load_options import LoadOptions
    from snapkv_local.native import devices

    assert Llama
    cards = [devices.Device(name, "CUDA", "", "gpu", 0, 0) for name in ("A", "B")]
    monkeypatch.setattr(devices, "devices", lambda: cards)
    if isinstance(arguments, str):
        with pytest.raises(ConfigError, match=arguments):
            LoadOptions(**options).arguments()
        return
    given = LoadOptions(**options).arguments()
    names = {"main_gpu", "split_mode", "tensor_split"}
    assert {name: given[name] for name in names & set(given)} == arguments


def test_what_chooses_the_rows(text_file):
    question = ["--file", text_file, "--prompt", "What is ready for a match?", "--json"]
    command = ["run", "needle", *question, *SMALL, "--max-tokens", "4"]
    found = []
    for more in ([], ["--policy", "question:kernel_size=21+aggregation=max"], ["--protect-system"]):
        answer = run(*command, *more)
        assert answer.returncode == 0, answer.stderr
        found.append(json.loads(answer.stdout)["prefill"])
    assert [stats["n_kept"] for stats in found] == [96, 96, 96]
    assert len({stats["coverage"] for stats in found}) == 3
    refused = run(*command, "--policy", "adaptive")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "choose what it shares rows out for, snapkv" in refused.stderr


def test_the_question_comes_from_stdin_and_full_keeps_everything(text_file):
    result = run(
        "run", "--model", "needle", "--file", text_file, "--full", "--ctx", "1k", "--json",
        "--max-tokens", "4", stdin="What is ready for a match?\n",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["prefill"] is None
    assert found["n_kept"] == found["n_prompt"] > 300


def test_an_error_of_the_model_exits_with_1(text_file):
    result = run("run", "needle", "--file", text_file, "--prompt", "?", "--ctx", "256", "--json")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "exceed context window of 256; raise --ctx" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_exits_with_130(text_file, tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "run", "demo", "--prompt", "Tell me a long story.", "--max-tokens", "2000",
         "--decode-cells", "4k", "--threads", "1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.read(1)  # the answer has begun
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in error
    assert "Traceback" not in error


def test_doctor_names_versions_devices_and_support():
    result = run("doctor", "needle", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["versions"]["llama-cpp-python"] == report["versions"]["llama-cpp-python needed"]
    (cpu,) = (device for device in report["devices"] if device["kind"] == "cpu")
    assert (cpu["name"], cpu["backend"], cpu["ops"]) == ("CPU", "CPU", "fused ops")
    assert "warning" not in cpu
    assert report["model"]["supported"] is True
    assert report["model"]["arch"] == "llama"
    shown = run("doctor", "needle").stdout
    assert "supported" in shown
    assert "fused ops" in shown


def test_what_scores_and_how_much_at_once_can_be_chosen(text_file):
    result = run(
        "run", "needle", "--file", text_file, "--prompt", "What is ready?", *SMALL, "--json",
        "--max-tokens", "2", "--ops", "ggml", "--ubatch-size", "64",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    prefill = json.loads(result.stdout)["prefill"]
    assert (prefill["ratio_fused"], prefill["n_ubatch"]) == (0, 64)
    assert "ggml's ops in 100% of the layers" in result.stderr
