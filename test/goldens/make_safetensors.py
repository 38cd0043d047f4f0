#!/usr/bin/env python3
"""Writes foreign.safetensors with the safetensors library (the format's own implementation, in Rust).

The test reads it with the project's own reader, so that the two agree on more than what one of them wrote. It holds the
four dtypes that are converted, two that are not, odd names and shapes, special values, and metadata.

    python3 test/goldens/make_safetensors.py        (needs: pip install safetensors torch)
"""
import pathlib

import torch
from safetensors.torch import save_file

# exact in every floating-point type here, so that one list holds for all; then what is special in each
VALUES = [0.0, -0.0, 1.0, -1.5, 0.0078125, 96.0, -2.0**-14, 384.0]

tensors = {
    "plain.f32": torch.tensor(VALUES, dtype=torch.float32).reshape(2, 4),
    "plain.f64": torch.tensor(VALUES, dtype=torch.float64).reshape(4, 2),
    "plain.f16": torch.tensor(VALUES, dtype=torch.float16).reshape(2, 2, 2),
    "plain.bf16": torch.tensor(VALUES, dtype=torch.bfloat16),
    # largest, least normal, least subnormal, a subnormal, infinities
    "special.f16": torch.tensor([65504.0, 2.0**-14, 2.0**-24, -3 * 2.0**-24, float("inf"), -float("inf"), float("nan")],
                                dtype=torch.float16),
    "special.bf16": torch.tensor([2.0**127 * 1.9921875, 2.0**-126, 2.0**-133, float("inf"), float("nan")],
                                 dtype=torch.bfloat16),
    "special.f32": torch.tensor([3.4028234663852886e38, 2.0**-149, -float("inf"), float("nan")], dtype=torch.float32),
    "integers.i64": torch.arange(-2, 3, dtype=torch.int64),
    "flags.bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(42.0),
    "empty": torch.zeros(0, 3),
    'odd "name"\\ with/slash\tand tab': torch.tensor([7.0]),
    "Größe.権重.🙂": torch.tensor([8.0]),
}
here = pathlib.Path(__file__).resolve().parent
save_file(tensors, here / "foreign.safetensors", metadata={"format": "pt", "note": 'quotes " and ünïcode'})
