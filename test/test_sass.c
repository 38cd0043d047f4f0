// scripts/check-sass, with a stand-in for cuobjdump: an "object" is a text of instructions, made of a few words.
#include "test/shell.h"

// sass KERNEL WORD... adds a kernel to the file `object`. loop and back enclose a loop; stay is a wait at a barrier as
// the compiler lays it out, after the end of the program and with a way back into it; all other words are events of
// scripts/check-sass, or a single instruction.
static const char sass[] =
    "#!/bin/sh\n"
    "at=0\n"
    "line() { printf '        /*%04x*/                   %s ;     /* 0x000fe2 */\\n' $at \"$1\"; at=$((at + 16)); }\n"
    "lines() { n=0; while [ $n -lt \"$1\" ]; do line \"$2\"; n=$((n + 1)); done; }\n"
    "product() { lines $(($1 - 1)) \"$2\"; line \"$2, gsb0\"; }\n"
    "{\n"
    "    printf '\\t\\tFunction : %s\\n' \"$1\"\n"
    "    shift\n"
    "    line 'SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR8], R2'\n"
    "    for word; do\n"
    "        count=${word#*:}\n"
    "        case \"$word\" in\n"
    "        loop) starts=\"$at $starts\" ;;\n"
    "        back) line \"@P0 BRA $(printf 0x%x ${starts%% *})\"; starts=${starts#* } ;;\n"
    "        stay) line 'SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR8], R2'; line 'BRA 0x0' ;;\n"
    "        mma:*) product \"$count\" 'HGMMA.64x80x16.F32.BF16 R88, gdesc[UR20], R88' ;;\n"
    "        mma.B:*) product \"$count\" 'HGMMA.64x64x16.F32.BF16 R24, R128, gdesc[UR16].tnspB, R24' ;;\n"
    "        mma.AB:*) product \"$count\" 'HGMMA.64x64x16.F32.BF16 R24, gdesc[UR16].tnspA.tnspB, R24' ;;\n"
    "        wait:*) line \"WARPGROUP.DEPBAR.LE gsb0, 0x$count\" ;;\n"
    "        exp:*) lines \"$count\" 'MUFU.EX2 R88, R88' ;;\n"
    "        stmatrix:*) lines \"$count\" 'STSM.16.M88.4 [R2], R4' ;;\n"
    "        store:*) lines \"$count\" 'STS.128 [R2], R4' ;;\n"
    "        *) line \"$word\" ;;\n"
    "        esac\n"
    "    done\n"
    "} >> object\n";

#define FORWARD_64 "mma:4 mma.B:8 wait:1 exp:66 wait:0"
#define BACKWARD_128 "mma.B:4 stmatrix:4 mma.AB:8 mma.B:4 wait:2 wait:1 store:8 mma:8 wait:1 mma:8 wait:1 exp:32 wait:0"

static int make_stand_ins(void **state) {
    make_folder(state);
    make_script("sass", sass);
    make_script("cuobjdump", "#!/bin/sh\nfor file; do :; done\ncat \"$file\"\n");
    return 0;
}

// What is said of an object of these kernels: commands of the shell that make them.
static char *said_of(const char *kernels, int exit_code) {
    char *command = NULL;
    if (asprintf(
            &command,
            "rm -f object && touch object && { %s; } && CUOBJDUMP=$PWD/cuobjdump \"$tree\"/scripts/check-sass object",
            kernels) < 0)
        fail_msg("out of memory");
    char *said = run_shell(command, exit_code);
    free(command);
    return said;
}

static void expect_good(const char *kernels) { free(said_of(kernels, 0)); }
static void expect_bad(const char *kernels, const char *why) {
    char *said = said_of(kernels, 1);
    expect_in(said, "FAILED");
    expect_in(said, why);
    free(said);
}

static void test_good(void **state) {
    (void)state;
    // A loop within a loop, which has products too; waits at barriers behind the end, with their ways back.
    char *said =
        said_of("./sass _ZN6hopper14forward_kernelILi64ELb1EEv mma:4 loop wait:0 exp:66 loop " FORWARD_64
                " back mma.B:8 mma:4 wait:1 back EXIT stay && "
                "./sass _ZN6hopper15backward_kernelILi128ELb0EEv mma:8 loop " BACKWARD_128 " back EXIT stay && "
                "./sass _ZN6hopper11sums_kernelILi128EEv 'STG.E [R2], R4' EXIT",
                0);
    expect_in(said, "ok     _ZN6hopper14forward_kernelILi64ELb1EEv\n");
    expect_in(said, "ok     _ZN6hopper15backward_kernelILi128ELb0EEv\n");
    expect_in(said, "ok     _ZN6hopper11sums_kernelILi128EEv\n");
    free(said);
    // Begun elsewhere, and two steps in one round.
    expect_good("./sass forward_kernelILi128E loop wait:1 exp:42 wait:0 mma:8 mma.B:5 back EXIT");
    expect_good("./sass forward_kernelILi64E loop " FORWARD_64 " " FORWARD_64 " back EXIT");
}

static void test_bad(void **state) {
    (void)state;
    // The wait has moved up among the exponentials.
    expect_bad("./sass forward_kernelILi64E loop mma:4 mma.B:8 wait:1 exp:12 wait:0 exp:54 back EXIT",
               "found:                mma:4 mma.B:8 wait:1 exp:12 wait:0 exp:54\n");
    expect_bad("./sass forward_kernelILi64E loop mma:4 mma.B:8 wait:1 exp:65 wait:0 back EXIT", "exp:65");
    expect_bad("./sass forward_kernelILi64E loop mma:4 mma.B:8 wait:1 exp:66 back EXIT", "exp:66\n");
    // Each product ends before the next starts.
    expect_bad("./sass forward_kernelILi64E loop mma:1 wait:0 mma:1 wait:0 mma:1 wait:0 mma:1 wait:0 mma.B:8 wait:0 "
               "exp:66 back EXIT",
               "mma:1 wait:0 mma:1");
    // One of two loops; of the other size; the second kernel of two.
    expect_bad("./sass forward_kernelILi64E loop " FORWARD_64 " back loop mma:4 wait:0 back EXIT", "mma:4 wait:0\n");
    expect_bad("./sass forward_kernelILi128E loop " FORWARD_64 " back EXIT", "expected in its loop: mma:8 mma.B:5");
    expect_bad("./sass forward_kernelILi64E loop " FORWARD_64
               " back EXIT && ./sass backward_kernelILi128E loop " FORWARD_64 " back EXIT",
               "FAILED backward_kernelILi128E");
    // dQ is stored late, dP starts before dK has ended.
    expect_bad("./sass backward_kernelILi128E loop mma.B:4 stmatrix:4 mma.AB:8 mma.B:4 wait:2 wait:1 mma:8 store:8 "
               "wait:1 mma:8 wait:1 exp:32 wait:0 back EXIT",
               "wait:1 mma:8 store:8");
    expect_bad(
        "./sass backward_kernelILi128E loop mma.B:4 stmatrix:4 mma.AB:8 mma.B:4 wait:2 wait:1 store:8 mma:8 mma:8 "
        "wait:1 exp:32 wait:0 back EXIT",
        "mma:8 mma:8 wait:1");
    // No tensor cores, no such loop, registers in memory, kernels that nobody told it of, none at all.
    expect_bad("./sass forward_kernelILi64E loop exp:66 back EXIT", "no loop with products");
    expect_bad("./sass forward_kernelILi64E " FORWARD_64 " EXIT", "no loop with products");
    expect_bad("./sass forward_kernelILi64E loop " FORWARD_64 " 'STL [R1], R4' back EXIT", "local memory is used: STL");
    expect_bad("./sass forward_kernelILi64E loop " FORWARD_64
               " back EXIT && ./sass sums_kernel '@P0 LDL.64 R2, [R1+0x8]'",
               "local memory is used: @P0 LDL.64");
    expect_bad("./sass forward_kernelILi64E loop " FORWARD_64 " back EXIT && ./sass sideways_kernelILi64E mma:4 EXIT",
               "no row in the table");
    expect_bad("./sass sums_kernelILi128EEv 'STG.E [R2], R4' EXIT", "no kernel that scripts/check-sass knows");
    expect_bad(":", "no kernel that scripts/check-sass knows");
}

static void test_tool(void **state) {
    (void)state;
    make_script("cuobjdump_fails", "#!/bin/sh\necho 'cuobjdump fatal: no file' >&2\nexit 255\n");
    char *said = run_shell("touch object && CUOBJDUMP=$PWD/cuobjdump_fails \"$tree\"/scripts/check-sass object", 1);
    expect_in(said, "FAILED: cuobjdump fatal: no file\n");
    free(said);
    free(run_shell("\"$tree\"/scripts/check-sass", 2));
    if (system("PATH=/usr/bin:/bin command -v cuobjdump > /dev/null") == 0) return;
    said = run_shell("mkdir -p toolkit/bin && printf '#!/bin/sh\\n' > toolkit/bin/nvcc && chmod +x toolkit/bin/nvcc && "
                     "PATH=/usr/bin:/bin CUDA= NVCC=$PWD/toolkit/bin/nvcc \"$tree\"/scripts/check-sass object",
                     0);
    expect_in(said, "skipped: no cuobjdump here");
    free(said);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_good), cmocka_unit_test(test_bad),
                                       cmocka_unit_test(test_tool)};
    return cmocka_run_group_tests_name("sass", tests, make_stand_ins, remove_folder);
}
