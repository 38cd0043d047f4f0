// Who owns which tokens: every token once, chunk boundaries as stated, what a rank sees of another's block, and even
// work.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "sequence/sharding.h"

enum { MOST_RANKS = 17, LONGEST = 130 };

static int64_t end_of(Chunk chunk) { return chunk.start + chunk.length; }

static void every_token_has_one_owner(void **state) {
    (void)state;
    for (int P = 1; P <= MOST_RANKS; P++) {
        for (int64_t T = 2 * P; T <= LONGEST; T++) {
            int owners[LONGEST] = {0};
            for (int rank = 0; rank < P; rank++) {
                Shard shard = shard_of(T, P, rank);
                int64_t tokens = 0;
                for (int i = 0; i < shard.count; i++) {
                    assert_true(shard.chunk[i].length >= 1);
                    if (i > 0)
                        assert_true(end_of(shard.chunk[i - 1]) < shard.chunk[i].start); // else they were one chunk
                    for (int64_t t = 0; t < shard.chunk[i].length; t++) {
                        owners[shard.chunk[i].start + t]++;
                        assert_int_equal(shard_offset(&shard, shard.chunk[i].start + t), tokens + t);
                    }
                    tokens += shard.chunk[i].length;
                }
                assert_int_equal(shard.tokens, tokens);
            }
            for (int64_t t = 0; t < T; t++) assert_int_equal(owners[t], 1);
        }
    }
}

static void chunks_are_zigzag(void **state) {
    (void)state;
    Shard first = shard_of(37, 4, 0), second = shard_of(37, 4, 1), last = shard_of(37, 4, 3);
    // floor(i * 37 / 8): 0 4 9 13 18 23 27 32 37
    assert_int_equal(first.count, 2);
    assert_int_equal(first.chunk[0].start, 0);
    assert_int_equal(first.chunk[0].length, 4);
    assert_int_equal(first.chunk[1].start, 32);
    assert_int_equal(first.chunk[1].length, 5);
    assert_int_equal(second.chunk[0].start, 4);
    assert_int_equal(second.chunk[1].start, 27);
    assert_int_equal(last.count, 1); // chunks 3 and 4 are neighbours
    assert_int_equal(last.chunk[0].start, 13);
    assert_int_equal(last.chunk[0].length, 10);

    Shard whole = shard_of(5, 1, 0);
    assert_int_equal(whole.count, 1);
    assert_int_equal(whole.chunk[0].start, 0);
    assert_int_equal(whole.chunk[0].length, 5);

    int64_t T = INT64_C(1) << 40; // no 32-bit product anywhere
    Shard far = shard_of(T, 1024, 0);
    assert_int_equal(far.chunk[1].start, T - T / 2048);
    assert_int_equal(far.chunk[1].length, T / 2048);
}

// What Ulysses rests on: the tokens of U neighbouring ranks of P are those of one rank of P/U.
static void neighbours_own_a_larger_shard(void **state) {
    (void)state;
    for (int U = 1; U <= 8; U++) {
        for (int R = 1; R * U <= 16; R++) {
            for (int64_t T = 2 * R * U; T <= LONGEST; T++) {
                for (int rank = 0; rank < R * U; rank++) {
                    Shard small = shard_of(T, R * U, rank), large = shard_of(T, R, rank / U);
                    for (int i = 0; i < small.count; i++) {
                        bool inside = false;
                        for (int j = 0; j < large.count; j++) {
                            inside |= small.chunk[i].start >= large.chunk[j].start &&
                                      end_of(small.chunk[i]) <= end_of(large.chunk[j]);
                        }
                        assert_true(inside);
                    }
                }
            }
        }
    }
}

// Every (query, key) pair with key <= query is inside what shard_seen gives, and no chunk is given without need. Round
// the ring towards lower ranks, what the next holder sees covers what those behind it see.
static void seen_is_what_is_needed(void **state) {
    (void)state;
    for (int P = 1; P <= 8; P++) {
        for (int64_t T = 2 * P; T <= 50; T++) {
            for (int owner = 0; owner < P; owner++) {
                Shard keys = shard_of(T, P, owner);
                for (int reader = 0; reader < P; reader++) {
                    Shard queries = shard_of(T, P, reader), seen = shard_seen(T, P, owner, reader);
                    int64_t last_query = end_of(queries.chunk[queries.count - 1]) - 1, tokens = 0;
                    for (int i = 0; i < keys.count; i++) {
                        assert_int_equal(i < seen.count, keys.chunk[i].start <= last_query);
                        if (i < seen.count) tokens += keys.chunk[i].length;
                    }
                    assert_int_equal(seen.tokens, tokens);
                    assert_true(seen.count >= 1);
                }
                int64_t before = keys.tokens;
                for (int step = 1; step < P; step++) {
                    int64_t tokens = shard_seen(T, P, owner, (owner + P - step) % P).tokens;
                    assert_true(tokens <= before);
                    before = tokens;
                }
            }
        }
    }
}

// With chunks of exactly T/2P tokens every rank has (T + 1) T/2P pairs, the mean. Write the boundaries as b_i = i T/2P
// - f_i with f_i in [0, 1), and e_i = 1 where f_i > 0, else 0. Then b_{2P-i} = T - b_i - e_i, and the triangles add up
// to
//   pairs(r) - mean = g_r - g_{r+1},   g_i = (T + 1) f_i - e_i (T - b_i),   so g_i = 0 or b_i - T < g_i < b_i + 1.
// As b_r <= b_{r+1} < b_r + T/2P + 1, a rank is less than T + 2 + T/2P pairs from the mean: the work of one or two
// tokens. And no two ranks differ by more than the work of one chunk, that of the costliest, the last.
static void work_is_even(void **state) {
    (void)state;
    for (int P = 1; P <= MOST_RANKS; P++) {
        for (int64_t T = 2 * P; T <= LONGEST; T++) {
            int64_t least = INT64_MAX, most = 0, total = 0;
            double mean = 0.5 * (double)T * (double)(T + 1) / P, bound = (double)T + 2 + 0.5 * (double)T / P;
            for (int rank = 0; rank < P; rank++) {
                int64_t pairs = shard_causal_pairs(T, P, rank);
                assert_true((double)pairs - mean < bound && mean - (double)pairs < bound);
                if (pairs < least) least = pairs;
                if (pairs > most) most = pairs;
                total += pairs;
            }
            assert_int_equal(total, T * (T + 1) / 2);
            Shard first = shard_of(T, P, 0);
            Chunk last = first.chunk[first.count - 1];
            int64_t last_length = P == 1 ? T : last.length, start = T - last_length;
            assert_true(most - least <= (T * (T + 1) - start * (start + 1)) / 2);
            if (T % (2 * P) == 0) assert_int_equal(most, least);
        }
    }
}

// Counted one by one.
static void pairs_are_counted_right(void **state) {
    (void)state;
    for (int P = 1; P <= 5; P++) {
        for (int64_t T = 2 * P; T <= 40; T++) {
            for (int rank = 0; rank < P; rank++) {
                Shard shard = shard_of(T, P, rank);
                int64_t pairs = 0;
                for (int i = 0; i < shard.count; i++)
                    for (int64_t query = shard.chunk[i].start; query < end_of(shard.chunk[i]); query++)
                        pairs += query + 1;
                assert_int_equal(shard_causal_pairs(T, P, rank), pairs);
            }
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_token_has_one_owner),
        cmocka_unit_test(chunks_are_zigzag),
        cmocka_unit_test(neighbours_own_a_larger_shard),
        cmocka_unit_test(seen_is_what_is_needed),
        cmocka_unit_test(work_is_even),
        cmocka_unit_test(pairs_are_counted_right),
    };
    return cmocka_run_group_tests_name("sharding", tests, NULL, NULL);
}
