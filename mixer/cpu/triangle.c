// Products with a triangle of W on the CPU: in panels of TILE rows (or, transposed, columns), each a product with what
// lies beside the diagonal and one with the tile on it, of which a copy without the upper part is made.
#include "mixer/triangle.h"

#include <string.h>

#include "layers/cpu/layers.h"

enum { TILE = TRIANGLE_TILE_CPU, SLAB = 512 /* columns of a task */ };

typedef struct Job {
    const MatrixProduct *with;
    const TriangleBlock *block;
    float *room;                 // (threads, SGEMM_ROOM + TILE TILE)
    const float *weight, *x, *d; // of the block
    float *sums, *d_x, *d_weight;
    int64_t slabs;
} Job;

static Job job_of(Device *device, const TriangleBlock *block) {
    size_t bytes = triangle_scratch_bytes(sizeof(float), device->threads);
    return (Job){.with = device->context,
                 .block = block,
                 .room = device_scratch(device, "a triangle of weights", bytes),
                 .slabs = tasks_of(block->width, SLAB)};
}
static int64_t offset_of(const TriangleBlock *block) { return block->row * block->stride + block->column; }

typedef struct Panel {    // of one task
    int64_t first, count; // its rows or columns
    int64_t left, width;  // of the N columns of x, d and sums
    float *room, *tile;
} Panel;

static Panel panel_of(const Job *job, int64_t panel, int64_t of, int64_t slab, int worker) {
    float *room = job->room + (int64_t)worker * (SGEMM_ROOM + TILE * TILE);
    return (Panel){panel * TILE, smaller(TILE, of - panel * TILE),
                   slab * SLAB,  smaller(SLAB, job->block->width - slab * SLAB),
                   room,         room + SGEMM_ROOM};
}

// The tile whose first row and column are `first`, with zeros above the diagonal.
static void copy_lower(float *tile, const float *weight, int64_t stride, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        memcpy(tile + i * TILE, weight + i * stride, (size_t)(i + 1) * sizeof *tile);
        memset(tile + i * TILE + i + 1, 0, (size_t)(count - i - 1) * sizeof *tile);
    }
}

static void multiply_task(void *context, int64_t task, int worker) {
    const Job *job = context;
    const TriangleBlock *b = job->block;
    int64_t panels = tasks_of(b->rows, TILE), N = b->width;
    Panel p = panel_of(job, panels - 1 - task / job->slabs, b->rows, task % job->slabs, worker); // the longest first
    bool diagonal = triangle_on_diagonal(b);
    const float *weight = job->weight + p.first * b->stride, *x = job->x + p.left;
    float *sums = job->sums + p.first * N + p.left;
    job->with->sgemm(p.room, false, false, p.count, p.width, diagonal ? p.first : b->columns, 1, weight, b->stride, x,
                     N, 1, sums, N);
    if (!diagonal) return;
    copy_lower(p.tile, weight + p.first, b->stride, p.count);
    job->with->sgemm(p.room, false, false, p.count, p.width, p.count, 1, p.tile, TILE, x + p.first * N, N, 1, sums, N);
}

static void multiply(Device *device, const TriangleBlock *block, float *sums, const void *weight, const void *x) {
    Job job = job_of(device, block);
    job.sums = sums, job.weight = (const float *)weight + offset_of(block), job.x = x;
    parallel_for(device->threads, tasks_of(block->rows, TILE) * job.slabs, multiply_task, &job);
}

static void transposed_task(void *context, int64_t task, int worker) {
    const Job *job = context;
    const TriangleBlock *b = job->block;
    int64_t N = b->width;
    Panel p = panel_of(job, task / job->slabs, b->columns, task % job->slabs, worker);
    bool diagonal = triangle_on_diagonal(b);
    int64_t below = diagonal ? p.first + p.count : 0; // the first row that lies wholly below the diagonal
    const float *weight = job->weight + p.first, *d = job->d + p.left;
    float *d_x = job->d_x + p.first * N + p.left;
    if (diagonal) {
        copy_lower(p.tile, weight + p.first * b->stride, b->stride, p.count);
        job->with->sgemm(p.room, true, false, p.count, p.width, p.count, 1, p.tile, TILE, d + p.first * N, N, 1, d_x,
                         N);
    }
    job->with->sgemm(p.room, true, false, p.count, p.width, b->rows - below, 1, weight + below * b->stride, b->stride,
                     d + below * N, N, 1, d_x, N);
}

static void multiply_transposed(Device *device, const TriangleBlock *block, float *d_x, const void *weight,
                                const void *d) {
    Job job = job_of(device, block);
    job.d_x = d_x, job.weight = (const float *)weight + offset_of(block), job.d = d;
    parallel_for(device->threads, tasks_of(block->columns, TILE) * job.slabs, transposed_task, &job);
}

static void gradient_task(void *context, int64_t task, int worker) {
    const Job *job = context;
    const TriangleBlock *b = job->block;
    int64_t N = b->width;
    Panel p = panel_of(job, tasks_of(b->rows, TILE) - 1 - task, b->rows, 0, worker);
    bool diagonal = triangle_on_diagonal(b);
    const float *d = job->d + p.first * N;
    float *d_weight = job->d_weight + p.first * b->stride;
    job->with->sgemm(p.room, false, true, p.count, diagonal ? p.first : b->columns, N, 1, d, N, job->x, N, 1, d_weight,
                     b->stride);
    if (!diagonal) return;
    job->with->sgemm(p.room, false, true, p.count, p.count, N, 1, d, N, job->x + p.first * N, N, 0, p.tile, TILE);
    for (int64_t i = 0; i < p.count; i++)
        for (int64_t j = 0; j <= i; j++) d_weight[i * b->stride + p.first + j] += p.tile[i * TILE + j];
}

static void gradient(Device *device, const TriangleBlock *block, float *d_weight, const void *d, const void *x) {
    Job job = job_of(device, block);
    job.d_weight = d_weight + offset_of(block), job.d = d, job.x = x;
    parallel_for(device->threads, tasks_of(block->rows, TILE), gradient_task, &job);
}

// ---- biases ---------------------------------------------------------------------------------------------------------

static void add_bias(Device *device, void *out, const float *sums, const void *bias, int64_t rows, int64_t N) {
    (void)device;
    for (int64_t i = 0; i < rows; i++) {
        float *to = (float *)out + i * N, of_row = ((const float *)bias)[i];
        for (int64_t k = 0; k < N; k++) to[k] = sums[i * N + k] + of_row;
    }
}

// In eight sums, which a compiler can take side by side.
static void bias_gradient(Device *device, float *d_bias, const void *d, int64_t rows, int64_t N) {
    (void)device;
    for (int64_t i = 0; i < rows; i++) {
        const float *from = (const float *)d + i * N;
        float sum[8] = {0};
        for (int64_t k = 0; k < N; k++) sum[k % 8] += from[k];
        d_bias[i] += ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
    }
}

const TriangleKernels triangle_kernels_cpu = {.multiply = multiply,
                                              .multiply_transposed = multiply_transposed,
                                              .gradient = gradient,
                                              .add_bias = add_bias,
                                              .bias_gradient = bias_gradient};
