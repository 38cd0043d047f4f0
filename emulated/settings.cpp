// What the environment asks of the emulator.
#include "emulated/settings.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static Settings the_settings;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint64_t threads_seen;
static uint64_t readings;

static bool is(const char *name, const char *value) {
    const char *found = getenv(name);
    return found != NULL && strcmp(found, value) == 0;
}

void settings_read_again() {
    const char *seed = getenv("EMULATED_SEED"), *devices = getenv("EMULATED_GPUS");
    the_settings.seed = seed != NULL ? strtoull(seed, NULL, 10) : 1;
    the_settings.races = is("EMULATED_RACES", "1");
    the_settings.abort = is("EMULATED_ABORT", "1");
    the_settings.eager = is("EMULATED_STREAMS", "eager");
    the_settings.banks = is("EMULATED_BANKS", "1");
    const char *arch = getenv("EMULATED_ARCH");
    the_settings.arch = arch != NULL ? atoi(arch) : 80;
    if (the_settings.arch != 80 && the_settings.arch != 90) {
        fprintf(stderr, "EMULATED_ARCH=%s: the emulated GPU is of compute capability 8.0 or 9.0; say 80 or 90\n", arch);
        _exit(1);
    }
    const int count = devices != NULL ? atoi(devices) : 64;
    the_settings.devices = count < 0 ? 0 : count > 64 ? 64 : count;
    __atomic_store_n(&threads_seen, 0, __ATOMIC_RELAXED);
    __atomic_add_fetch(&readings, 1, __ATOMIC_RELAXED);
}

const Settings *settings() {
    pthread_once(&once, settings_read_again);
    return &the_settings;
}

// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
uint32_t random_bits() {
    static __thread uint64_t state, reading;
    const uint64_t now = __atomic_load_n(&readings, __ATOMIC_RELAXED);
    if (__builtin_expect(reading != now || now == 0, 0)) {
        const uint64_t seed = settings()->seed;
        reading = __atomic_load_n(&readings, __ATOMIC_RELAXED);
        state = (seed * 1000003 + __atomic_fetch_add(&threads_seen, 1, __ATOMIC_RELAXED)) * 0x9e3779b97f4a7c15u;
    }
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}
