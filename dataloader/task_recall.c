// recall:D: associative recall over a distance, of many questions a window (Arora et al.'s MQAR is the model).
//
// A token tells a pair of a key and a value, or asks for a key; the answer to a question is the token that told its
// pair. A window is rounds of D + 16 tokens. 16 pairs are told at the beginning of a round (D, where that is less), and
// D tokens after the first of them all are asked, in another order: at one distance alone a shift would answer them
// without a look at any key. So D is the distance from group to group, and that of one pair is D on average, 15 less to
// 15 more. The next round tells the same pairs again. All other tokens tell pairs of the other keys, each with a value
// drawn anew. So nothing nearer tells the values that are asked for, and who cannot see that far is right once in 8
// times.
//
//   D = 8, groups of 2, T = 20      k1 l7 x3 y0 y5 x3 x1 y2 l? k?  l7 k1 y1 x6 x0 y4 x7 y3 l? k?
//
// In MQAR a pair is two tokens, of which a first layer has to make one before a second can look it up. That takes far
// longer to learn than this, which one layer of attention can do.
#include "dataloader/task_kind.h"

enum { KEYS = 32, VALUES = 8, MOST_ASKED = 16 }; // tokens: questions by key, then pairs by key and value

static int64_t asked_of(int64_t distance) { return distance < MOST_ASKED ? distance : MOST_ASKED; }
static int64_t round_of(int64_t distance) { return distance + asked_of(distance); }
static int64_t answers(int64_t distance, int64_t context) { return context / round_of(distance) * asked_of(distance); }

static int32_t pair_of(int32_t key, int64_t value) { return (int32_t)(KEYS + key * VALUES + value); }

static void make(Draw *draw, int64_t distance, int64_t context, int32_t *inputs, int32_t *targets) {
    int64_t asked = asked_of(distance), round = round_of(distance), whole = context / round * round;
    int32_t key[KEYS], pair[MOST_ASKED]; // pair[i] is that of key[i]
    for (int32_t i = 0; i < KEYS; i++) key[i] = i;
    draw_order(draw, KEYS, key, NULL);
    for (int64_t i = 0; i < asked; i++) pair[i] = pair_of(key[i], draw_below(draw, VALUES));
    for (int64_t t = 0; t < context; t++) {
        int64_t place = t % round, question = place - distance;
        bool told = t < whole && place < asked, is_asked = t < whole && question >= 0;
        if (t < whole && question == 0) draw_order(draw, asked, key, pair);
        if (told) inputs[t] = pair[place];
        else if (is_asked) inputs[t] = key[question], targets[t] = pair[question];
        else inputs[t] = pair_of(key[asked + draw_below(draw, KEYS - asked)], draw_below(draw, VALUES));
    }
}

const TaskKind task_recall = {"recall", KEYS * (1 + VALUES), VALUES, 1, round_of, answers, make};
