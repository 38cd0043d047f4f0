// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
//
// A number is a pure function of (seed, stream, index): no state to share or save, and the same numbers whatever the
// ranks and threads that ask for them.
#ifndef BASE_RANDOM_H
#define BASE_RANDOM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Philox4 {
    uint32_t word[4];
} Philox4;

// Who draws: the stream keeps users of one seed apart.
enum {
    RANDOM_STREAM_DATA = 1,
    RANDOM_STREAM_SAMPLE = 2,
    RANDOM_STREAM_TASK = 3,
    RANDOM_STREAM_TASK_VALIDATION = 4,
    RANDOM_STREAM_PARAMETERS = 1000 /* + tensor */
};

Philox4 philox4x32(uint64_t seed, uint64_t stream, uint64_t index);
double random_uniform(uint64_t seed, uint64_t stream, uint64_t index);                 // [0, 1)
double random_normal(uint64_t seed, uint64_t stream, uint64_t index);                  // mean 0, variance 1
uint64_t random_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound); // [0, bound), bias < bound/2^64

// A permutation of 0..n-1 that needs no table (cycle-walking Feistel network over the next even power of two):
// where `index` goes under (seed, stream). Bijective for every n >= 1.
uint64_t random_permute(uint64_t seed, uint64_t stream, uint64_t n, uint64_t index);

#ifdef __cplusplus
}
#endif
#endif
