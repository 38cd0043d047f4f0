// Checks and sizes of long convolutions.
#include "mixer/long_convolution.h"

#include <limits.h>
#include <math.h>

#include "mixer/kernels.h"
#include "mixer/transpose.h"

bool long_convolution_check(const MixerUse *use, Error *err) {
    const MixerSize *s = &use->size;
    if (s->documents)
        return error_usage(err,
                           "%s: a long convolution mixes across the ends of documents: leave --document-mask out, or "
                           "take a mixer that stops at them (attention, linear, delta, mean)",
                           use->option);
    if (s->ranks > s->config->dim)
        return error_usage(err, "%s: each rank needs a channel: %d ranks share a sequence (--sp), and --dim is %lld",
                           use->option, s->ranks, (long long)s->config->dim);
    if (s->context > INT_MAX / 4)
        return error_usage(err, "%s: a context of %lld tokens is more than one transform can take: at most %d",
                           use->option, (long long)s->context, INT_MAX / 4);
    if (s->kernels == NULL) return true; // a plan
    return s->kernels->convolution->opens(use->option, err);
}

static Channels mine(const MixerSize *s) { return channels_of(s->config->dim, s->ranks, s->rank); }

size_t long_convolution_bytes(const MixerSize *s) {
    return (size_t)(s->sequences * s->context * mine(s).count) * s->element_bytes;
}

size_t long_convolution_scratch_bytes(const MixerSize *s, int threads) {
    bool cpu = s->element_bytes == sizeof(float);
    return cpu ? convolution_scratch_cpu(s->context, threads) : convolution_scratch_cuda(s->context, mine(s).count);
}

// A real transform of N values is 2.5 N log2 N operations, and a complex product 6; spectra have N / 2 values.
double long_convolution_flops(const ModelConfig *c, int64_t context, int transforms) {
    double N = (double)convolution_length(context);
    return (transforms * 2.5 * N * log2(N) + 3 * 3 * N) * (double)c->dim / (double)context;
}

AttentionBytes long_convolution_bytes_sent(const ModelConfig *c, int64_t layer, const AttentionConfig *sharding,
                                           int rank) {
    (void)layer;
    TransposeBytes rows = transpose_bytes_sent(c->dim, sharding->shape.batch, sharding, rank);
    return (AttentionBytes){rows.there + rows.back, rows.there + rows.back};
}
