"""Errors, from wherever they come, in the words of the door that the input came through."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import snapkv_local
from snapkv_local import foreign
from snapkv_local.cli import border, main
from snapkv_local.errors import (
    ConfigError,
    ConversationError,
    ModelFileError,
    OutOfMemoryError,
    PromptError,
)
from snapkv_local.models import files
from snapkv_local.server.errors import from_exception


def test_a_cure_names_what_the_reader_can_turn():
    error = PromptError(
        "prompt", "is too long", "raise {n_ctx}, {decode_cells} or {budget}; see {verbose}"
    )
    assert str(error) == (
        "prompt: is too long; raise n_ctx, decode_cells or budget; see verbose=True"
    )
    assert error.says("cli").endswith("raise --ctx, --decode-cells or --budget; see --verbose")
    assert error.says("server").endswith(
        "raise the server's --ctx, the server's --decode-cells or --budget; see the server's --verbose"
    )


def test_a_cure_may_name_a_value():
    error = ConfigError("policy='a'", "is not known", "give {policy='b'} and {n_ubatch=64}")
    assert str(error).endswith("give policy='b' and n_ubatch=64")
    assert error.says("cli") == "--policy 'a': is not known; give --policy b and --ubatch-size 64"
    assert error.says("server").endswith("give policy='b' and n_ubatch=64")


def test_a_setting_that_is_refused_is_named_as_it_was_given():
    error = ConfigError("min_coverage=7", "is not a share", "give {0.5}")
    assert str(error) == "min_coverage=7: is not a share; give {0.5}"
    assert error.says("cli") == "--min-coverage 7: is not a share; give {0.5}"
    assert ConfigError("n_threads=9", "x", "y").says("cli") == "--threads 9: x; y"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MemoryError(), 1, "Error: memory: out of memory; lower --ctx"),
        (MemoryError("Unable to allocate 96.0 MiB for an array"), 1, "memory: 96.0 MiB more is"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "Error: memory: out of memory; "),
        (RuntimeError("can't start new thread"), 1, "Error: memory: out of memory; "),
        (ImportError("x.so: failed to map segment from shared object"), 1, "out of memory"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 1, "a: permission denied; check"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "output: no space left on device"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), border.READER_GONE, ""),
        (ValueError("two\nlines"), 1, "Error: two lines"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (OutOfMemoryError("a", "b", "lower {n_ctx}"), 1, "Error: a: b; lower --ctx"),
    ],
)
def test_every_error_is_one_line_and_an_exit_code(error, code, line):
    found_code, found = border.verdict(error)
    assert found_code == code
    assert line in found
    assert bool(found) == bool(line)
    assert "\n" not in found


def test_what_nobody_foresaw_is_one_line_that_names_its_place():
    try:
        {}["runs"]
    except KeyError as e:
        code, line = border.verdict(e)
    assert code == 1
    assert line.startswith("Error: KeyError at test_border.py:")
    assert "report" in line


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("tensor 'x' data is not within the file bounds", ModelFileError, "file bounds; check"),
        ("mmap failed: Cannot allocate memory", OutOfMemoryError, "out of memory; lower n_ctx"),
        ("", ModelFileError, "cannot be loaded; check"),
    ],
)
def test_a_model_that_does_not_load_has_the_logs_reason(said, kind, words):
    found = foreign.from_load(ValueError("Failed to load model from file: a"), "a.gguf", said)
    assert isinstance(found, kind)
    assert words in str(found)


@pytest.mark.parametrize(
    ("reason", "is_it"),
    [
        ("failed to initialize the context: std::bad_alloc", True),
        ("ggml_aligned_malloc: insufficient memory (attempted to allocate  98.25 MB)", True),
        ("mmap failed: Cannot allocate memory", True),
        ("unable to allocate CPU buffer", True),
        ("the model's KV cache is of a kind of its own (compressed or mixed memory)", False),
    ],
)
def test_which_reasons_are_of_memory(reason, is_it):
    assert foreign.says_out_of_memory(reason) == is_it


def test_errors_that_are_ours_or_unknown_stay(tmp_path):
    ours, unknown = ConfigError("a", "b", "c"), TypeError("d")
    assert foreign.from_load(ours, "a.gguf", "memory") is ours
    assert foreign.from_load(unknown, "a.gguf", "") is unknown


@pytest.mark.parametrize("number", ["00002", "00003"])
def test_a_later_part_of_a_split_model_names_the_first(tmp_path, number):
    part = tmp_path / f"m-{number}-of-00003.gguf"
    part.write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match=r"first file .* in 3; give m-00001-of-00003\.gguf"):
        files.check(part)


def test_a_path_that_is_no_text(tmp_path):
    with pytest.raises(ModelFileError, match=r"not UTF-8.*; rename it"):
        files.check(tmp_path / os.fsdecode(b"\xff.gguf"))


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        *(("--threads", value, "not a number of threads") for value in ("0", "-3", "999", "x")),
        *(("--temperature", value, "--temperature") for value in ("-1", "nan", "inf", "x")),
        *(("--ctx", value, "than 2,147,483,647") for value in ("2147483648", "9999999m")),
        *(("--max-tokens", value, "not a number of tokens") for value in ("0", "-2", "1e3", "٣")),
        *(("--gpu-layers", value, "not a number of layers") for value in ("-1", "9999999", "٣")),
        *(("--tensor-split", value, "list of shares") for value in ("", "0,0", "1;2", "-1,2")),
        *(("--main-gpu", value, "--main-gpu") for value in ("-1", "x", "٣٣٣٣")),
        *(("--keep-ratio", value, "--keep-ratio") for value in ("0", "2", "nan", "x")),
        *(("--self-weight", value, "--self-weight") for value in ("-1", "nan", "inf")),
        *(("--n-sink", value, "--n-sink") for value in ("-1", "99999999999")),
        *(("--kernel-size", value, "--kernel-size") for value in ("0", "4", "99999999999")),
        *(("--min-coverage", value, "--min-coverage") for value in ("-1", "nan", "2")),
    ],
)
def test_numbers_are_checked(option, value, says):
    result = CliRunner().invoke(main, ["run", "demo", "--prompt", "x", option, value])
    assert result.exit_code in (1, 2), result.output
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("option", ["--minutes", "--target-kl"])
@pytest.mark.parametrize("value", ["0", "nan", "inf"])
def test_numbers_of_tune_are_checked(option, value):
    result = CliRunner().invoke(main, ["tune", "demo", "--file", __file__, option, value])
    assert result.exit_code == 2
    assert f"'{option}'" in result.stderr


def test_a_home_of_a_user_who_is_not_there():
    result = CliRunner().invoke(main, ["run", "~nosuch/model.gguf", "--prompt", "x"])
    assert result.exit_code == 1
    assert "Error: ~nosuch/model.gguf: does not exist; check" in result.stderr


def test_more_threads_than_cores_are_warned_of():
    result = CliRunner().invoke(main, ["run", "nosuch.gguf", "--prompt", "x", "--threads", "512"])
    assert "Warning: --threads 512 on " in result.stderr


def shell(script: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """A command line of sh, where "$S" runs snapkv-local."""
    environment = {**os.environ, "S": f"{sys.executable} -X faulthandler -m snapkv_local", **more}
    return subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("$S run demo <&-", 2, "Error: no question: stdin: is empty; give"),
        ("$S ingest demo --file - --out x.snapkv <&-", 1, "Error: stdin: is empty; give"),
        ("$S plan demo >&-", 1, "Error: stdout: is closed; leave it open"),
        ("$S --help >/dev/full", 1, "Error: output: no space left on device; free some space"),
        ("$S plan nosuch.gguf <&- 2>&-", 1, ""),
        ("{ $S --help; echo $? >&2; } | true", 0, ""),
        ("env -u HOME TMPDIR=/nosuch $S --version", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(script, code, says, tmp_path):
    result = shell(f"cd {tmp_path}; {script}")
    assert result.returncode == code, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


def test_a_reader_that_leaves_ends_the_command_in_silence():
    # the reader is gone before anything is written
    result = shell("{ sleep 2; $S --help; echo code $? >&2; } | true")
    assert result.stderr == f"code {border.READER_GONE}\n"


@pytest.mark.parametrize(
    ("error", "status", "code", "says"),
    [
        (MemoryError(), 503, "out_of_memory", "memory: out of memory; lower the server's --ctx"),
        (RuntimeError("can't start new thread"), 503, "out_of_memory", "out of memory"),
        (PromptError("p", "is long", "raise {n_ctx}"), 400, "context_length_exceeded", "server's"),
        (ConversationError("the last message", "is a call", "append"), 400, None, "is a call"),
    ],
)
def test_the_servers_words(error, status, code, says):
    found = from_exception(error)
    assert (found.status, found.code) == (status, code)
    assert says in found.message


def test_nobody_is_told_twice(capsys):
    assert border.run(lambda: (_ for _ in ()).throw(click.UsageError("once"))) == 2
    assert capsys.readouterr().err.count("once") == 1


def test_the_package_starts_without_numpy():
    """Where memory is short, it is our words that say so, and not those of NumPy's libraries."""
    code = (
        "import sys, snapkv_local.__main__ as m; print('numpy' in sys.modules, m.main is not None)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False True\n"
    assert Path(snapkv_local.__file__).exists()
