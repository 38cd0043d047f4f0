// The file of algorithms, and how all ranks come to have the same.
//
// Runs may share a file at any time: each only ever adds whole lines, in one write, at its end.
#include "run/tuning.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "run/saving.h"
#include "terminal/output.h"

static const char HEADER[] = "# train_gpt --tune: the fastest algorithm of each matrix product, by GPU and library\n";
enum { MOST_BYTES = 4 << 20 }; // some 10,000 products

// ---- lines ---------------------------------------------------------------------------------------------------------

static char *allocate(size_t bytes) {
    char *memory = malloc(bytes);
    Error err;
    if (memory != NULL) return memory;
    error_set(&err, "out of memory for the algorithms of matrix products");
    die(&err);
}

static char *joined(const char *first, const char *second) {
    size_t length = strlen(first), more = strlen(second) + 1;
    char *all = allocate(length + more);
    memcpy(all, first, length);
    memcpy(all + length, second, more);
    return all;
}

static size_t line_length(const char *line) { // with its newline
    return strcspn(line, "\n") + 1;
}

static bool has_product(const char *text, const char *line) {
    const char *arrow = strstr(line, " -> ");
    size_t length = arrow != NULL ? (size_t)(arrow - line) : line_length(line);
    for (; *text != '\0'; text += line_length(text))
        if (strncmp(text, line, length) == 0) return true;
    return false;
}

// `text` and those lines of `more` that are about other products. Frees text.
static char *add_products(char *text, const char *more) {
    size_t used = strlen(text);
    char *all = joined(text, more); // long enough
    all[used] = '\0';
    for (; *more != '\0'; more += line_length(more)) {
        if (has_product(all, more)) continue;
        memcpy(all + used, more, line_length(more));
        all[used += line_length(more)] = '\0';
    }
    free(text);
    return all;
}

// ---- the file ------------------------------------------------------------------------------------------------------

// Its whole lines; "" where there is none yet, and where they cannot be had with *err filled (else its exit_code is 0).
static char *read_choices(const char *path, Error *err) {
    int64_t bytes = 0;
    err->exit_code = 0;
    if (access(path, F_OK) != 0 && errno == ENOENT) return joined("", "");
    int descriptor = file_open(path, &bytes, err);
    if (descriptor < 0) return joined("", "");
    char *text = allocate((bytes < MOST_BYTES ? (size_t)bytes : MOST_BYTES) + 1);
    ssize_t got = bytes <= MOST_BYTES ? read(descriptor, text, (size_t)bytes) : 0;
    if (got < 0) error_set(err, "%s: cannot read: %s", path, strerror(errno));
    close(descriptor);
    text[got > 0 ? got : 0] = '\0'; // what follows a NUL, which only damage can bring, is not seen
    if (got < 0 || bytes == 0 || strncmp(text, HEADER, strlen(HEADER)) == 0) {
        char *last = strrchr(text, '\n');
        text[last != NULL ? last + 1 - text : 0] = '\0'; // behind it another run may be writing
        return text;
    }
    error_set(err, "%s: holds something else, and stays as it is: give another file", path);
    text[0] = '\0';
    return text;
}

static bool append(const char *path, const char *text, Error *err) {
    int descriptor = file_open_to_write(path, O_APPEND);
    if (descriptor < 0) return error_set(err, "%s: cannot write: %s", path, strerror(errno));
    size_t bytes = strlen(text);
    errno = ENOSPC; // a write that stops half-way gives no reason
    bool ok = write(descriptor, text, bytes) == (ssize_t)bytes;
    if (!ok) error_set(err, "%s: cannot write: %s", path, strerror(errno));
    return close(descriptor) == 0 ? ok : ok && error_set(err, "%s: cannot write: %s", path, strerror(errno));
}

// Adds these lines to the file, and returns what it then says; where that cannot be, what it said before and these.
static char *keep_choices(const char *path, const char *fresh, Error *err) {
    Error unsaid;
    char *known = read_choices(path, err);
    if (*fresh == '\0') return known;
    char *lines = joined(*known == '\0' ? HEADER : "\n", fresh); // the last one may have been cut short
    bool kept = err->exit_code == 0 && append(path, lines, err);
    char *all = kept ? read_choices(path, &unsaid) : joined("", "");
    if (*all == '\0') {
        free(all);
        all = joined(known, fresh);
    }
    free(lines);
    free(known);
    return all;
}

// ---- ranks ---------------------------------------------------------------------------------------------------------

// `text` of rank `root` on every rank; to be freed.
static char *text_of(Rank *r, const char *text, int root) {
    bool mine = comm_rank(r->world) == root;
    uint64_t bytes = mine ? strlen(text) + 1 : 0;
    comm_broadcast(r->world, &bytes, sizeof bytes, root);
    char *copy = allocate(bytes);
    if (mine) memcpy(copy, text, bytes);
    comm_broadcast(r->world, copy, bytes, root);
    return copy;
}

// What rank 0 says from here on, on every rank.
static void choose(Rank *r, const char *choices, bool measure) {
    char *text = text_of(r, choices, 0);
    r->device.tune(&r->device, text, measure);
    free(text);
}

// From here on products are computed as the file says. Returns how much it knows, for the end.
static size_t begin(Rank *r, bool measure) {
    Error unsaid; // until the end, when it is known what is lost by it
    comm_doing_slowly(r->world, "timing of matrix products");
    char *known = leader(r) ? read_choices(r->run->options.tune, &unsaid) : NULL;
    choose(r, known, measure);
    free(known);
    return strlen(r->device.tuned(&r->device));
}

static void report(const char *path, const char *fresh, const Error *err) {
    int count = 0;
    for (; *fresh != '\0'; fresh += line_length(fresh)) count++;
    if (err->exit_code != 0)
        fprintf(stderr, "train_gpt: --tune %s; what is timed now serves this run alone\n", err->message);
    if (err->exit_code != 0) printf("products   by %d algorithms that were timed now\n", count);
    else if (count > 0) printf("products   by the algorithms in %s, %d of them timed now\n", path, count);
    else printf("products   by the algorithms in %s\n", path);
    output_flush();
}

// What has been timed on any rank since goes to the file, and to all ranks; nothing is timed any more.
static void end(Rank *r, size_t known) {
    const char *path = r->run->options.tune;
    char *fresh = joined("", ""), *kept = NULL;
    Error err = {0};
    comm_doing_slowly(r->world, "exchange of algorithms");
    for (int rank = 0; rank < comm_size(r->world); rank++) {
        char *timed = text_of(r, r->device.tuned(&r->device) + known, rank);
        fresh = add_products(fresh, timed);
        free(timed);
    }
    if (leader(r)) kept = keep_choices(path, fresh, &err);
    choose(r, kept, false);
    if (leader(r)) report(path, fresh, &err);
    free(kept);
    free(fresh);
}

void tune(Rank *r, int64_t *window, bool measure, bool (*step)(Rank *, const int64_t *window, Error *)) {
    LoaderState before = r->loader.state;
    Error unsaid;
    size_t known = begin(r, measure);
    for (int i = r->run->phases - 1; measure && i >= 0; i--) { // their products differ
        rank_take_phase(r, &r->run->phase[i]);
        loader_next(&r->loader, r->phase->batch, window);
        step(r, window, &unsaid);
        r->loader.state = before;
    }
    end(r, known);
}
