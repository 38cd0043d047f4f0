// Hyena's implicit filter (Poli et al. 2023, section 3.3): a convolution kernel as long as the sequence that has few
// parameters, since a small network makes it of positions. For position t and channel c
//
//   a = sin(10 W1 f(t)),  b = sin(10 (W2 a + w2)),  h(t, c) = (W3 b)_c window_c(t),  h(0, c) += skip_c
//
// with f(t) of mixer/convolution.h, one feature of which is 1. The skip is a learned multiple of the input itself.
//
// Over ranks: each runs the network for the positions of its own tokens, and what it makes of them goes the way of the
// tokens, to "all positions, my channels", where window and skip are. Backward, gradients come back the same way; those
// of the network's weights are what comes through a rank's positions, which sum to the whole.
#ifndef MIXER_IMPLICIT_FILTER_H
#define MIXER_IMPLICIT_FILTER_H

#include "mixer/convolution.h"
#include "model/model.h"

enum {
    FILTER_FIRST,  // W1 (64, 32)
    FILTER_SECOND, // W2 (64, 64)
    FILTER_BIAS,   // w2 (64)
    FILTER_THIRD,  // W3 (C, 64)
    FILTER_SKIP,   // (C)
    FILTER_TENSORS
};
enum {
    FILTER_F,        // (rows, 32) features
    FILTER_A,        // (rows, 64)
    FILTER_B_INSIDE, // (rows, 64) W2 a + w2
    FILTER_B,        // (rows, 64)
    FILTER_RAW,      // (rows, C) W3 b; its gradient
    FILTER_D_A,      // (rows, 64), for backward
    FILTER_D_B,
    FILTER_BUFFERS
};

typedef struct ImplicitFilter {
    const Mixing *m;
    const int64_t *tensor; // offsets of FILTER_TENSORS
    void *const *buffer;   // FILTER_BUFFERS
    Channels channels;     // this rank's
    void *by_channel;      // (T, channels) of storage; of one rank FILTER_RAW itself
    void *const *messages; // rooms of mixer/transpose.h
} ImplicitFilter;

void filter_parameters(ParameterList *list, int64_t layer, int64_t *tensor);
void filter_lay_out(const MixerSize *size, int64_t rows, bool backward, void **buffer, Arena *arena);
// The network's rows go to by_channel. Between begin and end there may be work that uses neither it nor the messages.
void filter_begin(const ImplicitFilter *f);
void filter_end(const ImplicitFilter *f);
// filter (channels, T), fp32, of what is in by_channel.
void filter_window(const ImplicitFilter *f, float *filter);
// The filter's gradient -> its parameters'. After filter_begin, whose hidden layers are still there.
void filter_backward(const ImplicitFilter *f, const float *d_filter);
// filter (count, C), fp32, for generation: `rows` of it at a time are what was laid out.
void filter_by_rows(const ImplicitFilter *f, float *filter, int64_t count, int64_t rows);

#endif
