// How ranks that are processes find each other: they meet at rank 0, whose address all know, are told where the others
// are, and connect, each pair once.
#ifndef COMM_RENDEZVOUS_H
#define COMM_RENDEZVOUS_H

#include <stdint.h>

#include "base/error.h"

enum { HOST_BYTES = 64 };

typedef struct MeetingPlace { // as the environment has it
    int rank, size;
    const char *address; // of rank 0: a name, or an IPv4 or IPv6 address
    int port;
} MeetingPlace;

typedef struct Link { // to another rank
    int socket;       // non-blocking; -1 for myself
    uint32_t process;
    char host[HOST_BYTES];
} Link;

// Returns when every rank is connected with every other, or with an error after `timeout` seconds, or as soon as a rank
// that was here has gone. If rank 0 ends the meeting and says why itself on this machine, the process ends without a
// word. `links` (size) is filled, my own place too.
bool rendezvous(const MeetingPlace *place, double timeout, Link *links, Error *err);

#endif
