// What linear attention's passes on the CPU share: the walk over windows of blocks, and where a block's tokens lie.
#ifndef MIXER_CPU_LINEAR_H
#define MIXER_CPU_LINEAR_H

#include "attention/cpu/blocks.h"
#include "mixer/cpu/linear_tiles.h"
#include "mixer/linear.h"

enum { BLOCK = LINEAR_BLOCK, WINDOW = 512 / BLOCK, POWERS = 2 * BLOCK + STRIP }; // WINDOW: in blocks (linear_window)

// One worker's room for one block of one query head. P: D rounded up to whole strips.
typedef struct BlockScratch {
    Rows q, k;                       // tokens x P
    Rows v, g;                       // tokens x (P + STRIP), ones in column D; delta in column D
    Rows scaled;                     // tokens x P: keys or queries times powers of g
    Rows q_transposed, g_transposed; // D x BLOCK; (D + 1) x BLOCK
    Rows scores, d_scores;           // keys x queries
    Rows result;                     // STRIP x P
    Rows square;                     // D x P
    Rows factor, sums, first;        // one row each; `first` of int32
} BlockScratch;

// A part of the work: on one block of a window, for the query heads that read one key/value head of one sequence.
// alone: the task has all parts of that group.
typedef struct Part {
    bool alone;
    int64_t group; // of the B x KV
    int64_t window, block;
    float *states; // of the group: (2, query heads, WINDOW + 1, state)
    BlockScratch *scratch;
} Part;
typedef struct Walk Walk;
typedef void Phase(const Walk *, const Part *);
enum { PHASES = 4 };

// A pass over a chunk, window by window. A group of heads needs nothing of another, so where there are at least as many
// as threads, each goes through all windows by itself, in each block after block: `onward`, and then `back` from the
// last to the first (NULL: not in this pass). Else it is phase by phase, whose parts are dealt out: the same sums in
// the same order, and so the same bits.
struct Walk {
    const TileKernels *kernels;
    const LinearTiles *tiles;
    const LinearShape *shape;
    const LinearTokens *tokens;
    Phase *onward, *back;
    Phase *phase[PHASES];
    bool from_behind;   // the last window first
    const float *begin; // the states that it goes on from; NULL: none
    float *end;         // those that it leaves; NULL: not wanted
    // set by `walk`
    int64_t padded, state;           // P; floats of a state here, (D + 1) x P
    int64_t heads, together;         // of a group; groups in a task
    int64_t groups, blocks, windows; // blocks: of the chunk
    float *powers;                   // (H, POWERS)
    float *states;                   // by group or by worker
    Scratch scratch;                 // of workers
};

size_t walk_scratch_bytes(const LinearShape *shape, int threads);
void walk(Device *device, Walk *walk, const char *who);
// Blocks of a window.
int64_t blocks_of(const Walk *w, int64_t window);

// The block of a part, for query head i of its group.
typedef struct Place {
    int64_t b, h, kv_head;
    int64_t token, length; // of the chunk
    int64_t position;      // of its first token
} Place;
Place place_of(const Walk *w, const Part *part, int64_t i, int64_t block);

// State `slot`, 0 to WINDOW, of head i of the group; which: 0 or 1.
static inline Rows state_at(const Walk *w, const Part *part, int which, int64_t i, int64_t slot) {
    return (Rows){part->states + ((which * w->heads + i) * (WINDOW + 1) + slot) * w->state, w->padded};
}
// Of states as mixer/linear.h has them.
static inline float *outer_state(const Walk *w, const float *states, Place p) {
    int64_t D = w->shape->head_dim;
    return (float *)states + (p.b * w->shape->heads + p.h) * linear_state(D);
}

// power_of(h)[n] = g^n, for n up to BLOCK; 0 for n < 0, from -BLOCK on.
static inline const float *power_of(const Walk *w, int64_t h) { return w->powers + h * POWERS + BLOCK; }
// The first token that the one at `position` sees.
static inline int64_t first_of(const Walk *w, int64_t b, int64_t position) {
    return w->shape->first == NULL ? 0 : w->shape->first[b * w->shape->context + position];
}
// What each query of the block sees, counted from its first key; NULL: all before it.
const int32_t *first_in_block(const Walk *w, Place p, const BlockScratch *s);

// Packed tokens of the block, padded to P: row r times factor[r]; factor NULL: 1.
void pack_tokens(const Walk *w, Place p, Rows to, TokenView from, int64_t head, const float *factor);
// s->v = the values, with ones.
void pack_values(const Walk *w, Place p, const BlockScratch *s);

// scores (length, length) = a (length, k) b (k, length), key by query.
void scores_of(const Walk *w, int64_t length, int64_t k, Rows a, Rows b, Rows scores);
// A strip of results: row r is factor[r] times that of a (rows, k) state (k, P).
void strip_of_state(const Walk *w, int64_t rows, int64_t k, Factor a, Rows state, const float *factor, Rows result);
// Then += what the block's scores say: for the queries from `row` on, of b (keys, P); or for the keys, of b (queries,
// P).
void strip_from_keys(const Walk *w, int64_t row, int64_t length, Rows scores, Rows b, Rows result);
void strip_from_queries(const Walk *w, int64_t row, int64_t length, Rows scores, Rows b, Rows result);

// Phases of all passes, which do the part's share of rows of the states: where it is alone, all rows, and of the sums
// those of its block. Of `which` = 0, slot c is the state before
// block c, and block c's own stands in slot c + 1 until then. Of 1, slot c + 1 is what comes from behind block c, and
// block c's own stands in slot c.
void begin_states(const Walk *w, const Part *part, int which);
void sum_states(const Walk *w, const Part *part, int which);

void cpu_linear_own_before(Device *, const LinearShape *, const LinearTokens *, float *states);
void cpu_linear_forward(Device *, const LinearShape *, const LinearTokens *, const float *before, float *after);
void cpu_linear_own_behind(Device *, const LinearShape *, const LinearTokens *, float *states);
void cpu_linear_backward(Device *, const LinearShape *, const LinearTokens *, const float *behind);

#endif
