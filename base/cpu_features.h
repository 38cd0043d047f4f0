// Which instruction set the vectorised files run with, found once from the processor (or SIMD=... in the environment,
// which tests use to run every copy that the processor can).
#ifndef BASE_CPU_FEATURES_H
#define BASE_CPU_FEATURES_H

#include <stdint.h>

typedef enum SimdLevel { SIMD_PORTABLE, SIMD_AVX2, SIMD_AVX512 } SimdLevel;

SimdLevel simd_level(void);
const char *simd_level_name(SimdLevel level);
int cpu_count(void);            // processors this process may run on
int64_t memory_available(void); // bytes that can be used without swapping, by the kernel's and the cgroup's account

#endif
