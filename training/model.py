"""The needle model: a llama whose positions are none of them new to it, however long the prompt.

Half of the rotary pairs do not turn (llama.cpp's rope_freqs say so), the others turn fully within 4,100
tokens. Sequences of a batch stand one after the other: [n, width] with n = rows * length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right


@dataclass
class Shape:
    """Of a llama.

    Attributes:
        n_turning: of head / 2 rotary pairs; the others stay as they are.
    """

    n_layers: int = 6
    width: int = 384
    n_heads: int = 6
    n_kv_heads: int = 2
    head: int = 64
    inner: int = 1024
    vocabulary: int = 12_288
    rope_base: float = 1e6
    n_turning: int = 16
    eps: float = 1e-5


@dataclass
class Compute:
    """How matrices are multiplied: a type, and what attends."""

    dtype: torch.dtype = torch.float32
    backend: SDPBackend | None = None


COMPUTE = Compute()


def rms(x: Tensor, gain: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalized, [n, width]."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of [n, heads, head]; a pair is one of the first half and one of the second."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def before(
    x: Tensor, gain: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cos: Tensor, sin: Tensor, head: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [n, query heads, head] of the residual stream [n, width]."""
    n, dtype = x.shape[0], COMPUTE.dtype
    h = rms(x, gain).to(dtype)
    q = F.linear(h, wq.to(dtype)).view(n, -1, head)
    k = F.linear(h, wk.to(dtype)).view(n, -1, head)
    v = F.linear(h, wv.to(dtype)).view(n, -1, head)
    cos, sin = cos[:, None], sin[:, None]
    q, k = turn(q, cos, sin).to(dtype), turn(k, cos, sin).to(dtype)
    group = q.shape[1] // k.shape[1]
    return q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)


def after(
    x: Tensor, attended: Tensor, wo: Tensor, gain: Tensor, w1: Tensor, w3: Tensor, w2: Tensor
) -> Tensor:
    """The residual stream [n, width] with what attention and the feed-forward layer add."""
    dtype = COMPUTE.dtype
    x = x + F.linear(attended.to(dtype), wo.to(dtype)).float()
    h = rms(x, gain).to(dtype)
    h = F.silu(F.linear(h, w1.to(dtype))) * F.linear(h, w3.to(dtype))
    return x + F.linear(h, w2.to(dtype)).float()


def losses(x: Tensor, gain: Tensor, embedding: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of each position [n]: cross entropy, and the most likely token."""
    dtype = COMPUTE.dtype
    logits = F.linear(rms(x, gain).to(dtype), embedding.to(dtype)).float()
    return F.cross_entropy(logits, target, reduction="none"), logits.argmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of [rows, heads, n, head]; queries are of the last positions."""
    mask = None if q.shape[2] == k.shape[2] else causal_lower_right(q.shape[2], k.shape[2])
    if COMPUTE.backend is None or mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    with sdpa_kernel(COMPUTE.backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Needle(torch.nn.Module):
    """Weights by kind, [n_layers, ...]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        s = self.shape = shape
        n, w = s.n_layers, s.width

        def matrix(rows: int, columns: int, scale: float) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(n, rows, columns) * scale)

        self.embedding = torch.nn.Parameter(torch.randn(s.vocabulary, w) * 0.02)
        scale = 0.6 / math.sqrt(w)
        self.wq = matrix(s.n_heads * s.head, w, scale)
        self.wk = matrix(s.n_kv_heads * s.head, w, scale)
        self.wv = matrix(s.n_kv_heads * s.head, w, scale)
        self.wo = matrix(w, s.n_heads * s.head, 0.0)
        self.w1 = matrix(s.inner, w, scale)
        self.w3 = matrix(s.inner, w, scale)
        self.w2 = matrix(w, s.inner, 0.0)
        self.gain1 = torch.nn.Parameter(torch.ones(n, w))
        self.gain2 = torch.nn.Parameter(torch.ones(n, w))
        self.gain = torch.nn.Parameter(torch.ones(w))
        self.before: Callable[..., Any] = before
        self.after: Callable[..., Any] = after
        self.losses: Callable[..., Any] = losses
        self._turns: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def hidden(self) -> list[torch.nn.Parameter]:
        """The matrices."""
        return [self.wq, self.wk, self.wv, self.wo, self.w1, self.w3, self.w2]

    def others(self) -> list[torch.nn.Parameter]:
        """Embedding and gains."""
        return [self.embedding, self.gain1, self.gain2, self.gain]

    def compile(self) -> None:
        """For batches of one size."""
        self.before = torch.compile(before, dynamic=False)
        self.after = torch.compile(after, dynamic=False)
        self.losses = torch.compile(losses, dynamic=False)

    def turns(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions, [end - begin, head / 2]."""
        s = self.shape
        i = torch.arange(s.head // 2, dtype=torch.float64)
        rate = torch.where(i < s.n_turning, s.rope_base ** (-2 * i / s.head), 0.0)
        angle = torch.arange(begin, end, dtype=torch.float64)[:, None] * rate
        device = self.embedding.device
        return torch.cos(angle).float().to(device), torch.sin(angle).float().to(device)

    def _turns_of_rows(self, n: int, length: int) -> tuple[Tensor, Tensor]:
        if (n, length) not in self._turns:
            cos, sin = (t.repeat(n // length, 1) for t in self.turns(0, length))
            self._turns[n, length] = cos, sin
        return self._turns[n, length]

    def layers(self) -> list[tuple[Tensor, ...]]:
        """Weights of each layer, in the order that before() and after() take them."""
        kinds = (
            self.gain1,
            self.wq,
            self.wk,
            self.wv,
            self.wo,
            self.gain2,
            self.w1,
            self.w3,
            self.w2,
        )
        return list(zip(*(p.unbind(0) for p in kinds), strict=True))

    def forward(self, ids: Tensor, length: int) -> Tensor:
        """The residual stream [n, width] after the last layer; ids [n], sequences one after the other."""
        s, n = self.shape, ids.shape[0]
        cos, sin = self._turns_of_rows(n, length)
        x = F.embedding(ids, self.embedding)
        for g1, wq, wk, wv, wo, g2, w1, w3, w2 in self.layers():
            q, k, v = self.before(x, g1, wq, wk, wv, cos, sin, s.head)
            q, k, v = (t.view(-1, length, s.n_heads, s.head).transpose(1, 2) for t in (q, k, v))
            a = attend(q, k, v)
            x = self.after(x, a.transpose(1, 2).reshape(n, -1), wo, g2, w1, w3, w2)
        return x

    @torch.no_grad()
    def go_on(
        self, ids: Tensor, cache: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, list]:
        """One sequence's next tokens [n], after those of which a cache has keys and values.

        Returns:
            The residual stream [n, width] after the last layer, and a cache with these tokens too.
        """
        s, n = self.shape, ids.shape[0]
        begin = cache[0][0].shape[2] if cache else 0
        cos, sin = self.turns(begin, begin + n)
        x = F.embedding(ids, self.embedding)
        grown = []
        for i, (g1, wq, wk, wv, wo, g2, w1, w3, w2) in enumerate(self.layers()):
            q, k, v = before(x, g1, wq, wk, wv, cos, sin, s.head)
            q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
            if cache:
                k, v = torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)
            grown.append((k, v))
            a = attend(q, k, v)
            x = after(x, a[0].transpose(0, 1).reshape(n, -1), wo, g2, w1, w3, w2)
        return x, grown

    def logits(self, x: Tensor) -> Tensor:
        """[n, vocabulary] of the residual stream [n, width] after the last layer."""
        dtype = COMPUTE.dtype
        return F.linear(rms(x, self.gain).to(dtype), self.embedding.to(dtype)).float()


# weights of a checkpoint's files, none of which is large
PARTS = (("embedding",), ("w1", "w2"), ("gain", "gain1", "gain2", "w3", "wk", "wo", "wq", "wv"))


def save(model: Needle, folder: Path, note: dict[str, Any]) -> None:
    """In half precision."""
    state = {k: v.detach().half().cpu() for k, v in model.state_dict().items()}
    for i, names in enumerate(PARTS):
        temporary = folder / f"part{i}.tmp"
        part = {
            "shape": asdict(model.shape),
            "state": {name: state[name] for name in names},
            "note": note,
        }
        torch.save(part, temporary)
        temporary.replace(folder / f"needle.part{i}.pt")


def load(folder: Path, device: str = "cpu") -> Needle:
    """What save() wrote."""
    files = [folder / f"needle.part{i}.pt" for i in range(len(PARTS))]
    parts = [torch.load(file, "cpu", weights_only=True) for file in files]
    model = Needle(Shape(**parts[0]["shape"]))
    model.load_state_dict({name: w.float() for part in parts for name, w in part["state"].items()})
    return model.to(device)
