#!/usr/bin/env python3
"""Training in PyTorch, to compare with ours: CSV lines of tokens/s and memory on standard output.

    dev/gpu_check/peer_training.py d12|gpt2 T [T ...]       lines "pytorch-ATTENTION,MODEL,T,B,tokens_per_second,GiB,"
    dev/gpu_check/peer_training.py --compile d12|gpt2 T ... only fills torch.compile's cache: one step each

What a careful PyTorch user would write: torch.compile, bf16 autocast over fp32 weights, scaled_dot_product_attention
by cuDNN (by flash where cuDNN's is refused), fused AdamW, gradients clipped. 65,536 tokens a step, so B = 65,536 / T
sequences of T tokens.

d12 is `train_gpt --model d12`: Llama's architecture of 12 layers, 768 channels, 12 heads, SwiGLU of 2,048, 257 tokens
of vocabulary, tied embeddings. gpt2 is GPT-2 124M with T positions, and its vocabulary of 50,257 rounded up to 50,304,
which spares it the slow products of an odd size. Tokens are random: speed does not depend on them. The first three
steps, which compile, do not count; the rate is that of the median step.
"""
import gc
import math
import sys
import time

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
except ImportError as error:
    sys.exit(f"peer_training.py: PyTorch cannot be used here: {error}")

LAYERS, CHANNELS, HEADS, TOKENS, WARM_UP, STEPS = 12, 768, 12, 65536, 3, 9
HEAD = CHANNELS // HEADS


def attend(q, k, v):
    """(B, T, C) of queries, keys, values of shape (B, heads, T, HEAD)."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def heads_of(qkv):
    B, T, _ = qkv.shape
    return qkv.view(B, T, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)


# ---- d12 ------------------------------------------------------------------------------------------------------------

def rotate(x, cosines, sines):
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1).to(x.dtype)


class LlamaLayer(nn.Module):
    HIDDEN = 2048

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(CHANNELS, eps=1e-5), nn.RMSNorm(CHANNELS, eps=1e-5)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS, bias=False)
        self.out = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.gate_up = nn.Linear(CHANNELS, 2 * self.HIDDEN, bias=False)
        self.down = nn.Linear(self.HIDDEN, CHANNELS, bias=False)

    def forward(self, x, cosines, sines):
        q, k, v = heads_of(self.qkv(self.norm1(x)))
        x = x + self.out(attend(rotate(q, cosines, sines), rotate(k, cosines, sines), v))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    VOCABULARY = 257

    def __init__(self, T):
        super().__init__()
        self.table = nn.Embedding(self.VOCABULARY, CHANNELS)
        self.layers = nn.ModuleList(LlamaLayer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(CHANNELS, eps=1e-5)
        nn.init.normal_(self.table.weight, std=0.02)
        angles = torch.outer(torch.arange(T).double(), 10000 ** (-torch.arange(0, HEAD, 2).double() / HEAD))
        self.register_buffer("cosines", angles.cos().float())
        self.register_buffer("sines", angles.sin().float())

    def forward(self, tokens, targets):
        x = self.table(tokens)
        for layer in self.layers:
            x = layer(x, self.cosines, self.sines)
        return loss_of(F.linear(self.norm(x), self.table.weight), targets)


# ---- GPT-2 ----------------------------------------------------------------------------------------------------------

class Gpt2Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.qkv, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.up, self.down = nn.Linear(CHANNELS, 4 * CHANNELS), nn.Linear(4 * CHANNELS, CHANNELS)

    def forward(self, x):
        x = x + self.out(attend(*heads_of(self.qkv(self.norm1(x)))))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    VOCABULARY, ROWS = 50257, 50304

    def __init__(self, T):
        super().__init__()
        self.table, self.positions = nn.Embedding(self.ROWS, CHANNELS), nn.Embedding(T, CHANNELS)
        self.layers = nn.ModuleList(Gpt2Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(CHANNELS)
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, tokens, targets):
        x = self.table(tokens) + self.positions.weight
        for layer in self.layers:
            x = layer(x)
        return loss_of(F.linear(self.norm(x), self.table.weight), targets)


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


# ---- training -------------------------------------------------------------------------------------------------------

def choose_attention():
    """Leaves one back end of scaled_dot_product_attention switched on, and returns its name."""
    q = torch.randn(1, HEADS, 128, HEAD, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    torch.backends.cuda.enable_math_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    for name in "cudnn", "flash":
        torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
        torch.backends.cuda.enable_flash_sdp(name == "flash")
        try:
            attend(q, q, q).sum().backward()
            return name
        except RuntimeError as error:
            print(f"attention by {name} is refused: {str(error).splitlines()[0]}", file=sys.stderr)
    sys.exit("peer_training.py: this PyTorch has neither cuDNN's attention nor flash for this GPU")


def train(kind, T, steps):
    """Seconds of each step."""
    torch.manual_seed(1)
    model = kind(T).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = torch.compile(model, dynamic=False)
    tokens = torch.randint(0, kind.VOCABULARY, (TOKENS // T, T + 1), device="cuda")
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(loss.item()):
            raise RuntimeError("the loss is no number")
        times.append(time.perf_counter() - start)
    return times


def main():
    words = sys.argv[1:]
    only_compile = words[:1] == ["--compile"]
    words = words[only_compile:]
    kinds = {"d12": Llama, "gpt2": Gpt2}
    lengths = [int(word) for word in words[1:] if word.isdigit() and 0 < int(word) <= TOKENS]
    if not lengths or len(lengths) < len(words) - 1 or words[0] not in kinds:
        sys.exit("usage: peer_training.py [--compile] d12|gpt2 T [T ...]; T at most 65536")
    if not torch.cuda.is_available():
        sys.exit("peer_training.py: this PyTorch sees no GPU")
    torch.set_float32_matmul_precision("high")
    attention, failed = choose_attention(), False
    for T in lengths:
        torch.cuda.reset_peak_memory_stats()
        try:
            times = sorted(train(kinds[words[0]], T, 1 if only_compile else WARM_UP + STEPS)[WARM_UP:])
        except RuntimeError as error:  # out of memory, as a rule
            print(f"{words[0]}, T = {T}: {str(error).splitlines()[0]}", file=sys.stderr)
            times, failed = [], True
        if times:
            print(f"pytorch-{attention},{words[0]},{T},{TOKENS // T},{TOKENS // T * T / times[len(times) // 2]:.0f},"
                  f"{torch.cuda.max_memory_allocated() / 2**30:.2f}", flush=True)
        torch.compiler.reset()  # what was compiled for another T is not tried, nor kept
        gc.collect()
        torch.cuda.empty_cache()
    sys.exit(failed)


if __name__ == "__main__":
    main()
