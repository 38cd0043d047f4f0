// What tests of the whole program look at after a run: the losses in its log, and tensors in files, compared number
// by number.
#ifndef TEST_COMPARE_H
#define TEST_COMPARE_H

#include "test/program.h"

#include <math.h>

#include "base/json.h"
#include "checkpoint/safetensors.h"

enum { LOG_MAX_STEPS = 4096 };

typedef struct Log {
    int count;
    int64_t step[LOG_MAX_STEPS];
    double loss[LOG_MAX_STEPS], gradient_norm[LOG_MAX_STEPS];
    double validation_loss; // the last; NaN: none
    double accuracy;        // likewise
} Log;

// Reads the file that --log wrote: a JSON object a line.
Log read_log(const char *path);

Safetensors *open_tensors(const char *path);

const Tensor *find_tensor(const Safetensors *file, const char *name);

float *tensor_values(const Tensor *tensor); // to be freed

// How far `got` is from `expected`: ||got - expected|| / ||expected||, and the same of the largest elements. The norm
// is not a number where either holds one, and infinite where only `expected` is zero.
typedef struct Distance {
    double norm, largest;
} Distance;

Distance distance_of(const float *got, const float *expected, int64_t count);

// A distance's limits.
typedef struct Tolerance {
    double norm, largest;
} Tolerance;

void assert_near(const char *what, Distance distance, Tolerance tolerance);

// Holds every tensor NAME of `got` against PREFIX + NAME of `expected`; both must have the same ones. Returns the
// largest distances.
Distance compare_tensors(const Safetensors *got, const Safetensors *expected, const char *prefix, Tolerance tolerance);

Distance compare_files(const char *got_path, const char *expected_path, Tolerance tolerance);

void assert_same_bytes(const char *path_a, const char *path_b);

#endif
