// SHA-256 (FIPS 180-4), for the sums that tell a whole checkpoint from a damaged one.
#ifndef CHECKPOINT_SHA256_H
#define CHECKPOINT_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct Sha256 {
    uint32_t state[8];
    uint64_t bytes;          // added so far
    unsigned char block[64]; // the last bytes % 64 of them
} Sha256;

enum { SHA256_HEX_CHARS = 65 }; // 64 digits and the end

void sha256_begin(Sha256 *sum);
void sha256_add(Sha256 *sum, const void *data, size_t bytes);
void sha256_end(Sha256 *sum, char hex[SHA256_HEX_CHARS]);

#endif
