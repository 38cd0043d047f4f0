#!/usr/bin/python3
"""Writes the goldens against which test/test_model.c holds the whole program.

Each golden is a folder of a tiny model: a Hugging Face checkpoint (config.json, model.safetensors), tokens.bin (an
llm.c token shard of exactly the windows of one batch, so every step sees the same batch), and expected.safetensors:
what plain PyTorch computes in float64 from the definitions of the models, rounded to float32 at the very end:

    logits              (B, T, V), sequences in the order of tokens.bin
    losses              (steps + 1): before each AdamW step, and after the last
    gradient_norm       (1): before clipping, at the first step
    gradient.NAME       at the first step, of the mean loss over all tokens, before clipping
    trained.NAME        the weights after all steps

The models are written out below in the plainest form, so that they can be read against the papers: GPT-2 (Radford
et al. 2019), Llama (Touvron et al. 2023), Qwen2 (Yang et al. 2024), rotary positions (Su et al. 2021) and their
scalings.

    make_model_goldens.py                       writes all goldens beside this script (python3-torch is enough)
    make_model_goldens.py --check-transformers  also holds the models below against those of the transformers library
    make_model_goldens.py --check-folder DIR    holds any checkpoint folder against the transformers library
    make_model_goldens.py --save-sharded        also writes goldens/sharded with transformers itself, in several files
"""

import argparse
import json
import math
import os
import struct
import sys

import numpy as np
import torch
from torch.nn.functional import cross_entropy, layer_norm, linear, silu, softmax

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS = 10
# Adam divides a gradient by its own size, so an element whose gradient is near 0 takes a step of the size of its
# rounding error over epsilon. This epsilon keeps float32 within some 1e-6 of float64 (PyTorch's own float32 too);
# 1e-8 would not.
OPTIMIZER = dict(lr=5e-3, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1)
CLIP = 1.0


# ---- the models, functional: weights are a dictionary under Hugging Face's names -----------------------------------


def attention(query, key, value, scale):
    """Causal softmax attention. query (B, H, T, D); key, value (B, KV, T, D), each serving H / KV query heads."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    T = query.shape[2]
    scores = (query @ key.transpose(2, 3)) * scale
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    return softmax(scores.masked_fill(later, -math.inf), -1) @ value


def split_heads(x, heads):
    B, T, width = x.shape
    return x.view(B, T, heads, width // heads).transpose(1, 2)


def join_heads(x):
    B, H, T, D = x.shape
    return x.transpose(1, 2).reshape(B, T, H * D)


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gpt2(config, w, tokens):
    """Logits (B, T, V). Matrices stand as (in, out) in GPT-2's files."""
    C, H = config["n_embd"], config["n_head"]

    def norm(x, name):
        return layer_norm(x, (C,), w[name + ".weight"], w[name + ".bias"], config["layer_norm_epsilon"])

    def affine(x, name):
        return x @ w[name + ".weight"] + w[name + ".bias"]

    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][: tokens.shape[1]]
    for layer in range(config["n_layer"]):
        h = f"transformer.h.{layer}."
        query, key, value = (split_heads(p, H) for p in affine(norm(x, h + "ln_1"), h + "attn.c_attn").split(C, -1))
        mixed = attention(query, key, value, 1 / math.sqrt(C // H))
        x = x + affine(join_heads(mixed), h + "attn.c_proj")
        x = x + affine(gelu_tanh(affine(norm(x, h + "ln_2"), h + "mlp.c_fc")), h + "mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T


def rotary_frequencies(config, D):
    """Angle per position of each of the D/2 pairs, and the factor on cosine and sine, after config's rope_scaling."""
    theta, scaling = config["rope_theta"], config.get("rope_scaling") or {}
    frequency = theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    kind = scaling.get("rope_type", "default")
    if kind == "default":
        return frequency, 1.0
    factor = scaling["factor"]
    if kind == "linear":  # positions divided by the factor (Chen et al. 2023)
        return frequency / factor, 1.0
    original = scaling["original_max_position_embeddings"]
    if kind == "llama3":  # by turns made over the original context: many, kept; few, slowed; between, blended
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = original * frequency / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return frequency * (keep + (1 - keep) / factor), 1.0
    if kind == "yarn":  # Peng et al. 2023, section 3: the same idea over the index of the pair, and a temperature

        def pair_with_turns(turns):
            return D * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        first = max(math.floor(pair_with_turns(scaling["beta_fast"])), 0)
        last = min(math.ceil(pair_with_turns(scaling["beta_slow"])), D - 1)
        slowed = ((torch.arange(D // 2, dtype=torch.float64) - first) / (last - first)).clamp(0, 1)
        return frequency * (1 - slowed) + frequency / factor * slowed, 0.1 * math.log(factor) + 1
    raise ValueError(kind)


def rotate(x, cos, sin):
    """Pairs element i of a head with i + D/2 (Hugging Face's order). x (B, heads, T, D); cos, sin (T, D/2)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def llama(config, w, tokens):
    """Logits (B, T, V), for Llama and, with biases on q, k, v, Qwen2. Matrices stand as (out, in)."""
    H, KV = config["num_attention_heads"], config["num_key_value_heads"]
    D = config.get("head_dim") or config["hidden_size"] // H

    def norm(x, name):
        return x * (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).rsqrt() * w[name + ".weight"]

    def affine(x, name):
        return linear(x, w[name + ".weight"], w.get(name + ".bias"))

    frequency, magnitude = rotary_frequencies(config, D)
    angle = torch.outer(torch.arange(tokens.shape[1], dtype=torch.float64), frequency)
    x = w["model.embed_tokens.weight"][tokens]
    cos, sin = (magnitude * angle.cos()).to(x.dtype), (magnitude * angle.sin()).to(x.dtype)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        h = norm(x, block + "input_layernorm")
        query = rotate(split_heads(affine(h, block + "self_attn.q_proj"), H), cos, sin)
        key = rotate(split_heads(affine(h, block + "self_attn.k_proj"), KV), cos, sin)
        value = split_heads(affine(h, block + "self_attn.v_proj"), KV)
        x = x + affine(join_heads(attention(query, key, value, 1 / math.sqrt(D))), block + "self_attn.o_proj")
        h = norm(x, block + "post_attention_layernorm")
        h = silu(affine(h, block + "mlp.gate_proj")) * affine(h, block + "mlp.up_proj")
        x = x + affine(h, block + "mlp.down_proj")
    x = norm(x, "model.norm")
    return x @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def model_of(config):
    return gpt2 if config["model_type"] == "gpt2" else llama


def shapes(config):
    """Names and shapes of the tensors of model.safetensors."""
    if config["model_type"] == "gpt2":
        C, V = config["n_embd"], config["vocab_size"]
        yield "transformer.wte.weight", (V, C)
        yield "transformer.wpe.weight", (config["n_positions"], C)
        for layer in range(config["n_layer"]):
            h = f"transformer.h.{layer}."
            for name, shape in (("ln_1", (C,)), ("attn.c_attn", (C, 3 * C)), ("attn.c_proj", (C, C)), ("ln_2", (C,)),
                                ("mlp.c_fc", (C, 4 * C)), ("mlp.c_proj", (4 * C, C))):
                yield h + name + ".weight", shape
                yield h + name + ".bias", shape[-1:]
        yield "transformer.ln_f.weight", (C,)
        yield "transformer.ln_f.bias", (C,)
        return
    C, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    H, KV = config["num_attention_heads"], config["num_key_value_heads"]
    D = config.get("head_dim") or C // H
    qkv_bias = config["model_type"] == "qwen2" or config.get("attention_bias", False)
    yield "model.embed_tokens.weight", (V, C)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        yield block + "input_layernorm.weight", (C,)
        for name, shape, bias in (("self_attn.q_proj", (H * D, C), qkv_bias),
                                  ("self_attn.k_proj", (KV * D, C), qkv_bias),
                                  ("self_attn.v_proj", (KV * D, C), qkv_bias),
                                  ("self_attn.o_proj", (C, H * D), config.get("attention_bias", False))):
            yield block + name + ".weight", shape
            if bias:
                yield block + name + ".bias", shape[:1]
        yield block + "post_attention_layernorm.weight", (C,)
        for name, shape in (("mlp.gate_proj", (F, C)), ("mlp.up_proj", (F, C)), ("mlp.down_proj", (C, F))):
            yield block + name + ".weight", shape
            if config.get("mlp_bias", False):
                yield block + name + ".bias", shape[:1]
    yield "model.norm.weight", (C,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (V, C)


def random_weights(config, generator):
    """Nothing left at 0 or 1, so that a norm's weight or a bias that is dropped or misplaced shows."""
    weights = {}
    for name, shape in shapes(config):
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) == 1:
            x = (1 + 0.2 * x) if name.endswith("weight") else 0.2 * x
        elif "wte" in name or "wpe" in name or "embed" in name or "lm_head" in name:
            x = 0.3 * x
        else:
            x = x * (shape[0] if config["model_type"] == "gpt2" else shape[1]) ** -0.5
        weights[name] = x.float().double()  # float64 that float32 holds exactly: both programs start from one point
    return weights


# ---- files ---------------------------------------------------------------------------------------------------------


def write_safetensors(path, tensors):
    """The format in full: a length, a JSON header, the data (https://github.com/huggingface/safetensors)."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [offset, offset + 4 * x.numel()]}
        offset += 4 * x.numel()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for x in tensors.values():
            file.write(x.detach().numpy().astype("<f4").tobytes())


def read_safetensors(path):
    with open(path, "rb") as file:
        data = file.read()
    length = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32"
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            array = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"]).astype(np.float64)
            tensors[name] = torch.from_numpy(array)
    return tensors


def write_tokens(path, tokens):
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    with open(path, "wb") as file:
        file.write(header.tobytes() + np.asarray(tokens, "<u2").tobytes())


# ---- goldens -------------------------------------------------------------------------------------------------------


def mean_loss(config, weights, inputs, targets):
    logits = model_of(config)(config, weights, inputs)
    return logits, cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(config, weights, inputs, targets):
    """What expected.safetensors holds: the first step's inside, and ten steps of AdamW, decay on matrices only."""
    w = {name: x.clone().requires_grad_() for name, x in weights.items()}
    groups = [dict(params=[x for x in w.values() if x.dim() == 2]),
              dict(params=[x for x in w.values() if x.dim() == 1], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, **OPTIMIZER)
    expected, losses = {}, []
    for step in range(STEPS):
        logits, loss = mean_loss(config, w, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norm = math.sqrt(sum(x.grad.pow(2).sum().item() for x in w.values()))
        if step == 0:
            expected["logits"] = logits.detach().clone()
            expected["gradient_norm"] = torch.tensor([norm], dtype=torch.float64)
            expected.update({"gradient." + name: x.grad.clone() for name, x in w.items()})
        for x in w.values():
            x.grad *= min(1.0, CLIP / norm)
        optimizer.step()
    losses.append(mean_loss(config, w, inputs, targets)[1].item())
    expected["losses"] = torch.tensor(losses, dtype=torch.float64)
    expected.update({"trained." + name: x.detach() for name, x in w.items()})
    return expected


def llama_config(architecture="LlamaForCausalLM", **changes):
    config = dict(architectures=[architecture], model_type="llama", vocab_size=67, hidden_size=32,
                  intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  hidden_act="silu", max_position_embeddings=64, rms_norm_eps=1e-3, rope_theta=10000.0,
                  rope_scaling=None, tie_word_embeddings=False, attention_dropout=0.0,
                  initializer_range=0.02, use_cache=True, bos_token_id=1, eos_token_id=2, torch_dtype="float32")
    config.update(changes)
    return config


GPT2 = dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=67, n_positions=64, n_ctx=64, n_embd=32,
            n_layer=2, n_head=4, n_inner=None, activation_function="gelu_new", layer_norm_epsilon=1e-3,
            initializer_range=0.02, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1, scale_attn_weights=True,
            scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False, summary_type="cls_index",
            summary_use_proj=True, summary_activation=None, summary_proj_to_labels=True, summary_first_dropout=0.1,
            use_cache=True, tie_word_embeddings=True, bos_token_id=66, eos_token_id=66, torch_dtype="float32")

# Small, but with what sets each apart from the others. Norm epsilons are large, to be seen.
GOLDENS = {  # name: (configuration, sequences in the batch, context)
    "gpt2": (GPT2, 1, 37),
    "llama": (llama_config(), 2, 37),
    "tied": (llama_config(num_hidden_layers=1, tie_word_embeddings=True, head_dim=16), 1, 37),  # H * D > C
    "qwen2": (llama_config("Qwen2ForCausalLM", model_type="qwen2", tie_word_embeddings=True, num_key_value_heads=1,
                           rope_theta=1e6, sliding_window=None, use_sliding_window=False, max_window_layers=2), 1, 37),
    "llama3": (llama_config(num_hidden_layers=1, rope_theta=500.0, max_position_embeddings=256, rope_scaling=dict(
        rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64)), 1, 37),
    "yarn": (llama_config(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, rope_theta=500.0,
                          tie_word_embeddings=True, max_position_embeddings=32, rope_scaling=dict(
        rope_type="yarn", factor=4.0, beta_fast=2.0, beta_slow=0.25, original_max_position_embeddings=32)), 1, 37),
    "linear": (llama_config(num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=3, head_dim=8,
                            hidden_size=24, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                            rope_scaling=dict(rope_type="linear", factor=3.0)), 1, 37),
}


def batch_of(tokens, B, T):
    """Windows of T + 1 tokens, each starting at the last token of the one before."""
    windows = torch.stack([tokens[b * T : b * T + T + 1] for b in range(B)])
    return windows[:, :-1], windows[:, 1:]


def write_golden(name, check):
    config, B, T = GOLDENS[name]
    generator = torch.Generator().manual_seed(1 + list(GOLDENS).index(name))
    weights = random_weights(config, generator)
    tokens = torch.randint(0, config["vocab_size"], (B * T + 1,), generator=generator)
    inputs, targets = batch_of(tokens, B, T)
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        file.write(json.dumps(config, indent=2) + "\n")
    write_safetensors(os.path.join(folder, "model.safetensors"), weights)
    write_tokens(os.path.join(folder, "tokens.bin"), tokens)
    expected = train(config, weights, inputs, targets)
    write_safetensors(os.path.join(folder, "expected.safetensors"), expected)
    print(f"{name}: {sum(x.numel() for x in weights.values())} parameters, "
          f"gradient norm {expected['gradient_norm'].item():.3f}, "
          f"losses {' '.join(f'{x:.4f}' for x in expected['losses'].tolist())}")
    if check:
        check_folder(folder, inputs, targets)


# ---- against transformers ------------------------------------------------------------------------------------------


def check_folder(folder, inputs=None, targets=None):
    """Logits and gradients of a folder in float64: the functions above against the transformers library."""
    import transformers

    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    weights = read_safetensors(os.path.join(folder, "model.safetensors"))
    for x in weights.values():
        x.requires_grad_()
    if inputs is None:
        tokens = torch.randint(0, config["vocab_size"], (38,), generator=torch.Generator().manual_seed(1))
        inputs, targets = batch_of(tokens, 1, 37)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    # The library computes rotary angles, RMSNorm and softmax in float32 whatever the model's type; here, in float64.
    single, to_single = torch.float32, torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    torch.float32 = torch.float64
    try:
        model = type(loaded)(loaded.config).double().eval()
        model.load_state_dict(loaded.state_dict())
        theirs = model(inputs).logits
        cross_entropy(theirs.flatten(0, 1), targets.flatten()).backward()
    finally:
        torch.Tensor.float, torch.float32 = to_single, single
    ours, loss = mean_loss(config, weights, inputs, targets)
    loss.backward()
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys(), parameters.keys() ^ weights.keys()
    pairs = [("logits", ours, theirs)] + [(name, weights[name].grad, x.grad) for name, x in parameters.items()]
    difference = {name: float((a - b).norm() / b.norm().clamp_min(1e-9)) for name, a, b in pairs}
    worst = max(difference, key=difference.get)
    print(f"  transformers {transformers.__version__}, {type(model).__name__}: relative difference at most "
          f"{difference[worst]:.1e} ({worst})")
    assert all(d < 1e-10 for d in difference.values())  # a NaN is not


def save_sharded():
    """A checkpoint written by transformers itself, in several files, of the same weights as the golden "linear"."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(HERE, "linear"))
    model.config._name_or_path = ""
    model.save_pretrained(os.path.join(HERE, "sharded"), max_shard_size="10KB")
    print("sharded:", " ".join(sorted(os.listdir(os.path.join(HERE, "sharded")))))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check-transformers", action="store_true")
    parser.add_argument("--check-folder", metavar="DIR")
    parser.add_argument("--save-sharded", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.check_folder:
        check_folder(options.check_folder)
        return
    for name in GOLDENS:
        write_golden(name, options.check_transformers)
    if options.save_sharded:
        save_sharded()


if __name__ == "__main__":
    sys.exit(main())
