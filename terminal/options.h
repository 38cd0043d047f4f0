// The command line: one table of options gives parsing, checking, `--help` and the full command that a run stands for.
#ifndef TERMINAL_OPTIONS_H
#define TERMINAL_OPTIONS_H

#include <stdint.h>
#include <stdio.h>

#include "attention/attention.h"
#include "base/error.h"
#include "comm/comm.h"
#include "dataloader/tokens.h"
#include "layers/device.h"
#include "model/model.h"

enum { OPTIONS_MAX_PATHS = 4096, OPTIONS_MAX = 80, OPTIONS_MAX_WINDOWS = 32 };

// After the warm-up: half a cosine, nothing, or (warmup-stable-decay) nothing and then straight down.
typedef enum Schedule { SCHEDULE_COSINE, SCHEDULE_CONSTANT, SCHEDULE_WSD } Schedule;

// A value of 0 (or NULL) in a size of the model means "not given": filled by --model, the checkpoint or the default.
typedef struct Options {
    // model
    Architecture arch;      // of a new model: ARCH_GPT2 or ARCH_LLAMA
    const char *model;      // gpt2 | gpt2-medium | gpt2-large | gpt2-xl | dN
    int64_t layers, heads, kv_heads, dim, ffn;
    int64_t context;        // T
    int64_t vocab_size;     // of a new model
    double rope_theta;
    const char *mixer;      // names of token mixers, a pattern over the layers; NULL: attention
    const char *window;     // "512,512,0": parsed into windows
    int64_t windows[OPTIONS_MAX_WINDOWS], window_count; // by layer, repeated; none: as the checkpoint has it, or no limit
    bool untied;            // separate classifier
    bool qkv_bias;
    // data
    const char **data;      // --data takes every following argument up to the next option; may be repeated
    int data_count;
    const char **val_data;
    int val_data_count;
    TokenFormat data_format;
    const char *task;        // "recall:256": windows made by the program instead of data; NULL: none
    bool document_mask;      // attention stops at the ends of documents
    int64_t document_end;    // the token there; -1: as the data or the model say
    // training
    int64_t batch;          // sequences per step, all ranks together
    int64_t micro_batch;    // sequences per rank group and pass; 0: batch / dp, made smaller above 4,096 tokens per rank
    Recompute recompute;
    int64_t steps;
    const char *context_schedule; // "64:100,1024:300": lengths of sequences, and how many steps each; then context
    double lr, min_lr;      // min_lr: final rate as a fraction of lr
    Schedule schedule;      // of the learning rate
    int64_t warmup;         // steps
    double decay_fraction;  // wsd: the last part of the run
    double weight_decay, beta1, beta2, adam_epsilon, grad_clip;
    int64_t seed;
    // ranks
    int64_t sp, dp;
    Exchange attention;
    int64_t ulysses;        // U of ulysses-ring, 0: chosen
    CommEngine engine;
    DeviceKind device;
    const char *devices;    // "0,1,2,3": the GPU of each rank; NULL: one after the other
    const char *tune;       // file of algorithms of matrix products; NULL: the library's own choice
    int64_t threads;        // processors for all ranks of this process; 0: all
    double timeout;         // seconds
    // evaluation
    int64_t eval_every;     // steps; 0: only at the end
    int64_t eval_windows;   // at most
    int64_t eval_tokens;    // the first of the validation data, all of them; 0: eval_windows
    const char *eval_by_position; // file: mean loss at each position of the context, of the last evaluation
    // checkpoints and output
    const char *out;        // folder; NULL: nothing is saved
    int64_t save_every, keep;
    double save_minutes;    // 0: only by save_every, or at the end
    bool resume;
    const char *init;       // folder
    const char *log;        // file
    const char *dump;       // folder: logits and gradients of the first step, for comparison with other programs
    const char *dump_mixing; // file: what each layer's token mixer does with which tokens, at the end
    // generation
    const char *sample;     // prompt
    int64_t sample_tokens, top_k;
    double temperature;
    // instead of training
    bool plan, version, help;

    bool given[OPTIONS_MAX]; // by row of the table: for options_given
} Options;

// Fills defaults, then the command line. On failure the message names the option, the value and, for an unknown option,
// the nearest known one; exit code 2. Checks each value by itself (number, range, name) and what can be checked among
// options alone; what needs the model or the data is checked where they are known.
bool options_parse(Options *options, int argc, const char *const *argv, Error *err);
// What options say about each other. options_parse has checked it, but where a run is resumed: then it is to be called
// once the options that were left out are those of its checkpoint.
bool options_check(const Options *options, Error *err);
void options_free(Options *options);
bool options_given(const Options *options, const char *name); // the user wrote it; `name` without its dashes
void options_help(FILE *out);                                 // grouped, complete
// "./train_gpt --arch llama ..." with every value that counts, as a shell reads it back.
void options_print_command(const Options *options, FILE *out);

#endif
