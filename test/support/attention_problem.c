// Bodies of test/attention_problem.h.
#include "test/attention_problem.h"

void *unset_memory(size_t bytes) { return memset(checked(aligned_alloc(256, (bytes + 255) / 256 * 256)), 0xff, bytes); }

static int64_t result_heads(const Problem *p, int result) {
    return result == D_K || result == D_V ? p->shape.kv_heads : p->shape.heads;
}

int64_t result_count(const Problem *p, int result) {
    return p->shape.batch * p->T * result_heads(p, result) * (result == LOG_SUM_EXP ? 1 : p->shape.head_dim);
}

static float *random_tensor(int64_t count, uint64_t stream) {
    float *x = checked(malloc((size_t)count * sizeof *x));
    for (int64_t i = 0; i < count; i++) x[i] = (float)random_normal(1, stream, (uint64_t)i);
    return x;
}

static double dot(const float *a, const float *b, int64_t D) {
    double sum = 0;
    for (int64_t d = 0; d < D; d++) sum += (double)a[d] * b[d];
    return sum;
}

double kept(double x, Rounding rounding, Rounding from) { // rounded from this kind on
    return rounding >= from ? round_to_bf16((float)x) : x;
}

// One query row: its probabilities over the keys that it sees, then everything that follows from them.
static void answer_row(Problem *p, double *const answer[RESULTS], int64_t b, int64_t h, int64_t i, double *probability,
                       Rounding rounding) {
    const AttentionShape *s = &p->shape;
    int64_t D = s->head_dim, stride = s->kv_heads * D, kv_first = b * p->T * stride + h / (s->heads / s->kv_heads) * D;
    int64_t row = ((b * p->T + i) * s->heads + h) * D;
    const float *q = p->q + row, *d_out = p->d_out + row;
    double max = -INFINITY, min = INFINITY, sum = 0, delta = 0, *out = answer[OUT] + row;
    int64_t first = 0; // by the definition, not by the code that is tested
    if (p->visibility.window > 0 && i >= p->visibility.window) first = i + 1 - p->visibility.window;
    if (p->visibility.first != NULL && p->visibility.first[b * p->visibility.stride + i] > first)
        first = p->visibility.first[b * p->visibility.stride + i];
    for (int64_t j = first; j <= i; j++) {
        probability[j] = kept(s->scale * dot(q, p->k + kv_first + j * stride, D), rounding, VANILLA);
        max = fmax(max, probability[j]);
        min = fmin(min, probability[j]);
    }
    p->largest_score = fmax(p->largest_score, fmax(max, -min));
    p->largest_gap = fmax(p->largest_gap, max - min);
    for (int64_t j = first; j <= i; j++) sum += probability[j] = exp(probability[j] - max);
    answer[LOG_SUM_EXP][(b * s->heads + h) * p->T + i] = max + log(sum);
    for (int64_t j = first; j <= i; j++) {
        probability[j] /= sum;
        for (int64_t d = 0; d < D; d++)
            out[d] += kept(probability[j], rounding, PLAIN) * p->v[kv_first + j * stride + d];
    }
    for (int64_t d = 0; d < D; d++) out[d] = kept(out[d], rounding, PLAIN);
    for (int64_t d = 0; d < D; d++) delta += out[d] * d_out[d];
    for (int64_t j = first; j <= i; j++) {
        int64_t key = kv_first + j * stride;
        double d_probability = kept(dot(d_out, p->v + key, D), rounding, VANILLA);
        double weight = kept(probability[j], rounding, VANILLA);
        double d_score = s->scale * kept(weight * (d_probability - delta), rounding, PLAIN);
        for (int64_t d = 0; d < D; d++) {
            answer[D_Q][row + d] += d_score * p->k[key + d];
            answer[D_K][key + d] += d_score * q[d];
            answer[D_V][key + d] += kept(probability[j], rounding, PLAIN) * d_out[d];
        }
    }
}

static void answer_problem(Problem *p, double *answer[RESULTS], Rounding rounding) {
    for (int r = 0; r < RESULTS; r++) answer[r] = checked(calloc((size_t)result_count(p, r), sizeof *answer[r]));
    double *probability = checked(malloc((size_t)p->T * sizeof *probability));
    for (int64_t b = 0; b < p->shape.batch; b++)
        for (int64_t h = 0; h < p->shape.heads; h++)
            for (int64_t i = 0; i < p->T; i++) answer_row(p, answer, b, h, i, probability, rounding);
    free(probability);
    for (int r = D_Q; r <= D_V; r++)
        for (int64_t i = 0; i < result_count(p, r); i++) answer[r][i] = kept(answer[r][i], rounding, PLAIN);
}

// outlier: every tenth key is longer by this factor, so that scores differ by that much more.
static Problem random_problem(int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D, float outlier) {
    Problem p = {.shape = {B, H, KV, D, (float)(1 / sqrt((double)D))}, .T = T};
    p.q = random_tensor(B * T * H * D, 1);
    p.k = random_tensor(B * T * KV * D, 2);
    p.v = random_tensor(B * T * KV * D, 3);
    p.d_out = random_tensor(B * T * H * D, 4);
    for (int64_t t = 0; t < B * T; t += 10)
        for (int64_t i = 0; i < KV * D; i++) p.k[t * KV * D + i] *= outlier;
    return p;
}

Problem make_problem_seen(int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D, float outlier,
                          Visibility visibility) {
    Problem p = random_problem(B, T, H, KV, D, outlier);
    p.visibility = visibility;
    answer_problem(&p, p.answer, EXACT);
    return p;
}

Problem make_problem(int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D, float outlier) {
    return make_problem_seen(B, T, H, KV, D, outlier, (Visibility){0});
}

Problem make_bf16_problem(int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D, float outlier) {
    Problem p = random_problem(B, T, H, KV, D, outlier);
    for (int64_t i = 0; i < B * T * H * D; i++) p.q[i] = round_to_bf16(p.q[i]), p.d_out[i] = round_to_bf16(p.d_out[i]);
    for (int64_t i = 0; i < B * T * KV * D; i++) p.k[i] = round_to_bf16(p.k[i]), p.v[i] = round_to_bf16(p.v[i]);
    answer_problem(&p, p.answer, EXACT);
    answer_problem(&p, p.plain, PLAIN);
    answer_problem(&p, p.vanilla, VANILLA);
    return p;
}

void free_problem(Problem *p) {
    free(p->q), free(p->k), free(p->v), free(p->d_out);
    for (int r = 0; r < RESULTS; r++) free(p->answer[r]), free(p->plain[r]), free(p->vanilla[r]);
}

void fast_device(Device *device, int rank) { (void)rank, cpu_device(device, 1); }

void reference_device(Device *device, int rank) {
    (void)rank, cpu_device(device, 1);
    device->attention = &attention_kernels_reference;
}

// Copies the tokens of a shard from a whole tensor (B, T, width) to columns of (B, n, stride), or back.
static void copy_tokens(const Problem *problem, const Shard *shard, float *whole, int64_t width, float *mine,
                        int64_t stride, bool to_mine) {
    for (int64_t b = 0; b < problem->shape.batch; b++) {
        for (int i = 0; i < shard->count; i++) {
            Chunk chunk = shard->chunk[i];
            for (int64_t t = chunk.start; t < chunk.start + chunk.length; t++) {
                float *there = whole + (b * problem->T + t) * width;
                float *here = mine + (b * shard->tokens + shard_offset(shard, t)) * stride;
                memcpy(to_mine ? here : there, to_mine ? there : here, (size_t)width * sizeof *here);
            }
        }
    }
}

static void copy_rows(const Problem *problem, const Shard *shard, float *whole, const float *mine) {
    for (int64_t row = 0; row < problem->shape.batch * problem->shape.heads; row++) {
        for (int i = 0; i < shard->count; i++) {
            Chunk chunk = shard->chunk[i];
            memcpy(whole + row * problem->T + chunk.start,
                   mine + row * shard->tokens + shard_offset(shard, chunk.start), (size_t)chunk.length * sizeof *mine);
        }
    }
}

static void unset_buffer(Device *device, const Buffer *buffer) {
    void *unset = unset_memory(buffer->bytes);
    device->upload(device, buffer->data, unset, buffer->bytes);
    free(unset);
}

static Buffer device_buffer(Device *device, size_t bytes) {
    Error err = {0};
    Buffer buffer = {checked(device->allocate(device, bytes, &err)), bytes};
    unset_buffer(device, &buffer);
    return buffer;
}

static void release_buffer(Device *device, Buffer *buffer) { device->release(device, buffer->data, buffer->bytes); }

// Between floats of the host and storage of the device. Both free what they are given or have made for the way.
static Buffer to_device(Device *device, float *values, int64_t count) {
    Buffer buffer = device_buffer(device, (size_t)count * device->element_bytes);
    Buffer floats = device_buffer(device, (size_t)count * sizeof *values);
    device->upload(device, floats.data, values, floats.bytes);
    device->to_storage(device, buffer.data, floats.data, count);
    device->synchronize(device);
    release_buffer(device, &floats);
    free(values);
    return buffer;
}

static float *from_device(Device *device, const Buffer *storage) {
    int64_t count = (int64_t)(storage->bytes / device->element_bytes);
    Buffer floats = device_buffer(device, (size_t)count * sizeof(float));
    float *values = checked(malloc(floats.bytes));
    device->to_float(device, floats.data, storage->data, count);
    device->download(device, values, floats.data, floats.bytes);
    release_buffer(device, &floats);
    return values;
}

static Local make_local(Device *device, const Problem *p, const Shard *shard) {
    const AttentionShape *s = &p->shape;
    int64_t n = shard->tokens, query = s->heads * s->head_dim, key = s->kv_heads * s->head_dim, fused = query + 2 * key;
    int64_t tokens = s->batch * n;
    float *qkv = checked(malloc((size_t)(tokens * fused) * sizeof *qkv));
    float *d_out = checked(malloc((size_t)(tokens * query) * sizeof *d_out));
    copy_tokens(p, shard, p->q, query, qkv, fused, true);
    copy_tokens(p, shard, p->k, key, qkv + query, fused, true);
    copy_tokens(p, shard, p->v, key, qkv + query + key, fused, true);
    copy_tokens(p, shard, p->d_out, query, d_out, query, true);
    Local x = {.fused = to_device(device, qkv, tokens * fused),
               .d_fused = device_buffer(device, (size_t)(tokens * fused) * device->element_bytes),
               .out = device_buffer(device, (size_t)(tokens * query) * device->element_bytes),
               .d_out = to_device(device, d_out, tokens * query),
               .log_sum_exp = device_buffer(device, (size_t)(tokens * s->heads) * sizeof(float))};
    x.q = (TokenView){x.fused.data, n * fused, fused};
    x.k = (TokenView){at(device, x.fused.data, query), n * fused, fused};
    x.v = (TokenView){at(device, x.fused.data, query + key), n * fused, fused};
    x.d_q = (TokenView){x.d_fused.data, n * fused, fused};
    x.d_k = (TokenView){at(device, x.d_fused.data, query), n * fused, fused};
    x.d_v = (TokenView){at(device, x.d_fused.data, query + key), n * fused, fused};
    x.out_view = (TokenView){x.out.data, n * query, query};
    x.d_out_view = (TokenView){x.d_out.data, n * query, query};
    return x;
}

static void keep_results(const Run *run, Device *device, const Shard *shard, const Local *x) {
    const Problem *p = run->problem;
    int64_t query = p->shape.heads * p->shape.head_dim, key = p->shape.kv_heads * p->shape.head_dim;
    float *d_fused = from_device(device, &x->d_fused), *out = from_device(device, &x->out);
    float *rows = checked(malloc(x->log_sum_exp.bytes));
    device->download(device, rows, x->log_sum_exp.data, x->log_sum_exp.bytes);
    copy_tokens(p, shard, run->result[OUT], query, out, query, false);
    copy_rows(p, shard, run->result[LOG_SUM_EXP], rows);
    copy_tokens(p, shard, run->result[D_Q], query, d_fused, query + 2 * key, false);
    copy_tokens(p, shard, run->result[D_K], key, d_fused + query, query + 2 * key, false);
    copy_tokens(p, shard, run->result[D_V], key, d_fused + query + key, query + 2 * key, false);
    free(d_fused), free(out), free(rows);
}

static void free_local(Device *device, Local *x) {
    Buffer *all[] = {&x->fused, &x->d_fused, &x->out, &x->d_out, &x->log_sum_exp};
    for (int i = 0; i < 5; i++) release_buffer(device, all[i]);
}

static void attention_rank(Comm *world, void *argument) {
    Run *run = argument;
    int rank = comm_rank(world);
    Device device;
    run->make_device(&device, rank);
    lend_stated_scratch(&device, 1, 1, 1,
                        attention_scratch_bytes(&run->config, rank, device.attention, device.threads));
    Comm *group = comm_on_device(world, &device, run->collectives);

    Arena plan = {0};
    Attention attention;
    attention_lay_out(&attention, &run->config, rank, &plan);
    Buffer scratch = device_buffer(&device, plan.used);
    Arena arena = {.base = scratch.data, .capacity = plan.used};
    attention_lay_out(&attention, &run->config, rank, &arena);
    run->planned_right[rank] = arena.used == plan.used;
    attention_connect(&attention, group);

    Local x = make_local(&device, run->problem, &attention.shard);
    Visibility visibility = run->visibility;
    int64_t seen = visibility.first == NULL ? 0 : visibility.stride * run->problem->shape.batch;
    Buffer first = device_buffer(&device, seen > 0 ? (size_t)seen * sizeof(int32_t) : 1);
    if (visibility.first != NULL) {
        device.upload(&device, first.data, visibility.first, first.bytes);
        visibility.first = first.data;
    }
    for (int i = 0; i < run->repeats; i++) {
        int64_t before = attention_bytes_sent(&attention);
        attention_forward(&attention, &device, visibility, x.out_view, x.log_sum_exp.data, x.q, x.k, x.v);
        int64_t between = attention_bytes_sent(&attention);
        unset_buffer(&device, &scratch); // as other layers' attention leaves nothing of this one's
        attention_backward(&attention, &device, visibility, x.d_q, x.d_k, x.d_v, x.q, x.k, x.v, x.out_view,
                           x.log_sum_exp.data, x.d_out_view);
        run->sent[rank] = (AttentionBytes){between - before, attention_bytes_sent(&attention) - between};
    }
    keep_results(run, &device, &attention.shard, &x);
    attention_disconnect(&attention);
    comm_free(group);
    free_local(&device, &x);
    release_buffer(&device, &first);
    release_buffer(&device, &scratch);
    device_return_scratch(&device);
    device.close(&device);
}

// NULL where there are no documents; to be freed.
static int32_t *least_of(const Problem *problem) {
    const Visibility *v = &problem->visibility;
    if (v->first == NULL) return NULL;
    int32_t *least = checked(malloc((size_t)problem->T * sizeof *least));
    memcpy(least, v->first, (size_t)problem->T * sizeof *least);
    for (int64_t b = 1; b < problem->shape.batch; b++) visibility_least(least, v->first + b * v->stride, problem->T);
    return least;
}

Run run_repeated(const Problem *problem, MakeDevice *make_device, int ranks, Exchange exchange, int ulysses,
                 int repeats, bool collectives) {
    static MakeDevice *known; // of its device, these two
    static size_t element_bytes;
    static const AttentionKernels *kernels;
    Error err = {0};
    if (known != make_device) {
        Device device;
        make_device(&device, 0);
        known = make_device, element_bytes = device.element_bytes, kernels = device.attention;
        device.close(&device);
    }
    Run run = {.problem = problem, .make_device = make_device, .repeats = repeats, .collectives = collectives};
    run.config = (AttentionConfig){.context = problem->T,
                                   .ranks = ranks,
                                   .exchange = exchange,
                                   .ulysses = ulysses,
                                   .shape = problem->shape,
                                   .element_bytes = element_bytes,
                                   .kernels = kernels,
                                   .window_count = 1,
                                   .windows = {{problem->visibility.window, 1}},
                                   .documents = problem->visibility.first != NULL};
    if (!attention_resolve(&run.config, &err)) fail_msg("%s", err.message);
    run.visibility = problem->visibility;
    run.visibility.least = least_of(problem);
    for (int r = 0; r < RESULTS; r++) run.result[r] = unset_memory((size_t)result_count(problem, r) * sizeof(float));
    CommLaunch launch = {.engine = COMM_LOCAL, .ranks = ranks, .timeout_seconds = 60};
    if (!comm_run(&launch, attention_rank, &run, &err)) fail_msg("%s", err.message);
    return run;
}

Run run_on(const Problem *problem, MakeDevice *make_device, int ranks, Exchange exchange, int ulysses) {
    return run_repeated(problem, make_device, ranks, exchange, ulysses, 1, false);
}

void free_run(Run *run) {
    free((void *)run->visibility.least);
    for (int r = 0; r < RESULTS; r++) free(run->result[r]);
}

const char *run_title(const Run *run) {
    static char text[200];
    const AttentionConfig *c = &run->config;
    const char *kernel = run->make_device == fast_device        ? "fast"
                         : run->make_device == reference_device ? "reference"
                                                                : "other";
    snprintf(text, sizeof text,
             "%s, %d ranks, U = %d, B = %lld, T = %lld, H = %lld, KV = %lld, D = %lld, window %lld%s, %s kernel",
             exchange_name(c->exchange), c->ranks, c->ulysses, (long long)c->shape.batch, (long long)c->context,
             (long long)c->shape.heads, (long long)c->shape.kv_heads, (long long)c->shape.head_dim,
             (long long)run->problem->visibility.window, run->problem->visibility.first != NULL ? ", documents" : "",
             kernel);
    return text;
}

bool next_way(const Problem *problem, int P, Way *way) {
    int64_t H = problem->shape.heads, KV = problem->shape.kv_heads;
    if (way->exchange == EXCHANGE_AUTO) return *way = (Way){EXCHANGE_RING, 1}, true;
    if (way->exchange == EXCHANGE_RING) return *way = (Way){EXCHANGE_GATHER, 1}, true;
    for (int U = way->ulysses + 1; U <= P; U++) {
        if (P % U != 0 || H % U != 0 || (KV % U != 0 && U % KV != 0)) continue;
        *way = (Way){U == P ? EXCHANGE_ULYSSES : EXCHANGE_ULYSSES_RING, U};
        return true;
    }
    return false;
}

Deviation deviation(const Run *run, int result) {
    int64_t count = result_count(run->problem, result);
    double error = 0, norm = 0, max = 0;
    for (int64_t i = 0; i < count; i++) {
        double answer = run->problem->answer[result][i], difference = run->result[result][i] - answer;
        if (!isfinite(difference))
            fail_msg("%s: %s has %g", run_title(run), result_names[result], (double)run->result[result][i]);
        error += difference * difference;
        norm += answer * answer;
        max = fmax(max, fabs(difference));
    }
    return (Deviation){sqrt(error / norm), max / sqrt(norm / (double)count)};
}

void check_bytes(const Run *run) {
    for (int rank = 0; rank < run->config.ranks; rank++) {
        AttentionBytes sent = run->sent[rank], formula = attention_bytes(&run->config, &run->visibility, rank);
        if (sent.forward != formula.forward || sent.backward != formula.backward) {
            fail_msg("%s: rank %d sent %lld and %lld bytes, by formula %lld and %lld", run_title(run), rank,
                     (long long)sent.forward, (long long)sent.backward, (long long)formula.forward,
                     (long long)formula.backward);
        }
        if (!run->planned_right[rank]) fail_msg("%s: rank %d: the plan is not what was used", run_title(run), rank);
    }
}

void assert_same_bits(const Run *a, const Run *b) {
    for (int r = 0; r < RESULTS; r++) {
        if (memcmp(a->result[r], b->result[r], (size_t)result_count(a->problem, r) * sizeof(float)) != 0) {
            char first[200];
            snprintf(first, sizeof first, "%s", run_title(a));
            fail_msg("%s differs in its bits: %s; %s", result_names[r], first, run_title(b));
        }
    }
}
