// The small network that makes a long filter, forward and backward.
#include "mixer/implicit_filter.h"

#include "mixer/kernels.h"

enum { F = FILTER_FEATURES, W = FILTER_WIDTH };

void filter_parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    int64_t C = list->config->dim;
    tensor[FILTER_FIRST] = parameter_add(list, l, MATRIX, W, F, "conv.filter.0.weight");
    tensor[FILTER_SECOND] = parameter_add(list, l, MATRIX, W, W, "conv.filter.1.weight");
    tensor[FILTER_BIAS] = parameter_add(list, l, BIAS, W, 0, "conv.filter.1.bias");
    tensor[FILTER_THIRD] = parameter_add(list, l, MATRIX, C, W, "conv.filter.2.weight");
    tensor[FILTER_SKIP] = parameter_add(list, l, NORM, C, 0, "conv.skip.weight");
}

void filter_lay_out(const MixerSize *s, int64_t rows, int64_t channels, bool backward, void **buffer, Arena *arena) {
    const int64_t width[FILTER_BUFFERS] = {F, W, W, W, channels, W, W};
    int count = backward ? FILTER_BUFFERS : FILTER_D_A;
    for (int i = 0; i < count; i++)
        buffer[i] = arena_take(arena, "convolution filter", (size_t)(rows * width[i]) * s->element_bytes);
}

static const ConvolutionKernels *kernels_of(const ImplicitFilter *f) {
    return f->m->model->device->mixers->convolution;
}

static void *third_layer(const ImplicitFilter *f) { // the rows of W3 that make my channels
    return weight(f->m->model, f->tensor[FILTER_THIRD] + f->channels.first * W);
}
static void *skip_of(const ImplicitFilter *f) {
    return weight(f->m->model, f->tensor[FILTER_SKIP] + f->channels.first);
}

// Positions first, ..., of the network.
static void run_network(const ImplicitFilter *f, int64_t first, int64_t rows) {
    const Model *model = f->m->model;
    const ConvolutionKernels *k = kernels_of(f);
    Device *d = model->device;
    void *const *x = f->buffer;
    k->first_layer(d, x[FILTER_A], x[FILTER_F], weight(model, f->tensor[FILTER_FIRST]), NULL, first, rows,
                   model->config->max_positions);
    d->matmul_forward(d, x[FILTER_B_INSIDE], x[FILTER_A], weight(model, f->tensor[FILTER_SECOND]),
                      weight(model, f->tensor[FILTER_BIAS]), rows, W, W);
    k->sine(d, x[FILTER_B], x[FILTER_B_INSIDE], NULL, rows * W);
    d->matmul_forward(d, x[FILTER_RAW], x[FILTER_B], third_layer(f), NULL, rows, W, f->channels.count);
}

void filter_forward(const ImplicitFilter *f, float *filter) {
    const Model *model = f->m->model;
    run_network(f, 0, model->context);
    kernels_of(f)->window(model->device, filter, f->buffer[FILTER_RAW], skip_of(f), model->context, f->channels,
                          model->config->max_positions);
}

void filter_by_rows(const ImplicitFilter *f, float *filter, int64_t count, int64_t rows) {
    const Model *model = f->m->model;
    for (int64_t first = 0; first < count; first += rows) {
        int64_t now = rows < count - first ? rows : count - first;
        run_network(f, first, now);
        kernels_of(f)->window_rows(model->device, filter + first * f->channels.count, f->buffer[FILTER_RAW], skip_of(f),
                                   first, now, f->channels, model->config->max_positions);
    }
}

void filter_backward(const ImplicitFilter *f, const float *d_filter) {
    const Model *model = f->m->model;
    const ConvolutionKernels *k = kernels_of(f);
    Device *d = model->device;
    int64_t T = model->context, positions = model->config->max_positions, channels = f->channels.count;
    void *const *x = f->buffer;
    void *d_raw = x[FILTER_RAW], *d_b = x[FILTER_D_B], *d_a = x[FILTER_D_A];
    k->window_backward(d, d_raw, gradient(model, f->tensor[FILTER_SKIP]) + f->channels.first, d_filter, T, f->channels,
                       positions);
    d->matmul_backward(d, d_b, gradient(model, f->tensor[FILTER_THIRD]) + f->channels.first * W, NULL, d_raw,
                       x[FILTER_B], third_layer(f), T, W, channels, false);
    k->sine(d, d_b, x[FILTER_B_INSIDE], d_b, T * W);
    d->matmul_backward(d, d_a, gradient(model, f->tensor[FILTER_SECOND]), gradient(model, f->tensor[FILTER_BIAS]), d_b,
                       x[FILTER_A], weight(model, f->tensor[FILTER_SECOND]), T, W, W, false);
    void *d_inside = x[FILTER_A]; // a itself is not needed any more
    k->first_layer(d, d_inside, x[FILTER_F], weight(model, f->tensor[FILTER_FIRST]), d_a, 0, T, positions);
    d->matmul_backward(d, NULL, gradient(model, f->tensor[FILTER_FIRST]), NULL, d_inside, x[FILTER_F],
                       weight(model, f->tensor[FILTER_FIRST]), T, F, W, false);
}
