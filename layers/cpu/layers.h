// The CPU's implementation of the layers in layers/device.h, where each is described; device.c makes a Device of them.
//
// A layer cuts its work into tasks of about TASK_VALUES values: enough to outweigh the start of a task, and few enough
// for the nearest caches. What a task computes does not depend on the number of threads, so neither do the results.
#ifndef LAYERS_CPU_LAYERS_H
#define LAYERS_CPU_LAYERS_H

#include "base/simd.h"
#include "layers/cpu/parallel.h"
#include "layers/cpu/sgemm.h"
#include "layers/device.h"

enum { TASK_VALUES = 32768 };

static inline int64_t tasks_of(int64_t count, int64_t per_task) { return (count + per_task - 1) / per_task; }
static inline int64_t rows_per_task(int64_t C) { return C >= TASK_VALUES ? 1 : TASK_VALUES / C; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- memory to work in (Device.scratch) -------------------------------------------------------------------------
// A norm's weight gradient is a sum over all rows. They are cut into at most NORM_BLOCKS blocks, by their number alone;
// each block has a task, and leaves its sums in a row of scratch memory: (blocks, C), LayerNorm (blocks, 2, C).
enum { NORM_BLOCKS = 64, NORM_LEAST_ROWS = 32 };
static inline int64_t norm_rows_per_block(int64_t rows) { return larger(NORM_LEAST_ROWS, tasks_of(rows, NORM_BLOCKS)); }
static inline size_t norm_scratch_bytes(int64_t rows, int64_t C, int vectors) {
    return (size_t)(tasks_of(rows, norm_rows_per_block(rows)) * vectors * C) * sizeof(float);
}
// A matrix product packs panels, each thread its own.
static inline size_t product_scratch_bytes(int threads) { return (size_t)threads * SGEMM_ROOM * sizeof(float); }
// The most that a layer needs for up to `rows` rows of width C.
static inline size_t cpu_scratch_bytes(int threads, int64_t rows, int64_t C) {
    const int64_t most_blocks_from = NORM_BLOCKS * NORM_LEAST_ROWS;
    size_t norm = norm_scratch_bytes(smaller(rows, most_blocks_from), C, 2), product = product_scratch_bytes(threads);
    return norm > product ? norm : product;
}

// ---- memory.c -------------------------------------------------------------------------------------------------
void *cpu_allocate(Device *, size_t bytes, Error *);
void cpu_release(Device *, void *memory, size_t bytes);
void cpu_zero(Device *, void *memory, size_t bytes);
void cpu_copy(Device *, void *to, const void *from, size_t bytes);
void cpu_copy_strided(Device *, void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t rows,
                      size_t row_bytes);
void cpu_to_storage(Device *, void *out, const float *in, int64_t count);
void cpu_to_float(Device *, float *out, const void *in, int64_t count);
void cpu_to_storage_strided(Device *, void *out, int64_t out_stride, const float *in, int64_t in_stride, int64_t rows,
                            int64_t columns);

// ---- embedding.c ------------------------------------------------------------------------------------------------
void cpu_embedding_forward(Device *, void *out, const int32_t *tokens, const int32_t *positions,
                           const void *token_table, const void *position_table, int64_t rows, int64_t C);
void cpu_embedding_backward(Device *, float *d_token_table, float *d_position_table, const void *d_out,
                            const int32_t *tokens, const int32_t *positions, int64_t rows, int64_t position_rows,
                            int64_t C, int64_t V);

// ---- matmul_gelu.c ----------------------------------------------------------------------------------------------
void cpu_matmul_gelu_forward(Device *, void *out, void *pre, const void *x, const void *weight, const void *bias,
                             int64_t rows, int64_t K, int64_t N);
void cpu_matmul_gelu_backward(Device *, void *d_pre, float *d_weight, float *d_bias, const void *d_out, const void *x,
                              const void *pre, const void *weight, int64_t rows, int64_t K, int64_t N);

// ---- one copy per instruction set -------------------------------------------------------------------------------
// device_simd.c: points a device's vectorised layers to the copies of one instruction set.
void cpu_layers_portable(Device *);
void cpu_layers_avx2(Device *);
void cpu_layers_avx512(Device *);

#ifdef SIMD_ISA
void SIMD_NAME(layernorm_forward)(Device *, void *out, void *residual_out, float *mean, float *rstd, const void *x,
                                  const void *delta, const void *weight, const void *bias, int64_t rows, int64_t C,
                                  float epsilon);
void SIMD_NAME(layernorm_backward)(Device *, void *d_x, float *d_weight, float *d_bias, const void *d_out,
                                   const void *x, const void *weight, const float *mean, const float *rstd,
                                   int64_t rows, int64_t C);
void SIMD_NAME(rmsnorm_forward)(Device *, void *out, void *residual_out, float *rstd, const void *x, const void *delta,
                                const void *weight, int64_t rows, int64_t C, float epsilon);
void SIMD_NAME(rmsnorm_backward)(Device *, void *d_x, float *d_weight, const void *d_out, const void *x,
                                 const void *weight, const float *rstd, int64_t rows, int64_t C);
void SIMD_NAME(matmul_forward)(Device *, void *out, const void *x, const void *weight, const void *bias, int64_t rows,
                               int64_t K, int64_t N);
void SIMD_NAME(matmul_backward)(Device *, void *d_x, float *d_weight, float *d_bias, const void *d_out, const void *x,
                                const void *weight, int64_t rows, int64_t K, int64_t N, bool accumulate);
void SIMD_NAME(rotary)(Device *, void *x, const float *cos_table, const float *sin_table, int64_t rows,
                       int64_t table_rows, int64_t row_stride, int64_t heads, int64_t D, bool inverse);
void SIMD_NAME(add_float)(Device *, float *out, const float *in, int64_t count);
void SIMD_NAME(gelu_forward)(Device *, void *out, const void *x, int64_t count);
void SIMD_NAME(gelu_backward)(Device *, void *d_x, const void *d_out, const void *x, int64_t count);
void SIMD_NAME(swiglu_forward)(Device *, void *out, const void *gate_up, int64_t rows, int64_t F);
void SIMD_NAME(swiglu_backward)(Device *, void *d_gate_up, void *out, const void *d_out, const void *gate_up,
                                int64_t rows, int64_t F);
void SIMD_NAME(classifier)(Device *, void *logits, float *losses, const int32_t *targets, int64_t rows, int64_t V,
                           int64_t Vp, float d_loss);
void SIMD_NAME(adamw)(Device *, float *master, void *weight, float *m, float *v, const float *gradient, int64_t count,
                      const AdamW *hyperparameters);
void SIMD_NAME(sum)(Device *, double *sum, const float *x, int64_t count);
void SIMD_NAME(sum_of_squares)(Device *, double *sum, const float *x, int64_t count);
#endif

#endif
