// What a checkpoint asks of the disk: files written to the last byte and summed on the way, folders made, synced and
// removed.
#ifndef CHECKPOINT_DISK_H
#define CHECKPOINT_DISK_H

#include <stdint.h>

#include "base/error.h"
#include "checkpoint/sha256.h"

enum { DISK_PATH_MAX = 4096 };

// "FOLDER/NAME" into path[DISK_PATH_MAX].
bool disk_join(char *path, const char *folder, const char *name, Error *err);

// A file being written, through a buffer of its own. After a failure only disk_discard may follow.
typedef struct DiskFile {
    int descriptor; // -1: not open
    char path[DISK_PATH_MAX];
    char *buffer;
    size_t buffered;
    int64_t written, sent, arrived; // bytes: to the system; of these, to the disk; of these, known to be there
    Sha256 sum;
    char hex[SHA256_HEX_CHARS]; // the file's sum, once closed
} DiskFile;

bool disk_create(DiskFile *file, const char *path, Error *err); // a file that is there is replaced
bool disk_write(DiskFile *file, const void *data, size_t bytes, Error *err);
bool disk_print(DiskFile *file, Error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));   // < 4096 bytes
bool disk_close(DiskFile *file, Error *err); // writes what is buffered, syncs, closes (also on failure)
void disk_discard(DiskFile *file);           // closes without more ado

bool disk_sum(const char *path, char hex[SHA256_HEX_CHARS], Error *err); // of a file on disk
bool disk_sync(const char *path, Error *err);                            // a file or a folder
bool disk_make_folder(const char *path, Error *err);                     // and those above it, if need be
bool disk_rename(const char *from, const char *to, Error *err);
bool disk_remove_folder(const char *path, Error *err); // with all that is in it; fine if there is none

#endif
