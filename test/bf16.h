// bf16 on the host, as devices store it.
#ifndef TEST_BF16_H
#define TEST_BF16_H

#include <stdint.h>

uint16_t to_bf16_bits(float x); // to nearest, ties to even
float from_bf16_bits(uint16_t half);
float round_to_bf16(float x);

#endif
