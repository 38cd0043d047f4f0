// Distributed attention, put together:
//
//   my tokens of all heads -> [Ulysses, over U ranks] -> walk by ring or gather, over P/U ranks -> [Ulysses, back]
//
// U = 1 leaves the ring or gather alone, U = P leaves Ulysses alone: the walk is then that of one rank over one chunk,
// [0, T). Rank r of P is rank r % U of those who share heads and rank r / U of its ring: neighbours share heads.
#include "attention/attention.h"

#include <stdlib.h>

#include "attention/dilated.h"
#include "attention/exchange.h"

struct AttentionScratch {
    Walk walk;
    Ulysses ulysses;
    void *probabilities, *probability_rows; // vanilla
    float *delta;
    CommRequest *requests; // of ulysses
    Passage *passages;     // of walk
};

// ---- layout -------------------------------------------------------------------------------------

static int64_t largest_shard(int64_t T, int ranks) {
    int64_t largest = 0;
    for (int rank = 0; rank < ranks; rank++) {
        int64_t tokens = shard_of(T, ranks, rank).tokens;
        if (largest < tokens) largest = tokens;
    }
    return largest;
}

static int64_t least_dilation(const AttentionConfig *config) {
    int64_t least = config->window_count == 0 ? 1 : INT64_MAX;
    for (int i = 0; i < config->window_count; i++)
        if (least > config->windows[i].dilation) least = config->windows[i].dilation;
    return least > 1 ? least : 1;
}

// `ranks` are all those of the sequence: one alone keeps nothing but delta in memory, since its kernels meet all keys
// at once and write what they have summed up in storage type. But dilated ones, backward, meet keys several times.
static void lay_out_walk(Walk *walk, int ranks, const AttentionConfig *config, Arena *arena) {
    const AttentionShape *shape = &walk->shape;
    size_t rows = (size_t)(shape->batch * shape->heads * walk->shard.tokens) * sizeof(float);
    walk->rows = arena_take(arena, "attention: softmax sum, delta", rows);
    bool dilated = attention_is_dilated(config);
    if (dilated && config->documents) {
        size_t firsts = (size_t)dilated_first_elements(shape->batch, walk->context, 2); // of the least dilation
        walk->first = arena_take(arena, "attention: first keys seen", firsts * sizeof *walk->first);
    }
    if (ranks == 1 && !dilated) return;
    walk->queries =
        arena_take(arena, "attention: softmax accumulator, gradient of queries", rows * (size_t)shape->head_dim);

    size_t token = (size_t)(walk_token_elements(shape) / least_dilation(config)),
           tokens = (size_t)largest_shard(walk->context, walk->ranks);
    bool gather = config->exchange == EXCHANGE_GATHER, limited = config->documents;
    for (int i = 0; i < config->window_count; i++) limited = limited || config->windows[i].window > 0;
    int gradients = walk->ranks == 1 ? 1 : gather || limited ? 4 : 3;
    for (int i = 0; i < gradients; i++) {
        walk->gradient[i] =
            arena_take(arena, "attention: gradients of keys and values", tokens * token * sizeof(float));
    }
    if (walk->ranks == 1) return;
    if (gather) {
        walk->block[0] =
            arena_take(arena, "attention: all keys and values", (size_t)walk->context * token * config->element_bytes);
        return;
    }
    for (int i = 0; i < 2; i++) {
        walk->block[i] =
            arena_take(arena, "attention: travelling keys and values", tokens * token * config->element_bytes);
    }
}

static void lay_out_vanilla(struct AttentionScratch *scratch, const AttentionConfig *config, Arena *arena) {
    const AttentionShape *shape = &config->shape;
    size_t T = (size_t)config->context, rows = (size_t)(shape->batch * shape->heads) * T;
    size_t row_bytes = config->kernels == NULL ? 0 : config->kernels->vanilla_row_bytes(shape, config->context);
    scratch->probabilities = arena_take(arena, "attention: probabilities, T x T", rows * T * config->element_bytes);
    scratch->probability_rows = arena_take(arena, "attention: gradient of probabilities, some rows", row_bytes);
    scratch->delta = arena_take(arena, "attention: softmax sum, delta", rows * sizeof(float));
}

// Which tokens a rank walks over, of which heads.
static Walk walk_of(const AttentionConfig *config, int rank) {
    int U = config->ulysses, groups = config->ranks / U;
    AttentionShape heads = config->shape;
    heads.heads /= U;
    heads.kv_heads = ulysses_kv_heads(heads.kv_heads, U);
    Shard shard = shard_of(config->context, groups, rank / U);
    return (Walk){.context = config->context, .ranks = groups, .rank = rank / U, .shard = shard, .shape = heads};
}

static void lay_out(struct AttentionScratch *scratch, const AttentionConfig *config, int rank, Arena *arena) {
    if (config->exchange == EXCHANGE_VANILLA) {
        lay_out_vanilla(scratch, config, arena);
        return;
    }
    int U = config->ulysses, P = config->ranks;
    scratch->walk = walk_of(config, rank);
    lay_out_walk(&scratch->walk, P, config, arena);
    if (U == 1) return;
    scratch->ulysses = (Ulysses){.ranks = U,
                                 .rank = rank % U,
                                 .context = config->context,
                                 .all_ranks = P,
                                 .first = rank / U * U,
                                 .mine = shard_of(config->context, P, rank),
                                 .group = scratch->walk.shard,
                                 .tokens_shape = config->shape,
                                 .heads_shape = scratch->walk.shape,
                                 .element_bytes = config->element_bytes};
    ulysses_lay_out(&scratch->ulysses, arena);
}

size_t attention_scratch_bytes(const AttentionConfig *resolved, int rank, const AttentionKernels *kernels,
                               int threads) {
    if (kernels == NULL || kernels->scratch_bytes == NULL) return 0;
    if (resolved->exchange == EXCHANGE_VANILLA) return kernels->scratch_bytes(&resolved->shape, 0, threads);
    Walk walk = walk_of(resolved, rank);
    int64_t longest = 0; // of the chunks of queries, each of which is a call of its own
    for (int i = 0; i < walk.shard.count; i++)
        if (longest < walk.shard.chunk[i].length) longest = walk.shard.chunk[i].length;
    return kernels->scratch_bytes(&walk.shape, longest, threads);
}

void attention_lay_out(Attention *attention, const AttentionConfig *resolved, int rank, Arena *arena) {
    *attention =
        (Attention){.config = *resolved, .rank = rank, .shard = shard_of(resolved->context, resolved->ranks, rank)};
    if (arena->base == NULL) { // planning: nothing is kept
        struct AttentionScratch planned = {0};
        lay_out(&planned, resolved, rank, arena);
        return;
    }
    struct AttentionScratch *scratch = calloc(1, sizeof *scratch);
    if (scratch != NULL) {
        scratch->requests = calloc((size_t)(4 * resolved->ulysses), sizeof *scratch->requests);
        scratch->passages = calloc((size_t)(resolved->ranks / resolved->ulysses), sizeof *scratch->passages);
    }
    if (scratch == NULL || scratch->requests == NULL || scratch->passages == NULL) {
        Error err;
        error_set(&err, "out of memory for attention's table of messages");
        die(&err);
    }
    lay_out(scratch, resolved, rank, arena);
    scratch->walk.passage = scratch->passages;
    scratch->ulysses.request = scratch->requests;
    attention->scratch = scratch;
}

void attention_connect(Attention *attention, Comm *group) {
    int U = attention->config.ulysses;
    attention->group = group;
    attention->heads_group = comm_split(group, attention->rank / U, attention->rank % U);
    attention->ring_group = comm_split(group, attention->rank % U, attention->rank / U);
    attention->scratch->ulysses.comm = attention->heads_group;
    attention->scratch->walk.group = attention->ring_group;
}

void attention_take_over(Attention *attention, Attention *before) {
    bool same = attention->config.ulysses == before->config.ulysses;
    if (same) {
        attention->group = before->group;
        attention->scratch->ulysses.comm = attention->heads_group = before->heads_group;
        attention->scratch->walk.group = attention->ring_group = before->ring_group;
        before->heads_group = before->ring_group = NULL;
    }
    attention_disconnect(before);
    if (!same) attention_connect(attention, before->group);
}

void attention_disconnect(Attention *attention) {
    comm_free(attention->heads_group);
    comm_free(attention->ring_group);
    if (attention->scratch != NULL) {
        free(attention->scratch->requests);
        free(attention->scratch->passages);
    }
    free(attention->scratch);
    attention->heads_group = attention->ring_group = NULL;
    attention->scratch = NULL;
}

int64_t attention_bytes_sent(const Attention *attention) {
    return comm_bytes_sent(attention->heads_group) + comm_bytes_sent(attention->ring_group);
}

// ---- forward and backward -----------------------------------------------------------------------

// The walk and Ulysses, ready for a call.
static const Walk *walk_on(Attention *attention, Device *device, Visibility visibility) {
    Walk *walk = &attention->scratch->walk;
    walk->device = device;
    walk->visibility = visibility;
    walk->on_host = visibility_on_host(&visibility);
    walk->block_shape = walk->shape;
    if (visibility.dilation > 1) walk->block_shape.kv_heads /= visibility.dilation;
    return walk;
}
static const Ulysses *ulysses_on(Attention *attention, Device *device) {
    attention->scratch->ulysses.device = device;
    return &attention->scratch->ulysses;
}

static void meet_forward(const Attention *attention, const Walk *walk, const Tensors *mine) {
    if (walk->ranks == 1) walk_forward_alone(walk, mine);
    else if (attention->config.exchange == EXCHANGE_GATHER) gather_forward(walk, mine);
    else ring_forward(walk, mine);
}

static const float *meet_backward(const Attention *attention, const Walk *walk, const Tensors *mine) {
    return attention->config.exchange == EXCHANGE_GATHER ? gather_backward(walk, mine) : ring_backward(walk, mine);
}

void attention_forward(Attention *attention, Device *device, Visibility visibility, TokenView out, float *log_sum_exp,
                       TokenView q, TokenView k, TokenView v) {
    const AttentionConfig *config = &attention->config;
    Tensors mine = {.q = q, .k = k, .v = v, .out = out, .log_sum_exp = log_sum_exp};
    if (config->exchange == EXCHANGE_VANILLA) {
        device->attention->vanilla_forward(device, &config->shape, config->context, &visibility,
                                           attention->scratch->probabilities, out, log_sum_exp, q, k, v);
        return;
    }
    const Walk *walk = walk_on(attention, device, visibility);
    if (config->ulysses == 1) {
        meet_forward(attention, walk, &mine);
        return;
    }
    const Ulysses *ulysses = ulysses_on(attention, device);
    Tensors heads = ulysses_forward_to_heads(ulysses, &mine);
    meet_forward(attention, walk, &heads);
    ulysses_forward_to_tokens(ulysses, &mine, &heads);
}

// delta (B, H, Tl), of all heads and my tokens: sum over D of d_out * out.
static void row_delta(const Attention *attention, Device *device, const Tensors *mine) {
    const AttentionShape *shape = &attention->config.shape;
    int64_t tokens = attention->shard.tokens;
    RowView delta = {mine->delta, shape->heads * tokens, tokens};
    device->attention->row_delta(device, shape, (Chunk){0, tokens}, mine->out, mine->d_out, delta);
}

void attention_backward(Attention *attention, Device *device, Visibility visibility, TokenView d_q, TokenView d_k,
                        TokenView d_v, TokenView q, TokenView k, TokenView v, TokenView out, const float *log_sum_exp,
                        TokenView d_out) {
    const AttentionConfig *config = &attention->config;
    struct AttentionScratch *scratch = attention->scratch;
    Tensors mine = {
        .q = q, .k = k, .v = v, .out = out, .d_out = d_out, .d_q = d_q, .log_sum_exp = (float *)log_sum_exp};
    if (config->exchange == EXCHANGE_VANILLA) {
        mine.delta = scratch->delta;
        row_delta(attention, device, &mine);
        device->attention->vanilla_backward(device, &config->shape, config->context, &visibility,
                                            scratch->probabilities, scratch->probability_rows, d_q, d_k, d_v, q, k, v,
                                            out, log_sum_exp, d_out, mine.delta);
        return;
    }
    const Walk *walk = walk_on(attention, device, visibility);
    mine.delta = config->ulysses == 1 ? walk->rows : scratch->ulysses.delta;
    if (visibility.dilation > 1) walk_row_delta(walk, &mine);
    else row_delta(attention, device, &mine);
    if (config->ranks == 1 && visibility.dilation <= 1) {
        walk_backward_alone(walk, &mine, d_k, d_v);
        return;
    }
    if (config->ulysses == 1) {
        walk_store_gradient(walk, meet_backward(attention, walk, &mine), d_k, d_v);
        return;
    }
    const Ulysses *ulysses = ulysses_on(attention, device);
    Tensors heads = ulysses_backward_to_heads(ulysses, &mine, walk->rows);
    const float *gradient = meet_backward(attention, walk, &heads);
    ulysses_backward_to_tokens(ulysses, d_q, d_k, d_v, &heads, gradient);
}
