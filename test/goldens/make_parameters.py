#!/usr/bin/env python3
"""Writes parameters.txt: the tensors that transformers' save_pretrained writes, by class and configuration.

For each of several small models: a line with its config.json as save_pretrained writes it, then one line
"NAME SIZE SIZE ..." for each tensor of its model.safetensors, then an empty line.

    python3 test/goldens/make_parameters.py         (needs: pip install transformers; made with 4.45.2)
"""
import json
import pathlib
import tempfile

from safetensors import safe_open
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM)

gpt2 = dict(vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2)
llama = dict(vocab_size=11, max_position_embeddings=6, hidden_size=8, intermediate_size=20, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2)
models = [
    (GPT2LMHeadModel, GPT2Config(**gpt2)),
    (GPT2LMHeadModel, GPT2Config(**gpt2, n_inner=12, tie_word_embeddings=False)),
    (LlamaForCausalLM, LlamaConfig(**llama)),
    (LlamaForCausalLM, LlamaConfig(**llama, tie_word_embeddings=True)),
    (LlamaForCausalLM, LlamaConfig(**llama, head_dim=6, attention_bias=True, mlp_bias=True)),
    (Qwen2ForCausalLM, Qwen2Config(**llama)),
    (Qwen2ForCausalLM, Qwen2Config(**llama, tie_word_embeddings=True)),
]

here = pathlib.Path(__file__).resolve().parent
with open(here / "parameters.txt", "w") as out:
    for cls, config in models:
        with tempfile.TemporaryDirectory() as folder:
            cls(config).save_pretrained(folder)
            with open(f"{folder}/config.json") as file:
                print(json.dumps(json.load(file)), file=out)
            with safe_open(f"{folder}/model.safetensors", framework="pt") as file:
                for name in sorted(file.keys()):
                    print(name, *file.get_slice(name).get_shape(), file=out)
        print(file=out)
