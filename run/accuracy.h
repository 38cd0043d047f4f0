// Synthetic tasks: the share of answers for which the model gives the right token the largest logit.
//
// The logits of the rows that are asked come to the host, where the largest is looked for: at most a few megabytes a
// pass, in evaluation alone.
#ifndef RUN_ACCURACY_H
#define RUN_ACCURACY_H

#include "base/arena.h"
#include "base/error.h"
#include "comm/comm.h"
#include "model/model.h"

typedef struct Accuracy {
    float *room;      // device: (classifier_rows, V) logits in fp32
    float *logits;    // host: the same
    int32_t *targets; // host: (classifier_rows)
    int64_t right;    // answers so far
    bool counts;      // now
} Accuracy;

void accuracy_lay_out(Accuracy *accuracy, int64_t classifier_rows, int64_t V, Arena *arena);
bool accuracy_open(Accuracy *accuracy, int64_t classifier_rows, int64_t V, Error *err); // the host's part
void accuracy_close(Accuracy *accuracy);

// Counts the right answers among `rows` rows from `first` on of a pass whose pass->logits are theirs. Waits for the
// device.
void accuracy_add(Accuracy *accuracy, Device *device, const Pass *pass, int64_t first, int64_t rows, int64_t V,
                  int64_t Vp);
// The share of all ranks' `answers` that were right, and begins anew. Collective.
double accuracy_share(Accuracy *accuracy, Comm *world, double answers);

#endif
