// A device: the memory and the layers that the model is written against, as a table of functions chosen once at start.
//
// "Storage" is the element type of activations and weights: fp32 on the CPU, bf16 on CUDA. Storage tensors are `void *`
// and opaque to the host: offset them with `at`. Everything typed `float *` is fp32 on every device: parameter gradients,
// statistics, optimizer state. All tensors are dense and row-major; `rows` counts tokens (batch x local tokens).
//
// Order: the calls of one Device run in the order made. On a GPU they only enter its work stream, and the host goes on;
// those that return when the work is done say "complete on return". They return nothing; a failure inside (never
// caused by input) ends the program. Gradients of weights and biases are always ADDED to what is there; all other
// outputs are overwritten unless the comment says "+=". No argument may alias another unless said.
// Each rank has its own Device, used by that rank's thread alone but for what "between ranks" says. Pointers are to the
// device's memory, but for those called `host`.
#ifndef LAYERS_DEVICE_H
#define LAYERS_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct AttentionKernels; // attention/kernel.h
struct MixerKernels;     // mixer/kernels.h
struct CommCollectives;  // comm/collectives.h

// The two streams in which a device works: its layers, and beside them what goes to and comes from other ranks. Each
// does its calls in the order made.
typedef enum Stream { STREAM_WORK, STREAM_EXCHANGE } Stream;
typedef struct Event Event;       // a point in a stream, for other streams to wait for
enum { DEVICE_MOST_TERMS = 256 }; // of one sum: their addresses go to a kernel by value

typedef struct AdamW { // Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2
    float learning_rate, beta1, beta2, epsilon, weight_decay;
    int64_t step;        // 1 for the first update: bias correction divides by 1 - beta^step
    float gradient_scale; // gradients are multiplied by this first (clipping)
} AdamW;

typedef struct Device Device;
struct Device {
    const char *name;     // "cpu", "cuda", "emulated"
    char description[96]; // what it is: "NVIDIA H200, 139 GiB", "8 threads"
    size_t element_bytes; // of storage: 4 on the CPU, 2 on CUDA
    bool host_memory;     // its memory is the host's, and every call is complete on return
    int threads;          // how many processors the CPU's layers may use
    void *scratch;        // device memory to work in during a call, lent by whoever opened the device (device_scratch)
    size_t scratch_bytes;
    void *context;        // the implementation's own
    const struct AttentionKernels *attention;
    const struct MixerKernels *mixers; // what other token mixers compute
    const struct CommCollectives *collectives; // NCCL; NULL: none

    void (*close)(Device *);                 // waits for all work, frees what the device itself holds
    void (*synchronize)(Device *);           // complete on return: all calls so far, in both streams
    int64_t (*memory_available)(Device *);   // bytes that `allocate` could give now
    double (*matrix_rate)(Device *);         // FLOP/s that its products reach at best, measured now (0.2 s); 0: no memory

    // ---- which algorithms multiply matrices; NULL where there is nothing to choose ----------------------------------
    // From here on products are computed as `choices` says, lines "PRODUCT -> ALGORITHM" that `tuned` has given on a
    // like device, and where it says nothing as by default. measure: what it says nothing about is timed when it is
    // first called; several runs are then added up where one is to be, so the results of such a call are good for
    // nothing. Algorithms round differently, so the choice shows in the bits; each gives the same ones in every run.
    void (*tune)(Device *, const char *choices, bool measure);
    const char *(*tuned)(Device *); // all choices, those timed since in the end; valid until the next product

    // ---- memory -------------------------------------------------------------------------------------------------
    void *(*allocate)(Device *, size_t bytes, Error *); // zeroed, 256-byte aligned; NULL and *err if there is not enough
    void (*release)(Device *, void *memory, size_t bytes);
    void (*zero)(Device *, void *memory, size_t bytes);
    void (*upload)(Device *, void *device, const void *host, size_t bytes); // host may change after the return
    void (*download)(Device *, void *host, const void *device, size_t bytes); // complete on return
    void (*copy)(Device *, void *to, const void *from, size_t bytes);         // device to device
    // Row i of `rows` rows, row_bytes each, goes from `from` + i * from_stride to `to` + i * to_stride. Strides in bytes, any
    // alignment; the rows of `to` do not overlap.
    void (*copy_strided)(Device *, void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t rows,
                         size_t row_bytes);
    void (*to_storage)(Device *, void *out, const float *in, int64_t count);  // fp32 -> storage; out == in allowed on the CPU
    void (*to_float)(Device *, float *out, const void *in, int64_t count);    // storage -> fp32
    // fp32 -> storage, row by row: out[i * out_stride + j] = in[i * in_stride + j] for i < rows, j < columns.
    void (*to_storage_strided)(Device *, void *out, int64_t out_stride, const float *in, int64_t in_stride, int64_t rows,
                               int64_t columns);
    void (*add_float)(Device *, float *out, const float *in, int64_t count);  // out += in, both fp32

    // ---- embedding ----------------------------------------------------------------------------------------------
    // out (rows, C) = token_table[tokens] (+ position_table[positions] where position_table is not NULL).
    // tokens, positions (rows): int32, in range (checked by the loader). token_table (V, C), position_table (max T, C).
    void (*embedding_forward)(Device *, void *out, const int32_t *tokens, const int32_t *positions,
                              const void *token_table, const void *position_table, int64_t rows, int64_t C);
    // Deterministic: every row of a table is summed in the order of rows, or of pieces of them whose lengths depend on the
    // sizes alone. d_position_table may be NULL. Else the first position_rows positions differ from each other, and those
    // of row n are those of row n % position_rows.
    void (*embedding_backward)(Device *, float *d_token_table, float *d_position_table, const void *d_out,
                               const int32_t *tokens, const int32_t *positions, int64_t rows, int64_t position_rows,
                               int64_t C, int64_t V);

    // ---- normalisation, fused with the residual addition before it ------------------------------------------------
    // residual_out = x + delta (delta NULL: residual_out is not written and x is normalised); out = norm(that) with
    // statistics in fp32. residual_out may alias x. LayerNorm (Ba et al. 2016): mean, rstd (rows), weight, bias (C).
    void (*layernorm_forward)(Device *, void *out, void *residual_out, float *mean, float *rstd, const void *x,
                              const void *delta, const void *weight, const void *bias, int64_t rows, int64_t C, float epsilon);
    // d_x += the gradient through the norm, of the residual x that was normalised (residual_out, or x without delta).
    void (*layernorm_backward)(Device *, void *d_x, float *d_weight, float *d_bias, const void *d_out, const void *x,
                               const void *weight, const float *mean, const float *rstd, int64_t rows, int64_t C);
    // RMSNorm (Zhang and Sennrich 2019): out = x * rstd * weight, rstd = 1/sqrt(mean(x^2) + epsilon).
    void (*rmsnorm_forward)(Device *, void *out, void *residual_out, float *rstd, const void *x, const void *delta,
                            const void *weight, int64_t rows, int64_t C, float epsilon);
    void (*rmsnorm_backward)(Device *, void *d_x, float *d_weight, const void *d_out, const void *x, const void *weight,
                             const float *rstd, int64_t rows, int64_t C);

    // ---- matrix products ------------------------------------------------------------------------------------------
    // out (rows, N) = x (rows, K) weight (N, K)^T + bias (N). bias may be NULL.
    void (*matmul_forward)(Device *, void *out, const void *x, const void *weight, const void *bias, int64_t rows,
                           int64_t K, int64_t N);
    // d_x (rows, K) = d_out weight, or += if accumulate; skipped where d_x is NULL.
    // d_weight (N, K) += d_out^T x and d_bias (N) += column sums of d_out; each skipped where NULL.
    void (*matmul_backward)(Device *, void *d_x, float *d_weight, float *d_bias, const void *d_out, const void *x,
                            const void *weight, int64_t rows, int64_t K, int64_t N, bool accumulate);

    // ---- rotary positions (Su et al. 2021), Hugging Face's half-split pairing -----------------------------------------
    // In place on heads*D values at the start of each row of x (rows, row_stride): element i of a head pairs with
    // i + D/2; angle of pair i at row n is the one whose cosine and sine stand at cos_table[n * D/2 + i] (fp32, computed
    // in double precision by the host for this rank's global positions; `table_rows` rows, row n uses n % table_rows).
    // inverse: rotate back, which is the backward pass.
    void (*rotary)(Device *, void *x, const float *cos_table, const float *sin_table, int64_t rows, int64_t table_rows,
                   int64_t row_stride, int64_t heads, int64_t D, bool inverse);

    // ---- matrix products with GELU in them (GPT-2's MLP); where the library can, in one pass ------------------------
    // pre (rows, N) = x (rows, K) weight (N, K)^T + bias (N); out = gelu(pre).
    void (*matmul_gelu_forward)(Device *, void *out, void *pre, const void *x, const void *weight, const void *bias,
                                int64_t rows, int64_t K, int64_t N);
    // Backward of y = gelu(pre) weight^T + bias, where x = gelu(pre): d_pre (rows, K) = (d_out weight) * gelu'(pre);
    // d_weight (N, K) += d_out^T x, d_bias (N) += column sums of d_out.
    void (*matmul_gelu_backward)(Device *, void *d_pre, float *d_weight, float *d_bias, const void *d_out,
                                 const void *x, const void *pre, const void *weight, int64_t rows, int64_t K, int64_t N);

    // ---- activations ------------------------------------------------------------------------------------------------
    // GELU, tanh form (Hendrycks and Gimpel 2016; "gelu_new"). d_x may alias d_out.
    void (*gelu_forward)(Device *, void *out, const void *x, int64_t count);
    void (*gelu_backward)(Device *, void *d_x, const void *d_out, const void *x, int64_t count);
    // SwiGLU (Shazeer 2020): gate_up (rows, 2F) = [gate | up]; out (rows, F) = silu(gate) * up.
    // Backward leaves `out` again, in the same bits, for the weights that it was multiplied with. d_gate_up may be
    // gate_up itself, and out d_out.
    void (*swiglu_forward)(Device *, void *out, const void *gate_up, int64_t rows, int64_t F);
    void (*swiglu_backward)(Device *, void *d_gate_up, void *out, const void *d_out, const void *gate_up, int64_t rows,
                            int64_t F);

    // ---- classifier -------------------------------------------------------------------------------------------------
    // Softmax cross-entropy of logits (rows, Vp) against targets (rows): losses (rows) in nats, fp32; and in the same
    // call logits are overwritten by their gradient, (softmax - one_hot) * d_loss. d_loss == 0 leaves the logits alone.
    // Of a row, the first V are the vocabulary's. The others are padding: whatever stands there takes no part, and its
    // gradient is 0. A row whose target is negative does not count: its loss is 0, and so is all of its gradient. Vp as
    // device_padded_vocab_size gives it; on a GPU, logits lie at a multiple of 16 bytes.
    void (*classifier)(Device *, void *logits, float *losses, const int32_t *targets, int64_t rows, int64_t V,
                       int64_t Vp, float d_loss);

    // ---- optimizer ------------------------------------------------------------------------------------------------
    // One AdamW update of `count` values: master is the fp32 parameter, m and v its moments; the new value is also written
    // to `weight` in storage type where weight is not NULL (on the CPU weight may alias master).
    void (*adamw)(Device *, float *master, void *weight, float *m, float *v, const float *gradient, int64_t count,
                  const AdamW *hyperparameters);
    // *sum += the sum of x, or of its squares, in double precision, in an order that depends on count alone.
    void (*sum)(Device *, double *sum, const float *x, int64_t count);
    void (*sum_of_squares)(Device *, double *sum, const float *x, int64_t count);

    // ---- between ranks: for comm/ alone; NULL where host_memory -------------------------------------------------------
    // These may be called with the Device of another rank of the same kind: by its thread's leave, never at once.
    Event *(*event_create)(Device *);
    void (*event_release)(Device *, Event *);
    void (*event_record)(Device *, Stream, Event *); // my event := the point after all calls so far in this stream
    void (*stream_wait)(Device *, Stream, Event *);  // calls from here on in this stream run after it, whosever it is
    bool (*event_done)(Device *, Event *);           // is that point behind us? Does not wait
    // to <- from, in this stream; either may be memory of another rank's device.
    void (*copy_on)(Device *, Stream, void *to, const void *from, size_t bytes);
    // out[i] = ((term[0][i] + term[1][i]) + term[2][i]) + ..., in this stream; out may be any of the terms, all here,
    // at most DEVICE_MOST_TERMS of them.
    void (*sum_terms)(Device *, Stream, float *out, const float *const *terms, int term_count, int64_t count);
};

typedef enum DeviceKind {
    DEVICE_AUTO, // not settled yet, or none: cannot be opened
    DEVICE_CPU,
    DEVICE_CUDA,
    DEVICE_EMULATED // CUDA's kernels run by this CPU (emulated/)
} DeviceKind;
const char *device_kind_name(DeviceKind kind); // "auto", "cpu", "cuda", "emulated"
DeviceKind device_kind(const char *name);      // of that name; DEVICE_AUTO: there is none

// Opens a device; index: of the GPU, from 0 (not used for the CPU). Call it on the thread of the rank that will use it.
// Errors: not compiled in, no such GPU, no driver; for the CPU, a MATMUL in the environment that cannot be had (usage).
bool device_open(Device *device, DeviceKind kind, int index, int threads, Error *err);
// Of a GPU that is not here: what a plan needs to know, 2 bytes an element and the kernels' scratch memory. It may not be
// used otherwise. Compiled without any CUDA kernels, it has none.
void device_elsewhere(Device *device);
// How many of this kind there are; 0 and *why (a few words) if none can be used. cpu and emulated: as many as wanted.
int device_count(DeviceKind kind, const char **why);

// Vp: the rows that the classifier's matrix of V rows has in the memory of a device of this kind, and the columns of
// the logits. A GPU's fast products take 16 bytes at a time, and rows of 50,257 logits begin on no such boundary. So V
// is rounded up to a multiple of 64, a large one to one of 128: whole tiles of the products as well. Nothing outside of
// the device's memory knows of this padding. On the CPU there is none: Vp = V.
int64_t device_padded_vocab_size(DeviceKind kind, int64_t V);

// ---- memory that layers work in -----------------------------------------------------------------------------------
// Nothing is allocated during a step. What layers and attention kernels need beside their arguments is stated before,
// for the largest sizes that calls will have; whoever opened the device lends it that much (Device.scratch), and every
// call has all of it for itself.

// Bytes that the layers of this kind of device need on so many threads for up to `rows` rows of width C in
// norms and embeddings, and biases of up to `columns`. What attention's kernels need they state themselves (scratch_bytes in
// attention/kernel.h).
size_t device_scratch_bytes(DeviceKind kind, int threads, int64_t rows, int64_t C, int64_t columns);
// Beside its own memory a device of this kind takes so many bytes of the host's, for uploads on their way.
size_t device_host_bytes(DeviceKind kind);
// The first `bytes` of what was lent, 256-byte aligned, for the call at work; `who` calls. More than was lent is a
// programming error: somebody stated too little. It ends the program with both numbers.
void *device_scratch(const Device *device, const char *who, size_t bytes);
// Takes that memory from the device itself, and gives it back: for programs that lay nothing out.
bool device_lend_scratch(Device *device, size_t bytes, Error *err);
void device_return_scratch(Device *device);

// Fills in the CPU device, with fp32 storage. Its layers run on `threads` OpenMP threads (1: no parallel region at all).
void cpu_device(Device *device, int threads);
// Floating-point operations per second that fp32 matrix products reach at best on `threads` threads here, measured now
// (about 0.2 s): the machine's own limit against which rates are shown. 0 where there is no memory for it.
double cpu_matrix_rate(int threads);
// What multiplies matrices: a CBLAS library's file name, such as "libopenblas.so.0", or "built-in blocked product".
const char *cpu_matrix_library(void);

// The address of element `offset` of a storage tensor.
static inline void *at(const Device *device, const void *storage, int64_t offset) {
    return (char *)storage + offset * (int64_t)device->element_bytes;
}

#ifdef __cplusplus
}
#endif
#endif
