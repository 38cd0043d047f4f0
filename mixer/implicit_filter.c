// The small network that makes a long filter, forward and backward.
#include "mixer/implicit_filter.h"

#include "mixer/kernels.h"
#include "mixer/transpose.h"

enum { F = FILTER_FEATURES, W = FILTER_WIDTH };

void filter_parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    int64_t C = list->config->dim;
    tensor[FILTER_FIRST] = parameter_add(list, l, MATRIX, W, F, "conv.filter.0.weight");
    tensor[FILTER_SECOND] = parameter_add(list, l, MATRIX, W, W, "conv.filter.1.weight");
    tensor[FILTER_BIAS] = parameter_add(list, l, BIAS, W, 0, "conv.filter.1.bias");
    tensor[FILTER_THIRD] = parameter_add(list, l, MATRIX, C, W, "conv.filter.2.weight");
    tensor[FILTER_SKIP] = parameter_add(list, l, NORM, C, 0, "conv.skip.weight");
}

void filter_lay_out(const MixerSize *s, int64_t rows, bool backward, void **buffer, Arena *arena) {
    const int64_t width[FILTER_BUFFERS] = {F, W, W, W, s->config->dim, W, W};
    int count = backward ? FILTER_BUFFERS : FILTER_D_A;
    for (int i = 0; i < count; i++)
        buffer[i] = arena_take(arena, "convolution filter", (size_t)(rows * width[i]) * s->element_bytes);
}

static const ConvolutionKernels *kernels_of(const ImplicitFilter *f) {
    return f->m->model->device->mixers->convolution;
}

static void *tensor_of(const ImplicitFilter *f, int tensor) { return weight(f->m->model, f->tensor[tensor]); }
static float *gradient_of(const ImplicitFilter *f, int tensor) { return gradient(f->m->model, f->tensor[tensor]); }
static void *skip_of(const ImplicitFilter *f) {
    return weight(f->m->model, f->tensor[FILTER_SKIP] + f->channels.first);
}

// The first layer at positions first, ..., which are rows `row`, ... of the buffers: a; or, given d_a, the gradient of
// what its sines are of.
static void first_layer(const ImplicitFilter *f, int64_t row, int64_t first, int64_t rows, const void *d_a) {
    Device *d = f->m->model->device;
    if (d_a != NULL) d_a = at(d, (void *)d_a, row * W);
    kernels_of(f)->first_layer(d, at(d, f->buffer[FILTER_A], row * W), at(d, f->buffer[FILTER_F], row * F),
                               tensor_of(f, FILTER_FIRST), d_a, first, rows, f->m->model->config->max_positions);
}

static void first_layer_of_shard(const ImplicitFilter *f, const void *d_a) {
    const Shard *mine = &f->m->model->shard;
    for (int i = 0; i < mine->count; i++)
        first_layer(f, shard_offset(mine, mine->chunk[i].start), mine->chunk[i].start, mine->chunk[i].length, d_a);
}

static void layers_behind(const ImplicitFilter *f, int64_t rows) {
    Device *d = f->m->model->device;
    void *const *x = f->buffer;
    d->matmul_forward(d, x[FILTER_B_INSIDE], x[FILTER_A], tensor_of(f, FILTER_SECOND), tensor_of(f, FILTER_BIAS), rows,
                      W, W);
    kernels_of(f)->sine(d, x[FILTER_B], x[FILTER_B_INSIDE], NULL, rows * W);
    d->matmul_forward(d, x[FILTER_RAW], x[FILTER_B], tensor_of(f, FILTER_THIRD), NULL, rows, W, f->channels.all);
}

void filter_begin(const ImplicitFilter *f) {
    first_layer_of_shard(f, NULL);
    layers_behind(f, f->m->model->shard.tokens);
    tokens_to_channels_begin(f->m, 1, f->by_channel, f->buffer[FILTER_RAW], f->messages);
}

void filter_end(const ImplicitFilter *f) { tokens_to_channels_end(f->m, 1, f->by_channel, f->messages); }

void filter_window(const ImplicitFilter *f, float *filter) {
    const Model *model = f->m->model;
    kernels_of(f)->window(model->device, filter, f->by_channel, skip_of(f), model->context, f->channels,
                          model->config->max_positions);
}

void filter_by_rows(const ImplicitFilter *f, float *filter, int64_t count, int64_t rows) {
    const Model *model = f->m->model;
    for (int64_t first = 0; first < count; first += rows) {
        int64_t now = rows < count - first ? rows : count - first;
        first_layer(f, 0, first, now, NULL);
        layers_behind(f, now);
        kernels_of(f)->window_rows(model->device, filter + first * f->channels.count, f->buffer[FILTER_RAW], skip_of(f),
                                   first, now, f->channels, model->config->max_positions);
    }
}

void filter_backward(const ImplicitFilter *f, const float *d_filter) {
    const Model *model = f->m->model;
    const ConvolutionKernels *k = kernels_of(f);
    Device *d = model->device;
    int64_t rows = model->shard.tokens;
    void *const *x = f->buffer;
    void *d_raw = x[FILTER_RAW], *d_b = x[FILTER_D_B], *d_a = x[FILTER_D_A];
    k->window_backward(d, f->by_channel, gradient_of(f, FILTER_SKIP) + f->channels.first, d_filter, model->context,
                       f->channels, model->config->max_positions);
    channels_to_tokens(f->m, 1, d_raw, f->by_channel, f->messages);
    d->matmul_backward(d, d_b, gradient_of(f, FILTER_THIRD), NULL, d_raw, x[FILTER_B], tensor_of(f, FILTER_THIRD), rows,
                       W, f->channels.all, false);
    k->sine(d, d_b, x[FILTER_B_INSIDE], d_b, rows * W);
    d->matmul_backward(d, d_a, gradient_of(f, FILTER_SECOND), gradient_of(f, FILTER_BIAS), d_b, x[FILTER_A],
                       tensor_of(f, FILTER_SECOND), rows, W, W, false);
    first_layer_of_shard(f, d_a);
    void *d_inside = x[FILTER_A]; // in the place of a
    d->matmul_backward(d, NULL, gradient_of(f, FILTER_FIRST), NULL, d_inside, x[FILTER_F], tensor_of(f, FILTER_FIRST),
                       rows, F, W, false);
}
