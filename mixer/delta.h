// The kernels of the gated delta rule (mixer/delta.c), forward and backward, chunked with the WY form (Yang, Wang,
// Zhang, Shen, Kim 2024, arXiv 2406.06484; with decay: Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464).
//
// A head's state is a matrix M (D of keys, D of values), which token t changes by
//
//   M_t = e^a_t (I - beta_t k_t k_t^T) M_t-1 + beta_t k_t v_t^T,   o_t = M_t^T q_t
//
// Tokens are worked on in blocks of 64. With g_i the sum of a from the block's first token to i, D_ij = e^(g_i - g_j)
// for j <= i, c_i = e^g_i and e_j = D_last,j, and M the state that enters the block, what its tokens write into it is
//
//   (I + A) U = diag(beta) (V - diag(c) K M),   A_ij = beta_i D_ij k_i . k_j  for j < i     (U: "updates")
//   O = diag(c) Q M + P U,                      P_ij = D_ij q_i . k_j  for j <= i
//   M' = c_last M + (diag(e) K)^T U
//
// so a block is a few products of 64 x 64 matrices and a triangular system. Where a document ends between j and i, D_ij
// is 0, and so is c_i where one ends between the block's start and i: nothing of before is seen, and no case is needed.
// Backward, with dM' and dO given:
//
//   (I + A)^T R = P^T dO + diag(e) K dM'                                                   (R: "residuals")
//   dM = c_last dM' + (diag(c) Q)^T dO - (diag(beta c) K)^T R,   dV = diag(beta) R
//   dQ = diag(c) dO M^T + S K,       S = D * (dO U^T)                                      (*: element by element)
//   dK = diag(beta) H + S^T Q + (diag(beta) G)^T K + diag(e) U dM'^T
//        H = G K - diag(c) R M^T,    G = -D * (R U^T) below the diagonal
//   dbeta_i = R_i . v_i + k_i . H_i
// and the gradient of g_i is q_i . dQ_i + beta_i k_i . H_i less k_i . (the other terms of dK)_i.
//
// All of this is in blocks of 64 tokens, and a rank's chunks are whole blocks each, the last one filled up with tokens
// of zeros, which change nothing. (B, H, N, 64, W) below: N blocks to a sequence, the early chunk's first; W = D
// rounded up to a multiple of 16, the rest zeros. All storage but what is typed float.
#ifndef MIXER_DELTA_H
#define MIXER_DELTA_H

#include "layers/device.h"
#include "sequence/sharding.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DELTA_BLOCK = 64, DELTA_TAPS = 4, DELTA_EDGE = DELTA_TAPS - 1, DELTA_PIECES = 128 };

typedef struct DeltaShape {
    int64_t batch, heads, kv_heads, head_dim; // B, H, KV, D
    int chunks;                               // of consecutive tokens that each sequence has here
    Chunk chunk[2];
    const int32_t *first; // (B, context) the first token that each one sees; NULL: the first of all
    int64_t context;      // T
} DeltaShape;

static inline int64_t delta_width(int64_t head_dim) { return (head_dim + 15) / 16 * 16; } // W
static inline int64_t delta_chunk_blocks(const DeltaShape *s, int i) {
    return i < s->chunks ? (s->chunk[i].length + DELTA_BLOCK - 1) / DELTA_BLOCK : 0;
}
static inline int64_t delta_blocks(const DeltaShape *s) { return delta_chunk_blocks(s, 0) + delta_chunk_blocks(s, 1); }
static inline int64_t delta_tokens(const DeltaShape *s) {
    return s->chunk[0].length + (s->chunks > 1 ? s->chunk[1].length : 0);
}

// What the projections gave. n = B Tl rows, sequence after sequence.
typedef struct DeltaInput {
    const void *raw;                    // (n, 2 H D + 2 KV D): queries, keys, values, the output's gate
    const void *rates;                  // (n, 2 H): of beta, and of the decay
    const void *decay_log, *decay_bias; // (H) A_log and dt_bias
    // (4, H D + 2 KV D) of the convolution, the token's own first; NULL: there is none.
    const void *taps;
    // (chunks, B, 3, H D + 2 KV D) the raw rows before each chunk; where no document reaches there it is not read.
    const void *edge;
} DeltaInput;

// What blocks are made of.
typedef struct DeltaTokens {
    void *q, *k, *v;         // (B, H or KV, N, 64, W): q and k of length 1, q divided by sqrt(D)
    float *beta, *log_decay; // (B, H, N, 64)
    int32_t *begin;          // (B, N, 64) the row of the block where a token's document begins; -1: before the block
} DeltaTokens;

typedef struct DeltaGradients {
    void *d_q, *d_k, *d_v;       // (B, H, N, 64, W): of k and v, what each head of the queries adds
    float *d_beta, *d_log_decay; // (B, H, N, 64)
} DeltaGradients;

typedef struct DeltaKernels {
    // ---- token by token: what stands before the rule and behind it --------------------------------------------------
    void (*prepare)(Device *, const DeltaShape *, const DeltaInput *, const DeltaTokens *);
    // The gradients by what went into prepare: d_raw's first H D + 2 KV D columns (of 2 H D + 2 KV D), d_rates (n, 2
    // H); d_decay_log, d_decay_bias (H) +=. With a convolution d_raw's columns are those of what it gave:
    // `convolve_backward` goes on from there.
    void (*prepare_backward)(Device *, const DeltaShape *, const DeltaInput *, const DeltaTokens *,
                             const DeltaGradients *, void *d_raw, void *d_rates, float *d_decay_log,
                             float *d_decay_bias);
    // The convolution's: d_raw (n, 2 H D + 2 KV D) from d_convolved (the same), first H D + 2 KV D columns; d_taps +=.
    // edge (chunks, B, 3, H D + 2 KV D): of d_convolved, the rows behind each chunk.
    void (*convolve_backward)(Device *, const DeltaShape *, const DeltaInput *, void *d_raw, float *d_taps,
                              const void *d_convolved, const void *edge);
    // y (n, H D) = RMSNorm of each head of out (B, H, N, 64, W), times scale (D), times silu(gate), raw's last H D
    // columns.
    void (*finish)(Device *, const DeltaShape *, void *y, const void *out, const void *raw, const void *scale,
                   float epsilon);
    // d_out, d_raw's last H D columns; d_scale (D) +=.
    void (*finish_backward)(Device *, const DeltaShape *, void *d_out, void *d_raw, float *d_scale, const void *d_y,
                            const void *out, const void *raw, const void *scale, float epsilon);

    // ---- the rule, forward ------------------------------------------------------------------------------------------
    // What chunk i makes of the state that enters it, M' = transition M + state, as (B, H, 2, W, W) [state, transition]
    // at summary[i]. Nobody asks for the sequence's last chunk, nor for the transition of its first: a device may leave
    // these out.
    void (*summarize)(Device *, const DeltaShape *, const DeltaTokens *, float *const summary[2]);
    // states (B, H, N, W, W): what enters each block; updates (B, H, N, 64, W); out, NULL: not wanted. initial (chunks,
    // B, H, W, W): what enters each chunk, NULL: zeros. final (B, H, W, W): what leaves the last chunk, may be
    // `initial` of one; NULL: not wanted.
    void (*forward)(Device *, const DeltaShape *, const DeltaTokens *, const float *initial, float *final, void *states,
                    void *updates, void *out);

    // ---- and backward -----------------------------------------------------------------------------------------------
    // d_initial[i]: the gradient of what enters chunk i if that of what leaves it is zero; b, h stand d_initial_stride
    // floats apart. Nobody asks for that of the sequence's first chunk. d_states (B, H, N, W, W), residuals (B, H, N,
    // 64, W): to work in.
    void (*retreat)(Device *, const DeltaShape *, const DeltaTokens *, const void *d_out, float *const d_initial[2],
                    int64_t d_initial_stride, void *d_states, void *residuals);
    // All gradients, from d_out and d_final (chunks, B, H, W, W): of what leaves each chunk, NULL: zeros. To work in,
    // as above.
    void (*backward)(Device *, const DeltaShape *, const DeltaTokens *, const void *states, const void *updates,
                     const void *d_out, const float *d_final, void *d_states, void *residuals, const DeltaGradients *);

    // ---- over ranks -------------------------------------------------------------------------------------------------
    // to (B, H, W, W) = what the chunks in summary (.., B, H, 2, W, W) at place[0], place[1], ... make, one after the
    // other, of a state of zeros; transposed: by the transposes of their transitions, which is the way back.
    void (*combine)(Device *, const DeltaShape *, float *to, const float *summary, const int *place, int count,
                    bool transposed);
} DeltaKernels;

// Bytes of Device.scratch that any of these needs.
size_t delta_scratch_bytes_cpu(const DeltaShape *, int threads);
static inline size_t delta_scratch_bytes_cuda(const DeltaShape *s) {
    // The systems of blocks; or partial sums: of scales for each block, of taps for 128 pieces of all rows.
    size_t blocks = (size_t)(s->batch * delta_blocks(s)), H = (size_t)s->heads, W = (size_t)delta_width(s->head_dim);
    size_t systems = blocks * H * DELTA_BLOCK * (2 * W * 2 + 3 * sizeof(float));
    size_t taps = (size_t)DELTA_TAPS * DELTA_PIECES * (H + 2 * (size_t)s->kv_heads) * W * sizeof(float);
    return systems > taps ? systems : taps;
}

#ifdef __cplusplus
}
#endif
#endif
