// The motion of mixers whose past is a small state (linear, delta, mean): each chunk of tokens makes a state of its own,
// all ranks are given all of them at once, and each goes on from those of the chunks before its own; backward, of those
// behind. One gather of 2P states a layer, whatever T is (LASP-2, Sun et al. 2025).
//
// T tokens are 2P chunks (sequence/sharding.h), two to a rank. States stand by rank, the early chunk's before the late
// one's; the last rank's two chunks are adjacent and are one, the state of which stands in the first of its places. A
// device has them in its memory, so kernels are told by number where the states that they combine stand.
#ifndef MIXER_STATES_H
#define MIXER_STATES_H

#include "model/model.h"

enum { STATES_MOST = 2 * SHARD_MOST_RANKS }; // chunks

// states (P, 2, bytes): this rank's have been written; everyone's are there for the work that follows.
void states_gather(const Mixing *m, void *states, size_t bytes);
// The same, begun and waited for: work that does not touch the states may lie between.
void states_gather_begin(const Mixing *m, void *states, size_t bytes);
void states_gather_wait(const Mixing *m);

// Where the states stand of the chunks before this rank's chunk i, in the order of their positions, into place[]; or
// (`behind`) of those behind it, from the last to the nearest. Returns how many. length: theirs, NULL: not wanted.
int states_before(const Mixing *m, int i, bool behind, int place[STATES_MOST], int64_t *length);
// The place of this rank's own chunk i.
static inline int states_place(const Mixing *m, int i) { return 2 * m->model->rank + i; }

#endif
