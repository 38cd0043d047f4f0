// A disk may be full, and says so at any write, at fsync or at close: every one of them is looked at.
//
// Large files are written piece by piece, each on its way to the disk while the next is summed, so that a sign of life
// can be given between two, and the fsync at the end has little left to wait for.
#include "checkpoint/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/pulse.h"

enum { BUFFER_BYTES = 1 << 20, PIECE_BYTES = 8 << 20 };

bool disk_join(char *path, const char *folder, const char *name, Error *err) {
    int length = snprintf(path, DISK_PATH_MAX, "%s/%s", folder, name);
    return length < DISK_PATH_MAX || error_set(err, "%.100s...: the path is too long", folder);
}

// ---- files ----

// Sends what was written to the disk, and waits for what was sent there before. An error told here is not told by fsync
// again.
static bool send_on(DiskFile *file, Error *err) {
    int64_t length = file->written - file->sent;
    int wait = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    int code = 0;
    if (length < PIECE_BYTES) return true;
    if (file->sent > file->arrived)
        code = sync_file_range(file->descriptor, file->arrived, file->sent - file->arrived, (unsigned)wait);
    if (code == 0) code = sync_file_range(file->descriptor, file->sent, length, SYNC_FILE_RANGE_WRITE);
    file->arrived = file->sent;
    file->sent = file->written;
    // Devices and pipes are not sent on, nor are files where the system does not know how to.
    return code == 0 || errno == ESPIPE || errno == EINVAL || errno == ENOSYS ||
           error_set(err, "%s: cannot write to disk: %s", file->path, strerror(errno));
}

static bool write_piece(DiskFile *file, const char *data, size_t bytes, Error *err) {
    sha256_add(&file->sum, data, bytes);
    while (bytes > 0) {
        ssize_t written = write(file->descriptor, data, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return error_set(err, "%s: cannot write: %s", file->path, strerror(errno));
        data += written;
        bytes -= (size_t)written;
        file->written += written;
    }
    pulse_beat();
    return send_on(file, err);
}

static bool write_out(DiskFile *file, const char *data, size_t bytes, Error *err) {
    bool ok = true;
    for (size_t done = 0; ok && done < bytes; done += PIECE_BYTES)
        ok = write_piece(file, data + done, bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES, err);
    return ok;
}

bool disk_create(DiskFile *file, const char *path, Error *err) {
    *file = (DiskFile){.descriptor = -1};
    sha256_begin(&file->sum);
    int length = snprintf(file->path, sizeof file->path, "%s", path);
    if (length >= DISK_PATH_MAX) return error_set(err, "%.100s...: the path is too long", path);
    file->buffer = malloc(BUFFER_BYTES);
    if (file->buffer == NULL) return error_set(err, "%s: out of memory for writing it", path);
    file->descriptor = file_open_to_write(path, O_TRUNC);
    if (file->descriptor >= 0) return true;
    error_set(err, "%s: cannot write: %s", path, strerror(errno));
    disk_discard(file);
    return false;
}

bool disk_write(DiskFile *file, const void *data, size_t bytes, Error *err) {
    if (bytes <= BUFFER_BYTES - file->buffered) {
        if (bytes > 0) memcpy(file->buffer + file->buffered, data, bytes);
        file->buffered += bytes;
        return true;
    }
    size_t buffered = file->buffered;
    file->buffered = 0;
    return write_out(file, file->buffer, buffered, err) && write_out(file, data, bytes, err);
}

bool disk_print(DiskFile *file, Error *err, const char *format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length < 0 || length >= (int)sizeof text) return error_set(err, "%s: a line is too long to write", file->path);
    return disk_write(file, text, (size_t)length, err);
}

bool disk_close(DiskFile *file, Error *err) {
    bool ok = write_out(file, file->buffer, file->buffered, err);
    if (ok && fsync(file->descriptor) != 0) {
        // Devices and pipes cannot be synced and need not be.
        ok = errno == EINVAL || error_set(err, "%s: cannot sync: %s", file->path, strerror(errno));
    }
    if (close(file->descriptor) != 0 && ok) ok = error_set(err, "%s: cannot close: %s", file->path, strerror(errno));
    file->descriptor = -1;
    sha256_end(&file->sum, file->hex);
    disk_discard(file);
    return ok;
}

void disk_discard(DiskFile *file) {
    if (file->descriptor >= 0) close(file->descriptor);
    file->descriptor = -1;
    free(file->buffer);
    file->buffer = NULL;
}

bool disk_sum(const char *path, char hex[SHA256_HEX_CHARS], Error *err) {
    Sha256 sum;
    sha256_begin(&sum);
    int descriptor = file_open(path, NULL, err);
    if (descriptor < 0) return false;
    char *buffer = malloc(BUFFER_BYTES);
    bool ok = buffer != NULL || error_set(err, "%s: out of memory for reading it", path);
    while (ok) {
        ssize_t bytes = read(descriptor, buffer, BUFFER_BYTES);
        if (bytes < 0 && errno == EINTR) continue;
        if (bytes < 0) ok = error_set(err, "%s: cannot read: %s", path, strerror(errno));
        if (bytes <= 0) break;
        sha256_add(&sum, buffer, (size_t)bytes);
        pulse_beat();
    }
    free(buffer);
    close(descriptor);
    sha256_end(&sum, hex);
    return ok;
}

// ---- folders ----

bool disk_sync(const char *path, Error *err) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return error_set(err, "%s: cannot open: %s", path, strerror(errno));
    // Some file systems do not sync folders and say so.
    bool ok = fsync(descriptor) == 0 || errno == EINVAL || error_set(err, "%s: cannot sync: %s", path, strerror(errno));
    close(descriptor);
    return ok;
}

static bool is_folder(const char *path) { // leaves errno as it was
    struct stat status;
    int before = errno;
    bool folder = stat(path, &status) == 0 && S_ISDIR(status.st_mode);
    errno = before;
    return folder;
}

bool disk_make_folder(const char *path, Error *err) {
    char part[DISK_PATH_MAX];
    if (snprintf(part, sizeof part, "%s", path) >= DISK_PATH_MAX)
        return error_set(err, "%.100s...: the path is too long", path);
    char *end = part;
    do { // each prefix that ends where a name ends
        end += strspn(end, "/");
        end += strcspn(end, "/");
        char rest = *end;
        *end = '\0';
        if (mkdir(part, 0777) != 0 && !is_folder(part))
            return error_set(err, "%s: cannot make this folder: %s", part, strerror(errno));
        *end = rest;
    } while (*end != '\0');
    return true;
}

bool disk_rename(const char *from, const char *to, Error *err) {
    return rename(from, to) == 0 || error_set(err, "%s: cannot rename to %s: %s", from, to, strerror(errno));
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *place) {
    (void)status, (void)type, (void)place;
    pulse_beat();
    return remove(path) == 0 ? 0 : -1;
}

bool disk_remove_folder(const char *path, Error *err) {
    enum { OPEN_FOLDERS = 16 };
    if (nftw(path, remove_one, OPEN_FOLDERS, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT) return true;
    return error_set(err, "%s: cannot remove: %s", path, strerror(errno));
}
