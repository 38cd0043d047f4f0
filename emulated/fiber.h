// Switching between stacks on one host thread.
#ifndef EMULATED_FIBER_H
#define EMULATED_FIBER_H

#include <stddef.h>

enum { FIBER_STACK_BYTES = 128 << 10 };

#if defined(__x86_64__)
typedef void *FiberContext; // the stack pointer, with the saved registers above it
#else
#include <ucontext.h>
typedef ucontext_t FiberContext;
#endif

// Saves the registers that a called function must keep in *from and goes on where *to was saved.
void fiber_switch(FiberContext *from, FiberContext *to);
// Makes *context start `entry`, which never returns, at the top of a stack. `color` moves that top by some lines of the
// cache, so that the stacks of a block do not all meet in the same few.
void fiber_start(FiberContext *context, char *stack, void (*entry)(), unsigned color);

// Stacks of FIBER_STACK_BYTES, each with an unreadable page below it, kept for the next one who asks.
enum { FIBER_STACKS = 1024 };
struct FiberStacks {
    char *kept[FIBER_STACKS];
    int count, made;
};
char *fiber_stack_get(FiberStacks *stacks);
static inline void fiber_stack_put(FiberStacks *stacks, char *stack) { stacks->kept[stacks->count++] = stack; }

#endif
