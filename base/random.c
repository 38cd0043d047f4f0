// Philox (Salmon et al. 2011) and what is drawn from it: numbers, normals, permutations.
#include "base/random.h"

#include <math.h>

static const uint32_t MULTIPLIER_0 = 0xD2511F53u, MULTIPLIER_1 = 0xCD9E8D57u; // the constants of the paper
static const uint32_t WEYL_0 = 0x9E3779B9u, WEYL_1 = 0xBB67AE85u;

Philox4 philox4x32(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    Philox4 c = {{(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)}};
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)MULTIPLIER_0 * c.word[0];
        uint64_t product1 = (uint64_t)MULTIPLIER_1 * c.word[2];
        Philox4 next = {{(uint32_t)(product1 >> 32) ^ c.word[1] ^ key0, (uint32_t)product1,
                         (uint32_t)(product0 >> 32) ^ c.word[3] ^ key1, (uint32_t)product0}};
        c = next;
        key0 += WEYL_0;
        key1 += WEYL_1;
    }
    return c;
}

static uint64_t word64(Philox4 r, int half) { return (uint64_t)r.word[2 * half + 1] << 32 | r.word[2 * half]; }

static double unit_interval(uint64_t bits) { return (double)(bits >> 11) * 0x1p-53; }

double random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return unit_interval(word64(philox4x32(seed, stream, index), 0));
}

double random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    Philox4 r = philox4x32(seed, stream, index); // Box-Muller; 1 - u is in (0, 1], so the logarithm is finite
    double radius = sqrt(-2.0 * log(1.0 - unit_interval(word64(r, 0))));
    return radius * cos(6.283185307179586 * unit_interval(word64(r, 1)));
}

uint64_t random_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound) {
    return (uint64_t)(((unsigned __int128)word64(philox4x32(seed, stream, index), 0) * bound) >> 64);
}

uint64_t random_permute(uint64_t seed, uint64_t stream, uint64_t n, uint64_t index) {
    int half_bits = 3; // of the smallest network: fewer mix tiny n unevenly
    while (half_bits < 32 && (UINT64_C(1) << (2 * half_bits)) < n) half_bits++;
    uint64_t mask = (UINT64_C(1) << half_bits) - 1;
    do { // the network permutes 4^half_bits values; those past n are sent round again
        uint64_t left = index >> half_bits, right = index & mask;
        for (uint64_t round = 0; round < 8; round++) {
            uint64_t f = philox4x32(seed, stream, round << 40 | right).word[0] & mask;
            uint64_t swapped = left ^ f;
            left = right;
            right = swapped;
        }
        index = left << half_bits | right;
    } while (index >= n);
    return index;
}
