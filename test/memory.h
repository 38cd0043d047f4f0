// Memory for tests.
#ifndef TEST_MEMORY_H
#define TEST_MEMORY_H

// The memory itself; ends the test program where it is NULL, on whatever thread.
void *checked(void *memory);

#endif
