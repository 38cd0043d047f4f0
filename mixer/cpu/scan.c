// Running sums on the CPU: what is between the blocks; within them is scan_simd.c.
#include "mixer/cpu/scan.h"

#include "base/cpu_features.h"
#include "layers/cpu/layers.h"

extern ScanBlockSum scan_block_sum_portable, scan_block_sum_avx2, scan_block_sum_avx512;
extern ScanBlock scan_block_portable, scan_block_avx2, scan_block_avx512;

typedef struct Job {
    const Scan *scan;
    ScanBlockSum *block_sum;
    ScanBlock *block;
    float *sums, *state, *out;
    const float *x, *blocks;
    const double *before;
} Job;

static Job job_of(const Scan *s) {
    switch (simd_level()) {
#if defined(__x86_64__)
    case SIMD_AVX512: return (Job){s, scan_block_sum_avx512, scan_block_avx512, .x = NULL};
    case SIMD_AVX2: return (Job){s, scan_block_sum_avx2, scan_block_avx2, .x = NULL};
#endif
    default: return (Job){s, scan_block_sum_portable, scan_block_portable, .x = NULL};
    }
}

static void sum_task(void *context, int64_t task, int worker) {
    const Job *job = context;
    int64_t blocks = scan_blocks(job->scan->length);
    (void)worker;
    job->block_sum(job->scan, task / blocks, task % blocks, job->sums + task * job->scan->channels, job->x);
}

// From the sums of blocks to those of what comes before each, and of all; some channels of one sequence. What a block
// is given goes on behind it only where the whole block is of one document.
enum { CHANNELS = 128 };
static void between_task(void *context, int64_t task, int worker) {
    const Job *job = context;
    const Scan *s = job->scan;
    int64_t slabs = tasks_of(s->channels, CHANNELS), b = task / slabs, first = task % slabs * CHANNELS;
    int64_t width = smaller(CHANNELS, s->channels - first), blocks = scan_blocks(s->length);
    double sum[CHANNELS] = {0};
    (void)worker;
    for (int64_t k = 0; k < blocks; k++) {
        int64_t block = s->backward ? blocks - 1 - k : k, begin = s->start + block * SCAN_BLOCK;
        int64_t end = smaller(begin + SCAN_BLOCK, s->start + s->length);
        bool through = s->backward ? scan_joined(s, b, begin, end) : scan_joined(s, b, begin - 1, end - 1);
        float *x = job->sums + (b * blocks + block) * s->channels + first;
        for (int64_t c = 0; c < width; c++) {
            double next = x[c] + (through ? sum[c] : 0);
            x[c] = (float)sum[c];
            sum[c] = next;
        }
    }
    for (int64_t c = 0; c < width; c++) job->state[b * s->channels + first + c] = (float)sum[c];
}

static void sums(Device *device, const Scan *s, float *blocks, float *state, const void *x) {
    Job job = job_of(s);
    if (scan_is_empty(s)) return;
    job.sums = blocks, job.state = state, job.x = x;
    parallel_for(device->threads, s->sequences * scan_blocks(s->length), sum_task, &job);
    parallel_for(device->threads, s->sequences * tasks_of(s->channels, CHANNELS), between_task, &job);
}

static void gather(Device *device, const Scan *s, double *before, const float *states, int64_t stride, const int *place,
                   const int64_t *edge, int count) {
    (void)device;
    memset(before, 0, (size_t)(s->sequences * s->channels) * sizeof *before);
    for (int64_t b = 0; b < s->sequences; b++)
        for (int k = 0; k < count; k++) {
            const float *state = states + place[k] * stride + b * s->channels;
            bool joined = s->backward ? scan_joined(s, b, s->start + s->length - 1, edge[k])
                                      : scan_joined(s, b, edge[k] - 1, s->start);
            for (int64_t c = 0; joined && c < s->channels; c++) before[b * s->channels + c] += state[c];
        }
}

static void scan_task(void *context, int64_t task, int worker) {
    const Job *job = context;
    int64_t blocks = scan_blocks(job->scan->length);
    (void)worker;
    job->block(job->scan, task / blocks, task % blocks, job->out, job->x, job->blocks, job->before);
}

static void scan(Device *device, const Scan *s, void *out, const void *x, const float *blocks, const double *before) {
    Job job = job_of(s);
    if (scan_is_empty(s)) return;
    job.out = out, job.x = x, job.blocks = blocks, job.before = before;
    parallel_for(device->threads, s->sequences * scan_blocks(s->length), scan_task, &job);
}

static void advance(Device *device, const Scan *s, double *before, const float *state) {
    (void)device;
    for (int64_t b = 0; b < s->sequences; b++) {
        bool through = scan_joined(s, b, s->start - 1, s->start + s->length - 1);
        for (int64_t c = b * s->channels; c < (b + 1) * s->channels; c++)
            before[c] = state[c] + (through ? before[c] : 0);
    }
}

const ScanKernels scan_kernels_cpu = {.sums = sums, .gather = gather, .scan = scan, .advance = advance};
