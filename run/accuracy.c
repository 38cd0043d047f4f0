// Looks for the largest logit of each row that is asked.
#include "run/accuracy.h"

#include <stdlib.h>

void accuracy_lay_out(Accuracy *accuracy, int64_t classifier_rows, int64_t V, Arena *arena) {
    accuracy->room = arena_take(arena, "logits of answers", (size_t)(classifier_rows * V) * sizeof(float));
}

bool accuracy_open(Accuracy *accuracy, int64_t classifier_rows, int64_t V, Error *err) {
    accuracy->logits = malloc((size_t)(classifier_rows * V) * sizeof(float));
    accuracy->targets = malloc((size_t)classifier_rows * sizeof(int32_t));
    if (accuracy->logits != NULL && accuracy->targets != NULL) return true;
    return error_set(err, "out of memory for the logits of %lld answers", (long long)classifier_rows);
}

void accuracy_close(Accuracy *accuracy) {
    free(accuracy->logits);
    free(accuracy->targets);
}

// Where the target ties with another token the model has not decided: the first of them is taken for its answer.
static bool is_right(const float *logits, int32_t target, int64_t V) {
    int64_t best = 0;
    for (int64_t token = 1; token < V; token++)
        if (logits[token] > logits[best]) best = token;
    return best == target;
}

void accuracy_add(Accuracy *accuracy, Device *device, const Pass *pass, int64_t first, int64_t rows, int64_t V,
                  int64_t Vp) {
    int64_t asked = 0;
    if (rows <= 0) return;
    device->download(device, accuracy->targets, pass->targets + first, (size_t)rows * sizeof(int32_t));
    for (int64_t row = 0; row < rows; row++) {
        int32_t target = accuracy->targets[row];
        if (target < 0) continue;
        device->to_float(device, accuracy->room + asked * V, at(device, pass->logits, row * Vp), V);
        accuracy->targets[asked++] = target;
    }
    if (asked == 0) return;
    device->download(device, accuracy->logits, accuracy->room, (size_t)(asked * V) * sizeof(float));
    for (int64_t i = 0; i < asked; i++) accuracy->right += is_right(accuracy->logits + i * V, accuracy->targets[i], V);
}

double accuracy_share(Accuracy *accuracy, Comm *world, double answers) {
    double right = (double)accuracy->right;
    accuracy->right = 0;
    comm_all_reduce_sum(world, &right, 1);
    return right / answers;
}
