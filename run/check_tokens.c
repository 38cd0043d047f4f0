// Ranks look for about a second at a time and tell each other in between, so that none waits long for the slowest.
#include "run/check_tokens.h"

#include <stdlib.h>
#include <unistd.h>

#include "dataloader/token_check.h"
#include "terminal/report.h"

typedef struct Progress { // of one rank
    int64_t tokens, left; // to look at, and how many of them still
    int64_t failed;
} Progress;

static int64_t left_of(const TokenCheck check[2]) {
    return check[0].end - check[0].next + check[1].end - check[1].next;
}

// The parts of the training and of the validation data that fall to this rank.
static void share_out(const Run *run, const Comm *world, TokenCheck check[2]) {
    int part = run->processes ? comm_process_rank_here() : comm_rank(world);
    int parts = run->processes ? comm_processes_here() : comm_size(world);
    int64_t vocabulary = run->config.vocab_size;
    bool any = run->resumed.step < run->steps;
    for (int i = 0; i < 2; i++) {
        check[i] = token_check_begin(i == 0 ? run->train : run->validation, vocabulary, part, parts);
        bool known = i == 0 ? run->train_checked : run->validation == run->train;
        if (known || !any) check[i].next = check[i].end;
    }
}

static bool look(TokenCheck check[2], int threads, double seconds, Error *err) {
    if (!token_check_go_on(&check[0], threads, seconds, err)) return false;
    return check[0].next < check[0].end || token_check_go_on(&check[1], threads, seconds, err);
}

static void say_progress(bool *said, const Progress *sum) {
    char count[32];
    format_count(count, (double)sum->tokens);
    if (isatty(STDOUT_FILENO))
        printf("\rchecking %s token numbers: %.0f%%", count, 100.0 * (1.0 - (double)sum->left / (double)sum->tokens));
    else if (!*said) printf("checking %s token numbers\n", count);
    fflush(stdout);
    *said = true;
}

// One turn of all ranks, which leaves the sum over them in *sum. The first in order of ranks that failed is to say so.
static bool take_turn(TokenCheck check[2], int64_t tokens, Comm *world, int threads, double seconds, Progress *all,
                      size_t *bytes, Progress *sum, Error *err) {
    int ranks = comm_size(world), me = comm_rank(world);
    bool ok = look(check, threads, seconds, err);
    all[me] = (Progress){tokens, left_of(check), !ok};
    for (int i = 0; i < ranks; i++) bytes[i] = sizeof *all;
    comm_all_gather(world, all, bytes);
    *sum = (Progress){0};
    for (int i = 0; i < ranks; i++) {
        sum->tokens += all[i].tokens;
        sum->left += all[i].left;
        if (!all[i].failed) continue;
        if (i == me) return false;
        comm_barrier(world); // the one that failed ends this one here
    }
    return true;
}

bool check_tokens(const Run *run, Comm *world, int threads, Error *err) {
    size_t ranks = (size_t)comm_size(world), *bytes = malloc(ranks * sizeof *bytes);
    Progress *all = malloc(ranks * sizeof *all), sum = {0};
    TokenCheck check[2];
    bool ok = bytes != NULL && all != NULL, said = false;
    if (!ok) error_set(err, "out of memory");
    share_out(run, world, check);
    int64_t tokens = left_of(check);
    comm_doing_slowly(world, "check of the token numbers");
    double seconds = run->options.timeout < 4.0 ? 0.25 * run->options.timeout : 1.0;
    for (bool more = ok; more; more = ok && sum.left > 0) {
        ok = take_turn(check, tokens, world, threads, seconds, all, bytes, &sum, err);
        if (ok && sum.left > 0 && comm_rank(world) == 0) say_progress(&said, &sum);
    }
    if (said && isatty(STDOUT_FILENO)) printf("\r\033[K");
    free(all);
    free(bytes);
    return ok;
}
