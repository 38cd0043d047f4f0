// Forward attention of one (query chunk, key/value chunk) pair, after FlashAttention (Dao et al. 2022, algorithm 1).
//
// A task is a block of queries of one head. It holds their state, and passes over the keys that they see in blocks
// small enough for the scores to stay in cache, which begin at the same keys for every task:
//   S = K (scale Q)^T      keys x queries, see tile_kernels.h
//   P = exp(S - max)       and the rescaling of what was there where a maximum has grown
//   accumulator += P^T V
// Tasks share nothing, so the result does not depend on threads. Nor does it depend on how the queries are cut, since
// every query meets the same blocks of keys.
#include "attention/cpu/blocks.h"
#include "attention/cpu/pairs.h"
#include "layers/cpu/parallel.h"

enum { KEY_BLOCK = 64, LARGEST_QUERY_BLOCK = 256, SMALLEST_QUERY_BLOCK = 32 };

typedef struct ForwardPair {
    const TileKernels *kernels;
    const AttentionShape *shape;
    const QueryForward *query;
    const KeyValue *kv;
    int64_t query_block; // queries in a task
    Scratch scratch;
} ForwardPair;

typedef struct ForwardScratch {
    Rows query_transposed;  // D x queries, scaled
    Rows scores;            // keys x queries
    Rows value;             // keys x padded D
    Rows accumulator;       // queries x padded D
    Rows max, sum, rescale; // one row of queries each
    Rows first_key;         // of int32: the first key that each query sees
} ForwardScratch;

static ForwardScratch lay_out(Layout *layout, int64_t D, int64_t queries) {
    int64_t padded = round_up_to_strip(D);
    ForwardScratch s;
    s.query_transposed = take_rows(layout, D, queries);
    s.scores = take_rows(layout, KEY_BLOCK, queries);
    s.value = take_rows(layout, KEY_BLOCK, padded);
    s.accumulator = take_rows(layout, queries, padded);
    s.max = take_rows(layout, 1, queries);
    s.sum = take_rows(layout, 1, queries);
    s.rescale = take_rows(layout, 1, queries);
    s.first_key = take_rows(layout, 1, queries);
    return s;
}

static void forward_block(const ForwardPair *pair, const ForwardScratch *s, Block block, Rows key, Rows value) {
    const TileKernels *kernels = pair->kernels;
    int64_t D = pair->shape->head_dim, padded = round_up_to_strip(D), columns = round_up_to_strip(block.queries);
    block_scores(kernels, block, D, key, s->query_transposed, s->scores);
    kernels->softmax(s->scores, block.keys, columns, block.mask, s->max.data, s->sum.data, s->rescale.data);
    kernels->scale_rows(s->accumulator, block.queries, padded, s->rescale.data);
    kernels->pack(s->value, padded, value, block.keys, D);
    block_add_to_queries(kernels, block, padded, s->scores, s->value, s->accumulator);
}

static void forward_queries(const ForwardPair *pair, int64_t b, int64_t h, int64_t first, Layout layout) {
    const TileKernels *kernels = pair->kernels;
    const QueryForward *query = pair->query;
    const KeyValue *kv = pair->kv;
    int64_t D = pair->shape->head_dim, padded = round_up_to_strip(D);
    int64_t kv_head = h / (pair->shape->heads / pair->shape->kv_heads);
    int64_t queries = smaller(pair->query_block, query->chunk.length - first), columns = round_up_to_strip(queries);
    Chunk positions = {query->chunk.start + first, queries};
    KeyRange visible = visible_keys(&query->visibility, b, positions, kv->chunk);
    if (visible.first == visible.end) return;

    ForwardScratch s = lay_out(&layout, D, round_up_to_strip(pair->query_block));
    Rows accumulator = float_rows(query->accumulator, b, first, h, D);
    Rows max = {row_values(query->max, b, first, h), 0}, sum = {row_values(query->sum, b, first, h), 0};
    kernels->pack_transposed(s.query_transposed, columns, token_rows(query->q, b, first, h, D), queries, D,
                             pair->shape->scale);
    kernels->pack(s.accumulator, padded, accumulator, queries, D);
    kernels->pack(s.max, columns, max, 1, queries);
    kernels->pack(s.sum, columns, sum, 1, queries);

    const int32_t *first_key = first_keys((int32_t *)s.first_key.data, &query->visibility, b, positions, kv->chunk);
    for (int64_t j = visible.first / KEY_BLOCK * KEY_BLOCK; j < visible.end; j += KEY_BLOCK) {
        Block block = block_at(j, smaller(KEY_BLOCK, visible.end - j), queries, positions.start - (kv->chunk.start + j),
                               first_key);
        Rows key = token_rows(kv->k, b, j, kv_head, D), value = token_rows(kv->v, b, j, kv_head, D);
        int64_t next = smaller(KEY_BLOCK, visible.end - j - KEY_BLOCK);
        prefetch_rows(rows_from(key, KEY_BLOCK, 0), next, D);
        prefetch_rows(rows_from(value, KEY_BLOCK, 0), next, D);
        forward_block(pair, &s, block, key, value);
    }

    kernels->pack(accumulator, D, s.accumulator, queries, D);
    kernels->pack(max, queries, s.max, 1, queries);
    kernels->pack(sum, queries, s.sum, 1, queries);
}

static int64_t query_blocks(const ForwardPair *pair) {
    return (pair->query->chunk.length + pair->query_block - 1) / pair->query_block;
}

// Large blocks load each key least often; smaller ones where there would be too few to keep all threads busy.
static void choose_query_block(ForwardPair *pair, int threads) {
    int64_t rows = pair->shape->batch * pair->shape->heads;
    pair->query_block = LARGEST_QUERY_BLOCK;
    while (pair->query_block > SMALLEST_QUERY_BLOCK && rows * query_blocks(pair) < 4 * threads) pair->query_block /= 2;
}

// The last queries see the most keys: they come first, so that short tasks are left to even out the end.
static void forward_task(void *context, int64_t task, int worker) {
    const ForwardPair *pair = context;
    int64_t heads = pair->shape->heads, rows = pair->shape->batch * heads;
    int64_t row = task % rows, block = query_blocks(pair) - 1 - task / rows;
    forward_queries(pair, row / heads, row % heads, block * pair->query_block, scratch_of(&pair->scratch, worker));
}

static int64_t floats_of_worker(int64_t D, int64_t query_block) {
    Layout layout = {NULL, 0};
    lay_out(&layout, D, query_block);
    return layout.used;
}

size_t cpu_forward_scratch_bytes(const AttentionShape *shape, int threads) {
    return scratch_bytes(threads, floats_of_worker(shape->head_dim, LARGEST_QUERY_BLOCK));
}

void cpu_forward_pair(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv) {
    if (!pair_is_seen(&query->visibility, shape->batch, query->chunk, kv->chunk)) return;
    ForwardPair pair = {.kernels = tile_kernels(), .shape = shape, .query = query, .kv = kv};
    choose_query_block(&pair, device->threads);
    pair.scratch = scratch_from(device, "attention", floats_of_worker(shape->head_dim, pair.query_block));
    parallel_for(device->threads, shape->batch * shape->heads * query_blocks(&pair), forward_task, &pair);
}
