// The two norms, as layers choose them.
#include "model/model.h"

static void layer_forward(const Model *model, Pass *pass, void *sum, const void *x, const void *delta, NormTensors w) {
    model->device->layernorm_forward(model->device, pass->normed, sum, pass->mean, pass->rstd, x, delta,
                                     weight(model, w.scale), weight(model, w.bias), pass->rows, model->config->dim,
                                     (float)model->config->norm_epsilon);
}

static void layer_backward(const Model *model, Pass *pass, const void *x, NormTensors w) {
    model->device->layernorm_backward(model->device, pass->d_residual, gradient(model, w.scale),
                                      gradient(model, w.bias), pass->d_normed, x, weight(model, w.scale), pass->mean,
                                      pass->rstd, pass->rows, model->config->dim);
}

static void rms_forward(const Model *model, Pass *pass, void *sum, const void *x, const void *delta, NormTensors w) {
    model->device->rmsnorm_forward(model->device, pass->normed, sum, pass->rstd, x, delta, weight(model, w.scale),
                                   pass->rows, model->config->dim, (float)model->config->norm_epsilon);
}

static void rms_backward(const Model *model, Pass *pass, const void *x, NormTensors w) {
    model->device->rmsnorm_backward(model->device, pass->d_residual, gradient(model, w.scale), pass->d_normed, x,
                                    weight(model, w.scale), pass->rstd, pass->rows, model->config->dim);
}

const Norm norm_layer = {"LayerNorm", true, layer_forward, layer_backward};
const Norm norm_rms = {"RMSNorm", false, rms_forward, rms_backward};
