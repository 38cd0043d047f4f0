#!/usr/bin/env python3
"""PyTorch's attention, timed as dev/bench_attention times ours; CSV on standard output.

    dev/gpu_check/peer_attention.py T D [T D ...]             lines "pytorch-WHO,T,D,forward,backward,both" in TFLOP/s
    dev/gpu_check/peer_attention.py --bits N T D [T D ...]    lines "bits,pytorch-WHO,T,D,N,forward,backward": of N
                                                              calls, how many gave other bits than the first

WHO: flash and cudnn, back ends of scaled_dot_product_attention; of the bits also flash-det, flash with
torch.use_deterministic_algorithms; of the times also eager-bf16 and eager-fp32, softmax(q k^T) v operation by
operation, where its matrices fit (fp32 without TF32).

Causal, bf16, 2,048 channels of heads of size D, 16,384 tokens in all where T is shorter than that; q, k and v are
contiguous. Operations are the useful ones: a causal product over the scores is 2 x T^2/2 x D a head and sequence;
forward has two, backward five. Backward is timed alone, over the graph of one forward pass; "both" is seven products
by the sum of the two times. What this PyTorch and GPU do not serve gives no line.
"""
import functools
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    sys.exit(f"peer_attention.py: PyTorch cannot be used here: {error}")

CHANNELS, TOKENS = 2048, 16384
LONGEST_EAGER = {"eager-bf16": 8192, "eager-fp32": 4096}  # a matrix of scores: 4.3e9 (2.1e9) values for D = 64
BACK_ENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def seconds_of(work):
    """Median of five rounds, each of as many repeats as take about 50 ms, the clock read when the GPU is done."""
    def round_of(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    round_of(1)
    repeats = max(1, int(0.05 / max(round_of(1), 1e-6)))
    return sorted(round_of(repeats) for _ in range(5))[2]


def tensors(T, D, dtype):
    """q, k, v, which want gradients, and the gradient of the result."""
    torch.manual_seed(1)
    shape = max(1, TOKENS // T), CHANNELS // D, T, D
    q, k, v, d_out = (torch.randn(shape, device="cuda").to(dtype) for _ in range(4))
    return [x.requires_grad_() for x in (q, k, v)], d_out


@functools.lru_cache(maxsize=1)
def hidden(T):
    return torch.ones(T, T, dtype=torch.bool, device="cuda").triu(1)


def eager(q, k, v):
    scores = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).masked_fill_(hidden(q.shape[2]), float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def measure(who, attention, T, D, dtype=torch.bfloat16):
    inputs, d_out = tensors(T, D, dtype)

    def forward():
        with torch.no_grad():
            attention(*inputs)

    forward_seconds = seconds_of(forward)
    out = attention(*inputs)
    backward_seconds = seconds_of(lambda: torch.autograd.grad(out, inputs, d_out, retain_graph=True))
    product = 1e-12 * T * d_out.numel()  # 2 x T^2/2 x D of all heads and sequences
    print(f"pytorch-{who},{T},{D},{2 * product / forward_seconds:.1f},{5 * product / backward_seconds:.1f},"
          f"{7 * product / (forward_seconds + backward_seconds):.1f}", flush=True)


def compare(who, attention, T, D, calls):
    inputs, d_out = tensors(T, D, torch.bfloat16)
    first_out = first_gradients = None
    different = [0, 0]
    for _ in range(calls):
        out = attention(*inputs)
        gradients = torch.autograd.grad(out, inputs, d_out)
        if first_out is None:
            first_out, first_gradients = out, gradients
        different[0] += not torch.equal(out, first_out)
        different[1] += not all(torch.equal(x, y) for x, y in zip(gradients, first_gradients))
    print(f"bits,pytorch-{who},{T},{D},{calls},{different[0]},{different[1]}", flush=True)


def tried(who, T, D, work):
    """Runs `work`; one line of why it cannot."""
    try:
        work()
    except RuntimeError as error:  # not in this PyTorch, not for this GPU, or out of memory
        print(f"pytorch-{who}, T = {T}, D = {D}: {str(error).splitlines()[0]}", file=sys.stderr)
    torch.cuda.empty_cache()


def times(T, D):
    for who, back_end in BACK_ENDS.items():
        with sdpa_kernel(back_end):
            tried(who, T, D, lambda: measure(who, fused, T, D))
    for who, longest in LONGEST_EAGER.items():
        dtype = torch.float32 if who == "eager-fp32" else torch.bfloat16
        if T <= longest:
            tried(who, T, D, lambda: measure(who, eager, T, D, dtype))


def bits(T, D, calls):
    for who, back_end in [*BACK_ENDS.items(), ("flash-det", SDPBackend.FLASH_ATTENTION)]:
        torch.use_deterministic_algorithms(who == "flash-det")
        with sdpa_kernel(back_end):
            tried(who, T, D, lambda: compare(who, fused, T, D, calls))
        torch.use_deterministic_algorithms(False)


def main():
    words, calls = sys.argv[1:], 0
    usage = "usage: peer_attention.py [--bits N] T D [T D ...]"
    try:
        if words[:1] == ["--bits"]:
            calls, words = int(words[1]), words[2:]
        sizes = [int(word) for word in words]
    except (ValueError, IndexError):
        sys.exit(usage)
    if not sizes or len(sizes) % 2:
        sys.exit(usage)
    if not torch.cuda.is_available():
        sys.exit("peer_attention.py: this PyTorch sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = False
    for T, D in zip(sizes[::2], sizes[1::2]):
        if calls:
            bits(T, D, calls)
        else:
            times(T, D)


if __name__ == "__main__":
    main()
