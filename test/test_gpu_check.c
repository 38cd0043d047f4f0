// What measures a GPU, without one: dev/gpu_check/report from recorded lines, and dev/gpu_check/run with stand-ins for
// the programs that it measures, of which some fail or hang.
#include "test/shell.h"

// ---- the report -----------------------------------------------------------------------------------------------------

static void test_report(void **state) {
    (void)state;
    char *said = run_shell(
        "mkdir -p r && cd r && exec > /dev/null && printf 'version: x\\nGPU: y\\n' > machine.txt && "
        "printf 'ok\\n79 passed, 2 failed\\n' > tests.txt && echo 'layers: exit status 1: why' > problems.txt && "
        "printf 'train_gpt,1024,128,400,300,325\\nmma.sync,1024,128,200,150,162.5\\nvanilla,1024,128,40,20,22.5\\n"
        "train_gpt,1024,64,300,200,225\\ntrain_gpt,65536,64,500,400,420\\n' > attention.txt && "
        "printf 'pytorch-flash,1024,128,250,100,120\\npytorch-cudnn,1024,128,320,400,375\\n"
        "pytorch-eager-fp32,1024,128,4,3,3.25\\npytorch-cudnn,4096,64,330,300,310\\n' > attention-peer.txt && "
        "echo bits,train_gpt,4096,64,10,0,0 > bits.txt && echo bits,pytorch-cudnn,4096,64,10,0,9 > bits-peer.txt && "
        "echo 'AdamW,184.1,4102,GB/s,0.98' > layers.txt && "
        "for T in 1024 8192; do for n in 1 2 3 700 900 800; do "
        "echo '{\"step\": 1, \"loss\": 5.5, \"tokens_per_second\": '$n', \"machine_fraction\": 0.'$n', \"seconds\": "
        "1}'; "
        "done > d12-$T.jsonl; printf 'ranks      1 per sequence, 1 replica; 512 MiB per rank\\n"
        "step       %d sequences of %d tokens = 65,536 tokens, in passes of 1; 6 steps\\n' $((65536 / T)) $T > "
        "d12-$T.txt; "
        "done && sed 's/[789]00/400/' d12-8192.jsonl > d12-mma.jsonl && cp d12-8192.txt d12-mma.txt && "
        "printf 'pytorch-cudnn,d12,1024,64,1000,25.40\\n' > d12-peer.txt && "
        "printf 'pytorch-flash,gpt2,65536,1,77,33.00\\n' > gpt2-peer.txt && "
        "for n in 1 2 3; do echo '{\"loss\": 5.'$n', \"tokens_per_second\": 9'$n', \"seconds\": 1}'; done > "
        "ranks-1.jsonl && "
        "echo '{\"loss\": 5.125, \"tokens_per_second\": 80.4, \"seconds\": 1}' > ranks-4.jsonl && "
        "printf 'planned,2555904,133120\\nbegun,2555904,134144\\n' > longest-plan.txt && "
        "\"$tree\"/dev/gpu_check/report . --no-plot > ../report.md && cat ../report.md >&2",
        0);
    free(said);
    said = run_shell("cat report.md", 0);
    expect_in(said, "- version: x\n- GPU: y\n");
    expect_in(said, "- layers: exit status 1: why\n");
    expect_in(said, "79 passed, 2 failed\n");
    // By head size, then as measured; each ratio is ours by theirs.
    expect_in(said, "| T | D | forward | mma.sync | flash | cuDNN | vanilla | eager, bf16 | eager, fp32 |\n"
                    "|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
                    "| 1024 | 64 | 300 | - | - | - | - | - | - |\n"
                    "| 65536 | 64 | 500 | - | - | - | - | - | - |\n"
                    "| 4096 | 64 | - | - | - | - | - | - | - |\n"
                    "| 1024 | 128 | 400 | 2.00 | 1.60 | 1.25 | 10.00 | - | 100.00 |\n");
    expect_in(said, "| 1024 | 128 | 300 | 2.00 | 3.00 | 0.75 | 15.00 | - | 100.00 |\n");
    expect_in(said, "| 1024 | 128 | 325 | 2.00 | 2.71 | 0.87 | 14.44 | - | 100.00 |\n");
    expect_in(said, "| train_gpt | 4096 | 64 | 10 | 0 | 0 |\n| pytorch-cudnn | 4096 | 64 | 10 | 0 | 9 |\n");
    expect_in(said, "| AdamW | 184.1 | 4102 GB/s | 98% |\n");
    expect_in(said, "| d12 | 1024 | 64 | 800 | 80.0% | 0.5 | cudnn | 1000 | 25.4 | 0.80 |\n"
                    "| d12 | 8192 | 8 | 800 | 80.0% | 0.5 | - | - | - | - |\n"
                    "| gpt2 | 65536 | 1 | - | - | - | flash | 77 | 33.0 | - |\n");
    expect_in(said, "With attention by mma.sync, d12 at T = 8192: 400 tokens/s, 0.50 times those above.\n");
    expect_in(said, "| 1 | 3 | 93 | 5.300000 | 5.300000 |\n"
                    "| 4, copies within a process | 1 | 80 | 5.125000 | 5.100000 |\n");
    expect_in(said, "- the longest whose plan fits: T = 2555904, 130.0 GiB\n"
                    "- a step of it, begun and ended after 15 s: 131.0 GiB in use on the GPU\n");
    free(said);
}

// ---- the run --------------------------------------------------------------------------------------------------------

// A train_gpt that says and logs what a report reads. MODE fail: four ranks do not work.
static const char train_gpt[] =
    "#!/bin/sh\n"
    "echo \"$CUDA_ATTENTION $*\" >> \"$PLACE/calls\"\n"
    "case \"$*\" in *--help*) echo '  --tune FILE'; exit ;; esac\n"
    "case \"$MODE $*\" in *fail*--sp\\ 4*) echo 'train_gpt: four are too many' >&2; exit 1 ;; esac\n"
    "while [ $# -gt 0 ]; do\n"
    "    case \"$1\" in --log) log=$2 ;; --context) T=$2 ;; --batch) B=$2 ;; --steps) steps=$2 ;; esac\n"
    "    shift\n"
    "done\n"
    "echo 'ranks      1 per sequence, 1 replica; 16.1 GiB per rank'\n"
    "echo \"step       $B sequences of $T tokens = 65,536 tokens, in passes of 1; $steps steps\"\n"
    "[ -z \"$log\" ] || for n in $(seq $steps); do\n"
    "    echo '{\"loss\": 5.5, \"tokens_per_second\": '$T', \"machine_fraction\": 0.5, \"seconds\": 1}'\n"
    "done > \"$log\"\n";

// Of which MODE hang does not end after a line, fail fails after one, and differ finds other bits.
static const char bench_attention[] =
    "#!/bin/sh\n"
    "case \"$*\" in\n"
    "*--bits*) [ \"$MODE\" != differ ] || { echo bits,train_gpt,4096,64,10,1,0; exit 1; }\n"
    "    echo bits,train_gpt,4096,64,10,0,0 ;;\n"
    "*--csv\\ --mma*) echo train_gpt,1024,64,300,200,225\n"
    "    case \"$MODE\" in hang) exec sleep 60 ;; fail) echo 'out of luck' >&2; exit 3 ;; esac\n"
    "    echo mma.sync,1024,64,200,100,120 ;;\n"
    "esac\n";

static const char nvidia_smi[] =
    "#!/bin/sh\n"
    "case \"$*\" in *compute_cap*) echo 9.0 ;; *memory*) echo 81559 ;; *power*) echo 700.00 ;; "
    "*name*) echo 'NVIDIA H0' ;; *) echo 1.2 ;; esac\n";

static const char python3[] = "#!/bin/sh\n"
                              "case \"$*\" in\n"
                              "*torch.__version__*) echo 9.9 ;;\n"
                              "*--bits*) echo bits,pytorch-flash,4096,64,10,0,10 ;;\n"
                              "*--compile*) ;;\n"
                              "*peer_attention*) echo pytorch-flash,1024,64,100,100,100 ;;\n"
                              "*peer_training*) echo \"pytorch-cudnn,$2,65536,1,32768,25.00,\" ;;\n"
                              "esac\n";

static int make_stand_ins(void **state) {
    make_folder(state);
    free(run_shell("mkdir -p bin/dev bin/test", 0));
    make_script("bin/train_gpt", train_gpt);
    make_script("bin/dev/bench_attention", bench_attention);
    make_script("bin/dev/bench_layers", "#!/bin/sh\necho AdamW,184.1,4102,GB/s,0.98\n");
    make_script("bin/test/test_cuda_x", "#!/bin/sh\n[ \"$TEST_DEVICE\" = cuda ] || exit 1\necho 1..1\necho ok 1 - x\n");
    make_script("nvidia-smi", nvidia_smi);
    make_script("python3", python3);
    return 0;
}

static char *run_check(const char *settings, int exit_code) {
    char *command = NULL;
    if (asprintf(
            &command,
            "rm -f calls && export PLACE=$PWD && code=0 && { %s \"$tree\"/dev/gpu_check/run bin out > said 2>&1 || "
            "code=$?; } && cat said out/report.md && exit $code",
            settings) < 0)
        fail_msg("out of memory");
    char *said = run_shell(command, exit_code);
    free(command);
    return said;
}

static void test_run(void **state) {
    (void)state;
    char *said = run_check("PARTS='tests attention training ranks layers tuned'", 0);
    expect_not_in(said, "What went wrong");
    expect_in(said, "- GPU: NVIDIA H0, 81559 MiB, 700.00 W, 1.2\n- PyTorch: 9.9\n");
    expect_in(said, "1 passed, 0 failed\n");
    expect_in(said, "| 1024 | 64 | 300 | 1.50 | 3.00 | - | - | - | - |\n");
    expect_in(said, "| pytorch-flash | 4096 | 64 | 10 | 0 | 10 |\n");
    expect_in(said, "| d12 | 65536 | 1 | 65536 | 50.0% | 16.1 | cudnn | 32768 | 25.0 | 2.00 |\n");
    expect_in(said, "| gpt2 | 1024 | 64 | 1024 | 50.0% | 16.1 | - | - | - | - |\n");
    expect_in(said, "With attention by mma.sync, d12 at T = 65536");
    expect_in(said, "With --tune, d12 at T = 8192: 8192 tokens/s, 1.00 times those above.\n");
    expect_in(said, "| 4, NCCL over loopback | 2 | 65536 |");
    expect_in(said, "| AdamW |");
    free(said);
    said = run_shell("cat calls", 0);
    expect_in(said, "mma --device cuda --model d12 --context 65536 ");
    expect_in(said, " --device cuda --model gpt2 --context 8192 --batch 8 --micro-batch 8 ");
    free(said);
}

// What fails is named, and costs nothing else.
static void test_run_fails(void **state) {
    (void)state;
    char *said = run_check("MODE=fail", 0);
    expect_in(said, "- attention: exit status 3: out of luck\n");
    expect_in(said, "- ranks-4: exit status 1: train_gpt: four are too many\n");
    expect_in(said, "| 1024 | 64 | 300 | - | 3.00 |"); // what it said before
    expect_in(said, "| d12 | 65536 | 1 | 65536 |");
    expect_in(said, "| AdamW |");
    expect_in(said, "- longest: no plan fits into 81559 MiB\n"); // the stand-in prints no plan
    free(said);
    said = run_check("MODE=differ PARTS=attention", 1);
    expect_in(said, "- bits: exit status 1");
    expect_in(said, "| train_gpt | 4096 | 64 | 10 | 1 | 0 |\n");
    free(said);
    make_script("bin/test/test_cuda_x", "#!/bin/sh\necho 1..1\necho not ok 1 - x\nexit 1\n");
    said = run_check("PARTS=tests", 1);
    expect_in(said, "0 passed, 1 failed\n");
    free(said);
    free(run_check("PARTS=everything", 1));
    make_script("bin/train_gpt", "#!/bin/sh\necho 'no GPU here' >&2\nexit 1\n");
    said = run_shell("\"$tree\"/dev/gpu_check/run bin out", 1);
    expect_in(said, "train_gpt does not run here: no GPU here\n");
    make_script("bin/train_gpt", train_gpt);
    free(said);
}

// A part that hangs is ended, with what it has said; the time of all is kept.
static void test_run_hangs(void **state) {
    (void)state;
    double started = program_clock();
    char *said = run_check("SECONDS_IN_ALL=3 MODE=hang PARTS='attention layers'", 0);
    assert_true(program_clock() - started < 20);
    expect_in(said, "- attention: not done within ");
    expect_in(said, "| 1024 | 64 | 300 | - | - |");
    expect_in(said, "- layers: no time left\n");
    free(said);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_report), cmocka_unit_test(test_run),
                                       cmocka_unit_test(test_run_fails), cmocka_unit_test(test_run_hangs)};
    return cmocka_run_group_tests_name("gpu_check", tests, make_stand_ins, remove_folder);
}
