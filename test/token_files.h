// A temporary folder for each test (its `state` is the path), data files for those of the loader, and checks of errors.
#ifndef TEST_TOKEN_FILES_H
#define TEST_TOKEN_FILES_H

#include "test/program.h"

#include "dataloader/tokens.h"

int temp_folder_setup(void **state);

int temp_folder_teardown(void **state);

void put_le32(unsigned char *p, uint32_t value);

// An llm.c token shard of `width` bytes per token (2 or 4), in memory; to be freed.
unsigned char *make_shard(int width, const uint32_t *token, size_t count, size_t *size);

void write_shard(const char *path, int width, const uint32_t *token, size_t count);

TokenSource *open_one(const char *path);

void must(bool ok, const Error *err);

// The error of a failed call: one line that holds each of the texts. To be called with NULL at the end.
void assert_error(const Error *err, ...) __attribute__((sentinel));

#endif
