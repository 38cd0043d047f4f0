// Every parameter of the model: its Hugging Face name and shape, and its place in one flat vector.
//
// All parameters, all gradients and both AdamW moments are flat vectors of `total` elements in this order, so that
// summing gradients, clipping, the optimizer and its sharding are operations on ranges and know nothing of layers.
// Weights of matrices stand as (out, in); GPT-2's files hold (in, out), so theirs are transposed on the way in and out.
// What one product uses together (q, k, v; gate, up) stands side by side and is used as one fused matrix.
#ifndef MODEL_PARAMETERS_H
#define MODEL_PARAMETERS_H

#include <stddef.h>

#include "model/config.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Parameter {
    char name[80];      // as in model.safetensors
    int dimensions;     // 1 or 2
    int64_t shape[2];   // as in the file
    bool transposed;    // memory holds the transpose of the file's matrix
    bool decay;         // weight decay: matrices, embeddings included; not biases and norms
    int64_t offset, size; // elements, in the flat vector
    float init_mean, init_std; // of new models: normal(mean, std); std 0: the constant
} Parameter;

// Offsets of one layer's fused tensors in the flat vector; -1 where the architecture has none.
typedef struct LayerOffsets {
    int64_t norm1, norm1_bias;        // (C)
    int64_t qkv, qkv_bias;            // ((H + 2 KV) D, C), ((H + 2 KV) D)
    int64_t attention_out, attention_out_bias; // (C, H D), (C)
    int64_t norm2, norm2_bias;        // (C)
    int64_t up, up_bias;              // gpt2 (F, C), (F); llama gate and up fused (2F, C), (2F)
    int64_t down, down_bias;          // (C, F), (C)
} LayerOffsets;

typedef struct ParameterTable {
    Parameter *parameter; // `count` of them, ascending by offset, without gaps
    int count;
    int64_t total;           // elements in all
    int64_t in_matrices;     // elements of the matrices that multiply every token (for FLOPs): no embedding look-ups,
                             // but the classifier, tied or not
    int64_t token_table, position_table; // (V, C), (max_positions, C) or -1
    LayerOffsets *layer;     // L of them
    int64_t final_norm, final_norm_bias; // (C)
    int64_t classifier;      // (V, C): token_table where tied
} ParameterTable;

bool parameters_list(ParameterTable *table, const ModelConfig *config, Error *err);
void parameters_free(ParameterTable *table);
// Elements [begin, end) of a new model's flat vector into out[0 .. end-begin), from the seed alone.
void parameters_initialize(const ParameterTable *table, uint64_t seed, int64_t begin, int64_t end, float *out);

#ifdef __cplusplus
}
#endif
#endif
