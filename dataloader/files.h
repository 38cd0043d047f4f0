// From what the user names (files, folders, glob patterns) to a list of files.
#ifndef DATALOADER_FILES_H
#define DATALOADER_FILES_H

#include "base/error.h"

typedef struct FileList { // starts as {0}
    char **path;
    int count, capacity;
} FileList;

// Appends the files that `argument` stands for, sorted by path (as bytes, so that no locale changes the order): the
// file itself, or all files below a folder, or what matches a pattern, folders among the matches included. Hidden files
// below a folder and what is neither file nor folder (sockets, devices) are left out; symbolic links are followed.
// Fails where something named does not exist or cannot be looked into, and where nothing is found.
bool file_list_append(FileList *list, const char *argument, Error *err);
void file_list_free(FileList *list);

#endif
