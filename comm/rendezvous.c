// The meeting of ranks that are processes.
//
//   rank 0     listens where MASTER_ADDR and MASTER_PORT say
//   rank r     connects there, and opens a port of its own
//   rank r     greets: a magic number, its rank, the number of ranks, its own address and port
//   rank 0     answers all, when all are there, with the table of addresses and the job's number
//   rank r     connects to ranks 1 to r-1 and greets them; takes calls of ranks r+1 to P-1
//   rank r     tells rank 0 that it is connected, and starts when rank 0 says that all are
//
// A call that does not begin with a proper greeting is dropped: anybody may knock at an open port. All sockets are
// non-blocking, and all waits have one time limit.
#include "comm/rendezvous.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm/engine.h"
#include "comm/tcp.h"

enum { MAGIC = 0x54475043, VERSION = 1, REASON_BYTES = 600 };

typedef struct Greeting {
    uint32_t magic, version, size, rank;
    uint64_t job; // 0 to rank 0, which makes it up
    uint32_t process, reserved;
    Address address; // where it listens
    char host[HOST_BYTES];
} Greeting;

typedef enum Word { WELCOME = 1, REFUSED, ENDED, CONNECTED, START } Word;

typedef struct Answer { // from rank 0. WELCOME: the table follows. REFUSED: because of you. ENDED: rank 0 says why
    uint32_t magic, word;
    uint64_t job;
    int32_t exit_code;
    uint32_t reserved;
    char host[HOST_BYTES]; // of rank 0
    char reason[REASON_BYTES];
} Answer;

typedef struct Entry {
    Address address;
    uint32_t process;
    char host[HOST_BYTES];
} Entry;

typedef struct Meeting {
    const MeetingPlace *place;
    Link *links;
    Entry *entries; // (size)
    int listener;
    uint64_t job;
    TcpLimit limit;
} Meeting;

// ---- calls that come in -------------------------------------------------------------------------------------------

typedef struct Call { // from one who has not said yet who it is
    int socket;
    size_t have;
    Greeting greeting;
} Call;

static Answer answer_of(const Meeting *m, Word word, int exit_code) {
    Answer answer = {.magic = MAGIC, .word = word, .job = m->job, .exit_code = exit_code};
    memcpy(answer.host, m->links[0].host, HOST_BYTES);
    return answer;
}

static void refuse(const Meeting *m, Call *call, const char *reason) {
    Answer answer = answer_of(m, REFUSED, EXIT_USAGE);
    snprintf(answer.reason, sizeof answer.reason, "%s", reason);
    tcp_write_all(call->socket, &answer, sizeof answer, NULL);
    close(call->socket);
    call->socket = -1;
}

static void drop(Call *call) {
    close(call->socket);
    call->socket = -1;
}

// A greeting is complete. Takes the call in where it is right.
static void admit(Meeting *m, Call *call, int lowest) {
    const Greeting *g = &call->greeting;
    bool master = m->place->rank == 0;
    int size = m->place->size;
    char reason[200];
    if (g->version != VERSION) {
        if (!master) drop(call);
        else refuse(m, call, "rank 0 runs another version of this program: use the same one everywhere");
    } else if (g->size != (uint32_t)size) {
        if (!master) {
            drop(call);
            return;
        }
        snprintf(reason, sizeof reason, "WORLD_SIZE is %u for rank %u, but %d for rank 0: give the same to all",
                 g->size, g->rank, size);
        Error notice;
        error_usage(&notice, "turned away a process on %.*s: %s", HOST_BYTES - 1, g->host, reason);
        comm_print_failure(&notice);
        refuse(m, call, reason);
    } else if (g->job != m->job && !(master && g->job == 0)) {
        drop(call);
    } else if (g->rank < (uint32_t)lowest || g->rank >= (uint32_t)size) {
        drop(call);
    } else if (m->links[g->rank].socket >= 0) {
        snprintf(reason, sizeof reason, "there is a rank %u already: give each process a RANK of its own", g->rank);
        if (master) refuse(m, call, reason);
        else drop(call);
    } else {
        Link *link = &m->links[g->rank];
        link->socket = call->socket;
        if (master) {
            m->entries[g->rank] = (Entry){.address = g->address, .process = g->process};
            memcpy(m->entries[g->rank].host, g->host, HOST_BYTES - 1);
        }
        link->process = g->process;
        memcpy(link->host, g->host, HOST_BYTES - 1);
        call->socket = -1; // it is the link's now
    }
}

static void listen_to(Meeting *m, Call *call, int lowest) {
    ssize_t n = tcp_take(call->socket, (char *)&call->greeting + call->have, sizeof call->greeting - call->have);
    if (n > 0) call->have += (size_t)n;
    bool strange = call->have >= sizeof call->greeting.magic && call->greeting.magic != MAGIC;
    if (n < 0 || strange) drop(call);
    else if (call->have == sizeof call->greeting) admit(m, call, lowest);
}

enum { CALLS = 32 }; // of which one does not know yet who calls; the oldest has to go when there are more

static void answer_calls(Meeting *m, Call *calls) {
    for (int made; (made = accept(m->listener, NULL, NULL)) >= 0;) {
        tcp_prepare(made);
        int free_call = 0;
        while (free_call < CALLS && calls[free_call].socket >= 0) free_call++;
        if (free_call == CALLS) {
            drop(&calls[0]);
            memmove(calls, calls + 1, (CALLS - 1) * sizeof *calls);
            free_call = CALLS - 1;
        }
        calls[free_call] = (Call){.socket = made};
    }
}

static const char *place_of(const Meeting *m, int rank, char text[120]) {
    snprintf(text, 120, "process %lu on %s", (unsigned long)m->links[rank].process, m->links[rank].host);
    return text;
}

static bool lost_rank(const Meeting *m, int rank, Error *err) {
    char where[120];
    return error_set(err, "rank %d (%s) ended while the ranks were connecting; see what it said", rank,
                     place_of(m, rank, where));
}

// Rank 0 speaks before it is time to: it refuses, or ends the meeting, or has gone.
static bool hear_end(const Meeting *m, const Answer *answer, Error *err) {
    char reason[REASON_BYTES];
    snprintf(reason, sizeof reason, "%.*s", REASON_BYTES - 1, answer->reason);
    error_set(err, "%s", reason);
    err->exit_code = answer->exit_code > 0 ? answer->exit_code : EXIT_RUNTIME;
    if (answer->word == ENDED && strncmp(answer->host, m->links[m->place->rank].host, HOST_BYTES) == 0) {
        fflush(stdout);
        _exit(err->exit_code);
    }
    return false;
}

static bool hear_answer(Meeting *m, Answer *answer, Word expected, Error *err) {
    const MeetingPlace *p = m->place;
    if (!tcp_read_all(m->links[0].socket, answer, sizeof *answer, &m->limit)) {
        if (errno == ETIMEDOUT)
            return error_set(err,
                             "rank %d waited %.3g s for rank 0 at %s port %d, which did not answer; allow more time "
                             "with --timeout",
                             p->rank, m->limit.seconds, p->address, p->port);
        return error_set(err,
                         "rank 0 at %s port %d ended the connection with rank %d: it has failed, or another program "
                         "listens there",
                         p->address, p->port, p->rank);
    }
    if (answer->magic != MAGIC)
        return error_usage(err, "another program answers at %s port %d, not rank 0: give all ranks another MASTER_PORT",
                           p->address, p->port);
    if (answer->word == REFUSED || answer->word == ENDED) return hear_end(m, answer, err);
    if (answer->word != (uint32_t)expected) return error_set(err, "rank 0 at %s is another program", p->address);
    return true;
}

// Takes calls until every rank from `lowest` on is connected. Of those connected before, the ones that must be silent
// meanwhile (to rank 0: all; to others: rank 0) are watched.
static bool gather(Meeting *m, int lowest, Error *err) {
    int size = m->place->size, watched = m->place->rank == 0 ? size : 1;
    Call calls[CALLS];
    struct pollfd *polled = calloc((size_t)(1 + CALLS + watched), sizeof *polled);
    if (polled == NULL) return error_set(err, "out of memory for %d ranks", size);
    for (int i = 0; i < CALLS; i++) calls[i].socket = -1;
    bool ok = true;
    while (ok) {
        int missing = lowest, here = 1;
        while (missing < size && m->links[missing].socket >= 0) missing++;
        if (missing == size) break;
        for (int rank = 1; rank < size; rank++) here += m->links[rank].socket >= 0;
        if (tcp_left(&m->limit) == 0) {
            ok = m->place->rank != 0
                     ? error_set(err,
                                 "rank %d has not connected to rank %d within %.3g s: is there a firewall between "
                                 "their machines?",
                                 missing, m->place->rank, m->limit.seconds)
                     : error_set(err,
                                 "rank %d has not come to %s port %d within %.3g s (%d of %d ranks are there): start "
                                 "it, or allow more time with --timeout",
                                 missing, m->place->address, m->place->port, m->limit.seconds, here, size);
            break;
        }
        polled[0] = (struct pollfd){m->listener, POLLIN, 0};
        for (int i = 0; i < CALLS; i++) polled[1 + i] = (struct pollfd){calls[i].socket, POLLIN, 0};
        for (int i = 0; i < watched; i++) polled[1 + CALLS + i] = (struct pollfd){m->links[i].socket, POLLIN, 0};
        if (poll(polled, (nfds_t)(1 + CALLS + watched), tcp_milliseconds_to_poll(&m->limit)) <= 0) continue;
        for (int i = 0; i < CALLS; i++)
            if (polled[1 + i].revents != 0 && calls[i].socket == polled[1 + i].fd) listen_to(m, &calls[i], lowest);
        if (polled[0].revents != 0) answer_calls(m, calls);
        for (int i = 0; ok && i < watched; i++) {
            if (polled[1 + CALLS + i].revents == 0) continue;
            Answer answer;
            ok = m->place->rank == 0 ? lost_rank(m, i, err) : hear_answer(m, &answer, ENDED, err);
        }
    }
    for (int i = 0; i < CALLS; i++)
        if (calls[i].socket >= 0) close(calls[i].socket);
    free(polled);
    return ok;
}

// ---- rank 0 -------------------------------------------------------------------------------------------------------

// At the very address that was given; at all of this machine's where a name was given (which here may mean another
// address than elsewhere), or one that this machine does not know as its own.
static int listen_as_master(const MeetingPlace *p, Error *err) {
    struct addrinfo *found = NULL;
    int listener = -1;
    errno = EADDRNOTAVAIL;
    if (tcp_is_literal(p->address)) {
        int code = tcp_look_up(p->address, p->port, &found);
        if (code != 0) {
            error_usage(err, "MASTER_ADDR %s: %s", p->address, gai_strerror(code));
            return -1;
        }
        for (struct addrinfo *a = found; a != NULL && listener < 0; a = a->ai_next) {
            listener = tcp_listen(a->ai_addr, a->ai_addrlen);
            if (listener < 0 && errno == EADDRINUSE) break; // or the others would find the one who has it
        }
        int error = errno;
        freeaddrinfo(found);
        errno = error;
    }
    const int families[] = {AF_INET6, AF_INET};
    for (int i = 0; i < 2 && listener < 0 && errno != EADDRINUSE; i++) {
        SocketAddress all = tcp_wildcard(families[i]);
        tcp_set_port(&all, p->port);
        listener = tcp_listen(&all.any, tcp_address_length(&all));
    }
    if (listener >= 0) return listener;
    if (errno == EADDRINUSE)
        error_set(
            err, "port %d of %s is in use by another program, or by another rank 0: give all ranks another MASTER_PORT",
            p->port, p->address);
    else error_set(err, "cannot listen at %s port %d: %s", p->address, p->port, strerror(errno));
    return -1;
}

// Until every rank has said that it is connected with all others.
static bool await_connected(Meeting *m, Error *err) {
    int size = m->place->size, left = size - 1;
    struct pollfd *polled = calloc((size_t)size, sizeof *polled);
    size_t *have = calloc((size_t)size, sizeof *have);
    uint32_t *word = calloc((size_t)size, sizeof *word);
    bool ok = polled != NULL && have != NULL && word != NULL;
    if (!ok) error_set(err, "out of memory for %d ranks", size);
    while (ok && left > 0) {
        int silent = 0;
        for (int rank = 0; rank < size; rank++) {
            bool said = rank == 0 || have[rank] == sizeof *word;
            if (!said) silent = rank;
            polled[rank] = (struct pollfd){m->links[rank].socket, POLLIN, 0}; // those who have said so may still end
        }
        if (tcp_left(&m->limit) == 0) {
            char where[120];
            ok = error_set(err,
                           "rank %d (%s) could not connect to all others within %.3g s: is there a firewall between "
                           "their machines?",
                           silent, place_of(m, silent, where), m->limit.seconds);
            break;
        }
        if (poll(polled, (nfds_t)size, tcp_milliseconds_to_poll(&m->limit)) <= 0) continue;
        for (int rank = 1; ok && rank < size; rank++) {
            if (polled[rank].revents == 0) continue;
            char *to = (char *)&word[rank] + have[rank], more;
            size_t want = sizeof *word - have[rank];
            ssize_t n = want > 0 ? tcp_take(polled[rank].fd, to, want) : tcp_take(polled[rank].fd, &more, 1);
            if (n < 0 || (n > 0 && want == 0)) ok = lost_rank(m, rank, err);
            else if ((have[rank] += (size_t)n) == sizeof *word && n > 0) {
                left--;
                if (word[rank] != CONNECTED) ok = lost_rank(m, rank, err);
            }
        }
    }
    free(word);
    free(have);
    free(polled);
    return ok;
}

static bool tell_all(Meeting *m, Word word, Error *err) {
    int size = m->place->size;
    Answer answer = answer_of(m, word, 0);
    for (int rank = 1; rank < size; rank++) {
        bool told = tcp_write_all(m->links[rank].socket, &answer, sizeof answer, &m->limit);
        if (told && word == WELCOME)
            told = tcp_write_all(m->links[rank].socket, m->entries, (size_t)size * sizeof *m->entries, &m->limit);
        if (!told && word != START) return lost_rank(m, rank, err); // who is lost after the start is missed by all
    }
    return true;
}

static void tell_end(Meeting *m, const Error *err) {
    Answer answer = answer_of(m, ENDED, err->exit_code);
    snprintf(answer.reason, sizeof answer.reason, "%.*s", REASON_BYTES - 1, err->message);
    for (int rank = 1; rank < m->place->size; rank++)
        if (m->links[rank].socket >= 0) tcp_write_all(m->links[rank].socket, &answer, sizeof answer, NULL);
}

static uint64_t job_number(void) { // tells jobs apart, no more
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t number = (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec * 65537u + (uint64_t)getpid();
    return number != 0 ? number : 1;
}

static bool meet_as_master(Meeting *m, Error *err) {
    m->job = job_number();
    m->listener = listen_as_master(m->place, err);
    if (m->listener < 0) return false;
    m->entries[0].process = m->links[0].process;
    memcpy(m->entries[0].host, m->links[0].host, HOST_BYTES);
    bool ok = gather(m, 1, err) && tell_all(m, WELCOME, err) && await_connected(m, err) && tell_all(m, START, err);
    if (!ok) tell_end(m, err);
    return ok;
}

// ---- the others ---------------------------------------------------------------------------------------------------

static const double ONE_ATTEMPT = 10, FOR_A_NAME = 60, LONGEST_PAUSE = 0.5; // seconds

static void pause_for(double seconds) {
    struct timespec pause = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&pause, NULL);
}

// Rank 0 may come late, and its machine's name later still.
static int connect_to_master(Meeting *m, Error *err) {
    const MeetingPlace *p = m->place;
    char why[200] = "time is up";
    for (double pause = 0.01;; pause = 1.5 * pause < LONGEST_PAUSE ? 1.5 * pause : LONGEST_PAUSE) {
        struct addrinfo *found = NULL;
        int code = tcp_look_up(p->address, p->port, &found), made = -1;
        if (code != 0) snprintf(why, sizeof why, "%s", gai_strerror(code));
        for (struct addrinfo *a = found; code == 0 && a != NULL && made < 0; a = a->ai_next) {
            TcpLimit attempt = m->limit;
            double until = attempt.seconds - tcp_left(&attempt) + ONE_ATTEMPT;
            if (until < attempt.seconds) attempt.seconds = until;
            made = tcp_connect(a->ai_addr, a->ai_addrlen, &attempt);
            m->limit.patience = attempt.patience;
            if (made < 0) snprintf(why, sizeof why, "%s", strerror(errno));
        }
        if (code == 0) freeaddrinfo(found);
        if (made >= 0) return made;
        double left = tcp_left(&m->limit);
        if (code != 0 && m->limit.seconds - left > FOR_A_NAME) {
            error_usage(err, "MASTER_ADDR %s: %s", p->address, why);
            return -1;
        }
        if (left <= pause) {
            error_set(err,
                      "rank %d found no rank 0 at %s port %d within %.3g s (%s): start rank 0, see MASTER_ADDR and "
                      "MASTER_PORT, or allow more time with --timeout",
                      p->rank, p->address, p->port, m->limit.seconds, why);
            return -1;
        }
        pause_for(pause);
    }
}

// My own port, at the address by which I reach rank 0.
static bool open_port(Meeting *m, Address *address, Error *err) {
    SocketAddress mine = {.room = {0}}, bound = {.room = {0}};
    socklen_t length = sizeof mine;
    bool ok = getsockname(m->links[0].socket, &mine.any, &length) == 0;
    if (ok) {
        bound = tcp_is_literal(m->place->address) ? mine : tcp_wildcard(mine.any.sa_family);
        tcp_set_port(&bound, 0);
        m->listener = tcp_listen(&bound.any, tcp_address_length(&bound));
        length = sizeof bound;
        ok = m->listener >= 0 && getsockname(m->listener, &bound.any, &length) == 0;
    }
    if (!ok) return error_set(err, "rank %d cannot open a port: %s", m->place->rank, strerror(errno));
    *address = tcp_pack(&mine);
    address->port = tcp_pack(&bound).port;
    return true;
}

static bool greet(Meeting *m, int socket, const Address *address) {
    Greeting g = {
        .magic = MAGIC, .version = VERSION, .size = (uint32_t)m->place->size, .rank = (uint32_t)m->place->rank};
    g.job = m->job;
    g.process = m->links[m->place->rank].process;
    if (address != NULL) g.address = *address;
    memcpy(g.host, m->links[m->place->rank].host, HOST_BYTES);
    return tcp_write_all(socket, &g, sizeof g, &m->limit);
}

// Where another rank is, seen from here. One that knows itself by a loopback address is on rank 0's machine; from
// another machine it is found where rank 0 is.
static SocketAddress reach(const Meeting *m, const Address *mine, int rank) {
    const Address *its = &m->entries[rank].address;
    SocketAddress address = tcp_unpack(its), master = {.room = {0}};
    socklen_t length = sizeof master;
    if (!tcp_is_loopback(its) || tcp_is_loopback(mine)) return address;
    if (getpeername(m->links[0].socket, &master.any, &length) != 0) return address;
    tcp_set_port(&master, (int)its->port);
    return master;
}

static bool connect_to_lower(Meeting *m, const Address *mine, Error *err) {
    for (int rank = 1; rank < m->place->rank; rank++) {
        SocketAddress address = reach(m, mine, rank);
        Link *link = &m->links[rank];
        link->socket = tcp_connect(&address.any, tcp_address_length(&address), &m->limit);
        if (link->socket < 0 || !greet(m, link->socket, NULL)) {
            char where[120], text[INET6_ADDRSTRLEN] = "?";
            const void *bytes = address.any.sa_family == AF_INET6 ? (const void *)&address.v6.sin6_addr
                                                                  : (const void *)&address.v4.sin_addr;
            int error = errno;
            inet_ntop(address.any.sa_family, bytes, text, sizeof text);
            return error_set(err,
                             "rank %d cannot connect to rank %d (%s) at %s port %u: %s; is there a firewall between "
                             "their machines?",
                             m->place->rank, rank, place_of(m, rank, where), text, m->entries[rank].address.port,
                             strerror(error));
        }
    }
    return true;
}

static bool meet_as_other(Meeting *m, Error *err) {
    int size = m->place->size, me = m->place->rank;
    Address mine;
    Answer answer;
    m->links[0].socket = connect_to_master(m, err);
    if (m->links[0].socket < 0 || !open_port(m, &mine, err)) return false;
    greet(m, m->links[0].socket, &mine); // if this fails, so does what follows
    if (!hear_answer(m, &answer, WELCOME, err)) return false;
    m->job = answer.job;
    if (!tcp_read_all(m->links[0].socket, m->entries, (size_t)size * sizeof *m->entries, &m->limit))
        return error_set(err, "rank 0 ended while the ranks were connecting; see what it said");
    for (int rank = 0; rank < size; rank++) {
        if (rank == me) continue;
        m->links[rank].process = m->entries[rank].process;
        memcpy(m->links[rank].host, m->entries[rank].host, HOST_BYTES - 1);
    }
    uint32_t connected = CONNECTED;
    return connect_to_lower(m, &mine, err) && gather(m, me + 1, err) &&
           (tcp_write_all(m->links[0].socket, &connected, sizeof connected, &m->limit),
            hear_answer(m, &answer, START, err));
}

// ---- all ----------------------------------------------------------------------------------------------------------

bool rendezvous(const MeetingPlace *place, double timeout, Link *links, Error *err) {
    Meeting m = {.place = place, .links = links, .listener = -1, .limit = tcp_limit(timeout)};

    for (int rank = 0; rank < place->size; rank++) links[rank] = (Link){.socket = -1};
    links[place->rank].process = (uint32_t)getpid();
    if (gethostname(links[place->rank].host, HOST_BYTES - 1) != 0) links[place->rank].host[0] = '?';
    if (place->size == 1) return true;
    m.entries = calloc((size_t)place->size, sizeof *m.entries);
    if (m.entries == NULL) return error_set(err, "out of memory for %d ranks", place->size);
    bool ok = place->rank == 0 ? meet_as_master(&m, err) : meet_as_other(&m, err);
    if (m.listener >= 0) close(m.listener);
    free(m.entries);
    for (int rank = 0; !ok && rank < place->size; rank++)
        if (links[rank].socket >= 0) close(links[rank].socket);
    return ok;
}
