// Tokens on disk: the kinds of files, how folders and patterns are expanded, and every bad input with its message.
#include "test/token_files.h"

#include "base/random.h"
#include "dataloader/files.h"
#include "dataloader/token_check.h"

enum { LARGE = 300 * 1000 }; // bytes: more than the loader copies, so that it maps the file

static void put(const char *folder, const char *name, const void *data, size_t size) {
    char path[PROGRAM_PATH];
    write_file(path_join(path, folder, name), data, size);
}

static void put_text(const char *folder, const char *name, const char *text) { put(folder, name, text, strlen(text)); }

static void make_folder(const char *folder, const char *name) {
    char path[PROGRAM_PATH];
    assert_int_equal(mkdir(path_join(path, folder, name), 0755), 0);
}

// Opens what must not open; the message must hold both texts (the second may be NULL).
static void refuse(const char *folder, const char *first, const char *second, const char *says, const char *and_says) {
    char path[2][PROGRAM_PATH];
    const char *argument[2] = {path_join(path[0], folder, first), second ? path_join(path[1], folder, second) : NULL};
    Error err = {0};
    TokenSource *source = tokens_open(argument, second ? 2 : 1, TOKENS_AUTO, &err);
    if (source != NULL) fail_msg("%s should not open", argument[0]);
    assert_int_equal(err.exit_code, EXIT_RUNTIME);
    assert_error(&err, says, and_says, NULL);
}

// The source's tokens as text, with '|' for the end of a document.
static void assert_text(const TokenSource *source, const char *expected) {
    int64_t count = tokens_count(source);
    assert_int_equal(count, strlen(expected));
    int32_t *token = calloc((size_t)count, sizeof *token);
    Error err = {0};
    must(tokens_read(source, 0, count, BYTE_VOCABULARY, token, &err), &err);
    for (int64_t i = 0; i < count; i++)
        assert_int_equal(token[i], expected[i] == '|' ? TOKEN_END_OF_DOCUMENT : (unsigned char)expected[i]);
    free(token);
}

static void test_one_file_of_bytes(void **state) {
    const char *folder = *state;
    char path[PROGRAM_PATH];
    put_text(folder, "a.txt", "hello");
    TokenSource *source = open_one(path_join(path, folder, "a.txt"));
    assert_text(source, "hello|");
    assert_true(tokens_are_bytes(source));
    assert_int_equal(tokens_vocabulary(source), BYTE_VOCABULARY);
    assert_string_equal(tokens_name(source), path);
    tokens_close(source);
}

static void test_all_byte_values(void **state) {
    const char *folder = *state;
    char path[PROGRAM_PATH];
    unsigned char byte[256];
    for (int i = 0; i < 256; i++) byte[i] = (unsigned char)i;
    put(folder, "a", byte, 256);
    TokenSource *source = open_one(path_join(path, folder, "a"));
    int32_t token[257];
    Error err = {0};
    must(tokens_read(source, 0, 257, BYTE_VOCABULARY, token, &err), &err);
    for (int i = 0; i < 257; i++) assert_int_equal(token[i], i);
    tokens_close(source);
}

static void test_memory(void **state) {
    (void)state;
    Error err = {0};
    TokenSource *source = tokens_open_memory("abc", 3, &err);
    assert_non_null(source);
    assert_text(source, "abc|");
    tokens_close(source);
    assert_null(tokens_open_memory("", 0, &err));
    assert_error(&err, "empty", NULL);
    tokens_close(NULL);
}

// The order of the arguments, and by path within each; empty and hidden files passed over; sub-folders walked.
static void test_folders_and_patterns(void **state) {
    const char *folder = *state;
    make_folder(folder, "d");
    make_folder(folder, "d/sub");
    make_folder(folder, "d/.git");
    make_folder(folder, "d/nothing");
    make_folder(folder, "e");
    put_text(folder, "e/f.txt", "5");
    put_text(folder, "z.txt", "last");
    put_text(folder, "d/b.txt", "two");
    put_text(folder, "d/a.txt", "one");
    put_text(folder, "d/sub/c.md", "three");
    put_text(folder, "d/sub.txt", "2b"); // '.' comes before '/'
    put_text(folder, "d/empty", "");
    put_text(folder, "d/.hidden", "no");
    put_text(folder, "d/.git/config", "no");
    char path[4][PROGRAM_PATH];

    TokenSource *source = open_one(path_join(path[0], folder, "d"));
    assert_text(source, "one|two|2b|three|");
    assert_non_null(strstr(tokens_name(source), "a.txt and 3 more"));
    tokens_close(source);

    source = open_one(path_join(path[0], folder, "d/")); // a slash at its end changes nothing
    assert_text(source, "one|two|2b|three|");
    tokens_close(source);

    source = open_one(path_join(path[0], folder, "d/*.txt"));
    assert_text(source, "one|two|2b|");
    tokens_close(source);

    source = open_one(path_join(path[0], folder, "d/*/c.md")); // which d/nothing has not
    assert_text(source, "three|");
    tokens_close(source);
    source = open_one(path_join(path[0], folder, "*/sub/*.md")); // and no folder but d has a folder sub
    assert_text(source, "three|");
    tokens_close(source);

    source = open_one(path_join(path[0], folder, "*")); // a match may be a folder
    assert_text(source, "one|two|2b|three|5|last|");
    tokens_close(source);

    Error err = {0};
    const char *several[] = {path_join(path[0], folder, "z.txt"), path_join(path[1], folder, "d/s*"),
                             path_join(path[2], folder, "d/?.txt"), path_join(path[3], folder, "z.txt")};
    source = tokens_open(several, 4, TOKENS_AUTO, &err);
    assert_non_null(source);
    assert_text(source, "last|2b|three|one|two|last|");
    tokens_close(source);
}

static void test_a_name_that_looks_like_a_pattern(void **state) {
    const char *folder = *state;
    char path[PROGRAM_PATH];
    put_text(folder, "a[1].txt", "itself");
    put_text(folder, "a1.txt", "another");
    TokenSource *source = open_one(path_join(path, folder, "a[1].txt"));
    assert_text(source, "itself|");
    tokens_close(source);
}

static void test_links(void **state) {
    const char *folder = *state;
    char path[PROGRAM_PATH];
    make_folder(folder, "d");
    put_text(folder, "outside", "out");
    put_text(folder, "d/a", "in");
    assert_int_equal(symlink("../outside", path_join(path, folder, "d/b")), 0);
    assert_int_equal(symlink("..", path_join(path, folder, "d/up")), 0); // leads back to d by way of its parent
    TokenSource *source = open_one(path_join(path, folder, "d"));
    assert_text(source, "in|out|out|");
    tokens_close(source);

    assert_int_equal(symlink("gone", path_join(path, folder, "d/broken")), 0);
    refuse(folder, "d", NULL, "d/broken", "No such file");
}

static void test_many_files(void **state) {
    const char *folder = *state;
    enum { FILES = 1000 };
    make_folder(folder, "d");
    char name[32], path[PROGRAM_PATH];
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "d/%05d", i);
        put(folder, name, name + 2, 5);
    }
    TokenSource *source = open_one(path_join(path, folder, "d"));
    assert_int_equal(tokens_count(source), 6 * FILES);
    Error err = {0};
    for (int i = 0; i < FILES; i++) {
        int32_t token[6];
        must(tokens_read(source, 6 * i, 6, BYTE_VOCABULARY, token, &err), &err);
        int number = 0;
        for (int digit = 0; digit < 5; digit++) number = 10 * number + token[digit] - '0';
        assert_int_equal(number, i);
        assert_int_equal(token[5], TOKEN_END_OF_DOCUMENT);
    }
    tokens_close(source);
}

// Any stretch of tokens, over files that are copied and files that are mapped, equals that part of the whole.
static void test_reads_across_files(void **state) {
    const char *folder = *state;
    static const size_t sizes[] = {1, 7, LARGE, 2, 100, LARGE + 5, 1};
    enum { FILES = 7 };
    char path[FILES][PROGRAM_PATH], name[16];
    const char *argument[FILES];
    unsigned char *text = malloc(LARGE + 5);
    int32_t *expected = malloc((2 * LARGE + 200) * sizeof *expected);
    assert_non_null(text);
    assert_non_null(expected);
    int64_t total = 0;
    for (int f = 0; f < FILES; f++) {
        for (size_t i = 0; i < sizes[f]; i++)
            expected[total++] = text[i] = (unsigned char)philox4x32(1, (uint64_t)f, i).word[0];
        expected[total++] = TOKEN_END_OF_DOCUMENT;
        snprintf(name, sizeof name, "%d", f);
        put(folder, name, text, sizes[f]);
        argument[f] = path_join(path[f], folder, name);
    }
    Error err = {0};
    TokenSource *source = tokens_open(argument, FILES, TOKENS_AUTO, &err);
    assert_non_null(source);
    assert_int_equal(tokens_count(source), total);
    int32_t *token = malloc((size_t)total * sizeof *token);
    assert_non_null(token);
    for (uint64_t i = 0; i < 300; i++) {
        int64_t first = (int64_t)random_below(2, 0, i, (uint64_t)total);
        int64_t count = (int64_t)random_below(3, 0, i, (uint64_t)(total - first + 1));
        must(tokens_read(source, first, count, BYTE_VOCABULARY, token, &err), &err);
        assert_memory_equal(token, expected + first, (size_t)count * sizeof *token);
    }
    assert_false(tokens_read(source, total - 3, 4, BYTE_VOCABULARY, token, &err));
    assert_error(&err, "asked for", NULL);
    assert_false(tokens_read(source, -1, 4, BYTE_VOCABULARY, token, &err));
    tokens_close(source);
    free(token);
    free(expected);
    free(text);
}

static void test_shards(void **state) {
    const char *folder = *state;
    static const uint32_t small[] = {0, 1, 50256, 50255}, large[] = {0, 128255, 65536, 7};
    for (int width = 2; width <= 4; width += 2) {
        const uint32_t *token = width == 2 ? small : large;
        char path[2][PROGRAM_PATH];
        write_shard(path_join(path[0], folder, "a.bin"), width, token, 4);
        write_shard(path_join(path[1], folder, "b.bin"), width, token, 3);
        const char *argument[] = {path[0], path[1]};
        Error err = {0};
        TokenSource *source = tokens_open(argument, 2, TOKENS_AUTO, &err);
        must(source != NULL, &err);
        assert_false(tokens_are_bytes(source));
        assert_int_equal(tokens_vocabulary(source), width == 2 ? 50257 : 128256);
        assert_int_equal(tokens_count(source), 7); // no end-of-document is added: shards hold their own
        int32_t read[7];
        must(tokens_read(source, 0, 7, tokens_vocabulary(source), read, &err), &err);
        for (int i = 0; i < 7; i++) assert_int_equal(read[i], token[i % 4]);
        tokens_close(source);
    }
}

static void fingerprints(const char *path, uint64_t *content, uint64_t *sizes) {
    TokenSource *source = open_one(path);
    *content = tokens_fingerprint(source);
    *sizes = tokens_sizes_fingerprint(source);
    tokens_close(source);
}

static void test_fingerprint(void **state) {
    const char *folder = *state;
    static const uint32_t token[] = {1, 2, 3};
    static const char *const name[] = {"a", "b", "c", "[ab]", "[cd]", "s", "moved"};
    enum { SOURCES = sizeof name / sizeof *name };
    uint64_t content[SOURCES], sizes[SOURCES];
    char path[PROGRAM_PATH];
    put_text(folder, "a", "four");
    put_text(folder, "b", "like");
    put_text(folder, "c", "longer");
    put_text(folder, "d", "fo");
    put_text(folder, "ab", "fourlike");
    put_text(folder, "moved", "four");
    write_shard(path_join(path, folder, "s"), 2, token, 3);
    for (int i = 0; i < SOURCES; i++) fingerprints(path_join(path, folder, name[i]), &content[i], &sizes[i]);
    assert_true(sizes[0] == sizes[1] && sizes[0] != sizes[2]);
    assert_true(content[0] == content[6]); // names do not count
    for (int i = 0; i < 6; i++)
        for (int j = i + 1; j < 6; j++) assert_true(content[i] != content[j]);
}

// Of more than 64 MiB, samples are read: of every file, and of each its beginning and its end.
static void test_fingerprint_of_much(void **state) {
    const char *folder = *state;
    enum { FILES = 3, BYTES = 30 << 20 };
    static const struct Change {
        int file;
        off_t place;
    } changes[] = {{0, 0}, {0, BYTES - 1}, {1, 4095}, {2, 0}, {2, BYTES - 1}};
    char path[FILES][PROGRAM_PATH], pattern[PROGRAM_PATH];
    static const char *const name[FILES] = {"f0", "f1", "f2"};
    uint64_t before, after, sizes;
    for (int f = 0; f < FILES; f++) {
        put_text(folder, name[f], "");
        assert_int_equal(truncate(path_join(path[f], folder, name[f]), f == 1 ? 6000 : BYTES), 0);
    }
    put_text(folder, "f3", "more than 64 MiB");
    assert_int_equal(truncate(path_join(pattern, folder, "f3"), BYTES), 0);
    path_join(pattern, folder, "f?");
    fingerprints(pattern, &before, &sizes);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        int fd = open(path[changes[i].file], O_WRONLY);
        assert_true(fd >= 0 && pwrite(fd, "x", 1, changes[i].place) == 1);
        fingerprints(pattern, &after, &sizes);
        assert_true(before != after);
        assert_true(pwrite(fd, "", 1, changes[i].place) == 1 && close(fd) == 0);
        fingerprints(pattern, &after, &sizes);
        assert_true(before == after);
    }
}

static void test_nothing_to_read(void **state) {
    const char *folder = *state;
    Error err = {0};
    assert_null(tokens_open(NULL, 0, TOKENS_AUTO, &err));
    assert_error(&err, "no data", NULL);

    refuse(folder, "missing.txt", NULL, "missing.txt", "No such file");
    refuse(folder, "no*match", NULL, "no*match", "check the pattern");
    refuse(folder, "nodir/*.bin", NULL, "no file matches", "there is no folder");
    refuse(folder, "nodir/sub/*", NULL, "no file matches", "nodir/sub");
    put_text(folder, "empty.txt", "");
    refuse(folder, "empty.txt", NULL, "empty.txt", "empty");
    make_folder(folder, "d");
    refuse(folder, "d", NULL, "/d", "no files");
    put_text(folder, "d/.hidden", "text");
    refuse(folder, "d", NULL, "/d", "hidden");
    put_text(folder, "d/empty", "");
    refuse(folder, "d", NULL, "/d", "empty");
    put_text(folder, "text", "text");
    refuse(folder, "text", "d", "/d", "empty"); // also beside good ones
    refuse(folder, "text/below", NULL, "text/below", "Not a directory");

    char fifo[PROGRAM_PATH];
    assert_int_equal(mkfifo(path_join(fifo, folder, "d/fifo"), 0600), 0);
    refuse(folder, "d/fifo", NULL, "d/fifo", "neither a file nor a folder");
    refuse(folder, "d", NULL, "/d", "empty"); // found in a folder it is passed over, without a hang
}

// Root may read everything, so for a moment this test is somebody else.
static void test_not_readable(void **state) {
    const char *folder = *state;
    char path[PROGRAM_PATH];
    bool root = geteuid() == 0;
    put_text(folder, "secret", "text");
    make_folder(folder, "locked");
    put_text(folder, "locked/a", "text");
    assert_int_equal(chmod(path_join(path, folder, "secret"), 0), 0);
    assert_int_equal(chmod(path_join(path, folder, "locked"), 0), 0);
    if (root) assert_int_equal(seteuid(65534), 0);
    refuse(folder, "secret", NULL, "secret", "Permission denied");
    refuse(folder, "locked", NULL, "locked", "Permission denied");
    refuse(folder, "locked/*", NULL, "locked/*", "cannot be read");
    refuse(folder, "l*", NULL, "locked", "Permission denied");
    if (root) assert_int_equal(seteuid(0), 0);
    assert_int_equal(chmod(path_join(path, folder, "locked"), 0755), 0);
}

static void test_bad_shards(void **state) {
    const char *folder = *state;
    static const uint32_t token[100] = {0};
    size_t size;
    unsigned char *shard = make_shard(2, token, 100, &size);

    put(folder, "short.bin", shard, size - 1);
    refuse(folder, "short.bin", NULL, "short.bin: truncated", "1224");
    put(folder, "header.bin", shard, 1023);
    refuse(folder, "header.bin", NULL, "header.bin: truncated", "1023");
    put(folder, "magic-only.bin", shard, 4);
    refuse(folder, "magic-only.bin", NULL, "truncated", "header");
    put(folder, "long.bin", shard, size + 2);
    refuse(folder, "long.bin", NULL, "long.bin: too long", "1224");

    put_le32(shard + 4, 3);
    put(folder, "version.bin", shard, size);
    refuse(folder, "version.bin", NULL, "version.bin", "version 3");
    put_le32(shard + 4, 1);
    put_le32(shard + 8, (uint32_t)-100);
    put(folder, "negative.bin", shard, size);
    refuse(folder, "negative.bin", NULL, "negative.bin", "-100 tokens");
    put_le32(shard + 8, 100);
    put_le32(shard, 20240326); // another of llm.c's files: a model
    put(folder, "dated.bin", shard, size - 1);
    refuse(folder, "dated.bin", NULL, "dated.bin", "bad magic 20240326");
    put_le32(shard, 12345); // a shard in all else
    put(folder, "magic.bin", shard, size);
    refuse(folder, "magic.bin", NULL, "magic.bin", "bad magic 12345");
    put_le32(shard, 20240520);
    put_le32(shard + 8, 0);
    put(folder, "none.bin", shard, 1024);
    refuse(folder, "none.bin", NULL, "none.bin", "empty");
    free(shard);
}

static void test_kinds_do_not_mix(void **state) {
    const char *folder = *state;
    static const uint32_t token[10] = {0};
    char path[PROGRAM_PATH];
    write_shard(path_join(path, folder, "a16.bin"), 2, token, 10);
    write_shard(path_join(path, folder, "b32.bin"), 4, token, 10);
    put_text(folder, "c.txt", "some text that is longer than a magic");
    refuse(folder, "a16.bin", "b32.bin", "b32.bin is a shard of uint32", "a16.bin is a shard of uint16");
    refuse(folder, "a16.bin", "c.txt", "c.txt is plain bytes", "magic");
    refuse(folder, "c.txt", "b32.bin", "b32.bin is a shard of uint32", "c.txt is plain bytes");
    refuse(folder, "*", NULL, "b32.bin", "one kind");
}

static void test_token_past_the_vocabulary(void **state) {
    const char *folder = *state;
    char path[2][PROGRAM_PATH];
    uint32_t token[20] = {0};
    token[13] = 50257;
    write_shard(path_join(path[0], folder, "a.bin"), 2, (uint32_t[20]){0}, 20);
    write_shard(path_join(path[1], folder, "b.bin"), 2, token, 20);
    const char *argument[] = {path[0], path[1]};
    Error err = {0};
    TokenSource *source = tokens_open(argument, 2, TOKENS_AUTO, &err);
    must(source != NULL, &err);
    int32_t read[40];
    must(tokens_read(source, 0, 33, 50257, read, &err), &err);
    must(tokens_read(source, 34, 6, 50257, read, &err), &err);
    assert_false(tokens_read(source, 5, 35, 50257, read, &err));
    assert_error(&err, "b.bin", "token 50257 at place 13", "50257", NULL);
    must(tokens_read(source, 5, 35, 50304, read, &err), &err); // a model may have more
    tokens_close(source);

    token[3] = 0xffffffff; // must not turn into a negative number that passes
    write_shard(path_join(path[0], folder, "c.bin"), 4, token, 20);
    source = open_one(path[0]);
    assert_false(tokens_read(source, 0, 20, 128256, read, &err));
    assert_error(&err, "c.bin", "token 4294967295 at place 3", NULL);
    tokens_close(source);

    put_text(folder, "text", "abc");
    source = open_one(path_join(path[0], folder, "text"));
    assert_false(tokens_read(source, 0, 4, 256, read, &err)); // no room for the end of the document
    assert_error(&err, "text", "token 256 at place 3", NULL);
    tokens_close(source);
}

enum { CHECKED = 2500000, CHECKED_FIRST = 1234567 }; // tokens in all and in the first file: several stretches

static int64_t place_in_file(int64_t place) { return place < CHECKED_FIRST ? place : place - CHECKED_FIRST; }

// Checks the source in `parts` parts, of which those must fail, and name the place, that hold one of the bad places.
static void check_in_parts(const TokenSource *source, int parts, const int64_t bad[2]) {
    for (int part = 0; part < parts; part++) {
        TokenCheck check = token_check_begin(source, 50000, part, parts);
        int64_t begin = check.next, first = -1;
        for (int k = 1; k >= 0; k--)
            if (bad[k] >= begin && bad[k] < check.end) first = bad[k];
        if (part == 0) assert_int_equal(begin, 0);
        if (part == parts - 1) assert_int_equal(check.end, CHECKED);
        Error err = {0};
        bool ok = true;
        while (ok && check.next < check.end) ok = token_check_go_on(&check, parts, 0.001, &err);
        assert_int_equal(ok, first < 0);
        char place[40];
        snprintf(place, sizeof place, "at place %lld ", (long long)place_in_file(first));
        if (!ok) assert_error(&err, first < CHECKED_FIRST ? "/a: token" : "/b: token", place, NULL);
    }
}

static void put_token(char path[2][PROGRAM_PATH], int width, int64_t place, uint32_t value) {
    unsigned char bytes[4];
    put_le32(bytes, value);
    int fd = open(path[place >= CHECKED_FIRST], O_WRONLY);
    off_t offset = 1024 + (off_t)width * place_in_file(place);
    assert_true(fd >= 0 && pwrite(fd, bytes, (size_t)width, offset) == width && close(fd) == 0);
}

// Every token that is beyond the vocabulary is found, at whatever place, by any number of parts and threads.
static void test_check_of_all_tokens(void **state) {
    const char *folder = *state;
    static const int64_t bad[][2] = {
        {0, CHECKED - 1}, {CHECKED_FIRST - 1, CHECKED - 1}, {CHECKED_FIRST, CHECKED_FIRST + 1}, {1048575, 1048576}};
    static const int64_t none[2] = {-1, -1};
    static uint32_t token[CHECKED];
    char path[2][PROGRAM_PATH];
    for (int64_t i = 0; i < CHECKED; i++) token[i] = (uint32_t)(i % 50000);
    for (int width = 2; width <= 4; width += 2) {
        write_shard(path_join(path[0], folder, "a"), width, token, CHECKED_FIRST);
        write_shard(path_join(path[1], folder, "b"), width, token + CHECKED_FIRST, CHECKED - CHECKED_FIRST);
        const char *argument[] = {path[0], path[1]};
        Error err = {0};
        TokenSource *source = tokens_open(argument, 2, TOKENS_AUTO, &err);
        must(source != NULL, &err);
        check_in_parts(source, 2, none);
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            // Beyond by little, and what would be a negative number.
            for (int k = 0; k < 2; k++) put_token(path, width, bad[i][k], k == 0 || width == 2 ? 50000 : 0x80000000);
            for (int parts = 1; parts <= 3; parts++) check_in_parts(source, parts, bad[i]);
            for (int k = 0; k < 2; k++) put_token(path, width, bad[i][k], 1);
        }
        tokens_close(source);
    }
}

// Where no number can be beyond, nothing is read.
static void test_check_of_nothing(void **state) {
    const char *folder = *state;
    char path[PROGRAM_PATH];
    put_text(folder, "text", "abc");
    write_shard(path_join(path, folder, "s"), 2, (uint32_t[]){65535}, 1);
    TokenSource *shard = open_one(path), *text = open_one(path_join(path, folder, "text"));
    assert_true(tokens_always_below(shard, 65536) && !tokens_always_below(shard, 65535));
    assert_true(tokens_always_below(text, 257) && !tokens_always_below(text, 256));
    TokenCheck check = token_check_begin(text, 257, 0, 1);
    assert_int_equal(check.next, check.end);
    check = token_check_begin(text, 256, 0, 1);
    Error err = {0};
    assert_false(token_check_go_on(&check, 1, 1, &err));
    assert_error(&err, "token 256 at place 3", NULL);
    tokens_close(shard);
    tokens_close(text);
}

// A mapped file that is cut short must end in a message and not in a signal; one that is replaced or removed lives on.
static void test_file_changes_while_in_use(void **state) {
    const char *folder = *state;
    char path[PROGRAM_PATH];
    unsigned char *text = calloc(LARGE, 1);
    assert_non_null(text);
    int32_t token[10];
    Error err = {0};
    put(folder, "a", text, LARGE);
    TokenSource *source = open_one(path_join(path, folder, "a"));
    must(tokens_read(source, LARGE - 10, 10, BYTE_VOCABULARY, token, &err), &err);
    assert_int_equal(truncate(path, 1000), 0);
    assert_false(tokens_read(source, LARGE - 10, 10, BYTE_VOCABULARY, token, &err));
    assert_error(&err, "/a: cut from 300000 to 1000 bytes", NULL);
    tokens_close(source);

    put(folder, "a", text, LARGE);
    source = open_one(path);
    assert_int_equal(unlink(path), 0);
    must(tokens_read(source, LARGE - 10, 10, BYTE_VOCABULARY, token, &err), &err);
    put(folder, "a", "short", 5);
    must(tokens_read(source, LARGE - 10, 10, BYTE_VOCABULARY, token, &err), &err);
    tokens_close(source);
    free(text);
}

// Changes up to three things about a shard: a header word, a header bit, or its length.
static void mutate(unsigned char *shard, size_t *size, uint64_t input) {
    static const uint32_t interesting[] = {0,   1,        7,        49,         50,         51,
                                           100, 20240520, 20240801, 0x7fffffff, 0x80000000, 0xffffffff};
    uint64_t changes = random_below(9, input, 0, 4);
    for (uint64_t change = 1; change <= changes; change++) {
        uint64_t word = random_below(10, input, change, 4), bit = random_below(11, input, change, 128);
        switch (random_below(12, input, change, 3)) {
        case 0: put_le32(shard + 4 * word, interesting[random_below(13, input, change, 12)]); break;
        case 1: shard[bit / 8] ^= (unsigned char)(1 << bit % 8); break;
        default: *size = random_below(14, input, change, *size + 4);
        }
    }
}

// Mutated shards: each opens and can be read to its end, or is refused in one line.
static void test_fuzzed_shards(void **state) {
    const char *folder = *state;
    enum { INPUTS = 1500, TOKENS = 50 };
    uint32_t token[TOKENS];
    for (uint32_t i = 0; i < TOKENS; i++) token[i] = 2000 * i; // some are past the vocabulary of uint16
    char path[PROGRAM_PATH];
    const char *argument = path_join(path, folder, "fuzzed.bin");
    int opened = 0;
    for (uint64_t input = 0; input < INPUTS; input++) {
        size_t size;
        unsigned char *shard = make_shard(input % 2 ? 2 : 4, token, TOKENS, &size);
        size_t longest = size + 4;
        mutate(shard, &size, input);
        write_file(path, shard, size < longest ? size : longest);
        free(shard);
        Error err = {0};
        TokenSource *source = tokens_open(&argument, 1, TOKENS_AUTO, &err);
        if (source == NULL) {
            assert_error(&err, "fuzzed.bin", NULL);
            continue;
        }
        opened++;
        int64_t count = tokens_count(source);
        assert_true(count > 0 && count <= (int64_t)longest + 1);
        int32_t *out = malloc((size_t)count * sizeof *out);
        assert_non_null(out);
        if (!tokens_read(source, 0, count, tokens_vocabulary(source), out, &err)) assert_error(&err, "at place", NULL);
        free(out);
        tokens_close(source);
    }
    assert_in_range(opened, INPUTS / 10, INPUTS - INPUTS / 10); // both ends were seen
}

#define TEST_WITH_FOLDER(f) cmocka_unit_test_setup_teardown(f, temp_folder_setup, temp_folder_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST_WITH_FOLDER(test_one_file_of_bytes),
        TEST_WITH_FOLDER(test_all_byte_values),
        cmocka_unit_test(test_memory),
        TEST_WITH_FOLDER(test_folders_and_patterns),
        TEST_WITH_FOLDER(test_a_name_that_looks_like_a_pattern),
        TEST_WITH_FOLDER(test_links),
        TEST_WITH_FOLDER(test_many_files),
        TEST_WITH_FOLDER(test_reads_across_files),
        TEST_WITH_FOLDER(test_shards),
        TEST_WITH_FOLDER(test_fingerprint),
        TEST_WITH_FOLDER(test_fingerprint_of_much),
        TEST_WITH_FOLDER(test_nothing_to_read),
        TEST_WITH_FOLDER(test_not_readable),
        TEST_WITH_FOLDER(test_bad_shards),
        TEST_WITH_FOLDER(test_kinds_do_not_mix),
        TEST_WITH_FOLDER(test_token_past_the_vocabulary),
        TEST_WITH_FOLDER(test_check_of_all_tokens),
        TEST_WITH_FOLDER(test_check_of_nothing),
        TEST_WITH_FOLDER(test_file_changes_while_in_use),
        TEST_WITH_FOLDER(test_fuzzed_shards),
    };
    return cmocka_run_group_tests_name("tokens", tests, NULL, NULL);
}
