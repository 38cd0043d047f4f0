// The JSON reader: what RFC 8259 allows is read to the last bit, what it forbids is refused with its place, and nothing
// crashes.
#include "test/program.h"

#include <math.h>

#include "base/random.h"
#include "base/json.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { FUZZ_INPUTS = 20000 };
#else
enum { FUZZ_INPUTS = 100000 };
#endif

// Parses a copy in a block of exactly its size, so that AddressSanitizer sees a step past its end.
static JsonDocument *parse(const char *text, size_t length, Error *err) {
    char *copy = malloc(length ? length : 1);
    assert_non_null(copy);
    if (length) memcpy(copy, text, length);
    err->message[0] = '\0';
    JsonDocument *document = json_parse(copy, length, "text", err);
    free(copy);
    return document;
}

static JsonDocument *parse_good(const char *text) {
    Error err;
    JsonDocument *document = parse(text, strlen(text), &err);
    if (document == NULL) fail_msg("%s was refused: %s", text, err.message);
    return document;
}

// ---- what is allowed ----

static void test_values(void **state) {
    (void)state;
    JsonDocument *document = parse_good(" \t\r\n{\"null\": null, \"yes\":true,\"no\" : false , \"text\":\"a "
                                        "b\",\"list\":[1,[2,3],{}],\"empty\":[]} \n");
    const Json *root = json_root(document);
    assert_int_equal(root->type, JSON_OBJECT);
    assert_int_equal(root->count, 6);
    assert_string_equal(root->key[0], "null");
    assert_int_equal(json_get(root, "null")->type, JSON_NULL);
    assert_true(json_get(root, "yes")->type == JSON_BOOL && json_get(root, "yes")->boolean);
    assert_true(json_get(root, "no")->type == JSON_BOOL && !json_get(root, "no")->boolean);
    assert_string_equal(json_get(root, "text")->string, "a b");
    const Json *list = json_get(root, "list");
    assert_true(list->type == JSON_ARRAY && list->count == 3);
    assert_int_equal(list->item[0].integer, 1);
    assert_int_equal(list->item[1].count, 2);
    assert_int_equal(list->item[1].item[1].integer, 3);
    assert_true(list->item[2].type == JSON_OBJECT && list->item[2].count == 0);
    assert_int_equal(json_get(root, "empty")->count, 0);
    assert_null(json_get(root, "absent"));
    assert_null(json_get(list, "absent"));
    assert_null(json_get(NULL, "absent"));
    json_free(document);
    json_free(NULL);
}

static void test_scalar_roots(void **state) {
    (void)state;
    static const char *const texts[] = {"null", "true", "false", "0", "\"\"", " [ ] ", "{ }"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) json_free(parse_good(texts[i]));
}

static void test_numbers(void **state) {
    (void)state;
    static const struct {
        const char *text;
        double number;
        bool is_integer;
        int64_t integer;
    } cases[] = {
        {"0", 0, true, 0},
        {"-0", -0.0, true, 0},
        {"7", 7, true, 7},
        {"-12", -12, true, -12},
        {"9007199254740993", 9007199254740992.0, true, INT64_C(9007199254740993)}, // not a double
        {"9223372036854775807", 0x1p63, true, INT64_MAX},
        {"-9223372036854775808", -0x1p63, true, INT64_MIN},
        {"9223372036854775808", 0x1p63, false, 0},
        {"18446744073709551615", 0x1p64, false, 0},
        {"1.0", 1, false, 0},
        {"1e2", 100, false, 0},
        {"1E+2", 100, false, 0},
        {"25e-2", 0.25, false, 0},
        {"-0.5", -0.5, false, 0},
        {"0.1", 0.1, false, 0},
        {"1e-05", 1e-5, false, 0},
        {"1e-999", 0, false, 0},
        {"5e-324", 5e-324, false, 0},
        {"1.7976931348623157e308", 1.7976931348623157e308, false, 0},
        {"0.1000000000000000055511151231257827021181583404541015625", 0.1, false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        JsonDocument *document = parse_good(cases[i].text);
        const Json *root = json_root(document);
        if (root->type != JSON_NUMBER || root->number != cases[i].number || root->is_integer != cases[i].is_integer ||
            (root->is_integer && root->integer != cases[i].integer))
            fail_msg("%s was read as %.17g, %s %lld", cases[i].text, root->number,
                     root->is_integer ? "integer" : "no integer", (long long)root->integer);
        json_free(document);
    }
}

static void test_strings(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t"},
        {"\"\\u0041\\u00e9\\u20AC\\ud83d\\ude42\"", "Aé€🙂"},
        {"\"é€🙂\"", "é€🙂"},
        {"\"\\u0001\\u001f\x7f\"", "\x01\x1f\x7f"},
        {"\"\\uFFFF\\udbff\\udfff\"", "\xEF\xBF\xBF\xF4\x8F\xBF\xBF"}, // the last of three and of four bytes
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        JsonDocument *document = parse_good(cases[i][0]);
        assert_string_equal(json_root(document)->string, cases[i][1]);
        json_free(document);
    }
}

static void test_depth(void **state) {
    (void)state;
    for (int depth = 63; depth <= 66; depth++) {
        for (int objects = 0; objects < 2; objects++) {
            char text[1000] = "";
            for (int i = 0; i < depth; i++) strcat(text, objects ? "{\"k\":" : "[");
            strcat(text, "1");
            for (int i = 0; i < depth; i++) strcat(text, objects ? "}" : "]");
            Error err;
            JsonDocument *document = parse(text, strlen(text), &err);
            assert_int_equal(document != NULL, depth <= 64);
            if (document == NULL) assert_non_null(strstr(err.message, "nested more than 64 deep"));
            json_free(document);
        }
    }
    enum { MANY = 1000000 }; // would overflow the stack of a parser without a limit
    char *text = malloc(MANY);
    assert_non_null(text);
    memset(text, '[', MANY);
    Error err;
    assert_null(parse(text, MANY, &err));
    free(text);
}

static void test_many_members(void **state) { // time must not grow with the square
    (void)state;
    enum { MANY = 200000 };
    char *text = malloc(MANY * 12 + 2), *at = text;
    assert_non_null(text);
    for (int i = 0; i < MANY; i++) at += sprintf(at, "%c\"%d\":1", i ? ',' : '{', i);
    strcpy(at, "}");
    JsonDocument *document = parse_good(text);
    assert_int_equal(json_root(document)->count, MANY);
    assert_string_equal(json_root(document)->key[MANY - 1], "199999");
    json_free(document);
    free(text);
}

// ---- what is not ----

static void test_errors(void **state) {
    (void)state;
    static const struct {
        const char *text;
        const char *message; // how the error ends
    } cases[] = {
        {"", "line 1, column 1: the text ends in the middle of a value (is the file cut short?)"},
        {"  ", "line 1, column 3: the text ends in the middle of a value (is the file cut short?)"},
        {"{\"a\": [1, 2", "line 1, column 12: the text ends in the middle of a value (is the file cut short?)"},
        {"\"abc", "line 1, column 5: the text ends in the middle of a value (is the file cut short?)"},
        {"\"abc\\", "line 1, column 6: the text ends in the middle of a value (is the file cut short?)"},
        {"tru", "line 1, column 4: the text ends in the middle of a value (is the file cut short?)"},
        {"-", "line 1, column 2: the text ends in the middle of a value (is the file cut short?)"},
        {"1.", "line 1, column 3: the text ends in the middle of a value (is the file cut short?)"},
        {"nul1", "line 1, column 4: expected a value (null, true, false, a number, a string, '[' or '{')"},
        {"NaN", "line 1, column 1: expected a value (null, true, false, a number, a string, '[' or '{')"},
        {"Infinity", "line 1, column 1: expected a value (null, true, false, a number, a string, '[' or '{')"},
        {"-Infinity", "line 1, column 2: a digit is missing in a number"},
        {"+1", "line 1, column 1: expected a value (null, true, false, a number, a string, '[' or '{')"},
        {".5", "line 1, column 1: expected a value (null, true, false, a number, a string, '[' or '{')"},
        {"[1.]", "line 1, column 4: a digit is missing in a number"},
        {"[1e]", "line 1, column 4: a digit is missing in a number"},
        {"[1e+]", "line 1, column 5: a digit is missing in a number"},
        {"01", "line 1, column 2: a number starts with a superfluous 0"},
        {"-01", "line 1, column 3: a number starts with a superfluous 0"},
        {"0x10", "line 1, column 2: something stands after the end of the value"},
        {"1e999", "line 1, column 1: a number too large for double precision"},
        {"1 2", "line 1, column 3: something stands after the end of the value"},
        {"{}}", "line 1, column 3: something stands after the end of the value"},
        {"[1,]", "line 1, column 4: expected a value (null, true, false, a number, a string, '[' or '{')"},
        {"[,1]", "line 1, column 2: expected a value (null, true, false, a number, a string, '[' or '{')"},
        {"[1 2]", "line 1, column 4: expected ',' or ']'"},
        {"[1}", "line 1, column 3: expected ',' or ']'"},
        {"{\"a\":1,}", "line 1, column 8: expected a key in double quotes"},
        {"{a:1}", "line 1, column 2: expected a key in double quotes"},
        {"{'a':1}", "line 1, column 2: expected a key in double quotes"},
        {"{1:1}", "line 1, column 2: expected a key in double quotes"},
        {"{\"a\" 1}", "line 1, column 6: expected ':' after a key"},
        {"{\"a\":1 \"b\":2}", "line 1, column 8: expected ',' or '}'"},
        {"{\"a\":1]", "line 1, column 7: expected ',' or '}'"},
        {"// no\n1", "line 1, column 1: expected a value (null, true, false, a number, a string, '[' or '{')"},
        {"[1, /* no */ 2]", "line 1, column 5: expected a value (null, true, false, a number, a string, '[' or '{')"},
        {"{\n  \"é\": 1,\n  \"b\" = 2\n}", "line 3, column 7: expected ':' after a key"},
        {"[\"é€🙂\", x]",
         "line 1, column 9: expected a value (null, true, false, a number, a string, '[' or '{')"},
        {"{\"a\":1,\"b\":2,\n\"a\":3}", "line 2, column 6: the object that ends here has the key \"a\" twice"},
        {"{\"a\":1,\"\\u0061\":2}", "line 1, column 18: the object that ends here has the key \"a\" twice"},
        {"{\"x\\ny\":1,\"x\\ny\":2}", "line 1, column 19: the object that ends here has the key \"x?y\" twice"},
        {"\"a\nb\"", "line 1, column 3: a control character in a string (write it as \\u00XX)"},
        {"\"\\x41\"", "line 1, column 2: unknown escape in a string"},
        {"\"\\u12g4\"", "line 1, column 6: \\u needs four hexadecimal digits"},
        {"\"\\u12\"", "line 1, column 6: \\u needs four hexadecimal digits"},
        {"\"\\u0000\"", "line 1, column 2: a string holds an escaped NUL"},
        {"\"\\ud800\"", "line 1, column 2: a high surrogate without its low one"},
        {"\"\\ud800\\u0041\"", "line 1, column 2: a high surrogate without its low one"},
        {"\"\\ud800\\n12345\"", "line 1, column 2: a high surrogate without its low one"},
        {"\"\\udc00\"", "line 1, column 2: a low surrogate without its high one"},
        {"\"\x80\"", "line 1, column 2: a string that is not valid UTF-8"},
        {"\"\xC3\"", "line 1, column 2: a string that is not valid UTF-8"},
        {"\"\xC0\xAF\"", "line 1, column 2: a string that is not valid UTF-8"},         // overlong
        {"\"\xE0\x80\xAF\"", "line 1, column 2: a string that is not valid UTF-8"},     // overlong
        {"\"\xF0\x80\x80\xAF\"", "line 1, column 2: a string that is not valid UTF-8"}, // overlong
        {"\"\xED\xA0\x80\"", "line 1, column 2: a string that is not valid UTF-8"},     // a surrogate
        {"\"\xF4\x90\x80\x80\"", "line 1, column 2: a string that is not valid UTF-8"}, // beyond U+10FFFF
        {"\"\xFF\"", "line 1, column 2: a string that is not valid UTF-8"},
        {"\f1", "line 1, column 1: expected a value (null, true, false, a number, a string, '[' or '{')"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Error err;
        JsonDocument *document = parse(cases[i].text, strlen(cases[i].text), &err);
        if (document != NULL) fail_msg("%s was accepted", cases[i].text);
        char expected[300];
        snprintf(expected, sizeof expected, "text: %s", cases[i].message);
        assert_string_equal(err.message, expected);
        assert_int_equal(err.exit_code, EXIT_RUNTIME);
    }
}

static void test_raw_nul(void **state) {
    (void)state;
    Error err;
    assert_null(parse("\"a\0b\"", 5, &err));
    assert_null(parse("1\0", 2, &err));
    assert_null(parse("\0", 1, &err));
    assert_null(parse("\"\\\0\"", 4, &err));
}

static void test_every_prefix_is_refused(void **state) {
    (void)state;
    static const char text[] = "{\"a\":[1,-2.5e3,true,false,null],\"b\":{\"c\\u00e9\\ud83d\\ude42\":\"\xC3\xA9\\n\"}}";
    for (size_t length = 0; length < strlen(text); length++) {
        Error err;
        assert_null(parse(text, length, &err));
    }
    json_free(parse_good(text));
}

static void test_encodings(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t count;
        const char *message; // NULL: read as {"a":1}
    } cases[] = {
        {"\xEF\xBB\xBF{\"a\":1}", 10, NULL},
        {"\xFF\xFE{\0}\0", 6, "t: is UTF-16, not UTF-8; convert it"},
        {"\xFE\xFF\0{\0}", 6, "t: is UTF-16, not UTF-8; convert it"},
        {"{\0}\0", 4, "t: is UTF-16, not UTF-8; convert it"},
        {"\0{\0}", 4, "t: is UTF-16, not UTF-8; convert it"},
        {"\xFF\xFE\0\0{\0\0\0}\0\0\0", 12, "t: is UTF-32, not UTF-8; convert it"},
        {"\0\0\xFE\xFF\0\0\0{\0\0\0}", 12, "t: is UTF-32, not UTF-8; convert it"},
        {"{\0\0\0}\0\0\0", 8, "t: is UTF-32, not UTF-8; convert it"},
        {"\0\0\0\0", 4, "t: line 1, column 1: expected a value (null, true, false, a number, a string, '[' or '{')"},
        {"\xEF\xBB\xBF", 3, "t: line 1, column 1: the text ends in the middle of a value (is the file cut short?)"},
        {"\xEF\xBB\xBF\xEF\xBB\xBF{}", 8,
         "t: line 1, column 1: expected a value (null, true, false, a number, a string, '[' or '{')"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Error err = {0};
        JsonDocument *document = json_parse(cases[i].bytes, cases[i].count, "t", &err);
        assert_true((document != NULL) == (cases[i].message == NULL));
        if (document != NULL) assert_int_equal(json_get(json_root(document), "a")->integer, 1);
        else assert_string_equal(err.message, cases[i].message);
        json_free(document);
    }
}

static void test_files(void **state) {
    (void)state;
    char folder[PROGRAM_PATH], path[PROGRAM_PATH];
    Error err;
    make_temp_folder(folder);
    path_join(path, folder, "a.json");
    assert_null(json_read_file(path, &err));
    assert_non_null(strstr(err.message, "a.json: cannot open: No such file"));
    assert_null(json_read_file(folder, &err));
    assert_non_null(strstr(err.message, ": not a regular file but a folder"));
    assert_int_equal(mkfifo(path, 0600), 0); // would be waited for until somebody writes
    assert_null(json_read_file(path, &err));
    assert_non_null(strstr(err.message, "a.json: not a regular file but a pipe"));
    assert_int_equal(unlink(path), 0);
    write_file(path, "", 0);
    assert_null(json_read_file(path, &err));
    enum { LARGE = 100000 };
    char *text = malloc(LARGE);
    assert_non_null(text);
    memset(text, 'x', LARGE);
    text[0] = text[LARGE - 1] = '"';
    write_file(path, text, LARGE);
    JsonDocument *document = json_read_file(path, &err);
    assert_non_null(document);
    assert_int_equal(strlen(json_root(document)->string), LARGE - 2);
    json_free(document);
    free(text);
    remove_tree(folder);
}

// ---- writing numbers ----

static void test_format_real(void **state) {
    (void)state;
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0, "0.0"},
                 {1, "1.0"},
                 {-3, "-3.0"},
                 {10000, "10000.0"},
                 {0.02, "0.02"},
                 {1e-5, "1e-05"},
                 {0.1, "0.1"},
                 {1e300, "1e+300"},
                 {5e-324, "5e-324"},
                 {1.0 / 3, "0.3333333333333333"},
                 {0.1 + 0.2, "0.30000000000000004"},
                 {123456789.125, "123456789.125"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[JSON_REAL_CHARS];
        json_format_real(cases[i].value, text);
        assert_string_equal(text, cases[i].text);
    }
    for (uint64_t i = 0; i < 20000; i++) { // any finite bits come back
        double value;
        uint64_t bits = (uint64_t)philox4x32(1, 2, i).word[0] << 32 | philox4x32(1, 2, i).word[1];
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value)) continue;
        char text[JSON_REAL_CHARS];
        json_format_real(value, text);
        JsonDocument *document = parse_good(text);
        assert_true(memcmp(&json_root(document)->number, &value, sizeof value) == 0);
        json_free(document);
    }
}

// ---- fuzzing ----

static size_t walk(const Json *value, int depth) { // visits all that the tree promises; the number of values
    assert_true(depth <= 64);
    size_t total = 1;
    if (value->type == JSON_STRING) assert_non_null(memchr(value->string, 0, 1000));
    if (value->type == JSON_NUMBER) assert_true(isfinite(value->number));
    if (value->type == JSON_ARRAY || value->type == JSON_OBJECT) {
        for (int i = 0; i < value->count; i++) {
            if (value->type == JSON_OBJECT) assert_ptr_equal(json_get(value, value->key[i]), &value->item[i]);
            total += walk(&value->item[i], depth + 1);
        }
    }
    return total;
}

// A text changed in one to four places: bytes overwritten, bits flipped, pieces cut out, doubled or moved.
static size_t mutate(const char *text, uint64_t seed, char *out, size_t capacity) {
    static const char telling[] = "{}[]\",:\\u0-+.eE1tfn \n\x80\xC3\xED\xF4\x00\x1F";
    uint64_t draw = 0;
    size_t length = strlen(text);
    memcpy(out, text, length);
    int changes = 1 + (int)random_below(seed, 0, draw++, 4);
    for (int i = 0; i < changes && length > 0; i++) {
        size_t at = random_below(seed, 0, draw++, length), some = 1 + random_below(seed, 0, draw++, 8);
        if (at + some > length) some = length - at;
        switch (random_below(seed, 0, draw++, 5)) {
        case 0: out[at] = telling[random_below(seed, 0, draw++, sizeof telling - 1)]; break;
        case 1: out[at] = (char)(out[at] ^ 1 << random_below(seed, 0, draw++, 8)); break;
        case 2:
            memmove(out + at, out + at + some, length - at - some);
            length -= some;
            break;
        case 3:
            if (length + some > capacity) break;
            memmove(out + at + some, out + at, length - at);
            length += some;
            break;
        default: length = at; break;
        }
    }
    return length;
}

static void test_fuzz(void **state) {
    (void)state;
    static const char *const seeds[] = {
        "{\"a\":[1,-2.5e3,true,false,null],\"b\":{\"c\\u00e9\\ud83d\\ude42\":\"\xC3\xA9\\n\"}}",
        "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}",
        "[[[[[[\"\\\\\\\"\"]]]],0.5E-10,-0,9223372036854775807],{\"\":{}}]",
        "{\"vocab_size\": 50257, \"n_embd\": 768, \"layer_norm_epsilon\": 1e-05, \"n_inner\": null}",
    };
    int accepted = 0;
    alarm(120);
    for (uint64_t i = 0; i < FUZZ_INPUTS; i++) {
        char text[400];
        Error err;
        size_t length = mutate(seeds[i % 4], i, text, sizeof text);
        JsonDocument *document = parse(text, length, &err);
        if (document != NULL) {
            walk(json_root(document), 0);
            accepted++;
        } else {
            bool placed =
                strncmp(err.message, "text: line ", 11) == 0 || strncmp(err.message, "text: is UTF-", 13) == 0;
            assert_true(placed && strchr(err.message, '\n') == NULL);
        }
        json_free(document);
    }
    alarm(0);
    // Some changes leave valid JSON and most do not; were all refused or accepted, this test would see nothing.
    assert_in_range(accepted, FUZZ_INPUTS / 100, FUZZ_INPUTS / 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_scalar_roots),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_many_members),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_raw_nul),
        cmocka_unit_test(test_every_prefix_is_refused),
        cmocka_unit_test(test_encodings),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_format_real),
        cmocka_unit_test(test_fuzz),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
