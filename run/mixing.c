// How much token j has to do with what each layer's token mixer gives for token i, whatever the mixer is: for a random
// u,
//
//   value_ij = || d (u . branch_i) / d normed_j ||
//
// by the mixer's own backward, one pass for every i, with u as the gradient of row i and 0 as that of all others. So it
// is the operator P that is shown, projections included, and norms, MLPs and other layers are not. The file is CSV, a
// row for every j up to i, and for a later j where its value is not 0, which no causal mixer has.
#include "run/mixing.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/random.h"
#include "run/saving.h"

enum { MOST_TOKENS = 512 }; // a pass for each of them, and a row for each pair

bool mixing_check(const Run *run, Error *err) {
    const Options *o = &run->options;
    if (o->dump_mixing == NULL) return true;
    if (o->sp != 1)
        return error_usage(err, "--dump-mixing %s: one rank has to hold all tokens; give --sp 1", o->dump_mixing);
    if (o->context > MOST_TOKENS)
        return error_usage(
            err, "--dump-mixing %s: a row is written for every pair of %lld tokens; give --context %d at most",
            o->dump_mixing, (long long)o->context, MOST_TOKENS);
    return o->plan || file_check_writable("--dump-mixing", o->dump_mixing, err);
}

// What a dump works in: u (C) and gradients (T, C) as floats, on the device and on the host.
typedef struct MixingDump {
    Rank *r;
    int64_t T, C;
    float *room, *host;
    FILE *file;
} MixingDump;

// The mixer of layer l, forward and then backward from u at row i; leaves the gradient of normed in d->host.
static void influences_on(const MixingDump *d, int64_t l, int64_t i) {
    Model *model = &d->r->model;
    Pass *pass = &d->r->pass;
    Device *device = model->device;
    LayerKind kind = layer_kind(model->config, l);
    Mixing mixing = token_mixing(model, pass, l);
    for (int64_t c = 0; c < d->C; c++) // the same u for every i, so that these compare
        d->host[c] = (float)(random_normal(1, 0, (uint64_t)c) / sqrt((double)d->C));
    device->zero(device, pass->d_residual, (size_t)(pass->rows * d->C) * device->element_bytes);
    device->upload(device, d->room, d->host, (size_t)d->C * sizeof(float));
    device->to_storage(device, at(device, pass->d_residual, i * d->C), d->room, d->C);
    kind.norm->forward(model, pass, NULL, pass->layer[l].input, NULL, model->table->layer[l].norm1);
    kind.tokens->mix(&mixing);
    kind.tokens->backward(&mixing);
    device->to_float(device, d->room, pass->d_normed, d->T * d->C);
    device->download(device, d->host, d->room, (size_t)(d->T * d->C) * sizeof(float));
}

static void write_layer(const MixingDump *d, int64_t l) {
    char mixer[MIXERS_TEXT];
    LayerKind kind = layer_kind(d->r->model.config, l);
    mixer_write(&kind.choice, mixer);
    for (int64_t i = 0; i < d->T; i++) {
        influences_on(d, l, i);
        for (int64_t j = 0; j < d->T; j++) {
            double squares = 0;
            for (int64_t c = 0; c < d->C; c++) squares += (double)d->host[j * d->C + c] * d->host[j * d->C + c];
            if (j <= i || squares != 0)
                fprintf(d->file, "%lld,\"%s\",%lld,%lld,%.4g\n", (long long)l, mixer, (long long)i, (long long)j,
                        sqrt(squares));
        }
    }
}

void mixing_dump(Rank *r, const Loader *loader) {
    const char *path = r->run->options.dump_mixing;
    Device *device = &r->device;
    MixingDump d = {.r = r, .T = r->run->options.context, .C = r->run->config.dim};
    size_t bytes = (size_t)(d.T * d.C) * sizeof(float);
    int64_t first = r->run->validation_begin;
    Error err;
    rank_take_phase(r, run_whole(r->run));
    comm_doing_slowly(r->world, "dump of mixing");
    if (!leader(r)) return;
    require(r, load(r, loader, &first, 1, &err), &err);
    d.room = (float *)device->allocate(device, bytes, &err);
    require(r, d.room != NULL, &err);
    d.host = (float *)malloc(bytes);
    if (d.host == NULL) require(r, error_set(&err, "out of memory"), &err);
    d.file = file_write(path);
    bool ok = d.file != NULL;
    if (ok) {
        fprintf(d.file, "layer,mixer,i,j,value\n");
        forward(&r->model, &r->pass);
        for (int64_t l = 0; l < r->run->config.layers; l++) write_layer(&d, l);
        device->zero(device, r->model.gradients, (size_t)r->run->table.total * sizeof(float));
        ok = ferror(d.file) == 0;
        ok = fclose(d.file) == 0 && ok;
    }
    if (!ok) require(r, error_set(&err, "--dump-mixing %s: cannot write: %s", path, strerror(errno)), &err);
    device->release(device, d.room, bytes);
    free(d.host);
}
