// Multi-head softmax attention: P(X) = softmax(Q K^T / sqrt(D)) V with Q, K, V = X W^Q, X W^K, X W^V, causal, and a
// projection of the heads side by side. Distributed over the ranks that share the sequence (attention/attention.h). A
// query sees all keys before it, those of a window, or those of a dilated one (mixer/dilated.c): attention_sees.
//
//   mix      q, k, v = normed W^T, rotated by their positions (Llama) -> attended
//   output   branch = attended W^T
#include "mixer/attention.h"

#include "attention/dilated.h"
#include "model/model.h"

enum { QKV, ATTENDED, LOG_SUM_EXP }; // kept: (n, (H + 2 KV) D) after rotary; (n, H D); (B, H, Tl) fp32
enum { D_QKV, D_ATTENDED };          // room, for backward
enum { MAX, SUM, FIRST };            // room of generation: (n, H) fp32, of the softmax; int32, of dilated heads
enum { KEYS, VALUES };               // cache: (capacity, KV D)

static int64_t qkv_width(const ModelConfig *c) { return (c->heads + 2 * c->kv_heads) * c->head_dim; }
static int64_t heads_width(const ModelConfig *c) { return c->heads * c->head_dim; }

// ---- parameters, under the names of the Hugging Face classes --------------------------------------------------------

static void add_gpt2(ParameterList *list, int64_t l, int64_t *tensor) {
    int64_t C = list->config->dim;
    tensor[ATTENTION_QKV] = parameter_add(list, l, MATRIX, 3 * C, C, "attn.c_attn.weight");
    tensor[ATTENTION_QKV_BIAS] = parameter_add(list, l, BIAS, 3 * C, 0, "attn.c_attn.bias");
    tensor[ATTENTION_OUT] = parameter_add(list, l, RESIDUAL_MATRIX, C, C, "attn.c_proj.weight");
    tensor[ATTENTION_OUT_BIAS] = parameter_add(list, l, BIAS, C, 0, "attn.c_proj.bias");
}

void softmax_parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    const ModelConfig *c = list->config;
    int64_t C = c->dim, queries = heads_width(c), keys = c->kv_heads * c->head_dim;
    if (c->architecture == ARCH_GPT2) {
        add_gpt2(list, l, tensor);
        return;
    }
    tensor[ATTENTION_QKV] = parameter_add(list, l, MATRIX, queries, C, "self_attn.q_proj.weight");
    parameter_add(list, l, MATRIX, keys, C, "self_attn.k_proj.weight");
    parameter_add(list, l, MATRIX, keys, C, "self_attn.v_proj.weight");
    if (c->qkv_bias) {
        tensor[ATTENTION_QKV_BIAS] = parameter_add(list, l, BIAS, queries, 0, "self_attn.q_proj.bias");
        parameter_add(list, l, BIAS, keys, 0, "self_attn.k_proj.bias");
        parameter_add(list, l, BIAS, keys, 0, "self_attn.v_proj.bias");
    }
    tensor[ATTENTION_OUT] = parameter_add(list, l, RESIDUAL_MATRIX, C, queries, "self_attn.o_proj.weight");
    if (c->out_bias) tensor[ATTENTION_OUT_BIAS] = parameter_add(list, l, BIAS, C, 0, "self_attn.o_proj.bias");
}

// ---- memory ---------------------------------------------------------------------------------------------------------

void softmax_lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
    const ModelConfig *c = s->config;
    size_t n = (size_t)s->rows;
    kept->buffer[QKV] =
        arena_take(arena, "activations: queries, keys, values", n * (size_t)qkv_width(c) * s->element_bytes);
    kept->buffer[ATTENDED] = arena_take(arena, "activations: attention", n * (size_t)heads_width(c) * s->element_bytes);
    kept->buffer[LOG_SUM_EXP] = arena_take(arena, "activations: attention", n * (size_t)c->heads * sizeof(float));
}

void softmax_lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
    size_t row = (size_t)s->rows * s->element_bytes;
    if (!backward) {
        size_t rows = (size_t)(s->rows * s->config->heads) * sizeof(float);
        room->buffer[MAX] = arena_take(arena, "attention state", rows);
        room->buffer[SUM] = arena_take(arena, "attention state", rows);
        int64_t dilation = attention_sees(s->config, s->layer, s->context).dilation;
        if (dilation > 1 && s->documents)
            room->buffer[FIRST] =
                arena_take(arena, "attention state",
                           (size_t)dilated_first_elements(1, s->context, dilation) * sizeof(int32_t));
        return;
    }
    room->buffer[D_QKV] = arena_take(arena, "activation gradients", row * (size_t)qkv_width(s->config));
    room->buffer[D_ATTENDED] = arena_take(arena, "activation gradients", row * (size_t)heads_width(s->config));
}

void softmax_lay_out_cache(const MixerSize *s, MixerMemory *cache, Arena *arena) {
    size_t bytes = (size_t)(s->context * s->config->kv_heads * s->config->head_dim) * s->element_bytes;
    cache->buffer[KEYS] = arena_take(arena, "key/value cache", bytes);
    cache->buffer[VALUES] = arena_take(arena, "key/value cache", bytes);
}

// ---- heads ----------------------------------------------------------------------------------------------------------

// Heads side by side in rows of `width` elements, `tokens` rows to a sequence.
static TokenView token_view(void *data, int64_t width, int64_t tokens) {
    return (TokenView){data, tokens * width, width};
}

// The queries, keys and values inside a fused (n, (H + 2 KV) D) buffer.
typedef struct Heads {
    TokenView q, k, v;
} Heads;

static Heads heads_of(const Mixing *m, void *qkv) {
    const ModelConfig *c = m->model->config;
    const Device *d = m->model->device;
    int64_t width = qkv_width(c), tokens = m->pass->rows / m->pass->sequences, kv_width = c->kv_heads * c->head_dim;
    return (Heads){token_view(qkv, width, tokens), token_view(at(d, qkv, heads_width(c)), width, tokens),
                   token_view(at(d, qkv, heads_width(c) + kv_width), width, tokens)};
}

static TokenView attended_view(const Mixing *m, void *attended) {
    return token_view(attended, heads_width(m->model->config), m->pass->rows / m->pass->sequences);
}

// Rotates queries and keys, which stand side by side at the start of each row, by their positions' angles; or back.
static void rotate(const Mixing *m, void *qkv, bool inverse) {
    const ModelConfig *c = m->model->config;
    const Pass *p = m->pass;
    if (!config_is_rotary(c)) return;
    m->model->device->rotary(m->model->device, qkv, p->cos_table, p->sin_table, p->rows, p->table_rows, qkv_width(c),
                             c->heads + c->kv_heads, c->head_dim, inverse);
}

LayersOfWindow attention_sees(const ModelConfig *c, int64_t layer, int64_t context) {
    MixerChoice choice = layer_kind(c, layer).choice;
    if (choice.values == 0) return (LayersOfWindow){config_window(c, layer, context), 1, 0};
    double W = choice.value[0], R = choice.value[1];
    return (LayersOfWindow){W < (double)context ? (int64_t)W : 0, 1, R <= ATTENTION_MAX_DILATION ? (int64_t)R : 0};
}

// What the queries of this layer see.
static Visibility visibility_of(const Mixing *m) {
    int64_t T = m->model->attention->config.context;
    LayersOfWindow sees = attention_sees(m->model->config, m->layer, T);
    return (Visibility){sees.window, m->pass->first_visible, T, m->pass->least_visible, sees.dilation};
}

// ---- forward --------------------------------------------------------------------------------------------------------

// The new rows' keys and values join the cache, and the new queries attend to all of it.
static void attend_cached(const Mixing *m, Heads new_rows) {
    const ModelConfig *c = m->model->config;
    Device *d = m->model->device;
    const Generation *g = m->pass->generation;
    int64_t width = c->kv_heads * c->head_dim, n = m->pass->rows;
    void *k = m->cache.buffer[KEYS], *v = m->cache.buffer[VALUES];
    int64_t row = width * (int64_t)d->element_bytes, stride = qkv_width(c) * (int64_t)d->element_bytes;
    d->copy_strided(d, at(d, k, g->length * width), row, new_rows.k.data, stride, n, (size_t)row);
    d->copy_strided(d, at(d, v, g->length * width), row, new_rows.v.data, stride, n, (size_t)row);

    AttentionShape shape = m->model->attention->config.shape;
    LayersOfWindow sees = attention_sees(c, m->layer, g->capacity);
    shape.batch = 1;
    QueryForward query = {.chunk = {g->length, n},
                          .q = new_rows.q,
                          .max = {m->room.buffer[MAX], 0, n},
                          .sum = {m->room.buffer[SUM], 0, n},
                          .visibility = {.window = sees.window, .first = g->first, .dilation = sees.dilation}};
    KeyValue keys = {.chunk = {0, g->length + n},
                     .k = token_view(k, width, g->capacity),
                     .v = token_view(v, width, g->capacity)};
    TokenView attended = attended_view(m, m->kept.buffer[ATTENDED]);
    if (sees.dilation > 1)
        dilated_forward_whole(d, &shape, &query, &keys, attended, query.max, m->room.buffer[FIRST]);
    else d->attention->forward_whole(d, &shape, &query, &keys, attended, query.max);
}

void softmax_mix(const Mixing *m) {
    const Model *model = m->model;
    const ModelConfig *c = model->config;
    Device *d = model->device;
    void *qkv = m->kept.buffer[QKV];
    d->matmul_forward(d, qkv, m->pass->normed, weight(model, m->tensor[ATTENTION_QKV]),
                      weight(model, m->tensor[ATTENTION_QKV_BIAS]), m->pass->rows, c->dim, qkv_width(c));
    rotate(m, qkv, false);
    Heads heads = heads_of(m, qkv);
    if (m->pass->generation != NULL) attend_cached(m, heads);
    else
        attention_forward(model->attention, d, visibility_of(m), attended_view(m, m->kept.buffer[ATTENDED]),
                          m->kept.buffer[LOG_SUM_EXP], heads.q, heads.k, heads.v);
}

void softmax_output(const Mixing *m) {
    const Model *model = m->model;
    model->device->matmul_forward(model->device, m->pass->branch, m->kept.buffer[ATTENDED],
                                  weight(model, m->tensor[ATTENTION_OUT]), weight(model, m->tensor[ATTENTION_OUT_BIAS]),
                                  m->pass->rows, heads_width(model->config), model->config->dim);
}

// ---- backward -------------------------------------------------------------------------------------------------------

void softmax_backward(const Mixing *m) {
    const Model *model = m->model;
    const ModelConfig *c = model->config;
    Device *d = model->device;
    const Pass *p = m->pass;
    void *attended = m->kept.buffer[ATTENDED], *d_qkv = m->room.buffer[D_QKV], *d_attended = m->room.buffer[D_ATTENDED];
    d->matmul_backward(d, d_attended, gradient(model, m->tensor[ATTENTION_OUT]),
                       gradient(model, m->tensor[ATTENTION_OUT_BIAS]), p->d_residual, attended,
                       weight(model, m->tensor[ATTENTION_OUT]), p->rows, heads_width(c), c->dim, false);
    Heads heads = heads_of(m, m->kept.buffer[QKV]), d_heads = heads_of(m, d_qkv);
    if (visibility_of(m).dilation > 1) d->zero(d, d_qkv, (size_t)(p->rows * qkv_width(c)) * d->element_bytes);
    attention_backward(model->attention, d, visibility_of(m), d_heads.q, d_heads.k, d_heads.v, heads.q, heads.k,
                       heads.v, attended_view(m, attended), m->kept.buffer[LOG_SUM_EXP], attended_view(m, d_attended));
    rotate(m, d_qkv, true);
    d->matmul_backward(d, p->d_normed, gradient(model, m->tensor[ATTENTION_QKV]),
                       gradient(model, m->tensor[ATTENTION_QKV_BIAS]), d_qkv, p->normed,
                       weight(model, m->tensor[ATTENTION_QKV]), p->rows, c->dim, qkv_width(c), false);
}

// 14 H D for each key that a query sees in the mean (2 products forward and 5 backward): T/2 of them where it sees all;
// of dilated ones 1/R, since the heads share out the keys. Documents, which are the data's, are not known here.
double softmax_flops(const ModelConfig *c, int64_t layer, int64_t context) {
    LayersOfWindow sees = attention_sees(c, layer, context);
    const Visibility visibility = {.window = sees.window};
    double keys = 0.5 * (double)context;
    if (sees.window > 0) keys = (double)visibility_pairs(&visibility, 0, (Chunk){0, context}) / (double)context;
    if (sees.dilation > 1) keys /= (double)sees.dilation;
    return 14.0 * keys * (double)heads_width(c);
}

AttentionBytes softmax_bytes_sent(const ModelConfig *c, int64_t layer, const AttentionConfig *sharding, int rank) {
    LayersOfWindow sees = attention_sees(c, layer, sharding->context);
    const Visibility visibility = {.window = sees.window, .dilation = sees.dilation};
    return attention_bytes(sharding, &visibility, rank);
}

const Mixer mixer_attention = {.name = "attention",
                               .parameters = softmax_parameters,
                               .lay_out_kept = softmax_lay_out_kept,
                               .lay_out_room = softmax_lay_out_room,
                               .lay_out_cache = softmax_lay_out_cache,
                               .mix = softmax_mix,
                               .output = softmax_output,
                               .backward = softmax_backward,
                               .flops = softmax_flops,
                               .bytes_sent = softmax_bytes_sent,
                               .attends = true};
