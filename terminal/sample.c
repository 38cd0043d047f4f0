// A prompt into tokens, and tokens into text.
#include "terminal/sample.h"

#include <stdlib.h>
#include <string.h>

#include "terminal/report.h"

enum { PROMPT_FROM_DATA = 64 };

static bool parse_numbers(const char *text, int64_t vocab_size, int32_t *tokens, int64_t *count, Error *err) {
    const char *at = text;
    while (at[strspn(at, " ")] != '\0') {
        char *end;
        long long token = strtoll(at, &end, 10);
        if (end == at || token < 0 || token >= vocab_size)
            return error_usage(
                err,
                "--sample '%s': the data are not bytes, so the prompt is token numbers below %lld, separated by "
                "spaces",
                text, (long long)vocab_size);
        tokens[(*count)++] = (int32_t)token;
        at = end;
    }
    return true;
}

static bool parse_text(const char *text, const TokenSource *data, int32_t *tokens, int64_t *count, Error *err) {
    size_t at;
    if (tokens_of_text(data, text, tokens, count, &at)) return true;
    return error_usage(err, "--sample: character %zu of the prompt is none of the data's: %s", at + 1,
                       tokens_symbols(data));
}

// A sample needs room after a prompt that nobody chose.
static int64_t usual_prompt(int64_t positions) {
    return positions / 2 < PROMPT_FROM_DATA ? (positions + 1) / 2 : PROMPT_FROM_DATA;
}

int32_t *prompt_tokens(const char *text, const TokenSource *data, int64_t first, int64_t vocab_size, int64_t positions,
                       int64_t *count, Error *err) {
    int64_t most = text == NULL ? usual_prompt(positions) : (int64_t)strlen(text);
    int32_t *tokens = (int32_t *)malloc((size_t)(most + 1) * sizeof(int32_t));
    bool ok = tokens != NULL;
    *count = 0;
    if (!ok) {
        error_set(err, "out of memory for a prompt of %lld tokens", (long long)most);
    } else if (text == NULL) {
        int64_t left = tokens_count(data) - first;
        *count = left < most ? left : most;
        ok = tokens_read(data, first, *count, vocab_size, tokens, err);
    } else if (tokens_are_text(data)) {
        ok = parse_text(text, data, tokens, count, err);
    } else {
        ok = parse_numbers(text, vocab_size, tokens, count, err);
    }
    if (ok && *count == 0) ok = error_usage(err, "--sample: the prompt is empty; give at least one token");
    if (ok && *count >= positions)
        ok = error_usage(err,
                         "--sample: the prompt has %lld tokens, but this model has %lld positions; shorten the prompt "
                         "or give a larger --context",
                         (long long)*count, (long long)positions);
    if (ok) return tokens;
    free(tokens);
    return NULL;
}

void print_generated(FILE *out, const TokenSource *data, const int32_t *tokens, int64_t prompt, int64_t count,
                     int64_t wanted, int64_t positions) {
    long long made = count - prompt;
    fprintf(out, "sample: %lld tokens", made);
    if (made < wanted) fprintf(out, " of %lld", (long long)wanted);
    fprintf(out, " after a prompt of %lld", (long long)prompt);
    if (made < wanted && count == positions) fprintf(out, ": the model has %lld positions", (long long)positions);
    else if (made < wanted) fprintf(out, ": the model ended the text");
    fputc('\n', out);
    unsigned char *text = data != NULL && tokens_are_text(data) ? (unsigned char *)malloc((size_t)count) : NULL;
    for (int64_t i = 0; i < count; i++) {
        if (text != NULL) text[i] = (unsigned char)tokens_character(data, tokens[i]);
        else fprintf(out, "%s%d", i > 0 ? " " : "", tokens[i]);
    }
    if (text != NULL) print_text(out, text, (size_t)count);
    free(text);
    fputc('\n', out);
}
