"""The Python for Windows that `make test.mingw` makes: what is installed into it."""

import re

import windows_python


def test_it_gets_what_the_package_needs_on_windows():
    """And what llama-cpp-python's Python code needs, but not its engine; nor packages for other tests."""
    found = windows_python.requirements()
    names = {re.match(r"[\w-]+", line)[0] for line in found}
    assert {
        "click",
        "gguf",
        "llguidance",
        "numpy",
        "rich",
        "fastapi",
        "uvicorn",
        "diskcache",
    } <= names
    assert not {"llama-cpp-python", "tomli", "pytest", "PySide6-Essentials"} & names
    assert not any(";" in line for line in found)
