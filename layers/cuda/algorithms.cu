// Algorithms by name and by the clock.
#include "layers/cuda/algorithms.h"

#include <stdio.h>
#include <string.h>

#include "layers/cuda/cuda.h"

namespace {

// ---- names ---------------------------------------------------------------------------------------------------------

const char ARROW[] = " -> ";

// What makes an algorithm one of its own.
const struct {
    const char *name;
    cublasLtMatmulAlgoConfigAttributes_t attribute;
    size_t bytes;
} attributes[] = {
    {"algorithm", CUBLASLT_ALGO_CONFIG_ID, 4},
    {"tile", CUBLASLT_ALGO_CONFIG_TILE_ID, 4},
    {"stages", CUBLASLT_ALGO_CONFIG_STAGES_ID, 4},
    {"splits", CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 4},
    {"reduction", CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, 4},
    {"swizzle", CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, 4},
    {"custom", CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, 4},
    {"inner", CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, 2},
    {"cluster", CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, 2},
};

// "algorithm 66, tile 20, ..."; what this version of the library does not know is left out. At most 30 bytes each.
void name_of(char *text, size_t size, const cublasLtMatmulAlgo_t *algorithm) {
    size_t used = 0, written = 0;
    text[0] = '\0';
    for (const auto &a : attributes) {
        uint32_t value = 0; // little-endian: two bytes come to stand in front
        if (cublasLtMatmulAlgoConfigGetAttribute(algorithm, a.attribute, &value, a.bytes, &written) !=
                CUBLAS_STATUS_SUCCESS ||
            used >= size)
            continue;
        used += (size_t)snprintf(text + used, size - used, "%s%s %u", used > 0 ? ", " : "", a.name, value);
    }
}

enum { NAME = 400 };

} // namespace

void algorithm_line(char *line, const char *product, const cublasLtMatmulAlgo_t *algorithm) {
    char name[NAME];
    name_of(name, sizeof name, algorithm);
    snprintf(line, ALGORITHM_LINE, "%.*s%s%s\n", (int)(ALGORITHM_LINE - sizeof ARROW - sizeof name), product, ARROW,
             name);
}

int algorithm_chosen(const char *lines, const char *product, const Proposal *proposals, int count) {
    char wanted[ALGORITHMS_MOST][ALGORITHM_LINE];
    for (int i = 0; i < count; i++) algorithm_line(wanted[i], product, &proposals[i].algo);
    for (const char *line = lines, *end; (end = strchr(line, '\n')) != NULL; line = end + 1)
        for (int i = 0; i < count; i++)
            if (strncmp(line, wanted[i], (size_t)(end + 1 - line)) == 0 && wanted[i][end + 1 - line] == '\0') return i;
    return -1;
}

// ---- the clock -----------------------------------------------------------------------------------------------------

namespace {

enum { ROUNDS = 6 };            // of which the first, in which code is loaded, does not count
const float HOPELESS = 2;       // times the best in one round: not tried again
const float NOTICEABLE = 0.98f; // of the time so far: worth another choice

struct Race {
    int count;
    bool out[ALGORITHMS_MOST];   // cannot be run, or is too slow
    float best[ALGORITHMS_MOST]; // milliseconds
};

// Everyone once, in the order of proposals. What is entered into the stream first keeps the GPU busy while the host
// enters the rest, so that no time between two events is the host's.
void race_once(Race *race, bool counts, cudaStream_t stream, const cudaEvent_t *event, bool (*run)(void *, int),
               void *argument) {
    float least = 0;
    for (int i = 0; i < race->count; i++)
        if (!race->out[i] && run(argument, i)) break;
    CUDA_CHECK(cudaEventRecord(event[0], stream));
    for (int i = 0; i < race->count; i++) {
        if (!race->out[i]) race->out[i] = !run(argument, i);
        CUDA_CHECK(cudaEventRecord(event[i + 1], stream));
    }
    CUDA_CHECK(cudaEventSynchronize(event[race->count]));
    for (int i = 0; counts && i < race->count; i++) {
        float now = 0;
        if (race->out[i]) continue;
        CUDA_CHECK(cudaEventElapsedTime(&now, event[i], event[i + 1]));
        if (race->best[i] == 0 || now < race->best[i]) race->best[i] = now;
        if (least == 0 || now < least) least = now;
    }
    for (int i = 0; counts && i < race->count; i++) race->out[i] |= race->best[i] > HOPELESS * least;
}

} // namespace

int algorithm_fastest(cudaStream_t stream, int count, bool (*run)(void *argument, int proposal), void *argument) {
    Race race = {};
    cudaEvent_t event[ALGORITHMS_MOST + 1];
    race.count = count;
    for (int i = 0; i <= count; i++) CUDA_CHECK(cudaEventCreate(&event[i]));
    for (int round = 0; round < ROUNDS; round++) race_once(&race, round > 0, stream, event, run, argument);
    for (int i = 0; i <= count; i++) CUDA_CHECK(cudaEventDestroy(event[i]));

    int fastest = 0;
    for (int i = 1; i < count; i++) {
        const bool first_is_out = race.out[fastest] && !race.out[i];
        if (!race.out[i] && (first_is_out || race.best[i] < NOTICEABLE * race.best[fastest])) fastest = i;
    }
    return fastest;
}
