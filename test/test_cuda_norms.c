// CUDA's norms and embeddings, emulated or on a GPU (test/cuda_cases.h), against double precision: rows as short as one
// value and longer than registers hold, addresses that fit nothing, the aliases that layers/device.h allows, gradients
// on top of what is there, tokens spread evenly and all alike, the same bits again.
#include "test/cuda_cases.h"

// ---- norms --- Rows of
// mean 3 and deviation 2. Inputs are exact in bf16, and so is x + delta once it is rounded, which both forward and
// backward see. Tolerances in fp32 are those of test_layers.c; on top comes one rounding of each bf16 result.
typedef struct Norm {
    bool is_layernorm, with_delta;
    int64_t rows, C, offset;
    float *x, *delta, *weight, *bias, *d_out, *old_d_x, *old_weights; // weight and bias in one block
    float *residual;                                                  // x + delta in bf16, or x
    double *in, *out, *d_in, *wide_d_out;                             // the reference's
} Norm;

static Norm make_norm(bool is_layernorm, bool with_delta, int64_t rows, int64_t C, int64_t offset) {
    const int64_t count = rows * C;
    Norm n = {.is_layernorm = is_layernorm, .with_delta = with_delta, .rows = rows, .C = C, .offset = offset};
    n.x = rounded(random_floats(count, 11, 3, 2), count);
    n.delta = rounded(random_floats(count, 12, 0, 1), count);
    n.weight = rounded(random_floats(2 * C, 13, 1, 0.5), 2 * C);
    n.bias = n.weight + C;
    n.d_out = rounded(random_floats(count, 14, 0, 1), count);
    n.old_d_x = rounded(random_floats(count, 15, 0, 1), count);
    n.old_weights = random_floats(2 * C, 16, 0, 1);
    n.residual = copy_of(n.x, count);
    for (int64_t i = 0; i < count && with_delta; i++) n.residual[i] = round_to_bf16(n.x[i] + n.delta[i]);
    n.in = doubles(count + 2 * C), n.d_in = doubles(count + 2 * C);
    n.out = doubles(count), n.wide_d_out = doubles(count);
    append(append(n.in, n.residual, count), n.weight, 2 * C);
    append(n.wide_d_out, n.d_out, count);
    const Shape s = {.rows = rows, .C = C, .epsilon = 1e-5};
    (is_layernorm ? reference_layernorm : reference_rmsnorm)(&s, n.in, n.out);
    (is_layernorm ? reference_layernorm_backward : reference_rmsnorm_backward)(&s, n.in, n.wide_d_out, n.d_in);
    return n;
}

static void free_norm(Norm *n) {
    free(n->x), free(n->delta), free(n->weight), free(n->d_out), free(n->old_d_x), free(n->old_weights);
    free(n->residual), free(n->in), free(n->out), free(n->d_in), free(n->wide_d_out);
}

static Moments moments(const Norm *n, int64_t row) {
    if (n->is_layernorm) return reference_moments(n->in + row * n->C, n->C, 1e-5);
    return (Moments){0, reference_rstd(n->in + row * n->C, n->C, 1e-5)};
}

static void check_forward(const Norm *n, const float *out, const float *mean, const float *rstd) {
    const int64_t C = n->C;
    for (int64_t row = 0; row < n->rows; row++) {
        const Moments m = moments(n, row);
        double size = 0; // of x in this row
        for (int64_t c = 0; c < C; c++) size = fmax(size, fabs(n->in[row * C + c]));
        if (n->is_layernorm) expect_near("mean", row, mean[row], m.mean, 8 * UNIT * size);
        expect_near("rstd", row, rstd[row], m.rstd,
                    m.rstd * (8 * UNIT + 8 * UNIT * size * size * m.rstd * m.rstd * UNIT));
        for (int64_t c = 0; c < C; c++) {
            const double weight = fabs(n->weight[c]), bias = n->is_layernorm ? fabs(n->bias[c]) : 0;
            expect_storage("norm", row * C + c, out[row * C + c], n->out[row * C + c],
                           8 * UNIT * (weight * size * m.rstd + bias));
        }
    }
}

static void check_d_x(const Norm *n, const float *d_x) {
    const int64_t C = n->C;
    for (int64_t row = 0; row < n->rows; row++) {
        const Moments m = moments(n, row);
        double g_size = 0, g_x_size = 0, x_size = 0;
        for (int64_t c = 0; c < C; c++) {
            const double x = (fabs(n->in[row * C + c]) + fabs(m.mean)) * m.rstd;
            const double g = fabs(n->wide_d_out[row * C + c] * n->weight[c]);
            g_size += g / (double)C;
            g_x_size += g * x / (double)C;
            x_size = fmax(x_size, x);
        }
        for (int64_t c = 0; c < C; c++) {
            const int64_t i = row * C + c;
            const double parts = fabs(n->wide_d_out[i] * n->weight[c]) + g_size + x_size * g_x_size;
            expect_storage("d_x", i, d_x[i], n->old_d_x[i] + n->d_in[i],
                           8 * UNIT * m.rstd * parts + sum_tolerance(C, m.rstd * (g_size + x_size * g_x_size)) +
                               2 * UNIT * fabs((double)n->old_d_x[i]));
        }
    }
}

static void check_d_weight(const Norm *n, const float *d_weight, const float *d_bias) {
    const int64_t C = n->C, first = n->rows * C;
    Moments *m = checked(malloc((size_t)n->rows * sizeof *m));
    for (int64_t row = 0; row < n->rows; row++) m[row] = moments(n, row);
    for (int64_t c = 0; c < C; c++) {
        double x_sum = fabs((double)n->old_weights[c]), sum = fabs((double)n->old_weights[C + c]);
        for (int64_t row = 0; row < n->rows; row++) {
            const double dy = fabs(n->wide_d_out[row * C + c]);
            sum += dy;
            x_sum += dy * (fabs(n->in[row * C + c]) + fabs(m[row].mean)) * m[row].rstd;
        }
        expect_near("d_weight", c, d_weight[c], n->old_weights[c] + n->d_in[first + c], sum_tolerance(n->rows, x_sum));
        expect_near("d_bias", c, d_bias[c], n->old_weights[C + c] + (n->is_layernorm ? n->d_in[first + C + c] : 0.0),
                    sum_tolerance(n->rows, sum));
    }
    free(m);
}

static CudaTensor storage_of(const Norm *n, const float *values, int64_t count) {
    return cuda_tensor_at(KIND_STORAGE, values, count, n->offset);
}

typedef struct NormTensors {
    CudaTensor x, delta, weight, bias, d_out, out, residual, mean, rstd;
} NormTensors;

static NormTensors to_device(const Norm *n) {
    const int64_t count = n->rows * n->C;
    return (NormTensors){.x = storage_of(n, n->x, count),
                         .delta = storage_of(n, n->delta, count),
                         .weight = storage_of(n, n->weight, n->C),
                         .bias = storage_of(n, n->bias, n->C),
                         .d_out = storage_of(n, n->d_out, count),
                         .out = storage_of(n, NULL, count),
                         .residual = storage_of(n, NULL, count),
                         .mean = cuda_floats(NULL, n->rows),
                         .rstd = cuda_floats(NULL, n->rows)};
}
static void free_tensors(NormTensors *t) {
    cuda_free(&t->x), cuda_free(&t->delta), cuda_free(&t->weight), cuda_free(&t->bias), cuda_free(&t->d_out);
    cuda_free(&t->out), cuda_free(&t->residual), cuda_free(&t->mean), cuda_free(&t->rstd);
}

static void forward(const Norm *n, const NormTensors *t, void *residual_out) {
    Device *device = cuda_device_of_test();
    const void *delta = n->with_delta ? t->delta.data : NULL;
    if (n->is_layernorm)
        device->layernorm_forward(device, t->out.data, residual_out, t->mean.data, t->rstd.data, t->x.data, delta,
                                  t->weight.data, t->bias.data, n->rows, n->C, 1e-5f);
    else
        device->rmsnorm_forward(device, t->out.data, residual_out, t->rstd.data, t->x.data, delta, t->weight.data,
                                n->rows, n->C, 1e-5f);
}

static void expect_values(const char *what, const CudaTensor *t, const float *expected) {
    float *got = cuda_fetch(t);
    for (int64_t i = 0; i < t->count; i++) expect_near(what, i, got[i], expected[i], 0);
    free(got);
}

static void run_norm(bool is_layernorm, bool with_delta, int64_t rows, int64_t C, int64_t offset) {
    Device *device = cuda_device_of_test();
    Norm n = make_norm(is_layernorm, with_delta, rows, C, offset);
    NormTensors t = to_device(&n);
    forward(&n, &t, with_delta ? t.residual.data : NULL);
    float *out = cuda_fetch(&t.out), *mean = cuda_fetch(&t.mean), *rstd = cuda_fetch(&t.rstd);
    check_forward(&n, out, mean, rstd);
    if (with_delta) expect_values("residual", &t.residual, n.residual);

    CudaTensor d_x = storage_of(&n, n.old_d_x, rows * C);
    CudaTensor d_weight = cuda_tensor_at(KIND_FLOAT, n.old_weights, C, offset),
               d_bias = cuda_tensor_at(KIND_FLOAT, n.old_weights + C, C, offset);
    const void *normalized = with_delta ? t.residual.data : t.x.data;
    if (is_layernorm)
        device->layernorm_backward(device, d_x.data, d_weight.data, d_bias.data, t.d_out.data, normalized,
                                   t.weight.data, t.mean.data, t.rstd.data, rows, C);
    else
        device->rmsnorm_backward(device, d_x.data, d_weight.data, t.d_out.data, normalized, t.weight.data, t.rstd.data,
                                 rows, C);
    float *got_x = cuda_fetch(&d_x), *got_weight = cuda_fetch(&d_weight), *got_bias = cuda_fetch(&d_bias);
    check_d_x(&n, got_x);
    check_d_weight(&n, got_weight, got_bias);

    if (with_delta) { // the residual may replace x
        forward(&n, &t, t.x.data);
        expect_values("norm in place", &t.out, out);
        expect_values("residual in place", &t.x, n.residual);
    }
    free(out), free(mean), free(rstd), free(got_x), free(got_weight), free(got_bias);
    cuda_free(&d_x), cuda_free(&d_weight), cuda_free(&d_bias);
    free_tensors(&t);
    free_norm(&n);
}

// Rows of a warp (up to 1,024 values) and of a block (up to 8,192), full and not, and those that fit neither; more rows
// than the backward kernel's blocks take at once.
static void run_norms(bool is_layernorm) {
    const int64_t cases[][2] = {{1, 1},    {3, 8},    {37, 20},   {5, 33},   {1200, 16}, {9, 256},
                                {7, 264},  {6, 768},  {300, 776}, {5, 1024}, {7, 1032},  {5, 2048},
                                {3, 2056}, {3, 4104}, {2, 8192},  {2, 8200}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run_norm(is_layernorm, i % 2 == 0, cases[i][0], cases[i][1], 0);
        run_norm(is_layernorm, i % 2 != 0, cases[i][0], cases[i][1], cases[i][1] > 300);
    }
}
static void layernorm(void **state) {
    (void)state;
    run_norms(true);
}
static void rmsnorm(void **state) {
    (void)state;
    run_norms(false);
}

// A row of huge and one of equal values: nothing overflows that need not, and rstd stays finite. One that is not a
// number spoils its own row alone.
static void norms_of_extreme_rows(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    enum { C = 40, ROWS = 4 };
    float x[ROWS * C], weight[C], bias[C] = {0};
    for (int c = 0; c < C; c++) {
        weight[c] = 1;
        x[c] = c % 2 == 0 ? 0x1p60f : -0x1p60f;
        x[C + c] = 5;
        x[2 * C + c] = c == 3 ? NAN : 1;
        x[3 * C + c] = c % 2 == 0 ? 0x1p-100f : -0x1p-100f;
    }
    CudaTensor in = cuda_storage(x, ROWS * C), w = cuda_storage(weight, C), b = cuda_storage(bias, C);
    CudaTensor out = cuda_storage(NULL, ROWS * C), mean = cuda_floats(NULL, ROWS), rstd = cuda_floats(NULL, ROWS);
    for (int is_layernorm = 0; is_layernorm < 2; is_layernorm++) {
        if (is_layernorm)
            device->layernorm_forward(device, out.data, NULL, mean.data, rstd.data, in.data, NULL, w.data, b.data, ROWS,
                                      C, 1e-5f);
        else device->rmsnorm_forward(device, out.data, NULL, rstd.data, in.data, NULL, w.data, ROWS, C, 1e-5f);
        float *got = cuda_fetch(&out);
        for (int c = 0; c < C; c++) {
            expect_storage("huge", c, got[c], c % 2 == 0 ? 1 : -1, 16 * UNIT);
            expect_storage("equal", c, got[C + c], is_layernorm ? 0 : 1 / sqrt(1 + 1e-5 / 25),
                           is_layernorm ? 5 * UNIT / sqrt(1e-5) : 16 * UNIT);
            assert_true(isnan(got[2 * C + c]));
            expect_near("tiny", c, got[3 * C + c], 0, 1e-27);
        }
        free(got);
    }
    cuda_free(&in), cuda_free(&w), cuda_free(&b), cuda_free(&out), cuda_free(&mean), cuda_free(&rstd);
}

// ---- embedding -----------------------------------------------------------------------------------------------------
typedef struct EmbeddingCase {
    int64_t rows, C, V, positions, offset;
    double share; // of rows that hold the token V / 2, beside those that are random
} EmbeddingCase;

static void check_embedding_forward(const EmbeddingCase *e, const int32_t *tokens, const int32_t *positions) {
    Device *device = cuda_device_of_test();
    const int64_t rows = e->rows, C = e->C;
    float *table = rounded(random_floats(e->V * C, 21, 0, 1), e->V * C);
    float *places = rounded(random_floats(e->positions * C, 22, 0, 1), e->positions * C), *expected = floats(rows * C);
    CudaTensor tokens_there = cuda_tokens(tokens, rows), positions_there = cuda_tokens(positions, rows);
    CudaTensor table_there = cuda_tensor_at(KIND_STORAGE, table, e->V * C, e->offset);
    CudaTensor places_there = cuda_tensor_at(KIND_STORAGE, places, e->positions * C, e->offset);
    CudaTensor out = cuda_tensor_at(KIND_STORAGE, NULL, rows * C, e->offset);

    device->embedding_forward(device, out.data, tokens_there.data, positions_there.data, table_there.data,
                              places_there.data, rows, C);
    for (int64_t i = 0; i < rows * C; i++)
        expected[i] = round_to_bf16(table[tokens[i / C] * C + i % C] + places[positions[i / C] * C + i % C]);
    expect_values("embedding", &out, expected);
    device->embedding_forward(device, out.data, tokens_there.data, NULL, table_there.data, NULL, rows, C);
    for (int64_t i = 0; i < rows * C; i++) expected[i] = table[tokens[i / C] * C + i % C];
    expect_values("embedding without positions", &out, expected);
    free(table), free(places), free(expected);
    cuda_free(&tokens_there), cuda_free(&positions_there), cuda_free(&table_there), cuda_free(&places_there),
        cuda_free(&out);
}

// table[keys[row]] += d_out[row]: a sum of as many terms as rows have that key, in fp32.
static void check_table_gradient(const char *what, const CudaTensor *table, const float *before, const int32_t *keys,
                                 const float *d_out, const EmbeddingCase *e, int64_t entries) {
    const int64_t C = e->C;
    double *sum = doubles(entries * C), *size = doubles(entries * C);
    int64_t *terms = checked(calloc((size_t)entries, sizeof *terms));
    for (int64_t row = 0; row < e->rows; row++) {
        terms[keys[row]]++;
        for (int64_t c = 0; c < C; c++) {
            sum[keys[row] * C + c] += d_out[row * C + c];
            size[keys[row] * C + c] += fabs(d_out[row * C + c]);
        }
    }
    float *got = cuda_fetch(table);
    for (int64_t i = 0; i < entries * C; i++)
        expect_near(what, i, got[i], before[i] + sum[i],
                    terms[i / C] == 0 ? 0 : sum_tolerance(terms[i / C] + 1, size[i] + fabs((double)before[i])));
    free(sum), free(size), free(terms), free(got);
}

// Rows after which positions begin again.
static int64_t position_rows_of(const EmbeddingCase *e) { return e->positions < e->rows ? e->positions : e->rows; }

static void check_embedding_backward(const EmbeddingCase *e, const int32_t *tokens, const int32_t *positions) {
    Device *device = cuda_device_of_test();
    const int64_t rows = e->rows, C = e->C;
    float *d_out = rounded(random_floats(rows * C, 23, 0, 1), rows * C);
    float *old_table = random_floats(e->V * C, 24, 0, 1), *old_places = random_floats(e->positions * C, 25, 0, 1);
    CudaTensor tokens_there = cuda_tokens(tokens, rows), positions_there = cuda_tokens(positions, rows);
    CudaTensor d_out_there = cuda_tensor_at(KIND_STORAGE, d_out, rows * C, e->offset);
    CudaTensor table = cuda_tensor_at(KIND_FLOAT, old_table, e->V * C, e->offset);
    CudaTensor places = cuda_tensor_at(KIND_FLOAT, old_places, e->positions * C, e->offset);

    device->embedding_backward(device, table.data, places.data, d_out_there.data, tokens_there.data,
                               positions_there.data, rows, position_rows_of(e), C, e->V);
    check_table_gradient("d_token_table", &table, old_table, tokens, d_out, e, e->V);
    check_table_gradient("d_position_table", &places, old_places, positions, d_out, e, e->positions);

    float *after = cuda_fetch(&table), *places_after = cuda_fetch(&places);
    device->embedding_backward(device, table.data, NULL, d_out_there.data, tokens_there.data, NULL, rows, 0, C, e->V);
    check_table_gradient("d_token_table alone", &table, after, tokens, d_out, e, e->V);
    expect_values("skipped d_position_table", &places, places_after);
    free(d_out), free(old_table), free(old_places), free(after), free(places_after);
    cuda_free(&tokens_there), cuda_free(&positions_there), cuda_free(&d_out_there), cuda_free(&table),
        cuda_free(&places);
}

static int32_t *skewed_tokens(const EmbeddingCase *e) {
    int32_t *tokens = random_tokens(e->rows, 26, e->V);
    for (int64_t row = 0; row < e->rows; row++)
        if (random_below(7, 27, (uint64_t)row, 1000) < (uint64_t)(1000 * e->share)) tokens[row] = (int32_t)(e->V / 2);
    return tokens;
}

// Around the lengths of a warp's tile in the sort (512 rows) and of a piece (64 rows), of a warp's columns (256), and
// of the digits of keys (512, 262,144). Runs of one token over more pieces than a block has warps, and sequences of
// which the last is not whole.
static const EmbeddingCase embedding_cases[] = {
    {1, 1, 1, 1, 0, 0},
    {7, 33, 5, 9, 0, 0},
    {63, 8, 1, 63, 0, 0},
    {64, 8, 2, 64, 0, 0.5},
    {65, 16, 1, 7, 1, 0},
    {513, 8, 257, 171, 0, 0.5},
    {600, 264, 3, 40, 0, 0},
    {1000, 24, 50257, 70000, 0, 0.1},
    {2100, 8, 257, 2100, 0, 0.9},
    {700, 300, 257, 100, 1, 0.3},
    {4500, 8, 1, 2, 0, 0},
    {300, 8, 512, 8, 0, 0.2},
    {300, 8, 263000, 9, 0, 0.2},
    {1900, 264, 2, 130, 1, 0},
    {140001, 8, 257, 1024, 0, 0.3},
};
enum { EMBEDDING_CASES = sizeof embedding_cases / sizeof *embedding_cases };

static void embedding(void **state) {
    (void)state;
    for (int i = 0; i < EMBEDDING_CASES; i++) {
        const EmbeddingCase *e = &embedding_cases[i];
        int32_t *tokens = skewed_tokens(e), *positions = checked(calloc((size_t)e->rows, sizeof *positions));
        const int64_t different = position_rows_of(e), stride = e->positions / different; // reach the first ones too
        for (int64_t row = 0; row < e->rows; row++)
            positions[row] = (int32_t)(e->positions - 1 - row % different * stride);
        check_embedding_forward(e, tokens, positions);
        check_embedding_backward(e, tokens, positions);
        free(tokens), free(positions);
    }
}

// Rows are summed in their order: 2^30 - 2^30 + 1 is 1, in single precision, and any other order of the three gives 0.
// So does 2^30 + (1 - 2^30), which is the sum of a token whose rows lie in two of the pieces of the sorted list.
static void embedding_sums_in_the_order_of_rows(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    enum { V = 300, ROWS = 3 * V, C = 8 };
    int32_t tokens[ROWS], seen[V] = {0};
    for (int i = 0; i < ROWS; i++) tokens[i] = i % V;
    for (int i = ROWS - 1; i > 0; i--) { // shuffled (Fisher and Yates)
        const int other = (int)random_below(7, 28, (uint64_t)i, (uint64_t)i + 1), token = tokens[i];
        tokens[i] = tokens[other];
        tokens[other] = token;
    }
    float d_out[ROWS * C];
    const float in_order[3] = {0x1p30f, -0x1p30f, 1};
    for (int i = 0; i < ROWS; i++, seen[tokens[i - 1]]++)
        for (int c = 0; c < C; c++) d_out[i * C + c] = in_order[seen[tokens[i]]];
    CudaTensor tokens_there = cuda_tokens(tokens, ROWS), d_out_there = cuda_storage(d_out, ROWS * C);
    CudaTensor table = cuda_floats(NULL, V * C);
    device->embedding_backward(device, table.data, NULL, d_out_there.data, tokens_there.data, NULL, ROWS, 0, C, V);
    float *got = cuda_fetch(&table);
    int others = 0;
    for (int i = 0; i < V * C; i++) {
        assert_true(got[i] == 1 || got[i] == 0);
        others += got[i] == 0;
    }
    assert_true(others < V * C / 10);
    free(got);
    cuda_free(&tokens_there), cuda_free(&d_out_there), cuda_free(&table);
}

// So are those of a position: three sequences and a half, the last of which adds nothing.
static void positions_sum_in_the_order_of_rows(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    enum { T = 70, ROWS = 3 * T + T / 2, C = 20 };
    int32_t tokens[ROWS], positions[ROWS];
    float d_out[ROWS * C];
    const float in_order[4] = {0x1p30f, -0x1p30f, 1, 0};
    for (int i = 0; i < ROWS; i++) {
        tokens[i] = 0;
        positions[i] = (i + 3) % T;
        for (int c = 0; c < C; c++) d_out[i * C + c] = in_order[i / T];
    }
    CudaTensor tokens_there = cuda_tokens(tokens, ROWS), positions_there = cuda_tokens(positions, ROWS);
    CudaTensor d_out_there = cuda_storage(d_out, ROWS * C), table = cuda_floats(NULL, C),
               places = cuda_floats(NULL, T * C);
    device->embedding_backward(device, table.data, places.data, d_out_there.data, tokens_there.data,
                               positions_there.data, ROWS, T, C, 1);
    float *got = cuda_fetch(&places);
    for (int i = 0; i < T * C; i++) assert_true(got[i] == 1);
    free(got);
    cuda_free(&tokens_there), cuda_free(&positions_there), cuda_free(&d_out_there), cuda_free(&table),
        cuda_free(&places);
}

static void no_rows_is_nothing(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    CudaTensor some = cuda_storage(NULL, 64), gradient = cuda_floats(NULL, 64), tokens = cuda_tokens(NULL, 1);
    device->embedding_forward(device, some.data, tokens.data, tokens.data, some.data, some.data, 0, 8);
    device->embedding_backward(device, gradient.data, gradient.data, some.data, tokens.data, tokens.data, 0, 0, 8, 8);
    device->layernorm_forward(device, some.data, some.data, gradient.data, gradient.data, some.data, some.data,
                              some.data, some.data, 0, 8, 1e-5f);
    device->layernorm_backward(device, some.data, gradient.data, gradient.data, some.data, some.data, some.data,
                               gradient.data, gradient.data, 0, 8);
    device->rmsnorm_forward(device, some.data, some.data, gradient.data, some.data, some.data, some.data, 0, 8, 1e-5f);
    device->rmsnorm_backward(device, some.data, gradient.data, some.data, some.data, some.data, gradient.data, 0, 8);
    float *got = cuda_fetch(&gradient);
    for (int i = 0; i < 64; i++) assert_true(got[i] == 0);
    free(got);
    cuda_free(&some), cuda_free(&gradient), cuda_free(&tokens);
}

// ---- large ---------------------------------------------------------------------------------------------------------
// Everything in the last row, zeros before it. On a GPU with more values than 32 bits count; emulated, to prove the
// test.
static void *zeros(Device *device, int64_t bytes) {
    Error err = {0};
    void *memory = device->allocate(device, (size_t)bytes, &err);
    if (memory == NULL) fail_msg("%s", err.message);
    return memory;
}

static void the_last_of_many_rows(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    const bool large = strcmp(cuda_device_name(), "cuda") == 0;
    const int64_t C = 1032, rows = large ? ((int64_t)1 << 31) / C + 100 : 300, bytes = rows * C * 2, last = rows - 1;
    if (device->memory_available(device) < 5 * bytes) skip();
    device_return_scratch(device); // for good: this test is the last
    lend_stated_scratch(device, rows, C, C, 0);
    Norm n = make_norm(true, false, 1, C, 0);
    NormTensors t = to_device(&n);
    void *x = zeros(device, bytes), *d_out = zeros(device, bytes), *out = zeros(device, bytes),
         *d_x = zeros(device, bytes);
    float *mean = zeros(device, rows * 4), *rstd = zeros(device, rows * 4);
    int32_t *tokens = zeros(device, rows * 4), one = 1;
    CudaTensor d_weight = cuda_floats(n.old_weights, C), d_bias = cuda_floats(n.old_weights + C, C);
    CudaTensor d_x_row = cuda_storage(n.old_d_x, C), d_table = cuda_floats(NULL, 2 * C);
    device->copy(device, at(device, x, last * C), t.x.data, (size_t)C * 2);
    device->copy(device, at(device, d_out, last * C), t.d_out.data, (size_t)C * 2);
    device->copy(device, at(device, d_x, last * C), d_x_row.data, (size_t)C * 2);
    device->upload(device, tokens + last, &one, sizeof one);

    device->layernorm_forward(device, out, NULL, mean, rstd, x, NULL, t.weight.data, t.bias.data, rows, C, 1e-5f);
    device->layernorm_backward(device, d_x, d_weight.data, d_bias.data, d_out, x, t.weight.data, mean, rstd, rows, C);
    device->copy(device, t.out.data, at(device, out, last * C), (size_t)C * 2);
    device->copy(device, t.mean.data, mean + last, sizeof *mean);
    device->copy(device, t.rstd.data, rstd + last, sizeof *rstd);
    device->copy(device, d_x_row.data, at(device, d_x, last * C), (size_t)C * 2);
    float *got = cuda_fetch(&t.out), *got_mean = cuda_fetch(&t.mean), *got_rstd = cuda_fetch(&t.rstd),
          *got_x = cuda_fetch(&d_x_row), *got_weight = cuda_fetch(&d_weight), *got_bias = cuda_fetch(&d_bias);
    check_forward(&n, got, got_mean, got_rstd);
    check_d_x(&n, got_x);
    check_d_weight(&n, got_weight, got_bias);

    // The last two rows of x are a table of two rows: zeros, and n.x.
    device->embedding_forward(device, out, tokens, NULL, at(device, x, (last - 1) * C), NULL, rows, C);
    device->copy(device, t.out.data, at(device, out, last * C), (size_t)C * 2);
    expect_values("embedding of the last row", &t.out, n.x);
    device->embedding_backward(device, d_table.data, NULL, d_out, tokens, NULL, rows, 0, C, 2);
    float *got_table = cuda_fetch(&d_table);
    for (int64_t c = 0; c < C; c++) assert_true(got_table[c] == 0 && got_table[C + c] == n.d_out[c]);

    free(got), free(got_mean), free(got_rstd), free(got_x), free(got_weight), free(got_bias), free(got_table);
    device->release(device, x, (size_t)bytes), device->release(device, d_out, (size_t)bytes);
    device->release(device, out, (size_t)bytes), device->release(device, d_x, (size_t)bytes);
    device->release(device, mean, (size_t)rows * 4), device->release(device, rstd, (size_t)rows * 4);
    device->release(device, tokens, (size_t)rows * 4);
    cuda_free(&d_weight), cuda_free(&d_bias), cuda_free(&d_x_row), cuda_free(&d_table);
    free_tensors(&t);
    free_norm(&n);
}

// ---- determinism ---------------------------------------------------------------------------------------------------
enum { BITS_ROWS = 900, BITS_C = 264, BITS_V = 30, BITS_POSITIONS = 120 };
static void results_for_bits(Device *device, void *results) {
    const EmbeddingCase e = {BITS_ROWS, BITS_C, BITS_V, 0, 0, 0.8}; // a run over more pieces than a block has warps
    Norm n = make_norm(true, true, BITS_ROWS, BITS_C, 0);
    NormTensors t = to_device(&n);
    CudaTensor tokens = cuda_tokens(skewed_tokens(&e), BITS_ROWS), table = cuda_floats(NULL, BITS_V * BITS_C);
    CudaTensor d_x = cuda_storage(NULL, BITS_ROWS * BITS_C), d_weight = cuda_floats(NULL, BITS_C),
               d_bias = cuda_floats(NULL, BITS_C), places = cuda_floats(NULL, BITS_POSITIONS * BITS_C);
    int32_t positions[BITS_ROWS];
    for (int i = 0; i < BITS_ROWS; i++) positions[i] = i % BITS_POSITIONS;
    CudaTensor positions_there = cuda_tokens(positions, BITS_ROWS);
    forward(&n, &t, t.residual.data);
    device->layernorm_backward(device, d_x.data, d_weight.data, d_bias.data, t.d_out.data, t.residual.data,
                               t.weight.data, t.mean.data, t.rstd.data, BITS_ROWS, BITS_C);
    device->embedding_backward(device, table.data, places.data, t.d_out.data, tokens.data, positions_there.data,
                               BITS_ROWS, BITS_POSITIONS, BITS_C, BITS_V);
    float *to = results;
    cuda_fetch_raw(&table, to);
    cuda_fetch_raw(&d_weight, to + BITS_V * BITS_C);
    cuda_fetch_raw(&d_bias, to + (BITS_V + 1) * BITS_C);
    cuda_fetch_raw(&places, to + (BITS_V + 2) * BITS_C);
    cuda_fetch_raw(&d_x, to + (BITS_V + 2 + BITS_POSITIONS) * BITS_C);
}

static void same_bits_in_another_order(void **state) {
    (void)state;
    expect_same_bits_twice("backward passes", results_for_bits,
                           (BITS_V + 2 + BITS_POSITIONS) * BITS_C * sizeof(float) +
                               BITS_ROWS * BITS_C * sizeof(uint16_t));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_in_another_order), // first: no device is open yet
        cmocka_unit_test(layernorm),
        cmocka_unit_test(rmsnorm),
        cmocka_unit_test(norms_of_extreme_rows),
        cmocka_unit_test(embedding),
        cmocka_unit_test(embedding_sums_in_the_order_of_rows),
        cmocka_unit_test(positions_sum_in_the_order_of_rows),
        cmocka_unit_test(no_rows_is_nothing),
        cmocka_unit_test(the_last_of_many_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
