// The tasks by name, and what they share: random numbers, and targets.
#include "dataloader/task.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "dataloader/task_kind.h"

static const TaskKind *const kinds[] = {&task_recall, &task_copy, &task_listops};
static const int64_t MOST_DISTANCE = INT32_MAX;

// ---- random numbers -------------------------------------------------------------------------------------------------

int64_t draw_below(Draw *draw, int64_t bound) {
    return (int64_t)random_below(draw->seed, draw->stream, draw->drawn++, (uint64_t)bound);
}

static void swap(int32_t *numbers, int64_t i, int64_t j) {
    int32_t kept = numbers[i];
    numbers[i] = numbers[j];
    numbers[j] = kept;
}

void draw_order(Draw *draw, int64_t count, int32_t *numbers, int32_t *others) { // Fisher and Yates
    for (int64_t i = count - 1; i > 0; i--) {
        int64_t j = draw_below(draw, i + 1);
        swap(numbers, i, j);
        if (others != NULL) swap(others, i, j);
    }
}

// ---- a task by its text ---------------------------------------------------------------------------------------------

static bool unknown(const char *text, Error *err) {
    char shown[40];
    int n = snprintf(shown, sizeof shown, "%s", text);
    for (char *c = shown; *c != '\0'; c++) // messages are one line
        if (iscntrl((unsigned char)*c)) *c = '?';
    return error_usage(err, "--task: \"%s%s\" is not one of recall:D, copy:D and listops, with D tokens", shown,
                       n < (int)sizeof shown ? "" : "...");
}

bool task_parse(Task *task, const char *text, Error *err) {
    size_t length = strcspn(text, ":");
    *task = (Task){0};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strlen(kinds[i]->name) == length && memcmp(kinds[i]->name, text, length) == 0) task->kind = kinds[i];
    if (task->kind == NULL) return unknown(text, err);
    const TaskKind *kind = task->kind;
    const char *digits = text[length] == ':' ? text + length + 1 : NULL;
    if (digits == NULL) {
        if (kind->least_distance > 0)
            return error_usage(err, "--task %s: give the distance in tokens, as in %s:64", kind->name, kind->name);
    } else {
        bool number = *digits != '\0' && digits[strspn(digits, "0123456789")] == '\0';
        if (!number || kind->least_distance == 0) return unknown(text, err);
        errno = 0;
        task->distance = strtoll(digits, NULL, 10);
        if (errno != 0 || task->distance < kind->least_distance || task->distance > MOST_DISTANCE)
            return error_usage(err, "--task %s: the distance is out of range: give %lld to %lld tokens", kind->name,
                               (long long)kind->least_distance, (long long)MOST_DISTANCE);
    }
    if (digits == NULL) snprintf(task->text, sizeof task->text, "%s", kind->name);
    else snprintf(task->text, sizeof task->text, "%s:%lld", kind->name, (long long)task->distance);
    return true;
}

int64_t task_vocabulary(const Task *task) { return task->kind->vocabulary; }
double task_chance(const Task *task) { return 1.0 / (double)task->kind->choices; }
int64_t task_answers(const Task *task, int64_t context) { return task->kind->answers(task->distance, context); }

bool task_check_context(const Task *task, int64_t context, Error *err) {
    int64_t least = task->kind->least_context(task->distance);
    return context >= least ||
           error_usage(err, "--context %lld is too short for --task %s: its windows need %lld tokens",
                       (long long)context, task->text, (long long)least);
}

uint64_t task_fingerprint(const Task *task) { // FNV-1a (Fowler, Noll, Vo) of the text
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (const char *c = task->text; *c != '\0'; c++) hash = (hash ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    return hash;
}

// ---- a window -------------------------------------------------------------------------------------------------------

void task_window(const Task *task, TaskSplit split, uint64_t seed, uint64_t index, int64_t context, int32_t *inputs,
                 int32_t *targets) {
    uint64_t stream = split == TASK_TRAINING ? RANDOM_STREAM_TASK : RANDOM_STREAM_TASK_VALIDATION;
    Draw draw = {.seed = seed, .stream = (index + 1) << 32 | stream};
    for (int64_t t = 0; t < context; t++) targets[t] = TASK_NOT_ASKED;
    task->kind->make(&draw, task->distance, context, inputs, targets);
}
