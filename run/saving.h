// When a run saves, and how it ends so that nothing is lost: what training has reached is saved first wherever it is
// worth resuming from, whatever it was that failed beside it.
#ifndef RUN_SAVING_H
#define RUN_SAVING_H

#include "train_gpt.h"

// Where the training loop stands, the same on every rank but for saved_at.
typedef struct Training {
    int64_t step;           // steps done
    int64_t saved;          // step of the newest checkpoint, -1: none
    double saved_at;        // when, in seconds of a clock that runs forward
    double validation_loss; // last measured; NaN: never
    double accuracy;        // with it, of a task; NaN: none
    bool diverged;          // with these weights the next step has no numbers, and would have none after a resume
    double usual_seconds;   // of a step
    double machine_rate;    // FLOP/s of all ranks' machines in matrix products; for machine_share
    int64_t *window;        // (run_most_sequences) first tokens of the step's sequences
} Training;

double now(void); // seconds of a clock that only runs forward

bool leader(const Rank *r); // rank 0 of all: it speaks and writes
// Ends all ranks unless `ok`.
void require(Rank *r, bool ok, const Error *err);
// True where `ok` on every rank. Else false on all, with the *err of the first that is not. Collective.
bool all_well(Rank *r, bool ok, Error *err);

// What anybody asks of the run, the same on every rank.
typedef struct Asked {
    int stop;  // the signal that asks to stop; 0: none
    bool save; // SIGUSR1 asks to save, or --save-minutes are over
} Asked;
Asked ask_all(Rank *r, const Training *t); // collective
// What to tell who has asked the process to stop; lives as long as the program.
const char *answer_to_signals(const Run *run);

// Saves the step that training has reached in --out. Where its weights are not worth resuming from (the loss is no
// number with them), all ranks end. A checkpoint that cannot be written ends them too if it is the last one; of another
// the leader says so, and the next one may fit again. What was saved before is kept. Collective.
void save(Rank *r, Training *t, bool last);
// Ends all ranks with `cause`, which every rank has, and with what is saved; saves first where it can. Collective.
void end_saving(Rank *r, Training *t, const Error *cause) __attribute__((noreturn));

// --dump: before the first step, and after its gradients are summed.
void want_dump(Rank *r);
void dump(Rank *r);

#endif
