// Signs of life of a thread in long work.
//
// Ranks that wait for another one cannot tell whether it is slow or hangs. So whatever may take long without a word to
// other ranks (files, sums over files, counting, kernels of the CPU) calls pulse_beat now and then, and need not know
// who listens: comm, where the thread is a rank; nobody elsewhere.
#ifndef BASE_PULSE_H
#define BASE_PULSE_H

// From now on, each beat of this thread calls `beat(listener)`, on this thread. NULL: nobody listens any more.
void pulse_connect(void (*beat)(void *listener), void *listener);

// Cheap: may be called thousands of times a second.
void pulse_beat(void);

#endif
