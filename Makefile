# train_gpt: builds with a C compiler and make alone; uses OpenMP, MPI and CUDA where scripts/detect finds them.
#
#   make             build ./train_gpt
#   make run         set up, build, and train a small model on the bundled corpus
#   make test        set up, build and run every test: as released, and under sanitizers
#   make ladder      attention kernels from naive to fast: build/release/dev/ladder, and ladder-emulated for this CPU
#   make bench       measure against the machine's own matrix rate
#   make test-gpu    the tests of the CUDA device on this machine's GPU, and under compute-sanitizer where it is
#   make gpu-check   tests and measures on this machine's GPU, at most 8 minutes: build/gpu-report/report.md
#                    (DRY=yes: only tries the scripts that do, on the emulated device)
#   make gpu-bundle  the same for a machine with a driver alone: build/gpu-bundle.tgz, to be carried there (ARCHS="90a")
#   make setup       install what is missing (scripts/setup), or print the line that does
#   make lines       lines of code by folder
#   make clean       remove what was built
#   make help        this list
#
#   scripts/test-bits                            only: the bits of short runs are those of test/bits.txt
#   make test-release, test-asan, test-tsan      one build's tests;  TEST="options random": only these programs
#   make CC=clang BUILD=build/clang              another compiler, in a folder of its own
#   make corpus                                  gathers the bundled corpus anew (make does it in a fresh build)
#   make WITHOUT="mpi cblas fftw openmp cuda emulated"  leaves out some of what was found
#   make ARCHS="80 90a"                          compiles for these GPUs (default: those here, or every one it knows)
#   make V=1                                     shows whole commands

BUILD    ?= build/release
OPT      ?= -O3
SANITIZE ?=
WITHOUT  ?=
# CFLAGS, LDFLAGS and LDLIBS are left to whoever types `make`; FOUND_... come from config.mk.
WARNINGS := -Wall -Wextra
SANITIZER_FLAGS := $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all)
COMPILE = $(CC) -std=c11 -D_GNU_SOURCE -I. $(OPT) -g $(WARNINGS) -fno-math-errno -fno-trapping-math -pthread -MMD -MP \
          $(SANITIZER_FLAGS) $(FOUND_CFLAGS) $(CFLAGS)
LINK    = $(CC) -pthread $(SANITIZER_FLAGS) $(LDFLAGS)
LIBS    = $(FOUND_LDLIBS) $(LDLIBS) -lm -ldl

# Compiled once per instruction set (base/simd.h); the processor's best is chosen at run time.
SIMD_SOURCES := $(wildcard attention/cpu/*_simd.c layers/cpu/*_simd.c mixer/cpu/*_simd.c)
SOURCES      := $(filter-out $(SIMD_SOURCES) terminal/version.c,$(foreach folder,base sequence comm attention attention/cpu \
                layers layers/cpu model mixer mixer/cpu dataloader checkpoint run terminal,$(wildcard $(folder)/*.c)))
ISAS         := portable $(if $(findstring x86_64,$(shell $(CC) -dumpmachine 2> /dev/null)),avx2 avx512)
FLAGS_avx2   := -mavx2 -mfma
FLAGS_avx512 := -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512

# CUDA's kernels, for two devices: `cuda` by nvcc, and `emulated` by a C++ compiler over emulated/, whose own
# objects are joined with the kernels' into one that shows nothing but how to open the device: so both live in one
# program. CUDA and EMULATED come from config.mk. libraries.cu opens the real libraries: the emulated device has its own.
# attention/cuda/hopper is compiled where ARCHS has 90a, and emulated (HOPPER says so to those who call it).
HOPPER           := $(wildcard attention/cuda/hopper/*.cu)
KERNELS          := $(wildcard layers/cuda/*.cu attention/cuda/*.cu mixer/cuda/*.cu comm/cuda/*.cu) $(HOPPER)
EMULATOR         := $(wildcard emulated/*.cpp)
# Without a GPU here it is for all of them; the tests leave out 89 and 100, for which no line of a kernel is another.
ALL_ARCHS        := 80 89 90a 100 120
TESTED_ARCHS     := 80 90a 120
ARCHS            ?= $(or $(FOUND_ARCHS),$(if $(TESTED),$(TESTED_ARCHS),$(ALL_ARCHS)))
NVCC             = $(CUDA)/bin/nvcc
CUDA_FOLDER      = $(BUILD)/cuda-$(subst $() ,-,$(strip $(ARCHS)))
CUDA_KERNELS     = $(if $(filter 90a,$(ARCHS)),$(KERNELS),$(filter-out $(HOPPER),$(KERNELS)))
CUDA_OBJECTS     = $(if $(CUDA),$(CUDA_KERNELS:%.cu=$(CUDA_FOLDER)/%.o))
CUDA_COMPILE     = $(NVCC) -std=c++17 -I. -O3 -lineinfo --Werror all-warnings $(if $(filter 90a,$(ARCHS)),-DHOPPER) \
                   -Xcompiler -Wall,-Wextra,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics \
                   -Xptxas --warn-on-spills -DCUDA_LIBRARIES='"$(CUDA)/lib64"' \
                   $(foreach arch,$(ARCHS),-gencode arch=compute_$(arch),code=sm_$(arch)) \
                   -gencode arch=compute_$(lastword $(ARCHS)),code=compute_$(lastword $(ARCHS))
EMULATED_FLAGS   = -std=c++17 -D_GNU_SOURCE -I. -Iemulated -g $(WARNINGS) -Wno-unknown-pragmas -pthread -MMD \
                   -MP -fno-exceptions -fno-rtti -fno-threadsafe-statics -fno-gnu-unique
# -fsanitize=thread makes the compiler name every memory access, which the emulator checks; no sanitizer is linked.
EMULATED_KERNEL  = $(CXX) $(EMULATED_FLAGS) -O1 -fsanitize=thread --param tsan-instrument-func-entry-exit=0 \
                   -DHOPPER -Dcuda_device=emulated_device -Dcuda_device_elsewhere=emulated_device_elsewhere -x c++
EMULATOR_OBJECTS = $(EMULATOR:%.cpp=$(BUILD)/emulated/%.o)
EMULATED_OBJECTS = $(patsubst %.cu,$(BUILD)/emulated/%.o,$(filter-out layers/cuda/libraries.cu,$(KERNELS)))

OBJECTS = $(SOURCES:%.c=$(BUILD)/%.o) $(foreach isa,$(ISAS),$(SIMD_SOURCES:%.c=$(BUILD)/%.$(isa).o)) \
          $(if $(EMULATED),$(EMULATED_OBJECT)) $(CUDA_OBJECTS)
EMULATED_OBJECT ?= $(BUILD)/emulated.o
LIBRARY := $(BUILD)/libtrain_gpt.a
BENCHES := $(patsubst dev/%.c,$(BUILD)/dev/%,$(wildcard dev/bench_*.c))

.PHONY: all run setup bench corpus lines clean help test test-release test-asan test-tsan \
        build-release build-asan build-tsan build-archs build-emulated emulated-object cuda-objects check-sass \
        test-programs FORCE \
        test-gpu gpu-check gpu-bundle gpu-bundle-programs ladder
.DELETE_ON_ERROR:
.SECONDARY: # object files are kept
all: train_gpt

# ---- what this machine has ------------------------------------------------------------------------------------------

# config.mk is made anew when a compiler, flag or library that it depends on is another than last time.
ifneq ($(filter-out run setup corpus lines clean help test test-release test-asan test-tsan,$(or $(MAKECMDGOALS),all)),)
-include $(BUILD)/config.mk
endif
$(BUILD)/config.mk: scripts/detect $(BUILD)/config.key
	@CC="$(CC)" CXX="$(CXX)" SANITIZE="$(SANITIZE)" WITHOUT="$(WITHOUT)" scripts/detect > $@.new && mv $@.new $@
$(BUILD)/config.key: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(CXX)' "`$(CC) --version 2> /dev/null | head -n 1; $(CXX) -dumpversion 2> /dev/null`" '$(SANITIZE) $(WITHOUT) $(OPT) $(CFLAGS) $(LDFLAGS)' \
	    "`scripts/detect --modules`" > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# ---- building -------------------------------------------------------------------------------------------------------

ifeq ($(V),)
Q := @
say = @echo "  $(1)" $(patsubst $(BUILD)/%,%,$@)
endif

train_gpt: $(BUILD)/train_gpt
	@cp $< $@

$(BUILD)/train_gpt: $(BUILD)/train_gpt.o $(BUILD)/terminal/version.o $(BUILD)/corpus.o $(LIBRARY)
	$(call say,LINK)
	$(Q)$(LINK) $^ $(LIBS) -o $@

$(LIBRARY): $(OBJECTS)
	$(call say,LIB )
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

$(BUILD)/train_gpt.o: train_gpt.cu $(BUILD)/config.mk
	$(call say,CC  )
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -x c -c $< -o $@

# The bundled text is gathered once per build folder, so that editing a source does not change what a run trains on;
# `make corpus` gathers it anew.
$(BUILD)/corpus.txt: scripts/corpus
	$(call say,TEXT)
	@mkdir -p $(@D)
	@scripts/corpus > $@.new && test -s $@.new && mv $@.new $@

$(BUILD)/corpus.o: dataloader/corpus.S $(BUILD)/corpus.txt
	$(call say,AS  )
	$(Q)$(CC) -DCORPUS_FILE='"$(BUILD)/corpus.txt"' -c $< -o $@

corpus:
	@rm -f $(BUILD)/corpus.txt
	@$(MAKE) --no-print-directory $(BUILD)/corpus.txt

# What `--version` says. A tree without git, or within another's, has no version of its own.
$(BUILD)/built.h: $(BUILD)/config.mk FORCE
	@version=$$(test -e .git && git describe --always --dirty 2> /dev/null) || version="of unknown version"; \
	compiler=$$($(CC) --version | head -n 1 | tr -d '"\\'); \
	printf '#define %s "%s"\n' VERSION "$$version" COMPILER "$$compiler" \
	    FOUND '$(FOUND)$(if $(CUDA), (GPUs: $(ARCHS)))' > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi
$(BUILD)/terminal/version.o: $(BUILD)/built.h
$(BUILD)/terminal/version.o: FOUND_CFLAGS += -I$(BUILD)

$(BUILD)/%.o: %.c $(BUILD)/config.mk
	$(call say,CC  )
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -c $< -o $@

cuda-objects: $(CUDA_OBJECTS)

define cuda_rule
$(CUDA_FOLDER)/%.o: %.cu $(BUILD)/config.mk
	$$(call say,NVCC)
	@mkdir -p $$(@D)
	$$(Q)$$(CUDA_COMPILE) -MMD -MP -c $$< -o $$@
endef
$(if $(CUDA),$(eval $(call cuda_rule)))

# Hopper's kernels keep what the assembler says of each beside the object, and what is no mere number is shown. That it
# has products end one before the other (wgmma "serialized", C7510 to C7519) is no warning to it, but half of the speed.
define hopper_rule
$(CUDA_FOLDER)/attention/cuda/hopper/%.o: attention/cuda/hopper/%.cu $(BUILD)/config.mk
	$$(call say,NVCC)
	@mkdir -p $$(@D)
	$$(Q)$$(CUDA_COMPILE) -Xptxas -v -MMD -MP -c $$< -o $$@ > $$(@:.o=.log) 2>&1; status=$$$$?; \
	grep -vE 'info +: (Compil|Function prop|Used |[0-9]+ bytes gmem)|bytes stack frame' $$(@:.o=.log); \
	[ $$$$status = 0 ] && ! grep -q '(C75' $$(@:.o=.log)
endef
$(if $(CUDA),$(eval $(call hopper_rule)))
# What came of the order in which they were written.
check-sass: $(CUDA_OBJECTS)
	$(if $(HOPPER),@CUDA=$(CUDA) scripts/check-sass $(HOPPER:%.cu=$(CUDA_FOLDER)/%.o),@:)

# The sanitizers' build takes the one of the build as released (EMULATED_OBJECT): it is compiled alike.
emulated-object: $(if $(EMULATED),$(EMULATED_OBJECT))
$(BUILD)/emulated.o: $(EMULATED_OBJECTS) $(EMULATOR_OBJECTS)
	$(call say,LD  )
	$(Q)ld -r --force-group-allocation $^ -o $@
	$(Q)objcopy $(addprefix --keep-global-symbol=,emulated_device emulated_device_elsewhere emulated_use) $@

$(BUILD)/emulated/%.o: %.cu $(BUILD)/config.mk
	$(call say,C++ )
	@mkdir -p $(@D)
	$(Q)$(EMULATED_KERNEL) -c $< -o $@

$(BUILD)/emulated/%.o: %.cpp $(BUILD)/config.mk
	$(call say,C++ )
	@mkdir -p $(@D)
	$(Q)$(CXX) $(EMULATED_FLAGS) -O2 -c $< -o $@

define simd_rule
$(BUILD)/%.$(1).o: %.c $(BUILD)/config.mk
	$$(call say,CC  )
	@mkdir -p $$(@D)
	$$(Q)$$(COMPILE) $$(FLAGS_$(1)) -ffp-contract=fast -DSIMD_ISA=$(1) -c $$< -o $$@
endef
$(foreach isa,$(ISAS),$(eval $(call simd_rule,$(isa))))

# What tests share: declared in test/*.h.
SUPPORT := $(BUILD)/test/libsupport.a
$(SUPPORT): $(patsubst %.c,$(BUILD)/%.o,$(wildcard test/support/*.c))
	$(call say,LIB )
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

$(BUILD)/test/%: $(BUILD)/test/%.o $(SUPPORT) $(LIBRARY)
	$(call say,LINK)
	$(Q)$(LINK) $^ $(LIBS) $(CMOCKA_LDLIBS) -o $@

# The program that counts what it allocates: its calls pass through test/counted.c.
COUNTED := malloc calloc realloc free posix_memalign aligned_alloc mmap fopen pthread_create reporter_step \
           rank_take_phase
$(BUILD)/test/test_memory $(BUILD)/test/test_mixers_memory: | $(BUILD)/test/train_gpt_counted
$(BUILD)/test/train_gpt_counted: $(BUILD)/train_gpt.o $(BUILD)/corpus.o \
                                 $(BUILD)/terminal/version.o $(BUILD)/test/counted.o $(LIBRARY)
	$(call say,LINK)
	$(Q)$(LINK) $(COUNTED:%=-Wl,--wrap=%) $^ $(LIBS) -o $@

# The program that tells what the classifier's padding holds at the end (test/padding_probe.c).
$(BUILD)/test/test_vocabulary: | $(BUILD)/test/train_gpt_probed
$(BUILD)/test/train_gpt_probed: $(BUILD)/train_gpt.o $(BUILD)/corpus.o \
                                $(BUILD)/terminal/version.o $(BUILD)/test/padding_probe.o $(LIBRARY)
	$(call say,LINK)
	$(Q)$(LINK) -Wl,--wrap=rank_close $^ $(LIBS) -o $@

# The program whose samples are given, and that tells their logits (test/sampling_probe.c).
$(BUILD)/test/test_mixers_checkpoint: | $(BUILD)/test/train_gpt_sampled
$(BUILD)/test/train_gpt_sampled: $(BUILD)/train_gpt.o $(BUILD)/corpus.o \
                                 $(BUILD)/terminal/version.o $(BUILD)/test/sampling_probe.o $(LIBRARY)
	$(call say,LINK)
	$(Q)$(LINK) -Wl,--wrap=sample_token,--wrap=parameters_initialize $^ $(LIBS) -o $@

# What an experiment measures with.
$(BUILD)/test/test_experiments_distributed: | $(BUILD)/dev/bench_distributed

# A test of the emulator itself is joined with it, and shows nothing but its main.
$(BUILD)/emulated/test/%.whole.o: $(BUILD)/emulated/test/%.o $(EMULATOR_OBJECTS)
	$(Q)ld -r --force-group-allocation $^ -o $@
	$(Q)objcopy --keep-global-symbol=main $@
$(BUILD)/test/%: $(BUILD)/emulated/test/%.whole.o $(LIBRARY)
	$(call say,LINK)
	@mkdir -p $(@D)
	$(Q)$(LINK) $^ $(LIBS) $(CMOCKA_LDLIBS) -o $@

# The ladder of attention kernels, on this CPU and, where there is nvcc, for GPUs.
LADDER := $(wildcard dev/ladder/*.cu)
ladder: $(if $(EMULATED),$(BUILD)/dev/ladder-emulated) $(if $(CUDA),$(BUILD)/dev/ladder)
$(BUILD)/emulated/ladder.whole.o: $(LADDER:%.cu=$(BUILD)/emulated/%.o) $(EMULATED_OBJECTS) $(EMULATOR_OBJECTS)
	$(Q)ld -r --force-group-allocation $^ -o $@
	$(Q)objcopy --keep-global-symbol=main $@
$(BUILD)/dev/ladder-emulated: $(BUILD)/emulated/ladder.whole.o $(LIBRARY)
	$(call say,LINK)
	@mkdir -p $(@D)
	$(Q)$(LINK) $^ $(LIBS) -o $@
$(BUILD)/dev/ladder: $(LADDER:%.cu=$(CUDA_FOLDER)/%.o) $(LIBRARY)
	$(call say,LINK)
	@mkdir -p $(@D)
	$(Q)$(LINK) $^ $(LIBS) -o $@

$(BUILD)/dev/%: $(BUILD)/dev/%.o $(LIBRARY)
	$(call say,LINK)
	$(Q)$(LINK) $^ $(LIBS) -o $@

# ---- running --------------------------------------------------------------------------------------------------------

# As many jobs as processors, unless the one who typed `make` said how many.
parallel = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc 2> /dev/null || echo 1))
submake  = $(MAKE) --no-print-directory $(parallel)

setup:
	@scripts/setup test

run:
	@scripts/setup
	+@$(submake) train_gpt
	@./train_gpt

bench: $(BENCHES)
	@for bench in $(BENCHES); do $$bench || exit 1; done

# The programs that start ranks run under ThreadSanitizer too, with nothing in them but our own code: what a library
# does without the sanitizer's knowledge it would take for races.
RANKS_TESTS   := attention cli comm comm_device comm_failure model training
TEST          ?= $(patsubst test/test_%,%,$(basename $(wildcard test/test_*.c test/test_*.cu)))
RELEASE_TESTS  = $(TEST:%=$(BUILD)/test/test_%)
# Programs about other programs gain nothing from sanitizers, nor do those about kernels alone, whose memory the emulator
# watches: they are compiled without.
NOT_ASAN      := bits book cuda_attention cuda_attention_backward cuda_distributed cuda_on_cpu experiments \
                 experiments_distributed experiments_mixers get_data gpu_check hopper_on_cpu ladder memory \
                 mixers_checkpoint mixers_memory mixers_training recall sass scripts
ASAN_TESTS     = $(patsubst %,build/asan/test/test_%,$(filter-out $(NOT_ASAN),$(TEST)))
TSAN_TESTS     = $(patsubst %,build/tsan/test/test_%,$(filter $(RANKS_TESTS),$(TEST)))
ASAN          := BUILD=build/asan OPT=-O1 SANITIZE=address,undefined
TSAN          := BUILD=build/tsan OPT=-O1 SANITIZE=thread WITHOUT="mpi cblas openmp"

build-emulated: setup
	+@$(submake) emulated-object
build-release: build-emulated
	+@$(submake) test-programs PROGRAMS="$(RELEASE_TESTS)" TESTED=yes
build-asan: build-emulated
	+@$(submake) test-programs PROGRAMS="$(ASAN_TESTS)" $(ASAN) EMULATED_OBJECT=$(BUILD)/emulated.o
build-tsan: setup
	+@$(submake) test-programs PROGRAMS="$(TSAN_TESTS)" $(TSAN)
test-programs: $(BUILD)/train_gpt $(PROGRAMS) $(if $(EMULATED),$(if $(filter %/test_ladder,$(PROGRAMS)),$(BUILD)/dev/ladder-emulated))
	@:
# Every kernel for every architecture, where there is nvcc: a warning or a register spilled to memory is an error, and
# so is what scripts/check-sass finds. The tests do it for TESTED_ARCHS.
build-archs: setup
	+@if scripts/detect --toolkit > /dev/null; then $(submake) check-sass ARCHS="$(if $(TESTED),$(TESTED_ARCHS),$(ALL_ARCHS))"; \
	else echo "skipped: no nvcc here, so the kernels are not compiled for GPUs"; fi

test: TESTED = yes
test: build-release build-asan build-tsan build-archs
	@scripts/run-tests $(RELEASE_TESTS) $(ASAN_TESTS) $(TSAN_TESTS)
test-release: build-release
	@scripts/run-tests $(RELEASE_TESTS)
test-asan: build-asan
	@scripts/run-tests $(ASAN_TESTS)
test-tsan: build-tsan
	@scripts/run-tests $(TSAN_TESTS)

# ---- a GPU at hand --------------------------------------------------------------------------------------------------

# What runs on a GPU too: with TEST_DEVICE=cuda these programs open the first GPU instead of the emulated one.
GPU_TESTS = $(filter-out cuda_on_cpu,$(filter cuda_% comm_device dilated mean token_mlp training_cuda,$(TEST)))

test-gpu: build-release
	@$(BUILD)/train_gpt --device cuda --layers 1 --dim 64 --heads 1 --context 64 --steps 1 > /dev/null
	@TEST_DEVICE=cuda TEST_TIMEOUT=300 scripts/run-tests $(GPU_TESTS:%=$(BUILD)/test/test_%)
	@dev/gpu_check/sanitize $(GPU_TESTS:%=$(BUILD)/test/test_%)

gpu-check: build-release
	+@$(submake) $(BENCHES)
	@dev/gpu_check/run $(if $(DRY),--dry) $(BUILD) build/gpu-report

# Needs nothing there but a driver, cuBLASLt, cuFFT and NCCL: no OpenMP, BLAS or MPI, and cmocka comes along.
gpu-bundle: setup
	+@$(submake) gpu-bundle-programs BUILD=build/bundle WITHOUT="mpi cblas openmp emulated"
	@rm -rf build/gpu-bundle && mkdir -p build/gpu-bundle/bin/test build/gpu-bundle/bin/dev build/gpu-bundle/bin/lib \
	    build/gpu-bundle/dev build/gpu-bundle/scripts
	@cp -r dev/gpu_check build/gpu-bundle/dev/ && cp scripts/run-tests build/gpu-bundle/scripts/
	@cp build/bundle/train_gpt build/gpu-bundle/bin/ && cp $(BENCHES:$(BUILD)/%=build/bundle/%) build/gpu-bundle/bin/dev/
	@cp $(GPU_TESTS:%=build/bundle/test/test_%) build/gpu-bundle/bin/test/
	@cp "$$(ldd build/bundle/test/test_comm_device | sed -n 's/.*libcmocka.* => \([^ ]*\).*/\1/p')" build/gpu-bundle/bin/lib/
	@git describe --always --dirty > build/gpu-bundle/bin/VERSION 2> /dev/null || true
	@strip build/gpu-bundle/bin/train_gpt build/gpu-bundle/bin/*/test_* build/gpu-bundle/bin/dev/bench_*
	@tar -czf build/gpu-bundle.tgz -C build gpu-bundle && du -h build/gpu-bundle.tgz
	@echo "there: tar -xzf gpu-bundle.tgz && gpu-bundle/dev/gpu_check/run gpu-bundle/bin report"
gpu-bundle-programs: $(BUILD)/train_gpt $(GPU_TESTS:%=$(BUILD)/test/test_%) $(BENCHES)

lines:
	@scripts/lines

clean:
	rm -rf build train_gpt

help:
	@sed -n '3,/^$$/s/^# \{0,3\}//p' Makefile

-include $(shell find $(BUILD) -name '*.d' 2> /dev/null)
