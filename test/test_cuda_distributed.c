// Distributed attention on CUDA devices: 1 to 4 ranks as threads, every exchange, forward and backward, against the
// whole sequence in double precision (test/attention_problem.h). The error may be twice that of plain bf16 on one rank,
// over a tensor (root mean square) and at its worst element, and it may not grow with the ranks.
//
// A GPU works while its rank's thread goes on, so what is at stake beside the kernels is order: a block read before it
// came, a buffer filled again too early. The emulated device runs its work as late and in as odd an order as it may,
// which its seed decides; since the seed is read once, the matrix runs in programs that this test starts (itself, with
// arguments), and all of them must give the same bits: each rank with a GPU or all on one, by copies or by NCCL, and
// again over a scratch full of the last results. Hopper's kernels, which sum in another order, have a program for heads
// of 64, and bits of their own.
//
// With TEST_DEVICE=cuda in the environment this runs on the GPUs there are.
#include "test/attention_problem.h"
#include "test/cuda_device.h"
#include "test/ranks.h"

static void open_device(Device *device, int index) {
    Error err = {0};
    if (!device_open(device, cuda_device_kind(), index, 1, &err)) die(&err);
}
static void shared_device(Device *device, int rank) { (void)rank, open_device(device, 0); }
static void own_device(Device *device, int rank) {
    int gpus = cuda_device_is_gpu() ? cuda_devices_here() : 4;
    open_device(device, rank % gpus);
}

// ---- the matrix: in a program of its own ----------------------------------------------------------------------------

static const char *transport; // "own", "shared", "hopper" (as own) or "nccl"
static double largest_share;  // of what is allowed

// Of the reference that makes the same roundings as this run must.
static Deviation plain_deviation(const Run *run, int result) {
    const Problem *p = run->problem;
    const double *plain = run->config.exchange == EXCHANGE_VANILLA ? p->vanilla[result] : p->plain[result];
    double error = 0, norm = 0, max = 0;
    for (int64_t i = 0; i < result_count(p, result); i++) {
        double answer = p->answer[result][i], difference = plain[i] - answer;
        error += difference * difference;
        norm += answer * answer;
        max = fmax(max, fabs(difference));
    }
    return (Deviation){sqrt(error / norm), max / sqrt(norm / (double)result_count(p, result))};
}

static void expect_within(const Run *run, int result, const char *what, double found, double allowed) {
    if (!(found <= allowed))
        fail_msg("%s: error of %s: %.2e (%s), allowed %.2e", run_title(run), result_names[result], found, what,
                 allowed);
    largest_share = fmax(largest_share, found / allowed);
}

// The log-sum-exp is fp32. A score is a sum of D products, each rounded as it is added, and is rounded again by its
// scale: some 4 roundings of the largest score, if they go up as often as down. The sum of exponentials, each good to
// 22 bits, adds less than 16 roundings of 1. Relative to the answers' root mean square.
static double log_sum_exp_within(const Problem *p) {
    double norm = 0;
    int64_t count = result_count(p, LOG_SUM_EXP);
    for (int64_t i = 0; i < count; i++) norm += p->answer[LOG_SUM_EXP][i] * p->answer[LOG_SUM_EXP][i];
    return 0x1p-24 * (16 + 4 * p->largest_score) / sqrt(norm / (double)count);
}

// one_rank: NULL, or what one rank was off by. The roundings of P to bf16 fall elsewhere where the keys are cut
// elsewhere, which changes the error by a few hundredths, up or down.
static void check_exact(const Run *run, Deviation found[RESULTS], const Deviation one_rank[RESULTS]) {
    for (int r = 0; r < RESULTS; r++) {
        found[r] = deviation(run, r);
        if (r == LOG_SUM_EXP && run->config.exchange != EXCHANGE_VANILLA) {
            expect_within(run, r, "max", found[r].max, log_sum_exp_within(run->problem));
            continue;
        }
        Deviation plain = plain_deviation(run, r);
        expect_within(run, r, "rms", found[r].rms, 2 * plain.rms);
        expect_within(run, r, "max", found[r].max, 2 * plain.max);
        if (one_rank != NULL) expect_within(run, r, "rms, by that of one rank", found[r].rms, 1.25 * one_rank[r].rms);
    }
    if (getenv("VERBOSE") != NULL)
        fprintf(stderr, "%s: out %.2e dQ %.2e dK %.2e dV %.2e\n", run_title(run), found[OUT].rms, found[D_Q].rms,
                found[D_K].rms, found[D_V].rms);
}

// FNV-1a over all results, in a line by which the programs are compared.
static void print_bits(const Run *run) {
    uint64_t hash = 0xcbf29ce484222325;
    for (int r = 0; r < RESULTS; r++) {
        const unsigned char *bytes = (const unsigned char *)run->result[r];
        for (size_t i = 0; i < (size_t)result_count(run->problem, r) * sizeof(float); i++)
            hash = (hash ^ bytes[i]) * 0x100000001b3;
    }
    printf("bits %016llx %s\n", (unsigned long long)hash, run_title(run));
}

static Run run_this_way(const Problem *problem, int ranks, Way way) {
    bool nccl = strcmp(transport, "nccl") == 0, shared = strcmp(transport, "shared") == 0;
    return run_repeated(problem, shared ? shared_device : own_device, ranks, way.exchange, way.ulysses, shared ? 2 : 1,
                        nccl);
}

static void check_problem(Problem problem) {
    Deviation one_rank[RESULTS], found[RESULTS];
    for (int P = 1; P <= 4; P++) {
        for (Way way = {EXCHANGE_AUTO, 0}; next_way(&problem, P, &way);) {
            bool first = P == 1 && way.exchange == EXCHANGE_RING;
            if (P == 1 && !first) continue; // the same walk
            Run run = run_this_way(&problem, P, way);
            check_exact(&run, first ? one_rank : found, first ? NULL : one_rank);
            check_bytes(&run);
            print_bits(&run);
            free_run(&run);
        }
    }
    Run run = run_this_way(&problem, 1, (Way){EXCHANGE_VANILLA, 1});
    check_exact(&run, found, NULL);
    print_bits(&run);
    free_run(&run);
    free_problem(&problem);
}

static void one_token_in_some_chunks(void **state) { (void)state, check_problem(make_bf16_problem(2, 9, 4, 4, 32, 1)); }
static void uneven_chunks(void **state) { (void)state, check_problem(make_bf16_problem(2, 53, 4, 4, 32, 1)); }
static void three_ranks_share_heads(void **state) { (void)state, check_problem(make_bf16_problem(1, 61, 6, 3, 32, 1)); }
static void grouped_heads(void **state) { (void)state, check_problem(make_bf16_problem(1, 75, 8, 2, 32, 1)); }
static void one_key_value_head(void **state) { (void)state, check_problem(make_bf16_problem(1, 139, 4, 1, 64, 1)); }
static void long_context(void **state) { (void)state, check_problem(make_bf16_problem(1, 291, 2, 2, 64, 1)); }
static void gaps_of_a_thousand(void **state) {
    (void)state;
    Problem problem = make_bf16_problem(1, 97, 4, 2, 32, 300);
    assert_true(problem.largest_gap > 1000);
    check_problem(problem);
}

static int run_matrix(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uneven_chunks),           cmocka_unit_test(grouped_heads), // these two on every transport
        cmocka_unit_test(one_key_value_head),      cmocka_unit_test(one_token_in_some_chunks),
        cmocka_unit_test(three_ranks_share_heads), cmocka_unit_test(long_context),
        cmocka_unit_test(gaps_of_a_thousand),
    };
    const struct CMUnitTest some[] = {tests[0], tests[1]}, of_64[] = {tests[2], tests[5]};
    int failures = strcmp(transport, "own") == 0      ? cmocka_run_group_tests_name(transport, tests, NULL, NULL)
                   : strcmp(transport, "hopper") == 0 ? cmocka_run_group_tests_name(transport, of_64, NULL, NULL)
                                                      : cmocka_run_group_tests_name(transport, some, NULL, NULL);
    fprintf(stderr, "%s: at most %.2f of the allowed error\n", transport, largest_share);
    return failures;
}

// ---- the programs ---------------------------------------------------------------------------------------------------

enum { PROGRAMS = 4, HOPPER = 2 };
static const struct {
    const char *transport, *seed, *gpu;
} programs[PROGRAMS] = {{"own", "EMULATED_SEED=1", "EMULATED_ARCH=80"},
                        {"shared", "EMULATED_SEED=20261122", "EMULATED_ARCH=80"},
                        {"hopper", "EMULATED_SEED=4", "EMULATED_ARCH=90"},
                        {"nccl", "EMULATED_SEED=3", "EMULATED_ARCH=80"}};

static char *bit_lines(const char *text) { // the lines that begin with "bits "
    char *lines = checked(calloc(strlen(text) + 1, 1));
    for (const char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1)
        if (strncmp(line, "bits ", 5) == 0) strncat(lines, line, (size_t)(end + 1 - line));
    return lines;
}

static void every_exchange_on_every_transport(void **state) {
    (void)state;
    int devices = cuda_devices_here();
    if (devices == 0) skip();
    int count = devices >= 4 ? PROGRAMS : PROGRAMS - 1; // NCCL wants a GPU for each rank
    RunningProgram running[PROGRAMS];
    char *bits[PROGRAMS] = {NULL};
    for (int i = 0; i < count; i++) {
        const char *const argv[] = {"env", programs[i].seed, programs[i].gpu, own_path(), programs[i].transport, NULL};
        running[i] = start_program(argv);
    }
    bool failed = false;
    for (int i = 0; i < count; i++) {
        ProgramResult result = finish_program(&running[i], 150);
        failed = failed || result.exit_code != 0;
        fprintf(stderr, "%s", result.err);
        if (result.exit_code != 0)
            fprintf(stderr, "%s: exit code %d\n%s", programs[i].transport, result.exit_code, result.out);
        bits[i] = bit_lines(result.out);
        free_result(&result);
    }
    if (failed) fail_msg("see above");
    assert_true(strlen(bits[0]) > 0);
    for (int i = 1; i < count; i++) {
        assert_true(strlen(bits[i]) > 0);
        if (i == HOPPER) continue;
        for (char *line = bits[i], *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
            *end = 0;
            if (strstr(bits[0], line) == NULL) fail_msg("%s has other bits: %s", programs[i].transport, line);
        }
    }
    for (int i = 0; i < count; i++) free(bits[i]);
}

int main(int argc, char **argv) {
    if (argc == 2) {
        transport = argv[1];
        return run_matrix();
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_exchange_on_every_transport)};
    return cmocka_run_group_tests_name("distributed attention on CUDA", tests, NULL, NULL);
}
