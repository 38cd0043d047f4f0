// The keys of config.json: what becomes of each when such a file is read, and whose it is when one is written.
#ifndef MODEL_CONFIG_KEYS_H
#define MODEL_CONFIG_KEYS_H

#include "base/json.h"
#include "model/config.h"

typedef struct ConfigReader {
    const char *path; // of the file
    const Json *root;
    bool mistral; // of llama's architecture: it may have windows
    bool ours;    // a class of our own: its windows stand under our own keys
    ModelConfig *config;
    Error *err;
} ConfigReader;

typedef struct ConfigKey ConfigKey;
struct ConfigKey {
    const char *key;
    unsigned architectures; // bit a: architecture a has it
    bool (*take)(const ConfigReader *, const ConfigKey *, const Json *value);
    size_t member; // offset in ModelConfig, for keys whose value is taken over
};

// The key's row of the table for this architecture, or NULL.
const ConfigKey *config_key(Architecture architecture, const char *key);
// Its value can be understood only after those of all others.
bool config_key_is_rope(const ConfigKey *key);
// The program sets its value itself wherever it writes the file; others' values are kept as they were found.
bool config_key_is_ours(const ConfigKey *key);

#endif
