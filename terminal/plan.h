// What a run will need, before it begins: bytes by buffer, bytes sent by exchange, floating-point operations.
#ifndef TERMINAL_PLAN_H
#define TERMINAL_PLAN_H

#include <stdio.h>

#include "attention/attention.h"
#include "base/arena.h"
#include "model/parameters.h"

#ifdef __cplusplus
extern "C" {
#endif

// Keys that a query sees in the mean, all layers together: T/2 in a layer that sees all, fewer in one with a window.
// Documents, which are the data's, are not known here.
double visible_keys(const ModelConfig *config, int64_t context);
// Floating-point operations of one token's training step: 6 for each parameter in matrix products (2 forward, 4
// backward), and for attention 14 H D for each key that a query sees (2 products forward and 5 backward). No
// recomputation is counted.
double flops_per_token(const ModelConfig *config, const ParameterTable *table, double visible_keys);

// The whole plan. `rank_arena` is one rank's; `all_ranks` the bytes of all. `passes` micro-batches make a step.
void print_plan(FILE *out, const ModelConfig *config, const ParameterTable *table, const AttentionConfig *attention,
                const Arena *rank_arena, size_t all_ranks, int64_t batch, int64_t passes);

#ifdef __cplusplus
}
#endif
#endif
