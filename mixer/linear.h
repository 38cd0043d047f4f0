// What a device computes for linear attention (mixer/linear.c): sums over all earlier keys that decay by a factor g of
// their head from token to token, as one small matrix, the state, that goes from block to block of tokens.
//
// With Q = phi(q), K = phi(k), phi(u) = elu(u) + 1 > 0, for one head:
//
//   state after token t   S_t = sum_{j <= t} g^(t-j) K_j V_j^T (D, D)     z_t = sum_{j <= t} g^(t-j) K_j (D)
//   forward               y_i = S_i^T Q_i / (Q_i . z_i)
//
// A block of LINEAR_BLOCK tokens adds its own pairs (i, j), a masked matrix of products with their powers of g, to what
// the state before it gives; so a token costs O(D (D + LINEAR_BLOCK)), whatever T is. Backward, with G_i = d_y_i /
// den_i and delta_i = -(d_y_i . y_i) / den_i, where den_i = Q_i . z_i, a second state comes from behind:
//
//   state from token t on   R_t = sum_{i >= t} g^(i-t) Q_i G_i^T            r_t = sum_{i >= t} g^(i-t) delta_i Q_i
//   dQ_i = S_i G_i + delta_i z_i      dK_j = R_j V_j + r_j      dV_j = R_j^T K_j
//
// All sums stop at the ends of documents. Powers of g are 2^(n log2 g) with n >= 0: at most 1, and never divided by.
//
// A state is D + 1 rows of D values, fp32: S and z, or R^T and r; `states` are those of all sequences and heads, (B, H,
// D
// + 1, D). Gradients of keys and values are sums over the query heads that share them.
#ifndef MIXER_LINEAR_H
#define MIXER_LINEAR_H

#include "attention/kernel.h"
#include "layers/cuda/scratch.h"

#ifdef __cplusplus
extern "C" {
#endif

// Which of its tensors stands where in LayerOffsets.tokens: (H D, C), (KV D, C), (KV D, C), (C, H D).
enum { LINEAR_Q, LINEAR_K, LINEAR_V, LINEAR_OUT };

enum { LINEAR_BLOCK = 64 };

typedef struct LinearShape {
    int64_t sequences, heads, kv_heads, head_dim;
    const float *log2_decay; // (H) log2 g, at most 0; in the device's memory
    const int32_t *first;    // (B, T) the first token that each one sees, by position; NULL: the first of all
    int64_t context;         // T
} LinearShape;

// The tokens of one chunk; the views begin with its first one. In storage type, but for `inverse`.
typedef struct LinearTokens {
    Chunk chunk;
    TokenView q, k, v;       // (B, length, H D), (B, length, KV D) twice
    bool fresh_keys;         // own_before has not been here: k is without phi
    TokenView y;             // (B, length, H D)
    RowView inverse;         // (B, H, length) 1 / den; 0 where den is below the least normal number
    float *starts;           // (windows, B, H, D + 1, D) S and z before every linear_window tokens; NULL: not wanted
    TokenView d_y;           // backward
    TokenView d_q, d_k, d_v; // of q and k before phi
} LinearTokens;

// The states of other chunks that a chunk goes on from: the sum of those that count, each times g^distance. One counts
// where the token at position `seer` sees that at `seen`.
typedef struct LinearPast {
    int32_t place; // of the chunk's states among all
    int32_t distance, seer, seen;
} LinearPast;
enum { LINEAR_PASTS = 64 }; // given at once

typedef struct LinearKernels {
    // k becomes phi(k). The states that the chunk's own keys and values make, from nothing, after its last token.
    void (*own_before)(Device *, const LinearShape *, const LinearTokens *, float *states);
    // The states from behind that its own queries make, from its first token on; q, y, inverse, d_y -> states.
    void (*own_behind)(Device *, const LinearShape *, const LinearTokens *, float *states);
    // states = those of `count` other chunks combined, or (`add`) += them. all (places, B, H, D + 1, D).
    void (*combine)(Device *, const LinearShape *, const LinearPast *, int count, const float *all, float *states,
                    bool add);
    // q becomes phi(q), and k phi(k) where it is fresh. y, inverse and starts, going on from the states `before` the
    // chunk's first token; NULL: nothing is before it. after: the states after its last token; may be `before`; NULL:
    // not wanted.
    void (*forward)(Device *, const LinearShape *, const LinearTokens *, const float *before, float *after);
    // d_q, d_k and d_v, from what forward was given and has left, and the states `behind` the chunk's last token, as of
    // the next; NULL: nothing is behind it.
    void (*backward)(Device *, const LinearShape *, const LinearTokens *, const float *behind);
} LinearKernels;

extern const LinearKernels linear_kernels_cpu;

// Forward leaves the states before every so many tokens of a chunk (whole blocks), from where backward works out those
// of the blocks between. By the size of an element of storage, which tells devices apart.
static inline int64_t linear_window(size_t element_bytes) { return element_bytes == 4 ? 512 : 4096; }
static inline int64_t linear_windows(size_t element_bytes, int64_t tokens) {
    int64_t window = linear_window(element_bytes);
    return (tokens + window - 1) / window;
}
// Values of one state.
static inline int64_t linear_state(int64_t head_dim) { return (head_dim + 1) * head_dim; }

// What the kernels need of Device.scratch, for chunks of at most so many tokens.
size_t linear_scratch_bytes_cpu(const LinearShape *shape, int threads);
static inline size_t linear_scratch_bytes_cuda(const LinearShape *shape, int64_t tokens) {
    int64_t window = linear_window(2), most = tokens < window ? tokens : window;
    int64_t blocks = (most + LINEAR_BLOCK - 1) / LINEAR_BLOCK, heads = shape->sequences * shape->heads;
    int64_t values = 2 * (blocks + 1) * linear_state(shape->head_dim) + blocks * LINEAR_BLOCK;
    return CUDA_WORKSPACE_BYTES + (size_t)(heads * values) * sizeof(float);
}

#ifdef __cplusplus
}
#endif
#endif
