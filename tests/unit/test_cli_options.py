"""What the options of `run` become, and the exit code of what goes wrong while it loads."""

import importlib
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from snapkv_local import SnapKVConfig
from snapkv_local.cli import main
from snapkv_local.cli.options import CONFIG_NAMES
from snapkv_local.cli.sampling import Sampling
from snapkv_local.errors import OutOfMemoryError, option_of
from snapkv_local.llama.load_options import Adapter, DraftOptions, LoadOptions

RUN = importlib.import_module("snapkv_local.cli.run")
# cells for one answer of --max-tokens
DECODE_CELLS = 512


@pytest.fixture
def loaded(write_gguf, monkeypatch):
    """Runs `run` up to the point where the model is loaded, and returns the arguments of load()."""

    def run(*arguments: str) -> tuple:
        seen: list[tuple] = []

        def load(*args):
            seen.append(args)
            raise OutOfMemoryError("the test", "ends here", "look at what load() was given")

        monkeypatch.setattr(RUN, "load", load)
        command = ["run", str(write_gguf()), "--prompt", "Who?", *arguments]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1, result.output
        assert result.stderr == "Error: the test: ends here; look at what load() was given\n"
        return seen[0]

    return run


def test_without_options_the_defaults_are_those_of_the_configuration(loaded):
    path, config, options = loaded()
    assert path.name == "model.gguf"
    assert config == SnapKVConfig(decode_cells=DECODE_CELLS)
    assert options == LoadOptions()


def test_every_option_reaches_its_setting(loaded):
    settings = {
        "budget": ("4k", 4096),
        "window_size": ("64", 64),
        "observation": ("24", 24),
        "kernel_size": ("7", 7),
        "pooling": ("max", "max"),
        "aggregation": ("sum", "sum"),
        "self_weight": ("0.5", 0.5),
        "n_sink": ("4", 4),
        "min_coverage": ("0.9", 0.9),
        "max_budget": ("6k", 6144),
        "decode_cells": ("2k", 2048),
        "layer_group": ("3", 3),
        "hidden_state": ("host", "host"),
        "n_ubatch": ("2k", 2048),
        "ops": ("ggml", "ggml"),
        "prefill": ("exact", "exact"),
        "select_share": ("0.3", 0.3),
        "select_min": ("1k", 1024),
        "select_depth": ("0.6", 0.6),
        "select_settled": ("0", 0.0),
        "vault": ("ram", "ram"),
        "vault_limit": ("2GiB", 2**31),
        "recall_every": ("24", 24),
        "recall_queries": ("6", 6),
        "recall_rows": ("4k", 4096),
        "recall_delay": ("3", 3),
        "recall_margin": ("1.5", 1.5),
    }
    assert set(CONFIG_NAMES) == {*settings, "keep_ratio", "policy", "protect_system", "recall"}
    arguments = [part for name, (text, _) in settings.items() for part in (option_of(name), text)]
    _, config, options = loaded("--ctx", "128k", "--kv-type", "q8_0", *arguments)
    assert config == SnapKVConfig(**{name: value for name, (_, value) in settings.items()})
    assert options == LoadOptions(ctx=131072, kv_type="q8_0")


def test_what_chooses_the_rows(loaded):
    _, config, _ = loaded("--policy", "question:kernel_size=21", "--protect-system")
    assert config == SnapKVConfig(
        policy="question:kernel_size=21", protect_system=True, decode_cells=DECODE_CELLS
    )


def test_recall(loaded):
    _, config, _ = loaded("--recall", "--vault", "ram")
    assert config == SnapKVConfig(recall=True, vault="ram", decode_cells=DECODE_CELLS)


def test_the_question_votes(loaded):
    _, config, _ = loaded("--observation", "question")
    assert config == SnapKVConfig(observation="question", decode_cells=DECODE_CELLS)


def test_a_ratio_and_what_is_automatic(loaded):
    automatic = [
        "--layer-group",
        "auto",
        "--hidden-state",
        "auto",
        "--ubatch-size",
        "auto",
        "--ops",
        "auto",
    ]
    _, config, _ = loaded("--keep-ratio", "0.25", *automatic)
    assert config == SnapKVConfig(keep_ratio=0.25, decode_cells=DECODE_CELLS)


# llama.cpp's spelling, ours, and what either becomes
SAME = [
    (("-c", "4096"), ("--ctx", "4k"), 4096),
    (("--ctx-size", "0"), ("--ctx", "0"), 0),
    (("-ngl", "99"), ("--gpu-layers", "99"), 99),
    (("-ngl=all",), ("--n-gpu-layers", "all"), "all"),
    (("-mg", "1"), ("--main-gpu", "1"), 1),
    (("-ts", "3,1"), ("--tensor-split", "3,1.0"), (3.0, 1.0)),
    (("-t", "1"), ("--threads", "1"), 1),
    (("-ctk", "q8_0", "-ctv", "q8_0"), ("--kv-type", "q8_0"), "q8_0"),
    (("-ctk=q8_0",), ("--cache-type-k", "q8_0", "--cache-type-v", "f16"), "q8_0/f16"),
]


@pytest.mark.parametrize(
    ("theirs", "ours", "value"),
    SAME,
    ids=lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else "",
)
def test_names_of_llama_cpp(loaded, theirs, ours, value):
    found = loaded(*theirs)
    assert found == loaded(*ours)
    assert value in vars(found[2]).values()


def test_how_a_model_is_loaded(loaded):
    words = (
        "-c 4k -ctv q8_0 -ngl all -t 1 --no-mmap --lora-scaled C:\\a.gguf:-0.5 --chat-format chatml"
    )
    assert loaded(*words.split())[2] == LoadOptions(
        ctx=4096,
        kv_type="f16/q8_0",
        gpu_layers="all",
        threads=1,
        no_mmap=True,
        adapter=Adapter(Path(r"C:\a.gguf"), -0.5),
        chat_format="chatml",
    )


def test_how_chats_are_written(loaded, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}", encoding="utf-8")
    for arguments in (["--chat-template", "{{ messages }}"], ["--chat-template-file", str(file)]):
        _, _, options = loaded(*arguments)
        assert options == LoadOptions(chat_template="{{ messages }}")
    with pytest.raises(AssertionError, match="--chat-format and --chat-template both say"):
        loaded("--chat-format", "chatml", "--chat-template", "llama3")


def test_what_guesses_tokens(loaded, write_gguf):
    draft = write_gguf()
    _, _, options = loaded("-md", str(draft), "--draft-max", "5", "--draft-p-min", "0.5")
    assert options.drafts == DraftOptions(draft, n_max=5, p_min=0.5)
    assert options.drafts.numbers() == {"n_max": 5, "p_min": 0.5}
    _, _, options = loaded("--lookup", "--spec-draft-n-max", "16")
    assert options.drafts == DraftOptions(n_max=16)
    _, _, options = loaded("--mtp", "--draft-max", "2", "--draft-min", "1")
    assert options.drafts == DraftOptions(n_max=2, n_min=1, heads=True)
    assert options.arguments()["load_mtp"] is True


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--draft-max", "3"], "--draft-max 3"),
        (["--lookup", "--draft-min", "1"], "--draft-min 1"),
        (["--draft-p-min", "0.5"], "--draft-p-min 0.5"),
        (["-md", "demo", "--draft-min", "4"], "--draft-min 4"),
        (["-md", "demo", "--lookup"], "--lookup"),
        (["-md", "demo", "--mtp"], "--model-draft and --mtp"),
        (["--lookup", "--mtp"], "--lookup and --mtp"),
    ],
)
def test_guesses_of_nothing_are_refused(write_gguf, arguments, option):
    result = CliRunner().invoke(main, ["run", str(write_gguf()), "--prompt", "Who?", *arguments])
    assert result.exit_code == 2
    assert f"Error: {option}" in result.stderr


@pytest.mark.parametrize("name", ["-ub", "--ubatch-size", "--ubatch-size"])
def test_tokens_at_once(loaded, name):
    assert loaded(name, "256")[1] == SnapKVConfig(n_ubatch=256, decode_cells=DECODE_CELLS)


@pytest.fixture
def asked(write_gguf, monkeypatch):
    """Runs `run` up to the question; returns (messages, max_tokens, sampling, stderr)."""

    def run(*arguments):
        seen = []

        def answer_one(_llm, *given, stream):
            seen.extend(given)
            raise KeyboardInterrupt

        monkeypatch.setattr(RUN, "load", lambda *_args: None)
        monkeypatch.setattr(RUN, "answer_one", answer_one)
        command = ["run", "-m", str(write_gguf()), "-p", "Who?", *arguments]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 130, result.stderr
        return (*seen, result.stderr)

    return run


def test_sampling_without_options(asked):
    messages, max_tokens, sampling, stderr = asked()
    assert messages == [{"role": "user", "content": "Who?"}]
    assert (max_tokens, sampling) == (512, Sampling())
    assert "Warning" not in stderr
    seeds = {sampling.arguments()["seed"] for _ in range(4)}
    assert len(seeds) > 1


def test_sampling_under_the_names_of_llama_cpp(asked):
    words = "--temp 0.7 --top-k 0 --top-p 1 --min-p 0.1 --repeat-penalty 1.1 -s 5 -n -1 -sys Short."
    messages, max_tokens, sampling, stderr = asked(*words.split())
    assert messages[0] == {"role": "system", "content": "Short."}
    assert max_tokens == 0
    assert sampling == Sampling(0.7, 0, 1.0, 0.1, 1.1, 5)
    assert sampling.arguments()["seed"] == 5
    assert "Warning" not in stderr


def test_what_has_no_effect_at_temperature_0_is_said(asked):
    *_, stderr = asked("--top-k", "4", "-s", "1", "--repeat-penalty", "2")
    assert "Warning: --top-k, --seed: no effect at temperature 0" in stderr


def test_a_repository_of_the_hub(monkeypatch):
    def find_model(name):
        raise OutOfMemoryError(name, "is asked for", "go on")

    monkeypatch.setattr(RUN, "find_model", find_model)
    for name in ("owner/repo:Q8_0", "hf:owner/repo:Q8_0"):
        result = CliRunner().invoke(main, ["run", "-hf", name, "-p", "Who?"])
        assert result.stderr == "Error: hf:owner/repo:Q8_0: is asked for; go on\n"


def commands(group=main):
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from commands(command)


def test_defaults_in_help_are_those_of_the_dataclasses():
    seen = set()
    # config fills the budget in
    for defaults in (SnapKVConfig(), Sampling()):
        for command in commands():
            for option in command.params:
                if option.name not in vars(defaults) or option.hidden:
                    continue
                if command.name == "eval" and option.name == "seed":
                    continue  # of the documents that it makes
                if command.name == "ingest" and option.name == "vault":
                    continue  # it needs one
                if command.name == "serve" and option.name == "temperature":
                    continue  # llama-server's
                text = option.get_help_record(click.Context(command))[1]
                shown = re.search(r"\[default: ([^\];]*)", text)
                value = getattr(defaults, option.name)
                if value is None or value is False:
                    assert shown is None or option.name == "max_budget", (command.name, text)
                else:
                    is_number = isinstance(value, float)
                    said = float(shown[1]) if is_number else shown[1]
                    assert said == (value if is_number else str(value)), (command.name, text)
                    seen.add(option.name)
    assert {
        "budget",
        "window_size",
        "kernel_size",
        "self_weight",
        "decode_cells",
        "top_k",
        "temperature",
    } <= seen


def test_help_of_every_option_is_whole_phrases():
    for command in commands():
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert re.match(r"[A-Z].*[.;]( |$)", option.help or ""), (command.name, option.opts)


def test_full_has_no_configuration(loaded):
    _, config, _ = loaded("--full")
    assert config is None


def test_settings_that_contradict_each_other(write_gguf):
    command = [
        "run",
        str(write_gguf()),
        "--prompt",
        "Who?",
        "--budget",
        "32",
        "--window-size",
        "32",
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: --budget 32: leaves no row to select")


def test_own_in_its_range(write_gguf):
    command = ["run", str(write_gguf()), "--prompt", "Who?", "--self-weight", "nan"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: --self-weight nan: is not a number from 0 to 1000")


def test_full_names_the_option_as_it_was_written(write_gguf):
    command = ["run", str(write_gguf()), "--prompt", "Who?", "--full", "--layer-group", "2"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "leave out --layer-group" in result.stderr


def test_ctrl_c_exits_with_130(write_gguf, monkeypatch):
    def load(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(RUN, "load", load)
    result = CliRunner().invoke(main, ["run", str(write_gguf()), "--prompt", "Who?"])
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "Interrupted"


def test_documents_come_before_the_question(tmp_path, write_gguf, monkeypatch):
    asked = []
    monkeypatch.setattr(RUN, "load", lambda *_args: None)
    monkeypatch.setattr(RUN, "answer_one", lambda llm, messages, *_rest, stream: stop(messages))

    def stop(messages):
        asked.extend(messages)
        raise KeyboardInterrupt

    (tmp_path / "a.txt").write_bytes(b"One.\n\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe" + "Two.\r\n".encode("utf-16-le"))
    command = ["run", str(write_gguf()), "--prompt", "Who?"]
    for file in (tmp_path / "a.txt", tmp_path / "b.txt"):
        command += ["--file", str(file)]
    CliRunner().invoke(main, [*command, "--file", "-"], input="Three.\n")
    content = "One.\n\nTwo.\n\nThree.\n\nWho?"
    assert asked == [{"role": "user", "content": content}]
