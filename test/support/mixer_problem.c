// Bodies of test/mixer_problem.h.
#include "test/mixer_problem.h"

#include "base/arena.h"
#include "mixer/attention.h"
#include "test/bf16.h"

static void *checked(void *memory) {
    if (memory == NULL) fail_msg("out of memory");
    return memory;
}

typedef struct Job { // what the ranks share
    const MixerProblem *problem;
    MixerAnswer *answer;
    int64_t forward_bytes[64], backward_bytes[64];
} Job;

static float storage_value(const MixerProblem *p, float x) { return p->device == DEVICE_CPU ? x : round_to_bf16(x); }

static void random_values(const MixerProblem *p, uint64_t stream, double std, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        out[i] = storage_value(p, (float)(std * random_normal(p->seed, stream, (uint64_t)i)));
}

static void fill_weights(const MixerProblem *p, MixerAnswer *a) {
    double std = p->weight_std > 0 ? p->weight_std : 1 / sqrt((double)p->C);
    for (int i = 0; i < a->table.count; i++) {
        const Parameter *parameter = &a->table.parameter[i];
        float *values = a->weights + parameter->offset;
        if (parameter->dimensions == 2) random_values(p, 1000 + (uint64_t)i, std, values, parameter->size);
        else
            for (int64_t k = 0; k < parameter->size; k++) values[k] = parameter->init_mean;
        if (parameter->dimensions == 1 && p->fill != NULL) p->fill(parameter, values);
        for (int64_t k = 0; k < parameter->size; k++) values[k] = storage_value(p, values[k]);
    }
}

static MixerAnswer prepare(const MixerProblem *p) {
    MixerAnswer a = {0};
    Error err;
    a.config = (ModelConfig){.architecture = ARCH_LLAMA,
                             .vocab_size = 64,
                             .layers = 1,
                             .heads = p->heads,
                             .kv_heads = p->kv_heads > 0 ? p->kv_heads : p->heads,
                             .head_dim = p->C / p->heads,
                             .dim = p->C,
                             .ffn_dim = p->C,
                             .max_positions = p->max_positions > 0 ? p->max_positions : p->T,
                             .norm_epsilon = 1e-5,
                             .init_std = 0.02,
                             .tied_embeddings = true,
                             .rope_theta = 10000,
                             .bos_token = -1,
                             .eos_token = -1};
    if (!mixers_read(&a.config, p->mixer, "mixer", &err) || !parameters_list(&a.table, &a.config, 64, &err))
        fail_msg("%s", err.message);
    int64_t n = p->B * p->T * p->C;
    a.x = allocate(4 * n, sizeof(float));
    a.d_out = a.x + n, a.out = a.x + 2 * n, a.d_x = a.x + 3 * n;
    a.weights = allocate(2 * a.table.total, sizeof(float));
    a.gradients = a.weights + a.table.total;
    random_values(p, 1, 1, a.x, n);
    random_values(p, 2, 1, a.d_out, n);
    fill_weights(p, &a);
    if (p->document > 0) a.first = allocate(p->B * p->T, sizeof(int32_t));
    for (int64_t b = 0; a.first != NULL && b < p->B; b++)
        for (int64_t t = 0; t < p->T; t++) {
            int64_t begin = (t + p->document - b % p->document) / p->document * p->document - p->document + b % p->document;
            a.first[b * p->T + t] = (int32_t)(begin > 0 ? begin : 0);
        }
    return a;
}

// My rows of a whole tensor, or (`back`) mine into it. (B, T, C) and (B, Tl, C).
static void move_rows(const MixerProblem *p, const Shard *shard, float *whole, float *mine, bool back) {
    for (int64_t b = 0, row = 0; b < p->B; b++)
        for (int i = 0; i < shard->count; i++)
            for (int64_t t = 0; t < shard->chunk[i].length; t++, row++) {
                float *at_whole = whole + (b * p->T + shard->chunk[i].start + t) * p->C, *at_mine = mine + row * p->C;
                memcpy(back ? at_whole : at_mine, back ? at_mine : at_whole, (size_t)p->C * sizeof(float));
            }
}

// Floats of the host to storage, or back.
static void to_device(Device *d, void *storage, const float *host, int64_t count) {
    Error err;
    float *room = d->allocate(d, (size_t)(count + 1) * sizeof(float), &err);
    d->upload(d, checked(room), host, (size_t)count * sizeof(float));
    d->to_storage(d, storage, room, count);
    d->synchronize(d);
    d->release(d, room, (size_t)(count + 1) * sizeof(float));
}

static void to_host(Device *d, float *host, const void *storage, int64_t count) {
    Error err;
    float *room = d->allocate(d, (size_t)(count + 1) * sizeof(float), &err);
    d->to_float(d, checked(room), storage, count);
    d->download(d, host, room, (size_t)count * sizeof(float));
    d->release(d, room, (size_t)(count + 1) * sizeof(float));
}

typedef struct RankMemory {
    Model model;
    Attention attention;
    Pass pass;
    Arena arena;
    size_t scratch;
} RankMemory;

// Twice, as the program does: to add up, and over the memory.
static void lay_out(RankMemory *r, const MixerSize *size, const AttentionConfig *attention) {
    const MixerAnswer *a = (const MixerAnswer *)(const void *)size->config; // config is its first member
    const Mixer *mixer = layer_kind(size->config, 0).tokens;
    r->model.weights = arena_take(&r->arena, "weights", (size_t)a->table.total * size->element_bytes);
    r->model.gradients = arena_take(&r->arena, "gradients", (size_t)a->table.total * sizeof(float));
    pass_lay_out(&r->pass, *size, 64, &r->arena, PASS_TRAINING, RECOMPUTE_NONE);
    if (size->documents)
        r->pass.first_visible =
            arena_take(&r->arena, "tokens", (size_t)(size->sequences * size->context) * sizeof(int32_t));
    if (mixer->attends) attention_lay_out(&r->attention, attention, size->rank, &r->arena);
}

// Cosines and sines of `count` positions, and the positions themselves, which repeat for each of `sequences`.
static void upload_positions(Device *d, Pass *pass, const ModelConfig *config, const int32_t *positions, int64_t count,
                             int64_t sequences) {
    int64_t angles = count * (config->head_dim / 2);
    float *tables = allocate(2 * angles + 1, sizeof *tables);
    rope_tables(config, positions, count, tables, tables + angles);
    for (int64_t b = 0; b < sequences; b++)
        d->upload(d, pass->positions + b * count, positions, (size_t)count * sizeof *positions);
    d->upload(d, pass->cos_table, tables, (size_t)angles * sizeof *tables);
    d->upload(d, pass->sin_table, tables + angles, (size_t)angles * sizeof *tables);
    d->synchronize(d);
    free(tables);
}

// Positions of my tokens, and what they see.
static void upload_inputs(RankMemory *r, Device *d, const MixerAnswer *a, int64_t B) {
    int64_t tokens = r->model.shard.tokens, row = 0;
    int32_t *positions = allocate(tokens, sizeof *positions);
    for (int i = 0; i < r->model.shard.count; i++)
        for (int64_t t = 0; t < r->model.shard.chunk[i].length; t++)
            positions[row++] = (int32_t)(r->model.shard.chunk[i].start + t);
    upload_positions(d, &r->pass, &a->config, positions, tokens, B);
    if (a->first != NULL)
        d->upload(d, r->pass.first_visible, a->first, (size_t)(B * r->model.context) * sizeof(int32_t));
    d->synchronize(d);
    free(positions);
}

static int64_t bytes_sent(const RankMemory *r, bool attends) {
    return attends ? attention_bytes_sent(&r->attention) : comm_bytes_sent(r->model.sequence);
}

static void run_on_rank(Comm *world, void *argument) {
    Job *job = argument;
    const MixerProblem *p = job->problem;
    MixerAnswer *a = job->answer;
    Device device, *d = &device;
    Error err;
    int ranks = comm_size(world), rank = comm_rank(world);
    const char *why;
    int gpus = device_count(p->device, &why); // ranks may share one
    if (!device_open(d, p->device, gpus > 0 ? rank % gpus : 0, 2, &err)) comm_fail(world, &err);
    const Mixer *mixer = layer_kind(&a->config, 0).tokens;
    Shard shard = shard_of(p->T, ranks, rank);
    MixerSize size = {.config = &a->config,
                      .rows = p->B * shard.tokens,
                      .sequences = p->B,
                      .element_bytes = d->element_bytes,
                      .context = p->T,
                      .ranks = ranks,
                      .rank = rank,
                      .documents = a->first != NULL,
                      .kernels = d->mixers};
    MixerUse use = {.size = size, .device = p->device, .option = p->mixer};
    if (mixer->check != NULL && !mixer->check(&use, &err)) comm_fail(world, &err);
    AttentionConfig attention = {.context = p->T,
                                 .ranks = ranks,
                                 .exchange = p->exchange,
                                 .shape = {p->B, a->config.heads, a->config.kv_heads, a->config.head_dim,
                                           (float)(1 / sqrt((double)a->config.head_dim))},
                                 .element_bytes = d->element_bytes,
                                 .kernels = d->attention,
                                 .documents = a->first != NULL};
    attention.window_count = mixer->attends;
    if (mixer->attends) attention.windows[0] = attention_sees(&a->config, 0, p->T);
    if (mixer->attends && !attention_resolve(&attention, &err)) comm_fail(world, &err);

    RankMemory planned = {.attention = {.config = attention}}, r = {0};
    lay_out(&planned, &size, &attention);
    pass_free(&planned.pass);
    r.arena.capacity = planned.arena.used;
    r.arena.base = d->allocate(d, planned.arena.used, &err);
    lay_out(&r, &size, &attention);
    size_t scratch = device_scratch_bytes(p->device, d->threads, size.rows, p->C, 8 * p->C), more = 0;
    if (mixer->scratch_bytes != NULL) more = mixer->scratch_bytes(&size, d->threads);
    if (mixer->attends) more = attention_scratch_bytes(&attention, rank, d->attention, d->threads);
    if (!device_lend_scratch(d, scratch > more ? scratch : more, &err)) comm_fail(world, &err);
    r.model.config = &a->config;
    r.model.table = &a->table;
    r.model.device = d;
    r.model.attention = &r.attention;
    r.model.shard = shard;
    r.model.context = p->T;
    r.model.ranks = ranks;
    r.model.rank = rank;
    r.model.requests = allocate((int64_t)MODEL_REQUESTS(ranks), sizeof(CommRequest));
    Comm *on_device = comm_on_device(world, d, false);
    r.model.sequence = comm_split(on_device, 0, rank);
    if (mixer->attends) attention_connect(&r.attention, on_device);

    int64_t n = size.rows * p->C;
    float *mine = allocate(n, sizeof *mine);
    int32_t *least = NULL;
    to_device(d, r.model.weights, a->weights, a->table.total);
    upload_inputs(&r, d, a, p->B);
    if (a->first != NULL) {
        least = allocate(p->T, sizeof *least);
        memcpy(least, a->first, (size_t)p->T * sizeof *least);
        for (int64_t b = 1; b < p->B; b++) visibility_least(least, a->first + b * p->T, p->T);
        r.pass.least_visible = least;
    }
    Mixing m = {.model = &r.model,
                .pass = &r.pass,
                .choice = layer_kind(&a->config, 0).choice,
                .tensor = a->table.layer[0].tokens,
                .kept = r.pass.layer[0].tokens,
                .room = r.pass.tokens_room[0]};
    move_rows(p, &shard, a->x, mine, false);
    to_device(d, r.pass.normed, mine, n);
    int64_t sent = bytes_sent(&r, mixer->attends);
    mixer->mix(&m);
    mixer->output(&m);
    to_host(d, mine, r.pass.branch, n);
    job->forward_bytes[rank] = bytes_sent(&r, mixer->attends) - sent;
    move_rows(p, &shard, a->out, mine, true);
    move_rows(p, &shard, a->d_out, mine, false);
    to_device(d, r.pass.d_residual, mine, n);
    sent = bytes_sent(&r, mixer->attends);
    mixer->backward(&m);
    to_host(d, mine, r.pass.d_normed, n);
    job->backward_bytes[rank] = bytes_sent(&r, mixer->attends) - sent;
    move_rows(p, &shard, a->d_x, mine, true);
    float *gradients = allocate(a->table.total, sizeof *gradients);
    d->download(d, gradients, r.model.gradients, (size_t)a->table.total * sizeof *gradients);
    for (int turn = 0; turn < ranks; turn++) { // summed in the order of ranks
        comm_barrier(world);
        for (int64_t i = 0; turn == rank && i < a->table.total; i++) a->gradients[i] += gradients[i];
    }
    comm_barrier(world);
    d->synchronize(d);
    if (mixer->attends) attention_disconnect(&r.attention);
    comm_free(r.model.sequence);
    comm_free(on_device);
    free(r.model.requests);
    free(gradients);
    free(mine);
    free(least);
    pass_free(&r.pass);
    device_return_scratch(d);
    d->release(d, r.arena.base, r.arena.capacity);
    d->close(d);
}

// Bytes as the mixer states them, of the rank that sent most.
static void state_bytes(const MixerProblem *p, int ranks, const Job *job, MixerAnswer *a) {
    const Mixer *mixer = layer_kind(&a->config, 0).tokens;
    AttentionConfig sharding = {.context = p->T,
                                .ranks = ranks,
                                .exchange = p->exchange,
                                .shape = {p->B, a->config.heads, a->config.kv_heads, a->config.head_dim, 1},
                                .element_bytes = p->device == DEVICE_CPU ? 4 : 2};
    Error err;
    sharding.window_count = mixer->attends;
    if (mixer->attends) sharding.windows[0] = attention_sees(&a->config, 0, p->T);
    if (!attention_resolve(&sharding, &err)) fail_msg("%s", err.message);
    int busiest = 0;
    for (int i = 1; i < ranks; i++)
        if (job->forward_bytes[i] + job->backward_bytes[i] > job->forward_bytes[busiest] + job->backward_bytes[busiest])
            busiest = i;
    a->forward_bytes = job->forward_bytes[busiest];
    a->backward_bytes = job->backward_bytes[busiest];
    if (mixer->bytes_sent == NULL) return;
    AttentionBytes stated = mixer->bytes_sent(&a->config, 0, &sharding, busiest);
    a->stated_forward = stated.forward;
    a->stated_backward = stated.backward;
}

MixerAnswer mixer_run(const MixerProblem *problem, int ranks) {
    MixerAnswer answer = prepare(problem);
    Job *job = checked(calloc(1, sizeof *job));
    Error err;
    *job = (Job){.problem = problem, .answer = &answer};
    CommLaunch launch = {.engine = COMM_LOCAL, .ranks = ranks, .timeout_seconds = 60};
    if (!comm_run(&launch, run_on_rank, job, &err)) fail_msg("%s", err.message);
    state_bytes(problem, ranks, job, &answer);
    free(job);
    return answer;
}

void mixer_free(MixerAnswer *a) {
    parameters_free(&a->table);
    free(a->first);
    free(a->x);
    free(a->weights);
}

void mixer_expect_same_bits(const MixerProblem *p, int ranks) {
    MixerAnswer a = mixer_run(p, ranks), b = mixer_run(p, ranks);
    size_t bytes = (size_t)(p->B * p->T * p->C) * sizeof(float);
    assert_memory_equal(a.out, b.out, bytes);
    assert_memory_equal(a.d_x, b.d_x, bytes);
    assert_memory_equal(a.gradients, b.gradients, (size_t)a.table.total * sizeof(float));
    mixer_free(&a);
    mixer_free(&b);
}

// ---- generation -----------------------------------------------------------------------------------------------------

enum { MOST_ROWS = 128 };

typedef struct Generator {
    RankMemory rank;
    Generation generation;
} Generator;

static void lay_out_generator(Generator *g, const MixerSize *size) {
    const MixerAnswer *a = (const MixerAnswer *)(const void *)size->config;
    RankMemory *r = &g->rank;
    r->model.weights = arena_take(&r->arena, "weights", (size_t)a->table.total * size->element_bytes);
    pass_lay_out(&r->pass, *size, 64, &r->arena, PASS_GENERATING, RECOMPUTE_NONE);
    if (size->documents)
        g->generation.first = arena_take(&r->arena, "tokens", (size_t)size->context * sizeof(int32_t));
}

static void generate_rows(Generator *g, Device *d, const MixerAnswer *a, const MixerProblem *p, int64_t rows,
                          float *out) {
    Pass *pass = &g->rank.pass;
    int32_t positions[MOST_ROWS];
    int64_t done = g->generation.length;
    for (int64_t i = 0; i < rows; i++) positions[i] = (int32_t)(done + i);
    pass->rows = pass->table_rows = rows;
    upload_positions(d, pass, &a->config, positions, rows, 1);
    to_device(d, pass->normed, a->x + done * p->C, rows * p->C);
    if (a->first != NULL)
        d->upload(d, g->generation.first + done, a->first + done, (size_t)rows * sizeof(int32_t));
    Mixing m = {.model = &g->rank.model,
                .pass = pass,
                .choice = layer_kind(&a->config, 0).choice,
                .tensor = a->table.layer[0].tokens,
                .kept = pass->layer[0].tokens,
                .room = pass->tokens_room[0],
                .cache = pass->layer[0].cache};
    const Mixer *mixer = layer_kind(&a->config, 0).tokens;
    mixer->mix(&m);
    mixer->output(&m);
    to_host(d, out + done * p->C, pass->branch, rows * p->C);
    g->generation.length += rows;
}

// NaN in every element, of fp32 and of bf16.
static void spoil(Device *d, void *memory, size_t bytes) {
    void *nans = checked(malloc(bytes));
    memset(nans, 0xff, bytes);
    d->upload(d, memory, nans, bytes);
    d->synchronize(d);
    free(nans);
}

float *mixer_generate(const MixerProblem *p, int64_t piece) {
    MixerAnswer a = prepare(p);
    Device device, *d = &device;
    Error err;
    const Mixer *mixer = layer_kind(&a.config, 0).tokens;
    if (piece > MOST_ROWS) fail_msg("%s: not so many tokens at a time", p->mixer);
    if (!device_open(d, p->device, 0, 2, &err)) fail_msg("%s", err.message);
    MixerSize size = {.config = &a.config,
                      .rows = MOST_ROWS,
                      .sequences = 1,
                      .element_bytes = d->element_bytes,
                      .context = p->T,
                      .ranks = 1,
                      .documents = a.first != NULL,
                      .kernels = d->mixers};
    Generator planned = {0}, g = {0};
    lay_out_generator(&planned, &size);
    pass_free(&planned.rank.pass);
    g.rank.arena.capacity = planned.rank.arena.used;
    g.rank.arena.base = d->allocate(d, planned.rank.arena.used, &err);
    lay_out_generator(&g, &size);
    spoil(d, g.rank.arena.base, g.rank.arena.used);
    AttentionShape shape = {1, a.config.heads, a.config.kv_heads, a.config.head_dim,
                            (float)(1 / sqrt((double)a.config.head_dim))};
    Attention attention = {.config = {.shape = shape, .context = p->T, .ranks = 1}};
    size_t scratch = device_scratch_bytes(p->device, d->threads, size.rows, p->C, 8 * p->C), more = 0;
    if (mixer->scratch_bytes != NULL) more = mixer->scratch_bytes(&size, d->threads);
    if (mixer->attends && d->attention->scratch_bytes != NULL)
        more = d->attention->scratch_bytes(&shape, 0, d->threads);
    if (!device_lend_scratch(d, scratch > more ? scratch : more, &err)) fail_msg("%s", err.message);
    g.rank.model = (Model){.config = &a.config,
                           .table = &a.table,
                           .device = d,
                           .attention = &attention,
                           .weights = g.rank.model.weights};
    g.rank.pass.generation = &g.generation;
    g.generation.capacity = p->T;
    to_device(d, g.rank.model.weights, a.weights, a.table.total);
    float *out = allocate(p->T * p->C, sizeof *out);
    while (g.generation.length < p->T) {
        int64_t left = p->T - g.generation.length;
        generate_rows(&g, d, &a, p, piece < left ? piece : left, out);
    }
    pass_free(&g.rank.pass);
    device_return_scratch(d);
    d->release(d, g.rank.arena.base, g.rank.arena.capacity);
    d->close(d);
    mixer_free(&a);
    return out;
}

// ---- errors ---------------------------------------------------------------------------------------------------------

MixerError mixer_error(const float *got, const double *expected, int64_t count) {
    double error = 0, norm = 0, largest = 0;
    for (int64_t i = 0; i < count; i++) {
        double difference = got[i] - expected[i];
        if (!(fabs(difference) <= largest)) largest = fabs(difference);
        error += difference * difference;
        norm += expected[i] * expected[i];
    }
    double rms = sqrt(norm / (double)count);
    return (MixerError){sqrt(error / norm), largest / rms};
}

void mixer_expect(const MixerProblem *p, int ranks, const char *what, MixerError error, double allowed) {
    if (getenv("VERBOSE") != NULL)
        fprintf(stderr, "%s, T %lld, %d ranks: %s off by %.2e, at most %.2e\n", p->mixer, (long long)p->T, ranks, what,
                error.norm, error.largest);
    if (!(error.norm <= allowed) || !(error.largest <= 8 * allowed)) // 8: the largest of some 10^5 normal errors
        fail_msg("%s, T %lld, C %lld, %d ranks%s: %s is off by %.2e (allowed %.2e), at most %.2e (allowed %.2e)",
                 p->mixer, (long long)p->T, (long long)p->C, ranks, p->document > 0 ? ", documents" : "", what, error.norm,
                 allowed, error.largest, 8 * allowed);
}

static double blocks_over(int64_t T, int ranks, int64_t block) {
    int64_t blocks = 0;
    for (int rank = 0; rank < ranks; rank++) {
        const Shard shard = shard_of(T, ranks, rank);
        for (int i = 0; i < shard.count; i++) blocks += (shard.chunk[i].length + block - 1) / block;
    }
    return (double)blocks;
}

// A state collects an error in each block, and keeps less than all of it: errors that are independent add up to no more
// than the root of their number. Over ranks chunks end in blocks that are not whole, so there are more of them; and
// what a chunk makes of the state that enters it is put together from two results, its own state and what remains of
// the other, each with an error as the one state has it. Both together: sqrt(2 blocks over ranks / blocks of one). A
// quarter more for the sums that put them together, and for errors as samples. The gradient of a parameter is a sum
// over ranks besides, rounded at each.
void mixer_expect_flat(const MixerProblem *p, int ranks, int64_t block, const char *what, MixerError error,
                       double allowed, MixerError *of_one) {
    mixer_expect(p, ranks, what, error, allowed);
    if (ranks == 1) *of_one = error;
    double more = 1.25 * sqrt(2 * blocks_over(p->T, ranks, block) / blocks_over(p->T, 1, block));
    double flat = more * of_one->norm + sqrt((double)ranks) * 0x1p-24;
    if (!(error.norm <= flat))
        fail_msg("%s, T %lld, C %lld: %s is off by %.2e on %d ranks, and on one by %.2e (allowed %.2e)", p->mixer,
                 (long long)p->T, (long long)p->C, what, error.norm, ranks, of_one->norm, flat);
}
