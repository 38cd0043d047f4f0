// What tells a source's data from other data, wherever they lie and whatever they are called. A resume, whose place in
// the data is only a number, asks for it, and so do ranks that each opened files of their own.
#include <limits.h>

#include "dataloader/token_file.h"

static uint64_t mix(uint64_t hash, uint64_t word) { // FNV-1a (Fowler, Noll, Vo), byte by byte
    for (int i = 0; i < 8; i++) hash = (hash ^ (word >> 8 * i & 0xff)) * UINT64_C(0x100000001b3);
    return hash;
}

uint64_t tokens_sizes_fingerprint(const TokenSource *source) {
    if (source->made) return source->fingerprint; // of a task's text
    uint64_t hash = mix(UINT64_C(0xcbf29ce484222325), (uint64_t)source->kind);
    hash = mix(hash, (uint64_t)source->files);
    for (int i = 0; i < source->files; i++) hash = mix(hash, (uint64_t)source->file[i].count);
    return hash;
}

// The same idea, eight bytes at a time: an odd factor spreads a bit upwards, the shift brings it down again.
static uint64_t mix_bytes(uint64_t hash, const unsigned char *p, size_t size) {
    for (; size >= 8; p += 8, size -= 8) {
        hash = (hash ^ (read32(p) | (uint64_t)read32(p + 4) << 32)) * UINT64_C(0x9E3779B97F4A7C15);
        hash ^= hash >> 32;
    }
    for (; size > 0; p++, size--) hash = (hash ^ *p) * UINT64_C(0x100000001b3);
    return hash;
}

static uint64_t mix_file(uint64_t hash, const TokenFile *file, int blocks) {
    hash = mix(hash, file->size);
    if (file->size / SAMPLE_BLOCK < (size_t)blocks) return mix_bytes(hash, file->bytes, file->size);
    token_file_will_be_sampled(file, true);
    for (int i = 0; i < blocks; i++)
        hash = mix_bytes(hash, file->bytes + sample_place(file->size, i, blocks), SAMPLE_BLOCK);
    token_file_will_be_sampled(file, false);
    return hash;
}

// All bytes where they are read in a moment; else 3 to 64 blocks of every file, some 2,048 in all.
uint64_t source_fingerprint(const TokenSource *source) {
    const size_t read_in_a_moment = 64 << 20;
    size_t bytes = 0;
    for (int i = 0; i < source->files; i++) bytes += source->file[i].size;
    int blocks = 2048 / source->files;
    blocks = blocks < 3 ? 3 : blocks > 64 ? 64 : blocks;
    if (bytes <= read_in_a_moment) blocks = INT_MAX;
    uint64_t hash = mix(mix(UINT64_C(0xcbf29ce484222325), (uint64_t)source->kind), (uint64_t)source->files);
    for (int i = 0; i < source->files; i++) hash = mix_file(hash, &source->file[i], blocks);
    return hash;
}
