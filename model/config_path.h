// A configuration is named by its file or by the folder that holds it as config.json.
#ifndef MODEL_CONFIG_PATH_H
#define MODEL_CONFIG_PATH_H

#include <stdio.h>
#include <sys/stat.h>

#include "base/error.h"

enum { CONFIG_PATH_MAX = 4096 };

// The file's path, of at most CONFIG_PATH_MAX bytes with its end.
static inline bool config_path(const char *path, char *file, Error *err) {
    struct stat status;
    bool folder = stat(path, &status) == 0 && S_ISDIR(status.st_mode);
    int length = snprintf(file, CONFIG_PATH_MAX, "%s%s", path, folder ? "/config.json" : "");
    return length < CONFIG_PATH_MAX || error_set(err, "%.100s...: the path is too long", path);
}

#endif
