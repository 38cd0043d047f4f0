#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention, timed as dev/bench_attention times ours; CSV on standard output.

    dev/gpu_check/peer_attention.py T D [T D ...]

Causal, bf16, 2,048 channels of heads of size D, 16,384 tokens in all where T is shorter than that. Operations are the
useful ones: a causal product over the scores is 2 x T^2/2 x D a head and sequence; forward has two, forward and
backward together seven. Each back end that this PyTorch and GPU have gives one line; the others give none.
"""
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

CHANNELS, TOKENS = 2048, 16384
BACK_ENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def seconds_of(work):
    """Median of five rounds, each of as many repeats as take about 50 ms, the clock read when the GPU is done."""
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    repeats = max(1, int(0.05 / max(time.perf_counter() - start, 1e-6)))
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
        rounds.append((time.perf_counter() - start) / repeats)
    return sorted(rounds)[2]


def measure(name, back_end, T, D):
    heads, batch = CHANNELS // D, max(1, TOKENS // T)
    q, k, v, d_out = (torch.randn(batch, heads, T, D, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()

    def forward():
        with torch.no_grad():
            F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def both():
        q.grad = k.grad = v.grad = None
        F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(d_out)

    with sdpa_kernel(back_end):
        forward_seconds, both_seconds = seconds_of(forward), seconds_of(both)
    product = 2.0 * T * T / 2 * D * heads * batch
    print(f"pytorch-{name},{T},{D},{2e-12 * product / forward_seconds:.1f},"
          f"{5e-12 * product / (both_seconds - forward_seconds):.1f},{7e-12 * product / both_seconds:.1f}", flush=True)


def main():
    sizes = [int(word) for word in sys.argv[1:]]
    if not sizes or len(sizes) % 2:
        sys.exit("usage: peer_attention.py T D [T D ...]")
    for T, D in zip(sizes[::2], sizes[1::2]):
        for name, back_end in BACK_ENDS.items():
            try:
                measure(name, back_end, T, D)
            except RuntimeError as error:  # not in this PyTorch, not for this GPU, or out of memory
                print(f"pytorch-{name}, T = {T}, D = {D}: {str(error).splitlines()[0]}", file=sys.stderr)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
