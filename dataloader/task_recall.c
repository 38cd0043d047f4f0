// recall:D: associative recall over a distance, of many questions a window (multi-query, as in Arora et al.'s MQAR).
//
// A window is pairs of two tokens, a key and its value. Its first 16 (D/2, where that is less) tell the pairs that are
// asked for; D tokens after the first of them began, they are asked, all of them, in another order; D tokens later once
// more, and so on as often as they fit as a whole. So D is the distance from group to group, and that of one pair is D
// on average, and 30 less to 30 more. A question is the key, whose target is the value; the value follows as an input,
// as the rest of the pair. In another order, because at one distance alone a shift of D - 1 tokens would answer it
// without a look at any key.
//
// Between the groups stand pairs of the other keys, each with a value drawn anew. So nothing but an earlier group tells
// a value: who cannot see that far is right once in 16 times.
//
//   D = 8    k v  l w  x .  y .  l W  k V  y .  x .  k V  l W      capitals: targets; two pairs of a group shown
#include "dataloader/task_kind.h"

enum { KEYS = 64, VALUES = 16, MOST_ASKED = 16 }; // tokens: the keys, then the values

static int64_t asked_of(int64_t distance) { return distance / 2 < MOST_ASKED ? distance / 2 : MOST_ASKED; }
static int64_t least_context(int64_t distance) { return distance + 2 * asked_of(distance); }

// Of groups after the first.
static int64_t rounds(int64_t distance, int64_t context) { return (context - 2 * asked_of(distance)) / distance; }
static int64_t answers(int64_t distance, int64_t context) { return rounds(distance, context) * asked_of(distance); }

static void make(Draw *draw, int64_t distance, int64_t context, int32_t *inputs, int32_t *targets) {
    int64_t asked = asked_of(distance), last = rounds(distance, context);
    int32_t key[KEYS], value[MOST_ASKED];
    for (int32_t i = 0; i < KEYS; i++) key[i] = i;
    draw_order(draw, KEYS, key, NULL);
    for (int64_t i = 0; i < asked; i++) value[i] = (int32_t)(KEYS + draw_below(draw, VALUES));
    for (int64_t t = 0; t < context; t += 2) {
        int64_t round = t / distance, place = t % distance / 2;
        bool grouped = place < asked && round <= last;
        if (grouped && place == 0 && round > 0) draw_order(draw, asked, key, value);
        int32_t of_pair[2];
        of_pair[0] = key[grouped ? place : asked + draw_below(draw, KEYS - asked)];
        of_pair[1] = grouped ? value[place] : (int32_t)(KEYS + draw_below(draw, VALUES));
        if (grouped && round > 0) targets[t] = of_pair[1];
        inputs[t] = of_pair[0];
        if (t + 1 < context) inputs[t + 1] = of_pair[1];
    }
}

const TaskKind task_recall = {"recall", KEYS + VALUES, VALUES, 2, 2, least_context, answers, make};
