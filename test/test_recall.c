// Known answers: associative recall over a distance of 256 tokens. Two layers of attention learn it; with windows of
// 64, which reach back 126 tokens in two layers, they cannot; linear attention, whose state sums over all tokens, lies
// between: it finds most of the values, and is less sure of them.
//
// A sequence tells some pairs of a key and a value, and asks for keys: the token after a key that is asked must be its
// pair. A token is a pair (16 keys x 4 values) or a question (16). FAR pairs come first, and are asked at the very end,
// `distance` tokens later; between are the other keys, told once and asked again and again. Pairs and questions are
// drawn evenly, so no other token tells a value: who cannot recall is right once in 4 times.
//
// It is learned at short distances first, of 24 and 64 tokens, then at 256: three runs, each from the weights of the
// one before. All but a few rotary angles stand still (--rope-theta 1e15), for what is asked does not depend on
// distance.
#include "test/compare.h"
#include "test/folder.h"
#include "test/token_files.h"

#include "base/random.h"

enum { KEYS = 16, VALUES = 4, MOST_FAR = 8, MOST_TOKENS = 256 + 2 * MOST_FAR, TIME_LIMIT = 60 };

typedef struct Drawing {
    uint64_t seed, drawn;
} Drawing;

static int below(Drawing *d, int bound) {
    return (int)random_below(d->seed, RANDOM_STREAM_DATA, d->drawn++, (uint64_t)bound);
}

static uint32_t pair_of(int key, const int *value) { return (uint32_t)(KEYS + key * VALUES + value[key]); }

// One sequence of distance + 2 far tokens.
static void make_sequence(Drawing *d, int far, int distance, uint32_t *token) {
    int key[KEYS], value[KEYS], told = far, n = 0;
    for (int i = 0; i < KEYS; i++) {
        int j = below(d, i + 1);
        key[i] = key[j];
        key[j] = i;
        value[i] = below(d, VALUES);
    }
    for (int i = 0; i < far; i++) token[n++] = pair_of(key[i], value);
    while (n < distance) {
        if (told == far || (told < KEYS && below(d, 3) == 0)) {
            token[n++] = pair_of(key[told++], value);
            continue;
        }
        int asked = key[far + below(d, told - far)];
        token[n++] = (uint32_t)asked;
        token[n++] = pair_of(asked, value); // may be the first token behind `distance`, which is then written over
    }
    n = distance;
    for (int i = far - 1; i > 0; i--) { // asked in another order
        int j = below(d, i + 1), other = key[i];
        key[i] = key[j];
        key[j] = other;
    }
    for (int i = 0; i < far; i++) {
        token[n++] = (uint32_t)key[i];
        token[n++] = pair_of(key[i], value);
    }
}

// `count` sequences, and one token more, which the last one's last target is. To be freed.
static uint32_t *make_data(const char *path, uint64_t seed, int64_t count, int far, int distance) {
    int T = distance + 2 * far;
    uint32_t *token = calloc((size_t)(count * T + 1), sizeof *token);
    unsigned char *bytes = malloc((size_t)(count * T + 1) * 2);
    Drawing d = {.seed = seed};
    assert_true(token != NULL && bytes != NULL);
    for (int64_t i = 0; i < count; i++) {
        uint32_t room[MOST_TOKENS + 1]; // one question more than fits
        make_sequence(&d, far, distance, room);
        memcpy(token + i * T, room, (size_t)T * sizeof *token);
    }
    for (int64_t i = 0; i <= count * T; i++) {
        bytes[2 * i] = (unsigned char)(token[i] & 255);
        bytes[2 * i + 1] = (unsigned char)(token[i] >> 8);
    }
    write_file(path, bytes, (size_t)(count * T + 1) * 2);
    free(bytes);
    return token;
}

// ---- learning -------------------------------------------------------------------------------------------------------

typedef struct Stage {
    int far, distance, batch, steps;
    const char *rate;
} Stage;
static const Stage stages[] = {{4, 24, 16, 1500, "2e-3"}, {8, 64, 8, 500, "2e-3"}, {8, 256, 4, 400, "2e-3"}};

static char *name_of(char path[PROGRAM_PATH], const char *model, int stage, const char *what) {
    char name[100];
    snprintf(name, sizeof name, "%s-%d%s", model, stage, what);
    return path_join(path, folder, name);
}

static void add_run(Command *command, const char *data, int context) {
    add_words(command, train_gpt_path(), "--device", "cpu", "--data", data, "--val-data", data, NULL);
    add_words(command, "--data-format", "uint16", "--eval-windows", "1", "--sample-tokens", "0", "--sp", "1", NULL);
    add_words(command, "--threads", "1", NULL); // of which there are two: other tests run beside this one
    add_number(command, "--context", context);
}

// Stage `stage` of learning, from the weights of `from` (NULL: new ones); "attention" or another --mixer.
static void learn(const char *model, int stage, const char *from, const char *mixer, const char *window, int seed) {
    char data[PROGRAM_PATH], out[PROGRAM_PATH], before[PROGRAM_PATH];
    const Stage *s = &stages[stage];
    int T = s->distance + 2 * s->far;
    Command command = {0};
    free(make_data(name_of(data, model, stage, ".bin"), (uint64_t)(100 * seed + stage), (int64_t)s->steps * s->batch,
                   s->far, s->distance));
    add_run(&command, data, T);
    add_words(&command, "--out", name_of(out, model, stage, ""), "--lr", s->rate, "--weight-decay", "0", NULL);
    add_number(&command, "--batch", s->batch);
    add_number(&command, "--steps", s->steps);
    add_number(&command, "--seed", seed);
    if (from == NULL) {
        add_words(&command, "--layers", "2", "--heads", "1", "--dim", "64", "--ffn", "64", "--untied", NULL);
        add_words(&command, "--rope-theta", "1e15", "--mixer", mixer, NULL);
        add_number(&command, "--vocab-size", KEYS + KEYS * VALUES);
    } else {
        char step[40];
        snprintf(step, sizeof step, "/step-%08d", stages[stage - 1].steps);
        add_words(&command, "--init", name_of(before, from, stage - 1, step), NULL);
    }
    if (window != NULL) add_words(&command, "--window", window, NULL);
    ProgramResult result = run_command(&command, TIME_LIMIT);
    free_result(&result);
    remove(data);
}

// What the model of the last stage says after the far questions: how often the likeliest of the key's values is the
// right one, and the loss of the right pair among all tokens, in nats.
typedef struct Recall {
    double share, loss;
} Recall;

static void judge(Recall *sum, const float *row, int64_t V, uint32_t asked, uint32_t right) {
    const float *of_key = row + KEYS + (int64_t)asked * VALUES;
    double most = row[0], exponentials = 0;
    int best = 0;
    for (int v = 1; v < VALUES; v++)
        if (of_key[v] > of_key[best]) best = v;
    for (int64_t v = 0; v < V; v++) most = fmax(most, row[v]);
    for (int64_t v = 0; v < V; v++) exponentials += exp(row[v] - most);
    sum->share += of_key + best == row + right;
    sum->loss += most + log(exponentials) - row[right];
}

// Each sequence is a file of its own, whose logits a step leaves.
static Recall recall_of(const char *model) {
    enum { SEQUENCES = 8, TEST_SEED = 999, LAST = 2 };
    const Stage *s = &stages[LAST];
    int T = s->distance + 2 * s->far;
    Recall sum = {0};
    for (int i = 0; i < SEQUENCES; i++) {
        char data[PROGRAM_PATH], dump[PROGRAM_PATH], from[PROGRAM_PATH], step[40], path[PROGRAM_PATH];
        Command command = {0};
        uint32_t *token =
            make_data(path_join(data, folder, "asked.bin"), TEST_SEED + (uint64_t)i, 1, s->far, s->distance);
        snprintf(step, sizeof step, "/step-%08d", s->steps);
        add_run(&command, data, T);
        add_words(&command, "--init", name_of(from, model, LAST, step), "--steps", "1", NULL);
        add_words(&command, "--dump", path_join(dump, folder, "dump"), NULL);
        ProgramResult result = run_command(&command, TIME_LIMIT);
        free_result(&result);
        Safetensors *tensors = open_tensors(path_join(path, folder, "dump/logits.safetensors"));
        const Tensor *logits = find_tensor(tensors, "logits");
        float *value = tensor_values(logits);
        int64_t V = logits->count / T;
        for (int t = s->distance; t < T; t += 2) judge(&sum, value + t * V, V, token[t], token[t + 1]);
        free(value);
        free(token);
        safetensors_close(tensors);
    }
    return (Recall){sum.share / (SEQUENCES * s->far), sum.loss / (SEQUENCES * s->far)};
}

static void attention_recalls(void **state) {
    (void)state;
    if (program_slowness() > 1) skip(); // it trains for half a minute
    // RECALL_SEEDS in the environment: of so many seeds, one by default.
    const char *seeds = getenv("RECALL_SEEDS");
    for (int seed = 1; seed <= (seeds != NULL ? atoi(seeds) : 1); seed++) {
        double start = program_clock();
        learn("attention", 0, NULL, "attention", NULL, seed);
        learn("attention", 1, "attention", NULL, NULL, seed);
        learn("attention", 2, "attention", NULL, NULL, seed);
        learn("window", 2, "attention", NULL, "64", seed);
        learn("linear", 0, NULL, "linear:1", NULL, seed);
        learn("linear", 1, "linear", NULL, NULL, seed);
        learn("linear", 2, "linear", NULL, NULL, seed);
        Recall attention = recall_of("attention"), window = recall_of("window"), linear = recall_of("linear");
        print_message("# seed %d, %.0f s: recalled at a distance of 256, and loss: attention %.3f, %.2f; windows of 64 "
                      "%.3f, %.2f; linear %.3f, %.2f\n",
                      seed, program_clock() - start, attention.share, attention.loss, window.share, window.loss,
                      linear.share, linear.loss);
        assert_true(attention.share > 0.95 && attention.loss < 0.4);
        assert_true(window.share < 0.45 && window.loss > 1.2);
        // Three seeds have 3 to 40 times attention's loss.
        assert_true(linear.share > window.share + 0.4);
        assert_true(linear.loss > attention.loss && linear.loss < window.loss - 0.5);
        char run[PROGRAM_PATH];
        for (int stage = 0; stage < 3; stage++) {
            remove_tree(name_of(run, "attention", stage, ""));
            remove_tree(name_of(run, "window", stage, ""));
            remove_tree(name_of(run, "linear", stage, ""));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(attention_recalls)};
    return cmocka_run_group_tests_name("recall", tests, make_folder, remove_folder);
}
