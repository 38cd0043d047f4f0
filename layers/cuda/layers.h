// CUDA's implementation of the functions in layers/device.h, where each is described; device.cu makes a Device of them.
// Each only enters its kernels into the work stream, unless it says otherwise.
#ifndef LAYERS_CUDA_LAYERS_H
#define LAYERS_CUDA_LAYERS_H

#include "attention/kernel.h"
#include "layers/device.h"

const AttentionKernels *cuda_attention_kernels(Device *); // of this GPU: attention/cuda/kernel_cuda.cu

// ---- memory.cu -----------------------------------------------------------------------------------------------------
void *cuda_allocate(Device *, size_t bytes, Error *);
void cuda_release(Device *, void *memory, size_t bytes);
void cuda_zero(Device *, void *memory, size_t bytes);
void cuda_download(Device *, void *host, const void *device, size_t bytes);
void cuda_copy(Device *, void *to, const void *from, size_t bytes);
void cuda_synchronize(Device *);
int64_t cuda_memory_available(Device *);

// ---- upload.cu -----------------------------------------------------------------------------------------------------
struct UploadRing *upload_ring_new(void);
void upload_ring_free(struct UploadRing *); // may be NULL
void cuda_upload(Device *, void *device, const void *host, size_t bytes);

// ---- streams.cu ----------------------------------------------------------------------------------------------------
Event *cuda_event_create(Device *);
void cuda_event_release(Device *, Event *);
void cuda_event_record(Device *, Stream, Event *);
void cuda_stream_wait(Device *, Stream, Event *);
bool cuda_event_done(Device *, Event *);
void cuda_copy_on(Device *, Stream, void *to, const void *from, size_t bytes);
void cuda_sum_terms(Device *, Stream, float *out, const float *const *terms, int term_count, int64_t count);

// ---- convert.cu ----------------------------------------------------------------------------------------------------
void cuda_copy_strided(Device *, void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t rows,
                       size_t row_bytes);
void cuda_to_storage(Device *, void *out, const float *in, int64_t count);
void cuda_to_float(Device *, float *out, const void *in, int64_t count);
void cuda_to_storage_strided(Device *, void *out, int64_t out_stride, const float *in, int64_t in_stride, int64_t rows,
                             int64_t columns);
void cuda_add_float(Device *, float *out, const float *in, int64_t count);

// ---- embedding.cu --------------------------------------------------------------------------------------------------
void cuda_embedding_forward(Device *, void *out, const int32_t *tokens, const int32_t *positions,
                            const void *token_table, const void *position_table, int64_t rows, int64_t C);
void cuda_embedding_backward(Device *, float *d_token_table, float *d_position_table, const void *d_out,
                             const int32_t *tokens, const int32_t *positions, int64_t rows, int64_t position_rows,
                             int64_t C, int64_t V);

// ---- norm.cu -------------------------------------------------------------------------------------------------------
void cuda_layernorm_forward(Device *, void *out, void *residual_out, float *mean, float *rstd, const void *x,
                            const void *delta, const void *weight, const void *bias, int64_t rows, int64_t C,
                            float epsilon);
void cuda_layernorm_backward(Device *, void *d_x, float *d_weight, float *d_bias, const void *d_out, const void *x,
                             const void *weight, const float *mean, const float *rstd, int64_t rows, int64_t C);
void cuda_rmsnorm_forward(Device *, void *out, void *residual_out, float *rstd, const void *x, const void *delta,
                          const void *weight, int64_t rows, int64_t C, float epsilon);
void cuda_rmsnorm_backward(Device *, void *d_x, float *d_weight, const void *d_out, const void *x, const void *weight,
                           const float *rstd, int64_t rows, int64_t C);

// ---- cublaslt.cu ---------------------------------------------------------------------------------------------------
void cuda_tune(Device *, const char *choices, bool measure);
const char *cuda_tuned(Device *);

// ---- matmul.cu -----------------------------------------------------------------------------------------------------
double cuda_matrix_rate(Device *);
void cuda_matmul_forward(Device *, void *out, const void *x, const void *weight, const void *bias, int64_t rows,
                         int64_t K, int64_t N);
void cuda_matmul_backward(Device *, void *d_x, float *d_weight, float *d_bias, const void *d_out, const void *x,
                          const void *weight, int64_t rows, int64_t K, int64_t N, bool accumulate);
void cuda_matmul_gelu_forward(Device *, void *out, void *pre, const void *x, const void *weight, const void *bias,
                              int64_t rows, int64_t K, int64_t N);
void cuda_matmul_gelu_backward(Device *, void *d_pre, float *d_weight, float *d_bias, const void *d_out, const void *x,
                               const void *pre, const void *weight, int64_t rows, int64_t K, int64_t N);

// ---- bias.cu -------------------------------------------------------------------------------------------------------
// d_bias (N) += column sums of d_out (rows, N), in the same order every time.
void cuda_bias_backward(Device *, float *d_bias, const void *d_out, int64_t rows, int64_t N);

// ---- rotary.cu, activation.cu, classifier.cu, optimizer.cu, reduce.cu ----------------------------------------------
void cuda_rotary(Device *, void *x, const float *cos_table, const float *sin_table, int64_t rows, int64_t table_rows,
                 int64_t row_stride, int64_t heads, int64_t D, bool inverse);
void cuda_gelu_forward(Device *, void *out, const void *x, int64_t count);
void cuda_gelu_backward(Device *, void *d_x, const void *d_out, const void *x, int64_t count);
void cuda_swiglu_forward(Device *, void *out, const void *gate_up, int64_t rows, int64_t F);
void cuda_swiglu_backward(Device *, void *d_gate_up, void *out, const void *d_out, const void *gate_up, int64_t rows,
                          int64_t F);
void cuda_classifier(Device *, void *logits, float *losses, const int32_t *targets, int64_t rows, int64_t V,
                     int64_t Vp, float d_loss);
void cuda_adamw(Device *, float *master, void *weight, float *m, float *v, const float *gradient, int64_t count,
                const AdamW *hyperparameters);
void cuda_sum(Device *, double *sum, const float *x, int64_t count);
void cuda_sum_of_squares(Device *, double *sum, const float *x, int64_t count);

#endif
