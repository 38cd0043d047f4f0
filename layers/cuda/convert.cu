// Moves of rows, conversions between fp32 and bf16, and a sum of two tensors.
#include "layers/cuda/elementwise.h"
#include "layers/cuda/layers.h"

// ---- rows with strides ---------------------------------------------------------------------------------------------

namespace {

template <typename Unit> struct CopyRows {
    enum { WIDTH = 1, AT_ONCE = 4 };
    char *to;
    const char *from;
    int64_t to_stride, from_stride; // bytes
    template <int N> struct Input { Unit unit; };
    template <int N> __device__ void read(Input<N> &in, int64_t row, int64_t column) const {
        in.unit = reinterpret_cast<const Unit *>(from + row * from_stride)[column];
    }
    template <int N> __device__ void write(const Input<N> &in, int64_t row, int64_t column) const {
        reinterpret_cast<Unit *>(to + row * to_stride)[column] = in.unit;
    }
};

template <typename Unit>
void copy_rows(Device *device, void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t rows,
               size_t row_bytes) {
    const CopyRows<Unit> map = {static_cast<char *>(to), static_cast<const char *>(from), to_stride, from_stride};
    map_rows(device, map, rows, (int64_t)(row_bytes / sizeof(Unit)), false);
}

} // namespace

// In the widest units on whose boundaries all rows begin and end.
void cuda_copy_strided(Device *device, void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t rows,
                       size_t row_bytes) {
    const uint64_t all =
        (uint64_t)(uintptr_t)to | (uint64_t)(uintptr_t)from | (uint64_t)to_stride | (uint64_t)from_stride | row_bytes;
    if (all % 16 == 0) copy_rows<uint4>(device, to, to_stride, from, from_stride, rows, row_bytes);
    else if (all % 8 == 0) copy_rows<uint2>(device, to, to_stride, from, from_stride, rows, row_bytes);
    else if (all % 4 == 0) copy_rows<uint32_t>(device, to, to_stride, from, from_stride, rows, row_bytes);
    else if (all % 2 == 0) copy_rows<uint16_t>(device, to, to_stride, from, from_stride, rows, row_bytes);
    else copy_rows<uint8_t>(device, to, to_stride, from, from_stride, rows, row_bytes);
}

namespace {

struct ToStorageRows {
    enum { WIDTH = 4, AT_ONCE = 4 };
    bf16 *out;
    const float *in;
    int64_t out_stride, in_stride; // elements
    template <int N> struct Input { float x[N]; };
    template <int N> __device__ void read(Input<N> &v, int64_t row, int64_t column) const {
        load(v.x, in + row * in_stride + column);
    }
    template <int N> __device__ void write(const Input<N> &v, int64_t row, int64_t column) const {
        store(out + row * out_stride + column, v.x);
    }
};

} // namespace

void cuda_to_storage_strided(Device *device, void *out, int64_t out_stride, const float *in, int64_t in_stride,
                             int64_t rows, int64_t columns) {
    const ToStorageRows map = {static_cast<bf16 *>(out), in, out_stride, in_stride};
    map_rows(device, map, rows, columns, aligned(out, in) && out_stride % 4 == 0 && in_stride % 4 == 0);
}

// ---- conversions ---------------------------------------------------------------------------------------------------

namespace {

template <typename To, typename From> struct Convert {
    enum { WIDTH = 4, AT_ONCE = 4 };
    To *out;
    const From *in;
    template <int N> struct Input { float x[N]; };
    template <int N> __device__ void read(Input<N> &v, int64_t i) const { load(v.x, in + i); }
    template <int N> __device__ void write(const Input<N> &v, int64_t i) const { store(out + i, v.x); }
};

} // namespace

void cuda_to_storage(Device *device, void *out, const float *in, int64_t count) {
    const Convert<bf16, float> map = {static_cast<bf16 *>(out), in};
    map_values(device, map, count, out, in);
}

void cuda_to_float(Device *device, float *out, const void *in, int64_t count) {
    const Convert<float, bf16> map = {out, static_cast<const bf16 *>(in)};
    map_values(device, map, count, out, in);
}

// ---- sums ----------------------------------------------------------------------------------------------------------

namespace {

struct AddFloat {
    enum { WIDTH = 4, AT_ONCE = 2 };
    float *out;
    const float *in;
    template <int N> struct Input { float sum[N], term[N]; };
    template <int N> __device__ void read(Input<N> &v, int64_t i) const {
        load(v.sum, out + i);
        load(v.term, in + i);
    }
    template <int N> __device__ void write(const Input<N> &v, int64_t i) const {
        float sum[N];
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] = v.sum[k] + v.term[k];
        store(out + i, sum);
    }
};

} // namespace

void cuda_add_float(Device *device, float *out, const float *in, int64_t count) {
    const AddFloat map = {out, in};
    map_values(device, map, count, out, in);
}
