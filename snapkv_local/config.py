"""Settings: the one home of defaults and validation. Native defaults are tested to equal these."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from snapkv_local import declared, policies
from snapkv_local.declared import option
from snapkv_local.errors import ConfigError
from snapkv_local.policies import budget
from snapkv_local.policies.policy import OF_THE_ENGINE, Policy
from snapkv_local.policies.recall import Recall
from snapkv_local.policies.scoring import INSTEAD, MOST_SELF_WEIGHT, Aggregation, Pooling
from snapkv_local.policies.selective import Selective
from snapkv_local.policies.snapkv import SnapKV
from snapkv_local.policies.snapkv_paper import DEFAULT_VOTERS, SnapKVPaper
from snapkv_local.policies.view import PromptView

DEFAULT_BUDGET = 2048
MOST_BUDGETS = 4  # of max_budget, where it is not given

# cells of a prediction head's own cache, for each conversation: it attends to so many last tokens at most
HEAD_CELLS = 1024
N_THREADS_MAX = 512  # GGML_MAX_N_THREADS
N_PARALLEL_MAX = 64  # sequences of a context that are tested

_UINT32_MAX = 2**32 - 1
_VAULT_CURE = 'give "off", "ram", or a folder that is there'


def _count(default: int | str | None, *, least: int = 1, odd: bool = False) -> Any:
    """A number of tokens, rows or layers, as the engine holds it."""
    return option(default, least=least, most=_UINT32_MAX, odd=odd)


@dataclass(frozen=True)
class SnapKVConfig:
    """How a long prompt is compressed.

    Attributes:
        budget: how many rows each KV head keeps, in tokens, the window included. Prompts up to the
            budget are evaluated as usual. 2048 if neither budget nor keep_ratio is given.
        keep_ratio: the share of the prompt to keep, in (0, 1], instead of a budget:
            floor(keep_ratio * (n_prompt - window_size)) rows before the window stay, as with the
            paper's p. The share that goes, 1 - keep_ratio, is kvpress's compression_ratio.
        window_size: how many tokens at the end of the prompt always stay. The window must cover the
            question, and what the chat template puts after it.
        observation: which tokens of the window vote: "question" for the words of a chat's last
            question, or a number for so many of the last tokens. The question is the last paragraph
            of the last user turn; the template's words after it do not vote. Where there is no
            question, as in a plain text, the last 16 tokens vote, or all of a smaller window. In
            the paper the whole window votes.
        kernel_size: how many neighbouring positions are pooled, an odd number of tokens; 1 turns
            pooling off. The paper has 5 and 7; docs/budget.md says what 21 gains.
        pooling: what a position gets of the votes within its kernel: "avg" for their mean (the
            paper's ablation and kvpress), "max" for the largest (the paper's long-context runs),
            "nosink" for their mean without the vote for the prompt's first token, which draws
            attention whatever it says, and so does not lift its neighbours. This one is our own;
            docs/budget.md says what it gains.
        aggregation: how the votes of several tokens for one position are joined: "sum" adds them up
            (the paper, section 4.1), and "max" takes the largest, which keeps what any one of these
            tokens needs (arXiv 2510.13334).
        self_weight: how much a position's own vote counts beside the pooled one: the score is pooled
            vote + self_weight * own vote. It may be 0, as in the paper, to 1000. A wide kernel hardly
            shows the position's own vote. This setting is our own; docs/budget.md says what it gains.
        n_sink: how many tokens at the beginning of the prompt always stay. The paper has none, hence
            0; later work (arXiv 2309.17453) finds that about 4 help at small budgets.
        min_coverage: the share of the window's attention mass that must stay (mean over layers and KV
            heads): where the budget's rows hold less, more rows stay, up to max_budget. None keeps
            the budget. The cache has cells for max_budget.
        max_budget: the most rows that min_coverage may keep; None for four times the budget.
        decode_cells: how many cells there are for tokens after the prompt. When they are used up, the
            last tokens vote again, and rows are evicted down to the budget.
        layer_group: how many layers are evaluated at a time, called G: only their full KV is live
            then. "auto" is 1, as more layers take more memory and save little time; or all layers,
            where their KV takes less than the hidden state between groups. Layers without a cache
            to compress do not count.
        hidden_state: where the hidden state between layer groups lives: "device", "host", or "auto".
        n_ubatch: how many tokens of the prompt are computed at once; "auto" takes the n_ubatch that
            Llama is made with, and less where a GPU's memory is short.
        ops: which ops score and evict: "fused" for our own (CPU, CUDA, Metal), "ggml" for ops that
            every device of ggml has, or "auto" for fused ones where the layer's device has them.
        vault: where a copy of K and V of all prompt tokens is kept for later questions: "ram" for
            host memory, a folder for a file in it, or "off" for no copy. A later question about the
            same document then chooses its own rows, after one pass over the vault instead of a
            prefill. Nobody else sees the file, and it goes when the vault does.
        vault_limit: the most bytes that the vault may take; None for no limit. A prompt that needs
            more is refused.
        prefill: what goes through all layers: "exact" for all rows of the prompt, or "selective" for
            those that a look ahead at later layers ranks highest. Selective is faster and not exact:
            what a later layer would have seen in the other rows is lost. It goes without a vault;
            docs/how-it-works.md says how it works.
        select_share: with a selective prefill, the share of the prompt's rows that go on. They go in
            whole runs of 8 tokens; the first run, protected rows, and the last ones always do.
        select_min: how many rows go on at least; never fewer than are kept.
        select_depth: the share of the model's layers that all rows go through at least.
        select_settled: when the look ahead is settled enough to choose: the rows that the last look
            would have chosen get this share of the votes of the next one, some layers later. If they
            never do, in four looks, the prefill is exact. 0 chooses at select_depth, after one look.
        recall: whether rows of the vault come back while an answer is written: after every recall_every
            tokens the last ones vote for all rows of the prompt, and rows that now matter take the
            places of rows that no longer do. It needs a vault; docs/recall.md says what it costs.
        recall_every: after how many tokens of an answer. "auto" takes 16, and more where the cache is on a
            GPU and the prompt has more than 3,072 tokens, 128 with 131,072: as many as it computes
            while the votes are counted.
        recall_queries: how many of the last ones vote.
        recall_rows: of each KV head, how many rows of the prompt they are compared with one by one, or
            four times those that are kept, if that is more: those of the stretches that they rank
            highest by an index of the vault. 0 for all rows, which takes long with long prompts.
        recall_delay: how many tokens of the answer are between the last that votes and the rows that
            come in, fewer than recall_every; other threads count the votes meanwhile. "auto" takes as many
            as a GPU computes meanwhile, 77 with 131,072, and 0 on a CPU: then the answer waits.
        recall_margin: how many times as much as a kept row another must be worth to take its place, at
            least 1.
        policy: what chooses the rows: "snapkv", which the engine runs with the settings above, or one
            of snapkv_local.policies with its options, such as "value:kernel_size=21+aggregation=max".
            The others run in Python, layer by layer; docs/api.md says what that costs.
        protect_system: whether all rows before the first user's text stay in a chat: those of the
            system prompt, and of the template's own words. They count into the budget.

    Raises:
        ConfigError: a value is out of its range, or two contradict each other.
    """

    budget: int | None = _count(None)
    keep_ratio: float | None = option(
        None, most=1, above=True, cure="give the share of the prefix to keep, such as 0.1"
    )
    window_size: int = _count(32)
    observation: int | Literal["question"] = _count(SnapKV.observation)
    kernel_size: int = _count(SnapKV.kernel_size, odd=True)
    pooling: Pooling = option(SnapKV.pooling, instead=INSTEAD)
    aggregation: Aggregation = SnapKV.aggregation
    self_weight: float = option(
        SnapKV.self_weight, most=MOST_SELF_WEIGHT, cure="give one, such as 0.25"
    )
    n_sink: int = _count(SnapKV.n_sink, least=0)
    min_coverage: float | None = option(
        None, most=1, above=True, cure="give the share of the attention mass to keep, such as 0.95"
    )
    max_budget: int | None = _count(None)
    decode_cells: int = _count(1024)
    layer_group: int | Literal["auto"] = _count("auto")
    hidden_state: Literal["auto", "device", "host"] = "auto"
    n_ubatch: int | Literal["auto"] = _count("auto")
    ops: Literal["auto", "fused", "ggml"] = "auto"
    vault: str | os.PathLike[str] = option("off", cure=_VAULT_CURE)
    vault_limit: int | None = option(None, least=1, most=2**64 - 1)
    prefill: Literal["exact", "selective"] = "exact"
    select_share: float = option(Selective.share, most=1, above=True)
    select_min: int = _count(Selective.least)
    select_depth: float = option(Selective.depth, most=1)
    select_settled: float = option(Selective.settled, most=1)
    recall: bool = False
    recall_every: int | Literal["auto"] = _count("auto")
    recall_queries: int = _count(Recall.queries)
    recall_rows: int = _count(Recall.asked, least=0)
    recall_delay: int | Literal["auto"] = _count("auto", least=0)
    recall_margin: float = option(Recall.margin, least=1)
    policy: str = option(SnapKV.name, cure="give a text such as 'snapkv'")
    protect_system: bool = False

    def __post_init__(self) -> None:
        declared.check(self)
        if self.budget is None and self.keep_ratio is None:
            object.__setattr__(self, "budget", DEFAULT_BUDGET)
        elif self.budget is not None and self.keep_ratio is not None:
            raise ConfigError(
                f"budget={self.budget}, keep_ratio={self.keep_ratio}",
                "both say how much to keep",
                "give one of the two",
            )
        if isinstance(self.observation, int) and self.observation > self.window_size:
            raise ConfigError(
                f"observation={self.observation}",
                f"are more than the window's {self.window_size} rows",
                "raise window_size or lower observation",
            )
        self._check_coverage()
        object.__setattr__(self, "vault", os.fspath(self.vault))
        if self.vault_folder() is not None and not Path(self.vault).is_dir():
            raise ConfigError(f"vault={self.vault!r}", "is not a folder", _VAULT_CURE)
        if self.prefill == "selective" and self.vault != "off":
            raise ConfigError(
                f"prefill='selective', vault={self.vault!r}",
                "the vault would lack the rows that later layers have not computed, and the next "
                "question may need them",
                "leave one of the two out",
            )
        self._check_recall()
        object.__setattr__(self, "policy", self.policy.strip())
        policy = policies.parse(self.policy)
        self._check_policy(policy)
        object.__setattr__(self, "policy", policy.spec)

    def _check_recall(self) -> None:
        if self.recall and self.vault == "off":
            raise ConfigError(
                "recall=True, vault='off'",
                "rows come back from the vault, and there is none",
                'give vault="ram", or a folder',
            )
        if self.recall_every == "auto":
            return
        if self.recall_queries > self.recall_every:
            raise ConfigError(
                f"recall_queries={self.recall_queries}",
                f"are more than the {self.recall_every} tokens between two recalls",
                "raise recall_every or lower recall_queries",
            )
        if isinstance(self.recall_delay, int) and self.recall_delay >= self.recall_every:
            raise ConfigError(
                f"recall_delay={self.recall_delay}",
                f"is not less than the {self.recall_every} tokens between two recalls, and the next one "
                "would come first",
                "raise recall_every or lower recall_delay",
            )

    def _check_coverage(self) -> None:
        if self.min_coverage is None:
            if self.max_budget is not None:
                raise ConfigError(
                    f"max_budget={self.max_budget}",
                    "says nothing without min_coverage",
                    "give both, such as min_coverage=0.95",
                )
            return
        if self.budget is None:
            raise ConfigError(
                f"min_coverage={self.min_coverage}, keep_ratio={self.keep_ratio}",
                "a share does not grow",
                "give a budget instead",
            )
        if self.max_budget is not None and self.max_budget < self.budget:
            raise ConfigError(
                f"max_budget={self.max_budget}",
                f"is less than budget={self.budget}",
                "give the most rows that may stay",
            )

    def _check_policy(self, policy: policies.Policy) -> None:
        """Refuse settings with which a prefill cannot use the policy."""
        if policy.in_prefill() is not policy:
            raise ConfigError(
                f"policy={self.policy!r}",
                "gives each layer a number of rows of its own, and a prefill evicts the rows of a layer "
                "before it has seen the next one",
                f"choose what it shares rows out for, {policy.in_prefill().name}; `snapkv-local eval` and "
                "Llama.select_rows() can have it",
            )
        budget.check(self.budget, self.window_size, self.n_sink)
        if policy.native:
            if policy.spec != SnapKV.name:
                raise ConfigError(
                    f"policy={self.policy!r}",
                    "runs in the engine, which has its options as settings",
                    f"give {{policy={SnapKV.name!r}}} and {self._settings_of(policy)}",
                )
            return
        if self.recall:
            raise ConfigError(
                f"recall=True, policy={policy.spec!r}",
                "the votes of a recall are the engine's, and another policy chooses the rows",
                f"choose {SnapKV.name!r}, or leave out recall",
            )
        if self.prefill == "selective":
            raise ConfigError(
                f"prefill='selective', policy={policy.spec!r}",
                "the policy is shown all rows of a layer, and after a selection later layers have some "
                "of them",
                f"choose {SnapKV.name!r}, or an exact prefill",
            )
        for name, value in vars(self).items():
            if name in OF_THE_ENGINE and value != getattr(type(self), name):
                raise ConfigError(
                    f"{name}={value!r}",
                    f"is a setting of snapkv, and policy={policy.spec!r} chooses the rows",
                    f"leave it out; {policy.name} has {_options_of(policy)}",
                )
        if self.budget is not None:
            # the shortest prompt of which rows are evicted
            shortest = PromptView(n_prompt=self.budget + 1, window_size=self.window_size)
            n_always = len(policy.always(shortest))
            if n_always >= self.budget - self.window_size:
                raise ConfigError(
                    f"budget={self.budget}",
                    f"leaves no row to select: window_size={self.window_size} and the {n_always} rows that "
                    f"{policy.spec} always keeps take all",
                    "raise the budget or lower the window",
                )

    def _settings_of(self, policy: Policy) -> str:
        """Settings with which the engine keeps what a policy of its own keeps, for a cure."""
        options = dataclasses.asdict(policy)
        if options["observation"] == "window":
            options["observation"] = self.window_size
        elif options["observation"] != "question" and options["observation"] > self.window_size:
            options = {"window_size": options["observation"], **options}
        return ", ".join(
            f"{{{name}={f'{value:g}' if isinstance(value, float) else repr(value)}}}"
            for name, value in options.items()
            if value != getattr(type(self), name)
        )

    def vault_folder(self) -> str | None:
        """The folder of the vault's files; None if it is in host memory, or there is none."""
        return None if self.vault in ("off", "ram") else os.fspath(self.vault)

    def most_rows(self) -> int | None:
        """Most rows that min_coverage may keep; the budget without it, None with keep_ratio."""
        if self.min_coverage is None or self.budget is None:
            return self.budget
        return (
            min(MOST_BUDGETS * self.budget, _UINT32_MAX)
            if self.max_budget is None
            else self.max_budget
        )

    @classmethod
    def paper(cls, **settings: Any) -> SnapKVConfig:
        """The paper's form: the whole window votes, in sum, and votes are averaged 5 wide.

        Args:
            settings: as for SnapKVConfig; they win.
        """
        form = {**dataclasses.asdict(SnapKVPaper()), "observation": cls.window_size}
        if "window_size" in settings:
            form["observation"] = settings["window_size"]
        return cls(**{**form, **settings})

    def n_voters(self) -> int:
        """Last tokens of the prompt that vote; with "question" where none is to be told."""
        n = DEFAULT_VOTERS if self.observation == "question" else self.observation
        return min(n, self.window_size)

    def n_kept(self, n_prompt: int) -> int:
        """Rows that each KV head keeps of a prompt, the window included; n_prompt if all stay."""
        return budget.n_kept(n_prompt, self.budget, self.keep_ratio, self.window_size, self.n_sink)

    def as_policy(self) -> policies.Policy:
        """What the engine does with these settings, as one of snapkv_local.policies."""
        return SnapKV(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(SnapKV)}
        )

    def chooser(self) -> policies.Policy | None:
        """The policy that chooses the rows in the engine's place; None for snapkv."""
        policy = policies.parse(self.policy)
        return None if policy.native else policy


def _options_of(policy: Policy) -> str:
    """A policy's options, in words."""
    names = sorted(field.name for field in dataclasses.fields(policy))
    return f"options of its own: {', '.join(names)}" if names else "no options"
