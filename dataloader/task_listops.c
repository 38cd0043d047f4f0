// listops: expressions over digits (Nangia and Bowman, "ListOps", 2018), such as
//
//   [MAX 2 [SM 9 3 ] 0 ] = 2      SM is the sum modulo 10, MED the median, of an even number rounded down
//
// An opening bracket with its operator is one token, and so are digits, the closing bracket and "=", whose target is
// the result; that follows as an input. A window is full of expressions: one on average for each 32 tokens, of 6 to 54
// of them, the last one longer where T is no multiple of 32.
#include "dataloader/task_kind.h"

enum { DIGITS = 10, MAX = DIGITS, MIN, MED, SM, CLOSE, EQUALS, TOKENS };
enum { SLOT = 32, JITTER = 12, SMALLEST = 4 }; // the smallest expression: [OP d d ]

static int64_t least_context(int64_t distance) {
    (void)distance;
    return SLOT;
}

static int64_t answers(int64_t distance, int64_t context) {
    (void)distance;
    return context / SLOT;
}

// Of an operator's arguments, how many there are of each digit; that is enough for all four.
typedef struct Arguments {
    int64_t count[DIGITS], all;
} Arguments;

// The argument in place `place` of the sorted ones.
static int64_t sorted(const Arguments *a, int64_t place) {
    int64_t digit = 0;
    for (int64_t below = a->count[0]; below <= place; below += a->count[digit]) digit++;
    return digit;
}

static int32_t result_of(int32_t opening, const Arguments *a) {
    int64_t sum = 0;
    for (int64_t digit = 0; digit < DIGITS; digit++) sum += digit * a->count[digit];
    if (opening == MAX) return (int32_t)sorted(a, a->all - 1);
    if (opening == MIN) return (int32_t)sorted(a, 0);
    if (opening == MED) return (int32_t)((sorted(a, (a->all - 1) / 2) + sorted(a, a->all / 2)) / 2);
    return (int32_t)(sum % DIGITS);
}

// An expression of exactly `length` tokens, 1 or at least SMALLEST, into `out`. Returns its result. Every other
// argument is an expression, as far as there is room for one, so what is nested falls in length as it gets deeper.
static int32_t make_expression(Draw *draw, int64_t length, int32_t *out) {
    if (length == 1) return *out = (int32_t)draw_below(draw, DIGITS);
    Arguments arguments = {0};
    out[0] = (int32_t)(MAX + draw_below(draw, 4));
    for (int64_t at = 1; at < length - 1;) {
        int64_t most = length - 1 - at - (arguments.all == 0 ? 1 : 0), size = 1; // two arguments at least
        if (most >= SMALLEST && draw_below(draw, 2) == 0) size = SMALLEST + draw_below(draw, most - SMALLEST + 1);
        arguments.count[make_expression(draw, size, out + at)]++;
        arguments.all++;
        at += size;
    }
    out[length - 1] = CLOSE;
    return result_of(out[0], &arguments);
}

static void make(Draw *draw, int64_t distance, int64_t context, int32_t *inputs, int32_t *targets) {
    (void)distance;
    int64_t count = context / SLOT, begin = 0;
    for (int64_t i = 1; i <= count; i++) {
        int64_t end = i == count ? context : i * SLOT + draw_below(draw, 2 * JITTER + 1) - JITTER;
        int64_t equals = end - 2;
        targets[equals] = make_expression(draw, equals - begin, inputs + begin);
        inputs[equals] = EQUALS;
        inputs[equals + 1] = targets[equals];
        begin = end;
    }
}

const TaskKind task_listops = {"listops", TOKENS, DIGITS, 0, least_context, answers, make};
