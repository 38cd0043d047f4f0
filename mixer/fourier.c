// FNet's mixing made causal. FNet (Lee-Thorp et al. 2021) mixes by fixed Fourier matrices, Y = Re(F X): position i gets
// x_j times cos(2 pi i j / T). Here what counts is the distance, and only the past is seen: P is a lower-triangular
// Toeplitz matrix for each channel, of fixed cosines,
//
//   Y = M W^O,  m_i = sum over j <= i of c_(i-j) v_j,  c_t = sqrt(2 / T') cos(2 pi f t / T'),  V = X W^V
//
// with f whole cycles in T' = max_positions tokens, from 1 to T' / 2, spread over the channels (cycles_of): instead of
// FNet's second transform, over channels, each has a frequency of its own. The squares of c sum to 1 over T' positions,
// so of inputs of variance 1 that do not follow a channel's wave, the output at position i has variance (i + 1) / T':
// at most 1, however long the sequence is.
//
//   mix      v = normed W^T; to "all tokens of my channels"; mixed = c * v; and back
//   output   branch = mixed W^T
//
// Generation needs no past: the cosine of a difference is the real part of e^(iwi) e^(-iwj), so a complex sum for each
// channel holds all of it.
#include "mixer/kernels.h"
#include "mixer/long_convolution.h"
#include "mixer/transpose.h"
#include "model/model.h"

enum { IN, OUT };                               // tensors: (C, C)
enum { MIXED };                                 // kept: (n, C)
enum { ROWS, FROM, TO, KERNEL, SEND, RECEIVE }; // room: (n, C); (B, T, channels) twice; (channels, T) fp32; messages
enum { STATE };                                 // cache: (2, C), double

static void parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    int64_t C = list->config->dim;
    tensor[IN] = parameter_add(list, l, MATRIX, C, C, "fourier.v_proj.weight");
    tensor[OUT] = parameter_add(list, l, RESIDUAL_MATRIX, C, C, "fourier.o_proj.weight");
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static size_t rows_bytes(const MixerSize *s) { return (size_t)(s->rows * s->config->dim) * s->element_bytes; }

static void lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
    kept->buffer[MIXED] = arena_take(arena, "activations: convolution", rows_bytes(s));
}

static void lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
    Channels mine = channels_of(s->config->dim, s->ranks, s->rank);
    size_t message = transpose_room_bytes(s);
    room->buffer[ROWS] = arena_take(arena, "buffers of one layer", rows_bytes(s));
    if (!backward) return; // generation
    room->buffer[FROM] = arena_take(arena, "buffers of one layer", long_convolution_bytes(s));
    room->buffer[TO] = arena_take(arena, "buffers of one layer", long_convolution_bytes(s));
    room->buffer[KERNEL] = arena_take(arena, "convolution filter", (size_t)(mine.count * s->context) * sizeof(float));
    if (message == 0) return;
    room->buffer[SEND] = arena_take(arena, "messages", message);
    room->buffer[RECEIVE] = arena_take(arena, "messages", message);
}

static void lay_out_cache(const MixerSize *s, MixerMemory *cache, Arena *arena) {
    cache->buffer[STATE] = arena_take(arena, "convolution cache", 2 * (size_t)s->config->dim * sizeof(double));
}

// ---- forward and backward -------------------------------------------------------------------------------------------

static const ConvolutionKernels *kernels_of(const Mixing *m) { return m->model->device->mixers->convolution; }

// to (n, C) = P from, or (`transposed`) P^T from. They may be the same.
static void convolve(const Mixing *m, void *to, const void *from, bool transposed) {
    const Model *model = m->model;
    const ConvolutionKernels *k = kernels_of(m);
    Device *d = model->device;
    Channels mine = channels_of(model->config->dim, model->ranks, model->rank);
    int64_t B = m->pass->sequences, T = model->context;
    void *const *messages = &m->room.buffer[SEND], *in = m->room.buffer[FROM], *out = m->room.buffer[TO];
    float *kernel = m->room.buffer[KERNEL];
    tokens_to_channels_begin(m, B, in, from, messages);
    k->cosines(d, kernel, T, mine, model->config->max_positions);
    tokens_to_channels_end(m, B, in, messages);
    if (transposed) k->backward(d, out, NULL, in, NULL, kernel, B, T, mine.count);
    else k->forward(d, out, in, kernel, B, T, mine.count);
    channels_to_tokens(m, B, to, out, messages);
}

static void mix(const Mixing *m) {
    const Model *model = m->model;
    const Generation *g = m->pass->generation;
    Device *d = model->device;
    int64_t C = model->config->dim, n = m->pass->rows;
    void *v = m->room.buffer[ROWS];
    d->matmul_forward(d, v, m->pass->normed, weight(model, m->tensor[IN]), NULL, n, C, C);
    if (g == NULL) {
        convolve(m, m->kept.buffer[MIXED], v, false);
        return;
    }
    double *state = m->cache.buffer[STATE];
    if (g->length == 0) d->zero(d, state, 2 * (size_t)C * sizeof *state);
    kernels_of(m)->cosine_step(d, m->kept.buffer[MIXED], state, v, g->length, n, C, model->config->max_positions);
}

static void output(const Mixing *m) {
    const Model *model = m->model;
    model->device->matmul_forward(model->device, m->pass->branch, m->kept.buffer[MIXED], weight(model, m->tensor[OUT]),
                                  NULL, m->pass->rows, model->config->dim, model->config->dim);
}

static void backward(const Mixing *m) {
    const Model *model = m->model;
    const Pass *p = m->pass;
    Device *d = model->device;
    int64_t C = model->config->dim;
    void *d_rows = m->room.buffer[ROWS];
    d->matmul_backward(d, d_rows, gradient(model, m->tensor[OUT]), NULL, p->d_residual, m->kept.buffer[MIXED],
                       weight(model, m->tensor[OUT]), p->rows, C, C, false);
    convolve(m, d_rows, d_rows, true);
    d->matmul_backward(d, p->d_normed, gradient(model, m->tensor[IN]), NULL, d_rows, p->normed,
                       weight(model, m->tensor[IN]), p->rows, C, C, false);
}

// Transforms of c, v and m forward, and of c, d_m and d_v backward.
static double flops(const ModelConfig *c, int64_t layer, int64_t context) {
    (void)layer;
    return long_convolution_flops(c, context, 6);
}

const Mixer mixer_fourier = {.name = "fourier",
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
                             .bytes_sent = long_convolution_bytes_sent,
                             .scaled = true};
