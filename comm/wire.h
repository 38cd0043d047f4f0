// Messages between processes: one TCP connection for each pair of ranks, and a thread in the background, the postman,
// that moves bytes while the rank works. Private to the engine `sockets`.
//
// What goes over a connection are frames: a head of fixed size, and for some kinds a body. A message of up to
// EAGER_BYTES is sent as one frame, at once; where nobody waits for it yet, the receiver keeps it. A longer one is only
// announced; the receiver asks for it when it has a place for it, and it then travels in pieces, straight into that
// place. So two ranks that send each other long messages never wait for each other, a rank keeps no long message that
// it has not asked for, and a short one never waits for more than a piece of a long one.
//
// Frames are sent as the machine has them in memory: all ranks run the same program on the same kind of machine.
#ifndef COMM_WIRE_H
#define COMM_WIRE_H

#include <pthread.h>

#include "comm/engine.h"
#include "comm/rendezvous.h"

enum { EAGER_BYTES = 64 << 10, PIECE_BYTES = 1 << 20, TEXT_BYTES = 1024 };

typedef struct Message { // one side of a message, or one that has come before it was asked for
    struct Message *next;
    struct Message *claimant; // of one that came early: the receive that takes it
    char *data;
    size_t bytes, moved, sent; // sent: of a receive, what the other side has sent
    uint64_t ticket;           // of a long one: the sender's number for it
    uint32_t group, stream;    // messages of each pair of these are matched apart, in the order begun
    int peer;
    bool under_way; // matched, or on its way out
    bool early;     // its data are the postman's
    bool done;
} Message;

typedef struct Messages {
    Message *first, *last;
} Messages;

typedef enum FrameKind {
    FRAME_MESSAGE = 1, // body: the message
    FRAME_ANNOUNCE,    // of a long message
    FRAME_READY,       // I have a place for the message with this ticket
    FRAME_PIECE,       // body: the next bytes of the message with this ticket
    FRAME_FINISHED,    // this rank has returned from rank_main
    FRAME_QUERY,       // where do you stand?
    FRAME_STANDING,    // body: operation, doing
    FRAME_REPORT,      // body: a line that ought to end all ranks
    FRAME_VERDICT,     // body: the line that does
} FrameKind;

typedef struct Frame {
    uint32_t kind, group, stream;
    int32_t value;   // STANDING: whom it awaits; REPORT, VERDICT: exit code
    uint64_t bytes;  // of the body; ANNOUNCE: of the message
    uint64_t ticket; // of a long message; STANDING: its signs of life
} Frame;

typedef struct Parcel { // a frame to be sent
    struct Parcel *next;
    Frame frame;
    const char *body; // a text stands right after the parcel
    Message *message; // whose bytes the body is; NULL: none
} Parcel;

typedef struct Peer { // at the other end of a connection. Who may touch what: (l) under the lock, (p) the postman alone
    Link link;        // (p) to change, under the lock; socket -1: closed, or myself
    char place[96];   // "process 1234 on host"
    bool finished;    // (l) it has returned from rank_main
    bool lost;        // (l) it ended without a word
    bool mute;        // (l) nothing can be sent any more

    Parcel *first, *last; // (l) to be sent
    Messages announced;   // (l) long sends that have not been asked for
    Messages wanted;      // (l) long sends that have
    Parcel *going, piece; // (p) on its way; `piece`: the one for pieces of long messages
    size_t gone;          // (p)
    bool blocked;         // (p) the socket takes no more for the time being

    Messages posted;   // (l) receives that nothing has come for
    Messages arrived;  // (l) messages and announcements that nobody has asked for
    Messages promised; // (l) long receives that have been asked for
    Frame frame;       // (p) that is coming in
    size_t frame_have, body_have;
    char *body;        // (p) where its body goes
    Message *incoming; // (p) to which it belongs, or NULL

    bool answered; // (l) to the last query; what follows is its last answer
    int awaits;
    int64_t beats;
    char operation[32], doing[256], text[TEXT_BYTES];
} Peer;

typedef struct Wire Wire;

// What the postman leaves to others to decide (comm/verdict.c).
typedef struct WireEvents {
    void (*lost)(Wire *, Peer *, const char *why); // its connection has ended before it had finished. The lock is held.
    void (*heard)(Wire *, Peer *); // a REPORT or VERDICT of its has come, in peer->text. The lock is held.
    void (*failing)(Wire *); // while `failure` is not SOUND, several times a second, without the lock. May not return.
} WireEvents;

struct Wire {
    pthread_mutex_t lock;   // guards what is marked (l), never a system call that moves data
    pthread_cond_t changed; // a message is done, a peer has finished or answered
    pthread_t postman;
    int rank, size;
    double timeout;
    const WireEvents *events;
    Peer *peer;              // (size)
    int alarm_in, alarm_out; // a pipe that wakes the postman
    bool woken, closing;
    uint64_t next_ticket;

    int awaits; // (l) as in CommStanding
    const char *operation, *doing;
    int64_t beats; // (l) signs of life of this rank

    enum { SOUND, REPORTED, DECIDED } failure; // (l) this and what follows: set by comm/verdict.c
    Error error;
    int judge; // to whom it was reported, or who decided
    double reported_at;
};

// `links` (size) become the wire's. NULL: error.
Wire *wire_start(int rank, int size, double timeout, const Link *links, const WireEvents *events, Error *err);
// Collective: waits, without a time-out, until all ranks have come here; then closes all.
void wire_finish(Wire *wire);

// One side of a message between `peer` and me; 0 bytes are a message too. The data are the wire's until it is done.
// Returns NULL if out of memory.
Message *wire_post(Wire *wire, bool receives, void *data, size_t bytes, int peer, uint32_t group, uint32_t stream);

// Sends a frame with a copy of `text` (frame->bytes long) to one rank. The lock is held.
void wire_tell(Wire *wire, int rank, const Frame *frame, const char *text);
void wire_wake(Wire *wire);              // the postman, after anything that it should look at. The lock is held.
void wire_write(Wire *wire, Peer *peer); // (p) what it can without waiting. Takes the lock.

#endif
