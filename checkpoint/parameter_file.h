// A flat vector of parameters (or of gradients or moments, which have their names and shapes) as one safetensors file.
#ifndef CHECKPOINT_PARAMETER_FILE_H
#define CHECKPOINT_PARAMETER_FILE_H

#include "model/parameters.h"

// Writes every tensor of the table under its name and in the file's shape, transposing where the table says so; syncs.
// The file's SHA-256 goes into sha256_hex (SHA256_HEX_CHARS).
bool parameter_file_write(const char *path, const ParameterTable *table, const float *flat, char *sha256_hex,
                          Error *err);

#endif
