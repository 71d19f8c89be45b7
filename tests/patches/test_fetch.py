"""vendor/llama.cpp/fetch.py: only the pinned source gets in, whole or not at all."""

import io
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

import fetch
from fetch import FetchError

VERSION = "".join(
    f"set(LLAMA_VERSION_{p} {v})\n" for p, v in (("MAJOR", 1), ("MINOR", 2), ("PATCH", 3))
)
FILES = {
    "vendor/llama.cpp/CMakeLists.txt": VERSION,
    "vendor/llama.cpp/src/llama.cpp": "int x;\n",
    "vendor/llama.cpp/docs/big.md": "not needed\n",
    "llama_cpp/llama.py": "not ours\n",
}


@pytest.fixture(autouse=True)
def pin(tmp_path, monkeypatch):
    """A pin for a small source distribution, and a folder of its own for what is fetched."""
    monkeypatch.delenv("SNAPKV_SDIST", raising=False)
    monkeypatch.delenv("SNAPKV_LLAMA_CPP_SOURCE", raising=False)
    monkeypatch.setattr(fetch, "HERE", tmp_path / "vendor")
    monkeypatch.setattr(fetch, "SOURCE", tmp_path / "vendor/source")
    fetch.HERE.mkdir()
    pin = dict(fetch.PIN, sdist="pkg-1.tar.gz", llama_cpp_version="1.2.3")
    pin["paths"] = ["CMakeLists.txt", "src"]
    with tarfile.open(tmp_path / "good.tar.gz", "w:gz") as tar:
        for name, text in FILES.items():
            info = tarfile.TarInfo(f"pkg-1/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    pin["sha256"] = fetch.hashlib.sha256((tmp_path / "good.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(fetch, "PIN", pin)
    return pin


@pytest.fixture
def good(tmp_path) -> Path:
    return tmp_path / "good.tar.gz"


def use_pip(monkeypatch, tmp_path, code: str) -> None:
    """Let a script stand in for pip: its last arguments are DIR --requirement FILE."""
    script = tmp_path / "pip.py"
    script.write_text("import sys, shutil, pathlib\ndest = pathlib.Path(sys.argv[-3])\n" + code)
    monkeypatch.setattr(fetch, "pip_command", lambda: [sys.executable, str(script)])


def test_takes_the_needed_part_only(good, monkeypatch):
    monkeypatch.setenv("SNAPKV_SDIST", str(good))
    tree = fetch.source()
    files = {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()}
    assert files == {"CMakeLists.txt", "src/llama.cpp", fetch.STAMP}


def test_a_complete_source_needs_nothing(good, monkeypatch):
    monkeypatch.setenv("SNAPKV_SDIST", str(good))
    fetch.source()
    good.unlink()
    assert fetch.source() == fetch.SOURCE


@pytest.mark.parametrize("damage", [lambda f: f.unlink(), lambda f: f.write_text("int")])
def test_a_damaged_source_is_extracted_anew(good, monkeypatch, damage):
    monkeypatch.setenv("SNAPKV_SDIST", str(good))
    damage(fetch.source() / "src/llama.cpp")
    assert (fetch.source() / "src/llama.cpp").read_text() == "int x;\n"


def test_an_interrupted_extraction_leaves_nothing(good, monkeypatch):
    monkeypatch.setenv("SNAPKV_SDIST", str(good))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(fetch.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch.source()
    assert list(fetch.HERE.iterdir()) == []
    assert (fetch.source() / "src/llama.cpp").exists()


def test_downloads_once(good, monkeypatch, tmp_path):
    use_pip(monkeypatch, tmp_path, f"shutil.copy({str(good)!r}, dest / 'pkg-1.tar.gz')")
    path = fetch.sdist()
    use_pip(monkeypatch, tmp_path, "sys.exit('called again')")
    assert fetch.sdist() == path


def test_a_truncated_download_is_refused_and_not_kept(good, monkeypatch, tmp_path):
    code = f"(dest / 'pkg-1.tar.gz').write_bytes(pathlib.Path({str(good)!r}).read_bytes()[:-9])"
    use_pip(monkeypatch, tmp_path, code)
    with pytest.raises(FetchError, match="truncated or not the pinned file"):
        fetch.sdist()
    assert list(fetch.HERE.iterdir()) == []


def test_a_failing_pip_names_the_cures(monkeypatch, tmp_path):
    use_pip(monkeypatch, tmp_path, "sys.exit(1)")
    with pytest.raises(FetchError, match=r"SNAPKV_SDIST.*SNAPKV_LLAMA_CPP_SOURCE"):
        fetch.sdist()


def test_a_tampered_sdist_is_refused(good, monkeypatch):
    good.write_bytes(good.read_bytes() + b"\0")
    monkeypatch.setenv("SNAPKV_SDIST", str(good))
    with pytest.raises(FetchError, match="SHA-256"):
        fetch.source()
    assert not fetch.SOURCE.exists()


def test_a_missing_sdist_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SNAPKV_SDIST", str(tmp_path / "gone.tar.gz"))
    with pytest.raises(FetchError, match=r"gone\.tar\.gz is not a file"):
        fetch.source()


def local_tree(tmp_path: Path, version: str) -> Path:
    (tmp_path / "local/src").mkdir(parents=True)
    (tmp_path / "local/CMakeLists.txt").write_text(version)
    return tmp_path / "local"


def test_a_local_tree_is_used_where_it_is(monkeypatch, tmp_path):
    tree = local_tree(tmp_path, VERSION)
    monkeypatch.setenv("SNAPKV_LLAMA_CPP_SOURCE", str(tree))
    assert fetch.source() == tree


def test_a_local_tree_of_another_version_is_refused(monkeypatch, tmp_path):
    tree = local_tree(tmp_path, VERSION.replace("3", "4"))
    monkeypatch.setenv("SNAPKV_LLAMA_CPP_SOURCE", str(tree))
    with pytest.raises(FetchError, match=r"is llama\.cpp 1\.2\.4, pinned is 1\.2\.3"):
        fetch.source()


def test_a_folder_that_is_not_llama_cpp_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("SNAPKV_LLAMA_CPP_SOURCE", str(tmp_path))
    with pytest.raises(FetchError, match=r"is not a llama\.cpp tree, it has no CMakeLists\.txt"):
        fetch.source()


def test_without_any_pip_the_cures_are_named(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    monkeypatch.setattr(sys, "_base_executable", None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(FetchError, match=r"no pip found.*Install pip.*SNAPKV_SDIST"):
        fetch.pip_command()
