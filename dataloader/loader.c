// The grid of windows of an epoch, its order, and a shard's part of a window.
#include "dataloader/loader.h"

#include <stdlib.h>
#include <string.h>

#include "base/pulse.h"
#include "base/random.h"

int64_t loader_windows(const Loader *loader) { return (loader->end - loader->begin - 1) / loader->context; }

bool loader_init(Loader *loader, const TokenSource *source, int64_t begin, int64_t end, int64_t context, uint64_t seed,
                 bool shuffle, Error *err) {
    if (context < 1) return error_usage(err, "--context %lld: must be at least 1", (long long)context);
    if (begin < 0 || end > tokens_count(source) || end - begin <= context)
        return error_set(err, "%s: %lld tokens are too few for a window of --context %lld and its last target; give "
                         "more data or a smaller --context", tokens_name(source),
                         (long long)(end > begin ? end - begin : 0), (long long)context);
    *loader = (Loader){source, begin, end, context, context, seed, shuffle, {0, 0}, tokens_task(source), NULL};
    if (loader->task == NULL) return true;
    loader->shuffle = false; // every window is drawn
    if (!task_check_context(loader->task, context, err)) return false;
    loader->made = malloc((size_t)(2 * context) * sizeof *loader->made);
    return loader->made != NULL ||
           error_set(err, "out of memory for a window of %lld tokens of %s", (long long)context, tokens_name(source));
}

void loader_close(Loader *loader) {
    free(loader->made);
    loader->made = NULL;
}

int64_t loader_answers(const Loader *loader) {
    return loader->task != NULL ? task_answers(loader->task, loader->context) : loader->context;
}

// The windows of an epoch start at grid_start + i * context. All but `spare` tokens are targets of some window, so the
// grid has spare + 1 places to stand.
static int64_t grid_start(const Loader *loader, uint64_t epoch) {
    if (!loader->shuffle) return loader->begin;
    int64_t spare = loader->end - loader->begin - 1 - loader_windows(loader) * loader->context;
    return loader->begin + (int64_t)random_below(loader->seed, RANDOM_STREAM_DATA, epoch, (uint64_t)spare + 1);
}

static uint64_t window_at(const Loader *loader, LoaderState place) {
    if (!loader->shuffle) return place.cursor;
    uint64_t stream = (place.epoch + 1) << 32 | RANDOM_STREAM_DATA; // one order per epoch
    return random_permute(loader->seed, stream, (uint64_t)loader_windows(loader), place.cursor);
}

void loader_next(Loader *loader, int64_t count, int64_t *first_token) {
    LoaderState *place = &loader->state;
    int64_t pieces = loader->context / loader->sequence;
    for (int64_t i = 0; i < count; i += pieces) {
        if (place->cursor >= (uint64_t)loader_windows(loader)) *place = (LoaderState){place->epoch + 1, 0};
        int64_t window = grid_start(loader, place->epoch) + (int64_t)window_at(loader, *place) * loader->context;
        for (int64_t piece = 0; piece < pieces; piece++) first_token[i + piece] = window + piece * loader->sequence;
        place->cursor++;
    }
}

// Makes the whole window, which costs next to nothing beside training on it, and takes the shard's tokens.
static void make_window(const Loader *loader, int64_t first_token, const Shard *shard, int32_t *inputs,
                        int32_t *targets) {
    int64_t T = loader->context;
    TaskSplit split = loader->begin == 0 ? TASK_TRAINING : TASK_VALIDATION;
    int32_t *made_targets = loader->made + T;
    task_window(loader->task, split, loader->seed, (uint64_t)((first_token - loader->begin) / T), T, loader->made,
                made_targets);
    for (int c = 0; c < shard->count; c++) {
        int64_t start = shard->chunk[c].start, length = shard->chunk[c].length;
        memcpy(inputs, loader->made + start, (size_t)length * sizeof *inputs);
        memcpy(targets, made_targets + start, (size_t)length * sizeof *targets);
        inputs += length;
        targets += length;
    }
}

bool loader_read(const Loader *loader, int64_t first_token, const Shard *shard, int64_t vocabulary, int32_t *inputs,
                 int32_t *targets, int32_t *positions, Error *err) {
    if (loader->task != NULL) make_window(loader, first_token, shard, inputs, targets);
    for (int c = 0; c < shard->count; c++) {
        int64_t start = shard->chunk[c].start, length = shard->chunk[c].length;
        if (length == 0) continue;
        // The last target is the first token of somebody else's chunk, or the one after the window.
        if (loader->task == NULL) {
            if (!tokens_read(loader->source, first_token + start, length, vocabulary, inputs, err) ||
                !tokens_read(loader->source, first_token + start + length, 1, vocabulary, &targets[length - 1], err))
                return false;
            memcpy(targets, inputs + 1, (size_t)(length - 1) * sizeof *targets);
        }
        for (int64_t i = 0; positions != NULL && i < length; i++) positions[i] = (int32_t)(start + i);
        inputs += length;
        targets += length;
        if (positions != NULL) positions += length;
        pulse_beat();
    }
    return true;
}

bool loader_read_documents(const Loader *loader, int64_t first_token, int64_t vocabulary, int32_t separator,
                           int32_t *first_visible, Error *err) {
    if (!tokens_read(loader->source, first_token, loader->sequence, vocabulary, first_visible, err)) return false;
    visibility_of_documents(first_visible, first_visible, loader->sequence, separator);
    return true;
}

bool loader_split(const TokenSource *source, int64_t context, int64_t *train_end, Error *err) {
    int64_t count = tokens_count(source), held_out = count / 10;
    if (held_out <= context)
        return error_set(err, "%s: too short: the last tenth of its %lld tokens, %lld, is held out for validation and "
                         "must fill --context %lld plus 1; give more data, --val-data or a smaller --context",
                         tokens_name(source), (long long)count, (long long)held_out, (long long)context);
    *train_end = count - held_out;
    return true;
}
