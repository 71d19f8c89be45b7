"""Models by name: which files are meant, and what is said when they cannot be had."""

import os
import subprocess
import sys

import pytest

from snapkv_local.errors import ModelFileError
from snapkv_local.models import hub
from snapkv_local.models.resolve import resolve as resolve_model

pytest.importorskip("huggingface_hub")

SPLIT = [f"big/Big-Q8_0-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
NAMES = [
    "README.md",
    "mmproj-model-f16.gguf",
    "Model-Q4_K_M.gguf",
    "Model-Q4_K_S.gguf",
    "Model.Q5_0.gguf",
    "f16/model-f16.gguf",
    *SPLIT,
]


@pytest.mark.parametrize(
    ("what", "files"),
    [
        (None, ["Model-Q4_K_M.gguf"]),
        ("Q4_K_S", ["Model-Q4_K_S.gguf"]),
        ("q5_0", ["Model.Q5_0.gguf"]),
        ("F16", ["f16/model-f16.gguf"]),
        ("Model.Q5_0.gguf", ["Model.Q5_0.gguf"]),
        ("f16/model-f16.gguf", ["f16/model-f16.gguf"]),
        ("model-f16.gguf", ["f16/model-f16.gguf"]),
        ("*Q4_K_S*", ["Model-Q4_K_S.gguf"]),
        ("Q8_0", SPLIT),
        ("*Q8_0*.gguf", SPLIT),
        (SPLIT[0], SPLIT),
        (SPLIT[2], SPLIT),
    ],
)
def test_what_is_meant(what, files):
    assert hub.select("owner/repo", NAMES, what) == files


def test_the_only_model_needs_no_name():
    assert hub.select("o/r", ["README.md", "imatrix.gguf", "Tiny-Q2_K.gguf"], None) == [
        "Tiny-Q2_K.gguf"
    ]


@pytest.mark.parametrize(
    ("names", "what", "says"),
    [
        (NAMES, "Q4_K", "hf:o/r:Q4_K: the repository has no such model; choose one:\n"),
        (NAMES, "Q9", "\n  hf:o/r:Model-Q4_K_M.gguf\n"),
        (NAMES, "Q9", f"\n  hf:o/r:{SPLIT[0]}"),
        (NAMES, "Model*", "the repository has 3 that fit; choose one:\n  hf:o/r:Model-Q4_K_M.gguf"),
        (["a-Q8_0.gguf", "a-Q5_0.gguf"], None, "hf:o/r: the repository has 2 that fit"),
        (["model.safetensors"], None, "has no GGUF model; look for a repository whose name"),
        ([SPLIT[0], SPLIT[2]], None, f"the repository lacks {SPLIT[1]}; the model needs all"),
    ],
)
def test_no_single_model(names, what, says):
    with pytest.raises(ModelFileError) as caught:
        hub.select("o/r", names, what)
    assert says in str(caught.value)
    assert "mmproj" not in str(caught.value)
    assert SPLIT[1] not in str(caught.value).split("choose one")[-1] or "lacks" in says


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c.gguf", "hf:../x", "hf:o/r x"])
def test_malformed_names(name):
    with pytest.raises(ModelFileError, match="names no repository; write hf:owner/repo"):
        resolve_model(name)


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelFileError, match=r'not installed; pip install "snapkv-local\[hub\]"'):
        resolve_model("hf:owner/repo")


@pytest.fixture
def resolve(fake_hub, tmp_path, write_gguf):
    """Resolves a name in a process of its own, with the fake hub: the path, or the message.

    huggingface_hub reads its environment once, when it is imported.
    """
    fake_hub.files = {"README.md": b"hello", "tiny-Q4_K_M.gguf": write_gguf().read_bytes()}
    code = (
        "import sys\n"
        "from snapkv_local import errors; from snapkv_local.models import resolve as models\n"
        "try: print(models.resolve(sys.argv[1]), end='')\n"
        "except errors.ModelFileError as e: print('Error:', e, end='')\n"
    )

    def resolve(name="hf:owner/repo", **environment):
        environment = {**os.environ, **fake_hub.environment(tmp_path / "home"), **environment}
        fake_hub.requests.clear()
        command = [sys.executable, "-c", code, name]
        process = subprocess.run(command, env=environment, stdout=-1, text=True, timeout=60)
        assert process.returncode == 0
        return process.stdout

    return resolve


def gets(fake_hub):
    return [request for request in fake_hub.requests if request.startswith("GET /owner")]


def test_download_then_cache_then_no_network(resolve, fake_hub):
    path = resolve()
    assert path.endswith("/snapshots/0123456789abcdef0123456789abcdef01234567/tiny-Q4_K_M.gguf")
    assert gets(fake_hub) == ["GET /owner/repo/resolve/main/tiny-Q4_K_M.gguf"]
    assert resolve_model(path)

    assert resolve() == path
    assert gets(fake_hub) == []

    fake_hub.stop()
    assert resolve() == path
    assert resolve("hf:owner/repo:Q4_K_M") == path
    assert resolve(HF_HUB_OFFLINE="1") == path
    assert resolve("hf:owner/repo:Q8_0").startswith(
        "Error: hf:owner/repo:Q8_0: the hub cannot be reached, and what is cached has no such model"
    )


def test_no_network_and_nothing_cached(resolve, fake_hub):
    fake_hub.stop()
    message = resolve()
    assert "hf:owner/repo: the hub cannot be reached (" in message
    assert "not in the cache; connect and try again, or give the path of a GGUF file" in message
    assert resolve(HF_HUB_OFFLINE="1") == (
        "Error: hf:owner/repo: is not in the cache, and HF_HUB_OFFLINE is set; unset it to download"
    )


def test_the_hub_is_broken(resolve, fake_hub):
    path = resolve()
    fake_hub.broken = True
    assert resolve() == path


def test_a_repository_that_does_not_exist(resolve):
    assert resolve("hf:owner/other") == (
        "Error: hf:owner/other: is not on the hub, or is private; check the name; "
        "for a private one, set HF_TOKEN"
    )


def test_a_private_repository_wants_the_token(resolve, fake_hub):
    fake_hub.token = "hf_secret"
    assert "is not on the hub, or is private" in resolve()
    assert resolve(HF_TOKEN="hf_secret").endswith("tiny-Q4_K_M.gguf")


def test_a_gated_repository(resolve, fake_hub):
    fake_hub.refusal = (403, "GatedRepo")
    assert resolve() == (
        "Error: hf:owner/repo: is gated: its authors want you to accept their terms; accept them at "
        "https://huggingface.co/owner/repo, and set HF_TOKEN to a token of yours"
    )


def test_several_models(resolve, fake_hub):
    content = fake_hub.files.pop("tiny-Q4_K_M.gguf")
    fake_hub.files |= {"tiny-Q8_0.gguf": content, "tiny-Q5_0.gguf": content}
    assert resolve() == (
        "Error: hf:owner/repo: the repository has 2 that fit; choose one:\n"
        "  hf:owner/repo:tiny-Q5_0.gguf\n  hf:owner/repo:tiny-Q8_0.gguf"
    )
    assert resolve("hf:owner/repo:q8_0").endswith("tiny-Q8_0.gguf")


def test_all_files_of_a_split_model_are_downloaded(resolve, fake_hub):
    content = fake_hub.files.pop("tiny-Q4_K_M.gguf")
    names = [f"tiny-Q8_0-{i:05}-of-00002.gguf" for i in (1, 2)]
    fake_hub.files |= {name: content + str(i).encode() for i, name in enumerate(names)}
    path = resolve()  # models.check() refuses a split model that is not whole
    assert path.endswith(names[0])
    assert [get.rsplit("/", 1)[1] for get in gets(fake_hub)] == names


def test_a_download_tells_how_far_it_is(fake_hub, tmp_path, write_gguf):
    fake_hub.files = {"tiny-Q4_K_M.gguf": write_gguf().read_bytes()}
    code = (
        "from snapkv_local.models import resolve as models\n"
        "models.resolve('hf:owner/repo', lambda *told: print(*told))\n"
    )
    environment = {**os.environ, **fake_hub.environment(tmp_path / "home")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    name, n, total = done.stdout.splitlines()[-1].split()
    assert (name, n) == ("tiny-Q4_K_M.gguf", total)
    assert int(total) > 0
    assert "%|" not in done.stderr  # no bar of the hub's own beside it
