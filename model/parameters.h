// Every parameter of the model: its Hugging Face name and shape, and its place in one flat vector.
//
// All parameters, all gradients and both AdamW moments are flat vectors of `total` elements in this order, so that
// summing gradients, clipping, the optimizer and its sharding are operations on ranges and know nothing of layers.
// Weights of matrices stand as (out, in); GPT-2's files hold (in, out), so theirs are transposed on the way in and out.
// What one product uses together (q, k, v; gate, up) stands side by side and is used as one fused matrix.
//
// After the classifier's matrix (V, C) there may be a gap, for the rows that a GPU pads it with: (Vp, C) in memory
// (device_padded_vocab_size). The gap is no parameter's, so whoever goes from parameter to parameter (files)
// never meets it. It holds zeros in every vector, and stays so: the logits of such rows are left out of the softmax, their
// gradient is 0, and so is that of the rows, which the optimizer then leaves at 0.
#ifndef MODEL_PARAMETERS_H
#define MODEL_PARAMETERS_H

#include <stddef.h>

#include "model/config.h"

typedef struct Parameter {
    char name[80];      // as in model.safetensors
    int dimensions;     // 1 or 2
    int64_t shape[2];   // as in the file
    bool transposed;    // memory holds the transpose of the file's matrix
    bool decay;         // weight decay: matrices, embeddings included; not biases and norms
    int64_t offset, size; // elements, in the flat vector
    float init_mean, init_std; // of new models: normal(mean, std); std 0: the constant
    // In memory, 0 above the diagonal of new models; below it, the std of row i is init_std / sqrt(i + 1), so that the
    // sum of its i + 1 terms has that of one.
    bool lower_triangle;
} Parameter;

// A norm's scale and bias (C); -1: it has none.
typedef struct NormTensors {
    int64_t scale, bias;
} NormTensors;

// Offsets of one layer's tensors in the flat vector; those of its mixers in an order of theirs, -1 where there is none.
enum { MIXER_TENSORS = 8 };
typedef struct LayerOffsets {
    NormTensors norm1, norm2; // before the token mixer and before the channel mixer
    int64_t tokens[MIXER_TENSORS], channels[MIXER_TENSORS];
} LayerOffsets;

typedef struct ParameterTable {
    Parameter *parameter; // `count` of them, ascending by offset, without gaps but for the classifier's
    int count;
    int64_t total;           // elements in all, the gap included
    int64_t in_model;        // elements of parameters
    int64_t in_matrices;     // elements of the matrices that multiply every token (for FLOPs): no embedding look-ups
                             // and no triangles, but the classifier, tied or not
    int64_t token_table, position_table; // (V, C), (max_positions, C) or -1
    LayerOffsets *layer;     // L of them
    NormTensors final_norm;
    int64_t classifier;         // (Vp, C), of which V rows are parameters: token_table where tied
    int64_t padded_vocab_size;  // Vp
    int64_t gap_begin, gap_end; // the (Vp - V) C elements after it
} ParameterTable;

// The list while it is made, for mixers to add theirs.
typedef enum ParameterKind {
    NORM,
    BIAS,
    MATRIX,
    RESIDUAL_MATRIX, // writes into the residual stream
    LOWER_TRIANGLE   // of positions by positions: multiplies sequences, not tokens, and is 0 above the diagonal
} ParameterKind;
typedef struct ParameterList {
    ParameterTable *table;
    const ModelConfig *config;
    int capacity;
    bool overflow; // a size or the total does not fit 64 bits, or there are too many
} ParameterList;
// Adds a parameter of a layer, (rows, columns) in memory (columns 0: a vector), and returns its offset. `name`: within
// the layer.
int64_t parameter_add(ParameterList *list, int64_t layer, ParameterKind kind, int64_t rows, int64_t columns,
                      const char *name);

// padded_vocab_size: of the device that the vector is for; V: without a gap.
bool parameters_list(ParameterTable *table, const ModelConfig *config, int64_t padded_vocab_size, Error *err);
void parameters_free(ParameterTable *table);
// Elements [begin, end) of a new model's flat vector into out[0 .. end-begin), from the seed alone.
void parameters_initialize(const ParameterTable *table, uint64_t seed, int64_t begin, int64_t end, float *out);
// The number of the last of the parameters from `first` on, side by side in the flat vector, that decay as it does.
int parameters_decaying_alike(const ParameterTable *table, int first);
// Zeros for what lies in the gap of elements [begin, end), which are out[0 .. end-begin).
void parameters_zero_gap(const ParameterTable *table, int64_t begin, int64_t end, float *out);

#endif
