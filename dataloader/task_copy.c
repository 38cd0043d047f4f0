// copy:D: symbols drawn evenly, and everywhere the question which one stood D tokens before. Nothing but that token
// tells it, so who cannot see it is right once in 16 times.
#include "dataloader/task_kind.h"

enum { SYMBOLS = 16 };

static int64_t least_context(int64_t distance) { return distance + 1; }
static int64_t answers(int64_t distance, int64_t context) { return context - distance; }

static void make(Draw *draw, int64_t distance, int64_t context, int32_t *inputs, int32_t *targets) {
    for (int64_t t = 0; t < context; t++) {
        inputs[t] = (int32_t)draw_below(draw, SYMBOLS);
        if (t >= distance) targets[t] = inputs[t - distance];
    }
}

const TaskKind task_copy = {"copy", SYMBOLS, SYMBOLS, 1, least_context, answers, make};
