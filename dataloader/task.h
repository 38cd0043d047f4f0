// Synthetic tasks: windows made by the program, of which only some tokens have an answer.
//
//   recall:D   associative recall (Arora et al., "Zoology", 2023): keys are told with their values, and asked D tokens
//              later (dataloader/task_recall.c)
//   copy:D     random symbols; the answer is the one D tokens before (dataloader/task_copy.c)
//   listops    nested MAX, MIN, MED and SM of digits (Nangia and Bowman 2018; dataloader/task_listops.c)
//
// A window is a pure function of the task, the split, the seed, its number and its length T, and no other window knows
// anything of it. Every window of T tokens has as many answers.
#ifndef DATALOADER_TASK_H
#define DATALOADER_TASK_H

#include <stdint.h>

#include "base/error.h"

enum { TASK_NOT_ASKED = -1 }; // a target that does not count

typedef struct Task {
    const struct TaskKind *kind;
    int64_t distance; // D, in tokens; 0: the task has none
    char text[40];    // "recall:256"
} Task;

typedef enum TaskSplit { TASK_TRAINING, TASK_VALIDATION } TaskSplit; // they share no window, whatever their seeds

bool task_parse(Task *task, const char *text, Error *err); // a usage error says which tasks there are
int64_t task_vocabulary(const Task *task);                 // of all distances
// How often who sees the question alone is right: once in 8 times in recall, in 16 in copy, exactly; in 10 in listops,
// but more often for who knows which digits are frequent.
double task_chance(const Task *task);
bool task_check_context(const Task *task, int64_t context, Error *err); // that a window of T tokens has an answer
int64_t task_answers(const Task *task, int64_t context);                // of a window of T tokens
uint64_t task_fingerprint(const Task *task);

// Window number `index`: T inputs, and T targets, TASK_NOT_ASKED where nothing is asked.
void task_window(const Task *task, TaskSplit split, uint64_t seed, uint64_t index, int64_t context, int32_t *inputs,
                 int32_t *targets);

#endif
