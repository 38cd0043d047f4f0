#include "model/sampling.h"

#include <math.h>
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
            return error_usage(err, "--sample '%s': the data are not bytes, so the prompt is token numbers below %lld, separated by "
                               "spaces", text, (long long)vocab_size);
        tokens[(*count)++] = (int32_t)token;
        at = end;
    }
    return true;
}

int32_t *prompt_tokens(const char *text, const TokenSource *data, int64_t first, int64_t vocab_size, int64_t *count, Error *err) {
    int64_t most = text == NULL ? PROMPT_FROM_DATA : (int64_t)strlen(text);
    int32_t *tokens = (int32_t *)malloc((size_t)(most + 1) * sizeof(int32_t));
    bool ok = tokens != NULL;
    *count = 0;
    if (!ok) {
        error_set(err, "out of memory for a prompt of %lld tokens", (long long)most);
    } else if (text == NULL) {
        int64_t left = tokens_count(data) - first;
        *count = left < most ? left : most;
        ok = tokens_read(data, first, *count, vocab_size, tokens, err);
    } else if (tokens_are_bytes(data)) {
        for (; *count < most; (*count)++) tokens[*count] = (unsigned char)text[*count];
    } else {
        ok = parse_numbers(text, vocab_size, tokens, count, err);
    }
    if (ok && *count == 0) ok = error_usage(err, "--sample: the prompt is empty; give at least one token");
    if (ok) return tokens;
    free(tokens);
    return NULL;
}

static int descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

int32_t sample_token(const float *logits, float *room, int64_t V, double temperature, int64_t top_k, double uniform) {
    memcpy(room, logits, (size_t)V * sizeof(float));
    qsort(room, (size_t)V, sizeof(float), descending);
    float most = room[0], least = top_k > 0 && top_k < V ? room[top_k - 1] : room[V - 1];
    if (temperature <= 0) least = most;
    double inverse = temperature > 0 ? 1 / temperature : 1, sum = 0;
    for (int64_t v = 0; v < V; v++)
        if (logits[v] >= least) sum += exp((logits[v] - most) * inverse);
    double left = sum * uniform;
    int32_t token = 0;
    for (int64_t v = 0; v < V && left >= 0; v++) {
        if (logits[v] < least) continue;
        token = (int32_t)v;
        left -= exp((logits[v] - most) * inverse);
    }
    return token;
}

void print_generated(FILE *out, bool bytes, const int32_t *tokens, int64_t prompt, int64_t count) {
    fprintf(out, "sample: %lld tokens after a prompt of %lld\n", (long long)(count - prompt), (long long)prompt);
    unsigned char *text = bytes ? (unsigned char *)malloc((size_t)count) : NULL;
    for (int64_t i = 0; i < count; i++) {
        if (text != NULL) text[i] = (unsigned char)(tokens[i] < TOKEN_END_OF_DOCUMENT ? tokens[i] : '\n');
        else fprintf(out, "%s%d", i > 0 ? " " : "", tokens[i]);
    }
    if (text != NULL) print_text(out, text, (size_t)count);
    free(text);
    fputc('\n', out);
}
