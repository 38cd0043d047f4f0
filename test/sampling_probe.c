// What makes of train_gpt a program whose samples are given, and that tells the logits that it might have chosen from
// (test/test_mixers_checkpoint.c): the linker passes the calls of sample_token and parameters_initialize through here
// (--wrap, in the Makefile).
//
// SAMPLED in the environment is a file whose bytes are the tokens, in their order; SAMPLED_LOGITS one that gets V
// floats for each of them, which is what the model says of its place. Matrices within the layers of a new model are
// larger than they are as a rule: a residual stream that is nearly its embeddings says nearly nothing of the tokens
// before.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/parameters.h"
#include "model/sampling.h"

enum { LARGER = 10 };

int32_t __wrap_sample_token(const float *logits, float *room, int64_t V, double temperature, int64_t top_k,
                            double uniform);
void __wrap_parameters_initialize(const ParameterTable *table, uint64_t seed, int64_t begin, int64_t end, float *out);
void __real_parameters_initialize(const ParameterTable *table, uint64_t seed, int64_t begin, int64_t end, float *out);

static FILE *open_named(const char *variable, const char *mode) {
    const char *path = getenv(variable);
    FILE *file = path == NULL ? NULL : fopen(path, mode);
    if (file == NULL) abort();
    return file;
}

int32_t __wrap_sample_token(const float *logits, float *room, int64_t V, double temperature, int64_t top_k,
                            double uniform) {
    static FILE *tokens, *told;
    (void)room, (void)temperature, (void)top_k, (void)uniform;
    if (tokens == NULL) tokens = open_named("SAMPLED", "rb"), told = open_named("SAMPLED_LOGITS", "wb");
    int token = fgetc(tokens);
    if (token == EOF || fwrite(logits, sizeof *logits, (size_t)V, told) != (size_t)V || fflush(told) != 0) abort();
    return token;
}

void __wrap_parameters_initialize(const ParameterTable *table, uint64_t seed, int64_t begin, int64_t end, float *out) {
    ParameterTable larger = *table;
    larger.parameter = malloc((size_t)table->count * sizeof *larger.parameter);
    if (larger.parameter == NULL) abort();
    memcpy(larger.parameter, table->parameter, (size_t)table->count * sizeof *larger.parameter);
    for (int i = 0; i < table->count; i++) {
        Parameter *p = &larger.parameter[i];
        bool embeds = p->offset == table->token_table || p->offset == table->position_table;
        if (p->dimensions == 2 && !p->lower_triangle && !embeds) p->init_std *= LARGER;
    }
    __real_parameters_initialize(&larger, seed, begin, end, out);
    free(larger.parameter);
}
