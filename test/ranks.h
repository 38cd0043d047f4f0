// For tests that start themselves again as ranks: under mpirun, or as a program that is to fail.
#ifndef TEST_RANKS_H
#define TEST_RANKS_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "comm/comm.h"
#include "test/program.h"

const char *own_path(void);

bool mpi_can_be_tested(void);

// Programs under mpirun that start at the same moment trip over each other in its temporary folder: each gets its own
// inside `folder`.
void add_mpirun_in(Command *command, int ranks, const char *folder);

// ---- ranks that speak TCP: engine sockets ----

int listen_on(int port); // -1: somebody else does

// A port that nobody listens on, nor on the one after it. Not from the range out of which the system gives ports to
// whoever asks for any.
int free_port(void);

// A rank's place, as torchrun gives it. Not every test wants every variable: NULL leaves one out.
void set_place(const char *rank, const char *size, const char *address, const char *port);

// `PROGRAM WORDS...` as so many ranks on this machine: a launcher in small, which this very program is when it is
// started as `TEST launch RANKS PORT PROGRAM WORDS...`.
void add_sockets_launcher(Command *command, int ranks);

// Returns the exit code that all ranks ended with, but those ended by a signal; 99 where they differ.
int launch_ranks(char **words);
bool is_launcher(int argc, char **argv);

int make_folder_for_ranks(void **state);
int remove_folder_of_ranks(void **state);

// Of the programs this test starts, sanitizers shall not report what the MPI library never frees, nor that a program
// that ends at once, as a failing one must, leaves threads unjoined.
void pass_over_what_is_not_ours(void);

#endif
