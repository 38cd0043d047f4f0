// An option that is not known: ours that was meant, by its name in other programs or by likeness; or why there is none.
#include <ctype.h>
#include <string.h>

#include "terminal/options_table.h"

// clang-format off
const ForeignNames foreign_names[] = {
    // Of the model.
    {"model_type architecture", "arch", NULL},
    {"depth config_name model_size", "model", NULL},
    {"n_layer n_layers num_layers num_hidden_layers", "layers", NULL},
    {"n_head n_heads num_heads num_attention_heads", "heads", NULL},
    {"n_kv_head n_kv_heads num_kv_heads num_key_value_heads num_query_groups", "kv-heads", NULL},
    {"n_embd d_model hidden_size embed_dim model_dim width", "dim", NULL},
    {"n_inner d_ff ffn_dim ffn_hidden_size intermediate_size hidden_dim", "ffn", NULL},
    {"-t block_size seq_len seq_length sequence_len sequence_length max_seq_len max_seq_length max_length n_ctx ctx_size "
     "context_length n_positions max_position_embeddings model_max_length", "context", NULL},
    {"rotary_base rope_base rope_freq_base", "rope-theta", NULL},
    {"tie_word_embeddings untie_embeddings_and_output_weights", "untied", NULL},
    {"add_qkv_bias attention_bias", "qkv-bias", NULL},
    {"sliding_window window_size attention_window window_pattern", "window", NULL},
    {"bias", NULL, "gpt2 has biases, llama has none (--arch, --qkv-bias)"},
    {"dropout attention_dropout attn_dropout hidden_dropout resid_pdrop", NULL, "there is no dropout here"},
    {"flash_attn use_flash_attn use_flash_attention attn_implementation", NULL,
     "attention never stores its T x T matrix, but for --attention vanilla"},
    {"lora lora_r lora_rank use_peft load_in_4bit load_in_8bit", NULL, "all weights are trained, and none is quantized"},
    // Of the data.
    {"-i dataset dataset_name dataset_dir data_dir data_path train_data train_file train_files input input_bin", "data",
     NULL},
    {"-j val_file validation_file eval_file eval_dataset input_val_bin", "val-data", NULL},
    {"tokenizer tokenizer_name tokenizer_path", NULL, "there is no tokenizer: text is taken as bytes, tokens come in "
     "token shards (--data)"},
    {"num_workers dataloader_num_workers", NULL, "data are mapped into memory, and nobody has to load them"},
    {"reset_attention_mask intra_document_mask doc_mask eod_mask attention_document_mask", "document-mask", NULL},
    {"eod_token eot_token eos_token_id", "document-end", NULL},
    // Of training.
    {"batch_size global_batch_size train_batch_size", "batch", NULL},
    {"-d total_batch_size", NULL, "a step has --batch sequences of --context tokens each"},
    {"-b micro_batch_size device_batch_size per_device_train_batch_size", "micro-batch", NULL},
    {"gradient_accumulation_steps grad_accum_steps", NULL, "it follows from --batch, --micro-batch and --dp"},
    {"-x max_iters max_steps train_iters num_iterations num_steps train_steps iterations", "steps", NULL},
    {"num_train_epochs num_epochs epochs epoch max_epochs", NULL, "give the length in steps (--steps), each of --batch "
     "sequences of --context tokens"},
    {"-l learning_rate max_lr", "lr", NULL},
    {"-q min_lr learning_rate_decay_frac final_lr_frac min_lr_ratio", "min-lr", NULL},
    {"-k lr_scheduler lr_scheduler_type lr_decay_style decay_lr", "schedule", NULL},
    {"lr_decay_iters lr_decay_steps", NULL, "the learning rate falls until the last step (--steps, --schedule)"},
    {"-u warmup_iters warmup_steps warmup_ratio lr_warmup_iters lr_warmup_steps", "warmup", NULL},
    {"warmdown_ratio cooldown_frac", "decay-fraction", NULL},
    {"-c wd", "weight-decay", NULL},
    {"adam_beta1", "beta1", NULL},
    {"adam_beta2", "beta2", NULL},
    {"adam_eps epsilon eps", "adam-epsilon", NULL},
    {"clip_grad max_grad_norm gradient_clip gradient_clip_val clip_grad_norm", "grad-clip", NULL},
    {"optim optimizer", NULL, "the optimizer is AdamW"},
    {"random_seed", "seed", NULL},
    {"dtype torch_dtype precision mixed_precision bf16 fp16 fp32 tf32", NULL,
     "there is nothing to choose: CPUs compute in fp32, GPUs store bf16 and keep fp32 master weights"},
    {"max_autotune autotune cudnn_benchmark", "tune", NULL},
    {"compile torch_compile", NULL, "the program is compiled already"},
    {"-r gradient_checkpointing activation_checkpointing", "recompute", NULL},
    {"do_train do_eval eval_only", NULL, "--steps 0 evaluates and does not train"},
    // Of the ranks.
    {"ranks cp context_parallel_size sequence_parallel_size sequence_parallel", "sp", NULL},
    {"data_parallel_size num_replicas", "dp", NULL},
    {"tp tensor_parallel_size tensor_model_parallel_size pp pipeline_parallel_size pipeline_model_parallel_size", NULL,
     "each rank holds the whole model; sequences are sharded by --sp"},
    {"-z zero_stage fsdp deepspeed use_distributed_optimizer", NULL,
     "AdamW's moments are always sharded over all ranks (ZeRO stage 1)"},
    {"-pn -pr -pg world_size rank local_rank nnodes node_rank nproc_per_node num_processes master_addr master_port",
     NULL, "ranks are --sp x --dp threads, or processes as mpirun, srun or torchrun start them (--engine)"},
    {"-pi backend ddp_backend distributed_backend", "engine", NULL},
    {"gpus gpu_ids num_gpus", "devices", NULL},
    {"cpu gpu cuda use_cpu use_cuda no_cuda", "device", NULL},
    {"num_threads n_threads", "threads", NULL},
    {"ddp_timeout distributed_timeout_minutes", "timeout", NULL},
    // Of what comes out.
    {"-v eval_interval eval_steps val_loss_every", "eval-every", NULL},
    {"-m eval_iters val_max_steps", "eval-windows", NULL},
    {"-o out_dir output_dir output_log_dir save save_dir checkpoint_dir", "out", NULL},
    {"-n save_steps save_interval checkpoint_every", "save-every", NULL},
    {"-nk save_total_limit", "keep", NULL},
    {"-y resume_from_checkpoint", "resume", NULL},
    {"-e init_from load pretrained model_name model_name_or_path checkpoint", "init", NULL},
    {"log_file logging_dir", "log", NULL},
    {"log_interval logging_steps log_every", NULL, "every step is printed"},
    {"wandb wandb_log wandb_project wandb_run_name report_to tensorboard", NULL,
     "--log FILE has a JSON object a step, which scripts/plot_loss draws"},
    {"start prompt", "sample", NULL},
    {"-s sample_every num_samples", NULL, "one sample is made, at the end (--sample, --sample-tokens)"},
    {"-g max_new_tokens max_tokens n_predict", "sample-tokens", NULL},
    {"temp", "temperature", NULL},
    {"top_p", NULL, "samples are drawn with --temperature and --top-k"},
    {"dry_run", "plan", NULL},
    {"config config_file", NULL, "there is no file of options: they stand on the command line"},
};
// clang-format on
const int foreign_names_rows = sizeof foreign_names / sizeof *foreign_names;

static const ForeignNames *find_foreign(const char *name) {
    size_t length = strlen(name);
    for (const ForeignNames *row = foreign_names; row < foreign_names + foreign_names_rows; row++) {
        for (const char *word = row->theirs; *word != '\0'; word += strspn(word, " ")) {
            size_t letters = strcspn(word, " ");
            if (letters == length && memcmp(word, name, length) == 0) return row;
            word += letters;
        }
    }
    return NULL;
}

// ---- likeness -------------------------------------------------------------------------------------------------------

enum { LONGEST_NAME = 40 };

static int smaller(int a, int b) { return a < b ? a : b; }

// Letters to insert, remove, replace or swap with their neighbour (Damerau 1964, in its restricted form). A word cut
// short or written on ("batches") counts as one mistake.
static int edit_distance(const char *a, const char *b) {
    int rows = (int)strlen(a), columns = (int)strlen(b);
    int d[LONGEST_NAME + 1][LONGEST_NAME + 1];
    if (rows > LONGEST_NAME || columns > LONGEST_NAME) return LONGEST_NAME;
    for (int i = 0; i <= rows; i++) {
        for (int j = 0; j <= columns; j++) {
            if (i == 0 || j == 0) {
                d[i][j] = i + j;
                continue;
            }
            bool differ = a[i - 1] != b[j - 1];
            d[i][j] = smaller(d[i - 1][j - 1] + differ, 1 + smaller(d[i - 1][j], d[i][j - 1]));
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped) d[i][j] = smaller(d[i][j], d[i - 2][j - 2] + 1);
        }
    }
    int common = smaller(rows, columns);
    if (common >= 3 && memcmp(a, b, (size_t)common) == 0) return smaller(d[rows][columns], 1);
    return d[rows][columns];
}

// What is further away is no slip of the fingers: one mistake, two in a long name, none in one of two letters.
static const char *nearest_option(const char *name) {
    const char *nearest = NULL;
    int letters = (int)strlen(name), least = letters < 3 ? 1 : letters < 8 ? 2 : 3;
    for (const Option *row = options_table; row < options_table + options_table_rows; row++) {
        int distance = edit_distance(name, row->name);
        if (distance < least) least = distance, nearest = row->name;
    }
    return nearest;
}

// ---- what is said ---------------------------------------------------------------------------------------------------

// In small letters and with `line` for each dash and underscore: "Block-Size" is block_size.
static Shown spelled(const char *name, char line) {
    Shown s = shown_text(name);
    for (char *c = s.text; *c != '\0'; c++) *c = *c == '-' || *c == '_' ? line : (char)tolower((unsigned char)*c);
    return s;
}

bool option_unknown(const char *argument, Error *err) {
    Shown option = shown_text(argument);
    option.text[strcspn(option.text, "=")] = '\0';
    const char *name = option.text + strspn(option.text, "-");
    // Short names have one dash, and are in the table with it.
    const ForeignNames *foreign = find_foreign(name - option.text == 1 ? option.text : spelled(name, '_').text);
    if (foreign == NULL) foreign = find_foreign(spelled(name, '_').text);
    if (foreign != NULL && foreign->ours == NULL)
        return error_usage(err, "unknown option %s: %s", option.text, foreign->why_none);
    if (foreign != NULL) {
        const char *help = option_find(foreign->ours, strlen(foreign->ours))->help;
        return error_usage(err, "unknown option %s: here it is --%s (%.*s)", option.text, foreign->ours,
                           (int)strcspn(help, ";"), help);
    }
    const char *nearest = nearest_option(spelled(name, '-').text);
    if (nearest == NULL) return error_usage(err, "unknown option %s: see --help", option.text);
    return error_usage(err, "unknown option %s: did you mean --%s?", option.text, nearest);
}
