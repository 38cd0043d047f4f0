#!/usr/bin/env python3
"""Writes retention.txt: linear attention of 8,192 tokens with decays 0.5 and 1 - 10^-6, in PyTorch, in double precision.

The recurrence is that of retention (Sun et al. 2023), as flash-linear-attention's naive_recurrent_retention has it, without
its scale: S_t = g S_{t-1} + k_t v_t^T, o_t = S_t^T q_t. Run with v it gives the numerator of y, with ones its denominator;
features phi(u) = elu(u) + 1. Gradients are autograd's, of the sum of y times fixed weights.

A line: "decay tensor token values... scale", for every 67th token of y, every 251st of the gradients, and the last
one. Such steps, which have no factor in common with 64, come by any row of the kernels' blocks of 64 tokens. `scale` is
the sum of the absolute values of all that is added up to make a row, of its largest element: errors of rounding are a
part of that.

    python3 test/goldens/make_retention.py > test/goldens/retention.txt      (pip install torch)
"""
import torch

T, D = 8192, 8


def values(seed):  # in [-1.97, 1.97], exact in fp32; test_linear.c makes the same
    n = torch.arange(T * D, dtype=torch.int64) + seed * 1000003
    return ((n * n % 4093 * 31 + n * 7919) % 253 - 126).to(torch.float64).reshape(T, D) / 64


def retention(q, k, v, decay):
    state, out = torch.zeros(D, v.shape[1], dtype=torch.float64), []
    for t in range(T):
        state = decay * state + k[t][:, None] * v[t][None, :]
        out.append(q[t] @ state)
    return torch.stack(out)


def phi(u):
    return torch.nn.functional.elu(u) + 1


def suffix(q, g, decay):  # sum_{i >= t} decay^(i - t) q_i g_i^T, for every t
    return retention_states(q.flip(0), g.flip(0), decay).flip(0)


def retention_states(k, v, decay):
    state, out = torch.zeros(D, v.shape[1], dtype=torch.float64), []
    for t in range(T):
        state = decay * state + k[t][:, None] * v[t][None, :]
        out.append(state)
    return torch.stack(out)


def show(decay, name, rows, scales, step):
    for t in (*range(0, T - 1, step), T - 1):
        print(decay, name, t, *(f"{x:.9e}" for x in rows[t].tolist()), f"{scales[t].max().item():.3e}")


for decay in (0.5, 1 - 1e-6):
    q, k, v = (values(i).requires_grad_() for i in (1, 2, 3))
    weights = values(4)
    ones = torch.ones(T, 1, dtype=torch.float64)
    both = retention(phi(q), phi(k), torch.cat([v, ones], 1), decay)
    y = both[:, :D] / both[:, D:]
    y.backward(weights)
    with torch.no_grad():
        den = both[:, D:]
        g = weights.abs() / den
        delta = (weights * y).sum(1, keepdim=True).abs() / den
        g1, v1 = torch.cat([g, delta], 1), torch.cat([v.abs(), ones], 1)
        before, behind = retention_states(phi(k), v1, decay), suffix(phi(q), g1, decay)
        show(decay, "y", y, (phi(q)[:, None, :] @ before[:, :, :D])[:, 0] / den, 67)
        show(decay, "d_q", q.grad, (before @ g1[:, :, None])[:, :, 0], 251)
        show(decay, "d_k", k.grad, (behind @ v1[:, :, None])[:, :, 0], 251)
        show(decay, "d_v", v.grad, (phi(k)[:, None, :] @ behind[:, :, :D])[:, 0], 251)
