#!/usr/bin/env python3
"""Writes delta.bin: outputs and gradients of the gated delta rule over 8,192 tokens, its decays at their extremes.

PyTorch in double precision, the recurrence of Gated DeltaNet (arXiv 2412.06464, equation 10; transformers' Qwen3-Next
defines the same as torch_recurrent_gated_delta_rule), token by token, and autograd for the gradients:

    S_t = alpha_t S_t-1 (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,   o_t = S_t q_t

Three heads of 16: alpha = 0.5 in all tokens, alpha = 1 - 1e-6 in all tokens, and one or the other at random. Inputs come
from a generator that test/test_delta.c has as well (`uniform`), so the file holds results alone: of every 67th token
and the last one o, dq, dk, dv (16 each), d beta and d log(alpha), as little-endian fp32, head after head. A step that
has no factor in common with 64 comes by every row of the kernels' blocks of 64 tokens.

    python3 test/goldens/make_delta.py          (needs PyTorch, a few minutes)
"""
import math
import pathlib

import torch

TOKENS, HEADS, D, EVERY = 8192, 3, 16, 67


def uniform(stream, count):
    """Values in (-1, 1): the top 32 bits of a 64-bit multiply-and-xor hash of a counter (SplitMix64)."""
    values = []
    for i in range(count):
        z = (stream << 40) + i + 1
        z = z * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        z = (z ^ z >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        values.append(((z ^ z >> 31) >> 32) / 2.0**31 - 1)
    return torch.tensor(values, dtype=torch.float64)


def rounded(x):
    """As the kernels are given it: fp32."""
    return x.to(torch.float32).to(torch.float64)


def head(h):
    q, k, v, d_o = (uniform(10 * h + i, TOKENS * D).view(TOKENS, D) for i in range(4))
    q = rounded(q / q.norm(dim=1, keepdim=True) / math.sqrt(D))
    k = rounded(k / k.norm(dim=1, keepdim=True))
    v, d_o = rounded(v), rounded(d_o)
    beta = rounded((uniform(10 * h + 4, TOKENS) + 1) / 2)
    coin = uniform(10 * h + 5, TOKENS)
    halves = torch.full((TOKENS,), math.log(0.5), dtype=torch.float64)
    ones = torch.full((TOKENS,), math.log1p(-1e-6), dtype=torch.float64)
    log_decay = rounded(halves if h == 0 else ones if h == 1 else torch.where(coin < -0.95, halves, ones))
    inputs = [x.requires_grad_() for x in (q, k, v, beta, log_decay)]
    state = torch.zeros(D, D, dtype=torch.float64)
    outputs = []
    for t in range(TOKENS):
        held = state @ k[t]
        state = log_decay[t].exp() * (state - beta[t] * torch.outer(held, k[t])) + beta[t] * torch.outer(v[t], k[t])
        outputs.append(state @ q[t])
    o = torch.stack(outputs)
    o.backward(d_o)
    columns = [o.detach(), q.grad, k.grad, v.grad, beta.grad[:, None], log_decay.grad[:, None]]
    return torch.cat(columns, dim=1)[[*range(0, TOKENS - 1, EVERY), TOKENS - 1]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    data = b"".join(head(h).numpy().astype("<f4").tobytes() for h in range(HEADS))
    pathlib.Path(__file__).with_name("delta.bin").write_bytes(data)
