// Rotary positions (Su et al. 2021): pair i of a head, (x_i, x_{i+D/2}), is a point in the plane, turned by the angle
// of its position. All heads of a row turn by the same angles, so their cosines and sines come from the cache.
#include "layers/cuda/elementwise.h"
#include "layers/cuda/layers.h"

namespace {

// A column is a pair: column / half is the head, the rest its place there.
struct Rotary {
    enum { WIDTH = PACKET, AT_ONCE = 1 };
    bf16 *x;
    const float *cos_table, *sin_table; // (table_rows, half)
    unsigned table_rows, half;
    int64_t row_stride;
    float direction; // -1 turns back
    template <int N> struct Input { float first[N], second[N], cosine[N], sine[N]; };
    __device__ bf16 *first_of(int64_t row, unsigned pair) const {
        return x + row * row_stride + pair + pair / half * half;
    }
    template <int N> __device__ static void load_table(float (&values)[N], const float *from) {
        if constexpr (N == 1) values[0] = *from;
        else {
#pragma unroll
            for (int k = 0; k < N; k += 4) {
                float four[4];
                load(four, from + k);
#pragma unroll
                for (int l = 0; l < 4; l++) values[k + l] = four[l];
            }
        }
    }
    template <int N> __device__ void read(Input<N> &in, int64_t row, int64_t column) const {
        const unsigned pair = (unsigned)column;
        const bf16 *first = first_of(row, pair);
        load(in.first, first);
        load(in.second, first + half);
        const int64_t angle = (int64_t)((unsigned)row % table_rows) * half + pair % half;
        load_table(in.cosine, cos_table + angle);
        load_table(in.sine, sin_table + angle);
    }
    template <int N> __device__ void write(const Input<N> &in, int64_t row, int64_t column) const {
        float first[N], second[N];
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float sine = direction * in.sine[k];
            first[k] = in.first[k] * in.cosine[k] - in.second[k] * sine;
            second[k] = in.second[k] * in.cosine[k] + in.first[k] * sine;
        }
        bf16 *to = first_of(row, (unsigned)column);
        store(to, first);
        store(to + half, second);
    }
};

} // namespace

void cuda_rotary(Device *device, void *x, const float *cos_table, const float *sin_table, int64_t rows,
                 int64_t table_rows, int64_t row_stride, int64_t heads, int64_t D, bool inverse) {
    if (rows > INT32_MAX || table_rows > INT32_MAX || heads * D > INT32_MAX)
        cuda_give_up(__FILE__, __LINE__, "rotary positions of %lld rows, %lld angles, width %lld", (long long)rows,
                     (long long)table_rows, (long long)(heads * D));
    const int64_t half = D / 2;
    const Rotary map = {static_cast<bf16 *>(x), cos_table, sin_table, (unsigned)table_rows, (unsigned)half, row_stride,
                        inverse ? -1.0f : 1.0f};
    map_rows(device, map, rows, heads * half,
             aligned(x, cos_table, sin_table) && half % PACKET == 0 && row_stride % PACKET == 0);
}
