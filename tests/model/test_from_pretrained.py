"""Llama.from_pretrained with a hub of our own."""

from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

# huggingface_hub reads its environment once, when it is imported
CODE = """
from snapkv_local import Llama, SnapKVConfig
llm = Llama.from_pretrained(
    "owner/repo", {filename}, snapkv=SnapKVConfig(budget=64), n_ctx=256, verbose=False{more}
)
print(type(llm) is Llama, llm.model_path, llm.snapkv.budget)
print(llm.create_completion([1, 2, 3], max_tokens=2)["usage"]["completion_tokens"])
"""


@pytest.fixture
def load(python, fake_hub, model_path, tmp_path):
    fake_hub.files = {"sub/tiny-Q4_1.gguf": Path(model_path).read_bytes(), "notes.txt": b"hello"}

    def load(filename, more=""):
        code = CODE.format(filename=repr(filename), more=more)
        result = python(code, **fake_hub.environment(tmp_path / "home"))
        assert result.returncode == 0, result.stderr
        return result.stdout.split()

    return load


def test_a_model_from_the_hub_is_compressed(load, fake_hub):
    is_ours, path, *figures = load("*Q4_1.gguf")  # as in llama_cpp's documentation
    assert (is_ours, figures) == ("True", ["64", "2"])
    assert Path(path).name == "tiny-Q4_1.gguf"
    fake_hub.stop()
    assert load(None)[1] == path


def test_files_in_a_folder(load, tmp_path):
    folder = tmp_path / "models"
    more = f", local_dir={str(folder)!r}, additional_files=['notes.txt']"
    assert load("Q4_1", more)[1] == str(folder / "sub" / "tiny-Q4_1.gguf")
    assert (folder / "notes.txt").read_text() == "hello"
