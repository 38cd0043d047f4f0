// The safetensors reader and writer: a file of the format's own library, round trips, every rule of the format broken
// once, fuzz.
#include "test/folder.h"

#include <math.h>
#include <sys/mman.h>

#include "base/random.h"
#include "checkpoint/safetensors.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { FUZZ_INPUTS = 8000 };
#else
enum { FUZZ_INPUTS = 30000 };
#endif

static const char *inside(const char *name) {
    static char path[2][PROGRAM_PATH];
    static int turn;
    return path_join(path[turn ^= 1], folder, name);
}

static Safetensors *open_good(const char *path) {
    Error err;
    Safetensors *file = safetensors_open(path, &err);
    if (file == NULL) fail_msg("%s", err.message);
    return file;
}

static void expect_floats(const Safetensors *file, const char *name, TensorType type, const float *expected,
                          int count) {
    Error err;
    float values[16];
    const Tensor *tensor = safetensors_find(file, name);
    if (tensor == NULL) fail_msg("%s was not found", name);
    assert_int_equal(tensor->type, type);
    assert_int_equal(tensor->count, count);
    assert_true(tensor_to_float(tensor, 0, count, values, &err));
    for (int i = 0; i < count; i++)
        if (isnan(expected[i]) ? !isnan(values[i]) : memcmp(&values[i], &expected[i], sizeof(float)) != 0)
            fail_msg("%s[%d] is %a and not %a", name, i, values[i], expected[i]);
}

// ---- a file written by the safetensors library (test/goldens/make_safetensors.py) ----

static void test_foreign_file(void **state) {
    (void)state;
    static const float plain[] = {0.0f, -0.0f, 1.0f, -1.5f, 0.0078125f, 96.0f, -0x1p-14f, 384.0f};
    static const float half[] = {65504.0f, 0x1p-14f, 0x1p-24f, -0x3p-24f, INFINITY, -INFINITY, NAN};
    static const float brain[] = {0x1.FEp127f, 0x1p-126f, 0x1p-133f, INFINITY, NAN};
    static const float single[] = {0x1.FFFFFEp127f, 0x1p-149f, -INFINITY, NAN};
    static const float answer[] = {42}, seven[] = {7}, eight[] = {8};
    char path[PROGRAM_PATH];
    Error err;
    Safetensors *file = open_good(project_path(path, "test/goldens/foreign.safetensors"));
    assert_int_equal(safetensors_count(file), 13);
    expect_floats(file, "plain.f32", TENSOR_F32, plain, 8);
    expect_floats(file, "plain.f64", TENSOR_F64, plain, 8);
    expect_floats(file, "plain.f16", TENSOR_F16, plain, 8);
    expect_floats(file, "plain.bf16", TENSOR_BF16, plain, 8);
    expect_floats(file, "special.f16", TENSOR_F16, half, 7);
    expect_floats(file, "special.bf16", TENSOR_BF16, brain, 5);
    expect_floats(file, "special.f32", TENSOR_F32, single, 4);
    expect_floats(file, "scalar", TENSOR_F32, answer, 1);
    expect_floats(file, "empty", TENSOR_F32, NULL, 0);
    expect_floats(file, "odd \"name\"\\ with/slash\tand tab", TENSOR_F32, seven, 1);
    expect_floats(file, "Größe.権重.🙂", TENSOR_F32, eight, 1);
    const Tensor *cube = safetensors_find(file, "plain.f16"), *integers = safetensors_find(file, "integers.i64");
    assert_true(cube->dimensions == 3 && cube->shape[0] == 2 && cube->shape[1] == 2 && cube->shape[2] == 2);
    assert_int_equal(safetensors_find(file, "scalar")->dimensions, 0);
    assert_int_equal(safetensors_find(file, "empty")->shape[1], 3);
    assert_true(integers->type == TENSOR_OTHER && integers->count == 5 && integers->bytes == 40);
    assert_int_equal(safetensors_find(file, "flags.bool")->bytes, 3);
    float value;
    assert_false(tensor_to_float(integers, 0, 1, &value, &err));
    assert_string_equal(err.message, "tensor \"integers.i64\": its dtype is not one of F32, F16, BF16 and F64");
    assert_null(safetensors_find(file, "absent"));
    for (int i = 0; i < 13; i++)
        assert_ptr_equal(safetensors_find(file, safetensors_at(file, i)->name), safetensors_at(file, i));
    safetensors_close(file);
    safetensors_close(NULL);
}

// ---- writing and reading back ----

static void test_round_trip(void **state) {
    (void)state;
    enum { ROWS = 700, COLUMNS = 900 }; // more than the writer's buffer
    static const TensorDeclaration tensors[] = {
        {"z.first", 2, {ROWS, COLUMNS}}, {"a \"second\"\\\n", 1, {3}}, {"none", 2, {0, 5}}, {"scalar", 0, {0}}};
    float *values = malloc(ROWS * COLUMNS * sizeof *values), *back = malloc(ROWS * COLUMNS * sizeof *back);
    assert_true(values != NULL && back != NULL);
    for (int i = 0; i < ROWS * COLUMNS; i++) { // any bits, NaNs with payloads too
        uint32_t bits = philox4x32(7, 0, (uint64_t)i).word[0];
        memcpy(&values[i], &bits, sizeof bits);
    }
    const char *path = inside("round.safetensors");
    Error err;
    SafetensorsWriter *writer = safetensors_create(path, tensors, 4, &err);
    assert_non_null(writer);
    for (int64_t done = 0, some = 1; done < ROWS * COLUMNS; done += some, some = 3 * some + 1) { // in uneven pieces
        if (some > ROWS * COLUMNS - done) some = ROWS * COLUMNS - done;
        assert_true(safetensors_write(writer, values + done, some, &err));
    }
    assert_true(safetensors_write(writer, values, 4, &err));
    assert_false(safetensors_write(writer, values, 1, &err)); // one too many
    assert_non_null(strstr(err.message, "1 values to write where 0 are left"));
    assert_true(safetensors_finish(writer, &err));

    Safetensors *file = open_good(path);
    assert_int_equal(safetensors_count(file), 4);
    const Tensor *first = safetensors_find(file, "z.first");
    assert_true(first->dimensions == 2 && first->shape[0] == ROWS && first->shape[1] == COLUMNS);
    assert_int_equal((uintptr_t)first->data % 8, 0); // the mapping starts on a page, the data 8-byte aligned in it
    assert_true(tensor_to_float(first, 0, first->count, back, &err));
    assert_memory_equal(back, values, ROWS * COLUMNS * sizeof *values);
    assert_true(tensor_to_float(first, 12345, 678, back, &err)); // a range
    assert_memory_equal(back, values + 12345, 678 * sizeof *values);
    assert_true(tensor_to_float(safetensors_find(file, "a \"second\"\\\n"), 0, 3, back, &err));
    assert_memory_equal(back, values, 3 * sizeof *values);
    assert_int_equal(safetensors_find(file, "none")->count, 0);
    assert_int_equal(safetensors_find(file, "scalar")->count, 1);
    assert_false(tensor_to_float(first, first->count - 1, 2, back, &err));
    assert_false(tensor_to_float(first, -1, 1, back, &err));
    assert_false(tensor_to_float(first, INT64_MAX, INT64_MAX, back, &err));
    safetensors_close(file);
    free(values);
    free(back);
}

static void test_unfinished_file(void **state) {
    (void)state;
    static const TensorDeclaration tensor = {"w", 1, {5}};
    float values[5] = {0};
    Error err;
    SafetensorsWriter *writer = safetensors_create(inside("short.safetensors"), &tensor, 1, &err);
    assert_non_null(writer);
    assert_true(safetensors_write(writer, values, 3, &err));
    assert_false(safetensors_finish(writer, &err));
    assert_non_null(strstr(err.message, "short.safetensors: 2 values were not written"));
    safetensors_abandon(safetensors_create(inside("short.safetensors"), &tensor, 1, &err));
    safetensors_abandon(NULL);
}

static void test_no_place_to_write(void **state) {
    (void)state;
    static const TensorDeclaration tensor = {"w", 1, {1 << 20}};
    float *values = calloc(1 << 20, sizeof *values);
    Error err;
    assert_non_null(values);
    assert_null(safetensors_create(inside("absent/w.safetensors"), &tensor, 1, &err));
    assert_non_null(strstr(err.message, "absent/w.safetensors: cannot write: No such file"));
    SafetensorsWriter *writer = safetensors_create("/dev/full", &tensor, 1, &err); // a disk that is always full
    assert_non_null(writer);
    assert_false(safetensors_write(writer, values, 1 << 20, &err));
    assert_string_equal(err.message, "/dev/full: cannot write: No space left on device");
    safetensors_abandon(writer);
    static const TensorDeclaration small = {"w", 1, {1}};
    writer = safetensors_create("/dev/full", &small, 1, &err); // what is still buffered fails at the end
    assert_true(writer != NULL && safetensors_write(writer, values, 1, &err));
    assert_false(safetensors_finish(writer, &err));
    assert_string_equal(err.message, "/dev/full: cannot write: No space left on device");
    free(values);
}

// ---- conversion ----

static float half_value(uint32_t bits) { // by the definition of binary16
    int exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
    double value = exponent == 31 ? (fraction ? NAN : INFINITY)
                                  : ldexp(exponent ? 1024 + fraction : fraction, (exponent ? exponent : 1) - 25);
    return (float)(bits & 0x8000 ? -value : value);
}

static void test_every_half_and_brain_float(void **state) {
    (void)state;
    static uint16_t bits[65536];
    static float values[65536];
    Error err;
    for (int i = 0; i < 65536; i++) bits[i] = (uint16_t)i;
    Tensor tensor = {
        .name = "all", .type = TENSOR_F16, .dimensions = 1, .shape = {65536}, .count = 65536, .data = bits};
    assert_true(tensor_to_float(&tensor, 0, 65536, values, &err));
    for (uint32_t i = 0; i < 65536; i++) {
        float expected = half_value(i);
        if (isnan(expected) ? !isnan(values[i]) : memcmp(&values[i], &expected, 4) != 0) fail_msg("F16 %04x", i);
    }
    tensor.type = TENSOR_BF16;
    assert_true(tensor_to_float(&tensor, 0, 65536, values, &err));
    for (uint32_t i = 0; i < 65536; i++) { // the upper half of binary32
        uint32_t back;
        memcpy(&back, &values[i], sizeof back);
        assert_int_equal(back, i << 16);
    }
}

// ---- broken files ----

static size_t compose(char *out, const char *header, size_t data_bytes) {
    size_t length = strlen(header);
    for (int i = 0; i < 8; i++) out[i] = (char)(length >> 8 * i);
    memcpy(out + 8, header, length);
    memset(out + 8 + length, 0, data_bytes);
    return 8 + length + data_bytes;
}

static void test_broken_headers(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *message; // part of it; NULL: the file is fine
    } cases[] = {
        {"{}", 0, NULL},
        {"{}   ", 0, NULL},
        {"{\"__metadata__\":{\"a\":\"b\"}}", 0, NULL},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, NULL},
        {"{\"w\":{\"dtype\":\"F4\",\"shape\":[3,2],\"data_offsets\":[0,3]}}", 3, NULL},
        {"{\"e\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]},\"w\":{\"dtype\":\"U8\",\"shape\":[2],"
         "\"data_offsets\":[0,2]}}",
         2, NULL},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"e\":{\"dtype\":\"U8\",\"shape\":[0],"
         "\"data_offsets\":[1,1]},\"w\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
         3, NULL},
        {"{}", 1, "1 bytes after the last tensor's data belong to none"},
        {"", 0, "the text ends in the middle of a value"},
        {"{", 0, "line 1, column 2: the text ends"},
        {"[]", 0, "the header is not a JSON object"},
        {" {}", 0, "the header is not a JSON object"},
        {"{\"__metadata__\":1}", 0, "__metadata__ is not an object of strings"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ is not an object of strings"},
        {"{\"w\":3}", 0, "tensor \"w\": its entry must have dtype, shape and data_offsets, and nothing else"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "its entry must have"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", 8, "its entry must have"},
        {"{\"w\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "tensor \"w\": unknown dtype"},
        {"{\"w\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "unknown dtype"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", 8, "its shape is not a list of at most 8"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
         "its shape is not a list"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "a size of its shape is not"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, "a size of its shape is not"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[\"2\"],\"data_offsets\":[0,8]}}", 8, "a size of its shape is not"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "a size of its shape"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
         "do not match its shape"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "its data_offsets are not two whole"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]}}", 8, "its data_offsets are not two whole"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":{\"a\":0,\"b\":8}}}", 8,
         "its data_offsets are not two"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0.0,8]}}", 8, "its data_offsets are not two whole"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, "its data lies outside the file"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "its data lies outside the file"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}}", 8, "its data lies outside the file"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[9223372036854775800,9223372036854775807]}}", 8,
         "its data lies outside the file"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 8, "do not match its shape and dtype"},
        {"{\"w\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "do not match its shape and dtype"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12,
         "tensor \"w\": a gap lies before its data"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 12,
         "4 bytes after the last tensor's data"},
        {"{\"v\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"w\":{\"dtype\":\"F32\",\"shape\":[2],"
         "\"data_offsets\":[4,12]}}",
         12, "tensor \"w\": its data overlaps another tensor's"},
        {"{\"v\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"w\":{\"dtype\":\"F32\",\"shape\":[2],"
         "\"data_offsets\":[0,8]}}",
         8, "its data overlaps another tensor's"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"w\":{\"dtype\":\"F32\",\"shape\":[1],"
         "\"data_offsets\":[4,8]}}",
         8, "has the key \"w\" twice"},
    };
    const char *path = inside("broken.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char bytes[1000];
        Error err = {0};
        write_file(path, bytes, compose(bytes, cases[i].header, cases[i].data_bytes));
        Safetensors *file = safetensors_open(path, &err);
        if (cases[i].message == NULL && file == NULL) fail_msg("%s was refused: %s", cases[i].header, err.message);
        if (cases[i].message != NULL && file != NULL) fail_msg("%s was accepted", cases[i].header);
        if (file == NULL && (strncmp(err.message, path, strlen(path)) != 0 || !strstr(err.message, cases[i].message)))
            fail_msg("%s: \"%s\" instead of \"%s\"", cases[i].header, err.message, cases[i].message);
        safetensors_close(file);
    }
}

static void test_broken_lengths(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t count;
        const char *message;
    } cases[] = {
        {"", 0, ": 0 bytes are too few for a safetensors file"},
        {"\2\0\0\0\0\0\0", 7, ": 7 bytes are too few for a safetensors file"},
        {"\2\0\0\0\0\0\0\0{", 9, ": a header of 2 bytes in a file of 9 (not safetensors, or cut short)"},
        {"\377\377\377\377\377\377\377\377{}", 10, ": a header of 18446744073709551615 bytes in a file of 10 (not"},
        {"PK\3\4\0\0\0\0\0\0", 10, ": a header of 67324752 bytes in a file of 10 (not safetensors, or cut short)"},
    };
    const char *path = inside("broken.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Error err;
        write_file(path, cases[i].bytes, cases[i].count);
        assert_null(safetensors_open(path, &err));
        if (!strstr(err.message, cases[i].message)) fail_msg("%s", err.message);
    }
    Error err;
    assert_null(safetensors_open(inside("absent.safetensors"), &err));
    assert_non_null(strstr(err.message, "absent.safetensors: cannot open: No such file"));
    assert_null(safetensors_open(folder, &err));
    assert_non_null(strstr(err.message, "not a regular file"));
    assert_null(safetensors_open("/dev/null", &err));
    assert_string_equal(err.message, "/dev/null: not a regular file but a device");
}

// ---- folders ----

static void write_tensor_file(const char *path, const char *name, float value) {
    TensorDeclaration tensor = {name, 1, {1}};
    Error err;
    SafetensorsWriter *writer = safetensors_create(path, &tensor, 1, &err);
    assert_true(writer != NULL && safetensors_write(writer, &value, 1, &err) && safetensors_finish(writer, &err));
}

static void test_folder(void **state) {
    (void)state;
    static const struct {
        const char *index;
        const char *message; // NULL: fine
    } cases[] = {
        {"{\"metadata\":{\"total_size\":8},\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\","
         "\"b\":\"model-00002-of-00002.safetensors\"}}",
         NULL},
        {"{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\"}}", NULL},
        {"{\"weight_map\":{\"b\":\"model-00001-of-00002.safetensors\"}}",
         "tensor \"b\" is not in model-00001-of-00002.safetensors, where the index has it"},
        {"{\"weight_map\":{\"a\":\"model-00003-of-00002.safetensors\"}}", "00003-of-00002.safetensors: cannot open"},
        {"{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\",\"a2\":\"twin.safetensors\"}}",
         "tensor \"a\": is there twice"},
        {"{\"weight_map\":{\"a\":\"../model-00001-of-00002.safetensors\"}}", "is not mapped to the name of a"},
        {"{\"weight_map\":{\"a\":\"/etc/x.safetensors\"}}", "is not mapped to the name of a"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "is not mapped to the name of a"},
        {"{\"weight_map\":{\"a\":\"index.json\"}}", "is not mapped to the name of a"},
        {"{\"weight_map\":{\"a\":\"\"}}", "is not mapped to the name of a"},
        {"{\"weight_map\":{\"a\":5}}", "is not mapped to the name of a"},
        {"{\"weight_map\":[]}", "no \"weight_map\" from tensors to files"},
        {"{\"weight_map\":{}}", "no \"weight_map\" from tensors to files"},
        {"[]", "no \"weight_map\" from tensors to files"},
        {"{", "model.safetensors.index.json: line 1"},
    };
    Error err;
    char model[PROGRAM_PATH], index[PROGRAM_PATH];
    assert_null(safetensors_open_folder(inside("absent"), &err));
    assert_non_null(strstr(err.message, "absent: cannot open this model folder: No such file"));
    strcpy(model, inside("model"));
    assert_int_equal(mkdir(model, 0777), 0);
    assert_null(safetensors_open_folder(model, &err));
    assert_non_null(strstr(err.message, "no model.safetensors here and no model.safetensors.index.json"));
    write_tensor_file(inside("model/model-00001-of-00002.safetensors"), "a", 1);
    write_tensor_file(inside("model/model-00002-of-00002.safetensors"), "b", 2);
    write_tensor_file(inside("model/twin.safetensors"), "a", 3);
    path_join(index, model, "model.safetensors.index.json");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_file(index, cases[i].index, strlen(cases[i].index));
        Safetensors *file = safetensors_open_folder(model, &err);
        if ((file != NULL) != (cases[i].message == NULL)) fail_msg("%s: %s", cases[i].index, file ? "" : err.message);
        if (file == NULL && !strstr(err.message, cases[i].message)) fail_msg("%s", err.message);
        if (i == 0) {
            expect_floats(file, "a", TENSOR_F32, (float[]){1}, 1);
            expect_floats(file, "b", TENSOR_F32, (float[]){2}, 1);
        }
        safetensors_close(file);
    }
    write_tensor_file(inside("model/model.safetensors"), "c", 4); // the single file comes first
    Safetensors *file = safetensors_open_folder(model, &err);
    assert_non_null(file);
    expect_floats(file, "c", TENSOR_F32, (float[]){4}, 1);
    safetensors_close(file);
}

// ---- fuzzing ----

static void touch_everything(const Safetensors *file) { // reads every element that the reader hands out
    for (int i = 0; i < safetensors_count(file); i++) {
        const Tensor *tensor = safetensors_at(file, i);
        Error err;
        float value;
        for (int64_t at = 0; at < tensor->count && tensor->type != TENSOR_OTHER; at++)
            assert_true(tensor_to_float(tensor, at, 1, &value, &err));
        unsigned sum = 0;
        for (size_t b = 0; b < tensor->bytes; b++) sum += ((const unsigned char *)tensor->data)[b];
        assert_true(sum < UINT32_MAX); // the sum only keeps the reads
    }
}

static size_t mutate(char *bytes, size_t length, size_t header, uint64_t seed) {
    static const char telling[] = "{}[]\",:0123456789-.eF\\u \0\xFF";
    uint64_t draw = 0;
    int changes = 1 + (int)random_below(seed, 0, draw++, 3);
    for (int i = 0; i < changes; i++) {
        size_t at = random_below(seed, 0, draw++, 8 + header); // the data cannot be wrong
        switch (random_below(seed, 0, draw++, 6)) {
        case 0:
        case 1: bytes[at] = telling[random_below(seed, 0, draw++, sizeof telling - 1)]; break;
        case 2: bytes[at] = (char)(bytes[at] ^ 1 << random_below(seed, 0, draw++, 8)); break;
        case 3: bytes[at % 8] = (char)random_below(seed, 0, draw++, 256); break;
        case 4: length = random_below(seed, 0, draw++, length + 1); break;
        default: // a digit changed by one: the header stays JSON
            while (at > 8 && (bytes[at] < '0' || bytes[at] > '9')) at--;
            if (bytes[at] >= '0' && bytes[at] < '9') bytes[at]++;
        }
        if (length < 8 + header) break;
    }
    return length;
}

static void test_fuzz(void **state) {
    (void)state;
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},\"layer.0.w\":{\"dtype\":\"F16\",\"shape\":[2,"
                                 "6],\"data_offsets\":[0,24]},"
                                 "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]},"
                                 "\"c\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[32,40]},"
                                 "\"d\":{\"dtype\":\"I16\",\"shape\":[2,1],\"data_offsets\":[40,44]}}  ";
    int accepted = 0, memory = memfd_create("fuzz", 0); // a file that never touches the disk
    assert_true(memory >= 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
    alarm(120);
    for (uint64_t i = 0; i < FUZZ_INPUTS; i++) {
        char bytes[1000];
        Error err;
        size_t length = mutate(bytes, compose(bytes, header, 44), strlen(header), i);
        assert_true(ftruncate(memory, 0) == 0 && pwrite(memory, bytes, length, 0) == (ssize_t)length);
        Safetensors *file = safetensors_open(path, &err);
        if (file != NULL) {
            touch_everything(file);
            accepted++;
        } else {
            assert_true(strncmp(err.message, path, strlen(path)) == 0 && strchr(err.message, '\n') == NULL);
        }
        safetensors_close(file);
    }
    alarm(0);
    close(memory);
    assert_in_range(accepted, FUZZ_INPUTS / 100, FUZZ_INPUTS / 2); // letters in names may change; little else
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_foreign_file),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_unfinished_file),
        cmocka_unit_test(test_no_place_to_write),
        cmocka_unit_test(test_every_half_and_brain_float),
        cmocka_unit_test(test_broken_headers),
        cmocka_unit_test(test_broken_lengths),
        cmocka_unit_test(test_folder),
        cmocka_unit_test(test_fuzz),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
