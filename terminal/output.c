// Standard output that is closed, full, or without a reader.
#include "terminal/output.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void output_open(void) {
    for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; descriptor++) {
        if (fcntl(descriptor, F_GETFD) >= 0) continue;
        // Gets the lowest number that is free: this one. A folder where there is no /dev: writes to it only fail.
        if (open("/dev/null", descriptor == STDIN_FILENO ? O_RDONLY : O_WRONLY) < 0) (void)!open("/", O_RDONLY);
    }
    setvbuf(stdout, NULL, _IOLBF, 0); // a killed run has said all that it had to say
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); // a file over the limit on sizes
}

// A pipe or connection without its other end, or a terminal that has been closed.
static bool reader_has_gone(void) {
    struct pollfd out = {.fd = STDOUT_FILENO};
    return poll(&out, 1, 0) > 0 && (out.revents & (POLLERR | POLLHUP)) != 0;
}

bool output_flush(void) {
    static bool failed; // there is one standard output in a process
    bool written = fflush(stdout) == 0 && !ferror(stdout);
    int cause = errno;
    if (failed) return false;
    if (!written && cause == EINTR) { // a signal came while a full pipe was waited for: what it asks comes first
        clearerr(stdout);
        return true;
    }
    if (written || reader_has_gone()) return true;
    failed = true;
    fprintf(stderr, "train_gpt: standard output: cannot write: %s; lines are lost: make room, or send it elsewhere\n",
            strerror(cause));
    return false;
}
