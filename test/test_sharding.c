// Who owns which tokens: every token once, chunk boundaries as stated, what a rank sees of another's block, and even
// work. And who sees whom, by windows and documents.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

static bool holds(const Shard *shard, int64_t position) {
    for (int i = 0; i < shard->count; i++)
        if (position >= shard->chunk[i].start && position < end_of(shard->chunk[i])) return true;
    return false;
}

// Whether some query of the shard sees the key, by the definition.
static bool sees(const Shard *queries, int64_t key, const Visibility *v) {
    for (int i = 0; i < queries->count; i++)
        for (int64_t query = queries->chunk[i].start; query < end_of(queries->chunk[i]); query++)
            if (key <= query && (v->window == 0 || query - key < v->window) && (v->first == NULL || key >= v->first[query]))
                return true;
    return false;
}

// What a shard gives, and no more, is what one of these readers sees.
static void check_seen(const Shard *given, const Shard *keys, const Shard *readers, int count, const Visibility *v) {
    int64_t tokens = 0;
    assert_int_equal(given->count, keys->count);
    for (int i = 0; i < keys->count; i++) {
        for (int64_t key = keys->chunk[i].start; key < end_of(keys->chunk[i]); key++) {
            bool seen = false;
            for (int reader = 0; reader < count; reader++) seen = seen || sees(&readers[reader], key, v);
            assert_int_equal(holds(given, key), seen);
            tokens += seen;
        }
    }
    assert_int_equal(given->tokens, tokens);
}

// Each reader gets what it sees; and round the ring, towards lower ranks, each gets what it and those behind it see.
static void check_all_seen(int64_t T, int P, const Visibility *v) {
    for (int owner = 0; owner < P; owner++) {
        Shard keys = shard_of(T, P, owner), behind[8], own = shard_seen(T, P, owner, owner, v);
        for (int left = 1; left < P; left++) { // the last in the ring comes right above the owner
            int reader = (owner + left) % P;
            behind[left - 1] = shard_of(T, P, reader);
            Shard one = shard_seen(T, P, owner, reader, v), all = shard_seen_from(T, P, owner, reader, v);
            check_seen(&one, &keys, &behind[left - 1], 1, v);
            check_seen(&all, &keys, behind, left, v);
        }
        assert_int_equal(own.tokens, keys.tokens);
    }
}

static void seen_is_what_is_needed(void **state) {
    (void)state;
    static const int64_t windows[] = {0, 1, 2, 3, 7, 20, 49, 60};
    for (int P = 1; P <= 8; P++) {
        for (int64_t T = 2 * P; T <= 50; T += 3) {
            for (size_t w = 0; w < sizeof windows / sizeof *windows; w++) {
                int32_t tokens[50], first[50];
                check_all_seen(T, P, &(Visibility){.window = windows[w]});
                for (int64_t i = 0; i < T; i++) tokens[i] = (int32_t)(i * i % (3 + (int64_t)w)); // 0 ends a document
                visibility_of_documents(first, tokens, T, 0);
                check_all_seen(T, P, &(Visibility){.first = first});
                check_all_seen(T, P, &(Visibility){.window = 5, .first = first});
            }
        }
    }
}

static int64_t pairs_of(int64_t T, int ranks, int rank) { // of a query and a key
    const Visibility everything = {0};
    Shard shard = shard_of(T, ranks, rank);
    int64_t pairs = 0;
    for (int i = 0; i < shard.count; i++) pairs += visibility_pairs(&everything, 0, shard.chunk[i]);
    return pairs;
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
                int64_t pairs = pairs_of(T, P, rank);
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

// ---- who sees whom ------------------------------------------------------------------------------

static const int32_t END = 9;

// Documents of one token, of two, a long one, and one that the sequence cuts off; then the answers one by one.
static void documents_end_with_their_separator(void **state) {
    (void)state;
    const int32_t tokens[] = {END, 5, END, END, 1, 2, 3, 4, END, 7, 7}, expected[] = {0, 1, 1, 3, 4, 4, 4, 4, 4, 9, 9};
    enum { COUNT = sizeof tokens / sizeof *tokens };
    int32_t first[COUNT], in_place[COUNT];
    visibility_of_documents(first, tokens, COUNT, END);
    assert_memory_equal(first, expected, sizeof first);
    int32_t least[COUNT] = {5, 0, 5, 0, 5, 0, 5, 0, 5, 0, 5};
    const int32_t both[] = {0, 0, 1, 0, 4, 0, 4, 0, 4, 0, 5};
    visibility_least(least, first, COUNT);
    assert_memory_equal(least, both, sizeof least);
    memcpy(in_place, tokens, sizeof tokens);
    visibility_of_documents(in_place, in_place, COUNT, END);
    assert_memory_equal(in_place, expected, sizeof in_place);
}

// Every question about chunks, against queries and keys one by one: windows, documents of two sequences, and both.
static void chunks_are_asked_about_right(void **state) {
    (void)state;
    enum { T = 24 };
    int32_t first[2 * T], tokens[T] = {0};
    visibility_of_documents(first, tokens, T, END);
    for (int i = 3; i < T; i += i / 2) tokens[i] = END;
    visibility_of_documents(first + T, tokens, T, END);
    for (int64_t window = 0; window <= T + 1; window++) {
        for (int documents = 0; documents < 2; documents++) {
            const Visibility v = {.window = window, .first = documents ? first : NULL, .stride = T};
            assert_int_equal(visibility_is_limited(&v), window > 0 || documents);
            for (int64_t b = 0; b < 2; b++) {
                for (int64_t start = 0; start < T; start++) {
                    for (int64_t length = 0; start + length <= T; length++) {
                        Chunk queries = {start, length}, keys = {T / 3, T / 3},
                              seen = visibility_seen(&v, b, queries, keys);
                        int64_t pairs = 0, all = 0;
                        for (int64_t key = 0; key < T; key++) {
                            bool some = false;
                            for (int64_t i = start; i < start + length; i++) {
                                bool sees = key <= i && (window == 0 || i - key < window) &&
                                            (!documents || key >= first[b * T + i]);
                                some = some || sees;
                                all += sees;
                            }
                            bool here = key >= seen.start && key < end_of(seen);
                            assert_int_equal(here, some && key >= keys.start && key < end_of(keys));
                            pairs += here;
                        }
                        assert_int_equal(visibility_sees(&v, b, queries, keys), pairs > 0);
                        assert_int_equal(visibility_pairs(&v, b, queries), all);
                    }
                }
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
        cmocka_unit_test(documents_end_with_their_separator),
        cmocka_unit_test(chunks_are_asked_about_right),
    };
    return cmocka_run_group_tests_name("sharding", tests, NULL, NULL);
}
