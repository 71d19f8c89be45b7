"""One measured run, in a process of its own: settings as JSON in, figures as JSON out.

    worker.py run SETTINGS      # prefill and decode: seconds, tokens/s, peak memory
    worker.py kept SETTINGS     # the kept positions of one prompt, to the .npy file that they name

It calls llama.cpp's C functions, so that the clock runs around these and Python takes no part of a
token's few milliseconds.
"""

from __future__ import annotations

import ctypes
import importlib.resources
import json
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

# before any CUDA library is loaded: what is in use now is not ours
from device import Device, PeakMemory

WATCH = PeakMemory(Device.open())

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402

from snapkv_local import hardware, models  # noqa: E402
from snapkv_local.bench.vocabulary import N_CONTROL  # noqa: E402
from snapkv_local.cli.answer import peak_rss  # noqa: E402
from snapkv_local.config import SnapKVConfig  # noqa: E402
from snapkv_local.stats import PrefillStats  # noqa: E402

Tokens = npt.NDArray[np.int32]


def random_tokens(n_vocab: int, n: int, seed: int) -> Tokens:
    """[n] tokens, none of the last ones, which a made vocabulary has for control."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, n_vocab - N_CONTROL, n).astype(np.int32)


class Session:
    """A model and a context, with the compact cache or the full one."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # first of all: it loads our library, which llama_cpp then uses
        from snapkv_local import native  # isort: skip

        from llama_cpp import llama_cpp
        from llama_cpp._logger import set_verbose

        set_verbose(False)
        self.native = native
        self.llama = llama_cpp
        self.settings = settings
        self.config = settings["config"] and SnapKVConfig(**settings["config"])
        started = time.monotonic()
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = settings["n_gpu_layers"]
        path = settings["path"]
        models.check(Path(path))
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.seconds_load = time.monotonic() - started
        self.ctx = self._make_context()
        self.seconds_context = time.monotonic() - started - self.seconds_load
        n_batch = settings["n_batch"]
        self.batch = llama_cpp.llama_batch_init(n_batch, 0, 1)
        self._views = [
            np.ctypeslib.as_array(field, (n_batch,))
            for field in (self.batch.token, self.batch.pos, self.batch.logits)
        ]

    def _make_context(self) -> Any:
        s, llama = self.settings, self.llama
        params = llama.llama_context_default_params()
        params.n_ctx = s["n_seq"] * (s["n_prompt"] + s["room"])
        params.n_batch = s["n_batch"]
        params.n_ubatch = s["n_ubatch"]
        params.n_seq_max = s["n_seq"]
        params.n_threads = params.n_threads_batch = s["n_threads"] or hardware.n_cores()
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = getattr(llama, f"GGML_TYPE_{s['kv_type'].upper()}")
        params.swa_full = False
        params.no_perf = True
        if self.config is None:
            ctx = llama.llama_init_from_model(self.model, params)
            if not ctx:
                raise RuntimeError("llama_init_from_model: no context, most likely for memory")
            return ctx
        native_params = self.native.make_params(self.config)
        self.native.check_supported(s["path"], self.model, params, native_params)
        ctx = self.native.llama_snapkv_init_from_model(self.model, params, native_params)
        if not ctx:
            self.native.fail("llama_snapkv_init_from_model")
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
        n, n_batch = len(tokens), self.settings["n_batch"]
        if self.config is not None:
            rc = self.native.llama_snapkv_prefill(
                self.ctx,
                sequence,
                tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
                n,
                self.native.llama_snapkv_progress_callback(),
                None,
            )
            if rc != 0:
                self.native.fail("llama_snapkv_prefill")
        else:
            for start in range(0, n, n_batch):
                positions = np.arange(start, min(start + n_batch, n))
                self.fill(tokens[positions], positions, sequence, positions == n - 1)
                self.decode()
        self.llama.llama_synchronize(self.ctx)

    def warm_up(self, tokens: Tokens) -> None:
        """A short prompt the same way: CUDA loads its kernels at their first use."""
        budget = (self.config and self.config.budget) or 0
        self.prefill(tokens[: budget + 2 * self.settings["n_ubatch"]], 0)
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.ctx), False)

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

    def stats(self) -> dict[str, Any] | None:
        """PrefillStats of the last prefill; None with the full cache."""
        if self.config is None:
            return None
        found = self.native.llama_snapkv_stats(size=ctypes.sizeof(self.native.llama_snapkv_stats))
        if not self.native.llama_snapkv_get_stats(self.ctx, ctypes.byref(found)):
            self.native.fail("llama_snapkv_get_stats")
        return {field.name: getattr(found, field.name) for field in fields(PrefillStats)}


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """Prefill each sequence, then decode all of them together, greedily."""
    n_seq, n_prompt = settings["n_seq"], settings["n_prompt"]
    with WATCH:
        session = Session(settings)
        prompts = [
            random_tokens(session.n_vocab, n_prompt, settings["seed"] + i) for i in range(n_seq)
        ]
        session.warm_up(prompts[0])
        device_loaded = WATCH.look()
        started = time.monotonic()
        last = []
        for sequence, tokens in enumerate(prompts):
            session.prefill(tokens, sequence)
            last.append(session.best(1)[0])
        seconds_prefill = time.monotonic() - started

        tokens = np.array(last, np.int32)
        first = tokens.tolist()
        position = n_prompt
        sequences = list(range(n_seq))

        def steps(n: int) -> float:
            """Decode n tokens of each sequence; seconds in llama.cpp."""
            nonlocal tokens, position
            seconds = 0.0
            for _ in range(n):
                session.fill(tokens, position, sequences, True)
                begun = time.perf_counter()
                session.decode()
                session.llama.llama_synchronize(session.ctx)
                seconds += time.perf_counter() - begun
                tokens = session.best(n_seq)
                position += 1
            return seconds

        steps(settings["n_warmup"])
        n_decode = settings["n_decode"]
        decode_seconds = [steps(n_decode) for _ in range(settings["decode_repeats"])]
        device_decoding = WATCH.look()
    return {
        "seconds_load": session.seconds_load,
        "seconds_context": session.seconds_context,
        "seconds_prefill": seconds_prefill,
        "prefill_tokens_per_second": n_seq * n_prompt / seconds_prefill,
        "decode_seconds": decode_seconds,
        # of each sequence
        "decode_tokens_per_second": [n_decode / seconds for seconds in decode_seconds],
        "first_tokens": first,
        "stats": session.stats(),
        **WATCH.to_dict(),
        "device_loaded": device_loaded,
        "device_decoding": device_decoding,
        "peak_rss": peak_rss(),
    }


def kept(settings: dict[str, Any]) -> dict[str, Any]:
    """Through the package's own Llama: the demo's text, or random tokens for a made model."""
    from snapkv_local.llama import Llama

    llm = Llama(
        settings["path"],
        snapkv=SnapKVConfig(**settings["config"]),
        n_ctx=settings["n_prompt"] + settings["room"],
        n_ubatch=settings["n_ubatch"],
        n_gpu_layers=settings["n_gpu_layers"],
        n_threads=settings["n_threads"] or hardware.n_cores(),
        n_threads_batch=settings["n_threads"] or hardware.n_cores(),
        verbose=False,
    )
    if settings["text"]:
        text = importlib.resources.files("snapkv_local").joinpath("demo", "station.txt")
        tokens = llm.tokenize(text.read_bytes())[: settings["n_prompt"]]
    else:
        tokens = random_tokens(llm.n_vocab(), settings["n_prompt"], settings["seed"]).tolist()
    stats = llm.prefill(tokens)
    np.save(settings["kept_file"], llm.kept_positions())
    return {"n_prompt": len(tokens), "stats": stats.to_dict()}


def main() -> None:
    what, settings = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps({"run": run, "kept": kept}[what](settings)))


if __name__ == "__main__":
    main()
