// Gathers logits from the ranks of a sequence, and writes them and the gradients as safetensors.
#include "checkpoint/dump.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "sequence/sharding.h"
#include "checkpoint/parameter_file.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/sha256.h"

static bool path_in(const char *folder, const char *name, char *path, size_t size, Error *err) {
    if (mkdir(folder, 0777) != 0 && errno != EEXIST)
        return error_set(err, "--dump %s: cannot make the folder: %s", folder, strerror(errno));
    if ((size_t)snprintf(path, size, "%s/%s", folder, name) >= size)
        return error_set(err, "--dump %s: the path is too long", folder);
    return true;
}

static bool write_logits(const char *folder, const float *logits, int64_t B, int64_t T, int64_t V, Error *err) {
    char path[1200];
    const TensorDeclaration declaration = {"logits", 3, {B, T, V}};
    if (!path_in(folder, "logits.safetensors", path, sizeof path, err)) return false;
    SafetensorsWriter *writer = safetensors_create(path, &declaration, 1, err);
    if (writer == NULL) return false;
    if (safetensors_write(writer, logits, B * T * V, err)) return safetensors_finish(writer, err);
    safetensors_abandon(writer);
    return false;
}

// Rows of one rank's shard to their places in the whole (B, T, V).
static void place(float *whole, const float *local, const Shard *shard, int64_t B, int64_t T, int64_t V) {
    for (int64_t b = 0; b < B; b++) {
        for (int i = 0; i < shard->count; i++) {
            Chunk chunk = shard->chunk[i];
            memcpy(whole + (b * T + chunk.start) * V, local, (size_t)(chunk.length * V) * sizeof(float));
            local += chunk.length * V;
        }
    }
}

bool dump_logits(const char *folder, Comm *sequence, const float *local, int64_t B, int64_t T, int64_t V, Error *err) {
    int ranks = comm_size(sequence), me = comm_rank(sequence);
    Shard mine = shard_of(T, ranks, me);
    if (me != 0) {
        CommRequest request =
            comm_exchange_begin(sequence, local, (size_t)(B * mine.tokens * V) * sizeof(float), 0, NULL, 0, 0);
        comm_wait(sequence, &request);
        return true;
    }
    float *whole = (float *)malloc((size_t)(B * T * V) * sizeof(float));
    float *arriving =
        (float *)malloc((size_t)(B * (mine.tokens + 2) * V) * sizeof(float)); // shards differ by at most 2 tokens
    bool ok = whole != NULL && arriving != NULL;
    if (!ok)
        error_set(err, "--dump %s: out of memory for logits of %lld x %lld x %lld", folder, (long long)B, (long long)T,
                  (long long)V);
    if (ok) place(whole, local, &mine, B, T, V);
    for (int rank = 1; rank < ranks && ok; rank++) {
        Shard theirs = shard_of(T, ranks, rank);
        CommRequest request = comm_exchange_begin(sequence, NULL, 0, rank, arriving,
                                                  (size_t)(B * theirs.tokens * V) * sizeof(float), rank);
        comm_wait(sequence, &request);
        place(whole, arriving, &theirs, B, T, V);
    }
    ok = ok && write_logits(folder, whole, B, T, V, err);
    free(whole);
    free(arriving);
    return ok;
}

bool dump_gradients(const char *folder, const ParameterTable *table, const float *gradients, Error *err) {
    char path[1200], unused_sum[SHA256_HEX_CHARS];
    if (!path_in(folder, "gradients.safetensors", path, sizeof path, err)) return false;
    return parameter_file_write(path, table, gradients, unused_sum, err);
}
