// Distributed multi-head attention: the sequence sharded over the ranks of a group, forward and backward.
//
// Three things meet here: ownership (sequence/sharding.h), the local kernel (attention/kernel.h) and an exchange that
// brings every query chunk together with every key/value chunk:
//   ring      key/value chunks travel from rank to rank, the next one while this one is worked on (Liu et al. 2023)
//   gather    all keys and values to everyone at once: fewest steps, most memory; best for few key/value heads
//   ulysses   all-to-all: every rank gets all tokens of its share of the heads (Jacobs et al. 2023)
//   ulysses x ring: all-to-all inside groups of U ranks, a ring across the P/U groups (Fang and Zhao 2024)
// Every exchange gives the same result as one rank, within rounding. `vanilla` is ordinary multi-head attention that
// stores the T x T matrix, on one rank: the baseline.
#ifndef ATTENTION_ATTENTION_H
#define ATTENTION_ATTENTION_H

#include "attention/kernel.h"
#include "base/arena.h"
#include "comm/comm.h"
#include "sequence/sharding.h"

typedef enum Exchange {
    EXCHANGE_AUTO, // the least cost by attention/cost.c, bytes hidden behind work not counted
    EXCHANGE_RING,
    EXCHANGE_GATHER,
    EXCHANGE_ULYSSES,
    EXCHANGE_ULYSSES_RING,
    EXCHANGE_VANILLA
} Exchange;

const char *exchange_name(Exchange exchange);

// What queries of some layers see: a window (0: no limit) of which a head sees every so-and-so-many-th key (0: all).
typedef struct LayersOfWindow {
    int64_t window, layers, dilation;
} LayersOfWindow;
enum { ATTENTION_MAX_WINDOWS = 49, ATTENTION_MAX_DILATION = 64 };

typedef struct AttentionConfig {
    int64_t context; // T, tokens of one sequence over all ranks
    int ranks;       // P
    Exchange exchange;
    int ulysses; // U, ranks that share heads; 0: chosen (P for ulysses, largest that fits for ulysses x ring)
    AttentionShape shape;
    size_t element_bytes; // of storage
    // Of the device: attention_resolve asks them whether they can serve the shape, and they say what vanilla needs.
    // NULL where the device is not at hand (planning): nothing is asked.
    const AttentionKernels *kernels;
    // What the layers let their queries see, and how many layers have each. None stands for one layer without limit.
    int window_count;
    LayersOfWindow windows[ATTENTION_MAX_WINDOWS];
    bool documents; // attention stops at the ends of documents
} AttentionConfig;

// Settles AUTO and `ulysses`, or says why this exchange cannot serve this shape (usage error naming the options).
bool attention_resolve(AttentionConfig *config, Error *err);

// Bytes that rank `rank` sends for one layer of this visibility (of which `first` is not read): forward, and backward,
// by formula. Equal to what comm counts. config: resolved.
typedef struct AttentionBytes {
    int64_t forward, backward;
} AttentionBytes;
AttentionBytes attention_bytes(const AttentionConfig *config, const Visibility *visibility, int rank);
// Operations of training that documents leave out in one sequence, all layers and ranks together: those of pairs that a
// window alone would have let see each other. first: as in Visibility, (T) in host memory.
double attention_flops_saved(const AttentionConfig *config, const int32_t *first);

typedef struct Attention {
    AttentionConfig config; // resolved
    int rank;               // mine in the group
    Shard shard;            // my tokens
    Comm *group;            // all P ranks of the sequence
    Comm *heads_group;      // the U ranks that share heads with me (Ulysses); size 1 otherwise
    Comm *ring_group;       // the P/U ranks among which keys and values travel
    struct AttentionScratch *scratch;
} Attention;

// Bytes of the device's scratch memory (Device.scratch) that these kernels need for the calls of rank `rank`.
size_t attention_scratch_bytes(const AttentionConfig *resolved, int rank, const AttentionKernels *, int threads);
// Lays out the scratch of one rank in `arena` (while planning, arena->base is NULL and so is comm-dependent state).
// The same scratch serves every layer.
void attention_lay_out(Attention *attention, const AttentionConfig *resolved, int rank, Arena *arena);
// Collective over `group`: makes the sub-groups. Call once after lay-out over the real arena. attention_disconnect
// frees.
void attention_connect(Attention *attention, Comm *group);
void attention_disconnect(Attention *attention);
// Instead of attention_connect: from `before`, connected and laid out for another configuration of the same ranks, which
// this ends. Its sub-groups go on where as many ranks share heads. Collective.
void attention_take_over(Attention *attention, Attention *before);

// Bytes this rank has sent for attention since it was connected, over all its groups: what comm counted.
int64_t attention_bytes_sent(const Attention *attention);

// q (B, Tl, H, D), k and v (B, Tl, KV, D), out like q: this rank's tokens, in shard order. log_sum_exp (B, H, Tl) is
// kept for backward, in an order of its own. out may not alias q. visibility: of this layer, the same on all ranks; its
// window and dilation are among the configuration's, and `first`, (B, T) in the device's memory, is given where the
// configuration says so. `least`, the same on all ranks, saves sending what documents hide.
void attention_forward(Attention *attention, Device *device, Visibility visibility, TokenView out, float *log_sum_exp,
                       TokenView q, TokenView k, TokenView v);
// d_q, d_k, d_v are overwritten, in storage type, with the same shapes; they may be views of one fused buffer, but not
// alias the other tensors. Where attention is dilated, d_k and d_v are zeros before.
void attention_backward(Attention *attention, Device *device, Visibility visibility, TokenView d_q, TokenView d_k,
                        TokenView d_v, TokenView q, TokenView k, TokenView v, TokenView out, const float *log_sum_exp,
                        TokenView d_out);

#endif
