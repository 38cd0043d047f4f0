// Sums of losses by position: each rank adds those of its own tokens, and rank 0 writes the sum over ranks.
#include "run/positions.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "run/saving.h"

// The windows are cut into parts as well, which tell how much the mean would differ from text to text.
enum { MOST_PARTS = 8 };

struct PositionLosses {
    int64_t T, windows, parts; // windows: of all replicas
    double *sum;               // (parts, T) nats, of what this rank has seen so far
    float *losses;             // (Tl) of one sequence
};

bool positions_check(const Run *run, Error *err) {
    const char *path = run->options.eval_by_position;
    return path == NULL || run->options.plan || file_check_writable("--eval-by-position", path, err);
}

// The first window of a part.
static int64_t part_begin(const PositionLosses *p, int64_t part) { return p->windows * part / p->parts; }

PositionLosses *positions_open(Rank *r, int64_t windows) {
    Error err;
    PositionLosses *p = calloc(1, sizeof *p);
    if (p != NULL) {
        p->T = r->run->options.context;
        p->windows = windows;
        p->parts = windows < MOST_PARTS ? windows : MOST_PARTS;
        p->sum = calloc((size_t)(p->parts * p->T), sizeof *p->sum);
        p->losses = malloc((size_t)r->model.shard.tokens * sizeof *p->losses);
    }
    bool ok = p != NULL && p->sum != NULL && p->losses != NULL;
    if (!ok) require(r, error_set(&err, "--eval-by-position: out of memory"), &err);
    return p;
}

void positions_add(PositionLosses *p, Rank *r, int64_t first, int64_t count) {
    const Shard *shard = &r->model.shard;
    int64_t part = 0;
    for (int64_t b = 0; b < count; b++) {
        while (part_begin(p, part + 1) <= first + b) part++;
        double *sum = p->sum + part * p->T;
        const float *loss = p->losses;
        r->device.download(&r->device, p->losses, r->pass.losses + b * shard->tokens,
                           (size_t)shard->tokens * sizeof *p->losses);
        for (int c = 0; c < shard->count; c++)
            for (int64_t i = 0; i < shard->chunk[c].length; i++) sum[shard->chunk[c].start + i] += *loss++;
    }
}

static bool write_file(const PositionLosses *p, const char *path) {
    FILE *file = file_write(path);
    if (file == NULL) return false;
    fprintf(file, "position,loss,windows");
    for (int64_t part = 1; part <= p->parts; part++) fprintf(file, ",part_%lld", (long long)part);
    for (int64_t i = 0; i < p->T; i++) {
        double all = 0;
        for (int64_t part = 0; part < p->parts; part++) all += p->sum[part * p->T + i];
        fprintf(file, "\n%lld,%.6g,%lld", (long long)i, all / (double)p->windows, (long long)p->windows);
        for (int64_t part = 0; part < p->parts; part++)
            fprintf(file, ",%.6g", p->sum[part * p->T + i] / (double)(part_begin(p, part + 1) - part_begin(p, part)));
    }
    fputc('\n', file);
    bool ok = ferror(file) == 0;
    return fclose(file) == 0 && ok;
}

void positions_close(PositionLosses *p, Rank *r, bool write) {
    const int piece = 1 << 16; // few values at a time, as comm sums them
    const char *path = r->run->options.eval_by_position;
    const int64_t all = p->parts * p->T;
    for (int64_t i = 0; write && i < all; i += piece)
        comm_all_reduce_sum(r->world, p->sum + i, (int)(all - i < piece ? all - i : piece));
    if (write && leader(r) && !write_file(p, path))
        fprintf(stderr, "train_gpt: --eval-by-position %s: cannot write: %s\n", path, strerror(errno));
    free(p->sum);
    free(p->losses);
    free(p);
}
