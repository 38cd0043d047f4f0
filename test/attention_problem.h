// Attention problems for tests: random tensors, their answer by attention over the whole sequence in double precision
// (written here once more from its definition), and a run of the real thing on ranks, on any device.
//
// For devices that store bf16 a problem's inputs are bf16 numbers, and beside the answer there is what "plain bf16"
// makes of it: double precision, but rounded to bf16 where tensor cores and memory leave no choice, which is P and dS
// before the products they go into, and all that is stored (out, from which delta comes, dQ, dK, dV). Vanilla attention
// stores the scores and the gradients of probabilities too.
#ifndef TEST_ATTENTION_PROBLEM_H
#define TEST_ATTENTION_PROBLEM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention/attention.h"
#include "base/random.h"
#include "test/bf16.h"
#include "test/memory.h"
#include "test/scratch.h"

// ---- a problem, and its answer ------------------------------------------------------------------

enum { OUT, LOG_SUM_EXP, D_Q, D_K, D_V, RESULTS };
static const char *const result_names[RESULTS] = {"out", "log-sum-exp", "dQ", "dK", "dV"};

typedef struct Problem { // all tensors whole: (B, T, H, D), (B, T, KV, D), rows (B, H, T)
    AttentionShape shape;
    int64_t T;
    Visibility visibility; // `first`, on the host, belongs to the test
    double largest_score, largest_gap; // between the scores of one row
    float *q, *k, *v, *d_out;
    double *answer[RESULTS];
    double *plain[RESULTS], *vanilla[RESULTS]; // NULL but in a bf16 problem
} Problem;

// Memory full of a value that is not a number, so that nothing is right by chance.
void *unset_memory(size_t bytes);

int64_t result_count(const Problem *p, int result);

typedef enum Rounding { EXACT, PLAIN, VANILLA } Rounding;
double kept(double x, Rounding rounding, Rounding from); // rounded from this kind on

Problem make_problem_seen(int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D, float outlier,
                          Visibility visibility);
Problem make_problem(int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D, float outlier);

Problem make_bf16_problem(int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D, float outlier);

void free_problem(Problem *p);

// ---- running it on ranks ------------------------------------------------------------------------

enum { MOST_RANKS = 8 };

typedef void MakeDevice(Device *device, int rank);

void fast_device(Device *device, int rank);
void reference_device(Device *device, int rank);

typedef struct Run {
    const Problem *problem;
    AttentionConfig config;
    MakeDevice *make_device;
    int repeats;            // of forward and backward, with the same scratch
    bool collectives;       // by those of the device (comm_on_device)
    Visibility visibility;  // the problem's; with `least`, which is the run's own
    float *result[RESULTS]; // whole tensors, filled in by all ranks
    AttentionBytes sent[MOST_RANKS];
    bool planned_right[MOST_RANKS];
} Run;

// A buffer of the device, full of values that are no numbers.
typedef struct Buffer {
    void *data;
    size_t bytes;
} Buffer;

typedef struct Local { // one rank's tensors; q, k, v and their gradients stand in fused buffers, as in a model
    Buffer fused, d_fused, out, d_out, log_sum_exp;
    TokenView q, k, v, d_q, d_k, d_v, out_view, d_out_view;
} Local;

// ulysses: 0 for what attention_resolve chooses.
Run run_repeated(const Problem *problem, MakeDevice *make_device, int ranks, Exchange exchange, int ulysses,
                 int repeats, bool collectives);

Run run_on(const Problem *problem, MakeDevice *make_device, int ranks, Exchange exchange, int ulysses);

void free_run(Run *run);

const char *run_title(const Run *run);

// ---- the ways to run it, and how good the results are ----------------------------------------------

// Every way in which P ranks can serve the problem, in turn: next_way returns false after the last.
typedef struct Way {
    Exchange exchange;
    int ulysses;
} Way;

bool next_way(const Problem *problem, int P, Way *way);

typedef struct Deviation {
    double rms, max;
} Deviation; // from the answer, relative to the answer's root mean square

Deviation deviation(const Run *run, int result);

void check_bytes(const Run *run);

void assert_same_bits(const Run *a, const Run *b);

#endif
