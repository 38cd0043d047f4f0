// CUDA's atomic functions, by the host's.
#include "emulated/checks.h"

#define CHECK_ATOMIC(address) check_access(address, sizeof *address, true, true, CALLER)

// `next` is made from `old` until nobody came between.
#define CHANGE(type, name, next, ...)                                                                                  \
    type name(type *address, ##__VA_ARGS__, type value) {                                                              \
        CHECK_ATOMIC(address);                                                                                         \
        type old, new_value;                                                                                           \
        __atomic_load(address, &old, __ATOMIC_SEQ_CST);                                                                \
        do new_value = next;                                                                                           \
        while (!__atomic_compare_exchange(address, &old, &new_value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));      \
        return old;                                                                                                    \
    }

CHANGE(int, atomicAdd, (int)((unsigned)old + (unsigned)value))
CHANGE(unsigned, atomicAdd, old + value)
CHANGE(unsigned long long, atomicAdd, old + value)
CHANGE(float, atomicAdd, old + value)
CHANGE(double, atomicAdd, old + value)
CHANGE(int, atomicSub, (int)((unsigned)old - (unsigned)value))
CHANGE(unsigned, atomicSub, old - value)
CHANGE(int, atomicMin, old < value ? old : value)
CHANGE(unsigned, atomicMin, old < value ? old : value)
CHANGE(int, atomicMax, old > value ? old : value)
CHANGE(unsigned, atomicMax, old > value ? old : value)
CHANGE(unsigned, atomicInc, old >= value ? 0 : old + 1)
CHANGE(unsigned, atomicAnd, old &value)
CHANGE(unsigned, atomicOr, old | value)
CHANGE(int, atomicExch, value)
CHANGE(unsigned, atomicExch, value)
CHANGE(float, atomicExch, value)
CHANGE(int, atomicCAS, old == expected ? value : old, int expected)
CHANGE(unsigned, atomicCAS, old == expected ? value : old, unsigned expected)
CHANGE(unsigned long long, atomicCAS, old == expected ? value : old, unsigned long long expected)
