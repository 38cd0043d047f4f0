// What token mixers state that they cost is what the table in doc/mixers.md says, row by row; and the operations of
// those that work on pairs of tokens are those of the pairs that see each other.
#include "test/mixer_choices.h"

#include <math.h>

#include "attention/attention.h"

// ---- the table ------------------------------------------------------------------------------------------------------

// The table takes for granted that T is a power of two, chunks are even, and W is small beside T and large beside 1.
static const double T = 65536, C = 256, H = 4, D = 64, B = 3, P = 4, W = 512, R = 4;

static ModelConfig config_of(const char *mixer, double window) {
    ModelConfig config = {.architecture = ARCH_LLAMA,
                          .layers = 1,
                          .heads = (int64_t)H,
                          .kv_heads = (int64_t)H,
                          .head_dim = (int64_t)D,
                          .dim = (int64_t)C,
                          .max_positions = (int64_t)T,
                          .windows = {(int64_t)window},
                          .window_period = window > 0};
    Error err;
    if (!mixers_read(&config, mixer, "mixer", &err)) fail_msg("%s", err.message);
    return config;
}

static const Mixer *mixer_of(const ModelConfig *config) { return layer_kind(config, 0).tokens; }

static MixerSize size_of(const ModelConfig *config, double e) {
    return (MixerSize){.config = config,
                       .rows = (int64_t)T,
                       .sequences = 1,
                       .element_bytes = (size_t)e,
                       .context = (int64_t)T,
                       .ranks = 1};
}

static double kept_per_token(const ModelConfig *config, double e) {
    Arena arena = {0};
    MixerMemory memory;
    MixerSize size = size_of(config, e);
    mixer_of(config)->lay_out_kept(&size, &memory, &arena);
    return (double)arena.used / T;
}

static double state_bytes(const ModelConfig *config, double e) {
    Arena arena = {0};
    MixerMemory memory;
    MixerSize size = size_of(config, e);
    mixer_of(config)->lay_out_cache(&size, &memory, &arena);
    return (double)arena.used;
}

typedef struct Sent { // forward, in the mean over ranks and by the busiest; backward by the busiest
    double mean, most, backward;
} Sent;

static Sent bytes_sent(const ModelConfig *config, Exchange exchange, double e) {
    AttentionConfig sharding = {.context = (int64_t)T,
                                .ranks = (int)P,
                                .exchange = exchange,
                                .shape = {(int64_t)B, config->heads, config->kv_heads, config->head_dim, 1},
                                .element_bytes = (size_t)e};
    Error err;
    Sent sent = {0};
    if (!attention_resolve(&sharding, &err)) fail_msg("%s", err.message);
    for (int rank = 0; rank < (int)P; rank++) {
        AttentionBytes bytes = mixer_of(config)->bytes_sent(config, 0, &sharding, rank);
        sent.mean += (double)bytes.forward / P;
        sent.most = fmax(sent.most, (double)bytes.forward);
        sent.backward = fmax(sent.backward, (double)bytes.backward);
    }
    return sent;
}

static const char *mixer_name, *table_row; // of the row at work, for messages

static void begin_row(const char *document, const char *mixer, const char *row) {
    char line[400];
    snprintf(line, sizeof line, "\n| %s |\n", row);
    if (strstr(document, line) == NULL) fail_msg("doc/mixers.md has no row \"%s\"", row);
    mixer_name = mixer, table_row = row;
}

static void expect(const char *what, double stated, double table, double allowed) {
    if (!(fabs(stated - table) <= allowed * table))
        fail_msg("%s: %s is %.8g, and %.8g by the row \"%s\"", mixer_name, what, stated, table, table_row);
}

// All four columns. What buffers are rounded up to, and what a last block may have too much, is below 1e-3 of it.
static void expect_costs(const ModelConfig *c, double e, double time, double kept, double sent, double state) {
    expect("time", mixer_of(c)->flops(c, 0, (int64_t)T), time, 1e-3);
    expect("memory", kept_per_token(c, e), kept, 1e-3);
    expect("what is sent", bytes_sent(c, EXCHANGE_RING, e).mean, sent, 1e-3);
    expect("the state", state_bytes(c, e), state, 1e-3);
}

// A window's first rows see less, by W / 2 T of all, and W - 1 is taken for W.
static void expect_window(const ModelConfig *c, double e, double dilation) {
    expect("time", mixer_of(c)->flops(c, 0, (int64_t)T), 14 * W * C / dilation, W / (2 * T) + 1e-3);
    expect("memory", kept_per_token(c, e), 4 * C * e + 4 * H, 1e-3);
    expect("what is sent", bytes_sent(c, EXCHANGE_GATHER, e).most, 4 * B * W * C * e / dilation, 1 / W + 1e-3);
    expect("what a ring sends", bytes_sent(c, EXCHANGE_RING, e).mean, (P - 1) * 2 * B * W * C * e / dilation,
           1 / W + 1e-3);
    expect("the state", state_bytes(c, e), 2 * T * C * e, 1e-3);
}

static void check_attention(const char *document, double e) {
    ModelConfig c = config_of("attention", 0);
    begin_row(document, "attention", "`attention` | 7 T C | 4 C e + 4 H | 3/4 (P - 1)/P 2 B T C e | 2 T C e");
    expect_costs(&c, e, 7 * T * C, 4 * C * e + 4 * H, 0.75 * (P - 1) / P * 2 * B * T * C * e, 2 * T * C * e);
    c = config_of("attention", W);
    begin_row(document, "attention",
              "`--window W` | 14 W C | the same | the last W - 1 tokens before each chunk: 4 B W C e; a ring (P - 1) 2 "
              "B W C e | 2 T C e");
    expect_window(&c, e, 1);
    c = config_of("dilated:512,4", 0);
    begin_row(document, "dilated", "`dilated:W,R` | 14 W C / R | the same | 1/R of that | 2 T C e");
    expect_window(&c, e, R);
}

static void check_states(const char *document, double e) {
    ModelConfig c = config_of("linear", 0);
    begin_row(document, "linear",
              "`linear` | 14 C (D + 32) | 4 C e + 4 H, and a state every 512 tokens (GPUs: 4,096) | (P - 1) 2 B C (D + "
              "1) 4 | C (D + 1) 4");
    double state = C * (D + 1) * 4;
    expect_costs(&c, e, 14 * C * (D + 32), 4 * C * e + 4 * H + state / (e == 4 ? 512 : 4096), (P - 1) * 2 * B * state,
                 state);
    c = config_of("delta", 0);
    begin_row(document, "delta", "`delta` | 2 C (9 D + 448) | 5 C e + 2 H e | (P - 1) 2 B 2 C D 4 | C D 4");
    expect_costs(&c, e, 2 * C * (9 * D + 448), 5 * C * e + 2 * H * e, (P - 1) * 2 * B * 2 * C * D * 4, C * D * 4);
    c = config_of("mean", 0);
    begin_row(document, "mean", "`mean` | 4 C | C e | (P - 1) 2 B C 4 | 8 C");
    expect_costs(&c, e, 4 * C, C * e, (P - 1) * 2 * B * C * 4, 8 * C);
}

static void check_channels(const char *document, double e) {
    static const char *const convs[] = {"conv", "conv:gated"};
    double rows = (P - 1) / P * T * C * e / P; // of one sequence, one way
    for (int gated = 0; gated <= 1; gated++) {
        ModelConfig c = config_of(convs[gated], 0);
        begin_row(document, convs[gated],
                  "`conv` | 40 C log2 2T + 18 C | 2 C e; `:gated` 5 C e | (P - 1)/P (2 B + 1) T C e / P | T C (e + 4)");
        expect_costs(&c, e, 40 * C * log2(2 * T) + 18 * C, (gated ? 5 : 2) * C * e, (2 * B + 1) * rows,
                     T * C * (e + 4));
        expect("what is sent backward", bytes_sent(&c, EXCHANGE_RING, e).backward, (2 * B + 2) * rows, 1e-3);
    }
    ModelConfig c = config_of("fourier", 0);
    begin_row(document, "fourier", "`fourier` | 30 C log2 2T + 18 C | C e | (P - 1)/P 2 B T C e / P | 16 C");
    expect_costs(&c, e, 30 * C * log2(2 * T) + 18 * C, C * e, 2 * B * rows, 16 * C);
    c = config_of("mlp", 0);
    begin_row(document, "mlp", "`mlp` | 3 T C | C e | (P - 1)/P B T C e | T C e");
    expect_costs(&c, e, 3 * T * C, C * e, (P - 1) / P * B * T * C * e, T * C * e);
}

// These send as much backward as forward.
static void check_backward(double e) {
    static const char *const alike[] = {"linear", "delta", "fourier", "mean"};
    for (int i = 0; i < 4; i++) {
        ModelConfig c = config_of(alike[i], 0);
        Sent sent = bytes_sent(&c, EXCHANGE_RING, e);
        assert_true(sent.backward == sent.most);
    }
}

static void the_table_is_true(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    char *document = read_file(project_path(path, "doc/mixers.md"), NULL);
    for (int e = 2; e <= 4; e += 2) {
        check_attention(document, e);
        check_states(document, e);
        check_channels(document, e);
        check_backward(e);
    }
    free(document);
}

static void every_mixer_has_a_row(void **state) {
    (void)state;
    char path[PROGRAM_PATH], begins[64];
    char *document = read_file(project_path(path, "doc/mixers.md"), NULL);
    char *table = strstr(document, "\n| mixer | time | memory | sent | state |\n");
    assert_non_null(table);
    char *end = strstr(table, "\n\n");
    assert_non_null(end);
    *end = '\0';
    for (int i = 0; token_mixers[i] != NULL; i++) {
        snprintf(begins, sizeof begins, "\n| `%s", token_mixers[i]->name);
        const char *row = strstr(table, begins);
        if (row == NULL || strchr("`:", row[strlen(begins)]) == NULL) fail_msg("no row of %s", token_mixers[i]->name);
    }
    free(document);
}

// ---- pairs ----------------------------------------------------------------------------------------------------------

// The operations of a token in the mean over LENGTH of them: `products` multiply-adds for each of D values, or of
// channels, for each pair that a head sees.
enum { LENGTH = 500 };

static double counted(int64_t window, int64_t dilation, int products) {
    double sum = 0;
    for (int64_t h = 0; h < (int64_t)H; h++)
        for (int64_t i = 0; i < LENGTH; i++)
            for (int64_t j = 0; j <= i; j++)
                if (i - j < window && j % dilation == h * dilation / (int64_t)H) sum += 2 * D * products;
    return sum / LENGTH;
}

static void expect_counted(const char *mixer, double window, double operations, double allowed) {
    ModelConfig c = config_of(mixer, window);
    double stated = mixer_of(&c)->flops(&c, 0, LENGTH);
    if (!(fabs(stated - operations) <= allowed * operations))
        fail_msg("%s, window %g: it states %.8g operations per token, and %.8g are counted", mixer, window, stated,
                 operations);
}

// Attention's 2 products forward, q . k and P V, and 5 backward: q . k again, d_y . v, and what goes to q, k and v. It
// says T / 2 for the (T + 1) / 2 keys that a token sees in the mean where it sees all; and a grid's first rows see none
// or one, whatever W / R says of them. An MLP's product forward and two backward.
static void operations_are_those_of_pairs(void **state) {
    (void)state;
    expect_counted("attention", 0, counted(LENGTH, 1, 7), 1.0 / LENGTH);
    expect_counted("attention", 60, counted(60, 1, 7), 1e-9);
    expect_counted("dilated:60,4", 0, counted(60, 4, 7), 4.0 / LENGTH);
    expect_counted("dilated:60,2", 0, counted(60, 2, 7), 2.0 / LENGTH);
    expect_counted("mlp", 0, counted(LENGTH, 1, 3), 1e-9);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_table_is_true), cmocka_unit_test(every_mixer_has_a_row),
                                       cmocka_unit_test(operations_are_those_of_pairs)};
    return cmocka_run_group_tests_name("mixers_cost", tests, NULL, NULL);
}
