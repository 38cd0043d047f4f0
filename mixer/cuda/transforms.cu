// cuFFT's plans, one for each number and length of rows, made when first asked for and kept with the device. They own
// no work area: each call lends one out of the device's scratch memory.
#include "mixer/cuda/transforms.h"

#include <cufft.h>
#include <stdlib.h>

#include "layers/cuda/context.h"

struct RealTransforms {
    int64_t N, stride, count;
    cufftHandle forward, backward;
    size_t work_bytes; // the most of both
    struct RealTransforms *next;
};

namespace {

#define CUFFT_CHECK(call) cufft_check((call), #call, __LINE__)
void cufft_check(cufftResult result, const char *call, int line) {
    if (result != CUFFT_SUCCESS) cuda_give_up(__FILE__, line, "%s: cuFFT's error %d", call, (int)result);
}

cufftHandle make_plan(Device *device, RealTransforms *t, cufftType type) {
    cufftHandle plan;
    size_t bytes = 0;
    long long n = t->N, reals = t->stride, complexes = t->stride / 2;
    const bool forward = type == CUFFT_R2C;
    CUFFT_CHECK(cufftCreate(&plan));
    CUFFT_CHECK(cufftSetAutoAllocation(plan, 0));
    CUFFT_CHECK(cufftMakePlanMany64(plan, 1, &n, forward ? &reals : &complexes, 1, forward ? reals : complexes,
                                    forward ? &complexes : &reals, 1, forward ? complexes : reals, type, t->count,
                                    &bytes));
    CUFFT_CHECK(cufftSetStream(plan, stream_of(device)));
    if (bytes > t->work_bytes) t->work_bytes = bytes;
    return plan;
}

RealTransforms *transforms_for(Device *device, const RowsToTransform &r) {
    CudaContext *c = context_of(device);
    for (RealTransforms *t = c->transforms; t != NULL; t = t->next)
        if (t->N == r.N && t->stride == r.stride && t->count == r.count) return t;
    RealTransforms *t = static_cast<RealTransforms *>(calloc(1, sizeof *t));
    if (t == NULL) cuda_give_up(__FILE__, __LINE__, "out of memory for a plan of cuFFT");
    t->N = r.N, t->stride = r.stride, t->count = r.count;
    t->forward = make_plan(device, t, CUFFT_R2C);
    t->backward = make_plan(device, t, CUFFT_C2R);
    if (t->work_bytes > r.work_bytes)
        cuda_give_up(__FILE__, __LINE__, "cuFFT wants %zu bytes for %lld transforms of %lld values; %zu were planned",
                     t->work_bytes, (long long)r.count, (long long)r.N, r.work_bytes);
    t->next = c->transforms;
    c->transforms = t;
    return t;
}

} // namespace

void transform_forward(Device *device, const RowsToTransform &r) {
    const RealTransforms *t = transforms_for(device, r);
    CUFFT_CHECK(cufftSetWorkArea(t->forward, r.work));
    CUFFT_CHECK(cufftExecR2C(t->forward, r.rows, reinterpret_cast<cufftComplex *>(r.rows)));
}

void transform_backward(Device *device, const RowsToTransform &r) {
    const RealTransforms *t = transforms_for(device, r);
    CUFFT_CHECK(cufftSetWorkArea(t->backward, r.work));
    CUFFT_CHECK(cufftExecC2R(t->backward, reinterpret_cast<cufftComplex *>(r.rows), r.rows));
}

void real_transforms_free(struct RealTransforms *t) {
    while (t != NULL) {
        RealTransforms *next = t->next;
        CUFFT_CHECK(cufftDestroy(t->forward));
        CUFFT_CHECK(cufftDestroy(t->backward));
        free(t);
        t = next;
    }
}
