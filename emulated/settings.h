// The environment variables, read once (README.md lists them), and random numbers that depend on EMULATED_SEED.
#ifndef EMULATED_SETTINGS_H
#define EMULATED_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

struct Settings {
    uint64_t seed;
    bool races;  // EMULATED_RACES=1: look for races in shared memory
    bool abort;  // EMULATED_ABORT=1: abort() after a report
    bool eager;  // EMULATED_STREAMS=eager: run work when it is enqueued
    bool banks;  // EMULATED_BANKS=1: count conflicts of shared memory's banks
    int devices; // EMULATED_GPUS
    int arch;    // EMULATED_ARCH: compute capability times 10
};
const Settings *settings();
void settings_read_again(); // for tests; no other thread may be using the runtime

// Of this host thread's own sequence. random_below: 0 to bound - 1.
uint32_t random_bits();
static inline uint32_t random_below(uint32_t bound) { return (uint32_t)((uint64_t)random_bits() * bound >> 32); }

#endif
