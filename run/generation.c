// Generation: rank 0 alone, all its process's processors, token after token with a key/value cache.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/pulse.h"
#include "base/random.h"
#include "model/sampling.h"
#include "terminal/output.h"
#include "terminal/sample.h"
#include "train_gpt.h"

enum { PREFILL_ROWS = 128 };

typedef struct Generator {
    Arena arena;
    Pass pass;
    Generation generation;
    float *device_logits;         // (V)
    float *logits, *sorted;       // host: (V)
    float *cos_table, *sin_table; // host: (PREFILL_ROWS, D/2)
    int32_t positions[PREFILL_ROWS];
    int32_t first[PREFILL_ROWS], document; // --document-mask: the first token that each sees; where the document begins
} Generator;

static void lay_out_generator(Generator *g, const Run *run, Device *d) {
    const ModelConfig *c = &run->config;
    int64_t capacity = run->sample_end;
    bool documents = run->options.document_mask;
    MixerSize size = {.config = c,
                      .rows = PREFILL_ROWS,
                      .sequences = 1,
                      .element_bytes = d->element_bytes,
                      .context = capacity,
                      .ranks = 1,
                      .documents = documents,
                      .kernels = run->devices.mixers};
    pass_lay_out(&g->pass, size, run->table.padded_vocab_size, &g->arena, PASS_GENERATING, RECOMPUTE_NONE);
    g->pass.generation = &g->generation;
    g->generation.capacity = capacity;
    if (documents) g->generation.first = (int32_t *)arena_take(&g->arena, "tokens", (size_t)capacity * sizeof(int32_t));
    g->device_logits = (float *)arena_take(&g->arena, "logits", (size_t)c->vocab_size * sizeof(float));
    const AttentionConfig *whole = &run_whole(run)->attention;
    const AttentionKernels *kernels = whole->kernels;
    size_t attention = 0;
    if (run->attends && kernels != NULL && kernels->scratch_bytes != NULL)
        attention = kernels->scratch_bytes(&whole->shape, 0, run->threads);
    lend_scratch(d, run, &size, attention, run->threads, &g->arena); // the other ranks have finished
}

static bool allocate_on_host(Generator *g, const ModelConfig *c) {
    int64_t V = c->vocab_size, angles = PREFILL_ROWS * (c->head_dim / 2);
    g->logits = (float *)malloc((size_t)(2 * V + 2 * angles) * sizeof(float));
    if (g->logits == NULL) return false;
    g->sorted = g->logits + V;
    g->cos_table = g->sorted + V;
    g->sin_table = g->cos_table + angles;
    return true;
}

// Runs `rows` (at most PREFILL_ROWS) new tokens through the model; g->logits are those after the last of them.
static void extend(Rank *r, Generator *g, const int32_t *tokens, int64_t rows) {
    const ModelConfig *c = &r->run->config;
    const ParameterTable *table = &r->run->table;
    Device *d = &r->device;
    for (int64_t i = 0; i < rows; i++) {
        g->positions[i] = (int32_t)(g->generation.length + i);
        g->first[i] = g->document;
        if (tokens[i] == r->run->document_end) g->document = g->positions[i] + 1;
    }
    g->pass.rows = g->pass.table_rows = rows;
    d->upload(d, g->pass.tokens, tokens, (size_t)rows * sizeof(int32_t));
    d->upload(d, g->pass.positions, g->positions, (size_t)rows * sizeof(int32_t));
    if (g->generation.first != NULL)
        d->upload(d, g->generation.first + g->generation.length, g->first, (size_t)rows * sizeof(int32_t));
    if (config_is_rotary(c)) {
        rope_tables(c, g->positions, rows, g->cos_table, g->sin_table);
        size_t bytes = (size_t)(rows * (c->head_dim / 2)) * sizeof(float);
        d->upload(d, g->pass.cos_table, g->cos_table, bytes);
        d->upload(d, g->pass.sin_table, g->sin_table, bytes);
    }
    forward(&r->model, &g->pass);
    pulse_beat();
    g->generation.length += rows;
    d->matmul_forward(d, g->pass.logits, at(d, g->pass.normed, (rows - 1) * c->dim),
                      weight(&r->model, table->classifier), NULL, 1, c->dim, table->padded_vocab_size);
    d->to_float(d, g->device_logits, g->pass.logits, c->vocab_size); // not those of the padding
    // Waits for the device: the host chooses the next token.
    d->download(d, g->logits, g->device_logits, (size_t)c->vocab_size * sizeof(float));
}

size_t bytes_of_generator(const Run *run, const Device *d) {
    Generator planned;
    Device device = *d;
    memset(&planned, 0, sizeof planned);
    if (run->prompt == NULL) return 0;
    lay_out_generator(&planned, run, &device);
    pass_free(&planned.pass);
    return planned.arena.used;
}

static bool all_finite(const float *x, int64_t count) {
    int64_t strange = 0;
    for (int64_t i = 0; i < count; i++) strange += !isfinite(x[i]);
    return strange == 0;
}

static bool generate(Rank *r, Generator *g, int32_t *tokens, Error *err) {
    const Run *run = r->run;
    int64_t V = run->config.vocab_size, prompt = run->prompt_tokens, count = prompt;
    const TokenSource *data = run->validation;
    memcpy(tokens, run->prompt, (size_t)prompt * sizeof(int32_t));
    for (int64_t first = 0, most = PREFILL_ROWS; first < prompt; first += most)
        extend(r, g, tokens + first, prompt - first < most ? prompt - first : most);
    for (; count < run->sample_end; count++) {
        if (count > prompt) extend(r, g, tokens + count - 1, 1);
        if (!all_finite(g->logits, V))
            return error_set(err,
                             "the sample ends at its token %lld: the model's outputs are not numbers (NaN or "
                             "infinity); its weights are too large",
                             (long long)(count - prompt));
        double uniform = random_uniform((uint64_t)run->options.seed, RANDOM_STREAM_SAMPLE, (uint64_t)count);
        tokens[count] = sample_token(g->logits, g->sorted, V, run->options.temperature, run->options.top_k, uniform);
        if (tokens_are_text(data) && tokens[count] == tokens_document_end(data)) break;
    }
    print_generated(stdout, data, tokens, prompt, count, run->options.sample_tokens, model_positions(&run->config));
    output_flush();
    return true;
}

bool print_sample(Rank *r, Error *err) {
    const Run *run = r->run;
    Device *d = &r->device;
    Generator *g = (Generator *)calloc(1, sizeof(Generator));
    int32_t *tokens = (int32_t *)malloc((size_t)run->sample_end * sizeof(int32_t));
    size_t bytes = bytes_of_generator(run, d);
    bool ok = g != NULL && tokens != NULL && allocate_on_host(g, &run->config);
    if (!ok) error_set(err, "out of memory for a sample of %lld tokens", (long long)run->options.sample_tokens);
    if (ok) {
        d->threads = run->threads;
        g->arena.base = (char *)d->allocate(d, bytes, err);
        g->arena.capacity = bytes;
        ok = g->arena.base != NULL;
    }
    if (ok) {
        lay_out_generator(g, run, d);
        ok = generate(r, g, tokens, err);
        d->release(d, g->arena.base, bytes);
    }
    if (g != NULL) free(g->logits);
    if (g != NULL) pass_free(&g->pass);
    free(g);
    free(tokens);
    return ok;
}
