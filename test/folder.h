// One temporary folder for all files of a test program, made and removed by cmocka's fixtures.
#ifndef TEST_FOLDER_H
#define TEST_FOLDER_H

#include "test/program.h"

extern char folder[PROGRAM_PATH];

char *in_folder(char path[PROGRAM_PATH], const char *name); // folder/name, in `path`
int make_folder(void **state);                              // whoever runs a program may look into it
int remove_folder(void **state);

#endif
