// What each exchange sends, by formula, and which one to use; how many pairs are worked on.
#include <string.h>

#include "attention/exchange.h"

static const char *const names[] = {[EXCHANGE_AUTO] = "auto",
                                    [EXCHANGE_RING] = "ring",
                                    [EXCHANGE_GATHER] = "gather",
                                    [EXCHANGE_ULYSSES] = "ulysses",
                                    [EXCHANGE_ULYSSES_RING] = "ulysses-ring",
                                    [EXCHANGE_VANILLA] = "vanilla"};

const char *exchange_name(Exchange exchange) { return names[exchange]; }

// ---- bytes --------------------------------------------------------------------------------------
// T tokens, P ranks in groups of U (Ulysses; 1 for ring and gather), R = P/U; e bytes per element of storage. A rank
// has H' = H/U query heads and KV' = max(KV/U, 1) key/value heads, and the ranks of its ring have n_0 ... n_{R-1}
// tokens, in early and late chunks e_j + l_j = n_j. w = 2 B KV' D, the elements of a block per token.
//
// Walk, rank r of R. A late chunk is sent to the ranks below its owner only.
//   ring    forward   w e (sum of e_j over j != r-1  +  sum of l_j over j >= r, unless r = 0)
//           backward  the same + 4 w T (every gradient block passes every rank once)
//   gather  forward   w e ((R-1) e_r + r l_r)
//           backward  the same + 4 w (sum of e_j over j != r  +  sum of l_j over j > r)
// With a window of W tokens, what is seen of a chunk is what its reader's next chunk sees: the last W - 1 of its
// tokens, less those between the two chunks. In the ring that is the chunk that comes right after it, as long as its
// rank is still to come; and of a gradient no more goes round than somebody else sees. Documents do the same, wherever
// they begin.
//
// With even chunks, on average over ranks: forward 3/4 (R-1)/R w e T for both; the gradients w 4 T, or 3/4 (R-1)/R of
// it. (The last rank's two chunks are one and go everywhere: only ranks below it are there.) Of a dilated layer's
// tokens 1/R of the key/value heads travel.
//
// Ulysses, rank u of U, n tokens of its own and m of the others of its group; f = 4, the bytes of fp32:
//   forward   (U-1) n B (H' + 2 KV') D e                  +  m B H' (D e + f)
//   backward  (U-1) n B (2 (H' + KV') D e + 2 H' f)       +  m B (H' D e + 2 KV' D f)
// With H = KV and n = T/P: forward about 4 B H D e T/P (U-1)/U, which falls with P, where the ring's does not.

static AttentionShape heads_of_one_rank(const AttentionConfig *config) {
    AttentionShape shape = config->shape;
    shape.heads /= config->ulysses;
    shape.kv_heads = ulysses_kv_heads(shape.kv_heads, config->ulysses);
    return shape;
}

bool attention_is_dilated(const AttentionConfig *config) {
    for (int i = 0; i < config->window_count; i++)
        if (config->windows[i].dilation > 1) return true;
    return false;
}

static AttentionBytes walk_bytes(const AttentionConfig *config, const Visibility *on_host, int rank) {
    int ranks = config->ranks / config->ulysses, me = rank / config->ulysses;
    if (ranks == 1) return (AttentionBytes){0, 0};
    AttentionShape shape = heads_of_one_rank(config);
    if (on_host->dilation > 1) shape.kv_heads /= on_host->dilation;
    int64_t T = config->context, token = walk_token_elements(&shape), bytes = (int64_t)config->element_bytes;
    int64_t keys = 0, gradients = 0;      // in tokens
    int below = (me + ranks - 1) % ranks; // the ring: every block but its own goes there from me, every gradient too
    for (int other = 0; other < ranks; other++) {
        int before = (other + ranks - 1) % ranks; // round the ring all others are behind this one
        if (config->exchange == EXCHANGE_GATHER && other != me) {
            keys += shard_seen(T, ranks, me, other, on_host).tokens;
            gradients += shard_seen(T, ranks, other, me, on_host).tokens;
        } else if (config->exchange != EXCHANGE_GATHER) {
            if (other != below) keys += shard_seen_from(T, ranks, other, below, on_host).tokens;
            gradients += !visibility_is_limited(on_host) ? shard_of(T, ranks, other).tokens
                                                         : shard_seen_from(T, ranks, other, before, on_host).tokens;
        }
    }
    return (AttentionBytes){keys * token * bytes, keys * token * bytes + gradients * token * (int64_t)sizeof(float)};
}

static AttentionBytes ulysses_bytes(const AttentionConfig *config, int rank) {
    int U = config->ulysses, first = rank / U * U;
    AttentionShape shape = heads_of_one_rank(config);
    int64_t B = shape.batch, H = shape.heads, KV = shape.kv_heads, D = shape.head_dim;
    int64_t e = (int64_t)config->element_bytes, f = sizeof(float);
    int64_t mine = shard_of(config->context, config->ranks, rank).tokens, others = -mine;
    for (int i = first; i < first + U; i++) others += shard_of(config->context, config->ranks, i).tokens;
    return (AttentionBytes){(U - 1) * mine * B * (H + 2 * KV) * D * e + others * B * H * (D * e + f),
                            (U - 1) * mine * B * (2 * (H + KV) * D * e + 2 * H * f) +
                                others * B * (H * D * e + 2 * KV * D * f)};
}

AttentionBytes attention_bytes(const AttentionConfig *config, const Visibility *visibility, int rank) {
    const Visibility on_host = visibility_on_host(visibility);
    AttentionBytes walk = walk_bytes(config, &on_host, rank), ulysses = ulysses_bytes(config, rank);
    return (AttentionBytes){walk.forward + ulysses.forward, walk.backward + ulysses.backward};
}

// 2 products forward and 5 backward of 2 D operations per pair and head.
static double flops_of_pair(const AttentionConfig *config) {
    return 14.0 * (double)(config->shape.heads * config->shape.head_dim);
}

// Of dilated layers, each head sees one pair in R.
static int64_t one_or(int64_t dilation) { return dilation > 1 ? dilation : 1; }

static double pairs_saved(const AttentionConfig *config, int64_t window, const int32_t *first) {
    const Visibility without = {.window = window};
    const Visibility with = {.window = window, .first = first, .stride = config->context};
    const Chunk all = {0, config->context};
    return (double)(visibility_pairs(&without, 0, all) - visibility_pairs(&with, 0, all));
}

double attention_flops_saved(const AttentionConfig *config, const int32_t *first) {
    if (config->window_count == 0) return flops_of_pair(config) * pairs_saved(config, 0, first);
    double pairs = 0;
    for (int i = 0; i < config->window_count; i++)
        pairs += (double)config->windows[i].layers / (double)one_or(config->windows[i].dilation) *
                 pairs_saved(config, config->windows[i].window, first);
    return flops_of_pair(config) * pairs;
}

// ---- choosing -----------------------------------------------------------------------------------

static bool ulysses_fits(const AttentionConfig *config, int U) {
    int64_t heads = config->shape.heads, kv_heads = config->shape.kv_heads;
    return config->ranks % U == 0 && heads % U == 0 && (kv_heads % U == 0 || U % kv_heads == 0);
}

// What a step waits for, in bytes sent by the busiest rank. The walk's bytes travel while there is work, and only what
// is left over counts; nothing can be worked on while the all-to-alls of Ulysses are under way. A wait has a price of
// its own, whatever is sent. Two round figures stand for the machine; the choice changes by factors, not by per cent:
enum {
    FLOPS_PER_BYTE = 1000, // worked while a byte is sent: hundreds between sockets, thousands between GPUs
    BYTES_PER_WAIT = 65536 // sent in the time that it takes to start a message and wake up who waits for it
};

// Of one rank: 2 + 5 products of 2 D per pair and head.
static int64_t attention_flops(const AttentionConfig *config, LayersOfWindow layers) {
    const AttentionShape *shape = &config->shape;
    const Visibility visibility = {.window = layers.window};
    int64_t pairs =
        visibility_pairs(&visibility, 0, (Chunk){0, config->context}) / config->ranks / one_or(layers.dilation);
    return 14 * shape->batch * shape->heads * shape->head_dim * pairs;
}

static int64_t cost_of_layer(const AttentionConfig *config, LayersOfWindow layers) {
    const Visibility on_host = {.window = layers.window, .dilation = layers.dilation};
    int64_t walk = 0, ulysses = 0;
    for (int rank = 0; rank < config->ranks; rank++) {
        AttentionBytes w = walk_bytes(config, &on_host, rank), u = ulysses_bytes(config, rank);
        if (walk < w.forward + w.backward) walk = w.forward + w.backward;
        if (ulysses < u.forward + u.backward) ulysses = u.forward + u.backward;
    }
    int64_t ring = config->ranks / config->ulysses;
    int64_t walk_waits = ring == 1 ? 0 : config->exchange == EXCHANGE_GATHER ? 3 : 2 * ring - 1;
    int64_t ulysses_waits = config->ulysses == 1 ? 0 : 4;
    int64_t left_over = walk + walk_waits * BYTES_PER_WAIT - attention_flops(config, layers) / FLOPS_PER_BYTE;
    return (left_over > 0 ? left_over : 0) + ulysses + ulysses_waits * BYTES_PER_WAIT;
}

// Over all layers, which share one exchange.
static double cost(const AttentionConfig *config) {
    if (config->window_count == 0) return (double)cost_of_layer(config, (LayersOfWindow){0, 1, 0});
    double sum = 0;
    for (int i = 0; i < config->window_count; i++)
        sum += (double)config->windows[i].layers * (double)cost_of_layer(config, config->windows[i]);
    return sum;
}

// At equal cost, and so wherever work hides everything that is sent, the ring: it holds the fewest keys and values.
static void choose(AttentionConfig *config) {
    AttentionConfig best = *config;
    best.exchange = EXCHANGE_RING;
    best.ulysses = 1;
    AttentionConfig candidate = best;
    candidate.exchange = EXCHANGE_GATHER;
    if (cost(&candidate) < cost(&best)) best = candidate;
    for (int U = 2; U <= config->ranks && !attention_is_dilated(config); U++) {
        if (!ulysses_fits(config, U)) continue;
        candidate.exchange = U == config->ranks ? EXCHANGE_ULYSSES : EXCHANGE_ULYSSES_RING;
        candidate.ulysses = U;
        if (cost(&candidate) < cost(&best)) best = candidate;
    }
    *config = best;
}

static bool resolve_ulysses(AttentionConfig *config, Error *err) {
    int P = config->ranks;
    if (config->ulysses == 0 && config->exchange == EXCHANGE_ULYSSES) config->ulysses = P;
    if (config->ulysses == 0) { // the largest that leaves a ring
        config->ulysses = 1;
        for (int U = 2; U < P; U++) {
            if (ulysses_fits(config, U)) config->ulysses = U;
        }
        if (config->ulysses == 1 && P > 1) {
            return error_usage(
                err,
                "--attention ulysses-ring with --sp %d, --heads %lld and --kv-heads %lld: no number of ranks "
                "between 1 and --sp divides --sp and --heads, and --kv-heads (or is a multiple of it); use "
                "--attention ring or ulysses",
                P, (long long)config->shape.heads, (long long)config->shape.kv_heads);
        }
    }
    if (config->ulysses < 1 || !ulysses_fits(config, config->ulysses)) {
        return error_usage(
            err,
            "--attention %s cannot share --heads %lld and --kv-heads %lld among %d ranks (--sp %d): their number must "
            "divide --sp and --heads, and divide --kv-heads or be a multiple of it; use --attention ring or gather, "
            "or another --sp",
            exchange_name(config->exchange), (long long)config->shape.heads, (long long)config->shape.kv_heads,
            config->ulysses, P);
    }
    return true;
}

static bool check_shape(const AttentionConfig *config, Error *err) {
    const AttentionShape *shape = &config->shape;
    if (shape->heads < 1 || shape->kv_heads < 1 || shape->heads % shape->kv_heads != 0) {
        return error_usage(
            err,
            "--heads %lld is not a multiple of --kv-heads %lld: every key/value head serves the same number of heads",
            (long long)shape->heads, (long long)shape->kv_heads);
    }
    if (shape->head_dim < 1 || shape->head_dim > ATTENTION_MAX_HEAD_DIM) {
        return error_usage(err, "heads of %lld values: attention takes 1 to %d; change --dim or --heads",
                           (long long)shape->head_dim, ATTENTION_MAX_HEAD_DIM);
    }
    const char *why = config->kernels == NULL ? NULL : config->kernels->unsupported(shape);
    if (why != NULL)
        return error_usage(err, "attention on this device: %s; change --dim or --heads, or use --device cpu", why);
    if (config->ranks < 1) return error_usage(err, "--sp %d: at least one rank is needed", config->ranks);
    if (config->ranks > 1 && config->context < 2 * (int64_t)config->ranks) {
        return error_usage(
            err,
            "--context %lld is too short for --sp %d: every rank takes two chunks of at least one token; use "
            "--context %d or more, or fewer ranks",
            (long long)config->context, config->ranks, 2 * config->ranks);
    }
    return true;
}

bool attention_resolve(AttentionConfig *config, Error *err) {
    if (!check_shape(config, err)) return false;
    bool walks =
        config->exchange == EXCHANGE_AUTO || config->exchange == EXCHANGE_RING || config->exchange == EXCHANGE_GATHER;
    if (attention_is_dilated(config) && !walks)
        return error_usage(err, "--attention %s does not serve dilated layers (--mixer): use ring, gather or auto",
                           exchange_name(config->exchange));
    switch (config->exchange) {
    case EXCHANGE_AUTO: choose(config); return true;
    case EXCHANGE_ULYSSES:
    case EXCHANGE_ULYSSES_RING: return resolve_ulysses(config, err);
    case EXCHANGE_VANILLA:
        if (config->ranks > 1) {
            return error_usage(
                err,
                "--attention vanilla stores the whole T x T matrix on one rank and cannot serve --sp %d; use "
                "--sp 1, or --attention auto",
                config->ranks);
        }
        break;
    case EXCHANGE_RING:
    case EXCHANGE_GATHER: break;
    }
    config->ulysses = 1;
    return true;
}
