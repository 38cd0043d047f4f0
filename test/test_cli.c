// Bad input, given to the real program: a case is one command line, its exact message and exit code, and a time limit.
// The files it names are made once, before the first case (make_files); what @ and * stand for, test/tiny_run.h says.
#include "base/random.h"
#include "checkpoint/sha256.h"
#include "layers/device.h"
#include "test/ranks.h"
#include "test/tiny_run.h"
#include "test/token_files.h"

#include <math.h>
#include <sys/resource.h>

typedef struct BadInput {
    const char *name;
    int exit_code;
    const char *options;
    const char *message; // all of standard error, after "train_gpt: "
} BadInput;

// ---- the table ------------------------------------------------------------------------------------------------------

static const BadInput bad_inputs[] = {
    // The command line. test/test_options.c has its whole table; here: that the program says it so.
    {"unknown_option", 2, "--stpes 4", "unknown option --stpes: did you mean --steps?"},
    {"no_option", 2, "text.txt", "\"text.txt\" belongs to no option: options are written --name value; see --help"},
    {"not_a_number", 2, "--steps ten", "--steps: \"ten\" is not a whole number"},
    {"negative", 2, "--steps -4", "--steps: -4 is out of range: give 0 to 1000000000000"},
    {"overflowing", 2, "--context 9223372036854775808",
     "--context: 9223372036854775808 is out of range: give 1 to 1000000000000"},
    {"not_a_rate", 2, "--lr nan", "--lr: \"nan\" is not a number, as 0.001 or 1e-3 are"},
    {"name_elsewhere", 2, "--max_iters 4",
     "unknown option --max_iters: here it is --steps (optimizer steps of the whole run)"},
    {"devices_of_processors", 2, "--device cpu --devices 0",
     "--devices chooses GPUs, but --device cpu computes on processors here"},
    {"tuning_of_processors", 2, "--device cpu --tune @/tuned",
     "--tune chooses among a GPU's matrix products, but --device cpu computes on processors here"},
    {"resume_without_out", 2, "--resume", "--resume needs --out DIR, the folder of the checkpoints"},

    // Data.
    {"data_missing", 1, "--data @/none",
     "cannot read @/none: No such file or directory; check the path or leave it out"},
    {"data_empty", 1, "--data @/empty", "@/empty is empty; give a file with data in it"},
    {"data_folder_empty", 1, "--data @/hollow",
     "@/hollow holds no files (hidden ones are left out); give a folder that does"},
    {"data_pattern_empty", 1, "--data @/*.none", "no file matches @/*.none; check the pattern"},
    {"data_pattern_in_no_folder", 1, "--data @/none/*.bin",
     "no file matches @/none/*.bin: there is no folder @/none; check the path"},
    {"data_device", 1, "--data /dev/null", "/dev/null is neither a file nor a folder; give one of these as data"},
    {"data_too_short", 1, "--data @/short",
     "@/short: too short: the last tenth of its 41 tokens, 4, is held out for validation and must fill --context 16 "
     "plus 1; "
     "give more data, --val-data or a smaller --context"},
    {"data_shorter_than_context", 1, "--data @/text --context 100000",
     "@/text: too short: the last tenth of its 20001 tokens, 2000, is held out for validation and must fill --context "
     "100000 plus 1; give more data, --val-data or a smaller --context"},
    {"validation_missing", 1, "--val-data @/none",
     "cannot read @/none: No such file or directory; check the path or leave it out"},
    {"validation_too_short", 1, "--val-data @/tiny",
     "@/tiny: 6 tokens are too few for a window of --context 16 and its last target; give more data or a smaller "
     "--context"},
    {"validation_of_another_kind", 2, "--val-data @/shard",
     "--val-data: @/shard holds uint16 tokens, but --data, @/text, holds bytes; give data of one kind"},
    {"validation_of_another_width", 2, "--data @/shard --val-data @/shard32",
     "--val-data: @/shard32 holds uint32 tokens, but --data, @/shard, holds uint16 tokens; give data of one kind"},
    {"data_of_two_kinds", 1, "--data @/text @/shard",
     "@/shard is a shard of uint16 tokens but @/text is plain bytes (no token shard's magic at its start): give files "
     "of one "
     "kind"},
    {"shard_of_another_magic", 1, "--data @/magic",
     "@/magic: bad magic 20240521: token shards start with 20240520 or 20240801; make it again or leave it out"},
    {"shard_of_another_version", 1, "--data @/version",
     "@/version: token shard of version 2; only version 1 is known for magic 20240520: make it again"},
    {"shard_truncated", 1, "--data @/truncated",
     "@/truncated: truncated: the header says 1000 tokens, 3024 bytes in all, but the file has 3023; copy or make it "
     "again"},
    {"shard_without_header", 1, "--data @/headless",
     "@/headless: truncated: 100 bytes are less than a token shard's header of 1024; make it again"},
    {"shard_with_a_foreign_token", 1, "--data @/foreign",
     "@/foreign: token 50257 at place * is not below the vocabulary of 50257; the data are damaged or "
     "another tokenizer's (a new model can be given its --vocab-size)"},
    {"validation_with_a_foreign_token", 1, "--data @/shard --val-data @/foreign",
     "@/foreign: token 50257 at place 0 is not below the vocabulary of 50257; the data are damaged or another "
     "tokenizer's (a new model can be given its --vocab-size)"},
    {"numbers_without_header", 2, "--data @/numbers.bin",
     "@/numbers.bin looks like uint16 token numbers without a header, as nanoGPT writes them: give --data-format "
     "uint16, or --data-format bytes if it is something else"},
    {"validation_without_header", 2, "--val-data @/numbers.bin",
     "@/numbers.bin looks like uint16 token numbers without a header, as nanoGPT writes them: give --data-format "
     "uint16, or --data-format bytes if it is something else"},
    {"numbers_of_an_odd_size", 2, "--data @/odd --data-format uint16",
     "--data-format uint16: @/odd has 20001 bytes, which is no multiple of 2; copy it again, or give another format"},
    {"text_as_numbers", 2, "--data @/text --data-format uint16",
     "--data-format uint16: @/text is text; leave it out, or give another format"},
    {"shard_as_numbers", 2, "--data @/shard --data-format uint16",
     "--data-format uint16: @/shard is a shard of uint16 tokens with llm.c's header; leave --data-format out"},
    {"text_as_shard", 2, "--data @/text --data-format llmc",
     "--data-format llmc: @/text is no token shard: these start with 20240520 or 20240801; leave it out, or give "
     "another format"},
    {"numbers_beyond_the_vocabulary", 1, "--data @/numbers.bin --data-format uint16 --vocab-size 100",
     "@/numbers.bin: token * at place * is not below the vocabulary of 100; the data are damaged or another "
     "tokenizer's (a new model can be given its --vocab-size)"},
    {"bytes_of_another_vocabulary", 2, "--vocab-size 300",
     "--vocab-size 300: @/text is bytes, whose vocabulary is 257; leave it out, or give --data with token numbers"},

    // The model.
    {"heads_do_not_divide", 2, "--heads 3",
     "--heads 3 does not divide --dim 16; give a --dim that is a multiple of it"},
    {"kv_heads_do_not_divide", 2, "--heads 4 --kv-heads 3", "--kv-heads 3 does not divide --heads 4"},
    {"odd_rotary_head", 2, "--heads 4 --dim 12",
     "the width of a head is 3; rotary positions turn pairs, so it must be even (--dim / --heads)"},
    {"no_such_model", 2, "--model gpt3",
     "--model gpt3: no such model; give gpt2, gpt2-medium, gpt2-large, gpt2-xl or dN with N from 1 to 1024; a "
     "folder of weights is read by --init"},

    {"window_that_is_no_list", 2, "--window 4,x",
     "--window: \"4,x\" is not a list of whole numbers from 0 to 2147483647, such as 512 or 512,512,0"},
    {"window_with_an_empty_place", 2, "--window 4,,0",
     "--window: \"4,,0\" is not a list of whole numbers from 0 to 2147483647, such as 512 or 512,512,0"},
    {"window_below_zero", 2, "--window=-4",
     "--window: \"-4\" is not a list of whole numbers from 0 to 2147483647, such as 512 or 512,512,0"},
    {"window_beyond_numbers", 2, "--window 4,99999999999999999999",
     "--window: \"4,99999999999999999999\" is not a list of whole numbers from 0 to 2147483647, such as 512 or "
     "512,512,0"},
    {"window_of_too_many", 2, "--window 1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
     "--window: more than 32 numbers; the list is repeated over the layers"},
    {"document_end_without_a_mask", 2, "--document-end 10",
     "--document-end is for --document-mask, which is not given"},
    {"document_end_beyond_the_vocabulary", 2, "--document-mask --document-end 257",
     "--document-end 257: the vocabulary has 257 tokens"},
    {"documents_without_an_end", 2, "--document-mask --data @/shard32",
     "--document-mask: nothing says which token ends a document; give --document-end N"},

    // Ranks that cannot be served.
    {"context_shorter_than_ranks", 2, "--sp 16",
     "--context 16 is too short for --sp 16: a rank owns two chunks, give at least 32"},
    {"heads_that_ulysses_cannot_share", 2, "--attention ulysses --sp 4 --heads 2",
     "--attention ulysses cannot share --heads 2 and --kv-heads 2 among 4 ranks (--sp 4): their number must divide "
     "--sp and "
     "--heads, and divide --kv-heads or be a multiple of it; use --attention ring or gather, or another --sp"},
    {"key_heads_that_ulysses_cannot_share", 2, "--attention ulysses --sp 3 --heads 6 --kv-heads 2 --dim 12",
     "--attention ulysses cannot share --heads 6 and --kv-heads 2 among 3 ranks (--sp 3): their number must divide "
     "--sp and "
     "--heads, and divide --kv-heads or be a multiple of it; use --attention ring or gather, or another --sp"},
    {"vanilla_over_ranks", 2, "--attention vanilla --sp 2", "--attention vanilla runs on one rank: give --sp 1, not 2"},
    {"batch_over_replicas", 2, "--dp 2 --batch 3",
     "--batch 3 cannot be shared evenly by --dp 2 replicas: give a multiple of 2"},

    // Checkpoints.
    {"nothing_to_resume", 1, "--out @/hollow --resume", "@/hollow: no checkpoint here to resume from"},
    {"resume_with_another_context", 2, "--out @/run --resume --context 32",
     "--resume: @/run/step-00000002 was trained with --context 16, not 32; leave it out, or use --init for a new run"},
    {"resume_on_other_data", 2, "--out @/run --resume --data @/other",
     "--resume: @/run/step-00000002 was trained on @/text (18001 training tokens), not on @/other (18002), which has "
     "other files, sizes or another split; give the same --data and --val-data, or use --init"},
    {"resume_on_other_data_of_the_same_size", 2, "--out @/run --resume --data @/changed",
     "--resume: @/run/step-00000002 was trained on @/text (18001 training tokens), not on @/changed (18001), which has "
     "the same sizes but another content; give the same --data and --val-data, or use --init"},
    {"resume_on_another_split", 2, "--out @/run --resume --val-data @/other",
     "--resume: @/run/step-00000002 was trained on @/text (18001 training tokens), not on @/text (20001), which has "
     "other files, sizes or another split; give the same --data and --val-data, or use --init"},
    {"resume_with_another_vocabulary", 2, "--out @/run --resume --vocab-size 300",
     "--vocab-size 300: @/run/step-00000002 has 257; leave it out"},
    {"resume_with_another_architecture", 2, "--out @/run --resume --arch gpt2",
     "--arch gpt2: @/run/step-00000002 has the other architecture; leave it out"},
    {"resume_with_a_longer_warmup", 2, "--out @/run --resume --warmup 99 --steps 98",
     "--warmup 99 is longer than the run: --steps is 98"},
    {"resume_with_another_model", 2, "--out @/run --resume --layers 2",
     "--layers 2: @/run/step-00000002 has 1; leave it out"},
    {"resume_with_another_window", 2, "--out @/run --resume --window 8",
     "--window 8: layer 0 of @/run/step-00000002 has 0; leave it out"},
    {"new_run_over_an_old_one", 2, "--out @/run",
     "--out @/run: it holds the checkpoints of a run; --resume continues it, another folder starts anew"},
    {"init_missing", 1, "--init @/none", "@/none/config.json: cannot open: No such file or directory"},
    {"init_from_a_run", 2, "--init @/run",
     "--init @/run: a run's folder, not a model's; give its newest checkpoint, @/run/step-00000002"},
    {"init_from_a_file", 2, "--init @/run/step-00000002/model.safetensors",
     "--init @/run/step-00000002/model.safetensors: not a folder; give the one that holds config.json and "
     "model.safetensors"},
    {"init_in_utf16", 1, "--init @/wide_letters", "@/wide_letters/config.json: is UTF-16, not UTF-8; convert it"},
    {"init_truncated", 1, "--init @/cut",
     "@/cut/model.safetensors: tensor \"model.layers.0.mlp.down_proj.weight\": its data lies outside the file (is the "
     "file cut "
     "short?)"},
    {"init_of_another_shape", 1, "--init @/shape",
     "@/shape: tensor model.embed_tokens.weight has shape (257, 16) where the model has (257, 32)"},
    {"init_with_a_broken_configuration", 1, "--init @/json",
     "@/json/config.json: line 25, column 1: the text ends in the middle of a value (is the file cut short?)"},
    {"resume_only_damaged", 1, "--out @/damaged --resume",
     "passing over checkpoint @/damaged/step-00000002: @/damaged/step-00000002/training_state.json: damaged (its "
     "SHA-256 is "
     "not the one saved with it)\ntrain_gpt: @/damaged: none of the 1 checkpoints here is whole"},
    {"init_with_too_few_positions", 2, "--init @/gpt2/step-00000002 --context 32",
     "--context 32: @/gpt2/step-00000002 has learned 16 positions; give at most that"},
    {"init_with_a_smaller_vocabulary", 1, "--init @/run/step-00000002 --data @/wide",
     "@/wide: token 300 at place 0 is not below the vocabulary of 257; the data are damaged or another tokenizer's (a "
     "new "
     "model can be given its --vocab-size)"},
    {"bytes_into_another_vocabulary", 2, "--init @/bpe/step-00000002 --data @/text",
     "--data: @/text is bytes, which need a vocabulary of 257, but @/bpe/step-00000002 has 300; give token numbers of "
     "its tokenizer"},
    {"model_and_init", 2, "--init @/run/step-00000002 --layers 2",
     "--layers and --init exclude each other: the checkpoint says what the model is"},
    {"weights_that_are_no_numbers", 1, "--init @/nan --steps 0",
     "@/nan/model.safetensors: tensor * holds NaN or infinity: the file is damaged, or the run that wrote it had "
     "diverged; give another"},
    {"weights_that_are_no_numbers_on_four_ranks", 1, "--init @/nan --sp 4",
     "@/nan/model.safetensors: tensor * holds NaN or infinity: the file is damaged, or the run that wrote it had "
     "diverged; give another"},
    {"weights_beyond_measure", 1, "--init @/huge --steps 0 --sample-tokens 4",
     "before any step the validation loss is *: the weights are too large; give other ones"},

    // Pipes under the names of files would be waited for.
    {"configuration_that_is_a_pipe", 1, "--init @/pipe_config",
     "@/pipe_config/config.json: not a regular file but a pipe"},
    {"weights_that_are_a_pipe", 1, "--init @/pipe_weights",
     "@/pipe_weights/model.safetensors: not a regular file but a pipe"},
    {"state_that_is_a_pipe", 1, "--resume --out @/pipe_state",
     "passing over checkpoint @/pipe_state/step-00000002: @/pipe_state/step-00000002/training_state.json: not a "
     "regular file but a pipe\ntrain_gpt: @/pipe_state: none of the 1 checkpoints here is whole"},
    {"sums_that_are_a_pipe", 1, "--resume --out @/pipe_sums",
     "passing over checkpoint @/pipe_sums/step-00000002: @/pipe_sums/step-00000002/SHA256SUMS: not a regular file but "
     "a pipe\ntrain_gpt: @/pipe_sums: none of the 1 checkpoints here is whole"},
    {"log_that_is_a_pipe", 1, "--log @/pipe",
     "--log @/pipe: cannot open: nobody reads this pipe; give a file that can be written"},

    // Prompts.
    {"empty_prompt", 2, "--sample-tokens 4 --sample=", "--sample: the prompt is empty; give at least one token"},
    {"prompt_longer_than_positions", 2, "--arch gpt2 --sample-tokens 4 --sample twenty-letters-or-so",
     "--sample: the prompt has 20 tokens, but this model has 16 positions; shorten the prompt or give a "
     "larger --context"},

    {"prompt_that_is_no_tokens", 2, "--data @/shard --sample-tokens 4 --sample hello",
     "--sample 'hello': the data are not bytes, so the prompt is token numbers below 50257, separated by spaces"},

    // What cannot be written.
    {"log_in_no_folder", 1, "--log @/none/log",
     "--log @/none/log: cannot open: No such file or directory; give a file that can be written"},
    {"log_on_a_full_disk", 1, "--log /dev/full",
     "--log /dev/full: cannot write: No space left on device; training goes on without it"},
    {"out_is_a_file", 2, "--out @/text",
     "--out @/text: @/text: cannot make this folder: File exists; give a folder that can be written"},
    {"out_below_a_file", 2, "--out @/text/runs/a",
     "--out @/text/runs/a: @/text: cannot make this folder: File exists; give a folder that can be written"},
    {"out_in_proc", 2, "--out /proc/x",
     "--out /proc/x: /proc/x: cannot make this folder: No such file or directory; give a folder that can be written"},
    {"save_minutes_without_out", 2, "--save-minutes 1",
     "--save-minutes needs --out DIR, the folder of the checkpoints"},

    // Numbers that run away.
    {"loss_that_runs_away", 1, "--steps 9 --lr 1e30 --warmup 0",
     "step 2: the loss is * and the gradient's norm *; give a smaller --lr or --grad-clip; step 1 is lost: no --out "
     "was "
     "given"},
    {"loss_that_runs_away_on_four_ranks", 1, "--steps 9 --lr 1e30 --warmup 0 --sp 2 --dp 2",
     "step 2: the loss is * and the gradient's norm *; give a smaller --lr or --grad-clip; step 1 is lost: no --out "
     "was "
     "given"},

};

// ---- the files that the table names ---------------------------------------------------------------------------------

// A shard of 1,000 tokens, all of them `token`, with one word of its header changed and the last bytes left out.
static void make_bad_shard(const char *name, uint32_t token, int word, uint32_t value, size_t left_out) {
    uint32_t tokens[1000];
    for (int i = 0; i < 1000; i++) tokens[i] = token;
    size_t size;
    unsigned char *shard = make_shard(2, tokens, 1000, &size);
    put_le32(shard + 4 * word, value);
    make_file(name, shard, size - left_out);
    free(shard);
}

// A copy of a file with one byte changed, at `place` (-1: none).
static void make_changed(const char *name, const char *from, int place) {
    char path[PROGRAM_PATH];
    size_t bytes;
    char *data = read_file(in_folder(path, from), &bytes);
    if (place >= 0) data[place] ^= 1;
    make_file(name, data, bytes);
    free(data);
}

// Numbers without a header, as uniform as 16 bits below 50257 can be.
static void make_numbers(const char *name, size_t count) {
    unsigned char *bytes = malloc(2 * count + 2); // put_le32 writes four
    if (bytes == NULL) fail_msg("out of memory");
    for (size_t i = 0; i < count; i++) put_le32(bytes + 2 * i, philox4x32(1, 2, i).word[0] % 50257);
    make_file(name, bytes, 2 * count);
    free(bytes);
}

// A shard of 5,000 tokens, all 7 but for the last, which no window of a short run meets.
static void make_long_shard(const char *name, int width, uint32_t last) {
    static uint32_t tokens[5000];
    char path[PROGRAM_PATH];
    for (int i = 0; i < 5000; i++) tokens[i] = i < 4999 ? 7 : last;
    write_shard(in_folder(path, name), width, tokens, 5000);
}

static void make_data(void) {
    char path[PROGRAM_PATH];
    make_text("text", 20000);
    make_text("other", 20001);
    make_text("short", 40);
    make_text("tiny", 5);
    make_text("unreadable", 20000);
    if (chmod(in_folder(path, "unreadable"), 0) != 0) fail_msg("cannot change permissions: %s", strerror(errno));
    make_text("odd", 20001);
    make_changed("changed", "text", 777);
    make_changed("moved", "text", -1);
    make_numbers("numbers.bin", 2000);
    make_long_shard("shard32", 4, 7);
    make_long_shard("late", 2, 50257);
    make_file("empty", "", 0);
    if (mkdir(in_folder(path, "hollow"), 0755) != 0) fail_msg("cannot make %s: %s", path, strerror(errno));
    make_bad_shard("shard", 7, 0, 20240520, 0);
    make_bad_shard("magic", 7, 0, 20240521, 0);
    make_bad_shard("version", 7, 1, 2, 0);
    make_bad_shard("truncated", 7, 0, 20240520, 1);
    make_bad_shard("headless", 7, 0, 20240520, 1024 + 2000 - 100);
    make_bad_shard("foreign", 50257, 0, 20240520, 0);
    make_bad_shard("wide", 300, 0, 20240520, 0);
}

// Copies one checkpoint's files to folder/name, if need be with a damage: `file` loses its last `left_out` bytes, and
// `from` in it becomes `to`, of the same length.
static void copy_checkpoint(const char *name, const char *file, size_t left_out, const char *from, const char *to) {
    static const char *const files[] = {"config.json",         "model.safetensors",
                                        "exp_avg.safetensors", "exp_avg_sq.safetensors",
                                        "training_state.json", "SHA256SUMS"};
    char path[PROGRAM_PATH], source[PROGRAM_PATH], target[PROGRAM_PATH];
    in_folder(target, name);
    if (mkdir(target, 0755) != 0) fail_msg("cannot make %s: %s", target, strerror(errno));
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        size_t bytes;
        char *data = read_file(path_join(path, in_folder(source, "run/step-00000002"), files[i]), &bytes);
        if (strcmp(files[i], file) == 0) {
            char *place = from == NULL ? NULL : memmem(data, bytes, from, strlen(from));
            if (from != NULL && place == NULL) fail_msg("%s has no %s", files[i], from);
            if (place != NULL) memcpy(place, to, strlen(to));
            bytes -= left_out;
        }
        write_file(path_join(path, target, files[i]), data, bytes);
        free(data);
    }
}

// A copy whose weights are all multiplied by this factor.
static void scale_weights(const char *name, float factor) {
    char path[PROGRAM_PATH], folder_name[PROGRAM_PATH];
    size_t bytes;
    uint64_t header;
    copy_checkpoint(name, "", 0, NULL, NULL);
    path_join(path, in_folder(folder_name, name), "model.safetensors");
    char *data = read_file(path, &bytes);
    memcpy(&header, data, sizeof header);
    for (size_t at = sizeof header + header; at < bytes; at += sizeof(float)) {
        float value;
        memcpy(&value, data + at, sizeof value);
        value *= factor;
        memcpy(data + at, &value, sizeof value);
    }
    write_file(path, data, bytes);
    free(data);
}

static void make_pipe(const char *name) {
    char path[PROGRAM_PATH];
    if (mkfifo(in_folder(path, name), 0644) != 0) fail_msg("cannot make a pipe %s: %s", path, strerror(errno));
}

// A copy, of a model folder or within a run's, in which a pipe has taken a file's place.
static void put_pipe(const char *name, const char *step, const char *file) {
    char inner[100], path[PROGRAM_PATH], file_name[200];
    snprintf(inner, sizeof inner, "%s%s%s", name, step ? "/" : "", step ? step : "");
    if (step != NULL && mkdir(in_folder(path, name), 0755) != 0) fail_msg("cannot make %s", path);
    copy_checkpoint(inner, "", 0, NULL, NULL);
    snprintf(file_name, sizeof file_name, "%s/%s", inner, file);
    if (unlink(in_folder(path, file_name)) != 0) fail_msg("cannot remove %s: %s", path, strerror(errno));
    make_pipe(file_name);
}

// ---- the cases ------------------------------------------------------------------------------------------------------

static void bad_input(void **state) {
    const BadInput *bad = *state;
    free(check_run(bad->exit_code, bad->options, bad->message));
}

static void no_gpu(void **state) {
    (void)state;
    const char *why;
    char message[300];
    if (device_count(DEVICE_CUDA, &why) > 0) skip();
    snprintf(message, sizeof message, "--device cuda: %s; use --device cpu", why);
    free(check_run(2, "--device cuda", message));
    // A plan for GPUs elsewhere can be made all the same, of bf16 storage.
    char *plan = check_run(0, "--device cuda --plan", "");
    assert_non_null(strstr(plan, "weights in fp32, my slice"));
    assert_non_null(strstr(plan, "there is none here"));
    assert_non_null(strstr(plan, "scratch of the layer at work"));
    free(plan);
    free(check_run(0, "--device cuda --plan --devices 1000", "")); // how many GPUs there are elsewhere, nobody knows
    free(check_run(2, "--device cuda --plan --dim 12",
                   "--device cuda takes a width, an MLP width and heads that are multiples of 8: this model has 12, 16 "
                   "and 6; change --dim, --ffn or --heads, or use --device cpu"));
}

// Nothing is unreadable to root, who therefore lets somebody else run the program.
static void data_unreadable(void **state) {
    (void)state;
    Command command = {0};
    char text[4 * PROGRAM_PATH];
    if (geteuid() == 0) {
        add_words(&command, "setpriv", "--reuid=65534", "--clear-groups", NULL);
        const char *const words[] = {"setpriv", "--reuid=65534", "--clear-groups", train_gpt_path(), "--help", NULL};
        ProgramResult help = run_program(words, 20);
        int exit_code = help.exit_code;
        free_result(&help);
        if (exit_code != 0) skip(); // there is no setpriv, or the program lies where only root may go
    }
    build_command(&command, text, sizeof text, "--data @/unreadable");
    char *output = try_command(&command, 1, "cannot read @/unreadable: Permission denied; check its permissions");
    assert_non_null(output);
    free(output);
}

// ---- data -----------------------------------------------------------------------------------------------------------

static void says(const char *output, const char *text) {
    if (strstr(output, text) == NULL) fail_msg("\"%s\" is not in: %s", text, output);
}

// A token number that only a window far away would meet is found before the first step: on one rank, and where two
// share the work. Where there is no step, none is looked for.
static void foreign_tokens_are_found_first(void **state) {
    (void)state;
    static const char *const options[] = {"--data @/late", "--data @/late --sp 2", "--data @/shard --val-data @/late"};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        char *output = check_run(1, options[i],
                                 "@/late: token 50257 at place 4999 is not below the vocabulary of 50257; the data are "
                                 "damaged or another tokenizer's (a new model can be given its --vocab-size)");
        assert_null(strstr(output, "step 1/"));
        free(output);
    }
    free(check_run(0, "--data @/late --vocab-size 50258", ""));
    free(check_run(0, "--data @/late --steps 0", ""));
}

static void numbers_are_read_where_they_are_named(void **state) {
    (void)state;
    char *output = check_run(0, "--data @/numbers.bin --data-format uint16", "");
    says(output, "numbers.bin, 1800 training tokens (uint16 tokens, taken for numbers below 50257)");
    says(output, "vocabulary 50257");
    free(output);
    output = check_run(0, "--data @/numbers.bin --data-format uint16 --vocab-size 50304", "");
    says(output, "numbers.bin, 1800 training tokens\n");
    says(output, "vocabulary 50304");
    free(output);
    output = check_run(0, "--data @/numbers.bin --data-format bytes", "");
    says(output, "vocabulary 257");
    free(output);
}

// Without --data a plan knows only the vocabulary that it is told; a run would train on bytes, and is refused.
static void a_vocabulary_without_data(void **state) {
    (void)state;
    char init[PROGRAM_PATH], message[2 * PROGRAM_PATH];
    in_folder(init, "bpe/step-00000002");
    Command plan = {0}, new_plan = {0}, run = {0};
    add_words(&plan, train_gpt_path(), "--plan", "--device", "cpu", "--init", init, NULL);
    free(try_command(&plan, 0, ""));
    add_words(&new_plan, train_gpt_path(), "--plan", "--device", "cpu", "--model", "gpt2", "--vocab-size", "50257",
              NULL);
    char *output = try_command(&new_plan, 0, "");
    assert_non_null(output);
    free(output);
    add_words(&run, train_gpt_path(), "--device", "cpu", "--sample-tokens", "0", "--init", init, NULL);
    snprintf(message, sizeof message,
             "%s has a vocabulary of 300, and the bundled corpus is bytes, which need 257; "
             "give --data with token numbers of its tokenizer",
             init);
    output = try_command(&run, 2, message);
    assert_non_null(output);
    free(output);
}

// With data of its kind, a model of token numbers goes on and speaks in numbers.
static void token_numbers_for_a_prompt(void **state) {
    (void)state;
    Command command = {0};
    char init[PROGRAM_PATH], data[PROGRAM_PATH];
    add_words(&command, train_gpt_path(), "--device", "cpu", "--init", in_folder(init, "bpe/step-00000002"), "--data",
              in_folder(data, "shard"), "--context", "16", "--sp", "1", "--threads", "1", "--steps", "0", "--sample",
              "1 2 299", "--sample-tokens", "4", NULL);
    char *output = try_command(&command, 0, "");
    assert_non_null(output);
    says(output, "\n1 2 299 ");
    free(output);
}

static void the_header_names_the_data(void **state) {
    (void)state;
    char *output = check_run(0, "--data @/text @/other @/short --val-data @/tiny @/text", "");
    says(output, "/text and 2 more, 40044 training tokens; validation on ");
    says(output, "/tiny and 1 more, 20007 tokens\n");
    free(output);
}

// Makes a checkpoint's state that of earlier versions, which kept no fingerprint of the data's content.
static void forget_content(const char *checkpoint) {
    char path[2][PROGRAM_PATH], state[PROGRAM_PATH], sums[PROGRAM_PATH], hex[SHA256_HEX_CHARS];
    path_join(state, in_folder(path[0], checkpoint), "training_state.json");
    path_join(sums, in_folder(path[1], checkpoint), "SHA256SUMS");
    char *text = read_file(state, NULL), *list = read_file(sums, NULL);
    char *begin = strstr(text, "  \"data_content\""), *end = strstr(text, "  \"validation_loss\"");
    assert_true(begin != NULL && end > begin);
    memmove(begin, end, strlen(end) + 1);
    write_file(state, text, strlen(text));

    Sha256 sum;
    sha256_begin(&sum);
    sha256_add(&sum, text, strlen(text));
    sha256_end(&sum, hex);
    char *line = strstr(list, "  training_state.json");
    assert_true(line != NULL && line - list >= 64);
    memcpy(line - 64, hex, 64);
    write_file(sums, list, strlen(list));
    free(text);
    free(list);
}

// The same content under another name is the same data. A checkpoint from before the content was kept knows sizes only.
static void resume_on_moved_data(void **state) {
    (void)state;
    free(check_run(0, "--out @/moving", ""));
    free(check_run(0, "--out @/moving --resume --steps 3 --data @/moved", ""));

    forget_content("moving/step-00000003");
    free(check_run(2, "--out @/moving --resume --steps 4 --data @/other",
                   "--resume: @/moving/step-00000003 was trained on other data (files, their sizes or --val-data "
                   "differ); give the same, or use --init"));
    free(check_run(0, "--out @/moving --resume --steps 4 --data @/changed", ""));
}

// Two processes, each with data of its own of the same size.
static void ranks_on_other_data(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    Command command = {0};
    char data[2][PROGRAM_PATH], expected[4 * PROGRAM_PATH];
    add_mpirun(&command, 1);
    for (int rank = 0; rank < 2; rank++) {
        if (rank == 1) add_words(&command, ":", "-np", "1", NULL);
        add_words(&command, train_gpt_path(), "--engine", "mpi", "--device", "cpu", "--sp", "2", "--context", "16",
                  "--layers", "1", "--dim", "16", "--heads", "2", "--threads", "1", "--steps", "2", "--sample-tokens",
                  "0", "--data", in_folder(data[rank], rank == 0 ? "text" : "changed"), NULL);
    }
    snprintf(
        expected, sizeof expected,
        "*train_gpt: rank 1 has training data of 20001 tokens and fingerprint * (%s), "
        "rank 0 has training data of 20001 tokens and fingerprint * (%s); start every process with the same options "
        "and data\n*",
        data[1], data[0]);
    ProgramResult result = run_program(command.argv, 30);
    assert_false(result.timed_out);
    assert_int_not_equal(result.exit_code, 0);
    assert_null(strstr(result.out, "step 1/"));
    if (!matches(expected, result.err)) fail_msg("expected %s received %s", expected, result.err);
    free_result(&result);
}

// torchrun starts ranks for GPUs; on processors it is told what to use instead.
static void torchrun_on_processors(void **state) {
    (void)state;
    set_place("0", "4", "127.0.0.1", "29500");
    free(check_run(2, "--sp 4",
                   "torchrun (RANK and WORLD_SIZE) starts ranks for GPUs alone: on processors use mpirun -np 4, or "
                   "leave the launcher out: ranks are then threads of one process"));
    free(check_run(2, "--sp 4 --engine local",
                   "--engine local: each of the 4 processes started would train alone; leave out torchrun (and RANK, "
                   "WORLD_SIZE), or use --engine nccl on GPUs"));
    set_place(NULL, NULL, NULL, NULL);
    free(check_run(2, "--sp 2 --engine nccl",
                   "--engine nccl serves GPUs alone: on processors use --engine mpi or --engine local"));
}

// ---- cases that leave something behind ------------------------------------------------------------------------------

static void memory_is_refused_with_the_plan(void **state) {
    (void)state;
    char *output =
        check_run(1, "--layers 1000 --dim 65536 --heads 512",
                  "out of memory: this needs * TiB (plan above; 0 tokens of sample included) and * is free; lower "
                  "--context, --micro-batch, --sample-tokens or the model's sizes");
    assert_non_null(strstr(output, "all ranks of this process together"));
    assert_null(strstr(output, "step 1/"));
    free(output);
}

static void runaway_loss_keeps_the_last_checkpoint(void **state) {
    (void)state;
    free(check_run(
        1, "--steps 3 --lr 1e30 --warmup 0 --out @/runaway --save-every 1",
        "step 2: the loss is * and the gradient's norm *; give a smaller --lr or --grad-clip; step 1 is saved in "
        "@/runaway"));
    free(check_run(1, "--steps 3 --lr 1e30 --warmup 0 --out @/unsaved",
                   "step 2: the loss is * and the gradient's norm *; give a smaller --lr or --grad-clip; there is no "
                   "checkpoint yet in @/unsaved"));
    assert_int_equal(count_entries("runaway"), 1);
}

// A limit on the size of files stands for a full disk: the kernel refuses the same writes.
static void full_disk_keeps_the_last_checkpoint(void **state) {
    (void)state;
    free(check_run(0, "--steps 2 --out @/full --keep 1", ""));
    struct rlimit usual, tight = {.rlim_cur = 8192};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &usual), 0);
    tight.rlim_max = usual.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    char *output = try_run(1, "--resume --steps 3 --out @/full --keep 1",
                           "@/full/step-00000003.partial/model.safetensors: cannot write: File too large; the newest "
                           "checkpoint in @/full is of step 2");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &usual), 0);
    assert_non_null(output);
    free(output);
    check_one_good_checkpoint("full");
}

static void version(void **state) {
    (void)state;
    char *output = check_run(0, "--version", "");
    static const char *const starts[] = {"train_gpt  ", "compiler   ", "libraries  "};
    const char *line = output;
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        assert_memory_equal(line, starts[i], strlen(starts[i]));
        assert_true(strcspn(line, "\n") > strlen(starts[i]));
        line += strcspn(line, "\n") + 1;
    }
    assert_string_equal(line, "");
    free(output);
}

// Few positions: the prompt that nobody gave leaves half of them, and the sample says that there were no more.
static void sample_of_few_positions(void **state) {
    (void)state;
    char *output = check_run(0, "--arch gpt2 --steps 0 --sample-tokens 256", "");
    assert_non_null(strstr(output, "sample: 8 tokens of 256 after a prompt of 8: the model has 16 positions\n"));
    free(output);
}

// What is printed where --init is given without --context, and no training.
static char *run_init(const char *name, const char *sp, int exit_code, const char *message) {
    char init[PROGRAM_PATH], text[PROGRAM_PATH];
    Command command = {0};
    add_words(&command, train_gpt_path(), "--init", in_folder(init, name), "--val-data", in_folder(text, "text"), NULL);
    add_words(&command, "--sp", sp, "--steps", "0", "--eval-windows", "1", "--sample-tokens", "0", NULL);
    add_words(&command, "--device", "cpu", "--threads", "1", NULL);
    char *output = try_command(&command, exit_code, message);
    assert_non_null(output);
    return output;
}

static void check_context_of(const char *name, const char *header) {
    char *output = run_init(name, "1", 0, "");
    if (strstr(output, header) == NULL) fail_msg("%s is not in: %s", header, output);
    free(output);
}

static void init_has_a_context_of_its_own(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    const char *const own = "  \"max_position_embeddings\": 16", *const longer = "\"max_position_embeddings\": 8192";
    check_context_of("run/step-00000002", " 1 sequence of 16 tokens = ");
    check_context_of("gpt2/step-00000002", " 1 sequence of 16 tokens = ");
    copy_checkpoint("longer", "config.json", 0, own, longer); // trained on fewer tokens than the model takes
    check_context_of("longer", " 1 sequence of 16 tokens (of 8192 that the model takes; see --context) = ");
    // Without the state of a training: as published models come.
    if (remove(in_folder(path, "longer/training_state.json")) != 0) fail_msg("cannot remove %s", path);
    check_context_of("longer", " 1 sequence of 2048 tokens (of 8192 that the model takes; see --context) = ");
    copy_checkpoint("published", "config.json", 0, own, own);
    if (remove(in_folder(path, "published/training_state.json")) != 0) fail_msg("cannot remove %s", path);
    check_context_of("published", " 1 sequence of 16 tokens = ");
    free(run_init("published", "16", 2,
                  "--init @/published: its 16 tokens are too few for --sp 16: a rank owns two chunks; lower --sp"));
}

static void expect_file(const char *name, const char *text) {
    char path[PROGRAM_PATH];
    size_t bytes;
    char *found = read_file(in_folder(path, name), &bytes);
    assert_string_equal(found, text);
    free(found);
}

// A tokenizer and a list of end tokens, from the folder of --init to its checkpoint and by --resume to the next.
static void foreign_files_are_kept(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    copy_checkpoint("chat", "config.json", 0, "\"eos_token_id\": null", "\"eos_token_id\":[1,2]");
    make_file("chat/tokenizer.json", "{ }\n", 4);
    free(check_run(0, "--init @/chat --out @/chat_run --sp 2", ""));
    expect_file("chat_run/step-00000002/tokenizer.json", "{ }\n");
    free(check_run(0, "--resume --out @/chat_run --steps 3 --keep 1 --sp 2", ""));
    expect_file("chat_run/step-00000003/tokenizer.json", "{ }\n");
    char *config = read_file(in_folder(path, "chat_run/step-00000003/config.json"), NULL);
    assert_non_null(strstr(config, "\"eos_token_id\": [1, 2]"));
    free(config);
    check_one_good_checkpoint("chat_run");
}

static int make_files(void **state) {
    make_folder(state);
    make_data();
    char path[PROGRAM_PATH];
    free(check_run(0, "--out @/run --save-every 1", ""));
    free(check_run(0, "--out @/gpt2 --arch gpt2", ""));
    free(check_run(0, "--out @/bpe --data @/shard --vocab-size 300", ""));
    if (mkdir(in_folder(path, "damaged"), 0755) != 0) fail_msg("cannot make %s: %s", path, strerror(errno));
    copy_checkpoint("damaged/step-00000002", "training_state.json", 0, "\"step\": 2", "\"step\": 7");
    copy_checkpoint("cut", "model.safetensors", 100, NULL, NULL);
    copy_checkpoint("shape", "config.json", 0, "\"hidden_size\": 16", "\"hidden_size\": 32");
    copy_checkpoint("json", "config.json", 2, NULL, NULL);
    copy_checkpoint("wide_letters", "config.json", 0, "{\n", "\xFF\xFE");
    scale_weights("nan", NAN);
    scale_weights("huge", 1e18f);
    make_pipe("pipe");
    put_pipe("pipe_config", NULL, "config.json");
    put_pipe("pipe_weights", NULL, "model.safetensors");
    put_pipe("pipe_state", "step-00000002", "training_state.json");
    put_pipe("pipe_sums", "step-00000002", "SHA256SUMS");
    return 0;
}

int main(void) {
    static const struct CMUnitTest by_hand[] = {
        cmocka_unit_test(no_gpu),
        cmocka_unit_test(data_unreadable),
        cmocka_unit_test(foreign_tokens_are_found_first),
        cmocka_unit_test(numbers_are_read_where_they_are_named),
        cmocka_unit_test(a_vocabulary_without_data),
        cmocka_unit_test(token_numbers_for_a_prompt),
        cmocka_unit_test(the_header_names_the_data),
        cmocka_unit_test(resume_on_moved_data),
        cmocka_unit_test(ranks_on_other_data),
        cmocka_unit_test(torchrun_on_processors),
        cmocka_unit_test(memory_is_refused_with_the_plan),
        cmocka_unit_test(runaway_loss_keeps_the_last_checkpoint),
        cmocka_unit_test(full_disk_keeps_the_last_checkpoint),
        cmocka_unit_test(version),
        cmocka_unit_test(init_has_a_context_of_its_own),
        cmocka_unit_test(sample_of_few_positions),
        cmocka_unit_test(foreign_files_are_kept),
    };
    enum { IN_TABLE = sizeof bad_inputs / sizeof *bad_inputs, BY_HAND = sizeof by_hand / sizeof *by_hand };
    struct CMUnitTest tests[IN_TABLE + BY_HAND];
    for (int i = 0; i < IN_TABLE; i++)
        tests[i] = (struct CMUnitTest){bad_inputs[i].name, bad_input, NULL, NULL, (void *)(uintptr_t)&bad_inputs[i]};
    memcpy(tests + IN_TABLE, by_hand, sizeof by_hand);
    return cmocka_run_group_tests(tests, make_files, remove_folder);
}
