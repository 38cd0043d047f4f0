// A run has its folder to itself, from before its first step: two that save into one would remove each other's
// checkpoints, and a folder that cannot be written must be told before hours of training and not after.
//
// The lock is on a file in the folder (flock), so the kernel releases it when its holder ends, however it ends.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/disk.h"

static bool unusable(const char *out, const char *why, Error *err) {
    return error_usage(err, "--out %s: %s; give a folder that can be written", out, why);
}

static bool cannot_write(const char *out, Error *err) {
    char why[100];
    snprintf(why, sizeof why, "cannot write in it: %s", strerror(errno));
    return unusable(out, why, err);
}

// A checkpoint is a folder that is made beside its place and renamed.
static bool try_folder(const char *out, Error *err) {
    char first[DISK_PATH_MAX], second[DISK_PATH_MAX];
    if (!disk_join(first, out, ".trial", err) || !disk_join(second, out, ".trial-renamed", err)) return false;
    if (mkdir(first, 0777) != 0 && errno != EEXIST) return cannot_write(out, err);
    bool ok = rename(first, second) == 0 || cannot_write(out, err);
    return rmdir(ok ? second : first) == 0 && ok;
}

static bool in_use(const char *out, int descriptor, Error *err) {
    char holder[64] = "";
    ssize_t bytes = pread(descriptor, holder, sizeof holder - 1, 0);
    holder[bytes > 0 ? strcspn(holder, "\n") : 0] = '\0';
    return error_usage(err, "--out %s: another run (%s) is at work here; wait for its end, or give another folder", out,
                       *holder ? holder : "unknown");
}

static void name_holder(int descriptor) {
    char host[32] = "", text[64];
    gethostname(host, sizeof host - 1);
    int length = snprintf(text, sizeof text, "process %ld on %s\n", (long)getpid(), host);
    if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, text, (size_t)length, 0) != length)
        return; // then the message of another run names nobody
}

bool checkpoint_claim(const char *out, Error *err) {
    char path[DISK_PATH_MAX];
    if (!disk_make_folder(out, err)) {
        char why[300];
        snprintf(why, sizeof why, "%.299s", err->message);
        return unusable(out, why, err);
    }
    if (!disk_join(path, out, ".lock", err)) return false;
    int descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW, 0666);
    if (descriptor < 0) return cannot_write(out, err);
    if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
        bool ok = errno != EWOULDBLOCK;
        if (ok)
            fprintf(stderr, "train_gpt: --out %s cannot be locked (%s): see that no other run writes there\n", out,
                    strerror(errno));
        else in_use(out, descriptor, err);
        close(descriptor);
        return ok && try_folder(out, err);
    }
    name_holder(descriptor); // which stays open until the process ends
    return try_folder(out, err);
}
