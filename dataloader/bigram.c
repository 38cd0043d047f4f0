// Counts pairs of symbols, chooses the smoothing, and measures.
#include "dataloader/bigram.h"

#include <math.h>
#include <stdlib.h>

#include "base/pulse.h"

enum { MOST = BYTE_VOCABULARY, BLOCK = 1 << 15, SMALLEST_EXPONENT = -6, LARGEST_EXPONENT = 20 };

// How often b followed a: pair[a * V + b], V being the vocabulary, with the sums over its rows, its columns and all.
typedef struct Pairs {
    int V;
    int64_t pair[MOST * MOST], first[MOST], second[MOST], total;
} Pairs;

typedef struct Workspace {
    Pairs training, held_out;
    int32_t block[BLOCK + 1];
} Workspace;

// Adds the end - begin - 1 pairs of tokens [begin, end).
static bool count_pairs(Pairs *pairs, const TokenSource *source, int64_t begin, int64_t end, int32_t *block,
                        Error *err) {
    const int V = pairs->V;
    while (end - begin > 1) {
        int64_t n = end - begin - 1 < BLOCK ? end - begin - 1 : BLOCK;
        if (!tokens_read(source, begin, n + 1, V, block, err)) return false;
        for (int64_t i = 0; i < n; i++) pairs->pair[block[i] * V + block[i + 1]]++;
        begin += n;
        pulse_beat();
    }
    return true;
}

static void sum_pairs(Pairs *pairs) {
    const int V = pairs->V;
    pairs->total = 0;
    for (int i = 0; i < V; i++) pairs->first[i] = pairs->second[i] = 0;
    for (int a = 0; a < V; a++) {
        for (int b = 0; b < V; b++) {
            int64_t n = pairs->pair[a * V + b];
            pairs->first[a] += n;
            pairs->second[b] += n;
            pairs->total += n;
        }
    }
}

// Mean of -log p(b | a) over the pairs of `text`, p being fitted on `fit`.
static double mean_loss(const Pairs *text, const Pairs *fit, double alpha) {
    const int V = fit->V;
    double sum = 0.0;
    for (int b = 0; b < V; b++) {
        double unigram = (double)(fit->second[b] + 1) / (double)(fit->total + V);
        for (int a = 0; a < V; a++) {
            int64_t n = text->pair[a * V + b];
            if (n == 0) continue;
            double p = ((double)fit->pair[a * V + b] + alpha * unigram) / ((double)fit->first[a] + alpha);
            sum -= (double)n * log(p);
        }
    }
    return sum / (double)text->total;
}

static double best_alpha(const Pairs *text, const Pairs *fit) {
    double best = 1.0, best_loss = INFINITY;
    for (int exponent = SMALLEST_EXPONENT; exponent <= LARGEST_EXPONENT; exponent++) {
        double alpha = ldexp(1.0, exponent), loss = mean_loss(text, fit, alpha);
        if (loss < best_loss) {
            best = alpha;
            best_loss = loss;
        }
    }
    return best;
}

static bool fit_and_measure(Workspace *w, const TokenSource *training, int64_t begin, int64_t end,
                            const Loader *validation, const int64_t *first_token, int64_t windows, double *loss,
                            Error *err) {
    int64_t cut = end - (end - begin) / 10; // the pair across the cut belongs to the last tenth
    if (!count_pairs(&w->training, training, begin, cut, w->block, err)) return false;
    if (!count_pairs(&w->held_out, training, cut - 1, end, w->block, err)) return false;
    sum_pairs(&w->training);
    sum_pairs(&w->held_out);
    double alpha = w->held_out.total > 0 ? best_alpha(&w->held_out, &w->training) : 1.0;

    for (int i = 0; i < w->training.V * w->training.V; i++) {
        w->training.pair[i] += w->held_out.pair[i];
        w->held_out.pair[i] = 0;
    }
    for (int64_t i = 0; i < windows; i++) {
        int64_t first = first_token[i], last = first + validation->context;
        if (!count_pairs(&w->held_out, validation->source, first, last + 1, w->block, err)) return false;
    }
    sum_pairs(&w->training);
    sum_pairs(&w->held_out);
    *loss = mean_loss(&w->held_out, &w->training, alpha);
    return true;
}

bool bigram_loss(const TokenSource *training, int64_t begin, int64_t end, const Loader *validation,
                 const int64_t *first_token, int64_t windows, double *loss, Error *err) {
    if (tokens_unit(training) == NULL || tokens_unit(validation->source) != tokens_unit(training))
        return error_set(err, "the bigram yardstick is for bytes and others of a small vocabulary, and %s holds %s",
                         tokens_name(tokens_unit(training) == NULL ? training : validation->source),
                         tokens_kind(tokens_unit(training) == NULL ? training : validation->source));
    if (end - begin < 2 || windows < 1)
        return error_set(err, "%s: the bigram yardstick needs a text to fit and a window to measure",
                         tokens_name(training));
    Workspace *w = calloc(1, sizeof *w);
    if (w == NULL) return error_set(err, "out of memory for the bigram yardstick");
    w->training.V = w->held_out.V = (int)tokens_vocabulary(training);
    bool ok = fit_and_measure(w, training, begin, end, validation, first_token, windows, loss, err);
    free(w);
    return ok;
}
