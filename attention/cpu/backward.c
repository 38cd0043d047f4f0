// Backward attention of one (query chunk, key/value chunk) pair: five products over the scores, which are computed anew
// from the log-sum-exp (Dao et al. 2022, algorithm 4). With blocks key by query, and S as in the forward pass:
//   P = exp(S - log_sum_exp)           dV += P dO
//   dP = V dO^T                        dS = scale P (dP - delta)
//   dK += dS Q                         dQ += dS^T K
//
// A pair of cells, of queries and of keys, adds to the gradients of both, so two tasks at work at the same time must
// not share a row or a column of cells. As in a round-robin tournament, phase p of N brings cell i of the queries
// together with cell (p - i) mod N of the keys: no cell twice in a phase, every pair of cells in exactly one, and under
// the causal diagonal every phase has the same work, half of its pairs, since (i, j) and (j, i) fall in the same one.
// So all threads have work on a single head, no gradient is held twice, and every sum has an order that no timing
// changes. Within a window, cell i of the queries meets few cells of the keys, at few distances: there phase p brings
// it together with cell (i - p) mod N, all pairs of a distance at once, and most phases have nothing to do.
#include "attention/cpu/blocks.h"
#include "attention/cpu/pairs.h"
#include "layers/cpu/parallel.h"

enum { LARGEST_CELL = 512, SMALLEST_CELL = 128, ENOUGH_TASKS = 8, QUERY_BLOCK = 128, KEY_BLOCK = 64 };

typedef struct BackwardPair {
    const TileKernels *kernels;
    const AttentionShape *shape;
    const QueryBackward *query;
    const KeyValue *kv;
    int64_t cell; // tokens in a cell
    int64_t query_cells, key_cells, phases, phase;
    bool by_distance; // there is a window
    Scratch scratch;
} BackwardPair;

typedef struct BackwardScratch {
    Rows key, d_key, d_value;                // cell of keys x padded D
    Rows query_transposed, d_out_transposed; // D x queries; the former scaled
    Rows query, d_out, d_query;              // queries x padded D
    Rows log_sum_exp, delta;                 // one row of queries each
    Rows weights, d_scores;                  // keys x queries
    Rows first_key;                          // of int32: the first key that each query sees
} BackwardScratch;

static BackwardScratch lay_out(Layout *layout, int64_t D, int64_t cell) {
    int64_t padded = round_up_to_strip(D);
    BackwardScratch s;
    s.key = take_rows(layout, cell, padded);
    s.d_key = take_rows(layout, cell, padded);
    s.d_value = take_rows(layout, cell, padded);
    s.query_transposed = take_rows(layout, D, QUERY_BLOCK);
    s.d_out_transposed = take_rows(layout, D, QUERY_BLOCK);
    s.query = take_rows(layout, QUERY_BLOCK, padded);
    s.d_out = take_rows(layout, QUERY_BLOCK, padded);
    s.d_query = take_rows(layout, QUERY_BLOCK, padded);
    s.log_sum_exp = take_rows(layout, 1, QUERY_BLOCK);
    s.delta = take_rows(layout, 1, QUERY_BLOCK);
    s.weights = take_rows(layout, KEY_BLOCK, QUERY_BLOCK);
    s.d_scores = take_rows(layout, KEY_BLOCK, QUERY_BLOCK);
    s.first_key = take_rows(layout, 1, QUERY_BLOCK);
    return s;
}

static void zero_rows(Rows x, int64_t rows) {
    for (int64_t i = 0; i < rows * x.stride; i++) x.data[i] = 0;
}

// key and value: rows of the chunk; `row`: where they stand in the cell's scratch.
static void backward_block(const BackwardPair *pair, const BackwardScratch *s, Block block, Rows key, Rows value,
                           int64_t row) {
    const TileKernels *kernels = pair->kernels;
    int64_t D = pair->shape->head_dim, padded = round_up_to_strip(D), columns = round_up_to_strip(block.queries);
    block_scores(kernels, block, D, key, s->query_transposed, s->weights);
    block_scores(kernels, block, D, value, s->d_out_transposed, s->d_scores);
    kernels->softmax_backward(s->weights, s->d_scores, block.keys, columns, block.mask, s->log_sum_exp.data,
                              s->delta.data, pair->shape->scale);
    block_add_to_keys(kernels, block, padded, s->weights, s->d_out, rows_from(s->d_value, row, 0));
    block_add_to_keys(kernels, block, padded, s->d_scores, s->query, rows_from(s->d_key, row, 0));
    block_add_to_queries(kernels, block, padded, s->d_scores, rows_from(s->key, row, 0), s->d_query);
}

static void load_queries(const BackwardPair *pair, const BackwardScratch *s, int64_t b, int64_t h, int64_t first,
                         int64_t queries) {
    const TileKernels *kernels = pair->kernels;
    int64_t D = pair->shape->head_dim, padded = round_up_to_strip(D), columns = round_up_to_strip(queries);
    Rows q = token_rows(pair->query->q, b, first, h, D), d_out = token_rows(pair->query->d_out, b, first, h, D);
    Rows log_sum_exp = {row_values(pair->query->log_sum_exp, b, first, h), 0};
    Rows delta = {row_values(pair->query->delta, b, first, h), 0};
    kernels->pack_transposed(s->query_transposed, columns, q, queries, D, pair->shape->scale);
    kernels->pack_transposed(s->d_out_transposed, columns, d_out, queries, D, 1.0f);
    kernels->pack(s->query, padded, q, queries, D);
    kernels->pack(s->d_out, padded, d_out, queries, D);
    kernels->pack(s->log_sum_exp, columns, log_sum_exp, 1, queries);
    kernels->pack(s->delta, columns, delta, 1, queries);
    zero_rows(s->d_query, queries);
}

// The keys of `within` that some of the queries see, but in whole blocks counted from the first of `within`, so that
// every query meets the same ones.
static KeyRange blocks_seen(const BackwardPair *pair, int64_t b, Chunk queries, KeyRange within) {
    KeyRange seen = visible_keys(&pair->query->visibility, b, queries, pair->kv->chunk);
    int64_t skipped = seen.first > within.first ? (seen.first - within.first) / KEY_BLOCK * KEY_BLOCK : 0;
    return (KeyRange){within.first + skipped, smaller(seen.end, within.end)};
}

// Queries first to last (not included) of head h with the `keys` of the chunk, those of the cell at work that are seen,
// the first of which stands in row 0 of its scratch.
static void backward_queries(const BackwardPair *pair, const BackwardScratch *s, int64_t b, int64_t h, int64_t first,
                             int64_t last, KeyRange keys) {
    const KeyValue *kv = pair->kv;
    int64_t D = pair->shape->head_dim, kv_head = h / (pair->shape->heads / pair->shape->kv_heads);
    for (int64_t i = first; i < last; i += QUERY_BLOCK) {
        int64_t queries = smaller(QUERY_BLOCK, last - i);
        Chunk positions = {pair->query->chunk.start + i, queries};
        KeyRange seen = blocks_seen(pair, b, positions, keys);
        if (seen.first >= seen.end) continue;
        load_queries(pair, s, b, h, i, queries);
        const int32_t *first_key =
            first_keys((int32_t *)s->first_key.data, &pair->query->visibility, b, positions, kv->chunk);
        for (int64_t j = seen.first; j < seen.end; j += KEY_BLOCK) {
            Block block = block_at(j, smaller(KEY_BLOCK, seen.end - j), queries,
                                   positions.start - (kv->chunk.start + j), first_key);
            backward_block(pair, s, block, token_rows(kv->k, b, j, kv_head, D), token_rows(kv->v, b, j, kv_head, D),
                           j - keys.first);
        }
        pair->kernels->add(float_rows(pair->query->d_q, b, i, h, D), s->d_query, queries, D);
    }
}

// One cell of queries with one cell of keys, for one key/value head and all the query heads that read it.
static void backward_cell(const BackwardPair *pair, int64_t b, int64_t kv_head, int64_t query_cell, int64_t key_cell,
                          Layout layout) {
    const TileKernels *kernels = pair->kernels;
    const KeyValue *kv = pair->kv;
    int64_t D = pair->shape->head_dim, group = pair->shape->heads / pair->shape->kv_heads;
    int64_t first = query_cell * pair->cell, last = smaller(first + pair->cell, pair->query->chunk.length);
    KeyRange cell = {key_cell * pair->cell, (key_cell + 1) * pair->cell};
    KeyRange keys = blocks_seen(pair, b, (Chunk){pair->query->chunk.start + first, last - first}, cell);
    int64_t count = keys.end - keys.first;
    if (count <= 0) return;

    BackwardScratch s = lay_out(&layout, D, pair->cell);
    kernels->pack(s.key, round_up_to_strip(D), token_rows(kv->k, b, keys.first, kv_head, D), count, D);
    zero_rows(s.d_key, count);
    zero_rows(s.d_value, count);
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++)
        backward_queries(pair, &s, b, h, first, last, keys);
    kernels->add(float_rows(kv->d_k, b, keys.first, kv_head, D), s.d_key, count, D);
    kernels->add(float_rows(kv->d_v, b, keys.first, kv_head, D), s.d_value, count, D);
}

static int64_t key_cell_of(const BackwardPair *pair, int64_t query_cell) {
    int64_t distance = pair->by_distance ? query_cell - pair->phase : pair->phase - query_cell;
    return (distance + pair->phases) % pair->phases;
}

// Whether some pair of cells of this phase has a pair of a query and a key within the window.
static bool phase_is_seen(const BackwardPair *pair) {
    const Visibility window = {.window = pair->query->visibility.window};
    Chunk queries = pair->query->chunk, keys = pair->kv->chunk;
    for (int64_t i = 0; i < pair->query_cells; i++) {
        int64_t j = key_cell_of(pair, i), first = i * pair->cell, key = j * pair->cell;
        if (j < pair->key_cells &&
            visibility_sees(&window, 0, (Chunk){queries.start + first, smaller(pair->cell, queries.length - first)},
                            (Chunk){keys.start + key, smaller(pair->cell, keys.length - key)}))
            return true;
    }
    return false;
}

static void backward_task(void *context, int64_t task, int worker) {
    const BackwardPair *pair = context;
    int64_t kv_heads = pair->shape->kv_heads, rows = pair->shape->batch * kv_heads, row = task % rows;
    int64_t query_cell = task / rows, key_cell = key_cell_of(pair, query_cell);
    if (key_cell >= pair->key_cells) return;
    backward_cell(pair, row / kv_heads, row % kv_heads, query_cell, key_cell, scratch_of(&pair->scratch, worker));
}

// Large cells move each gradient least often; smaller ones where a phase would be short of tasks. This must not depend
// on the number of threads, or the order of the sums would.
static void cut_into_cells(BackwardPair *pair) {
    int64_t rows = pair->shape->batch * pair->shape->kv_heads;
    for (pair->cell = LARGEST_CELL;; pair->cell /= 2) {
        pair->query_cells = (pair->query->chunk.length + pair->cell - 1) / pair->cell;
        pair->key_cells = (pair->kv->chunk.length + pair->cell - 1) / pair->cell;
        pair->phases = pair->query_cells > pair->key_cells ? pair->query_cells : pair->key_cells;
        if (pair->cell == SMALLEST_CELL || rows * pair->phases / 2 >= ENOUGH_TASKS) return;
    }
}

static int64_t floats_of_worker(int64_t D, int64_t cell) {
    Layout layout = {NULL, 0};
    lay_out(&layout, D, cell);
    return layout.used;
}

size_t cpu_backward_scratch_bytes(const AttentionShape *shape, int threads) {
    return scratch_bytes(threads, floats_of_worker(shape->head_dim, LARGEST_CELL));
}

void cpu_backward_pair(Device *device, const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv) {
    if (!pair_is_seen(&query->visibility, shape->batch, query->chunk, kv->chunk)) return;
    BackwardPair pair = {.kernels = tile_kernels(), .shape = shape, .query = query, .kv = kv};
    pair.by_distance = query->visibility.window > 0;
    cut_into_cells(&pair);
    pair.scratch = scratch_from(device, "attention's backward pass", floats_of_worker(shape->head_dim, pair.cell));
    for (pair.phase = 0; pair.phase < pair.phases; pair.phase++)
        if (phase_is_seen(&pair))
            parallel_for(device->threads, shape->batch * shape->kv_heads * pair.query_cells, backward_task, &pair);
}
