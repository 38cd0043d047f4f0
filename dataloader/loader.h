// Which windows of the tokens make up each batch, and each rank's shard of a window.
//
// A window is T+1 consecutive tokens: T inputs, and the same shifted by one as targets (shifted before sharding). An
// epoch serves every window of a grid of step T once, in an order drawn by a counter-based permutation; the grid's
// start moves from epoch to epoch by up to the tokens that do not fill a window, so none is left out for good (without
// shuffle it stays at the beginning of the split). Two numbers are the loader's whole place.
//
// The windows of a synthetic task (dataloader/task.h) are made when they are read, in the order of their numbers; an
// epoch of them does not end.
#ifndef DATALOADER_LOADER_H
#define DATALOADER_LOADER_H

#include "sequence/sharding.h"
#include "dataloader/tokens.h"

typedef struct LoaderState {
    uint64_t epoch;
    uint64_t cursor; // windows served in this epoch
} LoaderState;

typedef struct Loader {
    const TokenSource *source;
    int64_t begin, end; // the split: tokens [begin, end) of the source
    int64_t context;    // T, tokens of a window
    int64_t sequence;   // tokens of what is served: T, or a divisor of it, where windows are cut into sequences
    uint64_t seed;
    bool shuffle;
    LoaderState state;
    const Task *task; // that makes the windows; NULL: they are read
    int32_t *made;    // (2, T) of the window at work: inputs, targets
} Loader;

// Fails if the split has fewer than T+1 tokens (says how many it has, and which option to change), or the task needs a
// longer context. Free with loader_close.
bool loader_init(Loader *loader, const TokenSource *source, int64_t begin, int64_t end, int64_t context, uint64_t seed,
                 bool shuffle, Error *err);
void loader_close(Loader *loader);
int64_t loader_windows(const Loader *loader); // per epoch
int64_t loader_answers(const Loader *loader); // targets of a window that count: T, or those that a task asks for
// The first tokens of the next `count` sequences, which are whole windows, in order; crosses into the next epoch where
// this one ends.
void loader_next(Loader *loader, int64_t count, int64_t *first_token);
// Inputs, targets and global positions of the tokens of one sequence that a shard owns, shard->tokens of each, in shard
// order. Reads only those tokens (and each chunk's next one). positions may be NULL. A task's target is TASK_NOT_ASKED
// where it does not count.
bool loader_read(const Loader *loader, int64_t first_token, const Shard *shard, int64_t vocabulary, int32_t *inputs,
                 int32_t *targets, int32_t *positions, Error *err);

// For attention that stops at the ends of documents: the first token that each of a sequence's sees, counted from the
// sequence's beginning (sequence/visibility.h). Every rank reads the whole sequence for it, which costs next to nothing
// beside attention, instead of asking others where their documents end.
bool loader_read_documents(const Loader *loader, int64_t first_token, int64_t vocabulary, int32_t separator,
                           int32_t *first_visible, Error *err);

// Splits a source: the last tenth (at least T+1 tokens, else an error) is held out.
bool loader_split(const TokenSource *source, int64_t context, int64_t *train_end, Error *err);

#endif
