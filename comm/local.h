// The meeting of ranks that are threads of one process, for who builds on it: the engine `local` itself, and groups of
// the same ranks on a device (comm/peer.c). `comm` is always a group of engine `local`.
#ifndef COMM_LOCAL_H
#define COMM_LOCAL_H

#include "comm/engine.h"

struct SharedEvent; // comm/peer.c

bool local_engine(const Comm *comm); // is it one?

typedef struct Message { // one side of a message: left by the rank that comes first, found by the second
    struct Message *next;
    bool sends;
    char *data;
    size_t bytes;
    int peer;
    bool done;                          // the second has copied, or told its device to
    struct SharedEvent *ready, *copied; // on a device: where its buffer is ready, and, once done, the end of the copy
} Message;

Message *local_new_message(Comm *comm, bool sends, void *data, size_t bytes, int peer);
void local_free_message(Comm *comm, Message *message);
// Leaves my message for the other side and returns NULL; or takes and returns the other side's: then the copy and
// local_complete remain to be done, and mine was not left. Sizes that differ end all ranks.
Message *local_post(Comm *comm, Message *mine);
void local_complete(Comm *comm, Message *message, int owner); // done: wakes the one who left it
void local_wait_for_message(Comm *comm, Message *message);    // until done

#endif
