// For tests that start themselves again as ranks: under mpirun, or as a program that is to fail.
#ifndef TEST_RANKS_H
#define TEST_RANKS_H

#include "comm/comm.h"
#include "test/program.h"

const char *own_path(void);

bool mpi_can_be_tested(void);

// Programs under mpirun that start at the same moment trip over each other in its temporary folder: each gets its own
// inside test/folder.h's.
void add_mpirun_in_folder(Command *command, int ranks);

// A rank's place, as torchrun gives it. Not every test wants every variable: NULL leaves one out.
void set_place(const char *rank, const char *size, const char *address, const char *port);

// Of the programs this test starts, sanitizers shall not report what the MPI library never frees, nor that a program
// that ends at once, as a failing one must, leaves threads unjoined.
void pass_over_what_is_not_ours(void);

#endif
