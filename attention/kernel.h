// The local attention kernel: one (query chunk, key/value chunk) pair at a time, with the softmax state carried between
// pairs. Distributed attention is a walk over such pairs (attention/attention.h); the kernel knows nothing of ranks.
//
// Causal by GLOBAL position: a query at position i sees the key at position j if j <= i, and j is not before the first
// key that its Visibility lets it see. A pair of which nothing is seen does nothing, and no kernel computes blocks of
// scores that nobody sees. The walk may visit pairs in any order; the same order gives the same bits.
//
// Online softmax (Milakov and Gimelshein 2018; Dao et al., FlashAttention, 2022): for each query row the state is
//   max = max_j s_ij,  sum = sum_j exp(s_ij - max),  accumulator = sum_j exp(s_ij - max) v_j,   s_ij = scale q_i.k_j
// all fp32. Nothing of size T x T is ever stored. Scores may differ by 1e3 and more: no exp of a positive number
// occurs. CUDA's kernels keep the state in base 2 (attention/cuda/kernel_cuda.cu), so a state belongs to the kernels
// that made it; log_sum_exp is the natural one everywhere.
#ifndef ATTENTION_KERNEL_H
#define ATTENTION_KERNEL_H

#include <stdint.h>

#include "layers/device.h"
#include "sequence/visibility.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ATTENTION_MAX_HEAD_DIM = 256 };

typedef struct AttentionShape {
    int64_t batch;    // B
    int64_t heads;    // H
    int64_t kv_heads; // KV, divides H: query head h reads key/value head h / (H / KV)
    int64_t head_dim; // D, 1 to 256; kernels are tuned for multiples of 8 up to 128
    float scale;      // of the scores, 1/sqrt(D) as a rule
} AttentionShape;

// Where the tokens of a chunk lie. Element (b, t, h, d) stands at data[b*batch_stride + t*token_stride + h*D + d],
// counted in elements of storage (TokenView) or of fp32 (FloatView). So a fused (B, T, 3C) buffer serves q, k and v.
typedef struct TokenView {
    void *data;
    int64_t batch_stride, token_stride;
} TokenView;
typedef struct FloatView {
    float *data;
    int64_t batch_stride, token_stride;
} FloatView;
// One fp32 per (b, h, t): data[b*batch_stride + h*head_stride + t].
typedef struct RowView {
    float *data;
    int64_t batch_stride, head_stride;
} RowView;

// The positions `query` and `key` modulo `step`: every step-th token, counted by itself (attention/dilated.h).
typedef struct Residues {
    int64_t step, query, key;
} Residues;

// A query chunk in the forward walk.
typedef struct QueryForward {
    Chunk chunk;
    TokenView q;           // (B, Tq, H, D)
    FloatView accumulator; // (B, Tq, H, D)
    RowView max, sum;      // (B, H, Tq)
    Visibility visibility; // by global position
} QueryForward;

// A query chunk in the backward walk. log_sum_exp and delta are those of the WHOLE row, over all keys of the sequence.
typedef struct QueryBackward {
    Chunk chunk;
    TokenView q, d_out;
    RowView log_sum_exp; // natural logarithm
    RowView delta;       // sum_d d_out * out
    FloatView d_q;       // +=
    Visibility visibility;
} QueryBackward;

// A key/value chunk; d_k, d_v are used by the backward walk only.
typedef struct KeyValue {
    Chunk chunk;
    TokenView k, v;     // (B, Tk, KV, D)
    FloatView d_k, d_v; // +=
} KeyValue;

typedef struct AttentionKernels {
    // accumulator = 0, max = -inf, sum = 0.
    void (*begin)(Device *, const AttentionShape *, const QueryForward *);
    // Adds the keys of one chunk to the state of one query chunk. The views of k and v may be of any stride.
    void (*forward_pair)(Device *, const AttentionShape *, const QueryForward *, const KeyValue *);
    // out = accumulator / sum in storage type, log_sum_exp = max + log(sum); out may be the accumulator itself on the
    // CPU, log_sum_exp may be max. A row that saw no key gives out 0 and log_sum_exp -inf.
    void (*finish)(Device *, const AttentionShape *, const QueryForward *, TokenView out, RowView log_sum_exp);
    // begin, forward_pair and finish at once, for a query chunk that meets no other keys. `max` and `sum` of `query`
    // are room to work in: they need not be set, and what they hold afterwards means nothing. `accumulator` is not
    // used. out may not alias q, k or v.
    void (*forward_whole)(Device *, const AttentionShape *, const QueryForward *query, const KeyValue *, TokenView out,
                          RowView log_sum_exp);

    // delta (B, H, Tq) = sum over d of d_out * out, fp32.
    void (*row_delta)(Device *, const AttentionShape *, Chunk chunk, TokenView out, TokenView d_out, RowView delta);
    // Adds this pair's part of d_q, d_k, d_v (all fp32, +=). Deterministic.
    void (*backward_pair)(Device *, const AttentionShape *, const QueryBackward *, const KeyValue *);
    // The same for a query chunk that meets no other keys, and keys that meet no other queries: d_q (B, Tq, H, D), d_k
    // and d_v (B, Tk, KV, D) are overwritten in storage type, zeros where nothing is seen. The fp32 gradients of
    // `query` and `kv` are not used. d_q, d_k, d_v may not alias q, k, v or d_out.
    void (*backward_whole)(Device *, const AttentionShape *, const QueryBackward *, const KeyValue *, TokenView d_q,
                           TokenView d_k, TokenView d_v);

    // What documents let every step-th query see of every step-th key: for query m, at position query + step m, and the
    // keys numbered from `key_start` on, out[b * out_stride + m] = the number of the first one at or behind
    // visibility->first, for m in `queries`.
    void (*first_of_residues)(Device *, int64_t batch, const Visibility *, Residues, Chunk queries, int64_t key_start,
                              int32_t *out, int64_t out_stride);

    // Ordinary multi-head attention, which stores every T x T matrix of probabilities, on one rank: the baseline.
    // probabilities: room for (B, H, T, T) in storage type; rows: vanilla_row_bytes. Backward works the probabilities
    // out again and overwrites d_q, d_k, d_v (storage type). delta (B, H, T): as row_delta gives it. NULL: not served.
    size_t (*vanilla_row_bytes)(const AttentionShape *, int64_t T);
    void (*vanilla_forward)(Device *, const AttentionShape *, int64_t T, const Visibility *, void *probabilities,
                            TokenView out, float *log_sum_exp, TokenView q, TokenView k, TokenView v);
    void (*vanilla_backward)(Device *, const AttentionShape *, int64_t T, const Visibility *, void *probabilities,
                             void *rows, TokenView d_q, TokenView d_k, TokenView d_v, TokenView q, TokenView k,
                             TokenView v, TokenView out, const float *log_sum_exp, TokenView d_out, float *delta);
    // NULL, or why these kernels cannot serve this shape, in words that go into an error line.
    const char *(*unsupported)(const AttentionShape *);
    // Bytes of scratch memory (Device.scratch) that calls of this shape need at most, on a device of so many threads;
    // backward with up to `queries` queries in a call, 0: there is no backward. NULL: none.
    size_t (*scratch_bytes)(const AttentionShape *, int64_t queries, int threads);
} AttentionKernels;

// Blocked, vectorised (attention/cpu/): what cpu_device() installs.
extern const AttentionKernels attention_kernels_cpu;
// The simplest right one: three loops and double precision inside. The oracle, and the first thing to read.
extern const AttentionKernels attention_kernels_reference;

#ifdef __cplusplus
}
#endif
#endif
