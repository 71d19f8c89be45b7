import subprocess
import sys

from snapkv_local import hardware

MIB = 1024**2


def test_the_peak_is_of_this_process_alone():
    """Not of the one that started it, which here has held 300 MiB more."""
    code = "from snapkv_local import hardware; print(hardware.peak_rss())"
    parent = (
        "import subprocess, sys; x = bytes(300 * 2**20).replace(b'\\0', b'1');"
        f"sys.exit(subprocess.run([sys.executable, '-c', {code!r}]).returncode)"
    )
    result = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 0 < int(result.stdout) < 250 * MIB


def test_the_peak_covers_what_was_held():
    held = b"1" * (64 * MIB)
    assert hardware.peak_rss() > len(held)
