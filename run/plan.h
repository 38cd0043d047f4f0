// What a run will need, before it begins: bytes by buffer, bytes sent by exchange, floating-point operations.
#ifndef RUN_PLAN_H
#define RUN_PLAN_H

#include <stdio.h>

#include "attention/attention.h"
#include "base/arena.h"
#include "model/parameters.h"

// The whole plan. `rank_arena` is one rank's; `all_ranks` the bytes of all. `passes` micro-batches make a step.
// attends: some layer uses attention's exchange. replayed: layers mix once more in backward (--recompute block).
void print_plan(FILE *out, const ModelConfig *config, const ParameterTable *table, const AttentionConfig *attention,
                bool attends, bool replayed, const Arena *rank_arena, size_t all_ranks, int64_t batch,
                int64_t passes);

#endif
