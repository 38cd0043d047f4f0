// The experiment distributed_vs_vanilla, in its quick form: that it goes on after it was killed, what it says of memory
// and of bytes sent, what it projects; and dev/bench_distributed, with which it measures.
#include <libgen.h>

#include "test/shell.h"

#define SCRIPT "\"$tree\"/scripts/experiments/distributed_vs_vanilla --form quick --train-gpt \"$program\" "
#define BENCH "\"$bench\" "

typedef struct Way {
    const char *exchange;
    int ranks;
} Way;
static const Way ways[] = {{"vanilla", 1}, {"streaming", 1}, {"ring", 2}, {"gather", 2}, {"ulysses", 2},
                           {"ring", 4},    {"gather", 4},    {"ulysses", 4}, {"ulysses-ring", 4}};
enum { WAYS = sizeof ways / sizeof *ways };

static int prepare(void **state) {
    char program[PROGRAM_PATH], bench[PROGRAM_PATH];
    make_folder(state);
    snprintf(program, sizeof program, "%s", train_gpt_path());
    path_join(bench, dirname(program), "dev/bench_distributed");
    return setenv("bench", bench, 1);
}

// ---- memory and bytes, by the lay-out ------------------------------------------------------------------------------

typedef struct Plan {
    long long tensors, scratch, sent;
} Plan;

static Plan read_line(const char *line) { // behind the name of its pass
    Plan plan = {0};
    char resident[32] = "";
    int count = sscanf(line, "%lld,%lld,%31[^,],%lld", &plan.tensors, &plan.scratch, resident, &plan.sent);
    if (count < 4) count = sscanf(line, "%lld,%lld,,%lld", &plan.tensors, &plan.scratch, &plan.sent) + 1;
    if (count != 4) fail_msg("not the line of a measurement: %s", line);
    return plan;
}

static Plan plan_of(Way way, int T, const char *pass) {
    char command[200], name[16];
    snprintf(command, sizeof command, BENCH "--plan %s %d %d", way.exchange, way.ranks, T);
    snprintf(name, sizeof name, ",%s,", pass);
    char *said = run_shell(command, 0), *line = strstr(said, name);
    if (line == NULL) fail_msg("no pass %s: %s", pass, said);
    Plan plan = read_line(line + strlen(name));
    free(said);
    return plan;
}

// The a of a T^2 + b T + c, times 6 T^2, from the bytes at T, 2T and 4T.
static long long second_difference(Way way, int T, const char *pass) {
    long long bytes[3];
    for (int i = 0; i < 3; i++) {
        Plan plan = plan_of(way, T << i, pass);
        bytes[i] = plan.tensors + plan.scratch;
    }
    return (bytes[2] - bytes[1]) - 2 * (bytes[1] - bytes[0]);
}

// Vanilla has a T x T matrix of fp32 for each of 4 heads, and nobody else anything of that size. T is such that no size
// is rounded up.
static void test_growth(void **state) {
    (void)state;
    const long long T = 512;
    for (int i = 0; i < WAYS; i++) {
        long long expected = strcmp(ways[i].exchange, "vanilla") == 0 ? 6 * T * T * 4 * 4 : 0;
        assert_int_equal(second_difference(ways[i], (int)T, "forward"), expected);
        assert_int_equal(second_difference(ways[i], (int)T, "both"), expected);
    }
}

// What a rank has of a layer's tensors is its share, and what the ring and ulysses work in is twice as much on half as
// many ranks; gather holds the keys and values of all.
static void test_sharding(void **state) {
    (void)state;
    const Way streaming = {"streaming", 1};
    const char *const passes[] = {"forward", "both"};
    for (int i = 0; i < WAYS; i++)
        for (int pass = 0; pass < 2; pass++) {
            long long whole = plan_of(streaming, 4096, passes[pass]).tensors;
            assert_int_equal(plan_of(ways[i], 4096, passes[pass]).tensors * ways[i].ranks, whole);
        }
    const char *const exchanges[] = {"ring", "ulysses", "gather"};
    for (int i = 0; i < 3; i++) {
        long long more[2]; // scratch by which 8,192 tokens need more than 4,096; what does not grow is the kernels'
        for (int n = 0; n < 2; n++) {
            Way way = {exchanges[i], 2 << n};
            more[n] = plan_of(way, 8192, "both").scratch - plan_of(way, 4096, "both").scratch;
        }
        if (strcmp(exchanges[i], "gather") == 0) assert_true(2 * more[1] > more[0]);
        else assert_int_equal(2 * more[1], more[0]);
    }
}

// The longest context fits, and the next longer one that is looked at does not.
static void test_largest(void **state) {
    (void)state;
    const long long budget = 100 << 20;
    for (int i = 0; i < WAYS; i++) {
        char command[200], name[40];
        snprintf(command, sizeof command, BENCH "--pass forward --largest %lld %s %d", budget, ways[i].exchange,
                 ways[i].ranks);
        snprintf(name, sizeof name, "\n%s,%d,", ways[i].exchange, ways[i].ranks);
        char *said = run_shell(command, 0);
        if (strstr(said, name) == NULL) fail_msg("%s", said);
        int T = atoi(strstr(said, name) + strlen(name));
        Plan fits = plan_of(ways[i], T, "forward"), longer = plan_of(ways[i], T + 64, "forward");
        assert_true(fits.tensors + fits.scratch <= budget);
        assert_true(longer.tensors + longer.scratch > budget);
        free(said);
    }
}

// ---- the experiment ------------------------------------------------------------------------------------------------

// Killed after some rows, of which the last one loses its end.
static void test_killed_and_resumed(void **state) {
    (void)state;
    skip_without_plots();
    free(run_shell("{ " SCRIPT "--out out > first 2>&1 & } && pid=$!\n"
                   "until [ \"$(cat out/rows.csv 2> /dev/null | wc -l)\" -gt 6 ]; do sleep 0.05; done\n"
                   "kill -KILL $pid; wait $pid; truncate -s -9 out/rows.csv; [ ! -e out/report.md ]",
                   0));
    char *said = run_shell(SCRIPT "--out out", 0);
    expect_in(said, "measurements are kept in out/rows.csv\n");
    expect_in(said, "  ulysses-ring, 4 ranks, T = 512: ");
    expect_in(said, "; 0 s left\n");
    free(said);
    // 9 ways at 2 contexts, in 2 passes, and each once at its longest; no row twice, none cut short.
    said = run_shell("tail -n +2 out/rows.csv | wc -l; cut -d, -f1-8 out/rows.csv | sort | uniq -d; "
                     "awk -F, 'NF != 15' out/rows.csv",
                     0);
    assert_string_equal(said, "45\n");
    free(said);
}

// Nothing is left to measure: the same tables and plots, and the tables go into a document.
static void test_again_into_a_document(void **state) {
    (void)state;
    skip_without_plots();
    char *said = run_shell("cp out/report.md before.md && cp out/times.svg before.svg && "
                           "printf 'a\n<!-- results -->\nold\n<!-- end of results -->\nz\n' > doc.md && " SCRIPT
                           "--out out --document doc.md && cmp out/report.md before.md && "
                           "cmp out/times.svg before.svg && for f in times memory largest; do "
                           "[ -s out/$f.png ] && [ -s out/$f.svg ] || exit 1; done",
                           0);
    expect_in(said, "27 of 27 measurements are kept");
    free(said);
    said = run_shell("cmp out/rows.csv doc/rows.csv && cmp out/times.svg doc/times.svg && cat doc.md", 0);
    expect_in(said, "a\n<!-- results -->\n\n### The three numbers\n");
    expect_in(said, "\n<!-- end of results -->\nz\n");
    expect_not_in(said, "old");
    free(said);
}

static void test_rows(void **state) {
    (void)state;
    skip_without_plots(); // then there are none
    char *rows = run_shell("cat out/rows.csv", 0);
    for (int i = 0; i < WAYS; i++) {
        char name[64];
        snprintf(name, sizeof name, "\ntime,%s,%d,512,4,64,1,both,", ways[i].exchange, ways[i].ranks);
        char *line = strstr(rows, name);
        if (line == NULL) fail_msg("no row%s in: %s", name, rows);
        Plan ran = read_line(line + strlen(name)), planned = plan_of(ways[i], 512, "both");
        assert_int_equal(ran.sent, planned.sent); // counted on the way, and by formula
        assert_int_equal(ran.tensors, planned.tensors);
        assert_int_equal(ran.scratch, planned.scratch);

        // Of the longest run: the process grew by what was stated of all ranks; beside that there are the threads'
        // stacks, the piece of random values on its way, and pages, of which large ones have 2 MiB.
        snprintf(name, sizeof name, "\nlargest,%s,%d,", ways[i].exchange, ways[i].ranks);
        line = strstr(rows, name);
        long long tensors, scratch, resident;
        if (line == NULL || sscanf(line + strlen(name), "%*d,4,64,1,both,%lld,%lld,%lld,", &tensors, &scratch,
                                   &resident) != 3)
            fail_msg("no row%s in: %s", name, rows);
        assert_true(tensors + scratch <= 4 << 20);
        assert_in_range(resident, (tensors + scratch) * 9 / 10, tensors + scratch + (4 << 20));
    }
    free(rows);
}

// By hand, for T = 16,384, 32 heads of 64, forward. Vanilla: 4 x 32 x 16,384^2 x 2 bytes at 1,008 GB/s = 68.17 ms.
// Work: 2 x 16,384^2 x 2,048 operations by 4 GPUs of 165.2 TFLOP/s = 1.664 ms. Of the 8 chunks of 2,048 tokens, the
// busiest rank of the ring sends 6, of 2 x 2,048 values of 2 bytes: at 31.5 GB/s 3.196 ms, behind which work is hidden.
static void test_projection(void **state) {
    (void)state;
    skip_without_plots();
    char *said = run_shell("cat out/projected.csv", 0);
    expect_in(said, "\n4 x RTX 4090,\"PCIe 4.0 x16, 31.5 GB/s\",forward,16384,ring,4,"
                    "0.06817,0.001664,0.003196,0.003196,21.3\n");
    // Twice the T: four times the work, twice the bytes; vanilla's matrices, 64 GiB, do not fit.
    expect_in(said, ",forward,32768,ring,4,,0.006656,0.006391,0.006656,\n");
    free(said);
}

// ---- what is refused -----------------------------------------------------------------------------------------------

static void expect_refused(const char *command, int exit_code, const char *line) {
    char *said = run_shell(command, exit_code);
    expect_in(said, line);
    if (strchr(said, '\n') != said + strlen(said) - 1) fail_msg("%s: more than one line: %s", command, said);
    free(said);
}

static void test_refused(void **state) {
    (void)state;
    skip_without_plots();
    expect_refused(SCRIPT, 2, "distributed_vs_vanilla: the following arguments are required: --out; see --help\n");
    expect_refused(SCRIPT "--out x --form huge", 2, "argument --form: invalid choice: 'huge'");
    expect_refused(SCRIPT "--out x --wrong", 2, "unrecognized arguments: --wrong; see --help\n");
    expect_refused("mkdir -p none && " SCRIPT "--out x --train-gpt none/train_gpt", 2,
                   "/none/dev/bench_distributed is not there: build it (make ");
    expect_refused("touch file && " SCRIPT "--out file", 1, "distributed_vs_vanilla: file: File exists; ");
    expect_refused("mkdir -p other && echo '{\"form\": \"cpu\"}' > other/settings.json && " SCRIPT "--out other", 1,
                   "other/settings.json: results of another form (cpu, not quick); give another --out\n");
    expect_refused("mkdir -p strange && printf '\\377,\\n1\\n' > strange/rows.csv && " SCRIPT "--out strange", 1,
                   "strange/rows.csv: line 1 is not of this experiment; give another --out\n");
    expect_refused(SCRIPT "--out x --jobs 2", 2, "--jobs 2: what is timed has the machine for itself; see --help\n");
    expect_refused(SCRIPT "--out x --report-only", 1, "27 of 27 measurements are missing in x/rows.csv");
    expect_refused(SCRIPT "--out out --document none.md", 2, "--document none.md: no such file; see --help\n");
    expect_refused("mkdir -p dev && printf '#!/bin/sh\\necho no luck >&2; exit 3\\n' > dev/bench_distributed && "
                   "chmod +x dev/bench_distributed && " SCRIPT "--out x --train-gpt train_gpt",
                   1, ": no luck\n");
}

static void test_bench_refuses(void **state) {
    (void)state;
    expect_refused(BENCH "streaming 2 64", 2, "streaming is of one rank; name an exchange for 2\n");
    expect_refused(BENCH "vanilla 2 64", 2, "vanilla stores the whole T x T matrix on one rank");
    expect_refused(BENCH "ring 4 7", 2, "too short for --sp 4");
    expect_refused(BENCH "ring four 64", 2, "RANKS is four; it must be a whole number from 1 to 32\n");
    expect_refused(BENCH "ring 2 99999999999999999999", 2, "T is 99999999999999999999; it must be");
    expect_refused(BENCH "--largest 1000 ring 2", 2, "--largest 1000: it must hold 64 tokens at least");
    char *said = run_shell(BENCH "round 2 64", 2);
    expect_in(said, "usage: bench_distributed ");
    free(said);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_growth),
        cmocka_unit_test(test_sharding),
        cmocka_unit_test(test_largest),
        cmocka_unit_test(test_killed_and_resumed),
        cmocka_unit_test(test_again_into_a_document),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_projection),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_bench_refuses),
    };
    return cmocka_run_group_tests_name("experiments_distributed", tests, prepare, remove_folder);
}
