// Opening without waiting, and looking at what was opened.
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// What is looked at is what has been opened: between a look and an opening the name could come to mean another file.
int file_open(const char *path, int64_t *bytes, Error *err) {
    struct stat status;
    int descriptor = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (descriptor < 0) {
        error_set(err, "%s: cannot open: %s", path,
                  errno == ENXIO ? "not a regular file" : strerror(errno)); // a socket, or a device without a driver
        return -1;
    }
    bool ok = fstat(descriptor, &status) == 0 || error_set(err, "%s: cannot look at it: %s", path, strerror(errno));
    if (ok && !S_ISREG(status.st_mode))
        ok = error_set(err, "%s: not a regular file but %s", path,
                       S_ISDIR(status.st_mode)    ? "a folder"
                       : S_ISFIFO(status.st_mode) ? "a pipe"
                                                  : "a device");
    if (ok) {
        if (bytes != NULL) *bytes = status.st_size;
        return descriptor;
    }
    close(descriptor);
    return -1;
}

int file_open_to_write(const char *path, int flags) {
    int descriptor = open(path, O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | flags, 0666);
    if (descriptor < 0) return -1;
    int status = fcntl(descriptor, F_GETFL); // only the opening must not wait; a slow reader may
    if (status >= 0 && fcntl(descriptor, F_SETFL, status & ~O_NONBLOCK) == 0) return descriptor;
    int reason = errno;
    close(descriptor);
    errno = reason;
    return -1;
}

bool file_check_writable(const char *option, const char *path, Error *err) {
    int descriptor = file_open_to_write(path, O_APPEND);
    if (descriptor < 0)
        return error_set(err, "%s %s: cannot write: %s; give a file that can be written", option, path,
                         errno == ENXIO ? "nobody reads this pipe" : strerror(errno));
    close(descriptor);
    return true;
}

FILE *file_write(const char *path) {
    int descriptor = file_open_to_write(path, O_TRUNC);
    FILE *file = descriptor >= 0 ? fdopen(descriptor, "w") : NULL;
    if (file == NULL && descriptor >= 0) close(descriptor);
    return file;
}
