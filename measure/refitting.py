"""Values of kept rows, fitted anew to what all rows give: one KV head at a time, in NumPy.

A row that is dropped takes its part of each attention output with it. The keys of the rows that stay decide
how much of each is taken, and stay as they are. Their values V can be changed, so that the outputs of some
observed queries come near to those of all rows again: least squares for D in V' = V + D, held near zero by
a ridge. Zweiger et al., "Fast KV Compaction via Attention Matching", arXiv 2602.16284, fit values so. Their
keys get a bias each besides, for which llama.cpp's mask, one for all heads of all layers, has no place.
Merging dropped values into those of similar kept rows is what others do, such as D2O (arXiv 2406.13035).

Sizes: n prompt tokens, r kept rows (window included), m queries of all heads that share the KV head, d head
size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Queries = Literal["none", "merge", "window", "prompt", "answer"]


@dataclass(frozen=True)
class Variant:
    """A way to change the values of kept rows.

    Attributes:
        queries: whose outputs are fitted: "window" for the prompt's last ones, where they stand;
            "prompt" for some of the whole prompt, turned to the position behind it, so that they see all
            rows; "answer" for those that the error is measured with, as a bound that no one can reach.
            "none" changes nothing, and "merge" adds each dropped value to that of the kept row whose
            key is the most similar, weighted by the attention that both get from the last 32 queries.
        n: positions of these queries.
        ridge: how strongly changes are held near zero, as a share of the mean eigenvalue of what is solved.
        by_vote: rows are held in proportion to the largest attention weight that any of the queries
            gives them, which spares rows that somebody looks up.
    """

    queries: Queries
    n: int = 0
    ridge: float = 0.0
    by_vote: bool = False

    @property
    def name(self) -> str:
        """In records, such as `window-16/0.1` or `prompt-1024/1/by-vote`."""
        if self.queries in ("none", "merge"):
            return self.queries
        number = f"-{self.n}" if self.n else ""
        return f"{self.queries}{number}/{self.ridge:g}" + ("/by-vote" if self.by_vote else "")


@dataclass(frozen=True)
class Rotation:
    """RoPE of adjacent pairs, as models of the architecture `llama` have it.

    Attributes:
        rates: angle of each pair for each position, [d / 2].
    """

    rates: npt.NDArray[np.float64]

    @classmethod
    def read(cls, path: Path) -> Rotation:
        """Of a GGUF file.

        Raises:
            ValueError: another architecture, or one whose rotation is scaled.
        """
        reader = gguf.GGUFReader(path)

        def value(name: str) -> Any:
            found = reader.get_field(name)
            return None if found is None else found.contents()

        if value("general.architecture") != "llama" or value("llama.rope.scaling.type"):
            raise ValueError(f"{path}: give a model of the architecture llama without RoPE scaling")
        d = int(value("llama.rope.dimension_count"))
        rates = float(value("llama.rope.freq_base")) ** (-np.arange(0, d, 2) / d)
        for tensor in reader.tensors:
            if tensor.name == "rope_freqs.weight":
                rates = rates / tensor.data.astype(np.float64)
        return cls(rates)

    def turned(self, q: Floats, by: Ids) -> Floats:
        """Queries [g, p, d] as if they stood `by` [p] positions later."""
        angle = by[:, None] * self.rates
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        even, odd = q[..., 0::2], q[..., 1::2]
        out = np.empty_like(q)
        out[..., 0::2] = even * cos - odd * sin
        out[..., 1::2] = even * sin + odd * cos
        return out


def weights(q: Floats, at: Ids, k: Floats, positions: Ids, scale: float) -> Floats:
    """Attention [m, r] of queries at positions `at` over keys; 0 for a query that sees none of them."""
    logits = (q @ k.T) * np.float32(scale)
    logits[positions[None, :] > at[:, None]] = -np.inf
    logits -= np.maximum(logits.max(axis=1, keepdims=True), np.float32(-1e30))
    e = np.exp(logits)
    found: Floats = e / np.maximum(e.sum(axis=1, keepdims=True), np.float32(1e-30))
    return found


def ridge_fit(a: Floats, missing: Floats, ridge: float) -> Floats:
    """D [r, d] with the least |a D - missing|^2 + ridge * mean eigenvalue * |D|^2, for a [m, r].

    It is solved in whichever of both forms is smaller: with fewer queries than rows nothing else than the
    ridge says which of many solutions it is.
    """
    m, r = a.shape
    weight = ridge * np.vdot(a, a) / min(m, r)
    gram = a @ a.T if m <= r else a.T @ a
    gram[np.diag_indices(len(gram))] += np.float32(weight)
    found: Floats = (
        a.T @ np.linalg.solve(gram, missing) if m <= r else np.linalg.solve(gram, a.T @ missing)
    )
    return found


@dataclass(frozen=True)
class Head:
    """One KV head of a layer after the prefill of a prompt and of its answer.

    Attributes:
        q: [g, n + n_answer, d], of the query heads that share it, after RoPE.
        k, v: [n + n_answer, d].
        n: tokens of the prompt.
        window: of these, the last ones, which always stay.
        scale: factor on the dot products.
        rotation: of its queries.
    """

    q: Floats
    k: Floats
    v: Floats
    n: int
    window: int
    scale: float
    rotation: Rotation
    _seen: dict[tuple[Queries, int], tuple[Floats, Ids, Floats]] = field(default_factory=dict)

    def rows(self, kept: npt.NDArray[np.int32]) -> Ids:
        """Positions [r] of the kept prefix rows and of the window."""
        return np.concatenate([kept.astype(np.int64), np.arange(self.n - self.window, self.n)])

    def observed(self, queries: Queries, n: int) -> tuple[Floats, Ids, Floats]:
        """Queries [m, d], their positions [m], and their outputs over all rows of the prompt [m, d]."""
        key = queries, n
        if key not in self._seen:
            if queries == "window":
                at = np.arange(self.n - n, self.n)
                q = self.q[:, at]
            elif queries == "prompt":
                of = np.unique(np.linspace(0, self.n - 1, n).astype(np.int64))
                at = np.full(len(of), self.n)
                q = self.rotation.turned(self.q[:, of], self.n - of)
            else:
                at = np.arange(self.n, self.q.shape[1])
                q = self.q[:, at]
            flat = np.ascontiguousarray(q.reshape(-1, q.shape[-1]))
            places = np.tile(at, len(self.q))
            full = weights(flat, places, self.k[: self.n], np.arange(self.n), self.scale)
            self._seen[key] = flat, places, full @ self.v[: self.n]
        return self._seen[key]

    def values(self, variant: Variant, kept: npt.NDArray[np.int32]) -> Floats:
        """Of the kept rows and the window [r, d], in float16's precision."""
        rows = self.rows(kept)
        v = self.v[rows]
        if variant.queries == "merge":
            v[: len(kept)] = self._merged(kept.astype(np.int64))
        elif variant.queries != "none":
            q, at, outputs = self.observed(variant.queries, variant.n)
            a = weights(q, at, self.k[rows], rows, self.scale)
            seen = a.any(axis=1)
            a, missing = a[seen], (outputs - a @ v)[seen]
            held = (
                np.sqrt(a.max(axis=0) + 1e-4 * a.max()) if variant.by_vote else np.ones(len(rows))
            )
            free = (1 / held).astype(np.float32)
            v = v + free[:, None] * ridge_fit(a * free, missing, variant.ridge)
        limit = np.finfo(np.float16).max
        return np.clip(v, -limit, limit).astype(np.float16).astype(np.float32)

    def _merged(self, kept: Ids) -> Floats:
        """Means of each kept row's value and those of the dropped rows nearest to it: [len(kept), d]."""
        n_prefix = self.n - self.window
        at = np.arange(max(0, self.n - 32), self.n)
        q = np.ascontiguousarray(self.q[:, at].reshape(-1, self.q.shape[-1]))
        full = weights(q, np.tile(at, len(self.q)), self.k[: self.n], np.arange(self.n), self.scale)
        vote = full[:, :n_prefix].mean(axis=0)
        k = self.k[:n_prefix] / np.linalg.norm(self.k[:n_prefix], axis=1, keepdims=True)
        dropped = np.setdiff1d(np.arange(n_prefix), kept)
        nearest = (k[dropped] @ k[kept].T).argmax(axis=1)
        total, share = self.v[kept] * vote[kept, None], vote[kept].copy()
        np.add.at(total, nearest, self.v[dropped] * vote[dropped, None])
        np.add.at(share, nearest, vote[dropped])
        merged: Floats = np.where(
            share[:, None] > 0,
            total / np.maximum(share, np.float32(1e-30))[:, None],
            self.v[kept],
        )
        return merged

    def error(self, kept: npt.NDArray[np.int32], values: Floats) -> tuple[float, float]:
        """Squared error of the answer's outputs with these values, and what it is a share of.

        The answer's own rows are there, as in a cache that is decoded from.
        """
        q, at, _ = self.observed("answer", 0)
        rows = self.rows(kept)
        answer = np.arange(self.n, len(self.k))
        a = weights(
            q,
            at,
            np.concatenate([self.k[rows], self.k[answer]]),
            np.concatenate([rows, answer]),
            self.scale,
        )
        found = a @ np.concatenate([values, self.v[answer]])
        full = self._answered
        return float(np.square(found - full).sum()), float(np.square(full).sum())

    @cached_property
    def _answered(self) -> Floats:
        """Outputs of the answer's queries over all rows, its own included: [m, d]."""
        q, at, _ = self.observed("answer", 0)
        return weights(q, at, self.k, np.arange(len(self.k)), self.scale) @ self.v
