// The scripts beside the program, with stand-ins for what they call: the check of a GPU by compute-sanitizer, test
// programs that were carried elsewhere, the plot and what installs its library.
#include "test/shell.h"

// ---- dev/gpu_check/sanitize -----------------------------------------------------------------------------------------

// A compute-sanitizer whose findings depend on the tool and the program.
static const char sanitizer[] =
    "#!/bin/sh\n"
    "for program; do :; done\n"
    "finish() { echo \"========= ERROR SUMMARY: $1 errors\"; exit 99; }\n"
    "read_by() { printf '========= Uninitialized __global__ memory read of size 16 bytes\\n"
    "=========     at void %s(float *)+0x1d0\\n"
    "=========     by thread (0,0,0) in block (0,0,0)\\n=========\\n' \"$1\"; }\n"
    "race_of() { printf '========= Error: Race reported between Write access at void %s(int)+0x10 in x.cu:1\\n"
    "=========     and Read access at load(int)+0x20 in x.cu:2 [8 hazards]\\n=========\\n' \"$1\"; }\n"
    "echo '========= COMPUTE-SANITIZER'\n"
    "case \"$2 $program $*\" in\n"
    "memcheck*--report-api-errors\\ no*) ;;\n"
    "memcheck*) echo '========= Program hit cudaErrorMemoryAllocation (error 2) due to out of memory'; finish 1 ;;\n"
    "initcheck\\ test_cuda_matmul*) read_by 'cublasLt::splitKreduce_kernel'; finish 1 ;;\n"
    "initcheck\\ test_cuda_bad*) read_by 'cublasLt::splitKreduce_kernel'; read_by our_kernel; finish 2 ;;\n"
    "racecheck\\ test_cuda_slow*) exec sleep 20 ;;\n"
    "racecheck\\ test_cuda_attention*) race_of 'hopper::backward::bring_numbers<(int)64>'; finish 1 ;;\n"
    "racecheck\\ test_cuda_race*) race_of 'hopper::backward::bring_numbers<(int)64>'; race_of our_kernel;\n"
    "    exec sleep 20 ;;\n"
    "synccheck\\ test_cuda_failing*) echo '[  FAILED  ] products'; exit 1 ;;\n"
    "esac\n"
    "echo '========= ERROR SUMMARY: 0 errors'\n";

static void test_sanitize(void **state) {
    (void)state;
    make_script("compute-sanitizer", sanitizer);
    char *said = run_shell("SANITIZE_TIMEOUT=1 \"$tree\"/dev/gpu_check/sanitize test_cuda_layers test_cuda_matmul "
                           "test_cuda_slow test_cuda_attention test_training_cuda",
                           0);
    expect_not_in(said, "FAILED");
    expect_in(said, "memcheck   test_cuda_layers                 ok\n");
    expect_in(said, "memcheck   test_training_cuda               ok\n");
    expect_in(said, "initcheck  test_cuda_matmul                 ok but for 1 reads of its workspace by cuBLASLt\n");
    expect_in(said, "racecheck  test_cuda_slow                   skipped: not done within 1 s; nothing found");
    expect_in(said, "racecheck  test_cuda_attention              ok but for 1 races with a barrier at which");
    expect_not_in(said, "racecheck  test_cuda_matmul");
    expect_not_in(said, "synccheck  test_training_cuda");
    free(said);
}

static void test_sanitize_finds(void **state) {
    (void)state;
    make_script("compute-sanitizer", sanitizer);
    char *said = run_shell(
        "SANITIZE_TIMEOUT=1 \"$tree\"/dev/gpu_check/sanitize test_cuda_bad test_cuda_race test_cuda_failing", 1);
    expect_in(said, "initcheck  test_cuda_bad                    FAILED: 1 reports\n");
    expect_in(said, "at void our_kernel");
    expect_not_in(said, "splitK");
    expect_in(said, "racecheck  test_cuda_race                   FAILED: 1 reports\n");
    expect_in(said, "synccheck  test_cuda_failing                FAILED: a test\n");
    expect_in(said, "memcheck   test_cuda_bad                    ok\n");
    free(said);
}

// ---- scripts/run-tests ----------------------------------------------------------------------------------------------

// Carried elsewhere without the tree, in folders whose names hold spaces.
static void test_carried_tests(void **state) {
    (void)state;
    make_script("program", "#!/bin/sh\necho 1..1\necho ok 1 - x\n");
    char *said = run_shell("mkdir -p 'a b/scripts' 'a b/bin/test' && cp \"$tree\"/scripts/run-tests 'a b/scripts/' && "
                           "mv program 'a b/bin/test/test_x' && 'a b/scripts/run-tests' 'a b/bin/test/test_x'",
                           0);
    expect_in(said, "1 passed, 0 failed\n");
    expect_not_in(said, "suppressions");
    free(said);
}

// ---- scripts/plot_loss, plot_mixing and setup plots -----------------------------------------------------------------

static void test_plot_without_library(void **state) {
    (void)state;
    skip_without_python();
    make_script("matplotlib.py", "raise ImportError\n");
    const char *const scripts[][2] = {
        {"plot_loss", "x.jsonl"}, {"plot_mixing", "x.csv x.png"}, {"plot_positions", "x.csv"}, {"draw_book", ""}};
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        char command[200], expected[200];
        snprintf(command, sizeof command, "PYTHONPATH=. \"$tree\"/scripts/%s %s", scripts[i][0], scripts[i][1]);
        snprintf(expected, sizeof expected, "%s: matplotlib is not installed: scripts/setup plots (or apt-get install "
                                            "python3-matplotlib)\n", scripts[i][0]);
        char *said = run_shell(command, 1);
        assert_string_equal(said, expected);
        free(said);
    }
}

static void test_setup_plots(void **state) {
    (void)state;
    make_script("python3", "#!/bin/sh\n[ -e installed ]\n");
    make_script("sudo", "#!/bin/sh\n[ \"$1\" = -n ] && shift\nexec \"$@\"\n");
    make_script("apt-get", "#!/bin/sh\necho \"$*\" >> asked\nexit 1\n");
    char *said = run_shell("SYSTEM_PYTHON=none \"$tree\"/scripts/setup plots", 1);
    expect_in(said, "not installed: python3-matplotlib python3-scipy. To install, type:\n");
    free(said);
    make_script("apt-get", "#!/bin/sh\ncase \"$*\" in *' install '*' python3-matplotlib python3-scipy') touch installed ;; esac\n");
    free(run_shell("SYSTEM_PYTHON=none \"$tree\"/scripts/setup plots", 0));
    said = run_shell("SYSTEM_PYTHON=none \"$tree\"/scripts/setup plots", 0); // all is there
    assert_string_equal(said, "");
    free(said);
    free(run_shell("rm -f python3 sudo apt-get asked installed", 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sanitize),      cmocka_unit_test(test_sanitize_finds),
        cmocka_unit_test(test_carried_tests), cmocka_unit_test(test_plot_without_library),
        cmocka_unit_test(test_setup_plots),
    };
    return cmocka_run_group_tests_name("scripts", tests, make_folder, remove_folder);
}
