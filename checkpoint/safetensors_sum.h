// For checkpoints: the SHA-256 of a safetensors file, made while it was written.
#ifndef CHECKPOINT_SAFETENSORS_SUM_H
#define CHECKPOINT_SAFETENSORS_SUM_H

#include "checkpoint/safetensors.h"
#include "checkpoint/sha256.h"

// safetensors_finish, with the file's sum into hex.
bool safetensors_finish_sum(SafetensorsWriter *writer, char hex[SHA256_HEX_CHARS], Error *err);

#endif
