"""What `snapkv-local bench` measures: every prompt length with every setting."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gguf import LlamaFileType
from gguf.constants import Keys

from snapkv_local.bench.session import DECODE_CELLS, N_WARMUP, Settings
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import ConfigError
from snapkv_local.models import files as model_files
from snapkv_local.models.gguf_shape import shape_of

MADE = "random weights"  # the end of the names that `bench make-model` gives


@dataclass(frozen=True)
class Model:
    """What a record says of the model.

    Attributes:
        path: of the GGUF file, of several the first.
        name: of its file, without the type: what people call it, and metadata often do not. Of a
            made model that in its metadata.
        weights: type of most matrices, such as "q4_0".
        n_bytes: of all its files.
        n_ctx_train: context length of the training, in tokens.
    """

    path: Path
    name: str
    weights: str
    n_bytes: int
    n_ctx_train: int

    @classmethod
    def read(cls, path: Path) -> Model:
        """From the file's metadata.

        Raises:
            ModelFileError: the file is damaged, or no language model.
        """
        header = model_files.check(path)
        shape = shape_of(header, path)
        kind = header.metadata.get(Keys.General.FILE_TYPE, -1)
        try:
            weights = LlamaFileType(kind).name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()
        except ValueError:  # missing, or newer than the gguf package
            weights = "weights of unknown type"
        files = model_files.files(path)
        return cls(
            path=path,
            # a made model is named after what it is made after, and says that it is made
            name=shape.name if shape.name.endswith(MADE) else _name(path, weights),
            weights=weights,
            n_bytes=sum(file.stat().st_size for file in files),
            n_ctx_train=shape.n_ctx_train,
        )

    def to_dict(self) -> dict[str, Any]:
        """For a record, which says nothing of folders."""
        return {
            "path": self.path.name,
            "name": self.name,
            "type": self.weights,
            "n_bytes": self.n_bytes,
            "n_ctx_train": self.n_ctx_train,
        }


def _name(path: Path, weights: str) -> str:
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    if stem.lower().endswith(weights):
        stem = stem[: -len(weights)].rstrip("-._")
    return stem or path.stem


@dataclass(frozen=True)
class Case:
    """One set of settings.

    Attributes:
        name: unique in a record.
        label: for people.
        against: name of the case with the full cache to compare with, if it is measured.
        settings: of the process.
    """

    name: str
    label: str
    against: str | None
    settings: Settings


@dataclass(frozen=True)
class Matrix:
    """The lists of which each combination is a case.

    Attributes:
        prompts: tokens of the prompts.
        budgets: rows kept for each KV head, in tokens.
        layer_groups: G, or "auto".
        kv_types: of the KV cache.
        full: measure the full cache, too.
        n_gpu_layers: -1 for all.
        n_threads: 0 for all cores.
        n_ubatch: tokens in a ubatch.
        n_decode: tokens of the timed decode.
    """

    prompts: tuple[int, ...]
    budgets: tuple[int, ...]
    layer_groups: tuple[int | str, ...] = ("auto",)
    kv_types: tuple[str, ...] = ("f16",)
    full: bool = False
    n_gpu_layers: int = -1
    n_threads: int = 0
    n_ubatch: int = 512
    n_decode: int = 64

    def cases(self, path: Path) -> list[Case]:
        """Each combination; of each prompt the full cache first.

        Raises:
            ConfigError: a budget holds all of a prompt, so that nothing would be compressed.
        """
        found = []
        for n_prompt, kv_type in product(self.prompts, self.kv_types):
            plain = self._case(path, n_prompt, kv_type, None, None)
            if self.full:
                found.append(plain)
            for budget, group in product(self.budgets, self.layer_groups):
                config = {"budget": budget, "layer_group": group}
                if SnapKVConfig(**config).n_kept(n_prompt) >= n_prompt:  # type: ignore[arg-type]
                    raise ConfigError(
                        f"budget {budget:,}",
                        f"holds all {n_prompt:,} tokens of a prompt, so nothing is compressed",
                        "give longer prompts or smaller budgets",
                    )
                against = plain.name if self.full else None
                found.append(self._case(path, n_prompt, kv_type, config, against))
        return found

    def _case(
        self,
        path: Path,
        n_prompt: int,
        kv_type: str,
        config: dict[str, Any] | None,
        against: str | None,
    ) -> Case:
        if config is None:
            said = [f"{n_prompt:,} tokens", "full cache"]
            names = [str(n_prompt), "full"]
        else:
            group = config["layer_group"]
            said = [f"{n_prompt:,} tokens", f"budget {config['budget']}", f"G = {group}"]
            names = [str(n_prompt), f"budget{config['budget']}", f"g{group}"]
        settings = Settings(
            path=str(path),
            n_prompt=n_prompt,
            config=config,
            decode_cells=max(DECODE_CELLS, N_WARMUP + self.n_decode),
            n_ubatch=self.n_ubatch,
            kv_type=kv_type,
            n_gpu_layers=self.n_gpu_layers,
            n_threads=self.n_threads,
            n_decode=self.n_decode,
        )
        return Case(
            "-".join([*names, kv_type]), ", ".join([*said, f"{kv_type} KV"]), against, settings
        )
