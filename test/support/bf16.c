// Bodies of test/bf16.h.
#include "test/bf16.h"

#include <string.h>

uint16_t to_bf16_bits(float x) { // to nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bf16_bits(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

float round_to_bf16(float x) { return from_bf16_bits(to_bf16_bits(x)); }
