"""What makes a wheel for others; the workflow and `make wheel` use the same."""

import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pe
import repair_wheel

ROOT = Path(__file__).parents[2]
RUNTIME = ["msvcp140", "vcomp140", "vcruntime140", "vcruntime140_1"]


def test_the_workflow_and_make_use_it():
    line = "scripts/repair_wheel.py"
    workflow = (ROOT / ".github/workflows/wheels.yml").read_text(encoding="utf-8")
    for system in ("LINUX", "WINDOWS"):
        command = f"python {{project}}/{line} {{wheel}} {{dest_dir}}"
        assert f"CIBW_REPAIR_WHEEL_COMMAND_{system}: {command}" in workflow
    assert f"$(PY) {line} build/wheel/*.whl dist" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_drivers_stay_outside_and_a_failure_is_told(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["repair_wheel.py", "a-manylinux_x86_64.whl", "dist"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert repair_wheel.main() == 1
    assert "pip install auditwheel" in capfd.readouterr().err
    script = tmp_path / "auditwheel"
    script.write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    script.chmod(0o755)
    assert repair_wheel.main() == 3
    said = capfd.readouterr().out.split()
    assert said[:3] == ["repair", "--wheel-dir", "dist"] and said[-1] == "a-manylinux_x86_64.whl"
    assert {"libcuda.so.1", "libvulkan.so.1"} <= set(said)


def dll(needs, delayed=()):
    """A DLL of 64 bits, without code, that needs others; it exports nothing."""
    start, header = 0x1000, 0x200
    names, at = b"", {}
    for name in [*needs, *delayed]:
        at[name] = start + 0x400 + len(names)
        names += name.encode() + b"\0"
    imports = b"".join(struct.pack("<5I", 0, 0, 0, at[name], 0) for name in needs) + bytes(20)
    later = b"".join(struct.pack("<8I", 1, at[name], *6 * [0]) for name in delayed) + bytes(32)
    content = imports.ljust(0x200, b"\0") + later.ljust(0x200, b"\0") + names
    tables = [(0, 0)] * 16
    tables[1] = (start, len(imports))
    if delayed:
        tables[13] = (start + 0x200, len(later))
    optional = struct.pack("<H106xI", 0x20B, 16) + b"".join(struct.pack("<II", *t) for t in tables)
    front = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"PE\0\0"
    front += struct.pack("<HH12xHH", 0x8664, 1, len(optional), 0x2022) + optional
    front += struct.pack("<8s4I16x", b".rdata", len(content), start, len(content), header)
    return front.ljust(header, b"\0") + content


def test_what_a_dll_needs_and_exports(tmp_path):
    path = tmp_path / "a.dll"
    path.write_bytes(dll(["KERNEL32.dll", "MSVCP140.dll"], ["nvcuda.dll"]))
    assert pe.imports("a", path.read_bytes()) == {"kernel32.dll", "msvcp140.dll", "nvcuda.dll"}
    assert pe.exports(path) == set()
    for data in (b"MZ" + bytes(100), b"ELF" + bytes(100)):
        with pytest.raises(ValueError, match=r"a\.dll is no DLL"):
            pe.imports("a.dll", data)


def write_wheel(folder, **dlls):
    path = folder / "a-1-py3-none-win_amd64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("snapkv_local/__init__.py", "")
        for name, needs in dlls.items():
            archive.writestr(f"snapkv_local/lib/{name}.dll", dll([f"{n}.dll" for n in needs]))
    return path


def repair(monkeypatch, wheel, folder):
    monkeypatch.setattr(sys, "argv", ["repair_wheel.py", str(wheel), str(folder)])
    return repair_wheel.main()


def test_a_wheel_for_windows_needs_nothing_that_windows_lacks(tmp_path, monkeypatch, capsys):
    """Neither Microsoft's runtime nor a compiler's, however well it is found on the builder's machine."""
    needs = ["KERNEL32", "api-ms-win-crt-heap-l1-1-0", "ggml", "nvcuda", "VCRUNTIME140_1"]
    wheel = write_wheel(tmp_path, llama=needs, ggml=["MSVCP140", "VCOMP140", "vcruntime140_1"])
    assert repair(monkeypatch, wheel, tmp_path / "dist") == 1
    said = capsys.readouterr().err
    assert "snapkv_local/lib/llama.dll needs vcruntime140_1.dll\n" in said
    assert "lib/ggml.dll needs msvcp140.dll, vcomp140.dll, vcruntime140_1.dll\n" in said
    assert not (tmp_path / "dist").exists()
    wheel = write_wheel(tmp_path, llama=needs, ggml=["msvcp140"], **{name: [] for name in RUNTIME})
    assert repair(monkeypatch, wheel, tmp_path / "dist") == 0
    assert (tmp_path / "dist" / wheel.name).read_bytes() == wheel.read_bytes()


def test_a_dll_in_another_folder_is_not_found(tmp_path):
    wheel = write_wheel(tmp_path, llama=["ggml"])
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("snapkv_local.libs/ggml.dll", dll([]))
    assert repair_wheel.missing_dlls(wheel) == {"snapkv_local/lib/llama.dll": ["ggml.dll"]}
    with pytest.raises(ValueError, match="has no DLL"):
        repair_wheel.missing_dlls(write_wheel(tmp_path))


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake on the PATH")
def test_microsofts_runtime_is_installed_beside_our_dlls(tmp_path):
    """With an imaginary Visual Studio, whose folders have the names of a real one's."""
    redist = tmp_path / "vs/VC/Redist/MSVC/14.40.33807"
    for folder, names in (("CRT", [*RUNTIME, "concrt140"]), ("OPENMP", ["vcomp140"])):
        place = redist / "x64" / f"Microsoft.VC143.{folder}"
        place.mkdir(parents=True)
        for name in names:
            (place / f"{name}.dll").write_bytes(b"MZ")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.21)\n"
        "project(imaginary NONE)\n"
        "set(MSVC 1)\nset(MSVC_VERSION 1940)\nset(MSVC_TOOLSET_VERSION 143)\n"
        "set(MSVC_C_ARCHITECTURE_ID x64)\nset(CMAKE_CXX_COMPILER_ID MSVC)\n"
        # where Visual Studio is, which cmake knows on Windows only
        "function(cmake_host_system_information result name)\n"
        f'set(${{name}} "{(tmp_path / "vs").as_posix()}" PARENT_SCOPE)\nendfunction()\n'
        f'include("{(ROOT / "cmake/msvc-runtime.cmake").as_posix()}")\n'
    )
    build, to = tmp_path / "build", tmp_path / "to"
    for command in (
        ["cmake", "-S", tmp_path, "-B", build],
        ["cmake", "--install", build, "--component", "snapkv", "--prefix", to],
    ):
        subprocess.run(command, check=True, capture_output=True)
    there = sorted(path.stem for path in (to / "snapkv_local/lib").iterdir())
    assert there == RUNTIME
