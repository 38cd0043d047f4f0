// The MLP of a layer, token by token: GPT-2's, down(gelu(up(x))), and Llama's, down(silu(gate(x)) * up(x)) (SwiGLU,
// Shazeer 2020). What is kept is the first product's output; the activation of it is cheap and worked out again, for
// SwiGLU in the same pass over memory as its derivative.
#include "mixer/channel_mlp.h"

#include "model/model.h"

enum { UP }; // kept: (n, F); SwiGLU (n, 2F), gate before up
// Room: (n, F) each. D_UP is GELU's: SwiGLU's gradients take the places of UP and, before them, of ACTIVATED.
enum { ACTIVATED, D_UP };

// ---- parameters -----------------------------------------------------------------------------------------------------

static void gelu_parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    int64_t C = list->config->dim, F = list->config->ffn_dim;
    tensor[MLP_UP] = parameter_add(list, l, MATRIX, F, C, "mlp.c_fc.weight");
    tensor[MLP_UP_BIAS] = parameter_add(list, l, BIAS, F, 0, "mlp.c_fc.bias");
    tensor[MLP_DOWN] = parameter_add(list, l, RESIDUAL_MATRIX, C, F, "mlp.c_proj.weight");
    tensor[MLP_DOWN_BIAS] = parameter_add(list, l, BIAS, C, 0, "mlp.c_proj.bias");
}

static void swiglu_parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    const ModelConfig *c = list->config;
    tensor[MLP_UP] = parameter_add(list, l, MATRIX, c->ffn_dim, c->dim, "mlp.gate_proj.weight");
    parameter_add(list, l, MATRIX, c->ffn_dim, c->dim, "mlp.up_proj.weight");
    if (c->mlp_bias) {
        tensor[MLP_UP_BIAS] = parameter_add(list, l, BIAS, c->ffn_dim, 0, "mlp.gate_proj.bias");
        parameter_add(list, l, BIAS, c->ffn_dim, 0, "mlp.up_proj.bias");
    }
    tensor[MLP_DOWN] = parameter_add(list, l, RESIDUAL_MATRIX, c->dim, c->ffn_dim, "mlp.down_proj.weight");
    if (c->mlp_bias) tensor[MLP_DOWN_BIAS] = parameter_add(list, l, BIAS, c->dim, 0, "mlp.down_proj.bias");
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static void *take(const MixerSize *s, const char *name, int64_t width, Arena *arena) {
    return arena_take(arena, name, (size_t)(s->rows * width) * s->element_bytes);
}

static void gelu_lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
    kept->buffer[UP] = take(s, "activations: MLP", s->config->ffn_dim, arena);
}

static void swiglu_lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
    kept->buffer[UP] = take(s, "activations: MLP", 2 * s->config->ffn_dim, arena);
}

static void gelu_lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
    room->buffer[ACTIVATED] = take(s, "buffers of one layer", s->config->ffn_dim, arena);
    if (backward) room->buffer[D_UP] = take(s, "activation gradients", s->config->ffn_dim, arena);
}

static void swiglu_lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
    (void)backward;
    room->buffer[ACTIVATED] = take(s, "buffers of one layer", s->config->ffn_dim, arena);
}

// ---- forward --------------------------------------------------------------------------------------------------------

static void gelu_mix(const Mixing *m) {
    const Model *model = m->model;
    model->device->matmul_gelu_forward(model->device, m->room.buffer[ACTIVATED], m->kept.buffer[UP], m->pass->normed,
                                       weight(model, m->tensor[MLP_UP]), weight(model, m->tensor[MLP_UP_BIAS]),
                                       m->pass->rows, model->config->dim, model->config->ffn_dim);
}

static void swiglu_mix(const Mixing *m) {
    const Model *model = m->model;
    model->device->matmul_forward(model->device, m->kept.buffer[UP], m->pass->normed, weight(model, m->tensor[MLP_UP]),
                                  weight(model, m->tensor[MLP_UP_BIAS]), m->pass->rows, model->config->dim,
                                  2 * model->config->ffn_dim);
}

// branch = down(activated)
static void gelu_output(const Mixing *m) {
    const Model *model = m->model;
    model->device->matmul_forward(model->device, m->pass->branch, m->room.buffer[ACTIVATED],
                                  weight(model, m->tensor[MLP_DOWN]), weight(model, m->tensor[MLP_DOWN_BIAS]),
                                  m->pass->rows, model->config->ffn_dim, model->config->dim);
}

static void swiglu_output(const Mixing *m) {
    Device *d = m->model->device;
    d->swiglu_forward(d, m->room.buffer[ACTIVATED], m->kept.buffer[UP], m->pass->rows, m->model->config->ffn_dim);
    gelu_output(m);
}

// ---- backward -------------------------------------------------------------------------------------------------------

// From the gradient of the first product's output to that of normed.
static void up_backward(const Mixing *m, const void *d_up, int64_t width) {
    const Model *model = m->model;
    model->device->matmul_backward(model->device, m->pass->d_normed, gradient(model, m->tensor[MLP_UP]),
                                   gradient(model, m->tensor[MLP_UP_BIAS]), d_up, m->pass->normed,
                                   weight(model, m->tensor[MLP_UP]), m->pass->rows, model->config->dim, width, false);
}

static void gelu_backward(const Mixing *m) {
    const Model *model = m->model;
    Device *d = model->device;
    int64_t n = m->pass->rows, F = model->config->ffn_dim;
    void *up = m->kept.buffer[UP], *activated = m->room.buffer[ACTIVATED];
    d->gelu_forward(d, activated, up, n * F);
    d->matmul_gelu_backward(d, m->room.buffer[D_UP], gradient(model, m->tensor[MLP_DOWN]),
                            gradient(model, m->tensor[MLP_DOWN_BIAS]), m->pass->d_residual, activated, up,
                            weight(model, m->tensor[MLP_DOWN]), n, F, model->config->dim);
    up_backward(m, m->room.buffer[D_UP], F);
}

static void swiglu_backward(const Mixing *m) {
    const Model *model = m->model;
    Device *d = model->device;
    int64_t n = m->pass->rows, F = model->config->ffn_dim;
    void *up = m->kept.buffer[UP], *activated = m->room.buffer[ACTIVATED], *d_activated = activated;
    d->matmul_backward(d, d_activated, NULL, NULL, m->pass->d_residual, NULL, weight(model, m->tensor[MLP_DOWN]), n, F,
                       model->config->dim, false);
    d->swiglu_backward(d, up, activated, d_activated, up, n, F);
    d->matmul_backward(d, NULL, gradient(model, m->tensor[MLP_DOWN]), gradient(model, m->tensor[MLP_DOWN_BIAS]),
                       m->pass->d_residual, activated, NULL, n, F, model->config->dim, false);
    up_backward(m, up, 2 * F);
}

const Mixer mlp_gelu = {.name = "mlp, GELU",
                        .parameters = gelu_parameters,
                        .lay_out_kept = gelu_lay_out_kept,
                        .lay_out_room = gelu_lay_out_room,
                        .mix = gelu_mix,
                        .output = gelu_output,
                        .backward = gelu_backward};
const Mixer mlp_swiglu = {.name = "mlp, SwiGLU",
                          .parameters = swiglu_parameters,
                          .lay_out_kept = swiglu_lay_out_kept,
                          .lay_out_room = swiglu_lay_out_room,
                          .mix = swiglu_mix,
                          .output = swiglu_output,
                          .backward = swiglu_backward};
