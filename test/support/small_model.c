// test/small_model.h
#include "test/small_model.h"

ModelConfig small_gpt2(int64_t vocab_size, int64_t layers) {
    return (ModelConfig){.architecture = ARCH_GPT2,
                         .vocab_size = vocab_size,
                         .layers = layers,
                         .heads = 4,
                         .kv_heads = 4,
                         .head_dim = 8,
                         .dim = 32,
                         .ffn_dim = 128,
                         .max_positions = 50,
                         .norm_epsilon = 1e-5,
                         .init_std = 0.02,
                         .tied_embeddings = true,
                         .qkv_bias = true,
                         .out_bias = true,
                         .mlp_bias = true,
                         .bos_token = -1,
                         .eos_token = -1};
}
