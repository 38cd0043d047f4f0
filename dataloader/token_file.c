// A data file on its way into memory.
#include "dataloader/token_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

// Smaller files are copied into memory: a mapping costs the kernel more than that, and it allows only some 65,000.
enum { SMALLEST_MAPPED = 64 * 1024 };

static bool read_whole(int fd, TokenFile *file, Error *err) {
    file->bytes = malloc(file->size);
    if (file->bytes == NULL) return error_set(err, "%s: out of memory for its %zu bytes", file->path, file->size);
    for (size_t done = 0; done < file->size;) {
        ssize_t n = read(fd, file->bytes + done, file->size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return error_set(err, "cannot read %s: %s", file->path, strerror(errno));
        if (n == 0) return error_set(err, "%s became shorter while it was read; try again", file->path);
        done += (size_t)n;
    }
    return true;
}

static bool map_whole(int fd, TokenFile *file, Error *err) {
    void *bytes = mmap(NULL, file->size, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED)
        return error_set(err, "cannot map %s into memory: %s%s", file->path, strerror(errno),
                         errno == ENOMEM ? "; with very many files, join them into fewer" : "");
    file->bytes = bytes;
    file->mapped = true;
    return true;
}

bool token_file_load(TokenFile *file, Error *err) {
    int fd = open(file->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return error_set(err, "cannot read %s: %s; check its permissions", file->path, strerror(errno));
    struct stat status;
    bool ok = fstat(fd, &status) == 0;
    if (!ok) error_set(err, "cannot read %s: %s", file->path, strerror(errno));
    if (ok) {
        file->size = (size_t)status.st_size;
        file->device = status.st_dev;
        file->inode = status.st_ino;
        if (file->size >= SMALLEST_MAPPED) ok = map_whole(fd, file, err);
        else if (file->size > 0) ok = read_whole(fd, file, err);
    }
    close(fd);
    return ok;
}

void token_file_unload(TokenFile *file) {
    if (file->mapped) munmap(file->bytes, file->size);
    else if (file->path != NULL) free(file->bytes);
}

bool token_file_still_whole(const TokenFile *file, Error *err) {
    struct stat now;
    if (!file->mapped || stat(file->path, &now) != 0) return true;
    if (now.st_dev != file->device || now.st_ino != file->inode || (size_t)now.st_size >= file->size) return true;
    return error_set(err, "%s: cut from %zu to %lld bytes while in use; put it back and resume", file->path, file->size,
                     (long long)now.st_size);
}

size_t sample_length(size_t size) { return size < SAMPLE_BLOCK ? size : SAMPLE_BLOCK; }

size_t sample_place(size_t size, int i, int count) {
    size_t last = size - sample_length(size), gaps = (size_t)count - 1, n = (size_t)i;
    return last / gaps * n + last % gaps * n / gaps; // last * n could overflow
}

void token_file_will_be_sampled(const TokenFile *file, bool begin) {
    if (file->mapped) madvise(file->bytes, file->size, begin ? MADV_RANDOM : MADV_NORMAL);
}
