// Dilated attention, `dilated:W,R`: P(X) = softmax(Q K^T / sqrt(D)) V as in mixer/attention.c, of which head h keeps a
// grid. The query at position i sees, of the last W positions j in (i - W, i], those with
//
//   j mod R = s_h,   s_h = floor(h R / H)
//
// The heads are shifted, so each key is seen by H / R of them: a token's value reaches all later ones within W in one
// layer. A query that sees no key, such as the first ones of heads with s_h > 0, gets 0. Its cost is that of a window
// of W / R tokens; what it stretches is how far a layer sees.
//
// It is LongNet's dilated attention (Ding et al. 2023, arXiv 2307.02486) in three points, and in two it is not. LongNet
// thins the queries as well: of a segment of w tokens a head works on w / r queries with w / r keys, and mixes several
// (w, r), weighted by their sums of exponentials, so that others serve the queries left out. Here every query attends
// in every head, which costs T W / R pairs a head, and different (W, R) are different layers of a pattern; and windows
// slide where LongNet's segments stand still, so that no query has fewer keys than another for where it happens to
// stand.
//
// Parameters, memory and motion are attention's: its keys and values within the window, of which only the heads travel
// that look at them. How the ordinary kernels do it: attention/dilated.h.
#include "mixer/attention.h"

#include <math.h>

// R must divide KV: as many heads for each residue, and heads that share keys and values look at the same positions.
static bool check(const MixerUse *use, Error *err) {
    const ModelConfig *c = use->size.config;
    MixerChoice choice = layer_kind(c, use->size.layer).choice;
    double W = choice.value[0], R = choice.value[1];
    if (W != floor(W) || R != floor(R) || !(W >= 1 && W <= 0x1p53) || !(R >= 1 && R <= ATTENTION_MAX_DILATION))
        return error_usage(err, "%s: give a window and a dilation in whole numbers, the latter from 1 to %d",
                           use->option, ATTENTION_MAX_DILATION);
    if (W < R)
        return error_usage(err, "%s: a window of %.0f has no key for every head; give a window of %.0f or more",
                           use->option, W, R);
    if (c->kv_heads % (int64_t)R != 0)
        return error_usage(err,
                           "%s: %.0f does not divide the model's %lld key/value heads, which share out the positions "
                           "modulo %.0f; give a divisor of it, or other --heads and --kv-heads",
                           use->option, R, (long long)c->kv_heads, R);
    return true;
}

const Mixer mixer_dilated = {.name = "dilated",
                             .least_values = 2,
                             .most_values = 2,
                             .check = check,
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
