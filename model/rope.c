// Rotary positions: "RoFormer" (Su et al., arXiv 2104.09864), and the usual ways of stretching them to longer contexts.
//
// Pair i of D/2 turns by position x frequency_i with frequency_i = theta^(-2i/D). Stretching lowers the frequencies:
// all of them alike (linear: Chen et al., arXiv 2306.15595), only those too slow to have completed a turn in the
// original context with a smooth passage between (llama3), or along a ramp over the pairs with a correction of the
// attention's temperature (yarn: Peng et al., arXiv 2309.00071). Each is defined as the Hugging Face classes compute
// it, but in double precision throughout: at position 10^6 an angle in single precision is off by up to 0.03.
#include <math.h>

#include "model/config.h"

static const double TWO_PI = 6.283185307179586;

// How slow frequencies are slowed further, all others being kept: between 1 / factor (0) and 1 (1), by how often the
// pair turns within the original context.
static double llama3_frequency(const RopeScaling *s, double frequency) {
    double turns = s->original_max_positions * frequency / TWO_PI;
    double kept = (turns - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    kept = fmin(fmax(kept, 0), 1);
    return (1 - kept) * frequency / s->factor + kept * frequency;
}

// The (fractional) pair that makes `turns` turns within the original context.
static double yarn_pair(const ModelConfig *c, double turns) {
    double original = c->rope_scaling.original_max_positions;
    return (double)c->head_dim * log(original / (turns * TWO_PI)) / (2 * log(c->rope_theta));
}

static double yarn_frequency(const ModelConfig *c, double frequency, int64_t pair) {
    const RopeScaling *s = &c->rope_scaling;
    double low = yarn_pair(c, s->beta_fast > 0 ? s->beta_fast : 32),
           high = yarn_pair(c, s->beta_slow > 0 ? s->beta_slow : 1);
    if (s->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)c->head_dim - 1);
    if (low == high) high += 0.001; // as the Hugging Face classes do, so that the ramp has a slope
    double slowed = fmin(fmax(((double)pair - low) / (high - low), 0), 1);
    return slowed * frequency / s->factor + (1 - slowed) * frequency;
}

static double pair_frequency(const ModelConfig *c, int64_t pair) {
    double frequency = pow(c->rope_theta, -2.0 * (double)pair / (double)c->head_dim);
    switch (c->rope_scaling.type) {
    case ROPE_DEFAULT: return frequency;
    case ROPE_LINEAR: return frequency / c->rope_scaling.factor;
    case ROPE_LLAMA3: return llama3_frequency(&c->rope_scaling, frequency);
    case ROPE_YARN: return yarn_frequency(c, frequency, pair);
    }
    return frequency;
}

static double yarn_temperature(double factor, double mscale) {
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

// What the cosines and sines are multiplied by; the logits thus by its square.
static double amplitude(const RopeScaling *s) {
    if (s->type != ROPE_YARN) return 1;
    if (s->attention_factor > 0) return s->attention_factor;
    if (s->mscale > 0 && s->mscale_all_dim > 0)
        return yarn_temperature(s->factor, s->mscale) / yarn_temperature(s->factor, s->mscale_all_dim);
    return yarn_temperature(s->factor, 1);
}

void rope_tables(const ModelConfig *config, const int32_t *positions, int64_t count, float *cos_table,
                 float *sin_table) {
    int64_t pairs = config->head_dim / 2;
    double frequency[CONFIG_MAX_HEAD_DIM / 2], scale = amplitude(&config->rope_scaling);
    for (int64_t pair = 0; pair < pairs; pair++) frequency[pair] = pair_frequency(config, pair);
    for (int64_t i = 0; i < count; i++) {
        for (int64_t pair = 0; pair < pairs; pair++) {
            double angle = (double)positions[i] * frequency[pair];
            cos_table[i * pairs + pair] = (float)(scale * cos(angle));
            sin_table[i * pairs + pair] = (float)(scale * sin(angle));
        }
    }
}
