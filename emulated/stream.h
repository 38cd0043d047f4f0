// Streams, from within: queues of operations that are run later, by whichever host thread needs them.
//
// A stream runs its operations in order, one at a time. No thread belongs to it: a thread that waits (for a stream, an
// event, a device) takes operations from the heads of the queues and runs them itself, first those it needs, now and
// then any other, until what it waits for is done; when nothing can be run it sleeps until something changes. So work
// that nobody waits for is late, as far as the dependencies allow, and a missing dependency shows.
#ifndef EMULATED_STREAM_H
#define EMULATED_STREAM_H

#include <cuda_runtime.h>

// One piece of work. All pointers but `run` may be NULL.
struct Operation {
    // Can it run now? NULL: always. Called with the lock held, only while the operation is at the head of its stream,
    // any number of times, by any thread; must be short, must change nothing that another waits for, and must not call
    // the CUDA runtime. What it looks at may be guarded by the lock (stream_lock below), and whoever changes that calls
    // stream_changed.
    bool (*ready)(void *argument);
    // The work. Called once, without the lock, by any thread; must not wait for another stream.
    void (*run)(void *argument);
    // Called once afterwards, with the lock held. Frees the argument, if that is needed.
    void (*finish)(void *argument);
    void *argument;
    const char *what; // a string that lives as long as the operation: "ncclAllReduce"; for messages
};

// Puts a copy of *operation at the end of the stream's queue. NULL is the default stream of the current device.
cudaError_t stream_enqueue(cudaStream_t stream, const Operation *operation);

// The lock of all queues. Never held while an operation runs.
void stream_lock(void);
void stream_unlock(void);
// Wakes the threads that wait, to look at all heads again. The lock is held.
void stream_changed(void);
// With the lock held: makes one step towards the end of `wanted` (NULL: of any stream), or, when nothing at all can be
// run, sleeps until something changes. The lock is given back while an operation runs and while sleeping.
void stream_step(cudaStream_t wanted);

// The clock of this stream's events goes on by so much. By the operation that it is running.
void stream_lengthen(cudaStream_t stream, double seconds);
int stream_device(cudaStream_t stream); // the index of the GPU that it belongs to
// Until all work of this GPU, as it is now, has ended.
void stream_finish_device(int device);

#endif
