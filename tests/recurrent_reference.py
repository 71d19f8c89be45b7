"""Recurrent layers in NumPy and float64, written after the papers, to compare llama.cpp and the engine with.

All take x [n_tokens, n_embd], what the layer's norm gives, and weights by the names that a GGUF file has for
them; they return the layer's output [n_tokens, n_embd], the inputs that the convolution still needs
[n_channels, n_conv - 1], and the state after the last token.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from snapkv_local.bench.blueprint import Recurrent

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Over the last dimension."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def unit(x: Array) -> Array:
    """Vectors of length 1, over the last dimension."""
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def causal_convolution(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Each channel by itself, from zeros on: x [n_tokens, n_channels], kernel [n_channels, n_conv]."""
    n_before = kernel.shape[1] - 1
    padded = np.concatenate([np.zeros((n_before, x.shape[1])), x])
    found = sum(padded[i : i + len(x)] * kernel[:, i] for i in range(n_before + 1))
    return np.asarray(found), padded[len(x) :].T


def delta_net(x: Array, w: Weights, r: Recurrent, eps: float) -> tuple[Array, Array, Array]:
    """Gated DeltaNet (Yang, Kautz, Hatamizadeh, arXiv:2412.06464, equation 10).

    S_t = S_{t-1} a_t (I - b_t k_t k_t^T) + b_t v_t k_t^T, o_t = S_t q_t / sqrt(d), for each head: with
    queries and keys of length 1, a_t = exp(A softplus(x W_a + dt)), b_t = sigmoid(x W_b). Query head h of a
    value head is h modulo their number, as in GGUF files. The state is [n_head, d_v, d_k].
    """
    mixed, tail = causal_convolution(x @ w["attn_qkv.weight"].T, w["ssm_conv1d.weight"])
    n, d, d_v = len(x), r.n_state, r.n_inner // r.n_head
    q, k, v = np.split(silu(mixed), [r.n_group * d, 2 * r.n_group * d], axis=1)
    heads = np.arange(r.n_head) % r.n_group
    q, k = (unit(t.reshape(n, r.n_group, d))[:, heads] for t in (q, k))
    v = v.reshape(n, r.n_head, d_v)
    beta = 1 / (1 + np.exp(-x @ w["ssm_beta.weight"].T))
    alpha = np.exp(w["ssm_a"] * softplus(x @ w["ssm_alpha.weight"].T + w["ssm_dt.bias"]))
    state = np.zeros((r.n_head, d_v, d))
    out = np.empty((n, r.n_head, d_v))
    for t in range(n):
        state = alpha[t, :, None, None] * state
        known = np.einsum("hvk,hk->hv", state, k[t])
        new = beta[t, :, None] * (v[t] - known)
        state = state + new[:, :, None] * k[t][:, None, :]
        out[t] = np.einsum("hvk,hk->hv", state, q[t]) / np.sqrt(d)
    gate = silu(x @ w["attn_gate.weight"].T).reshape(n, r.n_head, d_v)
    out = rms_norm(out, w["ssm_norm.weight"], eps) * gate
    return out.reshape(n, -1) @ w["ssm_out.weight"].T, tail, state


def mamba2(x: Array, w: Weights, r: Recurrent, eps: float) -> tuple[Array, Array, Array]:
    """Mamba 2 (Dao, Gu, arXiv:2405.21060, section 7).

    h_t = exp(A dt_t) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t + D x_t, for each head, with
    dt_t = softplus(its input + bias); heads side by side share B and C of a group. The result is gated, and
    normalized by groups. The state is [n_head, d_head, n_state].
    """
    n, d_head = len(x), r.n_inner // r.n_head
    z, mixed, dt = np.split(x @ w["ssm_in.weight"].T, [r.n_inner, r.n_inner + r.n_channels], axis=1)
    mixed, tail = causal_convolution(mixed, w["ssm_conv1d.weight"])
    mixed = silu(mixed + w["ssm_conv1d.bias"])
    v, b, c = np.split(mixed, [r.n_inner, r.n_inner + r.n_group * r.n_state], axis=1)
    v = v.reshape(n, r.n_head, d_head)
    groups = np.arange(r.n_head) // (r.n_head // r.n_group)
    b, c = (t.reshape(n, r.n_group, r.n_state)[:, groups] for t in (b, c))
    dt = softplus(dt + w["ssm_dt.bias"])
    decay = np.exp(dt * w["ssm_a"][:, 0])
    state = np.zeros((r.n_head, d_head, r.n_state))
    out = np.empty((n, r.n_head, d_head))
    for t in range(n):
        new = (dt[t, :, None] * v[t])[:, :, None] * b[t][:, None, :]
        state = decay[t, :, None, None] * state + new
        out[t] = np.einsum("hds,hs->hd", state, c[t]) + w["ssm_d"] * v[t]
    gated = (out.reshape(n, -1) * silu(z)).reshape(n, r.n_group, -1)
    normed = rms_norm(gated, w["ssm_norm.weight"], eps).reshape(n, -1)
    return normed @ w["ssm_out.weight"].T, tail, state
