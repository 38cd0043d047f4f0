// The choice among cuBLASLt's algorithms for one product: what one is called in a text, which one a text names, and
// which is the fastest here. The library proposes several, and guesses which is best; a clock knows better.
#ifndef LAYERS_CUDA_ALGORITHMS_H
#define LAYERS_CUDA_ALGORITHMS_H

#include <cublasLt.h>

enum {
    ALGORITHMS_MOST = 16,  // that the library is asked for
    ALGORITHM_LINE = 1024, // bytes of a line, "PRODUCT -> ALGORITHM"
};

typedef cublasLtMatmulHeuristicResult_t Proposal; // an algorithm, and what it needs

// Of the proposals the one that the first fitting line of `lines` says this product is to have; -1: none of them. Only
// what the library itself proposes can come of a text, however damaged that is.
int algorithm_chosen(const char *lines, const char *product, const Proposal *proposals, int count);
// The line that says so, with its newline, into line[ALGORITHM_LINE].
void algorithm_line(char *line, const char *product, const cublasLtMatmulAlgo_t *algorithm);

// Of the proposals the one that takes least time, by running each a few times; `run` enters one run into the stream.
// Waits for the stream. A proposal that cannot be run is none. Those that come first are preferred by a little: what
// cannot be told from the noise is not to change from machine to machine.
int algorithm_fastest(cudaStream_t stream, int count, bool (*run)(void *argument, int proposal), void *argument);

#endif
