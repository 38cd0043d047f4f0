// Fibers: a stack and a place to go on, switched by hand.
#include "emulated/fiber.h"

#include <stdint.h>
#include <sys/mman.h>

#include "emulated/report.h"

#if defined(__x86_64__)

// System V ABI, AMD64: a function keeps rbx, rbp, r12 to r15 and the stack pointer; everything else may be lost in a
// call, and a switch is a call. (The control words of the floating-point units are never changed here.)
void fiber_switch_registers(void **from, void *to) __asm__("emulated_fiber_switch_registers");
__asm__(".text\n"
        ".p2align 4\n"
        ".type emulated_fiber_switch_registers, @function\n"
        "emulated_fiber_switch_registers:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size emulated_fiber_switch_registers, . - emulated_fiber_switch_registers\n");

void fiber_switch(FiberContext *from, FiberContext *to) { fiber_switch_registers(from, *to); }

void fiber_start(FiberContext *context, char *stack, void (*entry)(), unsigned color) {
    uintptr_t top = (uintptr_t)stack + FIBER_STACK_BYTES - color % 61 * 64;
    void **word = (void **)(top - 64);
    for (int i = 0; i < 8; i++) word[i] = NULL;
    word[6] = (void *)entry; // where `ret` goes; above it 0, where a debugger's backtrace ends
    *context = word;
}

#else

void fiber_switch(FiberContext *from, FiberContext *to) { swapcontext(from, to); }

void fiber_start(FiberContext *context, char *stack, void (*entry)(), unsigned color) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = FIBER_STACK_BYTES - color % 61 * 64;
    context->uc_link = NULL;
    makecontext(context, entry, 0);
}

#endif

enum { GUARD_BYTES = 4096 };

char *fiber_stack_get(FiberStacks *stacks) {
    if (stacks->count > 0) return stacks->kept[--stacks->count];
    char *memory = (char *)mmap(NULL, GUARD_BYTES + FIBER_STACK_BYTES, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0) {
        report_host("no memory for the stack of a thread");
    }
    stacks->made++;
    return memory + GUARD_BYTES;
}
