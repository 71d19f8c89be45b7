"""From a model and settings to an evaluation that can run. What can be refused is refused here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

from snapkv_local.bench import record as records
from snapkv_local.bench.matrix import Model
from snapkv_local.bench.runner import Machine
from snapkv_local.config import SnapKVConfig
from snapkv_local.eval.engine import Chooser, Engine
from snapkv_local.eval.record import Record
from snapkv_local.eval.runner import Evaluation, Needs
from snapkv_local.eval.settings import Settings, check_cases
from snapkv_local.eval.tokens import open_tokens
from snapkv_local.llama.load_options import LoadOptions
from snapkv_local.plan.layers import KvType
from snapkv_local.plan.model import read_model


def prepare(
    path: Path,
    settings: Settings,
    policies: Sequence[Chooser],
    loading: LoadOptions,
    *,
    out: Path | None = None,
    note: str | None = None,
) -> Evaluation:
    """Make the cases and open the record; the model's weights are not read yet.

    Args:
        path: of the model.
        settings: what to do.
        policies: those that the settings name.
        loading: but for the context and the type of its cache, which the settings say.
        out: file of the record, which is gone on with if it is there.
        note: for the record.

    Raises:
        ConfigError, PromptError: a length, a file or a record that cannot be.
    """
    found, planned = Model.read(path), read_model(path)
    tokens = open_tokens(path, loading.chat_format)
    cases = [case for task in settings.tasks for case in task.cases(tokens, settings.wanted)]
    tokens.llm.close()
    repeats = any(policy.repeats() for policy in policies)
    check_cases(cases, settings, found.n_ctx_train, repeats)
    needs = Needs.of(settings, cases, policies)

    machine = Machine.describe()
    n_gpu_layers = machine.n_gpu_layers(loading.gpu_layers)
    stamp = {
        "date": date.today().isoformat(),
        "version": version("snapkv-local"),
        "commit": records.package_commit(),
        "machine": records.machine(),
        "device": machine.device(n_gpu_layers),
        "build": machine.build,
        **({"note": note} if note else {}),
        "model": found.to_dict(),
    }
    return Evaluation(
        settings=settings,
        cases=cases,
        policies={policy.spec: policy for policy in policies},
        model=planned,
        open_engine=opener(
            path, needs, settings.window_size, replace(loading, gpu_layers=n_gpu_layers)
        ),
        record=Record.open(out, stamp, settings, cases),
        threads=loading.n_threads(),
    )


def opener(
    path: Path, needs: Needs, window_size: int, loading: LoadOptions
) -> Callable[[KvType], Engine]:
    """Loads the model with cells for whole prompts and a vault."""

    def open_engine(kv_type: KvType) -> Engine:
        # only now: it loads the native library
        from snapkv_local.eval.anew import EvalLlama

        # cells for the whole prompt: the full cache is one of those that are measured
        config = SnapKVConfig(
            budget=needs.n_cells,
            window_size=window_size,
            decode_cells=needs.decode_cells,
            vault="ram",
        )
        arguments = replace(loading, ctx=needs.n_ctx, kv_type=kv_type).arguments()
        return EvalLlama(str(path), snapkv=config, keep_queries=needs.n_observed, **arguments)

    return open_engine
