// What makes of train_gpt a program that tells, before a rank gives up its memory, whether the classifier's padding has
// stayed zero (test/test_vocabulary.c): the linker passes the call of rank_close through here (--wrap, in the
// Makefile).
//
// A line on standard error for each rank: "padding of N elements, M of them in my slice: K bytes are not zero".
#include <stdio.h>
#include <stdlib.h>

#include "train_gpt.h"

void __real_rank_close(Rank *r);
void __wrap_rank_close(Rank *r);

static long long not_zero(Device *device, const void *memory, size_t bytes) {
    unsigned char *host = malloc(bytes + 1);
    long long count = 0;
    if (host == NULL) abort();
    device->download(device, host, memory, bytes);
    for (size_t i = 0; i < bytes; i++) count += host[i] != 0;
    free(host);
    return count;
}

void __wrap_rank_close(Rank *r) {
    const ParameterTable *table = &r->run->table;
    Device *d = &r->device;
    int64_t gap = table->gap_begin, count = table->gap_end - gap;
    int64_t begin = gap > r->slice_begin ? gap : r->slice_begin;
    int64_t end = table->gap_end < r->slice_end ? table->gap_end : r->slice_end;
    int64_t mine = begin < end ? end - begin : 0, place = mine > 0 ? begin - r->slice_begin : 0;
    long long bytes = not_zero(d, at(d, r->model.weights, gap), (size_t)count * d->element_bytes);
    bytes += not_zero(d, r->model.gradients + gap, (size_t)count * sizeof(float));
    const float *slices[] = {r->master, r->exp_avg, r->exp_avg_sq};
    for (int i = 0; i < 3; i++) bytes += not_zero(d, slices[i] + place, (size_t)mine * sizeof(float));
    fprintf(stderr, "padding of %lld elements, %lld of them in my slice: %lld bytes are not zero\n", (long long)count,
            (long long)mine, bytes);
    __real_rank_close(r);
}
