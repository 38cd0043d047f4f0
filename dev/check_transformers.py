#!/usr/bin/env python3
"""Loads a checkpoint folder with the transformers library and says whether it found what it expects.

Prints the class, the number of parameters, missing and unexpected tensors (there must be none), and, given a text, the
mean loss in nats per byte of a byte-level model over the text's first windows of the given context: the same figure as
the program's own for the same tokens. Exit code 1 if a tensor is missing, unexpected or of another shape.

    python3 dev/check_transformers.py OUT/step-00000100 [TEXT [CONTEXT [WINDOWS]]]      (pip install transformers torch)
"""
import sys

import torch
from transformers import AutoModelForCausalLM


def load(folder):
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, torch_dtype=torch.float32)
    # A tied classifier is the embedding under another name, which some versions of the library list as missing.
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    wrong = {kind: sorted(map(str, set(report[kind]) - tied))
             for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    print(f"{type(model).__name__}: {sum(p.numel() for p in model.parameters())} parameters")
    for kind, names in wrong.items():
        print(f"{kind}: {' '.join(names) or 'none'}")
    return model.eval(), not any(wrong.values())


@torch.no_grad()
def loss(model, path, context, windows):
    with open(path, "rb") as file:
        tokens = list(file.read(context * windows + 1)) + [256]  # the end of a document
    tokens = torch.tensor(tokens[:context * windows + 1])
    total = count = 0
    for start in range(0, len(tokens) - 1, context):
        window = tokens[start:start + context + 1]
        logits = model(window[None, :-1]).logits[0]
        total += torch.nn.functional.cross_entropy(logits.double(), window[1:], reduction="sum").item()
        count += len(window) - 1
    return total / count


if len(sys.argv) < 2:
    sys.exit(__doc__)
model, good = load(sys.argv[1])
if len(sys.argv) > 2:
    context, windows = (int(a) for a in (sys.argv[3:5] + ["256", "8"][len(sys.argv[3:5]):]))
    print(f"loss: {loss(model, sys.argv[2], context, windows):.6f} nats per byte")
sys.exit(0 if good else 1)
