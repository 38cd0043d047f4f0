// The scripts beside the program, with stand-ins for what they call: the check of a GPU by compute-sanitizer, test
// programs that were carried elsewhere, what draws and what installs its library.
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

// ---- what draws, and setup plots ------------------------------------------------------------------------------------

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

static int count_in(const char *text, const char *part) {
    int count = 0;
    for (; (text = strstr(text, part)) != NULL; text++) count++;
    return count;
}

// Runs a command that draws `name`, whose text is left as text; returns the picture, to be freed.
static char *draw(const char *command, const char *name) {
    char path[PROGRAM_PATH];
    write_file(in_folder(path, "text.rc"), "svg.fonttype: none\n", 19);
    setenv("MATPLOTLIBRC", path, 1);
    free(run_shell(command, 0));
    unsetenv("MATPLOTLIBRC");
    return read_file(in_folder(path, name), NULL);
}

// Of curves with bars; those of the legend come last and do not count. Cuts the picture there.
static int curves_in(char *picture) {
    char *legend = strstr(picture, "id=\"legend_");
    if (legend == NULL) fail_msg("no legend in: %s", picture);
    *legend = '\0';
    return count_in(picture, "id=\"LineCollection_");
}

// Losses of log 2 and 2 log 2 at every position: 1 and 2 bits. Of two windows, and of one, which has no bars.
static void test_plot_positions(void **state) {
    (void)state;
    skip_without_plots();
    free(run_shell("write() { echo position,loss,windows,$1; for i in $(seq 0 $2); do echo $i,$3; done; }\n"
                   "write part_1 7 0.693147181,1,0.693147181 > single.csv\n"
                   "write part_1,part_2 7 0.693147181,2,0.643147181,0.743147181 > near.csv\n"
                   "write part_1,part_2 31 1.386294361,2,1.336294361,1.436294361 > far.csv",
                   0));
    char *picture = draw("\"$tree\"/scripts/plot_positions near.csv far.csv --bits -o bits.svg", "bits.svg");
    static const char *const texts[] = {"tokens read before the target", "loss (bits per token)", "near", "far",
                                        "1.0", "1.2", "2.0"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char text[64];
        snprintf(text, sizeof text, ">%s</text>", texts[i]);
        expect_in(picture, text);
    }
    expect_not_in(picture, ">0.8</text>");
    assert_int_equal(curves_in(picture), 2);
    free(picture);
    picture = draw("\"$tree\"/scripts/plot_positions single.csv -o nats.svg", "nats.svg");
    expect_in(picture, ">loss (nats per token)</text>");
    expect_in(picture, ">single</text>");
    assert_int_equal(curves_in(picture), 0);
    free(picture);
    char *said = run_shell("sed 3d near.csv > cut.csv; \"$tree\"/scripts/plot_positions cut.csv", 1);
    assert_string_equal(said, "plot_positions: cut.csv: line 3 is no such row; give a file written by "
                              "--eval-by-position\n");
    free(said);
}

static void test_plot_mixing(void **state) {
    (void)state;
    skip_without_plots();
    free(run_shell("{ echo layer,mixer,i,j,value\n"
                   "for layer in 0,attention '1,\"mean, of all\"'; do\n"
                   "echo $layer,0,0,1; echo $layer,1,0,0.1; echo $layer,1,1,0.5; done; } > mixing.csv",
                   0));
    char *picture = draw("\"$tree\"/scripts/plot_mixing mixing.csv mixing.svg", "mixing.svg");
    expect_in(picture, ">0: attention</text>");
    expect_in(picture, ">1: mean, of all</text>");
    expect_in(picture, ">influence, of the layer's largest</text>");
    assert_int_equal(count_in(picture, ">j, token that is read</text>"), 2);
    assert_int_equal(count_in(picture, ">i, token that reads</text>"), 2);
    free(picture);
}

// The book's pictures come out as they are in the tree, where the library is of the version that drew those; but
// "rounding", whose training takes half a minute and whose last digits are the processor's.
static void test_draw_book(void **state) {
    (void)state;
    skip_without_plots();
    free(run_shell("cd \"$tree\"/doc && named=$(grep -oh 'pictures/[a-z-]*\\.svg' *.md | sort -u)\n"
                   "drawn=$(printf '%s\\n' pictures/*.svg | sort)\n"
                   "[ \"$named\" = \"$drawn\" ] || { echo \"named: $named, drawn: $drawn\"; exit 1; }\n"
                   "cd \"$OLDPWD\" && : > plain.rc && export MATPLOTLIBRC=plain.rc\n"
                   "names=$(echo \"$named\" | sed 's|pictures/||; s|\\.svg||; /^rounding$/d')\n"
                   "\"$tree\"/scripts/draw_book $names --out drawn --train-gpt \"$program\" || exit\n"
                   "version() { grep -o 'Matplotlib v[0-9.]*' \"$1\"; }\n"
                   "for name in $names; do new=drawn/$name.svg old=$tree/doc/pictures/$name.svg\n"
                   "[ \"$(version $new)\" != \"$(version \"$old\")\" ] && grep -q '</svg>' $new ||\n"
                   "cmp $new \"$old\" || exit; done",
                   0));
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
        cmocka_unit_test(test_plot_positions), cmocka_unit_test(test_plot_mixing),
        cmocka_unit_test(test_draw_book),     cmocka_unit_test(test_setup_plots),
    };
    return cmocka_run_group_tests_name("scripts", tests, make_folder, remove_folder);
}
