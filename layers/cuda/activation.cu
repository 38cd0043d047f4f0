// GELU and SwiGLU, forward and backward: the formulas of activation.h over whole tensors.
#include "layers/cuda/activation.h"
#include "layers/cuda/elementwise.h"
#include "layers/cuda/layers.h"

// ---- GELU ----------------------------------------------------------------------------------------------------------

namespace {

struct GeluForward {
    enum { WIDTH = PACKET, AT_ONCE = 4 };
    bf16 *out;
    const bf16 *x;
    template <int N> struct Input { float x[N]; };
    template <int N> __device__ void read(Input<N> &in, int64_t i) const { load(in.x, x + i); }
    template <int N> __device__ void write(const Input<N> &in, int64_t i) const {
        float y[N];
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = gelu(in.x[k]);
        store(out + i, y);
    }
};

} // namespace

void cuda_gelu_forward(Device *device, void *out, const void *x, int64_t count) {
    const GeluForward map = {static_cast<bf16 *>(out), static_cast<const bf16 *>(x)};
    map_values(device, map, count, out, x);
}

namespace {

struct GeluBackward {
    enum { WIDTH = PACKET, AT_ONCE = 2 };
    bf16 *d_x;
    const bf16 *d_out, *x;
    template <int N> struct Input { float d_out[N], x[N]; };
    template <int N> __device__ void read(Input<N> &in, int64_t i) const {
        load(in.d_out, d_out + i);
        load(in.x, x + i);
    }
    template <int N> __device__ void write(const Input<N> &in, int64_t i) const {
        float y[N];
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = gelu_gradient(in.d_out[k], in.x[k]);
        store(d_x + i, y);
    }
};

} // namespace

void cuda_gelu_backward(Device *device, void *d_x, const void *d_out, const void *x, int64_t count) {
    const GeluBackward map = {static_cast<bf16 *>(d_x), static_cast<const bf16 *>(d_out), static_cast<const bf16 *>(x)};
    map_values(device, map, count, d_x, d_out, x);
}

// ---- SwiGLU: a row of gate_up is F gates, then F values to be gated ------------------------------------------------

namespace {

struct SwigluForward {
    enum { WIDTH = PACKET, AT_ONCE = 2 };
    bf16 *out;
    const bf16 *gate_up;
    int64_t F;
    template <int N> struct Input { float gate[N], up[N]; };
    template <int N> __device__ void read(Input<N> &in, int64_t row, int64_t column) const {
        const bf16 *gate = gate_up + row * 2 * F + column;
        load(in.gate, gate);
        load(in.up, gate + F);
    }
    template <int N> __device__ void write(const Input<N> &in, int64_t row, int64_t column) const {
        float y[N];
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = silu(in.gate[k]) * in.up[k];
        store(out + row * F + column, y);
    }
};

} // namespace

void cuda_swiglu_forward(Device *device, void *out, const void *gate_up, int64_t rows, int64_t F) {
    const SwigluForward map = {static_cast<bf16 *>(out), static_cast<const bf16 *>(gate_up), F};
    map_rows(device, map, rows, F, aligned(out, gate_up));
}

namespace {

// The gradients of both halves and the activation itself, out of one reading of gate_up. A thread reads all values of
// its columns before it writes them, so each tensor written may be one that is read.
struct SwigluBackward {
    enum { WIDTH = PACKET, AT_ONCE = 1 };
    bf16 *d_gate_up, *out;
    const bf16 *d_out, *gate_up;
    int64_t F;
    template <int N> struct Input { float d_out[N], gate[N], up[N]; };
    template <int N> __device__ void read(Input<N> &in, int64_t row, int64_t column) const {
        const bf16 *gate = gate_up + row * 2 * F + column;
        load(in.gate, gate);
        load(in.up, gate + F);
        load(in.d_out, d_out + row * F + column);
    }
    template <int N> __device__ void write(const Input<N> &in, int64_t row, int64_t column) const {
        float d_gate[N], d_up[N], y[N];
#pragma unroll
        for (int k = 0; k < N; k++) {
            float value, gradient;
            silu_and_gradient(in.gate[k], value, gradient);
            y[k] = value * in.up[k];
            d_up[k] = in.d_out[k] * value;
            d_gate[k] = in.d_out[k] * in.up[k] * gradient;
        }
        bf16 *d_row = d_gate_up + row * 2 * F + column;
        store(d_row, d_gate);
        store(d_row + F, d_up);
        store(out + row * F + column, y);
    }
};

} // namespace

void cuda_swiglu_backward(Device *device, void *d_gate_up, void *out, const void *d_out, const void *gate_up,
                          int64_t rows, int64_t F) {
    const SwigluBackward map = {static_cast<bf16 *>(d_gate_up), static_cast<bf16 *>(out),
                                static_cast<const bf16 *>(d_out), static_cast<const bf16 *>(gate_up), F};
    map_rows(device, map, rows, F, aligned(d_gate_up, out, d_out, gate_up));
}
