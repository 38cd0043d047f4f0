// What safetensors.c and safetensors_folder.c share: a set of tensors gathered from one or several mapped files.
#ifndef CHECKPOINT_SAFETENSORS_PART_H
#define CHECKPOINT_SAFETENSORS_PART_H

#include "base/json.h"
#include "checkpoint/safetensors.h"

typedef struct SafetensorsPart {
    char *path;
    void *map; // NULL: not mapped
    size_t bytes;
    size_t data; // where the header ends
    JsonDocument *header;
} SafetensorsPart;

struct Safetensors {
    SafetensorsPart *part;
    int parts;
    Tensor *tensor;
    int count;
};

bool safetensors_add_part(Safetensors *file, const char *path, Error *err);
bool safetensors_sort(Safetensors *file, const char *path, Error *err); // by name, once all parts are there

#endif
