// Bodies of test/token_files.h.
#include "test/token_files.h"

int temp_folder_setup(void **state) {
    char *folder = malloc(PROGRAM_PATH);
    if (folder == NULL) return -1;
    *state = make_temp_folder(folder);
    return chmod(folder, 0755);
}

int temp_folder_teardown(void **state) {
    remove_tree(*state);
    free(*state);
    return 0;
}

void put_le32(unsigned char *p, uint32_t value) {
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(value >> 8 * i);
}

unsigned char *make_shard(int width, const uint32_t *token, size_t count, size_t *size) {
    *size = 1024 + (size_t)width * count;
    unsigned char *shard = calloc(*size + 4, 1);
    if (shard == NULL) fail_msg("out of memory");
    put_le32(shard, width == 2 ? 20240520 : 20240801);
    put_le32(shard + 4, width == 2 ? 1 : 7);
    put_le32(shard + 8, (uint32_t)count);
    for (size_t i = 0; i < count; i++) put_le32(shard + 1024 + (size_t)width * i, token[i]);
    return shard;
}

void write_shard(const char *path, int width, const uint32_t *token, size_t count) {
    size_t size;
    unsigned char *shard = make_shard(width, token, count, &size);
    write_file(path, shard, size);
    free(shard);
}

TokenSource *open_one(const char *path) {
    Error err = {0};
    TokenSource *source = tokens_open(&path, 1, TOKENS_AUTO, &err);
    if (source == NULL) fail_msg("%s", err.message);
    return source;
}

void must(bool ok, const Error *err) {
    if (!ok) fail_msg("%s", err->message);
}

void assert_error(const Error *err, ...) {
    assert_int_not_equal(err->exit_code, 0);
    if (strchr(err->message, '\n')) fail_msg("more than one line: %s", err->message);
    va_list texts;
    va_start(texts, err);
    for (const char *text; (text = va_arg(texts, const char *)) != NULL;)
        if (strstr(err->message, text) == NULL) fail_msg("\"%s\" does not say \"%s\"", err->message, text);
    va_end(texts);
}
