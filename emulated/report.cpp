// One fault, told once: which kernel, block and thread, and where in the source.
#include "emulated/report.h"

#include <pthread.h>
#include <stdarg.h>
#include <unistd.h>

#include "emulated/settings.h"

extern char __executable_start[]; // the linker's: where the program was loaded

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // never given back: the first report is the only one

[[noreturn]] static void end() {
    fflush(stdout);
    if (settings()->abort) abort();
    _exit(1);
}

// binutils' addr2line knows the lines; it is there wherever a compiler is. Without it there are just none.
static void print_lines(const void *where) {
    const uintptr_t address = (uintptr_t)where - 1; // inside the call, not behind it
    const uintptr_t start = (uintptr_t)__executable_start;
    char command[200], function[256], line[512], folder[512];
    const size_t folder_length = getcwd(folder, sizeof folder) != NULL ? strlen(folder) : 0;
    snprintf(command, sizeof command, "addr2line -Cfi -e /proc/%ld/exe 0x%lx 2> /dev/null", (long)getpid(),
             (unsigned long)(start < 0x1000000 ? address : address - start)); // low: loaded where it was linked
    FILE *lines = popen(command, "r");
    if (lines == NULL) return;
    while (fgets(function, sizeof function, lines) != NULL && fgets(line, sizeof line, lines) != NULL) {
        if (strncmp(line, "??", 2) == 0) break;
        function[strcspn(function, "\n(")] = 0;
        line[strcspn(line, "\n ")] = 0;
        const char *shown = line; // from the current folder, where it lies in there
        if (folder_length > 0 && strncmp(line, folder, folder_length) == 0 && line[folder_length] == '/')
            shown += folder_length + 1;
        if (strncmp(shown, "./", 2) == 0) shown += 2;
        fprintf(stderr, "    %s, in %s\n", shown, function);
    }
    pclose(lines);
}

void report(const Thread *thread, const void *where, const char *format, ...) {
    pthread_mutex_lock(&lock);
    char what[2500];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    const Block *block = thread->block;
    fprintf(stderr, "emulated GPU: kernel %s, block (%u,%u,%u), thread (%u,%u,%u): %s\n", block->launch->name,
            block->index.x, block->index.y, block->index.z, thread->index.x, thread->index.y, thread->index.z, what);
    if (where != NULL) print_lines(where);
    end();
}

void report_host(const char *format, ...) {
    pthread_mutex_lock(&lock);
    char what[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    fprintf(stderr, "emulated GPU: %s\n", what);
    end();
}
