// A causal long convolution: P is one lower-triangular Toeplitz matrix for each channel, W^c of the template, whose
// first column h is made by a small network of positions (Hyena, Poli et al. 2023, arXiv 2302.10866):
//
//   conv         Y = (h * V) W^O             V = X W^V,  (h * v)_i = sum over j <= i of h_(i-j) v_j
//   conv:gated   Y = (X1 . (h * (X2 . V))) W^O          X1 = X W^X1, X2 = X W^X2: Hyena's order 2
//
// h has a learned skip in it, a multiple of the input itself: h_0 = network + d.
//
//   mix      v (x1, x2) = normed W^T -> u = v, or x2 . v; to "all tokens of my channels"; mixed = h * u; and back
//   output   branch = mixed W^T, or (x1 . mixed) W^T
#include "mixer/implicit_filter.h"
#include "mixer/kernels.h"
#include "mixer/long_convolution.h"
#include "mixer/transpose.h"

enum { IN, OUT, FILTER };     // tensors: (C, C), gated (3 C, C): v, x1, x2; (C, C); FILTER_TENSORS
enum { PROJECTED, U, MIXED }; // kept: gated (n, 3 C); (B, T, channels) u; (n, C)
enum { KERNEL = FILTER_BUFFERS, CHANNELS, ROWS, D_ROWS, D_PROJECTED, SEND, RECEIVE }; // room
enum { PAST, RESPONSE };       // cache: (capacity, C) u; (capacity, C) h, fp32
enum { GENERATED_ROWS = 128 }; // generation: of h at a time

static int64_t projections(const MixerChoice *choice) { return choice->word ? 3 : 1; }
static int64_t projections_of(const ModelConfig *c, int64_t layer) {
    MixerChoice choice = layer_kind(c, layer).choice;
    return projections(&choice);
}

static void parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    int64_t C = list->config->dim;
    tensor[IN] = parameter_add(list, l, MATRIX, C, C, "conv.v_proj.weight");
    if (projections_of(list->config, l) == 3) {
        parameter_add(list, l, MATRIX, C, C, "conv.x1_proj.weight");
        parameter_add(list, l, MATRIX, C, C, "conv.x2_proj.weight");
    }
    tensor[OUT] = parameter_add(list, l, RESIDUAL_MATRIX, C, C, "conv.o_proj.weight");
    filter_parameters(list, l, tensor + FILTER);
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static size_t rows_bytes(const MixerSize *s) { return (size_t)(s->rows * s->config->dim) * s->element_bytes; }

static void lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
    size_t rows = rows_bytes(s), wide = (size_t)projections_of(s->config, s->layer);
    if (wide > 1) kept->buffer[PROJECTED] = arena_take(arena, "activations: convolution", wide * rows);
    kept->buffer[U] = arena_take(arena, "activations: convolution", long_convolution_bytes(s));
    kept->buffer[MIXED] = arena_take(arena, "activations: convolution", rows);
}

static void lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
    size_t rows = rows_bytes(s), message = transpose_room_bytes(s);
    room->buffer[ROWS] = arena_take(arena, "buffers of one layer", rows);
    filter_lay_out(s, backward ? s->rows / s->sequences : GENERATED_ROWS, backward, room->buffer, arena);
    if (!backward) return; // generation
    int64_t mine = channels_of(s->config->dim, s->ranks, s->rank).count;
    room->buffer[KERNEL] = arena_take(arena, "convolution filter", (size_t)(mine * s->context) * sizeof(float));
    room->buffer[CHANNELS] = arena_take(arena, "buffers of one layer", long_convolution_bytes(s));
    room->buffer[D_ROWS] = arena_take(arena, "activation gradients", rows);
    if (projections_of(s->config, s->layer) > 1)
        room->buffer[D_PROJECTED] = arena_take(arena, "activation gradients", 3 * rows);
    if (message == 0) return;
    room->buffer[SEND] = arena_take(arena, "messages", message);
    room->buffer[RECEIVE] = arena_take(arena, "messages", message);
}

static void lay_out_cache(const MixerSize *s, MixerMemory *cache, Arena *arena) {
    size_t elements = (size_t)(s->context * s->config->dim);
    cache->buffer[PAST] = arena_take(arena, "convolution cache", elements * s->element_bytes);
    cache->buffer[RESPONSE] = arena_take(arena, "convolution cache", elements * sizeof(float));
}

// ---- forward --------------------------------------------------------------------------------------------------------

static const ConvolutionKernels *kernels_of(const Mixing *m) { return m->model->device->mixers->convolution; }

static ImplicitFilter filter_of(const Mixing *m) {
    const Model *model = m->model;
    int ranks = m->pass->generation != NULL ? 1 : model->ranks, rank = ranks == 1 ? 0 : model->rank;
    return (ImplicitFilter){.m = m,
                            .tensor = m->tensor + FILTER,
                            .buffer = m->room.buffer,
                            .channels = channels_of(model->config->dim, ranks, rank),
                            .by_channel = m->room.buffer[ranks == 1 ? (int)FILTER_RAW : (int)CHANNELS],
                            .messages = &m->room.buffer[SEND]};
}

// out (n, out_width) = a . b of C columns each, of rows as wide as said.
static void multiply(const Mixing *m, void *out, int64_t out_width, const void *a, int64_t a_width, const void *b,
                     int64_t b_width) {
    kernels_of(m)->multiply(m->model->device, out, out_width, a, a_width, b, b_width, m->pass->rows,
                            m->model->config->dim);
}

// The new tokens' u join those before; their outputs are direct sums over all of them.
static void generate(const Mixing *m, const void *u) {
    Device *d = m->model->device;
    const Generation *g = m->pass->generation;
    int64_t C = m->model->config->dim, n = m->pass->rows;
    void *past = m->cache.buffer[PAST];
    if (g->length == 0) {
        ImplicitFilter filter = filter_of(m);
        filter_by_rows(&filter, m->cache.buffer[RESPONSE], g->capacity, GENERATED_ROWS);
    }
    d->copy(d, at(d, past, g->length * C), u, (size_t)(n * C) * d->element_bytes);
    kernels_of(m)->step(d, m->kept.buffer[MIXED], past, m->cache.buffer[RESPONSE], g->length, n, C);
}

static void mix(const Mixing *m) {
    const Model *model = m->model;
    Device *d = model->device;
    int64_t C = model->config->dim, B = m->pass->sequences, wide = projections(&m->choice);
    void *u = m->room.buffer[ROWS], *projected = wide > 1 ? m->kept.buffer[PROJECTED] : u;
    ImplicitFilter filter = filter_of(m);
    if (m->pass->generation == NULL) filter_begin(&filter);
    d->matmul_forward(d, projected, m->pass->normed, weight(model, m->tensor[IN]), NULL, m->pass->rows, C, wide * C);
    if (wide > 1) multiply(m, u, C, projected, 3 * C, at(d, projected, 2 * C), 3 * C);
    if (m->pass->generation != NULL) {
        generate(m, u);
        return;
    }
    void *const *messages = &m->room.buffer[SEND], *channels = m->room.buffer[CHANNELS];
    float *kernel = m->room.buffer[KERNEL];
    filter_end(&filter);
    tokens_to_channels_begin(m, B, m->kept.buffer[U], u, messages);
    filter_window(&filter, kernel);
    tokens_to_channels_end(m, B, m->kept.buffer[U], messages);
    kernels_of(m)->forward(d, channels, m->kept.buffer[U], kernel, B, model->context, filter.channels.count);
    channels_to_tokens(m, B, m->kept.buffer[MIXED], channels, messages);
}

// What W^O multiplies: mixed, or x1 . mixed.
static const void *gated(const Mixing *m) {
    int64_t C = m->model->config->dim;
    if (!m->choice.word) return m->kept.buffer[MIXED];
    multiply(m, m->room.buffer[ROWS], C, at(m->model->device, m->kept.buffer[PROJECTED], C), 3 * C,
             m->kept.buffer[MIXED], C);
    return m->room.buffer[ROWS];
}

static void output(const Mixing *m) {
    const Model *model = m->model;
    model->device->matmul_forward(model->device, m->pass->branch, gated(m), weight(model, m->tensor[OUT]), NULL,
                                  m->pass->rows, model->config->dim, model->config->dim);
}

// ---- backward -------------------------------------------------------------------------------------------------------

// d_rows, the gradient of what was mixed, becomes that of u; and the filter's parameters get theirs.
static void backward_through_mixing(const Mixing *m, const ImplicitFilter *filter, void *d_rows) {
    const Model *model = m->model;
    int64_t B = m->pass->sequences;
    void *const *messages = &m->room.buffer[SEND], *channels = m->room.buffer[CHANNELS];
    float *kernel = m->room.buffer[KERNEL];
    filter_end(filter);
    tokens_to_channels_begin(m, B, channels, d_rows, messages);
    filter_window(filter, kernel);
    tokens_to_channels_end(m, B, channels, messages);
    kernels_of(m)->backward(model->device, channels, kernel, channels, m->kept.buffer[U], kernel, B, model->context,
                            filter->channels.count);
    channels_to_tokens(m, B, d_rows, channels, messages);
    filter_backward(filter, kernel);
}

static void backward(const Mixing *m) {
    const Model *model = m->model;
    const Pass *p = m->pass;
    Device *d = model->device;
    int64_t C = model->config->dim, wide = projections(&m->choice);
    void *d_rows = m->room.buffer[D_ROWS], *d_projected = wide > 1 ? m->room.buffer[D_PROJECTED] : d_rows;
    ImplicitFilter filter = filter_of(m);
    filter_begin(&filter);
    d->matmul_backward(d, d_rows, gradient(model, m->tensor[OUT]), NULL, p->d_residual, gated(m),
                       weight(model, m->tensor[OUT]), p->rows, C, C, false);
    void *v = m->kept.buffer[PROJECTED];
    if (wide > 1) { // x1 . mixed: to x1, and to mixed
        multiply(m, at(d, d_projected, C), 3 * C, d_rows, C, m->kept.buffer[MIXED], C);
        multiply(m, d_rows, C, d_rows, C, at(d, v, C), 3 * C);
    }
    backward_through_mixing(m, &filter, d_rows);
    if (wide > 1) { // u = x2 . v
        multiply(m, at(d, d_projected, 2 * C), 3 * C, d_rows, C, v, 3 * C);
        multiply(m, d_projected, 3 * C, d_rows, C, at(d, v, 2 * C), 3 * C);
    }
    d->matmul_backward(d, p->d_normed, gradient(model, m->tensor[IN]), NULL, d_projected, p->normed,
                       weight(model, m->tensor[IN]), p->rows, C, wide * C, false);
}

// Transforms of h, u and z forward, and of h, u, d_z, d_u and d_h backward.
static double flops(const ModelConfig *c, int64_t layer, int64_t context) {
    (void)layer;
    return long_convolution_flops(c, context, 8);
}

// What convolutions send, and once for all sequences the filter: there, and backward its gradient back as well.
static AttentionBytes bytes_sent(const ModelConfig *c, int64_t layer, const AttentionConfig *sharding, int rank) {
    AttentionBytes bytes = long_convolution_bytes_sent(c, layer, sharding, rank);
    TransposeBytes filter = transpose_bytes_sent(c->dim, 1, sharding, rank);
    return (AttentionBytes){bytes.forward + filter.there, bytes.backward + filter.there + filter.back};
}

const Mixer mixer_conv = {.name = "conv",
                          .word = "gated",
                          .check = long_convolution_check,
                          .parameters = parameters,
                          .lay_out_kept = lay_out_kept,
                          .lay_out_room = lay_out_room,
                          .lay_out_cache = lay_out_cache,
                          .scratch_bytes = long_convolution_scratch_bytes,
                          .mix = mix,
                          .output = output,
                          .backward = backward,
                          .flops = flops,
                          .bytes_sent = bytes_sent,
                          .scaled = true};
