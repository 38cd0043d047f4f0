// Checkpoints of two small models, of known values, saved in a folder `out` of each test's own.
#ifndef TEST_CHECKPOINT_CASES_H
#define TEST_CHECKPOINT_CASES_H

#include "checkpoint/checkpoint.h"
#include "test/folder.h"

enum { CHECKPOINT_TOKENIZER_BYTES = 5000 };

extern char out[PROGRAM_PATH]; // in the test's folder
extern ModelConfig gpt2, llama;
extern ParameterTable gpt2_table, llama_table;
extern KeptFiles *kept; // every checkpoint takes one tokenizer.json along
extern char tokenizer[CHECKPOINT_TOKENIZER_BYTES];

int make_models(void **state); // and what is kept of their folder: fixtures of a group
int free_models(void **state);
int make_checkpoints(void **state); // an empty folder, for remove_folder to end: the fixture of a test

// The number that stands in a checkpoint at this place of a vector (a CheckpointVector), and its state.
float value_of(int64_t step, int which, int64_t index);
TrainingState state_of(int64_t step);

const char *in_out(const char *name); // out/name, in one of four rooms in turn

// Saves that checkpoint; false: a failure that leaves nothing behind.
bool save_step(const ModelConfig *config, const ParameterTable *table, int64_t step, int keep, Error *err);
void save_good(const ModelConfig *config, const ParameterTable *table, int64_t step, int keep);

// The checkpoint in `path`, or elements begin to end-1 of one of its vectors, is what was saved of that step.
void expect_range(const char *path, const ParameterTable *table, int64_t step, int which, int64_t begin, int64_t end);
void expect_checkpoint(const char *path, const ParameterTable *table, int64_t step);

bool find_newest(char path[PROGRAM_PATH], char said[8000], Error *err); // checkpoint_find, and what it says beside
void expect_newest(int64_t step);

#endif
