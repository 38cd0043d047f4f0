// AdamW (Loshchilov and Hutter 2019, algorithm 2), in the order of operations of PyTorch's torch.optim.AdamW, on fp32
// master weights; the weight in bf16, which the layers read, is the rounded master.
#include <math.h>

#include "layers/cuda/elementwise.h"
#include "layers/cuda/layers.h"

namespace {

struct Update {
    enum { WIDTH = 4, AT_ONCE = 1 }; // 64 bytes under way
    float *master, *m, *v;
    bf16 *weight; // or NULL
    const float *gradient;
    float gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
    float keep;            // 1 - learning_rate * weight_decay
    float step_size;       // learning_rate / (1 - beta1^step)
    float root_correction; // 1 / sqrt(1 - beta2^step)
    float epsilon;
    template <int N> struct Input { float parameter[N], m[N], v[N], gradient[N]; };
    template <int N> __device__ void read(Input<N> &in, int64_t i) const {
        load(in.parameter, master + i);
        load(in.m, m + i);
        load(in.v, v + i);
        load(in.gradient, gradient + i);
    }
    template <int N> __device__ void write(const Input<N> &in, int64_t i) const {
        Input<N> next;
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float scaled = in.gradient[k] * gradient_scale;
            next.m[k] = beta1 * in.m[k] + one_minus_beta1 * scaled;
            next.v[k] = beta2 * in.v[k] + one_minus_beta2 * (scaled * scaled);
            const float denominator = sqrtf(next.v[k]) * root_correction + epsilon;
            next.parameter[k] = in.parameter[k] * keep - step_size * (next.m[k] / denominator);
        }
        store(master + i, next.parameter);
        store(m + i, next.m);
        store(v + i, next.v);
        if (weight != nullptr) store(weight + i, next.parameter);
    }
};

} // namespace

void cuda_adamw(Device *device, float *master, void *weight, float *m, float *v, const float *gradient, int64_t count,
                const AdamW *h) {
    const double beta1 = h->beta1, beta2 = h->beta2, learning_rate = h->learning_rate;
    Update u = {};
    u.master = master;
    u.m = m;
    u.v = v;
    u.weight = static_cast<bf16 *>(weight);
    u.gradient = gradient;
    u.gradient_scale = h->gradient_scale;
    u.beta1 = h->beta1;
    u.one_minus_beta1 = (float)(1 - beta1);
    u.beta2 = h->beta2;
    u.one_minus_beta2 = (float)(1 - beta2);
    u.keep = (float)(1 - learning_rate * h->weight_decay);
    u.step_size = (float)(learning_rate / (1 - pow(beta1, (double)h->step)));
    u.root_correction = (float)(1 / sqrt(1 - pow(beta2, (double)h->step)));
    u.epsilon = h->epsilon;
    map_values(device, u, count, master, weight, m, v, gradient);
}
