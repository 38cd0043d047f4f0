// A gather of 2P states, and which of them a chunk goes on from.
#include "mixer/states.h"

void states_gather(const Mixing *m, void *states, size_t bytes) {
    comm_gather_states(m->model->sequence, states, 2 * bytes, m->model->requests);
}

void states_gather_begin(const Mixing *m, void *states, size_t bytes) {
    size_t each[STATES_MOST / 2];
    for (int rank = 0; rank < m->model->ranks; rank++) each[rank] = 2 * bytes;
    comm_all_gather_begin(m->model->sequence, states, each, m->model->requests);
}

void states_gather_wait(const Mixing *m) { comm_all_gather_wait(m->model->sequence, m->model->requests); }

int states_before(const Mixing *m, int i, bool behind, int place[STATES_MOST], int64_t *length) {
    const Model *model = m->model;
    int ranks = model->ranks, chunks = 2 * ranks, count = 0;
    int64_t start = model->shard.chunk[i].start;
    for (int step = 0; step < chunks; step++) {
        int number = behind ? chunks - 1 - step : step; // of a chunk of the 2P, by position
        int rank = number < ranks ? number : chunks - 1 - number, half = number >= ranks;
        Shard its = shard_of(model->context, ranks, rank);
        if (half >= its.count) continue; // the last rank's second, which is part of its first
        int64_t other = its.chunk[half].start;
        if (behind ? other <= start : other >= start) continue;
        if (length != NULL) length[count] = its.chunk[half].length;
        place[count++] = 2 * rank + half;
    }
    return count;
}
