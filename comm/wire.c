#include "comm/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

// ---- lists --------------------------------------------------------------------------------------------------------

static void append(Messages *list, Message *message) {
    message->next = NULL;
    if (list->first == NULL) list->first = message;
    else list->last->next = message;
    list->last = message;
}

static Message *take_after(Messages *list, Message *previous, Message *message) {
    if (previous == NULL) list->first = message->next;
    else previous->next = message->next;
    if (list->last == message) list->last = previous;
    message->next = NULL;
    return message;
}

static Message *take_matching(Messages *list, uint32_t group, uint32_t stream) { // the first, or NULL
    Message *previous = NULL;
    for (Message *m = list->first; m != NULL; previous = m, m = m->next)
        if (m->group == group && m->stream == stream) return take_after(list, previous, m);
    return NULL;
}

static Message *take_ticket(Messages *list, uint64_t ticket) {
    Message *previous = NULL;
    for (Message *m = list->first; m != NULL; previous = m, m = m->next)
        if (m->ticket == ticket) return take_after(list, previous, m);
    return NULL;
}

static void free_messages(Messages *list) {
    while (list->first != NULL) {
        Message *message = take_after(list, NULL, list->first);
        if (message->early) free(message->data);
        free(message);
    }
}

// ---- what the rank and the postman tell each other ----------------------------------------------------------------

static void done(Wire *wire, Message *message) {
    message->done = true;
    pthread_cond_signal(&wire->changed);
}

void wire_wake(Wire *wire) {
    if (wire->woken) return;
    wire->woken = true;
    while (write(wire->alarm_in, "", 1) < 0 && errno == EINTR) continue; // a full pipe wakes too
}

// Without memory there is no orderly end: the others see that the connection ends.
static void *get(Wire *wire, size_t bytes) {
    void *memory = calloc(1, bytes > 0 ? bytes : 1);
    if (memory != NULL) return memory;
    Error err = {.exit_code = EXIT_RUNTIME};
    snprintf(err.message, sizeof err.message, "rank %d: out of memory for messages between ranks", wire->rank);
    comm_print_failure(&err);
    _exit(EXIT_RUNTIME);
}

static void enqueue(Wire *wire, Peer *peer, Parcel *parcel) {
    if (peer->first == NULL) peer->first = parcel;
    else peer->last->next = parcel;
    peer->last = parcel;
    wire_wake(wire);
}

void wire_tell(Wire *wire, int rank, const Frame *frame, const char *text) {
    Peer *peer = &wire->peer[rank];
    if (peer->mute) return;
    size_t bytes = text != NULL ? (size_t)frame->bytes : 0;
    Parcel *parcel = get(wire, sizeof *parcel + bytes);
    parcel->frame = *frame;
    if (bytes > 0) memcpy(parcel + 1, text, bytes);
    parcel->body = (const char *)(parcel + 1);
    enqueue(wire, peer, parcel);
}

// A long message has found its place.
static void ask_for(Wire *wire, Peer *peer, Message *receive, uint64_t ticket) {
    Frame ready = {.kind = FRAME_READY, .ticket = ticket};
    receive->ticket = ticket;
    receive->under_way = true;
    append(&peer->promised, receive);
    wire_tell(wire, receive->peer, &ready, NULL);
}

static void post_receive(Wire *wire, Peer *peer, Message *receive) {
    Message *come = take_matching(&peer->arrived, receive->group, receive->stream);
    receive->sent = come != NULL ? come->bytes : receive->bytes;
    if (come == NULL) {
        append(&peer->posted, receive);
    } else if (come->bytes != receive->bytes) { // which the receiver will report
        append(&peer->arrived, come);
        done(wire, receive);
    } else if (come->ticket != 0) {
        ask_for(wire, peer, receive, come->ticket);
        free(come);
    } else if (!come->done) {
        receive->under_way = true;
        come->claimant = receive;
    } else {
        if (come->bytes > 0) memcpy(receive->data, come->data, come->bytes);
        free(come->data);
        free(come);
        done(wire, receive);
    }
}

static void post_send(Wire *wire, Peer *peer, Message *send) {
    send->sent = send->bytes;
    if (peer->mute) { // it has gone after its end: the message is one too many, which is the sender's mistake alone
        done(wire, send);
    } else if (send->bytes > EAGER_BYTES) {
        Frame frame = {.kind = FRAME_ANNOUNCE, .group = send->group, .stream = send->stream, .bytes = send->bytes};
        frame.ticket = send->ticket = ++wire->next_ticket;
        append(&peer->announced, send);
        wire_tell(wire, send->peer, &frame, NULL);
    } else {
        Parcel *parcel = get(wire, sizeof *parcel);
        parcel->frame =
            (Frame){.kind = FRAME_MESSAGE, .group = send->group, .stream = send->stream, .bytes = send->bytes};
        parcel->body = send->data;
        parcel->message = send;
        send->under_way = true;
        enqueue(wire, peer, parcel);
    }
}

Message *wire_post(Wire *wire, bool receives, void *data, size_t bytes, int peer, uint32_t group, uint32_t stream) {
    Message *message = malloc(sizeof *message);
    if (message == NULL) return NULL;
    *message = (Message){.data = data, .bytes = bytes, .peer = peer, .group = group, .stream = stream};
    pthread_mutex_lock(&wire->lock);
    if (receives) post_receive(wire, &wire->peer[peer], message);
    else post_send(wire, &wire->peer[peer], message);
    pthread_mutex_unlock(&wire->lock);
    return message;
}

// ---- sending ------------------------------------------------------------------------------------------------------

static size_t body_bytes(const Frame *frame) {
    switch (frame->kind) {
    case FRAME_MESSAGE:
    case FRAME_PIECE:
    case FRAME_STANDING:
    case FRAME_REPORT:
    case FRAME_VERDICT: return (size_t)frame->bytes;
    default: return 0;
    }
}

static bool has_output(const Peer *peer) {
    return !peer->mute && (peer->going != NULL || peer->first != NULL || peer->wanted.first != NULL);
}

// What goes next: frames in their order, and pieces of long messages where there are none.
static Parcel *next_parcel(Peer *peer) {
    Parcel *parcel = peer->first;
    Message *message = peer->wanted.first;
    if (parcel != NULL) {
        peer->first = parcel->next;
    } else if (message != NULL) {
        size_t left = message->bytes - message->moved;
        parcel = &peer->piece;
        *parcel = (Parcel){.body = message->data + message->moved, .message = message};
        parcel->frame = (Frame){.kind = FRAME_PIECE, .ticket = message->ticket};
        parcel->frame.bytes = left < PIECE_BYTES ? left : PIECE_BYTES;
    }
    return parcel;
}

static void parcel_sent(Wire *wire, Peer *peer, Parcel *parcel) {
    Message *message = parcel->message;
    if (message != NULL) message->moved += (size_t)parcel->frame.bytes;
    if (parcel == &peer->piece && message->moved == message->bytes) take_after(&peer->wanted, NULL, message);
    if (message != NULL && message->moved == message->bytes) done(wire, message);
    if (parcel != &peer->piece) free(parcel);
}

// Nothing more can be sent: what was to go has gone, as far as the rank is concerned. If that is news to the program,
// it comes from the other direction of the connection.
static void fall_mute(Wire *wire, Peer *peer) {
    peer->mute = true;
    if (peer->going != NULL && peer->going != &peer->piece) {
        if (peer->going->message != NULL) done(wire, peer->going->message);
        free(peer->going);
    }
    peer->going = NULL;
    for (Parcel *parcel; (parcel = peer->first) != NULL;) {
        peer->first = parcel->next;
        if (parcel->message != NULL) done(wire, parcel->message);
        free(parcel);
    }
    while (peer->wanted.first != NULL) done(wire, take_after(&peer->wanted, NULL, peer->wanted.first));
}

static ssize_t send_some(const Peer *peer) {
    const Parcel *parcel = peer->going;
    size_t head = sizeof parcel->frame, body = body_bytes(&parcel->frame), gone = peer->gone;
    struct iovec parts[2] = {
        {(char *)(uintptr_t)&parcel->frame + (gone < head ? gone : head), gone < head ? head - gone : 0}, {NULL, 0}};
    size_t body_gone = gone < head ? 0 : gone - head;
    if (body > body_gone) parts[1] = (struct iovec){(char *)(uintptr_t)parcel->body + body_gone, body - body_gone};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    return sendmsg(peer->link.socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void wire_write(Wire *wire, Peer *peer) {
    enum { PARCELS_AT_ONCE = 8 }; // then the other connections have their turn
    for (int parcels = 0; parcels < PARCELS_AT_ONCE && !peer->mute && !peer->blocked;) {
        if (peer->going == NULL) {
            pthread_mutex_lock(&wire->lock);
            peer->going = next_parcel(peer);
            pthread_mutex_unlock(&wire->lock);
            peer->gone = 0;
            if (peer->going == NULL) return;
        }
        ssize_t n = send_some(peer);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS)) {
            peer->blocked = true;
            return;
        }
        pthread_mutex_lock(&wire->lock);
        if (n < 0) {
            fall_mute(wire, peer);
        } else if ((peer->gone += (size_t)n) == sizeof(Frame) + body_bytes(&peer->going->frame)) {
            parcel_sent(wire, peer, peer->going);
            peer->going = NULL;
            parcels++;
        }
        pthread_mutex_unlock(&wire->lock);
    }
}

// ---- receiving ----------------------------------------------------------------------------------------------------

static void copy_text(char *to, size_t size, const char *text) {
    size_t length = text != NULL ? strnlen(text, size - 1) : 0;
    if (length > 0) memcpy(to, text, length);
    to[length] = '\0';
}

static void tell_standing(Wire *wire, int rank) {
    char text[sizeof wire->peer->operation + sizeof wire->peer->doing];
    copy_text(text, sizeof wire->peer->operation, wire->operation);
    size_t length = strlen(text) + 1;
    copy_text(text + length, sizeof text - length, wire->doing);
    length += strlen(text + length) + 1;
    Frame frame = {.kind = FRAME_STANDING, .value = wire->awaits, .bytes = length, .ticket = (uint64_t)wire->beats};
    wire_tell(wire, rank, &frame, text);
}

static void hear_standing(Wire *wire, Peer *peer) {
    size_t length = strlen(peer->text); // the postman has put a NUL after what came
    bool more = length + 1 < peer->frame.bytes;
    copy_text(peer->operation, sizeof peer->operation, peer->text);
    copy_text(peer->doing, sizeof peer->doing, more ? peer->text + length + 1 : "");
    peer->awaits =
        peer->frame.value >= COMM_FINISHED && peer->frame.value < wire->size ? peer->frame.value : COMM_WORKING;
    peer->beats = (int64_t)peer->frame.ticket;
    peer->answered = true;
    pthread_cond_signal(&wire->changed);
}

// A short message: into the place that waits for it, or else into one made for it.
static bool receive_message(Wire *wire, Peer *peer, const Frame *frame) {
    if (frame->bytes > EAGER_BYTES) return false;
    Message *receive = take_matching(&peer->posted, frame->group, frame->stream);
    if (receive != NULL) receive->sent = frame->bytes;
    if (receive == NULL || receive->bytes != frame->bytes) {
        if (receive != NULL) done(wire, receive); // the receiver sees that the sizes differ
        receive = get(wire, sizeof *receive);
        *receive = (Message){.group = frame->group, .stream = frame->stream, .bytes = frame->bytes, .early = true};
        receive->data = get(wire, receive->bytes);
        append(&peer->arrived, receive);
    }
    receive->under_way = true;
    peer->incoming = receive;
    peer->body = receive->data;
    return true;
}

static void receive_announcement(Wire *wire, Peer *peer, const Frame *frame) {
    Message *receive = take_matching(&peer->posted, frame->group, frame->stream);
    if (receive == NULL) {
        Message *come = get(wire, sizeof *come);
        *come =
            (Message){.group = frame->group, .stream = frame->stream, .bytes = frame->bytes, .ticket = frame->ticket};
        append(&peer->arrived, come);
        return;
    }
    receive->sent = frame->bytes;
    if (receive->bytes == frame->bytes) ask_for(wire, peer, receive, frame->ticket);
    else done(wire, receive);
}

static bool receive_piece(Peer *peer, const Frame *frame) {
    Message *message = peer->promised.first;
    while (message != NULL && message->ticket != frame->ticket) message = message->next;
    if (message == NULL || frame->bytes == 0 || frame->bytes > message->bytes - message->moved) return false;
    peer->incoming = message;
    peer->body = message->data + message->moved;
    return true;
}

// A head has come. False: it makes no sense.
static bool open_frame(Wire *wire, Peer *peer) {
    const Frame *frame = &peer->frame;
    peer->body_have = 0;
    peer->incoming = NULL;
    switch (frame->kind) {
    case FRAME_MESSAGE: return receive_message(wire, peer, frame);
    case FRAME_PIECE: return receive_piece(peer, frame);
    case FRAME_ANNOUNCE: receive_announcement(wire, peer, frame); return true;
    case FRAME_QUERY: tell_standing(wire, (int)(peer - wire->peer)); return true;
    case FRAME_READY: {
        Message *message = take_ticket(&peer->announced, frame->ticket);
        if (message == NULL) return false;
        message->under_way = true;
        append(&peer->wanted, message);
        return true;
    }
    case FRAME_FINISHED:
        peer->finished = true;
        pthread_cond_signal(&wire->changed);
        return true;
    case FRAME_STANDING:
    case FRAME_REPORT:
    case FRAME_VERDICT:
        memset(peer->text, 0, sizeof peer->text);
        peer->body = peer->text;
        return frame->bytes < sizeof peer->text;
    default: return false;
    }
}

static void message_moved(Wire *wire, Peer *peer, Message *message, size_t bytes) {
    message->moved += bytes;
    if (message->moved < message->bytes) return;
    if (message->ticket != 0) take_ticket(&peer->promised, message->ticket);
    Message *claimant = message->claimant;
    if (claimant == NULL) {
        done(wire, message);
        return;
    }
    if (message->bytes > 0) memcpy(claimant->data, message->data, message->bytes);
    free(message->data);
    free(message);
    done(wire, claimant);
}

// A frame has come, with its body.
static void close_frame(Wire *wire, Peer *peer) {
    if (peer->incoming != NULL) message_moved(wire, peer, peer->incoming, (size_t)peer->frame.bytes);
    else if (peer->frame.kind == FRAME_STANDING) hear_standing(wire, peer);
    else if (peer->frame.kind == FRAME_REPORT || peer->frame.kind == FRAME_VERDICT) wire->events->heard(wire, peer);
    peer->incoming = NULL;
    peer->frame_have = 0;
}

static void hang_up(Wire *wire, Peer *peer, const char *why) {
    close(peer->link.socket);
    peer->link.socket = -1;
    fall_mute(wire, peer);
    if (!peer->finished) wire->events->lost(wire, peer, why);
}

static bool read_some(Wire *wire, Peer *peer) { // false: nothing more for the time being
    bool in_head = peer->frame_have < sizeof peer->frame;
    char *to = in_head ? (char *)&peer->frame + peer->frame_have : peer->body + peer->body_have;
    size_t want = in_head ? sizeof peer->frame - peer->frame_have : body_bytes(&peer->frame) - peer->body_have;
    ssize_t n = recv(peer->link.socket, to, want, MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) return errno == EINTR;
    const char *why = n < 0 ? strerror(errno) : "closed at its end";
    pthread_mutex_lock(&wire->lock);
    if (n <= 0) {
        hang_up(wire, peer, why);
    } else {
        bool sense = true;
        if (!in_head) peer->body_have += (size_t)n;
        else if ((peer->frame_have += (size_t)n) == sizeof peer->frame) sense = open_frame(wire, peer);
        if (!sense) hang_up(wire, peer, "what came makes no sense: is it the same program?");
        else if (peer->frame_have == sizeof peer->frame && peer->body_have == body_bytes(&peer->frame))
            close_frame(wire, peer);
    }
    pthread_mutex_unlock(&wire->lock);
    return peer->link.socket >= 0;
}

// ---- the postman --------------------------------------------------------------------------------------------------

static void *postman(void *pointer) {
    enum { READS_AT_ONCE = 16, LOOK_AGAIN = 50 /* ms */ };
    Wire *wire = pointer;
    struct pollfd *polled = get(wire, ((size_t)wire->size + 1) * sizeof *polled);
    for (;;) {
        bool output = false;
        pthread_mutex_lock(&wire->lock);
        wire->woken = false;
        bool closing = wire->closing, failing = wire->failure != SOUND;
        for (int rank = 0; rank < wire->size; rank++) { // poll passes over sockets of -1
            Peer *peer = &wire->peer[rank];
            polled[rank] = (struct pollfd){peer->link.socket, (short)(POLLIN | (peer->blocked ? POLLOUT : 0)), 0};
            output = output || (peer->link.socket >= 0 && !peer->blocked && has_output(peer));
        }
        pthread_mutex_unlock(&wire->lock);
        if (closing) break;
        if (failing) wire->events->failing(wire);
        polled[wire->size] = (struct pollfd){wire->alarm_out, POLLIN, 0};
        poll(polled, (nfds_t)wire->size + 1, output ? 0 : failing ? LOOK_AGAIN : -1);
        char rung[64];
        if (polled[wire->size].revents != 0)
            while (read(wire->alarm_out, rung, sizeof rung) > 0) continue;
        for (int rank = 0; rank < wire->size; rank++) {
            Peer *peer = &wire->peer[rank];
            if (peer->link.socket < 0) continue;
            if (polled[rank].revents & POLLOUT) peer->blocked = false;
            bool more = (polled[rank].revents & (POLLIN | POLLHUP | POLLERR)) != 0;
            for (int i = 0; more && i < READS_AT_ONCE; i++) more = read_some(wire, peer);
            if (peer->link.socket >= 0) wire_write(wire, peer);
        }
    }
    free(polled);
    return NULL;
}

// ---- start and end ------------------------------------------------------------------------------------------------

static bool open_alarm(Wire *wire) {
    int ends[2];
    if (pipe(ends) != 0) return false;
    for (int i = 0; i < 2; i++) {
        fcntl(ends[i], F_SETFL, O_NONBLOCK);
        fcntl(ends[i], F_SETFD, FD_CLOEXEC);
    }
    wire->alarm_out = ends[0];
    wire->alarm_in = ends[1];
    return true;
}

static void free_wire(Wire *wire) {
    if (wire == NULL) return;
    for (int rank = 0; wire->peer != NULL && rank < wire->size; rank++) {
        Peer *peer = &wire->peer[rank];
        if (peer->link.socket >= 0) close(peer->link.socket);
        fall_mute(wire, peer);
        free_messages(&peer->announced);
        free_messages(&peer->posted);
        free_messages(&peer->arrived);
        free_messages(&peer->promised);
    }
    if (wire->alarm_in >= 0) close(wire->alarm_in);
    if (wire->alarm_out >= 0) close(wire->alarm_out);
    pthread_cond_destroy(&wire->changed);
    pthread_mutex_destroy(&wire->lock);
    free(wire->peer);
    free(wire);
}

static bool start_postman(Wire *wire) { // signals are for the rank's own thread
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = pthread_create(&wire->postman, NULL, postman, wire) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

Wire *wire_start(int rank, int size, double timeout, const Link *links, const WireEvents *events, Error *err) {
    Wire *wire = calloc(1, sizeof *wire);
    if (wire == NULL || (wire->peer = calloc((size_t)size, sizeof *wire->peer)) == NULL) {
        free(wire);
        for (int i = 0; i < size; i++)
            if (links[i].socket >= 0) close(links[i].socket);
        error_set(err, "out of memory for %d ranks", size);
        return NULL;
    }
    wire->rank = rank;
    wire->size = size;
    wire->events = events;
    wire->timeout = timeout;
    wire->awaits = COMM_WORKING;
    wire->operation = "start";
    wire->alarm_in = wire->alarm_out = -1;
    for (int i = 0; i < size; i++) {
        Peer *peer = &wire->peer[i];
        peer->link = links[i];
        peer->mute = i == rank;
        peer->awaits = COMM_WORKING;
        snprintf(peer->place, sizeof peer->place, "process %lu on %s", (unsigned long)links[i].process, links[i].host);
    }
    pthread_condattr_t attributes; // a clock that does not jump when somebody sets the time of day
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&wire->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&wire->lock, NULL);
    if (open_alarm(wire) && start_postman(wire)) return wire;
    error_set(err, "cannot start a thread for messages between ranks: %s", strerror(errno));
    free_wire(wire);
    return NULL;
}

static bool all_said(const Wire *wire) { // everyone has finished, and has been told that I have
    for (int rank = 0; rank < wire->size; rank++) {
        const Peer *peer = &wire->peer[rank];
        if (rank != wire->rank && (!peer->finished || has_output(peer))) return false;
    }
    return wire->failure == SOUND;
}

void wire_finish(Wire *wire) {
    Frame finished = {.kind = FRAME_FINISHED};
    pthread_mutex_lock(&wire->lock);
    wire->awaits = COMM_FINISHED;
    for (int rank = 0; rank < wire->size; rank++)
        if (rank != wire->rank) wire_tell(wire, rank, &finished, NULL);
    while (!all_said(wire)) {
        struct timespec soon;
        clock_gettime(CLOCK_MONOTONIC, &soon);
        soon.tv_nsec += 20000000; // nobody signals that the last frame has gone
        if (soon.tv_nsec >= 1000000000) soon.tv_sec++, soon.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&wire->changed, &wire->lock, &soon);
    }
    wire->closing = true;
    wire_wake(wire);
    pthread_mutex_unlock(&wire->lock);
    pthread_join(wire->postman, NULL);
    free_wire(wire);
}
