"""The command line before any model is loaded: options, usage errors, exit codes."""

import click
import pytest
from click.testing import CliRunner

from snapkv_local.cli import main
from snapkv_local.cli.options import CONFIG_NAMES
from snapkv_local.cli.run import run
from snapkv_local.cli.types import SIZE, GpuLayers
from snapkv_local.report.units import size


def invoke(*arguments, stdin=None):
    return CliRunner().invoke(main, list(arguments), input=stdin, prog_name="snapkv-local")


@pytest.mark.parametrize(
    ("text", "tokens"), [("131072", 131072), ("128k", 131072), ("128K", 131072), ("1m", 1048576)]
)
def test_sizes(text, tokens):
    assert SIZE.convert(text, None, None) == tokens


@pytest.mark.parametrize("text", ["", "k", "12kb", "-1", "0", "1.5k"])
def test_no_sizes(text):
    with pytest.raises(click.BadParameter, match="not a number of tokens"):
        SIZE.convert(text, None, None)


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("all", "all"), ("20", 20)])
def test_gpu_layers(text, value):
    assert GpuLayers().convert(text, None, None) == value


def test_every_setting_has_an_option():
    options = {parameter.name for parameter in run.params}
    assert set(CONFIG_NAMES) <= options


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run",), "name one MODEL"),
        (("run", "demo", "--model", "demo"), "name one MODEL"),
        (("run", "demo", "-hf", "owner/repo"), "name one MODEL"),
        (("plan",), "name one MODEL"),
        (("run", "demo", "--lora", "a.gguf"), "'a.gguf' does not exist"),
        (("run", "demo", "--lora", __file__, "--lora-scaled", "a:2"), "one LoRA adapter can be"),
        (("serve", "demo", "--lora-scaled", "a.gguf"), "'a.gguf' is not FILE:SCALE"),
        (("serve", "demo", "--lora-scaled", "a.gguf:inf"), "'a.gguf:inf' is not FILE:SCALE"),
        (("serve", "demo", "--mmproj", "a.gguf"), "--mmproj a.gguf: images and sound"),
        (("run", "demo", "-fa", "on"), "flash attention is always on"),
        (("run", "demo", "--kv-type", "q8_0", "-ctk", "f16"), "--kv-type is for both K and V"),
        (("ask", __file__, "x", "-sys", "y"), "--system-prompt y: the rows of a document"),
        (("run", "--document", __file__, "-sys", "y"), "--system-prompt: the rows of a document"),
        (("tune", "demo", "--file", __file__, "-ctk", "q8_0"), "one type for K and V"),
        # with several letters after one dash, an option that is not there is never another one's value
        (("run", "demo", "-ngl99"), "'gl99' is not a number of tokens"),
        (("run", "demo", "-ctx", "4k"), "'tx' is not a number of tokens"),
        (("run", "demo", "-temp", "1"), "'emp' is not a number of threads"),
        (("run", "demo", "-prompt", "x"), "unexpected extra argument"),
        (("run", "-m", "demo", "-prompt", "x"), "name one MODEL"),
        (("run", "demo", "--full", "--budget", "64", "--prompt", "x"), "leave out --budget"),
        (("run", "demo", "--file", "-"), "give the question with --prompt"),
        (("run", "demo", "--ctx", "12kb"), "not a number of tokens"),
        (("run", "demo", "--kv-type", "q5"), "q5"),
        (("run", "demo", "--file", "/no/such/file"), "/no/such/file"),
        (("run", "demo", "--gpu-layers", "some"), "write one, auto or all"),
        (
            ("run", "demo", "--layer-group", "all"),
            "'all' is not a number of layers; write one, or auto",
        ),
        (
            ("run", "demo", "--ubatch-size", "0"),
            "'0' is not a number of tokens; write one, or auto",
        ),
        (
            ("run", "demo", "--hidden-state", "disk"),
            "'disk' is not one of 'auto', 'device', 'host'",
        ),
        (("run", "demo", "--ops", "cuda"), "'cuda' is not one of 'auto', 'fused', 'ggml'"),
        (("run", "demo", "--full", "--ops", "ggml", "--prompt", "x"), "leave out --ops"),
        (("reserve",), "No such command"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, says):
    result = invoke(*arguments, stdin="")
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_errors_exit_with_1_and_a_message():
    result = invoke("run", "/no/such/model.gguf", "--prompt", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: /no/such/model.gguf: does not exist; ")
    assert result.stdout == ""


def test_the_papers_form_is_a_matter_of_settings():
    result = invoke("run", "demo", "--prompt", "x", "--policy", "snapkv-paper")
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "give --policy snapkv and --kernel-size 5, --self-weight 0, --pooling avg, --aggregation sum, "
        "--observation 32\n"
    )


def test_empty_question():
    result = invoke("run", "demo", stdin="  \n")
    assert result.exit_code == 2
    assert "no question: stdin: has nothing but white space" in result.stderr
    result = invoke("run", "demo", "--prompt", " ")
    assert result.exit_code == 2
    assert "the question is empty" in result.stderr


def test_help_and_version():
    assert invoke("--help").exit_code == 0
    assert invoke("--version").output[0].isdigit()


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 * 2**20, "200 MiB"), (2**31, "2.0 GiB")],
)
def test_bytes_for_people(n_bytes, text):
    assert size(n_bytes) == text
