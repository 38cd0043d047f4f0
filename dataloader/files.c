// Walks folders and patterns, in an order that no locale changes.
#include "dataloader/files.h"

#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// The folders from the one being read up to the one that was named, to notice links that lead back up.
typedef struct Folder {
    dev_t device;
    ino_t inode;
    const struct Folder *parent;
} Folder;

static bool out_of_memory(Error *err) { return error_set(err, "out of memory while listing the data files"); }

static bool append(FileList *list, const char *path, Error *err) {
    if (list->count == list->capacity) {
        if (list->capacity > INT_MAX / 2) return error_set(err, "%s: more files than can be counted; join them", path);
        int capacity = list->capacity ? 2 * list->capacity : 16;
        char **grown = realloc(list->path, (size_t)capacity * sizeof *grown);
        if (grown == NULL) return out_of_memory(err);
        list->path = grown;
        list->capacity = capacity;
    }
    char *copy = strdup(path);
    if (copy == NULL) return out_of_memory(err);
    list->path[list->count++] = copy;
    return true;
}

static bool append_path(FileList *list, const char *path, const Folder *parent, Error *err);

static bool append_child(FileList *list, const char *folder, const char *name, const Folder *parent, Error *err) {
    size_t length = strlen(folder);
    const char *slash = length > 0 && folder[length - 1] == '/' ? "" : "/";
    char *path;
    if (asprintf(&path, "%s%s%s", folder, slash, name) < 0) return out_of_memory(err);
    bool ok = append_path(list, path, parent, err);
    free(path);
    return ok;
}

static bool append_folder(FileList *list, const char *path, const struct stat *status, const Folder *parent,
                          Error *err) {
    for (const Folder *above = parent; above != NULL; above = above->parent)
        if (above->device == status->st_dev && above->inode == status->st_ino) return true;
    Folder here = {status->st_dev, status->st_ino, parent};

    DIR *folder = opendir(path);
    if (folder == NULL)
        return error_set(err, "cannot read folder %s: %s; check its permissions", path, strerror(errno));
    bool ok = true;
    struct dirent *entry;
    while (ok && (errno = 0, entry = readdir(folder)) != NULL)
        if (entry->d_name[0] != '.') ok = append_child(list, path, entry->d_name, &here, err);
    if (ok && errno != 0) ok = error_set(err, "cannot read folder %s: %s", path, strerror(errno));
    closedir(folder);
    return ok;
}

static bool append_path(FileList *list, const char *path, const Folder *parent, Error *err) {
    struct stat status;
    if (stat(path, &status) != 0)
        return error_set(err, "cannot read %s: %s; check the path or leave it out", path, strerror(errno));
    if (S_ISDIR(status.st_mode)) return append_folder(list, path, &status, parent, err);
    if (S_ISREG(status.st_mode)) return append(list, path, err);
    if (parent != NULL) return true;
    return error_set(err, "%s is neither a file nor a folder; give one of these as data", path);
}

// Called by glob for a folder that it cannot open: 1 ends the search. Where the pattern's folders are patterns too,
// some may lack what the next part of it names.
static int stops_at(const char *folder, int why) {
    (void)folder;
    return why != ENOENT;
}

// The pattern's folder, up to its first part with a wildcard, is often what is misspelt.
static bool no_match(const char *pattern, Error *err) {
    char *folder = strdup(pattern);
    if (folder == NULL) return out_of_memory(err);
    folder[strcspn(folder, "*?[")] = '\0';
    char *slash = strrchr(folder, '/');
    if (slash != NULL) slash[slash == folder] = '\0';
    struct stat status;
    if (slash == NULL || (stat(folder, &status) == 0 && S_ISDIR(status.st_mode)))
        error_set(err, "no file matches %s; check the pattern", pattern);
    else error_set(err, "no file matches %s: there is no folder %s; check the path", pattern, folder);
    free(folder);
    return false;
}

static bool append_matches(FileList *list, const char *pattern, Error *err) {
    glob_t found = {0};
    int outcome = glob(pattern, GLOB_NOSORT, stops_at, &found);
    bool ok = outcome == 0;
    if (outcome == GLOB_NOMATCH) no_match(pattern, err);
    else if (outcome == GLOB_NOSPACE) out_of_memory(err);
    else if (!ok) error_set(err, "a folder that %s goes through cannot be read; check its permissions", pattern);
    for (size_t i = 0; ok && i < found.gl_pathc; i++) ok = append_path(list, found.gl_pathv[i], NULL, err);
    globfree(&found);
    return ok;
}

static int by_path(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

bool file_list_append(FileList *list, const char *argument, Error *err) {
    int before = list->count;
    struct stat status;
    bool exists = stat(argument, &status) == 0; // a file whose name looks like a pattern is that file
    bool pattern = !exists && strpbrk(argument, "*?[") != NULL;
    if (!(pattern ? append_matches(list, argument, err) : append_path(list, argument, NULL, err))) return false;
    if (list->count == before)
        return error_set(err, "%s holds no files (hidden ones are left out); give a folder that does", argument);
    qsort(list->path + before, (size_t)(list->count - before), sizeof *list->path, by_path);
    return true;
}

void file_list_free(FileList *list) {
    for (int i = 0; i < list->count; i++) free(list->path[i]);
    free(list->path);
    *list = (FileList){0};
}
