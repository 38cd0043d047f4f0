// Parts of the mixer delta (mixer/delta.c), which tells what all of this is.
#ifndef MIXER_DELTA_PARTS_H
#define MIXER_DELTA_PARTS_H

#include "mixer/delta.h"
#include "mixer/kernels.h"
#include "mixer/states.h"

enum { RAW, RATES, DECAY_LOG, DECAY_BIAS, SCALE, OUT, TAPS }; // tensors
// Kept: (n, 2 H D + 2 KV D) q, k, v, gate; (n, 2 H); (B, H, N, 64, W). Of more ranks than one: what enters my chunks
// (2, B, H, W, W), what they make (2, B, H, 2, W, W), and the rows before them (2, B, 3, E), E = H D + 2 KV D.
enum { KEPT_RAW, KEPT_RATES, KEPT_OUT, KEPT_INITIAL, KEPT_SUMMARY, KEPT_EDGE };
// Room: see mixer/delta.h. TOKENS: q, k, v; DECAYS: beta, log_decay, begin; Y (n, H D). Over ranks: SUMMARY (P, 2, B,
// H, 2, W, W), then (2, B, H, W, W) gradients of what leaves my chunks; EDGES (P, 2, B, 3, E), then (2, B, 3, E) of
// rows behind them.
enum { TOKENS, DECAYS, STATES, UPDATES, Y, SUMMARY, EDGES };
// Backward besides: gradients of these, and d_raw and d_rates of what is kept; D_CONVOLVED like D_RAW.
enum { D_Y = EDGES + 1, D_OUT, D_TOKENS, D_DECAYS, D_STATES, RESIDUALS, D_RAW, D_RATES, D_CONVOLVED };
_Static_assert((int)D_CONVOLVED < (int)MIXER_BUFFERS, "a place for each");
enum { CACHE_STATE, CACHE_EDGE }; // generation: (H, W, W) fp32; (3, E)

static inline int64_t convolved_width(const ModelConfig *c) { return (c->heads + 2 * c->kv_heads) * c->head_dim; } // E
static inline int64_t out_width(const ModelConfig *c) { return c->heads * c->head_dim; }
static inline int64_t raw_width(const ModelConfig *c) { return convolved_width(c) + out_width(c); }
static inline const DeltaKernels *kernels_of(const Mixing *m) { return m->model->device->mixers->delta; }
static inline int64_t carried_floats(const DeltaShape *s) { // (B, H, W, W)
    int64_t W = delta_width(s->head_dim);
    return s->batch * s->heads * W * W;
}
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- delta_memory.c: the lay-outs of Mixer, and what the kernels are given ------------------------------------------
void delta_lay_out_kept(const MixerSize *size, MixerMemory *kept, Arena *arena);
void delta_lay_out_room(const MixerSize *size, bool backward, MixerMemory *room, Arena *arena);
void delta_lay_out_cache(const MixerSize *size, MixerMemory *cache, Arena *arena);
size_t delta_mixer_scratch_bytes(const MixerSize *size, int threads);

DeltaShape delta_shape(const Mixing *m);
DeltaInput delta_input(const Mixing *m);
DeltaTokens delta_tokens_in_room(const Mixing *m, const DeltaShape *s);
DeltaGradients delta_gradients_in_room(const Mixing *m, const DeltaShape *s);

// ---- delta_ranks.c: what goes between ranks -------------------------------------------------------------------------
// What enters my chunks, into what is kept.
void delta_find_initial(const Mixing *m, const DeltaShape *s, const DeltaTokens *t);
// The gradient of what leaves my chunks (2, B, H, W, W): from what outputs ask of the states that enter, and
// transitions.
const float *delta_find_d_final(const Mixing *m, const DeltaShape *s, const DeltaTokens *t);
// Gathers of each chunk the last 3 rows of `rows` (n, 2 H D + 2 KV D), its first E columns, or (`behind`) the first 3;
// and picks the 3 rows before, or behind, each of mine into `to` (2, B, 3, E). Chunks may be shorter than 3.
void delta_gather_edges(const Mixing *m, const DeltaShape *s, const void *rows, void *to, bool behind);

#endif
