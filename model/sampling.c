// Temperature, top-k, and a draw.
#include "model/sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

int32_t sample_token(const float *logits, float *room, int64_t V, double temperature, int64_t top_k, double uniform) {
    memcpy(room, logits, (size_t)V * sizeof(float));
    qsort(room, (size_t)V, sizeof(float), descending);
    float most = room[0], least = top_k > 0 && top_k < V ? room[top_k - 1] : room[V - 1];
    if (temperature <= 0) least = most;
    double divisor = temperature > 0 ? temperature : 1, sum = 0;
    for (int64_t v = 0; v < V; v++)
        if (logits[v] >= least) sum += exp((logits[v] - most) / divisor);
    double left = sum * uniform;
    int32_t token = 0;
    for (int64_t v = 0; v < V && left >= 0; v++) {
        double weight = logits[v] >= least ? exp((logits[v] - most) / divisor) : 0;
        if (weight == 0) continue; // never the choice, however `left` was rounded
        token = (int32_t)v;
        left -= weight;
    }
    return token;
}
