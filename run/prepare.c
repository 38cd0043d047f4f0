// Opens the run, plans its memory, measures the machine, and says what will be done.
#include "run/prepare.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/cpu_features.h"
#include "run/mixing.h"
#include "run/plan.h"
#include "run/positions.h"
#include "terminal/output.h"
#include "terminal/report.h"
#include "train_gpt.h"

// What a rank keeps in the host's memory beside its device's: tokens on their way, and uploads. On the CPU both are the
// same memory, and tokens a few bytes beside the kilobytes that each of them takes there.
static void print_host(const Run *run, const Rank *r) {
    size_t uploads = device_host_bytes(run->devices.kind);
    char text[32];
    if (uploads == 0) return;
    format_bytes(text, (double)(uploads + 3 * (size_t)r->model.shard.tokens * sizeof(int32_t)));
    printf("of the host's memory, each rank: %s\n", text);
}

// Adds up the memory of this process; prints the plan where asked, and refuses what cannot fit. Leaves rank 0's list of
// buffers in *first. Opens no device: only the size of an element is needed to add up.
static bool plan(const Run *run, bool speaks, Arena *first, Error *err) {
    const Options *o = &run->options;
    const Phase *whole = run_whole(run);
    Rank *r = calloc(1, sizeof(Rank));
    size_t *bytes = calloc((size_t)run->ranks_here, sizeof(size_t)), all = 0, generator = 0;
    bool ok = r != NULL && bytes != NULL;
    if (ok) {
        r->run = run;
        r->device.element_bytes = run->devices.element_bytes;
        generator = bytes_of_generator(run, &r->device);
        for (int rank = run->ranks_here - 1; rank >= 0; rank--) {
            rank_bytes(r, rank);
            bytes[rank] = r->arena.used;
            all += bytes[rank];
        }
        *first = r->arena;
        DevicesNeed tightest = devices_need(&run->devices, bytes, generator);
        bool fits = tightest.have < 0 || tightest.need < tightest.have;
        if (speaks && (o->plan || !fits))
            print_plan(stdout, &run->config, &run->table, &whole->attention, run->attends,
                       run->recompute == RECOMPUTE_BLOCK, first, all, o->batch, o->batch / o->dp / whole->micro_batch);
        if (speaks && o->plan) print_host(run, r);
        if (speaks && o->plan && tightest.have < 0)
            printf(
                "memory of a GPU: not known, there is none here; the one to run on needs at least what a rank takes\n");
        if (!fits && !o->plan) ok = devices_too_small(&tightest, o->sample_tokens, err);
    } else {
        error_set(err, "out of memory");
    }
    if (r != NULL) pass_free(&r->pass);
    free(r);
    free(bytes);
    return ok;
}

bool prepare(Run *run, bool speaks, Error *err) {
    Arena arena;
    if (!run_open(run, speaks, err) || !mixing_check(run, err)) return false;
    if (speaks && !positions_check(run, err)) return false;
    if (speaks) options_print_command(&run->options, stdout);
    output_flush();
    if (!plan(run, speaks, &arena, err)) return false;
    if (run->options.plan) return true;
    int busy = cpu_count(), ranks = run->ranks_here; // of the processors that will work; every rank has a thread
    if (busy > run->threads && busy > ranks) busy = run->threads > ranks ? run->threads : ranks;
    // By the process that reports, while the others wait for it: at the same time they would measure each other.
    if (speaks && !devices_measure(&run->devices, busy, err)) return false;
    if (speaks) run_print_header(run, stdout, &arena);
    output_flush();
    return true;
}
