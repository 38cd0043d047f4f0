// Embedding: rows of the token and position tables, looked up and added; backward, gradients added to those rows.
#include <string.h>

#include "layers/cpu/layers.h"

typedef struct Embedding {
    float *out;
    const float *token_table, *position_table;
    const int32_t *tokens, *positions;
    int64_t rows, C, per_task;
} Embedding;

static void forward_task(void *context, int64_t task, int worker) {
    const Embedding *e = context;
    (void)worker;
    int64_t C = e->C, end = smaller((task + 1) * e->per_task, e->rows);
    for (int64_t row = task * e->per_task; row < end; row++) {
        float *out = e->out + row * C;
        const float *token = e->token_table + e->tokens[row] * C;
        if (e->position_table == NULL) {
            memcpy(out, token, (size_t)C * sizeof *out);
        } else {
            const float *position = e->position_table + e->positions[row] * C;
            for (int64_t c = 0; c < C; c++) out[c] = token[c] + position[c];
        }
    }
}

void cpu_embedding_forward(Device *device, void *out, const int32_t *tokens, const int32_t *positions,
                           const void *token_table, const void *position_table, int64_t rows, int64_t C) {
    Embedding e = {out, token_table, position_table, tokens, positions, rows, C, rows_per_task(C)};
    parallel_for(device->threads, tasks_of(rows, e.per_task), forward_task, &e);
}

typedef struct EmbeddingGradient {
    float *d_token_table, *d_position_table;
    const float *d_out;
    const int32_t *tokens, *positions;
    int64_t rows, C, per_task;
} EmbeddingGradient;

static void add_to(float *sum, const float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) sum[i] += x[i];
}

// Many rows may hold the same token, so tasks share out the channels instead: each adds its own of all rows, in order.
static void backward_task(void *context, int64_t task, int worker) {
    const EmbeddingGradient *e = context;
    (void)worker;
    int64_t C = e->C, first = task * e->per_task, channels = smaller(e->per_task, C - first);
    for (int64_t row = 0; row < e->rows; row++) {
        const float *d_out = e->d_out + row * C + first;
        add_to(e->d_token_table + e->tokens[row] * C + first, d_out, channels);
        if (e->d_position_table != NULL) add_to(e->d_position_table + e->positions[row] * C + first, d_out, channels);
    }
}

void cpu_embedding_backward(Device *device, float *d_token_table, float *d_position_table, const void *d_out,
                            const int32_t *tokens, const int32_t *positions, int64_t rows, int64_t position_rows,
                            int64_t C, int64_t V) {
    (void)position_rows, (void)V;
    int64_t cache_line = 16; // floats
    int64_t per_task = tasks_of(tasks_of(C, device->threads), cache_line) * cache_line;
    EmbeddingGradient e = {d_token_table, d_position_table, d_out, tokens, positions, rows, C, per_task};
    parallel_for(device->threads, tasks_of(C, per_task), backward_task, &e);
}
