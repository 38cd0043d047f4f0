#include "comm/board.h"

#ifdef HAVE_MPI

#include <stdlib.h>
#include <string.h>
#include <time.h>

// ---- saying -------------------------------------------------------------------------------------------------------

static void write_text(char *to, size_t size, const char *text) {
    size_t length = text != NULL ? strnlen(text, size - 1) : 0;
    if (length > 0) memcpy(to, text, length);
    to[length] = '\0';
}

static bool is_apart(const Board *board, int rank) {
    return rank != board->rank && board->peer[rank].status == &board->peer[rank].heard;
}

static int send_notice(Board *board, int rank, bool last) {
    BoardPeer *peer = &board->peer[rank];
    const BoardStatus *mine = board->mine;
    Notice *notice = &peer->notice;
    *notice = (Notice){.awaits = atomic_load(&mine->awaits),
                       .finished = atomic_load(&mine->finished),
                       .last = last,
                       .beats = atomic_load(&mine->beats),
                       .looks = atomic_load(&mine->looks)};
    memcpy(notice->operation, mine->operation, sizeof notice->operation);
    memcpy(notice->doing, mine->doing, sizeof notice->doing);
    return MPI_Isend(notice, (int)sizeof *notice, MPI_BYTE, rank, board->tag, MPI_COMM_WORLD, &peer->sending);
}

// Where the last notice has not gone yet (that rank has been stopped, say), it gets no other.
static int send_notices(Board *board) {
    int code = MPI_SUCCESS;
    for (int rank = 0; code == MPI_SUCCESS && rank < board->size; rank++) {
        int gone = 0;
        if (!is_apart(board, rank)) continue;
        code = MPI_Test(&board->peer[rank].sending, &gone, MPI_STATUS_IGNORE);
        if (code == MPI_SUCCESS && gone) code = send_notice(board, rank, false);
    }
    board->told_at = clock_seconds();
    board->told_waiting = atomic_load(&board->mine->awaits) >= 0;
    return code;
}

// ---- hearing ------------------------------------------------------------------------------------------------------

static void hear(BoardPeer *peer, const Notice *notice) {
    atomic_store(&peer->heard.awaits, notice->awaits);
    atomic_store(&peer->heard.finished, notice->finished);
    atomic_store(&peer->heard.beats, notice->beats);
    atomic_store(&peer->heard.looks, notice->looks);
    write_text(peer->heard.operation, sizeof peer->heard.operation, notice->operation);
    write_text(peer->heard.doing, sizeof peer->heard.doing, notice->doing);
    peer->said_its_last = notice->last;
}

static int receive_notices(Board *board) {
    for (;;) {
        int there = 0;
        MPI_Status from;
        Notice notice;
        int code = MPI_Iprobe(MPI_ANY_SOURCE, board->tag, MPI_COMM_WORLD, &there, &from);
        if (code != MPI_SUCCESS || !there) return code;
        code = MPI_Recv(&notice, (int)sizeof notice, MPI_BYTE, from.MPI_SOURCE, board->tag, MPI_COMM_WORLD,
                        MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS) return code;
        hear(&board->peer[from.MPI_SOURCE], &notice);
    }
}

// A few times per time-out, and at once when others believe that I wait and I do not any more.
static int exchange_notices(Board *board) {
    if (board->others_apart == 0) return MPI_SUCCESS;
    bool released = board->told_waiting && atomic_load(&board->mine->awaits) < 0;
    if (!released && clock_seconds() - board->told_at < comm_look_interval(board->timeout)) return MPI_SUCCESS;
    int code = send_notices(board);
    return code == MPI_SUCCESS ? receive_notices(board) : code;
}

// ---- this rank ----------------------------------------------------------------------------------------------------

void board_say(Board *board, const char *doing) { write_text(board->mine->doing, sizeof board->mine->doing, doing); }

int board_wait(Board *board, int awaited, const char *operation) {
    BoardStatus *mine = board->mine;
    write_text(mine->operation, sizeof mine->operation, operation);
    atomic_store(&mine->awaits, awaited);
    return board_look(board);
}

int board_look(Board *board) {
    atomic_fetch_add(&board->mine->looks, 1);
    return exchange_notices(board);
}

int board_beat(Board *board) {
    atomic_store(&board->mine->awaits, COMM_WORKING);
    atomic_fetch_add(&board->mine->beats, 1);
    return exchange_notices(board);
}

// ---- the others ---------------------------------------------------------------------------------------------------

// One that waits looks many times a second, or is heard of several times per time-out.
static bool is_asleep(const Board *board, const BoardPeer *peer) {
    return peer->status != board->mine && clock_seconds() - peer->since > 0.75 * board->timeout;
}

CommStanding board_standing(const void *pointer, int rank) {
    const Board *board = pointer;
    const BoardPeer *peer = &board->peer[rank];
    const BoardStatus *status = peer->status;
    int awaits = atomic_load(&status->awaits);
    return (CommStanding){.awaits = awaits,
                          .finished = atomic_load(&status->finished),
                          .asleep = awaits >= 0 && is_asleep(board, peer),
                          .beats = atomic_load(&status->beats),
                          .operation = status->operation,
                          .doing = status->doing,
                          .place = peer->place};
}

int board_chain(Board *board, uint64_t *state) {
    double now = clock_seconds();
    int code = board->others_apart > 0 ? receive_notices(board) : MPI_SUCCESS;
    for (int rank = 0; rank < board->size; rank++) {
        BoardPeer *peer = &board->peer[rank];
        int64_t looks = atomic_load(&peer->status->looks);
        if (looks != peer->looks) peer->since = now;
        peer->looks = looks;
    }
    *state = comm_chain_state(board_standing, board, board->size, board->rank);
    return code;
}

int64_t board_moved(const Board *board) {
    int64_t sum = 0;
    for (int rank = 0; rank < board->size; rank++) sum += atomic_load(&board->peer[rank].status->beats);
    return sum;
}

// ---- start and end ------------------------------------------------------------------------------------------------

// Each rank of this machine puts its status on the page. Where there is no room for one, each keeps its own to itself,
// as if it were alone there.
static bool share_page(Board *board, MPI_Comm machine) {
    int size;
    BoardStatus *mine;
    MPI_Comm_size(machine, &size);
    if (MPI_Win_allocate_shared(sizeof *mine, 1, MPI_INFO_NULL, machine, &mine, &board->page) != MPI_SUCCESS) {
        board->page = MPI_WIN_NULL;
        mine = &board->peer[board->rank].heard;
    }
    memset(mine, 0, sizeof *mine);
    atomic_store(&mine->awaits, COMM_WORKING);
    board->mine = board->peer[board->rank].status = mine;
    board->others_apart = board->size - (board->page != MPI_WIN_NULL ? size : 1);
    MPI_Group everyone, neighbours;
    if (MPI_Comm_group(MPI_COMM_WORLD, &everyone) != MPI_SUCCESS || MPI_Comm_group(machine, &neighbours) != MPI_SUCCESS)
        return false;
    for (int i = 0; board->page != MPI_WIN_NULL && i < size; i++) {
        MPI_Aint bytes;
        int unit, rank;
        BoardStatus *status;
        if (MPI_Win_shared_query(board->page, i, &bytes, &unit, &status) != MPI_SUCCESS ||
            MPI_Group_translate_ranks(neighbours, 1, &i, everyone, &rank) != MPI_SUCCESS)
            return false;
        board->peer[rank].status = status;
        if (i == 0) board->failed = &status->failed;
    }
    MPI_Group_free(&everyone);
    MPI_Group_free(&neighbours);
    return MPI_Barrier(machine) == MPI_SUCCESS;
}

bool board_open(Board *board, int rank, int size, int tag, double timeout) {
    *board = (Board){.rank = rank, .size = size, .tag = tag, .timeout = timeout, .page = MPI_WIN_NULL};
    board->peer = calloc((size_t)size, sizeof *board->peer);
    if (board->peer == NULL) return false;
    for (int i = 0; i < size; i++) {
        BoardPeer *peer = &board->peer[i];
        peer->status = &peer->heard;
        peer->sending = MPI_REQUEST_NULL;
        atomic_store(&peer->heard.awaits, COMM_WORKING);
    }
    board->failed = &board->peer[rank].heard.failed;
    MPI_Comm machine;
    if (MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine) != MPI_SUCCESS)
        return false;
    MPI_Comm_set_errhandler(machine, MPI_ERRORS_RETURN);
    return share_page(board, machine) && MPI_Comm_free(&machine) == MPI_SUCCESS;
}

// To each rank apart goes a last notice, behind all others; when all of theirs have come, none is on its way any more.
static bool say_the_last(Board *board) {
    for (int rank = 0; rank < board->size; rank++) {
        MPI_Request *sending = &board->peer[rank].sending;
        if (!is_apart(board, rank)) continue;
        if (MPI_Wait(sending, MPI_STATUS_IGNORE) != MPI_SUCCESS || send_notice(board, rank, true) != MPI_SUCCESS)
            return false;
    }
    for (int rank = 0; rank < board->size; rank++) {
        BoardPeer *peer = &board->peer[rank];
        if (!is_apart(board, rank)) continue;
        while (!peer->said_its_last) {
            const struct timespec pause = {0, 1000000};
            if (receive_notices(board) != MPI_SUCCESS) return false;
            if (!peer->said_its_last) nanosleep(&pause, NULL);
        }
        if (MPI_Wait(&peer->sending, MPI_STATUS_IGNORE) != MPI_SUCCESS) return false;
    }
    return true;
}

bool board_close(Board *board) {
    bool ok = say_the_last(board);
    if (board->page != MPI_WIN_NULL) ok = MPI_Win_free(&board->page) == MPI_SUCCESS && ok;
    free(board->peer);
    board->peer = NULL;
    return ok;
}

#endif
