"""A model and a context for measuring, through llama.cpp's C functions.

So the clock runs around these, and Python takes no part of a token's few milliseconds.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snapkv_local import hardware
from snapkv_local.bench.blueprint import N_CONTROL
from snapkv_local.config import SnapKVConfig
from snapkv_local.models import files
from snapkv_local.stats import PrefillStats

Tokens = npt.NDArray[np.int32]

DECODE_CELLS = 512  # cells for tokens after the prompt, of which the decode runs take fewer
N_WARMUP = 8  # decoded before the clock starts


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What cases of a benchmark vary beside model, prompt and compression.

    Attributes:
        n_seq: sequences, decoded together.
        n_batch: tokens in one llama_decode() of the prompt with the full cache.
        n_ubatch: tokens in a ubatch.
        kv_type: of the KV cache: "f16", "q8_0" or "q4_0".
        n_gpu_layers: -1 for all.
        n_threads: on the CPU; 0 for all cores.
        n_decode: tokens of each sequence in one timed run.
        n_follow: tokens of a second question about the first prompt, in the place of its end; 0 for
            none. It needs a vault.
        one_prompt: the first sequence's prompt is evaluated, and the others get copies of its cache:
            for measuring what comes after the prompts.
    """

    n_seq: int = 1
    n_batch: int = 2048
    n_ubatch: int = 512
    kv_type: str = "f16"
    n_gpu_layers: int = -1
    n_threads: int = 0
    n_decode: int = 64
    n_follow: int = 0
    one_prompt: bool = False

    @property
    def n_prompts(self) -> int:
        """Prompts that are evaluated."""
        return 1 if self.one_prompt else self.n_seq


@dataclass(frozen=True)
class Settings(RunOptions):
    """What is measured in one process.

    Attributes:
        path: of the GGUF file.
        n_prompt: tokens of each sequence's prompt.
        config: of SnapKVConfig; None for the full cache.
        decode_cells: cells for tokens after the prompt.
        decode_repeats: timed runs in one process.
        n_warmup: tokens decoded before the first timed run.
        seed: of the prompts' random tokens.
    """

    path: str
    n_prompt: int
    config: dict[str, Any] | None
    decode_cells: int = DECODE_CELLS
    decode_repeats: int = 1
    n_warmup: int = N_WARMUP
    seed: int = 1

    @property
    def n_positions(self) -> int:
        """Tokens of a sequence's prompt, and all that is decoded after it."""
        return self.n_prompt + self.n_warmup + self.decode_repeats * self.n_decode

    @classmethod
    def take(cls, settings: dict[str, Any]) -> Settings:
        """From a case's settings, which say more than one process needs."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: settings[name] for name in names if name in settings})

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


def random_tokens(n_vocab: int, n: int, seed: int) -> Tokens:
    """[n] tokens, none of the last ones, which a made vocabulary has for control."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, n_vocab - N_CONTROL, n).astype(np.int32)


class Session:
    """A model and a context, with the compact cache or the full one."""

    def __init__(self, settings: Settings) -> None:
        # first of all: it loads our library, which llama_cpp then uses
        from snapkv_local.native import api, failure, structs, support  # isort: skip

        from llama_cpp import llama_cpp
        from llama_cpp._logger import set_verbose

        set_verbose(False)
        self.native, self.structs, self.support = api, structs, support
        self.fail = failure.fail
        self.llama = llama_cpp
        self.settings = settings
        self.config = (
            None
            if settings.config is None
            else SnapKVConfig(**{"decode_cells": settings.decode_cells, **settings.config})
        )
        started = time.monotonic()
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = settings.n_gpu_layers
        path = settings.path
        files.check(Path(path))
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.seconds_load = time.monotonic() - started
        self.ctx = self._make_context()
        self.seconds_context = time.monotonic() - started - self.seconds_load
        n_batch = settings.n_batch
        self.batch = llama_cpp.llama_batch_init(n_batch, 0, 1)
        self._views = [
            np.ctypeslib.as_array(field, (n_batch,))
            for field in (self.batch.token, self.batch.pos, self.batch.logits)
        ]

    def _make_context(self) -> Any:
        s, llama = self.settings, self.llama
        params = llama.llama_context_default_params()
        params.n_ctx = s.n_seq * (s.n_prompt + s.decode_cells)
        params.n_batch = s.n_batch
        params.n_ubatch = s.n_ubatch
        params.n_seq_max = s.n_seq
        params.n_threads = params.n_threads_batch = s.n_threads or hardware.n_cores()
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = self.support.ggml_type(s.kv_type)
        params.swa_full = False
        params.no_perf = True
        if s.n_gpu_layers == 0 and self.support.unproven_devices():
            params.op_offload = False  # as Llama does
        if self.config is None:
            self.support.check_layers(s.path, self.model)
            ctx = llama.llama_init_from_model(self.model, params)
            if not ctx:
                raise RuntimeError("llama_init_from_model: no context, most likely for memory")
            return ctx
        native_params = self.support.make_params(self.config)
        self.support.check_supported(s.path, self.model, params, native_params)
        ctx = self.native.llama_snapkv_init_from_model(self.model, params, native_params)
        if not ctx:
            self.fail("llama_snapkv_init_from_model")
        return ctx

    def fill(self, tokens: Tokens, positions: Any, sequences: Any, logits: Any) -> None:
        """Make a batch; each argument has one value for each token, or one for all."""
        n = len(tokens)
        self.batch.n_tokens = n
        for view, values in zip(self._views, (tokens, positions, logits), strict=True):
            view[:n] = values
        for i, sequence in enumerate(np.broadcast_to(sequences, n).tolist()):
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence

    def decode(self) -> None:
        """llama_decode() of the batch."""
        rc = self.llama.llama_decode(self.ctx, self.batch)
        if rc != 0:
            raise RuntimeError(f"llama_decode: error {rc}")

    def prefill(self, tokens: Tokens, sequence: int) -> None:
        """Evaluate a prompt; the last token's logits are then there."""
        n, n_batch = len(tokens), self.settings.n_batch
        if self.config is not None:
            prompt = self.structs.llama_snapkv_prompt(
                seq_id=sequence,
                n_tokens=n,
                tokens=tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            )
            if self.native.llama_snapkv_prefill(self.ctx, ctypes.byref(prompt)) != 0:
                self.fail("llama_snapkv_prefill")
        else:
            for start in range(0, n, n_batch):
                positions = np.arange(start, min(start + n_batch, n))
                self.fill(tokens[positions], positions, sequence, positions == n - 1)
                self.decode()
        self.llama.llama_synchronize(self.ctx)

    def copy(self, sequence: int, others: list[int]) -> None:
        """Give sequences all that another one holds; each then has it in cells of its own."""
        memory = self.llama.llama_get_memory(self.ctx)
        for other in others:
            self.llama.llama_memory_seq_cp(memory, sequence, other, -1, -1)

    def warm_up(self, tokens: Tokens) -> None:
        """A short prompt the same way: CUDA loads its kernels at their first use."""
        budget = (self.config and self.config.budget) or 0
        self.prefill(tokens[: budget + 2 * self.settings.n_ubatch], 0)
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.ctx), False)
        if self.config is not None:
            self.native.llama_snapkv_vault_clear(self.ctx, 0)

    def best(self, n: int) -> Tokens:
        """[n] most likely tokens of the last n outputs.

        Raises:
            RuntimeError: logits are no numbers.
        """
        found = []
        for i in range(-n, 0):
            logits = np.ctypeslib.as_array(
                self.llama.llama_get_logits_ith(self.ctx, i), (self.n_vocab,)
            )
            token = int(logits.argmax())  # of a NaN, if there is one
            if not np.isfinite(logits[token]):
                raise RuntimeError("the logits are not finite")
            found.append(token)
        return np.array(found, np.int32)

    def bytes_kept(self) -> int:
        """Bytes of KV cache that the sequences take now, by the size of their saved states."""
        size = self.llama.llama_state_seq_get_size
        return sum(size(self.ctx, sequence) for sequence in range(self.settings.n_seq))

    def stats(self) -> dict[str, Any] | None:
        """PrefillStats of the last prefill; None with the full cache."""
        if self.config is None:
            return None
        found = self.structs.llama_snapkv_stats()
        if not self.native.llama_snapkv_get_stats(self.ctx, ctypes.byref(found)):
            self.fail("llama_snapkv_get_stats")
        n_bytes = self.llama.llama_state_seq_get_size(self.ctx, 0)
        return PrefillStats.of(found, n_bytes).to_dict()
