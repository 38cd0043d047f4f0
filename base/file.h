// Opening files so that nothing waits for ever.
//
// A pipe without a writer holds up whoever opens it for reading, one without a reader whoever opens it for writing; a
// socket cannot be opened, a folder cannot be read, a device may never end. All of them can bear the name of a file.
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

// Opens a regular file (or a link to one) for reading; -1 with *err filled where it is none, or cannot be opened.
// `bytes` may be NULL.
int file_open(const char *path, int64_t *bytes, Error *err);

// Opens a file, a terminal, a device or a pipe with a reader for writing, as open() with `flags` beside O_WRONLY; makes
// it if it is not there. -1 with errno set; ENXIO: a pipe that nobody reads, or a socket.
int file_open_to_write(const char *path, int flags);

// Before long work: that the file that `option` names can be written at its end. It is made where it is not there.
bool file_check_writable(const char *option, const char *path, Error *err);
// Opens it then, empty; NULL with errno set.
FILE *file_write(const char *path);

#endif
