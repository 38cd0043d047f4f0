// Bodies of test/compare.h.
#include "test/compare.h"

static double log_number(const Json *line, const char *key) {
    const Json *value = json_get(line, key);
    if (!value || value->type != JSON_NUMBER) fail_msg("a line of the log has no number \"%s\"", key);
    return value->number;
}

Log read_log(const char *path) {
    Log log = {.validation_loss = NAN, .accuracy = NAN};
    Error err = {0};
    char *text = read_file(path, NULL), *line = text;
    for (char *end; (end = strchr(line, '\n')) && log.count < LOG_MAX_STEPS; line = end + 1, log.count++) {
        JsonDocument *document = json_parse(line, (size_t)(end - line), path, &err);
        if (!document) fail_msg("%s", err.message);
        const Json *root = json_root(document), *validation = json_get(root, "val_loss"),
                   *accuracy = json_get(root, "val_accuracy");
        log.step[log.count] = (int64_t)log_number(root, "step");
        log.loss[log.count] = log_number(root, "loss");
        log.gradient_norm[log.count] = log_number(root, "grad_norm");
        if (validation && validation->type == JSON_NUMBER) log.validation_loss = validation->number;
        if (accuracy && accuracy->type == JSON_NUMBER) log.accuracy = accuracy->number;
        json_free(document);
    }
    free(text);
    return log;
}

Safetensors *open_tensors(const char *path) {
    Error err = {0};
    Safetensors *file = safetensors_open(path, &err);
    if (!file) fail_msg("%s", err.message);
    return file;
}

const Tensor *find_tensor(const Safetensors *file, const char *name) {
    const Tensor *tensor = safetensors_find(file, name);
    if (!tensor) fail_msg("there is no tensor %s", name);
    return tensor;
}

float *tensor_values(const Tensor *tensor) { // to be freed
    Error err = {0};
    float *values = malloc((size_t)tensor->count * sizeof *values);
    if (!values || !tensor_to_float(tensor, 0, tensor->count, values, &err))
        fail_msg("%s: %s", tensor->name, err.message);
    return values;
}

Distance distance_of(const float *got, const float *expected, int64_t count) {
    double squares = 0, difference = 0, largest = 0, largest_difference = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)got[i] - (double)expected[i], e = expected[i];
        squares += e * e;
        difference += d * d;
        largest = fmax(largest, fabs(e));
        largest_difference = fmax(largest_difference, fabs(d));
    }
    if (difference == 0) return (Distance){0, 0};
    return (Distance){sqrt(difference / squares), largest_difference / largest};
}

static void assert_same_shape(const Tensor *got, const Tensor *expected) {
    bool same = got->dimensions == expected->dimensions;
    for (int i = 0; same && i < got->dimensions; i++) same = got->shape[i] == expected->shape[i];
    if (!same) fail_msg("%s has another shape than expected", got->name);
}

void assert_near(const char *what, Distance distance, Tolerance tolerance) {
    if (!(distance.norm <= tolerance.norm) || !(distance.largest <= tolerance.largest))
        fail_msg("%s: relative difference %.2e (limit %.1e), of the largest element %.2e (limit %.1e)", what,
                 distance.norm, tolerance.norm, distance.largest, tolerance.largest);
}

Distance compare_tensors(const Safetensors *got, const Safetensors *expected, const char *prefix, Tolerance tolerance) {
    Distance worst = {0, 0};
    int wanted = 0;
    for (int i = 0; i < safetensors_count(expected); i++) {
        const Tensor *b = safetensors_at(expected, i);
        if (strncmp(b->name, prefix, strlen(prefix)) != 0) continue;
        const Tensor *a = find_tensor(got, b->name + strlen(prefix));
        assert_same_shape(a, b);
        float *x = tensor_values(a), *y = tensor_values(b);
        Distance distance = distance_of(x, y, a->count);
        assert_near(b->name, distance, tolerance);
        worst.norm = fmax(worst.norm, distance.norm);
        worst.largest = fmax(worst.largest, distance.largest);
        free(x);
        free(y);
        wanted++;
    }
    assert_true(wanted > 0);
    assert_int_equal(safetensors_count(got), wanted);
    return worst;
}

Distance compare_files(const char *got_path, const char *expected_path, Tolerance tolerance) {
    Safetensors *got = open_tensors(got_path), *expected = open_tensors(expected_path);
    Distance worst = compare_tensors(got, expected, "", tolerance);
    safetensors_close(got);
    safetensors_close(expected);
    return worst;
}

void assert_same_bytes(const char *path_a, const char *path_b) {
    size_t a_bytes, b_bytes;
    char *a = read_file(path_a, &a_bytes), *b = read_file(path_b, &b_bytes);
    if (a_bytes != b_bytes || memcmp(a, b, a_bytes) != 0) fail_msg("%s and %s differ", path_a, path_b);
    free(a);
    free(b);
}
