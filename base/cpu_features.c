// Asks the processor, and the kernel and cgroup, what this process may use.
#include "base/cpu_features.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static SimdLevel best_of_processor(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return SIMD_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return SIMD_AVX2;
#endif
    return SIMD_PORTABLE;
}

const char *simd_level_name(SimdLevel level) {
    static const char *const names[] = {"portable", "avx2", "avx512"};
    return names[level];
}

SimdLevel simd_level(void) {
    SimdLevel best = best_of_processor();
    const char *wanted = getenv("SIMD");
    if (wanted == NULL) return best;
    for (SimdLevel level = SIMD_PORTABLE; level < best; level++)
        if (strcmp(wanted, simd_level_name(level)) == 0) return level;
    return best;
}

int cpu_count(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    return CPU_COUNT(&set);
}

// The number after `key` in a file of "key number" lines (a bare number where key is ""), or -1.
static int64_t number_in_file(const char *path, const char *key) {
    FILE *file = fopen(path, "r");
    if (file == NULL) return -1;
    char line[256];
    long long value = -1;
    while (value < 0 && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), "%lld", &value) != 1) value = -1;
    fclose(file);
    return value;
}

int64_t memory_available(void) {
    int64_t kilobytes = number_in_file("/proc/meminfo", "MemAvailable:");
    int64_t available = kilobytes < 0 ? INT64_MAX : kilobytes * 1024;
    int64_t limit = number_in_file("/sys/fs/cgroup/memory.max", ""); // "max", which is no number, where unlimited
    int64_t used = number_in_file("/sys/fs/cgroup/memory.current", "");
    if (limit >= 0 && used >= 0 && limit - used < available) available = limit > used ? limit - used : 0;
    return available;
}
