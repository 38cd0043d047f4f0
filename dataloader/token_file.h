// Data files in memory, and where their tokens lie in them. For the sources of dataloader/tokens.h alone.
#ifndef DATALOADER_TOKEN_FILE_H
#define DATALOADER_TOKEN_FILE_H

#include <sys/types.h>

#include "dataloader/files.h"
#include "dataloader/tokens.h"

// Those from KIND_FASTA on are decoded (dataloader/formats.h).
typedef enum Kind {
    KIND_BYTES,
    KIND_UINT16,
    KIND_UINT32,
    KIND_FASTA,
    KIND_IDX,
    KIND_ABC,
    KIND_WAV,
    KIND_COUNT
} Kind;

typedef struct TokenFile {
    const char *path; // NULL: memory of the caller
    unsigned char *bytes; // of the file; of a decoded one its symbols
    size_t size;          // of these
    bool mapped;
    dev_t device; // who it is, to notice that it was cut short
    ino_t inode;
    const unsigned char *tokens; // inside bytes
    int64_t first;               // place of its first token in the source
    int64_t count;
} TokenFile;

struct TokenSource {
    FileList list; // owns the paths
    TokenFile *file;
    int files;
    Kind kind;
    int64_t count;
    TokenFormat format;   // as given
    uint64_t fingerprint; // of sizes and content
    bool made;            // by `task`: there are no files
    Task task;
    char name[200];
};

// Token numbers are little-endian on every machine.
static inline uint32_t read16(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static inline uint32_t read32(const unsigned char *p) { return read16(p) | read16(p + 2) << 16; }

int64_t kind_vocabulary(Kind kind);
int kind_width(Kind kind);             // bytes of a token
bool kind_is_numbers(Kind kind);       // of a tokenizer
const char *kind_name(Kind kind);      // "uint16 tokens"
const char *kind_described(Kind kind); // "a shard of uint16 tokens"

// Maps the file at file->path, or copies it where it is small.
bool token_file_load(TokenFile *file, Error *err);
void token_file_unload(TokenFile *file);
// To touch a mapped page beyond the end of a file that has been cut short would kill the process (SIGBUS): look first.
// A file that was removed or replaced under its name lives on in the mapping.
bool token_file_still_whole(const TokenFile *file, Error *err);

// Blocks of a file, taken as a sample: `count` (2 or more) places spread evenly, the first at its beginning and the
// last at its end. A file of less than a block is one place, with all of it.
enum { SAMPLE_BLOCK = 4096 };
size_t sample_place(size_t size, int i, int count);
size_t sample_length(size_t size);
// Before and after reading such blocks: the kernel need not read what lies around them.
void token_file_will_be_sampled(const TokenFile *file, bool begin);

// What the loaded file is, and where its tokens are: fills `kind`, tokens and count (0: it has none). Decodes it where
// its format is one of those.
bool token_file_recognise(TokenFile *file, TokenFormat format, Kind *kind, Error *err);

uint64_t source_fingerprint(const TokenSource *source); // see tokens_fingerprint

#endif
