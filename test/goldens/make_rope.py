#!/usr/bin/env python3
"""Writes rope.txt: rotary frequencies and amplitudes of several configurations, in double precision.

For each: a line with the config.json, a line with the amplitude (what cosines and sines are multiplied by), a line
with the head's D/2 frequencies. The formulas are written down here once more, from the papers and from what the
Hugging Face classes compute, apart from the C code. With --check they are compared with transformers' own, in its
single precision (5.x needed for all of them: earlier ones take yarn's original length from elsewhere).

    python3 test/goldens/make_rope.py [--check]
"""
import json
import math
import pathlib
import sys


def default(theta, dim):
    return [1 / theta ** (i / dim) for i in range(0, dim, 2)], 1.0


def linear(theta, dim, factor):
    return [f / factor for f in default(theta, dim)[0]], 1.0


def llama3(theta, dim, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings):
    result = []
    for f in default(theta, dim)[0]:
        wavelength = 2 * math.pi / f
        if wavelength < original_max_position_embeddings / high_freq_factor:
            result.append(f)
        elif wavelength > original_max_position_embeddings / low_freq_factor:
            result.append(f / factor)
        else:
            turns = original_max_position_embeddings / wavelength
            smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
            result.append((1 - smooth) * f / factor + smooth * f)
    return result, 1.0


def yarn(theta, dim, factor, original_max_position_embeddings, beta_fast=32, beta_slow=1, attention_factor=None,
         mscale=None, mscale_all_dim=None, truncate=True):
    def dimension(rotations):
        return dim * math.log(original_max_position_embeddings / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    def temperature(m):
        return 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    result = []
    for i, f in enumerate(default(theta, dim)[0]):
        ramp = min(max((i - low) / (high - low), 0), 1)
        result.append(f / factor * ramp + f * (1 - ramp))
    if attention_factor is None:
        both = mscale and mscale_all_dim
        attention_factor = temperature(mscale) / temperature(mscale_all_dim) if both else temperature(1)
    return result, attention_factor


def base(dim, theta, positions=131072):
    return dict(model_type="llama", hidden_size=2 * dim, num_attention_heads=2, num_key_value_heads=1, head_dim=dim,
                rope_theta=theta, max_position_embeddings=positions)


def llama3_case(dim, factor):
    return dict(base(dim, 500000.0), rope_scaling=dict(rope_type="llama3", factor=factor, low_freq_factor=1.0,
                                                       high_freq_factor=4.0, original_max_position_embeddings=8192))


def yarn_case(dim, theta, factor, original, **more):
    scaling = dict(type="yarn", factor=factor, original_max_position_embeddings=original, **more)
    return dict(base(dim, theta), rope_scaling=scaling)


cases = [
    base(64, 10000.0),
    base(128, 1e6),
    base(8, 500000.0),
    dict(base(64, 10000.0), rope_scaling=dict(type="linear", factor=4.0)),
    llama3_case(64, 32.0),
    llama3_case(128, 8.0),
    yarn_case(128, 1e6, 4.0, 32768),
    yarn_case(64, 10000.0, 16.0, 2048, beta_fast=16, beta_slow=2, attention_factor=1.25),
    yarn_case(64, 10000.0, 40.0, 4096, mscale=1.0, mscale_all_dim=0.707),
    yarn_case(64, 150000.0, 32.0, 4096, truncate=False),
    yarn_case(8, 10000.0, 2.0, 4),
    yarn_case(16, 10000.0, 1.0, 512),
]


def compute(config):
    scaling = dict(config.get("rope_scaling", {}))
    kind = scaling.pop("type", scaling.pop("rope_type", "default"))
    return globals()[kind](config["rope_theta"], config["head_dim"], **scaling)


def check(config, frequencies, amplitude):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    settings = json.loads(json.dumps({k: v for k, v in config.items() if k != "model_type"}))
    hf = LlamaConfig(**settings)
    kind = (getattr(hf, "rope_scaling", None) or {}).get("rope_type", "default")
    if kind not in ROPE_INIT_FUNCTIONS:
        return
    theirs, scale = ROPE_INIT_FUNCTIONS[kind](hf, "cpu")
    worst = max(abs(a - float(b)) / a for a, b in zip(frequencies, theirs))
    print(f"{kind}: largest relative difference {worst:.1e}, amplitude {amplitude} and {scale}")
    assert worst < 1e-5 and abs(scale - amplitude) < 1e-12


lines = []
for config in cases:
    frequencies, amplitude = compute(config)
    if "--check" in sys.argv:
        check(config, frequencies, amplitude)
    lines += [json.dumps(config), repr(amplitude), " ".join(map(repr, frequencies))]
(pathlib.Path(__file__).resolve().parent / "rope.txt").write_text("\n".join(lines) + "\n")
