// The program that counts what it allocates (test/counted.c, test/train_gpt_counted): that it allocates nothing after
// its first step, and takes what --plan says. What emulated GPUs and their driver allocate for themselves is not the
// program's: binutils' addr2line tells which places are in emulated/.
#ifndef TEST_COUNTED_RUN_H
#define TEST_COUNTED_RUN_H

#include "test/program.h"

// A run: its options, as words with single spaces between, beside those that all have.
typedef struct Case {
    const char *device, *options;
} Case;

typedef struct Counted {
    long long calls, peak, resident, device_calls, device_peak;
} Counted;

bool has_device(const char *device);

void nothing_is_allocated(const char *device, const char *const *options, int count);

double planned(const Case *c);   // bytes that the plan says all ranks of the process take
Counted measured(const Case *c); // in two steps
// 5%: what the plan leaves out are stacks, messages and tables.
void expect_as_planned(const Case *c, double bytes);

#endif
