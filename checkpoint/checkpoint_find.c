// Which checkpoints there are, and which of them are whole.
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "checkpoint/checkpoint_folder.h"

const char *const checkpoint_file_names[CHECKPOINT_FILES] = {"config.json", "model.safetensors", "exp_avg.safetensors",
                                                             "exp_avg_sq.safetensors", "training_state.json"};
const char *const checkpoint_sums_name = "SHA256SUMS";

static bool exists(const char *path) {
    struct stat status;
    return stat(path, &status) == 0;
}

// ---- the list ----

bool checkpoint_path(char *path, const char *out, int64_t step, const char *suffix, Error *err) {
    int length = snprintf(path, DISK_PATH_MAX, "%s/step-%08" PRId64 "%s", out, step, suffix);
    return length < DISK_PATH_MAX || error_set(err, "--out %.100s...: the path is too long", out);
}

// The step of a name that checkpoint_path would have made, or -1.
static int64_t step_of(const char *name, const char *suffix) {
    static const char prefix[] = "step-";
    if (strncmp(name, prefix, strlen(prefix)) != 0) return -1;
    const char *digits = name + strlen(prefix);
    size_t count = strspn(digits, "0123456789");
    if (count < 8 || count > 18 || (count > 8 && digits[0] == '0') || strcmp(digits + count, suffix) != 0) return -1;
    return strtoll(digits, NULL, 10);
}

static int compare_steps(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static bool read_names(DIR *folder, const char *out, const char *suffix, int64_t **steps, int *count, Error *err) {
    int capacity = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(folder);
        if (entry == NULL) return errno == 0 || error_set(err, "%s: cannot read this folder: %s", out, strerror(errno));
        int64_t step = step_of(entry->d_name, suffix);
        if (step < 0) continue;
        if (*count == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            int64_t *larger = realloc(*steps, (size_t)capacity * sizeof *larger);
            if (larger == NULL) return error_set(err, "%s: out of memory for the list of checkpoints", out);
            *steps = larger;
        }
        (*steps)[(*count)++] = step;
    }
}

bool checkpoint_list(const char *out, const char *suffix, int64_t **steps, int *count, Error *err) {
    *steps = NULL;
    *count = 0;
    DIR *folder = opendir(out);
    if (folder == NULL)
        return errno == ENOENT || error_set(err, "%s: cannot open this folder: %s", out, strerror(errno));
    bool ok = read_names(folder, out, suffix, steps, count, err);
    closedir(folder);
    if (!ok) {
        free(*steps);
        *steps = NULL;
        return false;
    }
    if (*count > 0) qsort(*steps, (size_t)*count, sizeof **steps, compare_steps);
    return true;
}

// ---- verification ----

bool checkpoint_is_plain_name(const char *name) {
    if (name[0] == '\0' || name[0] == '.') return false;
    for (const char *c = name; *c != '\0'; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f || *c == '/' || *c == '\\') return false;
    return true;
}

// One line "SUM  NAME" of SHA256SUMS.
static bool parse_line(char *line, const char **hex, const char **name, const char *path, int number, Error *err) {
    line[strcspn(line, "\n")] = '\0';
    if (strspn(line, "0123456789abcdef") == 64 && line[64] == ' ' && line[65] == ' ') {
        line[64] = '\0';
        *hex = line;
        *name = line + 66;
        if (checkpoint_is_plain_name(*name)) return true;
    }
    return error_set(err, "%s: line %d is not the sum of a checkpoint's file", path, number);
}

static bool check_sum(const char *folder, const char *name, const char *expected, Error *err) {
    char path[DISK_PATH_MAX], found[SHA256_HEX_CHARS];
    if (!disk_join(path, folder, name, err) || !disk_sum(path, found, err)) return false;
    return strcmp(found, expected) == 0 ||
           error_set(err, "%s: damaged (its SHA-256 is not the one saved with it)", path);
}

static bool check_sums(FILE *sums, const char *folder, const char *path, Error *err) {
    bool listed[CHECKPOINT_FILES] = {false};
    char line[64 + 2 + NAME_MAX + 2];
    for (int number = 1; fgets(line, sizeof line, sums) != NULL; number++) {
        const char *hex, *name;
        if (!parse_line(line, &hex, &name, path, number, err) || !check_sum(folder, name, hex, err)) return false;
        for (int i = 0; i < CHECKPOINT_FILES; i++)
            if (strcmp(name, checkpoint_file_names[i]) == 0) listed[i] = true;
    }
    if (ferror(sums)) return error_set(err, "%s: cannot read: %s", path, strerror(errno));
    for (int i = 0; i < CHECKPOINT_FILES; i++)
        if (!listed[i]) return error_set(err, "%s: damaged (no sum of %s)", path, checkpoint_file_names[i]);
    return true;
}

bool checkpoint_verify(const char *path, Error *err) {
    char name[DISK_PATH_MAX];
    if (!disk_join(name, path, checkpoint_sums_name, err)) return false;
    int descriptor = file_open(name, NULL, err);
    if (descriptor < 0) return false;
    FILE *sums = fdopen(descriptor, "r");
    if (sums == NULL) {
        close(descriptor);
        return error_set(err, "%s: cannot open: %s", name, strerror(errno));
    }
    bool ok = check_sums(sums, path, name, err);
    fclose(sums);
    return ok;
}

// ---- the newest whole one ----

bool checkpoint_restore_replaced(const char *out, Error *err) {
    int64_t *steps;
    int count;
    if (!checkpoint_list(out, ".replaced", &steps, &count, err)) return false;
    bool ok = true;
    for (int i = 0; ok && i < count; i++) {
        char aside[DISK_PATH_MAX], final[DISK_PATH_MAX];
        ok = checkpoint_path(aside, out, steps[i], ".replaced", err) && checkpoint_path(final, out, steps[i], "", err);
        if (ok) ok = exists(final) ? disk_remove_folder(aside, err) : disk_rename(aside, final, err);
    }
    free(steps);
    return ok;
}

static bool find_whole(const char *out, const int64_t *steps, int count, char *path, Error *err) {
    for (int i = count - 1; i >= 0; i--) {
        Error damage;
        if (!checkpoint_path(path, out, steps[i], "", err)) return false;
        if (checkpoint_verify(path, &damage)) return true;
        fprintf(stderr, "train_gpt: passing over checkpoint %s: %s\n", path, damage.message);
    }
    if (count == 0) return error_set(err, "%s: no checkpoint here to resume from", out);
    return error_set(err, "%s: none of the %d checkpoints here is whole", out, count);
}

bool checkpoint_find(const char *out, char *path, size_t size, Error *err) {
    int64_t *steps;
    int count;
    char found[DISK_PATH_MAX];
    if (!checkpoint_restore_replaced(out, err) || !checkpoint_list(out, "", &steps, &count, err)) return false;
    bool ok = find_whole(out, steps, count, found, err);
    free(steps);
    if (ok && (size_t)snprintf(path, size, "%s", found) >= size)
        return error_set(err, "%s: the path is too long", found);
    return ok;
}

bool checkpoint_newest(const char *out, char *path, size_t size) {
    int64_t *steps;
    int count;
    char found[DISK_PATH_MAX];
    Error unreadable; // then nothing is known to be there
    if (!checkpoint_list(out, "", &steps, &count, &unreadable)) return false;
    bool ok = count > 0 && checkpoint_path(found, out, steps[count - 1], "", &unreadable);
    free(steps);
    return ok && (size_t)snprintf(path, size, "%s", found) < size;
}

bool checkpoint_any(const char *out) {
    char path[DISK_PATH_MAX];
    return checkpoint_newest(out, path, sizeof path);
}
