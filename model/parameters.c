// The parameters of each architecture, in the order of the flat vector, under the names of the Hugging Face classes.
#include "model/parameters.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/pulse.h"
#include "base/random.h"
#include "model/mixer.h"

// ---- adding parameters ----

// Adds a parameter, (rows, columns) in memory, and returns its offset. columns 0: a vector.
static int64_t add(ParameterList *b, ParameterKind kind, int64_t rows, int64_t columns, bool transposed, const char *name) {
    ParameterTable *table = b->table;
    if (table->count == b->capacity) {
        b->overflow = true;
        return -1;
    }
    Parameter *p = &table->parameter[table->count++];
    double std = b->config->init_std;
    *p = (Parameter){.dimensions = columns ? 2 : 1, .transposed = transposed, .offset = table->total};
    snprintf(p->name, sizeof p->name, "%s", name);
    p->shape[0] = transposed ? columns : rows;
    p->shape[1] = transposed ? rows : columns;
    p->decay = columns != 0;
    p->init_mean = kind == NORM ? 1 : 0;
    if (kind == MATRIX) p->init_std = (float)std;
    p->lower_triangle = kind == LOWER_TRIANGLE;
    if (kind == LOWER_TRIANGLE) p->init_std = 1;
    if (kind == RESIDUAL_MATRIX) p->init_std = (float)(std / sqrt(2.0 * (double)b->config->layers));
    b->overflow |= __builtin_mul_overflow(rows, columns ? columns : 1, &p->size);
    b->overflow |= __builtin_add_overflow(table->total, p->size, &table->total);
    return p->offset;
}

// The classifier's matrix has been added: after its V rows, room for those that it is padded with.
static void leave_gap(ParameterList *b) {
    ParameterTable *table = b->table;
    int64_t rows = table->padded_vocab_size - b->config->vocab_size, elements;
    b->overflow |= __builtin_mul_overflow(rows, b->config->dim, &elements);
    table->gap_begin = table->total;
    b->overflow |= __builtin_add_overflow(table->total, elements, &table->total);
    table->gap_end = table->total;
}

int64_t parameter_add(ParameterList *b, int64_t layer, ParameterKind kind, int64_t rows, int64_t columns,
                      const char *name) {
    bool gpt2 = b->config->architecture == ARCH_GPT2;
    char full[80];
    snprintf(full, sizeof full, "%s.%" PRId64 ".%s", gpt2 ? "transformer.h" : "model.layers", layer, name);
    return add(b, kind, rows, columns, gpt2 && columns != 0, full);
}

static NormTensors add_norm(ParameterList *b, int64_t layer, bool biased, const char *scale, const char *bias) {
    NormTensors norm = {parameter_add(b, layer, NORM, b->config->dim, 0, scale), -1};
    if (biased) norm.bias = parameter_add(b, layer, BIAS, b->config->dim, 0, bias);
    return norm;
}

static void add_layer(ParameterList *b, int64_t l) {
    bool gpt2 = b->config->architecture == ARCH_GPT2;
    LayerKind kind = layer_kind(b->config, l);
    LayerOffsets *at = &b->table->layer[l];
    for (int i = 0; i < MIXER_TENSORS; i++) at->tokens[i] = at->channels[i] = -1;
    at->norm1 = add_norm(b, l, kind.norm->biased, gpt2 ? "ln_1.weight" : "input_layernorm.weight", "ln_1.bias");
    kind.tokens->parameters(b, l, at->tokens);
    at->norm2 = add_norm(b, l, kind.norm->biased, gpt2 ? "ln_2.weight" : "post_attention_layernorm.weight", "ln_2.bias");
    kind.channels->parameters(b, l, at->channels);
}

// ---- the whole list ----

static void add_all(ParameterList *b) {
    const ModelConfig *c = b->config;
    ParameterTable *table = b->table;
    bool gpt2 = c->architecture == ARCH_GPT2;
    table->position_table = table->final_norm.bias = -1;
    table->token_table =
        add(b, MATRIX, c->vocab_size, c->dim, false, gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight");
    if (c->tied_embeddings) leave_gap(b);
    if (gpt2) table->position_table = add(b, MATRIX, c->max_positions, c->dim, false, "transformer.wpe.weight");
    for (int64_t l = 0; l < c->layers; l++) add_layer(b, l);
    table->final_norm.scale = add(b, NORM, c->dim, 0, false, gpt2 ? "transformer.ln_f.weight" : "model.norm.weight");
    if (gpt2) table->final_norm.bias = add(b, BIAS, c->dim, 0, false, "transformer.ln_f.bias");
    table->classifier =
        c->tied_embeddings ? table->token_table : add(b, MATRIX, c->vocab_size, c->dim, false, "lm_head.weight");
    if (!c->tied_embeddings) leave_gap(b);
}

// All matrices that multiply tokens; of the embeddings only the one that also is the classifier.
static int64_t count_in_matrices(const ParameterTable *table) {
    int64_t count = 0;
    for (int i = 0; i < table->count; i++) {
        const Parameter *p = &table->parameter[i];
        bool looked_up = p->offset == table->token_table || p->offset == table->position_table;
        if (p->dimensions == 2 && !p->lower_triangle && (!looked_up || p->offset == table->classifier)) count += p->size;
    }
    return count;
}

bool parameters_list(ParameterTable *table, const ModelConfig *config, int64_t padded_vocab_size, Error *err) {
    enum { MOST_PER_LAYER = 2 * MIXER_TENSORS + 8, OUTSIDE_LAYERS = 5 };
    *table = (ParameterTable){.padded_vocab_size = padded_vocab_size};
    if (!config_check(config, err)) return false;
    if (config->layers > 100000) return error_usage(err, "%" PRId64 " layers (--layers) are too many", config->layers);
    size_t most = (size_t)config->layers * MOST_PER_LAYER + OUTSIDE_LAYERS;
    table->parameter = calloc(most, sizeof *table->parameter);
    table->layer = calloc((size_t)config->layers, sizeof *table->layer);
    ParameterList builder = {.table = table, .config = config, .capacity = (int)most};
    if (table->parameter == NULL || table->layer == NULL) {
        parameters_free(table);
        return error_set(err, "out of memory for the list of the model's parameters");
    }
    add_all(&builder);
    if (!builder.overflow && table->total < INT64_MAX / 64) { // so that sums of buffers' bytes cannot overflow either
        table->in_model = table->total - (table->gap_end - table->gap_begin);
        table->in_matrices = count_in_matrices(table);
        return true;
    }
    parameters_free(table);
    return error_usage(err, "the model has more parameters than can be counted: make --layers, --dim or --ffn smaller");
}

void parameters_free(ParameterTable *table) {
    free(table->parameter);
    free(table->layer);
    *table = (ParameterTable){0};
}

int parameters_decaying_alike(const ParameterTable *table, int first) {
    int last = first;
    while (last + 1 < table->count && table->parameter[last + 1].decay == table->parameter[first].decay) last++;
    return last;
}

void parameters_zero_gap(const ParameterTable *table, int64_t begin, int64_t end, float *out) {
    int64_t first = begin > table->gap_begin ? begin : table->gap_begin;
    int64_t last = end < table->gap_end ? end : table->gap_end;
    if (first < last) memset(out + (first - begin), 0, (size_t)(last - first) * sizeof *out);
}

// The std of element i of a new parameter.
static double initial_std(const Parameter *p, int64_t i) {
    if (!p->lower_triangle) return p->init_std;
    int64_t row = i / p->shape[0], column = i % p->shape[0]; // it is a square
    return column > row ? 0 : p->init_std / sqrt((double)(row + 1));
}

void parameters_initialize(const ParameterTable *table, uint64_t seed, int64_t begin, int64_t end, float *out) {
    parameters_zero_gap(table, begin, end, out);
    for (int t = 0; t < table->count; t++) {
        const Parameter *p = &table->parameter[t];
        int64_t first = begin > p->offset ? begin : p->offset;
        int64_t last = end < p->offset + p->size ? end : p->offset + p->size;
        uint64_t stream = RANDOM_STREAM_PARAMETERS + (uint64_t)t;
        for (int64_t i = first; i < last; i++) {
            if (i % 4096 == 0) pulse_beat();
            double std = initial_std(p, i - p->offset);
            double normal = std > 0 ? random_normal(seed, stream, (uint64_t)(i - p->offset)) : 0;
            out[i - begin] = (float)(p->init_mean + std * normal);
        }
    }
}
