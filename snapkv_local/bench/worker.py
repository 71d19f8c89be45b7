"""One measured run, in a process of its own: settings as JSON in, figures as JSON out.

python -m snapkv_local.bench.worker run SETTINGS    # prefill and decode
python -m snapkv_local.bench.worker describe        # the build, and the devices that it finds
python -m snapkv_local.bench.worker prove ASKED     # is a prefill exact on a device?
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from snapkv_local.bench.nvml import Gpus, PeakMemory
from snapkv_local.bench.session import Session, Settings, Tokens, random_tokens
from snapkv_local.errors import SnapKVError
from snapkv_local.hardware import peak_rss


def run(given: dict[str, Any]) -> dict[str, Any]:
    """Prefill each sequence, then decode all of them together, greedily.

    Args:
        given: Settings by name, and whatever else a case's settings say.

    Returns:
        seconds_prefill ends when every evaluated prompt's first token is chosen, seconds_first_token
        when the first one's is. decode_tokens_per_second is that of each sequence. last_tokens are
        those that each sequence has decoded last.
    """
    # before any CUDA library is loaded: what is in use now is not ours
    watch = PeakMemory(Gpus.open())
    settings = Settings.take(given)
    n_seq, n_prompt = settings.n_seq, settings.n_prompt
    with watch:
        session = Session(settings)
        prompts = [
            random_tokens(session.n_vocab, n_prompt, settings.seed + i)
            for i in range(settings.n_prompts)
        ]
        session.warm_up(prompts[0])
        device_loaded = watch.look()
        started = time.monotonic()
        last = []
        seconds_first_token = 0.0
        for sequence, tokens in enumerate(prompts):
            session.prefill(tokens, sequence)
            last.append(session.best(1)[0])
            seconds_first_token = seconds_first_token or time.monotonic() - started
        seconds_prefill = time.monotonic() - started
        session.copy(0, list(range(len(prompts), n_seq)))
        last *= n_seq // len(prompts)
        bytes_kept = session.bytes_kept()
        stats = session.stats()

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

        steps(settings.n_warmup)
        n_decode = settings.n_decode
        decode_seconds = [steps(n_decode) for _ in range(settings.decode_repeats)]
        device_decoding = watch.look()
        follow_up = _follow_up(session, prompts[0]) if settings.n_follow else None
    return {
        "seconds_load": session.seconds_load,
        "seconds_context": session.seconds_context,
        "seconds_first_token": seconds_first_token,
        "seconds_prefill": seconds_prefill,
        "prefill_tokens_per_second": len(prompts) * n_prompt / seconds_prefill,
        "decode_seconds": decode_seconds,
        "decode_tokens_per_second": [n_decode / seconds for seconds in decode_seconds],
        "first_tokens": first,
        "last_tokens": tokens.tolist(),
        "bytes_kept": bytes_kept,
        "stats": stats,
        "follow_up": follow_up,
        **watch.to_dict(),
        "device_loaded": device_loaded,
        "device_decoding": device_decoding,
        "peak_rss": peak_rss(),
    }


def _follow_up(session: Session, prompt: Tokens) -> dict[str, Any]:
    """Another question at the prompt's end: seconds to its first token, and the prefill's figures."""
    settings = session.settings
    n = settings.n_follow
    question = random_tokens(session.n_vocab, n, settings.seed + settings.n_seq)
    started = time.monotonic()
    session.prefill(np.concatenate([prompt[:-n], question]), 0)
    session.best(1)
    return {"seconds_first_token": time.monotonic() - started, "stats": session.stats()}


def describe() -> dict[str, Any]:
    """The build of the native library, and ggml's devices.

    A process that only measures asks another one: a device that was looked at keeps some memory.
    """
    from snapkv_local.native import binding, devices

    return {"build": binding.build(), "devices": [asdict(device) for device in devices.devices()]}


def prove(given: dict[str, Any]) -> dict[str, Any]:
    """Small models on a device.

    Args:
        given: the device's name, and questions as native.proof.Question has them.

    Returns:
        The cases, and the questions that could not be computed with their error.
    """
    from snapkv_local.native import proof

    cases, failures = [], []
    for question in given["questions"]:
        try:
            cases.append(proof.prove(given["device"], proof.Question(**question)))
        except SnapKVError as e:
            failures.append({**question, "error": str(e)})
    return {"cases": cases, "failures": failures}


def main(arguments: list[str]) -> int:
    """The command; an error of the package is one line on stderr."""
    # what libraries print must not mix with the result
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    verbs: dict[str, Callable[..., dict[str, Any]]] = {
        "run": run,
        "describe": describe,
        "prove": prove,
    }
    try:
        result = verbs[arguments[0]](*map(json.loads, arguments[1:]))
    except (SnapKVError, RuntimeError) as e:
        print(e, file=sys.stderr)
        return 1
    with out:
        print(json.dumps(result), file=out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
