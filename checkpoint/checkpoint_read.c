// From a model folder into ranges of the flat vector.
//
// Every tensor is checked against the table before a value is taken: what the model needs must be there with its shape,
// and nothing may be there that the model would not use, save for what is known to carry nothing (masks and rotary
// tables that older versions of the libraries stored, and a tied classifier, which must then be equal to the
// embedding).
#include "checkpoint/checkpoint.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/checkpoint_folder.h"
#include "base/json.h"
#include "base/pulse.h"
#include "checkpoint/safetensors.h"

typedef struct Source {
    const char *path;
    const Safetensors *file;
    const ParameterTable *table;
    Error *err;
} Source;

// ---- finding ----

static const char *without_prefix(const char *name) {
    static const char *const prefixes[] = {"transformer.", "model."};
    for (int i = 0; i < 2; i++)
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0) return name + strlen(prefixes[i]);
    return name;
}

static const Tensor *find_parameter(const Safetensors *file, const Parameter *p) {
    const Tensor *tensor = safetensors_find(file, p->name);
    return tensor != NULL ? tensor : safetensors_find(file, without_prefix(p->name));
}

static void print_shape(char text[200], int dimensions, const int64_t *shape) {
    int used = snprintf(text, 200, "(");
    for (int d = 0; d < dimensions; d++)
        used += snprintf(text + used, (size_t)(200 - used), "%s%" PRId64, d ? ", " : "", shape[d]);
    snprintf(text + used, (size_t)(200 - used), ")");
}

static bool check_parameter(const Source *s, const Parameter *p) {
    const Tensor *tensor = find_parameter(s->file, p);
    if (tensor == NULL) return error_set(s->err, "%s: tensor %s is missing", s->path, p->name);
    if (tensor->type == TENSOR_OTHER)
        return error_set(s->err, "%s: tensor %s is not of dtype F32, F16, BF16 or F64", s->path, p->name);
    bool same = tensor->dimensions == p->dimensions;
    for (int d = 0; same && d < p->dimensions; d++) same = tensor->shape[d] == p->shape[d];
    if (same) return true;
    char found[200], wanted[200];
    print_shape(found, tensor->dimensions, tensor->shape);
    print_shape(wanted, p->dimensions, p->shape);
    return error_set(s->err, "%s: tensor %s has shape %s where the model has %s", s->path, p->name, found, wanted);
}

// ---- what else is in the file ----

static bool ends_with(const char *name, const char *end) {
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcmp(name + length - tail, end) == 0;
}

static bool carries_nothing(const char *name) {
    return ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias") ||
           ends_with(name, ".rotary_emb.inv_freq");
}

static bool same_values(const Tensor *a, const Tensor *b, bool *same, Error *err) {
    enum { SOME = 4096 };
    float x[SOME], y[SOME];
    *same = a->count == b->count;
    if (*same && a->type == b->type && memcmp(a->data, b->data, a->bytes) == 0) return true;
    for (int64_t first = 0; *same && first < a->count; first += SOME) {
        int64_t count = a->count - first < SOME ? a->count - first : SOME;
        if (!tensor_to_float(a, first, count, x, err) || !tensor_to_float(b, first, count, y, err)) return false;
        *same = memcmp(x, y, (size_t)count * sizeof *x) == 0;
        pulse_beat();
    }
    return true;
}

static bool check_tied_classifier(const Source *s, const Tensor *classifier) {
    bool same;
    if (!same_values(classifier, find_parameter(s->file, &s->table->parameter[0]), &same, s->err)) return false;
    return same || error_set(s->err,
                             "%s: lm_head.weight differs from the embedding, but the configuration ties them "
                             "(\"tie_word_embeddings\")",
                             s->path);
}

static int compare_pointers(const void *a, const void *b) {
    const Tensor *x = *(const Tensor *const *)a, *y = *(const Tensor *const *)b;
    return x < y ? -1 : x > y;
}

static bool check_extra(const Source *s, const Tensor **used, bool compare_classifier) {
    int count = s->table->count;
    for (int i = 0; i < count; i++) used[i] = find_parameter(s->file, &s->table->parameter[i]);
    qsort(used, (size_t)count, sizeof *used, compare_pointers);
    for (int i = 0; i < safetensors_count(s->file); i++) {
        const Tensor *tensor = safetensors_at(s->file, i);
        if (bsearch(&tensor, used, (size_t)count, sizeof *used, compare_pointers) || carries_nothing(tensor->name))
            continue;
        if (strcmp(tensor->name, "lm_head.weight") != 0)
            return error_set(s->err, "%s: tensor \"%s\" is not part of the model: it might change the maths", s->path,
                             json_shown(tensor->name).text);
        if (compare_classifier && !check_tied_classifier(s, tensor)) return false;
    }
    return true;
}

static bool check_tensors(const Source *s, bool compare_classifier) {
    for (int i = 0; i < s->table->count; i++)
        if (!check_parameter(s, &s->table->parameter[i])) return false;
    const Tensor **used = malloc((size_t)s->table->count * sizeof *used);
    if (used == NULL) return error_set(s->err, "%s: out of memory", s->path);
    bool ok = check_extra(s, used, compare_classifier);
    free(used);
    return ok;
}

// ---- values ----

enum { TILE = 16 }; // rows of the file that are transposed at a time

// Elements [first, last) of the matrix in memory, (outputs, inputs), of which the file has the transpose.
static bool read_transposed(const Tensor *tensor, int64_t first, int64_t last, float *out, Error *err) {
    int64_t inputs = tensor->shape[0], outputs = tensor->shape[1];
    int64_t first_output = first / inputs, some_outputs = (last - 1) / inputs - first_output + 1;
    float *tile = malloc((size_t)(TILE * some_outputs) * sizeof *tile);
    bool ok = tile != NULL || error_set(err, "out of memory for reading tensor %s", json_shown(tensor->name).text);
    for (int64_t row = 0; ok && row < inputs; row += TILE) {
        pulse_beat();
        int64_t rows = inputs - row < TILE ? inputs - row : TILE;
        for (int64_t r = 0; ok && r < rows; r++)
            ok =
                tensor_to_float(tensor, (row + r) * outputs + first_output, some_outputs, tile + r * some_outputs, err);
        for (int64_t o = 0; ok && o < some_outputs; o++) {
            for (int64_t r = 0; r < rows; r++) {
                int64_t place = (first_output + o) * inputs + row + r;
                if (place >= first && place < last) out[place - first] = tile[r * some_outputs + o];
            }
        }
    }
    free(tile);
    return ok;
}

// Such a weight makes every loss and every sample meaningless, and such a moment every weight.
static bool check_finite(const Tensor *tensor, const Parameter *p, const float *value, int64_t count, Error *err) {
    int64_t strange = 0;
    for (int64_t i = 0; i < count; i++) strange += !isfinite(value[i]);
    return strange == 0 ||
           error_set(err,
                     "%s: tensor %s holds NaN or infinity: the file is damaged, or the run that wrote it had diverged; "
                     "give another",
                     tensor->file, p->name);
}

static bool read_as_it_is(const Tensor *tensor, int64_t first, int64_t last, float *out, Error *err) {
    const int64_t most = 1 << 20;
    bool ok = true;
    for (int64_t begin = first; ok && begin < last; begin += most) {
        ok = tensor_to_float(tensor, begin, last - begin < most ? last - begin : most, out + (begin - first), err);
        pulse_beat();
    }
    return ok;
}

static bool read_range(const Source *s, int64_t begin, int64_t end, float *out) {
    parameters_zero_gap(s->table, begin, end, out);
    for (int i = 0; i < s->table->count; i++) {
        const Parameter *p = &s->table->parameter[i];
        int64_t first = begin > p->offset ? begin - p->offset : 0;
        int64_t last = end < p->offset + p->size ? end - p->offset : p->size;
        if (first >= last) continue;
        const Tensor *tensor = find_parameter(s->file, p);
        float *place = out + (p->offset + first - begin);
        bool ok = p->transposed ? read_transposed(tensor, first, last, place, s->err)
                                : read_as_it_is(tensor, first, last, place, s->err);
        if (!ok || !check_finite(tensor, p, place, last - first, s->err)) return false;
    }
    return true;
}

static Safetensors *open_vector(const char *path, CheckpointVector which, Error *err) {
    char name[DISK_PATH_MAX];
    if (which == CHECKPOINT_PARAMETERS) return safetensors_open_folder(path, err);
    if (!disk_join(name, path, checkpoint_file_names[1 + which], err)) return NULL;
    return safetensors_open(name, err);
}

bool checkpoint_read(const char *path, CheckpointVector which, const ParameterTable *table, int64_t begin, int64_t end,
                     float *out, Error *err) {
    if (begin < 0 || end < begin || end > table->total)
        return error_set(err, "%s: elements %" PRId64 " to %" PRId64 " asked of %" PRId64, path, begin, end,
                         table->total);
    Safetensors *file = open_vector(path, which, err);
    if (file == NULL) return false;
    Source source = {path, file, table, err};
    const Parameter *embedding = &table->parameter[0];
    bool reads_embedding = begin < embedding->size && end > begin;
    bool ok = check_tensors(&source, reads_embedding) && read_range(&source, begin, end, out);
    safetensors_close(file);
    return ok;
}
