// One token mixer, run forward and backward over ranks, by itself: whole tensors go in and come out, in the order of
// positions, for a test to hold against the mixer's definition in double precision.
#ifndef TEST_MIXER_PROBLEM_H
#define TEST_MIXER_PROBLEM_H

#include "test/attention_direct.h"

#include "comm/comm.h"
#include "model/model.h"

typedef struct MixerProblem {
    const char *mixer;      // as in --mixer: "linear:1"
    DeviceKind device;      // CPU; or emulated, or cuda
    int64_t T, B, C;        // tokens of a sequence, sequences, width
    int64_t heads, kv_heads;
    int64_t max_positions;  // 0: T
    int64_t document;       // documents end every so many tokens, in sequence b some b tokens later; 0: there are none
    double weight_std;      // of its matrices; 0: 1 / sqrt(C)
    Exchange exchange;      // of attention's mixers; 0: auto
    uint64_t seed;          // of weights, inputs and gradients
    // Called for every parameter of the layer that is no matrix, and may fill it: biases are 0 and scales 1 otherwise.
    void (*fill)(const Parameter *parameter, float *values);
} MixerProblem;

// What came out. x, d_out and weights are what the device was given: rounded to its storage. Over all ranks.
typedef struct MixerAnswer {
    ModelConfig config;
    ParameterTable table;          // one layer of a llama; the mixer's tensors: table.layer[0].tokens
    int32_t *first;                // (B, T) the first token that each one sees; NULL: no documents
    float *x, *d_out, *out, *d_x;  // (B, T, C)
    float *weights, *gradients;    // (table.total)
    int64_t forward_bytes, backward_bytes; // that the busiest rank sent, as comm counted
    int64_t stated_forward, stated_backward; // that the mixer states, of the same rank
} MixerAnswer;

// Ends the test where the mixer cannot be had. The same problem on other ranks gets the same inputs.
MixerAnswer mixer_run(const MixerProblem *problem, int ranks);
void mixer_free(MixerAnswer *answer);
// Two runs of the same problem on as many ranks give the same bits.
void mixer_expect_same_bits(const MixerProblem *problem, int ranks);

// What generation makes of the same rows: those of sequence 0 come in `piece` at a time (at most 128), by one rank, whose
// cache is full of strange numbers at first. out (T, C); to be freed.
float *mixer_generate(const MixerProblem *problem, int64_t piece);

// The element of the layer's tensors at offset `tensor` in double precision: of parameter `index` of the mixer.
static inline const float *mixer_weight(const MixerAnswer *a, int index) {
    return a->weights + a->table.layer[0].tokens[index];
}
static inline const float *mixer_gradient(const MixerAnswer *a, int index) {
    return a->gradients + a->table.layer[0].tokens[index];
}

// ||got - expected|| / ||expected||, and the largest difference by expected's root mean square.
typedef struct MixerError {
    double norm, largest;
} MixerError;
MixerError mixer_error(const float *got, const double *expected, int64_t count);
// Fails with the problem's name and both numbers where an error is above what is allowed (or is no number).
void mixer_expect(const MixerProblem *problem, int ranks, const char *what, MixerError error, double allowed);
// The same, of a mixer that goes over blocks of `block` tokens and hands a state from one to the next. The error of one
// rank is kept in *of_one; that of more ranks, in norm, must also be about the same.
void mixer_expect_flat(const MixerProblem *problem, int ranks, int64_t block, const char *what, MixerError error,
                       double allowed, MixerError *of_one);

#endif
