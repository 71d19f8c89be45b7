"""What holds where a request does not say it: how tokens are drawn, and how prompts are compressed."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from snapkv_local.config import SnapKVConfig
from snapkv_local.policies.policy import OF_THE_ENGINE
from snapkv_local.prompt import vocabulary
from snapkv_local.server.answering import settings
from snapkv_local.server.common import CommonRequest, Overrides
from snapkv_local.server.errors import refusal
from snapkv_local.server.prompting import check_tokens
from snapkv_local.server.schemas import NativeRequest

if TYPE_CHECKING:
    from snapkv_local.llama.draws import Draws
    from snapkv_local.llama.llama import Llama

# of llama-server, for another one each time
_ANY_SEED = 2**32 - 1


class Defaults:
    """The server's own settings, which requests may change.

    Args:
        llm: whose tokens are drawn; how it compresses when this is made is the default.
        sampling: how tokens are drawn: fields of Draws. A seed of -1 is another one each time.
    """

    def __init__(self, llm: Llama, sampling: Mapping[str, Any]) -> None:
        self.config = llm.snapkv
        self._llm = llm
        self._sampling = dict(sampling)
        seed = self._sampling.get("seed", -1)
        self._seed = _ANY_SEED if seed == -1 else int(seed)

    def shown(self) -> dict[str, Any]:
        """How tokens are drawn, as llama-server has it."""
        from snapkv_local.llama.draws import Draws

        return {**settings(Draws(**{**self._sampling, "seed": 0})), "seed": self._seed}

    def draws(self, request: CommonRequest) -> Draws:
        """How a request's tokens are drawn.

        Raises:
            ApiError: it names a token that is none of the model's.
        """
        from snapkv_local.llama.draws import Draws

        names = [each.name for each in dataclasses.fields(Draws)]
        given = {
            name: value
            for name in names
            if name != "logit_bias" and (value := getattr(request, name, None)) is not None
        }
        for name in ("samplers", "dry_sequence_breakers"):
            if name in given:
                given[name] = tuple(given[name])
        seed = given.get("seed", self._seed) % 2**32
        given["seed"] = secrets.randbelow(_ANY_SEED) if seed == _ANY_SEED else seed
        notes = isinstance(request, NativeRequest) and request.post_sampling_probs
        return Draws(
            **{**self._sampling, **given, "logit_bias": self._bias(request), "notes": notes}
        )

    def compression(self, overrides: Overrides | None) -> SnapKVConfig | None:
        """How a request's prompt is compressed; None for the full cache.

        Raises:
            ApiError: the server keeps the full cache.
            ConfigError: the settings are none.
        """
        given = {} if overrides is None else overrides.model_dump(exclude_none=True)
        if self.config is None:
            if given:
                raise refusal("this server keeps the full cache: leave out snapkv", "snapkv")
            return None
        if "keep_ratio" in given and "budget" not in given:
            given["budget"] = None
        if "budget" in given and "keep_ratio" not in given:
            given["keep_ratio"] = None
        if given.get("policy", "snapkv") != "snapkv":
            # a policy of the request's has none of the options that the server gave its own
            own = {name: getattr(SnapKVConfig, name) for name in OF_THE_ENGINE}
            given = {**own, **given}
        return dataclasses.replace(self.config, **given)

    def _bias(self, request: CommonRequest) -> dict[int, float]:
        """What is added to the logits of tokens."""
        bias: dict[int, float] = {}
        for of, value in request.biases():
            if isinstance(of, int):
                check_tokens(self._llm, [of], "logit_bias")
                tokens = [of]
            else:
                tokens = vocabulary.tokens(self._llm, of.encode(), False, False)
            for token in tokens:
                bias[token] = bias.get(token, 0.0) + value
        if request.ignore_eos:
            ends = [token for token in range(self._llm.n_vocab()) if self._llm._ends(token)]
            bias |= dict.fromkeys(ends, float("-inf"))
        return bias
