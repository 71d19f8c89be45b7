"""Profiles: what is written is read, what is wrong is named, options win."""

import importlib

import pytest
from click.testing import CliRunner

from snapkv_local import SnapKVConfig, profile
from snapkv_local.cli import main
from snapkv_local.errors import ConfigError, OutOfMemoryError, TextFileError
from snapkv_local.profile import Profile
from snapkv_local.storage.fingerprint import digest_of

PROFILE = Profile(
    settings={
        "budget": 384,
        "window_size": 16,
        "kernel_size": 13,
        "pooling": "max",
        "aggregation": "sum",
        "self_weight": 0.125,
        "n_sink": 4,
    },
    model={"name": 'A "small" \\ model\x7f ü', "file": "a.gguf", "digest": "0123"},
    measured={"target_kl": 0.05, "finished": True, "budgets": [64, 384], "kl": [0.5, 1e-05]},
    version="0.1.0",
    date="2026-01-01",
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "p.toml"


def write(tmp_path, text):
    path = tmp_path / "p.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_saved_is_loaded(path):
    profile.save(path, PROFILE)
    assert profile.load(path) == PROFILE
    assert SnapKVConfig(**profile.load(str(path)).settings).kernel_size == 13
    assert [file.name for file in path.parent.iterdir()] == ["p.toml"]


def test_a_file_written_by_hand(tmp_path):
    path = write(tmp_path, "[snapkv] # mine\nkeep_ratio = 0.1\nvault = 'ram'\n")
    assert profile.load(path) == Profile(settings={"keep_ratio": 0.1, "vault": "ram"})


def test_whole_numbers_are_numbers_too(tmp_path):
    path = write(tmp_path, "[snapkv]\nself_weight = 1\npooling = 'max'\n")
    assert SnapKVConfig(**profile.load(path).settings) == SnapKVConfig(
        self_weight=1.0, pooling="max"
    )


def test_all_fields_are_settings(tmp_path):
    path = write(
        tmp_path, "[snapkv]\nmin_coverage = 0.9\nbudget = 99\nn_ubatch = 'auto'\ndecode_cells = 7\n"
    )
    assert SnapKVConfig(**profile.load(path).settings).decode_cells == 7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[snapkv]\nkernal = 5\n", r"p.toml, \[snapkv\] kernal: is not known; known are budget, "),
        (
            "[snapvk]\nkernel_size = 5\n",
            "snapvk: is not known; known are version, date, model, snapkv",
        ),
        ("[model]\nsize = 5\n[snapkv]\nkernel_size = 5\n", r"\[model\] size: is not known"),
        ("[snapkv]\nkernel_size = 4\n", r"p.toml, \[snapkv\] kernel_size=4: .*use 3 or 5"),
        ("[snapkv]\nkernel_size = '5'\n", "kernel_size='5': is not a whole number"),
        (
            "[snapkv]\nself_weight = '0.5'\n",
            r"\[snapkv\] self_weight='0.5': is not a number from 0 to 1000",
        ),
        ("[snapkv]\nkeep_ratio = '0.1'\n", r"\[snapkv\] keep_ratio='0.1': is not a number above 0"),
        ("[snapkv]\npolicy = []\n", r"policy=\[\]: is of the wrong type"),
        ("[snapkv]\nbudget = 99\nkeep_ratio = 0.1\n", "both say how much to keep"),
        ("snapkv = 5\n", "snapkv=5: is not a table"),
        ("date = 2026-01-01\n[snapkv]\nkernel_size = 5\n", "is not a text; put it in quotes"),
        ("[model]\nname = 1\n[snapkv]\nkernel_size = 5\n", r"\[model\] name=1: is not a text"),
        ("[snapkv]\n", "has no settings"),
        ("", "has no settings"),
        ("budget 5", r"is not TOML \(.*line 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        profile.load(write(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read \(No such file"):
        profile.load(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"[snapkv]\n# \xff\n")
    with pytest.raises(TextFileError, match=r"b\.toml: is not UTF-8 at 1 place of 13 bytes"):
        profile.load(tmp_path / "b.toml")


def test_the_model_is_known_by_its_contents(tmp_path, write_gguf):
    one, same, size, weights = (
        write_gguf(f"{name}.gguf") for name in ("one", "same", "size", "weights")
    )
    size.write_bytes(size.read_bytes() + b"\0")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    measured = Profile({"kernel_size": 5}, {"name": "One", "digest": digest_of(one)})
    assert measured.other_model(same) is None
    for other in (size, weights):
        assert "measured with One, and " + other.name in measured.other_model(other)
    assert Profile({"kernel_size": 5}).other_model(one) is None


def test_given_settings_win():
    settings = {"budget": 384, "kernel_size": 13}
    assert profile.merge(settings, {"kernel_size": 5}) == {"budget": 384, "kernel_size": 5}
    assert profile.merge(settings, {"keep_ratio": 0.1}) == {"keep_ratio": 0.1, "kernel_size": 13}
    assert profile.merge({"keep_ratio": 0.1}, {"budget": 64}) == {"budget": 64}
    with pytest.raises(ConfigError, match="both say"):
        SnapKVConfig(**profile.merge(settings, {"keep_ratio": 0.1, "budget": 64}))


@pytest.fixture(params=["run", "serve"])
def loaded(request, write_gguf, path, monkeypatch):
    """Runs a command up to the point where the model is loaded: its configuration and stderr."""
    if request.param == "serve":
        pytest.importorskip("fastapi")
    module = importlib.import_module(f"snapkv_local.cli.{request.param}")
    seen = []

    def stop(_path, config, *_rest, **_options):
        seen.append(config)
        raise OutOfMemoryError("the test", "ends here", "look at the configuration")

    def run(*arguments):
        monkeypatch.setattr(module, "load", stop)
        if request.param == "serve":
            import snapkv_local.server.run as server

            class Server:
                def __init__(self, load, model, **_rest):
                    load()

            monkeypatch.setattr(server, "Server", Server)
        more = ("--prompt", "Who?") if request.param == "run" else ()
        command = [request.param, str(write_gguf()), *more, "--profile", str(path), *arguments]
        result = CliRunner().invoke(main, command)
        return (seen[-1] if seen else None), result

    return run


def test_the_command_takes_a_profiles_settings(loaded, path):
    profile.save(path, Profile(PROFILE.settings))
    config, result = loaded("--decode-cells", "700")
    assert config == SnapKVConfig(**PROFILE.settings, decode_cells=700)
    assert "Warning" not in result.stderr


def test_options_win_over_the_profile(loaded, path):
    profile.save(path, PROFILE)
    config, _ = loaded("--kernel-size", "7", "--keep-ratio", "0.2", "--decode-cells", "50")
    rest = {
        "window_size": 16,
        "pooling": "max",
        "aggregation": "sum",
        "self_weight": 0.125,
        "n_sink": 4,
    }
    assert config == SnapKVConfig(kernel_size=7, keep_ratio=0.2, decode_cells=50, **rest)


def test_another_model_is_a_warning(loaded, path):
    profile.save(path, PROFILE)
    config, result = loaded()
    assert config.kernel_size == 13
    assert "Warning: the profile was measured with A " in result.stderr
    assert "measure again with `snapkv-local tune`" in result.stderr


def test_a_broken_profile(loaded, path):
    path.parent.mkdir()
    path.write_text("[snapkv]\nbugdet = 5\n")
    config, result = loaded()
    assert (config, result.exit_code) == (None, 1)
    assert "[snapkv] bugdet: is not known" in result.stderr


def test_a_profile_with_the_full_cache(loaded, path):
    profile.save(path, PROFILE)
    config, result = loaded("--full")
    assert (config, result.exit_code) == (None, 2)
    assert "leave out --profile" in result.stderr


def test_a_profile_that_is_not_there(loaded, path):
    config, result = loaded()
    assert (config, result.exit_code) == (None, 2)
    assert "does not exist" in result.stderr
