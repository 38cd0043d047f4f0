// A model folder as the Hugging Face libraries write it: model.safetensors, or an index and the shards that it names.
//
// The index maps each tensor's name to its file ("weight_map"). File names from it are taken only if they stay in the
// folder.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checkpoint/disk.h"
#include "checkpoint/safetensors_part.h"

static bool exists(const char *path) {
    struct stat status;
    return stat(path, &status) == 0;
}

static bool is_plain_name(const char *name) {
    size_t length = strlen(name), suffix = strlen(".safetensors");
    return length > suffix && name[0] != '.' && strchr(name, '/') == NULL && strchr(name, '\\') == NULL &&
           strcmp(name + length - suffix, ".safetensors") == 0;
}

static int compare_strings(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// The distinct file names of the map into files[], sorted; their number, or -1.
static int distinct_files(const Json *map, const char **files, const char *path, Error *err) {
    for (int i = 0; i < map->count; i++) {
        if (map->item[i].type != JSON_STRING || !is_plain_name(map->item[i].string)) {
            error_set(err, "%s: tensor \"%s\" is not mapped to the name of a .safetensors file in this folder", path,
                      json_shown(map->key[i]).text);
            return -1;
        }
        files[i] = map->item[i].string;
    }
    qsort(files, (size_t)map->count, sizeof *files, compare_strings);
    int distinct = 0;
    for (int i = 0; i < map->count; i++)
        if (distinct == 0 || strcmp(files[distinct - 1], files[i]) != 0) files[distinct++] = files[i];
    return distinct;
}

static bool open_shards(Safetensors *file, const Json *map, const char *folder, const char *index, Error *err) {
    const char **files = malloc(((size_t)map->count + 1) * sizeof *files);
    if (files == NULL) return error_set(err, "%s: out of memory", index);
    int count = distinct_files(map, files, index, err);
    bool ok = count >= 0;
    for (int i = 0; ok && i < count; i++) {
        char path[DISK_PATH_MAX];
        ok = disk_join(path, folder, files[i], err) && safetensors_add_part(file, path, err);
    }
    free(files);
    if (!ok || !safetensors_sort(file, folder, err)) return false;
    for (int i = 0; i < map->count; i++)
        if (safetensors_find(file, map->key[i]) == NULL)
            return error_set(err, "%s: tensor \"%s\" is not in %s, where the index has it", index,
                             json_shown(map->key[i]).text, json_shown(map->item[i].string).text);
    return true;
}

static bool open_index(Safetensors *file, const char *folder, const char *index, Error *err) {
    JsonDocument *document = json_read_file(index, err);
    if (document == NULL) return false;
    const Json *map = json_get(json_root(document), "weight_map");
    bool ok = map != NULL && map->type == JSON_OBJECT && map->count > 0;
    if (ok) ok = open_shards(file, map, folder, index, err);
    else error_set(err, "%s: no \"weight_map\" from tensors to files", index);
    json_free(document);
    return ok;
}

Safetensors *safetensors_open_folder(const char *folder, Error *err) {
    char single[DISK_PATH_MAX], index[DISK_PATH_MAX];
    if (!disk_join(single, folder, "model.safetensors", err) ||
        !disk_join(index, folder, "model.safetensors.index.json", err))
        return NULL;
    if (exists(single)) return safetensors_open(single, err);
    if (!exists(folder)) {
        error_set(err, "%s: cannot open this model folder: %s", folder, strerror(errno));
        return NULL;
    }
    if (!exists(index)) {
        error_set(err, "%s: no model.safetensors here and no model.safetensors.index.json; other formats are not read",
                  folder);
        return NULL;
    }
    Safetensors *file = calloc(1, sizeof *file);
    if (file == NULL) {
        error_set(err, "%s: out of memory", folder);
        return NULL;
    }
    if (open_index(file, folder, index, err)) return file;
    safetensors_close(file);
    return NULL;
}
