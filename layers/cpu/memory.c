// Memory of the CPU device: the machine's own, and moves within it.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cpu_features.h"
#include "layers/cpu/layers.h"

static const size_t ALIGNMENT = 256, HUGE_PAGE = (size_t)2 << 20;

// Asks first: a system that promises more memory than it has would end the program later, with no word of why.
static void *memory_for(size_t bytes, size_t alignment) {
    void *memory = NULL;
    if (bytes > SIZE_MAX / 2 || (bytes >= HUGE_PAGE && (int64_t)bytes > memory_available())) return NULL;
    return posix_memalign(&memory, alignment, bytes > 0 ? bytes : 1) == 0 ? memory : NULL;
}

void *cpu_allocate(Device *device, size_t bytes, Error *err) {
    size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : ALIGNMENT;
    void *memory = memory_for(bytes, alignment);
    if (memory == NULL) {
        error_set(err,
                  "out of memory: %.1f MiB are not to be had; take a shorter --context or a smaller model (see --plan)",
                  (double)bytes / 1048576);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    // Fewer pages to look up. Only a hint: where it is refused, nothing is lost.
    if (alignment == HUGE_PAGE) (void)madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    cpu_zero(device, memory, bytes); // also takes the pages now, rather than in the middle of a step
    return memory;
}

void cpu_release(Device *device, void *memory, size_t bytes) {
    (void)device, (void)bytes;
    free(memory);
}

// ---- moves ------------------------------------------------------------------------------------------------------
typedef struct Move {
    char *to;
    const char *from; // NULL: zeros
    size_t bytes;
} Move;

static const size_t MOVE_BYTES = (size_t)1 << 20;

static void move_task(void *context, int64_t task, int worker) {
    const Move *move = context;
    (void)worker;
    size_t begin = (size_t)task * MOVE_BYTES, left = move->bytes - begin, bytes = left < MOVE_BYTES ? left : MOVE_BYTES;
    if (move->from == NULL) memset(move->to + begin, 0, bytes);
    else memcpy(move->to + begin, move->from + begin, bytes);
}

static void move(Device *device, Move job) {
    if (job.bytes == 0 || job.to == job.from) return;
    parallel_for(device->threads, (int64_t)((job.bytes - 1) / MOVE_BYTES + 1), move_task, &job);
}

void cpu_zero(Device *device, void *memory, size_t bytes) { move(device, (Move){memory, NULL, bytes}); }

void cpu_copy(Device *device, void *to, const void *from, size_t bytes) { move(device, (Move){to, from, bytes}); }

void cpu_to_storage(Device *device, void *out, const float *in, int64_t count) {
    cpu_copy(device, out, in, (size_t)count * sizeof *in);
}

void cpu_to_float(Device *device, float *out, const void *in, int64_t count) {
    cpu_copy(device, out, in, (size_t)count * sizeof *out);
}

typedef struct StridedMove {
    char *to;
    const char *from;
    int64_t to_stride, from_stride, rows, rows_per_task;
    size_t row_bytes;
} StridedMove;

static void strided_move_task(void *context, int64_t task, int worker) {
    const StridedMove *move = context;
    (void)worker;
    int64_t begin = task * move->rows_per_task, end = smaller(begin + move->rows_per_task, move->rows);
    for (int64_t i = begin; i < end; i++)
        memcpy(move->to + i * move->to_stride, move->from + i * move->from_stride, move->row_bytes);
}

void cpu_copy_strided(Device *device, void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t rows,
                      size_t row_bytes) {
    if (rows == 0 || row_bytes == 0) return;
    int64_t rows_at_once = larger(1, (int64_t)(MOVE_BYTES / row_bytes));
    StridedMove job = {to, from, to_stride, from_stride, rows, rows_at_once, row_bytes};
    parallel_for(device->threads, tasks_of(rows, rows_at_once), strided_move_task, &job);
}

void cpu_to_storage_strided(Device *device, void *out, int64_t out_stride, const float *in, int64_t in_stride,
                            int64_t rows, int64_t columns) {
    int64_t size = (int64_t)sizeof *in;
    cpu_copy_strided(device, out, out_stride * size, in, in_stride * size, rows, (size_t)(columns * size));
}
