// Where ranks stand that are processes under MPI: in memory that those of a machine share, by messages between
// machines.
#include "comm/status.h"

#ifdef HAVE_MPI

#include <stdlib.h>
#include <string.h>

static void write_text(char *to, size_t size, const char *text) {
    size_t length = text != NULL ? strnlen(text, size - 1) : 0;
    if (length > 0) memcpy(to, text, length);
    to[length] = '\0';
}

static bool is_apart(const StatusTable *table, int rank) {
    return rank != table->rank && table->peer[rank].status == &table->peer[rank].heard;
}

static int send_status(StatusTable *table, int rank, bool last) {
    PeerStatus *peer = &table->peer[rank];
    memcpy(&peer->message, table->mine, sizeof peer->message);
    atomic_store(&peer->message.last, last);
    return MPI_Isend(&peer->message, (int)sizeof peer->message, MPI_BYTE, rank, table->tag, MPI_COMM_WORLD,
                     &peer->sending);
}

// Where the last message has not gone yet (that rank has been stopped, say), it gets no other.
static int send_statuses(StatusTable *table) {
    int code = MPI_SUCCESS;
    for (int rank = 0; code == MPI_SUCCESS && rank < table->size; rank++) {
        int gone = 0;
        if (!is_apart(table, rank)) continue;
        code = MPI_Test(&table->peer[rank].sending, &gone, MPI_STATUS_IGNORE);
        if (code == MPI_SUCCESS && gone) code = send_status(table, rank, false);
    }
    table->told_at = clock_seconds();
    table->told_waiting = atomic_load(&table->mine->waits_for) >= 0;
    return code;
}

static int receive_statuses(StatusTable *table) {
    for (;;) {
        int there = 0;
        MPI_Status from;
        RankStatus heard;
        int code = MPI_Iprobe(MPI_ANY_SOURCE, table->tag, MPI_COMM_WORLD, &there, &from);
        if (code != MPI_SUCCESS || !there) return code;
        code = MPI_Recv(&heard, (int)sizeof heard, MPI_BYTE, from.MPI_SOURCE, table->tag, MPI_COMM_WORLD,
                        MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS) return code;
        memcpy(&table->peer[from.MPI_SOURCE].heard, &heard, sizeof heard);
    }
}

// A few times per time-out, and at once when others believe that I wait and I do not any more.
static int exchange_statuses(StatusTable *table) {
    if (table->others_apart == 0) return MPI_SUCCESS;
    bool released = table->told_waiting && atomic_load(&table->mine->waits_for) < 0;
    if (!released && clock_seconds() - table->told_at < comm_look_interval(table->timeout)) return MPI_SUCCESS;
    int code = send_statuses(table);
    return code == MPI_SUCCESS ? receive_statuses(table) : code;
}

void status_say(StatusTable *table, const char *doing) {
    write_text(table->mine->doing, sizeof table->mine->doing, doing);
}

int status_wait(StatusTable *table, int awaited, const char *operation) {
    RankStatus *mine = table->mine;
    write_text(mine->operation, sizeof mine->operation, operation);
    atomic_store(&mine->waits_for, awaited);
    return status_look(table);
}

int status_look(StatusTable *table) {
    atomic_fetch_add(&table->mine->looks, 1);
    return exchange_statuses(table);
}

int status_beat(StatusTable *table) {
    atomic_store(&table->mine->waits_for, COMM_WORKING);
    atomic_fetch_add(&table->mine->beats, 1);
    return exchange_statuses(table);
}

// One that waits looks many times a second, or is heard of several times per time-out.
static bool is_stopped(const StatusTable *table, const PeerStatus *peer) {
    return peer->status != table->mine && clock_seconds() - peer->since > 0.75 * table->timeout;
}

CommStatus status_of_rank(const void *pointer, int rank) {
    const StatusTable *table = pointer;
    const PeerStatus *peer = &table->peer[rank];
    const RankStatus *status = peer->status;
    int waits_for = atomic_load(&status->waits_for);
    return (CommStatus){.waits_for = waits_for,
                        .finished = atomic_load(&status->finished),
                        .stopped = waits_for >= 0 && is_stopped(table, peer),
                        .beats = atomic_load(&status->beats),
                        .operation = status->operation,
                        .doing = status->doing,
                        .place = peer->place.text};
}

int status_chain(StatusTable *table, uint64_t *state) {
    double now = clock_seconds();
    int code = table->others_apart > 0 ? receive_statuses(table) : MPI_SUCCESS;
    for (int rank = 0; rank < table->size; rank++) {
        PeerStatus *peer = &table->peer[rank];
        int64_t looks = atomic_load(&peer->status->looks);
        if (looks != peer->looks) peer->since = now;
        peer->looks = looks;
    }
    *state = comm_chain_state(status_of_rank, table, table->size, table->rank);
    return code;
}

int64_t status_moved(const StatusTable *table) {
    int64_t sum = 0;
    for (int rank = 0; rank < table->size; rank++) sum += atomic_load(&table->peer[rank].status->beats);
    return sum;
}

// Each rank of this machine puts its status on the page. Where there is no room for one, each keeps its own to itself,
// as if it were alone there.
static bool share_page(StatusTable *table, MPI_Comm machine) {
    int size;
    RankStatus *mine;
    MPI_Comm_size(machine, &size);
    if (MPI_Win_allocate_shared(sizeof *mine, 1, MPI_INFO_NULL, machine, &mine, &table->page) != MPI_SUCCESS) {
        table->page = MPI_WIN_NULL;
        mine = &table->peer[table->rank].heard;
    }
    memset(mine, 0, sizeof *mine);
    atomic_store(&mine->waits_for, COMM_WORKING);
    table->mine = table->peer[table->rank].status = mine;
    table->others_apart = table->size - (table->page != MPI_WIN_NULL ? size : 1);
    MPI_Group everyone, neighbours;
    if (MPI_Comm_group(MPI_COMM_WORLD, &everyone) != MPI_SUCCESS || MPI_Comm_group(machine, &neighbours) != MPI_SUCCESS)
        return false;
    for (int i = 0; table->page != MPI_WIN_NULL && i < size; i++) {
        MPI_Aint bytes;
        int unit, rank;
        RankStatus *status;
        if (MPI_Win_shared_query(table->page, i, &bytes, &unit, &status) != MPI_SUCCESS ||
            MPI_Group_translate_ranks(neighbours, 1, &i, everyone, &rank) != MPI_SUCCESS)
            return false;
        table->peer[rank].status = status;
        if (i == 0) table->failed = &status->failed;
    }
    MPI_Group_free(&everyone);
    MPI_Group_free(&neighbours);
    return MPI_Barrier(machine) == MPI_SUCCESS;
}

static bool gather_places(StatusTable *table) {
    CommPlace mine = comm_place_here(), *all = calloc((size_t)table->size, sizeof *all);
    bool ok = all != NULL &&
              MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE, MPI_COMM_WORLD) == MPI_SUCCESS;
    for (int rank = 0; ok && rank < table->size; rank++) table->peer[rank].place = all[rank];
    free(all);
    return ok;
}

bool status_open(StatusTable *table, int rank, int size, int tag, double timeout) {
    *table = (StatusTable){.rank = rank, .size = size, .tag = tag, .timeout = timeout, .page = MPI_WIN_NULL};
    table->peer = calloc((size_t)size, sizeof *table->peer);
    if (table->peer == NULL) return false;
    for (int i = 0; i < size; i++) {
        PeerStatus *peer = &table->peer[i];
        peer->status = &peer->heard;
        peer->sending = MPI_REQUEST_NULL;
        atomic_store(&peer->heard.waits_for, COMM_WORKING);
    }
    table->failed = &table->peer[rank].heard.failed;
    MPI_Comm machine;
    if (MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine) != MPI_SUCCESS)
        return false;
    MPI_Comm_set_errhandler(machine, MPI_ERRORS_RETURN);
    return share_page(table, machine) && MPI_Comm_free(&machine) == MPI_SUCCESS && gather_places(table);
}

// To each rank apart goes a last message, behind all others; when all of theirs have come, none is on its way any more.
static bool say_the_last(StatusTable *table) {
    for (int rank = 0; rank < table->size; rank++) {
        MPI_Request *sending = &table->peer[rank].sending;
        if (!is_apart(table, rank)) continue;
        if (MPI_Wait(sending, MPI_STATUS_IGNORE) != MPI_SUCCESS || send_status(table, rank, true) != MPI_SUCCESS)
            return false;
    }
    for (int rank = 0; rank < table->size; rank++) {
        PeerStatus *peer = &table->peer[rank];
        if (!is_apart(table, rank)) continue;
        while (!atomic_load(&peer->heard.last)) {
            if (receive_statuses(table) != MPI_SUCCESS) return false;
            clock_sleep(0.001);
        }
        if (MPI_Wait(&peer->sending, MPI_STATUS_IGNORE) != MPI_SUCCESS) return false;
    }
    return true;
}

bool status_close(StatusTable *table) {
    bool ok = say_the_last(table);
    if (table->page != MPI_WIN_NULL) ok = MPI_Win_free(&table->page) == MPI_SUCCESS && ok;
    free(table->peer);
    table->peer = NULL;
    return ok;
}

#endif
