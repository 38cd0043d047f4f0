// Writing a checkpoint so that no moment of it can be the wrong one to be killed at.
//
// Everything is written into step-N.partial; files, then the folder, are synced before one rename gives it its name,
// and the rename is synced before older checkpoints go. A checkpoint that goes is first renamed to .partial again, so
// that a folder half removed never bears a final name. Where step N was saved before, the two change places in one
// call; on file systems that cannot do that the old one steps aside as step-N.replaced, and comes back if the new one
// never arrives.
#include "checkpoint/checkpoint.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/parameter_file.h"

struct CheckpointWriter {
    const ParameterTable *table;
    char out[DISK_PATH_MAX], partial[DISK_PATH_MAX], final[DISK_PATH_MAX];
    int64_t step;
    char hex[CHECKPOINT_FILES][SHA256_HEX_CHARS]; // empty: not written
    const KeptFiles *kept;                        // NULL: none
    char (*kept_hex)[SHA256_HEX_CHARS];
};

enum { CONFIG, VECTORS, STATE = VECTORS + 3 }; // places in checkpoint_file_names

static bool exists(const char *path) {
    struct stat status;
    return stat(path, &status) == 0;
}

// ---- beginning ----

// Removes what a killed run left half written or half removed.
static bool remove_partial(const char *out, Error *err) {
    int64_t *steps;
    int count;
    char path[DISK_PATH_MAX];
    if (!checkpoint_list(out, ".partial", &steps, &count, err)) return false;
    bool ok = true;
    for (int i = 0; ok && i < count; i++)
        ok = checkpoint_path(path, out, steps[i], ".partial", err) && disk_remove_folder(path, err);
    free(steps);
    return ok;
}

static bool write_config(CheckpointWriter *writer, const ModelConfig *config, Error *err) {
    char path[DISK_PATH_MAX];
    const Json *source = writer->kept == NULL ? NULL : json_root(writer->kept->config);
    return disk_join(path, writer->partial, checkpoint_file_names[CONFIG], err) &&
           config_write(config, source, path, err) && disk_sync(path, err) && disk_sum(path, writer->hex[CONFIG], err);
}

static bool write_kept_file(const CheckpointWriter *writer, int index, Error *err) {
    const KeptFile *kept = &writer->kept->file[index];
    char path[DISK_PATH_MAX];
    DiskFile file;
    if (!disk_join(path, writer->partial, kept->name, err) || !disk_create(&file, path, err)) return false;
    if (!disk_write(&file, kept->bytes, kept->size, err)) {
        disk_discard(&file);
        return false;
    }
    bool ok = disk_close(&file, err);
    memcpy(writer->kept_hex[index], file.hex, SHA256_HEX_CHARS);
    return ok;
}

static bool write_kept(CheckpointWriter *writer, Error *err) {
    int count = writer->kept == NULL ? 0 : writer->kept->count;
    writer->kept_hex = calloc((size_t)count + 1, sizeof *writer->kept_hex);
    if (writer->kept_hex == NULL) return error_set(err, "out of memory for saving a checkpoint");
    for (int i = 0; i < count; i++)
        if (!write_kept_file(writer, i, err)) return false;
    return true;
}

CheckpointWriter *checkpoint_begin(const char *out, int64_t step, const ModelConfig *config,
                                   const ParameterTable *table, const KeptFiles *kept, Error *err) {
    CheckpointWriter *writer = calloc(1, sizeof *writer);
    if (writer == NULL) {
        error_set(err, "out of memory for saving a checkpoint");
        return NULL;
    }
    writer->table = table;
    writer->step = step;
    writer->kept = kept;
    bool ok = snprintf(writer->out, sizeof writer->out, "%s", out) < DISK_PATH_MAX ||
              error_set(err, "--out %.100s...: the path is too long", out);
    ok = ok && disk_make_folder(out, err) && remove_partial(out, err) && checkpoint_restore_replaced(out, err) &&
         checkpoint_path(writer->partial, out, step, ".partial", err) &&
         checkpoint_path(writer->final, out, step, "", err) && disk_make_folder(writer->partial, err) &&
         write_config(writer, config, err) && write_kept(writer, err);
    if (ok) return writer;
    checkpoint_abandon(writer);
    return NULL;
}

void checkpoint_abandon(CheckpointWriter *writer) {
    if (writer == NULL) return;
    Error ignored; // what had to be said has been said
    if (writer->partial[0] != '\0') disk_remove_folder(writer->partial, &ignored);
    free(writer->kept_hex);
    free(writer);
}

bool checkpoint_write(CheckpointWriter *writer, CheckpointVector which, const float *flat, Error *err) {
    char path[DISK_PATH_MAX];
    int place = VECTORS + (int)which;
    if (disk_join(path, writer->partial, checkpoint_file_names[place], err) &&
        parameter_file_write(path, writer->table, flat, writer->hex[place], err))
        return true;
    Error ignored; // at once, since a program that fails here may well end without another word to the writer
    disk_remove_folder(writer->partial, &ignored);
    return false;
}

// ---- committing ----

static bool write_sums(const CheckpointWriter *writer, Error *err) {
    char path[DISK_PATH_MAX];
    DiskFile file;
    if (!disk_join(path, writer->partial, checkpoint_sums_name, err) || !disk_create(&file, path, err)) return false;
    bool ok = true;
    for (int i = 0; ok && i < CHECKPOINT_FILES; i++)
        ok = disk_print(&file, err, "%s  %s\n", writer->hex[i], checkpoint_file_names[i]);
    for (int i = 0; ok && writer->kept != NULL && i < writer->kept->count; i++)
        ok = disk_print(&file, err, "%s  %s\n", writer->kept_hex[i], writer->kept->file[i].name);
    if (ok) return disk_close(&file, err);
    disk_discard(&file);
    return false;
}

// Puts the synced partial folder in the place of an older checkpoint of the same step.
static bool replace(const CheckpointWriter *writer, Error *err) {
    if (renameat2(AT_FDCWD, writer->partial, AT_FDCWD, writer->final, RENAME_EXCHANGE) == 0)
        return disk_sync(writer->out, err) && disk_remove_folder(writer->partial, err);
    char aside[DISK_PATH_MAX];
    return checkpoint_path(aside, writer->out, writer->step, ".replaced", err) &&
           disk_rename(writer->final, aside, err) && disk_rename(writer->partial, writer->final, err) &&
           disk_sync(writer->out, err) && disk_remove_folder(aside, err);
}

static bool put_in_place(const CheckpointWriter *writer, Error *err) {
    if (!disk_sync(writer->partial, err)) return false;
    if (exists(writer->final)) return replace(writer, err);
    return disk_rename(writer->partial, writer->final, err) && disk_sync(writer->out, err);
}

static bool remove_older(const CheckpointWriter *writer, int keep, Error *err) {
    int64_t *steps;
    int count;
    if (!checkpoint_list(writer->out, "", &steps, &count, err)) return false;
    bool ok = true;
    for (int i = 0; ok && i < count - keep; i++) {
        char path[DISK_PATH_MAX], partial[DISK_PATH_MAX];
        if (steps[i] == writer->step) continue; // never the one just saved, even if the folder holds later steps
        ok = checkpoint_path(path, writer->out, steps[i], "", err) &&
             checkpoint_path(partial, writer->out, steps[i], ".partial", err) && disk_rename(path, partial, err) &&
             disk_remove_folder(partial, err);
    }
    free(steps);
    return ok;
}

static bool is_complete(const CheckpointWriter *writer, Error *err) {
    for (int i = 0; i < CHECKPOINT_FILES; i++)
        if (writer->hex[i][0] == '\0')
            return error_set(err, "%s: %s was not written", writer->partial, checkpoint_file_names[i]);
    return true;
}

bool checkpoint_commit(CheckpointWriter *writer, const TrainingState *state, int keep, Error *err) {
    char path[DISK_PATH_MAX];
    bool ok = disk_join(path, writer->partial, checkpoint_file_names[STATE], err) &&
              checkpoint_write_state(path, state, writer->hex[STATE], err) && is_complete(writer, err) &&
              write_sums(writer, err) && put_in_place(writer, err);
    if (ok && keep > 0) ok = remove_older(writer, keep, err);
    checkpoint_abandon(writer); // after success the partial folder is no more
    return ok;
}
