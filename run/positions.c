// Sums of losses by position: each rank adds those of its own tokens, and rank 0 writes the sum over ranks.
#include "run/positions.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "run/saving.h"

struct PositionLosses {
    int64_t T;
    double *sum;    // (T) nats, over the windows of this rank so far
    double windows; // of this replica
    float *losses;  // (Tl) of one sequence
};

bool positions_check(const Run *run, Error *err) {
    const char *path = run->options.eval_by_position;
    return path == NULL || run->options.plan || file_check_writable("--eval-by-position", path, err);
}

PositionLosses *positions_open(Rank *r) {
    Error err;
    PositionLosses *p = calloc(1, sizeof *p);
    if (p != NULL) {
        p->T = r->run->options.context;
        p->sum = calloc((size_t)p->T, sizeof *p->sum);
        p->losses = malloc((size_t)r->model.shard.tokens * sizeof *p->losses);
    }
    bool ok = p != NULL && p->sum != NULL && p->losses != NULL;
    if (!ok) require(r, error_set(&err, "--eval-by-position: out of memory"), &err);
    return p;
}

void positions_add(PositionLosses *p, Rank *r, int64_t count) {
    const Shard *shard = &r->model.shard;
    for (int64_t b = 0; b < count; b++) {
        const float *loss = p->losses;
        r->device.download(&r->device, p->losses, r->pass.losses + b * shard->tokens,
                           (size_t)shard->tokens * sizeof *p->losses);
        for (int c = 0; c < shard->count; c++)
            for (int64_t i = 0; i < shard->chunk[c].length; i++) p->sum[shard->chunk[c].start + i] += *loss++;
    }
    p->windows += (double)count;
}

static bool write_file(const PositionLosses *p, const char *path, double windows) {
    FILE *file = file_write(path);
    if (file == NULL) return false;
    fprintf(file, "position,loss,windows\n");
    for (int64_t i = 0; i < p->T; i++) fprintf(file, "%lld,%.6g,%.0f\n", (long long)i, p->sum[i] / windows, windows);
    bool ok = ferror(file) == 0;
    return fclose(file) == 0 && ok;
}

void positions_close(PositionLosses *p, Rank *r, bool write) {
    const int piece = 1 << 16; // few values at a time, as comm sums them
    const char *path = r->run->options.eval_by_position;
    double windows = r->model.rank == 0 ? p->windows : 0; // of a replica its first rank tells
    if (write) comm_all_reduce_sum(r->world, &windows, 1);
    for (int64_t i = 0; write && i < p->T; i += piece)
        comm_all_reduce_sum(r->world, p->sum + i, (int)(p->T - i < piece ? p->T - i : piece));
    if (write && leader(r) && !write_file(p, path, windows))
        fprintf(stderr, "train_gpt: --eval-by-position %s: cannot write: %s\n", path, strerror(errno));
    free(p->sum);
    free(p->losses);
    free(p);
}
