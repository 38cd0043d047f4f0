#!/usr/bin/env python3
"""The model of `train_gpt --model d12` in PyTorch, for comparison: a CSV line of tokens/s and memory on standard output.

    dev/gpu_check/peer_training.py CONTEXT BATCH STEPS

What a careful PyTorch user would write: torch.compile, bf16 autocast over fp32 weights, scaled_dot_product_attention,
fused AdamW, gradients clipped. Llama architecture of 12 layers, 768 channels, 12 heads, SwiGLU of 2,048, 257 tokens of
vocabulary, tied embeddings. Tokens are random: speed does not depend on them. The first three steps, which compile,
do not count; the rate is that of the median step.
"""
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

LAYERS, CHANNELS, HEADS, HIDDEN, VOCABULARY = 12, 768, 12, 2048, 257
HEAD = CHANNELS // HEADS


def rotate(x, cosines, sines):
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1).to(x.dtype)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(CHANNELS, eps=1e-5), nn.RMSNorm(CHANNELS, eps=1e-5)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS, bias=False)
        self.out = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.gate_up = nn.Linear(CHANNELS, 2 * HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, CHANNELS, bias=False)

    def forward(self, x, cosines, sines):
        B, T, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cosines, sines), rotate(k, cosines, sines)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(B, T, CHANNELS))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, T):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, CHANNELS)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(CHANNELS, eps=1e-5)
        nn.init.normal_(self.table.weight, std=0.02)
        angles = torch.outer(torch.arange(T).double(), 10000 ** (-torch.arange(0, HEAD, 2).double() / HEAD))
        self.register_buffer("cosines", angles.cos().float())
        self.register_buffer("sines", angles.sin().float())

    def forward(self, tokens, targets):
        x = self.table(tokens)
        for layer in self.layers:
            x = layer(x, self.cosines, self.sines)
        logits = F.linear(self.norm(x), self.table.weight)
        return F.cross_entropy(logits.reshape(-1, VOCABULARY).float(), targets.reshape(-1))


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: peer_training.py CONTEXT BATCH STEPS")
    T, B, steps = (int(word) for word in sys.argv[1:])
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    model = Model(T).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = torch.compile(model)
    tokens = torch.randint(0, VOCABULARY, (B, T + 1), device="cuda")
    times = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        times.append(time.perf_counter() - start)
    seconds = sorted(times[3:])[steps // 2]
    print(f"pytorch,{T},{B},{B * T / seconds:.0f},{torch.cuda.max_memory_allocated() / 2**30:.2f}", flush=True)


if __name__ == "__main__":
    main()
