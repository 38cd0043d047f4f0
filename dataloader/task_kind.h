// What a synthetic task is made of. For the files task*.c alone.
#ifndef DATALOADER_TASK_KIND_H
#define DATALOADER_TASK_KIND_H

#include <stddef.h>

#include "dataloader/task.h"

// The numbers that a window is drawn from, one after the other.
typedef struct Draw {
    uint64_t seed, stream, drawn;
} Draw;

int64_t draw_below(Draw *draw, int64_t bound); // evenly from 0 to bound - 1
// Puts `count` numbers into another order, every order as likely; a second array of them goes along, or is NULL.
void draw_order(Draw *draw, int64_t count, int32_t *numbers, int32_t *others);

typedef struct TaskKind {
    const char *name;
    int64_t vocabulary, choices; // of tokens; of answers, to who knows the question alone
    int64_t least_distance;      // 0: the task has no distance
    int64_t (*least_context)(int64_t distance);
    int64_t (*answers)(int64_t distance, int64_t context);
    // Fills T inputs; targets are TASK_NOT_ASKED before.
    void (*make)(Draw *draw, int64_t distance, int64_t context, int32_t *inputs, int32_t *targets);
} TaskKind;

extern const TaskKind task_recall, task_copy, task_listops;

#endif
