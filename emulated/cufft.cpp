// cuFFT on the CPU: plans, what the library would refuse, and transforms as operations of the stream.
#include "emulated/cufft.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "emulated/memory.h"
#include "emulated/report.h"
#include "emulated/stream.h"
#include "layers/cuda/libraries.h"

bool cufft_opens(void) { return true; }

// ---- plans ----------------------------------------------------------------------------------------------------------

struct EmulatedTransform {
    bool used, no_allocation, made;
    cufftType type;
    int64_t N, real_distance, complex_distance, batch;
    cudaStream_t stream;
    void *work;
    size_t work_bytes;
};

// Of all devices; a handle is a place here plus 1.
enum { MOST_PLANS = 4096 };
static EmulatedTransform plans[MOST_PLANS];

static EmulatedTransform *plan_of(cufftHandle handle) {
    if (handle < 1 || handle > MOST_PLANS || !plans[handle - 1].used) return NULL;
    return &plans[handle - 1];
}

cufftResult cufftCreate(cufftHandle *plan) {
    for (int i = 0; i < MOST_PLANS; i++)
        if (!__atomic_exchange_n(&plans[i].used, true, __ATOMIC_ACQ_REL)) return *plan = i + 1, CUFFT_SUCCESS;
    return CUFFT_ALLOC_FAILED;
}

cufftResult cufftDestroy(cufftHandle handle) {
    EmulatedTransform *p = plan_of(handle);
    if (p == NULL) return CUFFT_INVALID_PLAN;
    p->no_allocation = p->made = false;
    p->stream = NULL, p->work = NULL;
    __atomic_store_n(&p->used, false, __ATOMIC_RELEASE);
    return CUFFT_SUCCESS;
}

cufftResult cufftSetAutoAllocation(cufftHandle handle, int automatic) {
    EmulatedTransform *p = plan_of(handle);
    if (p == NULL) return CUFFT_INVALID_PLAN;
    p->no_allocation = automatic == 0;
    return p->no_allocation ? CUFFT_SUCCESS : CUFFT_NOT_SUPPORTED;
}

static bool is_smooth(int64_t n) {
    for (int factor = 2; factor <= 5; factor++)
        while (n % factor == 0) n /= factor;
    return n == 1;
}

cufftResult cufftMakePlanMany64(cufftHandle handle, int rank, long long *n, long long *in_embed, long long in_stride,
                                long long in_distance, long long *out_embed, long long out_stride,
                                long long out_distance, cufftType type, long long batch, size_t *work_bytes) {
    EmulatedTransform *p = plan_of(handle);
    if (p == NULL || p->made) return CUFFT_INVALID_PLAN;
    if (!p->no_allocation || rank != 1 || in_embed == NULL || out_embed == NULL || in_stride != 1 || out_stride != 1)
        return CUFFT_NOT_SUPPORTED;
    const long long reals = type == CUFFT_R2C ? in_distance : out_distance;
    const long long complexes = type == CUFFT_R2C ? out_distance : in_distance;
    if (*n < 2 || *n % 2 != 0 || !is_smooth(*n) || batch < 1) return CUFFT_INVALID_SIZE;
    if (reals != 2 * complexes || complexes < *n / 2 + 1) return CUFFT_INVALID_VALUE; // not in place
    p->type = type, p->N = *n, p->real_distance = reals, p->complex_distance = complexes, p->batch = batch;
    p->work_bytes = (size_t)(batch * complexes) * sizeof(cufftComplex);
    p->made = true;
    *work_bytes = p->work_bytes;
    return CUFFT_SUCCESS;
}

cufftResult cufftSetStream(cufftHandle handle, cudaStream_t stream) {
    EmulatedTransform *p = plan_of(handle);
    if (p == NULL) return CUFFT_INVALID_PLAN;
    p->stream = stream;
    return CUFFT_SUCCESS;
}

cufftResult cufftSetWorkArea(cufftHandle handle, void *work) {
    EmulatedTransform *p = plan_of(handle);
    if (p == NULL) return CUFFT_INVALID_PLAN;
    p->work = work;
    return CUFFT_SUCCESS;
}

// ---- transforms -----------------------------------------------------------------------------------------------------

struct Complex {
    double re, im;
};

// out (n) = the transform of x (n values, `step` apart), by its least factor f: f transforms of n / f values, and their
// sums with powers of a root of 1. `root` (N): exp(-2 pi i k / N), of which n's are every N / n-th. room: n.
static void transform(const Complex *x, int64_t step, int64_t n, Complex *out, Complex *room, const Complex *root,
                      int64_t N) {
    if (n == 1) {
        out[0] = x[0];
        return;
    }
    const int64_t f = n % 2 == 0 ? 2 : n % 3 == 0 ? 3 : 5, part = n / f;
    for (int64_t i = 0; i < f; i++) transform(x + i * step, step * f, part, room + i * part, out + i * part, root, N);
    for (int64_t k = 0; k < n; k++) {
        Complex sum = {0, 0};
        for (int64_t i = 0; i < f; i++) {
            const Complex w = root[i * k % n * (N / n)], y = room[i * part + k % part];
            sum.re += w.re * y.re - w.im * y.im;
            sum.im += w.re * y.im + w.im * y.re;
        }
        out[k] = sum;
    }
}

struct TransformJob {
    EmulatedTransform plan;
    float *rows;
};

static void run_job(void *argument) {
    const TransformJob *job = static_cast<TransformJob *>(argument);
    const EmulatedTransform *p = &job->plan;
    const int64_t N = p->N, half = N / 2;
    memset(p->work, 0xff, p->work_bytes); // whoever keeps something there is to notice
    Complex *x = static_cast<Complex *>(malloc((size_t)(4 * N) * sizeof(Complex)));
    if (x == NULL) report_host("cuFFT: out of the host's memory for a transform of %lld values", (long long)N);
    Complex *out = x + N, *room = x + 2 * N, *root = x + 3 * N;
    for (int64_t k = 0; k < N; k++) {
        const double angle = 2 * M_PI * (double)k / (double)N;
        root[k] = Complex{cos(angle), -sin(angle)};
    }
    for (int64_t b = 0; b < p->batch; b++) {
        float *row = job->rows + b * p->real_distance;
        for (int64_t i = 0; i < N && p->type == CUFFT_R2C; i++) x[i] = Complex{row[i], 0};
        for (int64_t k = 0; k <= half && p->type == CUFFT_C2R; k++) { // backwards: conjugates of the spectrum, forwards
            const double imaginary = k == 0 || k == half ? 0 : row[2 * k + 1];
            x[k] = Complex{row[2 * k], -imaginary};
            if (k > 0) x[N - k] = Complex{row[2 * k], imaginary};
        }
        transform(x, 1, N, out, room, root, N);
        for (int64_t i = 0; i < N && p->type == CUFFT_C2R; i++) row[i] = (float)out[i].re;
        for (int64_t k = 0; k <= half && p->type == CUFFT_R2C; k++)
            row[2 * k] = (float)out[k].re, row[2 * k + 1] = (float)out[k].im;
    }
    free(x);
}

static void expect_device_memory(const char *what, const void *first, size_t bytes) {
    int device = PINNED;
    size_t rest = 0;
    if (!memory_owner(first, &device, &rest) || device == PINNED || rest < bytes)
        report_host("cuFFT: %s is %zu bytes from %p on, which are not all of one allocation of a GPU", what, bytes,
                    first);
}

static cufftResult execute(cufftHandle handle, cufftType type, void *in, void *out) {
    const EmulatedTransform *p = plan_of(handle);
    if (p == NULL || !p->made || p->type != type) return CUFFT_INVALID_PLAN;
    if (in != out) return CUFFT_NOT_SUPPORTED;
    if ((uintptr_t)in % sizeof(cufftComplex) != 0) return CUFFT_INVALID_VALUE;
    expect_device_memory("the work area", p->work, p->work_bytes);
    expect_device_memory("the rows", in, (size_t)(p->batch * p->real_distance) * sizeof(float));
    TransformJob *job = static_cast<TransformJob *>(malloc(sizeof(TransformJob)));
    if (job == NULL) return CUFFT_ALLOC_FAILED;
    job->plan = *p;
    job->rows = static_cast<float *>(in);
    const Operation operation = {NULL, run_job, free, job, "cuFFT"};
    return stream_enqueue(p->stream, &operation) == cudaSuccess ? CUFFT_SUCCESS : CUFFT_EXEC_FAILED;
}

cufftResult cufftExecR2C(cufftHandle plan, cufftReal *in, cufftComplex *out) {
    return execute(plan, CUFFT_R2C, in, out);
}
cufftResult cufftExecC2R(cufftHandle plan, cufftComplex *in, cufftReal *out) {
    return execute(plan, CUFFT_C2R, in, out);
}
