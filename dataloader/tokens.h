// Tokens on disk, seen as one long array: memory-mapped, so a rank touches only what it asks for (small files are
// copied).
//
// Any file is bytes (vocabulary 256 plus token 256, end of document, after each file); or llm.c token shards: a header
// of 256 int32 (magic 20240520 version 1: uint16 tokens, vocabulary 50257; magic 20240801 version 7: uint32, vocabulary
// 128256), then the tokens. Its first number tells which. Or it is of a format that is decoded, when it is opened, into
// symbols of a small vocabulary of its own (dataloader/formats.h). Where it is said so, a file is uint16 or uint32
// tokens without a header, of the same vocabularies. Files of a source are all of one kind. Arguments are files,
// folders (all files below, hidden ones left out) or glob patterns; the files are taken in the order of the arguments,
// sorted by path within each; those without a token are passed over, unless named by themselves.
#ifndef DATALOADER_TOKENS_H
#define DATALOADER_TOKENS_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "dataloader/task.h"

enum { TOKEN_END_OF_DOCUMENT = 256, BYTE_VOCABULARY = 257 };

typedef struct TokenSource TokenSource; // immutable once open: ranks may share it

// auto: shards, what is known by its content, and bytes; what looks like numbers without a header is refused, with the
// option that says what it is.
typedef enum TokenFormat {
    TOKENS_AUTO,
    TOKENS_BYTES,
    TOKENS_UINT16,
    TOKENS_UINT32,
    TOKENS_LLMC,
    TOKENS_FASTA,
    TOKENS_IDX,
    TOKENS_ABC,
    TOKENS_WAV
} TokenFormat;

TokenSource *tokens_open(const char *const *arguments, int count, TokenFormat format, Error *err);
// One document of bytes in memory, which must outlive the source.
TokenSource *tokens_open_memory(const void *bytes, size_t size, Error *err);
// The windows of a synthetic task, as the tokens of one split after the other: TASK_SPLIT_TOKENS to train on, and as
// many to validate on. They are made where they are asked for (dataloader/loader.h); tokens_read has none.
TokenSource *tokens_open_task(const Task *task, Error *err);
#define TASK_SPLIT_TOKENS (INT64_C(1) << 49)
#define TASK_NAME "the task " // with which its tokens_name begins
const Task *tokens_task(const TokenSource *source); // NULL: its tokens are data
void tokens_close(TokenSource *source);             // may be NULL

int64_t tokens_count(const TokenSource *source);
int64_t tokens_vocabulary(const TokenSource *source); // BYTE_VOCABULARY for bytes
bool tokens_are_bytes(const TokenSource *source);
const char *tokens_name(const TokenSource *source); // for messages: "text.txt and 3 more"
const char *tokens_kind(const TokenSource *source); // "bytes", "uint16 tokens", "bases"
// What one token is: "byte", "base", "pixel", "character", "sample". NULL: a tokenizer's number.
const char *tokens_unit(const TokenSource *source);
const char *tokens_symbols(const TokenSource *source);  // of a decoded format: what its tokens are, else NULL
int32_t tokens_document_end(const TokenSource *source); // where there is a unit: the last token; else -1
bool tokens_without_header(const TokenSource *source);  // nothing in the files says what the numbers are
// Of kind, number, sizes and content of the files, not of their names. Content: all of it up to 64 MiB together; of
// more, samples of every file: its beginning, its end and places between.
uint64_t tokens_fingerprint(const TokenSource *source);
uint64_t tokens_sizes_fingerprint(const TokenSource *source); // of kind, number and sizes alone

// Tokens [first, first + count) into out. Fails where a token is not below `vocabulary` (file and place are named).
bool tokens_read(const TokenSource *source, int64_t first, int64_t count, int64_t vocabulary, int32_t *out, Error *err);

// Whether tokens stand for characters; and what they are. tokens_of_text: `tokens` has room for each byte of `text`;
// false where a character has no token, *at being its place.
bool tokens_are_text(const TokenSource *source);
bool tokens_of_text(const TokenSource *source, const char *text, int32_t *tokens, int64_t *count, size_t *at);
char tokens_character(const TokenSource *source, int32_t token); // of the end of a document: a newline

// Whether no token of this kind can be beyond the vocabulary, so that nothing need be read to know.
bool tokens_always_below(const TokenSource *source, int64_t vocabulary);
// The place of the first of tokens [first, first + count) that is not below the vocabulary; first + count: none. Much
// faster than tokens_read. Fails where a file was cut short.
bool tokens_find_beyond(const TokenSource *source, int64_t first, int64_t count, int64_t vocabulary, int64_t *place,
                        Error *err);

#endif
