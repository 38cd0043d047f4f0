// Reads the files of a model's folder that are not ours, and writes them into checkpoints.
#include "checkpoint/kept_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "checkpoint/checkpoint_folder.h"

static const int64_t MOST_OF_FILE = INT64_C(64) << 20, MOST_OF_ALL = INT64_C(256) << 20;

// ---- which ----

static bool ends_with(const char *name, const char *end) {
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcasecmp(name + length - tail, end) == 0;
}

static bool is_kept(const char *name) {
    static const char *const ends[] = {// Weights, of this library's formats and others', and the lists of their parts.
                                       ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml",
                                       ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite", ".pkl",
                                       // Data.
                                       ".npy", ".npz", ".parquet", ".arrow", ".zip", ".gz", ".tar",
                                       // Another trainer's state; an adapter.
                                       "trainer_state.json", "adapter_config.json"};
    if (!checkpoint_is_plain_name(name) || strcmp(name, checkpoint_sums_name) == 0) return false;
    for (int i = 0; i < CHECKPOINT_FILES; i++)
        if (strcmp(name, checkpoint_file_names[i]) == 0) return false;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (ends_with(name, ends[i])) return false;
    return true;
}

// ---- reading ----

static bool read_all(int descriptor, char *bytes, size_t size, const char *path, Error *err) {
    for (size_t done = 0; done < size;) {
        ssize_t some = read(descriptor, bytes + done, size - done);
        if (some < 0 && errno == EINTR) continue;
        if (some < 0) return error_set(err, "%s: cannot read: %s", path, strerror(errno));
        if (some == 0) return error_set(err, "%s: became shorter while it was read", path);
        done += (size_t)some;
    }
    return true;
}

static bool append(KeptFiles *kept, const char *name, char *bytes, size_t size) {
    KeptFile *larger = realloc(kept->file, ((size_t)kept->count + 1) * sizeof *larger);
    if (larger == NULL) return false;
    kept->file = larger;
    char *copy = strdup(name);
    if (copy == NULL) return false;
    kept->file[kept->count++] = (KeptFile){copy, bytes, size};
    return true;
}

static bool read_file(KeptFiles *kept, const char *path, const char *name, int64_t *total, Error *err) {
    int64_t size;
    int descriptor = file_open(path, &size, err);
    if (descriptor < 0) return false;
    char *bytes = NULL;
    bool ok = true, fits = size <= MOST_OF_FILE && size <= MOST_OF_ALL - *total;
    if (!fits) {
        fprintf(stderr,
                "train_gpt: %s: %lld bytes; checkpoints will be without it, since they take along at most %lld MiB a "
                "file and %lld in all\n",
                path, (long long)size, (long long)(MOST_OF_FILE >> 20), (long long)(MOST_OF_ALL >> 20));
    } else {
        bytes = malloc((size_t)size + 1);
        ok = (bytes != NULL || error_set(err, "%s: out of memory for %lld bytes", path, (long long)size)) &&
             read_all(descriptor, bytes, (size_t)size, path, err) &&
             (append(kept, name, bytes, (size_t)size) || error_set(err, "%s: out of memory", path));
        *total += size;
    }
    close(descriptor);
    if (!ok) free(bytes);
    return ok;
}

static bool read_files(KeptFiles *kept, DIR *directory, const char *folder, Error *err) {
    int64_t total = 0;
    for (;;) {
        char path[DISK_PATH_MAX];
        struct stat status;
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (entry == NULL)
            return errno == 0 || error_set(err, "%s: cannot read this folder: %s", folder, strerror(errno));
        if (!is_kept(entry->d_name)) continue;
        if (!disk_join(path, folder, entry->d_name, err)) return false;
        if (stat(path, &status) != 0 || !S_ISREG(status.st_mode)) continue; // folders, links to nothing, ...
        if (!read_file(kept, path, entry->d_name, &total, err)) return false;
    }
}

static int compare_names(const void *a, const void *b) {
    return strcmp(((const KeptFile *)a)->name, ((const KeptFile *)b)->name);
}

KeptFiles *kept_files_read(const char *folder, Error *err) {
    char config[DISK_PATH_MAX];
    KeptFiles *kept = calloc(1, sizeof *kept);
    bool ok = kept != NULL || error_set(err, "%s: out of memory", folder);
    ok = ok && disk_join(config, folder, checkpoint_file_names[0], err);
    if (ok) kept->config = json_read_file(config, err);
    ok = ok && kept->config != NULL;
    DIR *directory = ok ? opendir(folder) : NULL;
    if (ok && directory == NULL) ok = error_set(err, "%s: cannot open this folder: %s", folder, strerror(errno));
    ok = ok && read_files(kept, directory, folder, err);
    if (directory != NULL) closedir(directory);
    if (ok && kept->count > 0) qsort(kept->file, (size_t)kept->count, sizeof *kept->file, compare_names);
    if (ok) return kept;
    kept_files_free(kept);
    return NULL;
}

void kept_files_free(KeptFiles *kept) {
    if (kept == NULL) return;
    for (int i = 0; i < kept->count; i++) {
        free(kept->file[i].name);
        free(kept->file[i].bytes);
    }
    free(kept->file);
    json_free(kept->config);
    free(kept);
}
