# train_gpt: builds with a C compiler and make alone; uses OpenMP, a CBLAS and MPI where scripts/detect finds them.
#
#   make             build ./train_gpt
#   make run         set up, build, and train a small model on the bundled corpus
#   make test        set up, build and run every test: as released, and under sanitizers
#   make bench       measure against the machine's own matrix rate
#   make setup       install what is missing (scripts/setup), or print the line that does
#   make clean       remove what was built
#   make help        this list
#
#   make test-release, test-asan, test-tsan      one build's tests;  TEST="options random": only these programs
#   make CC=clang BUILD=build/clang              another compiler, in a folder of its own
#   make corpus                                  gathers the bundled corpus anew (make does it in a fresh build)
#   make WITHOUT="mpi cblas openmp"              leaves out some of what was found
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
LIBS    = $(FOUND_LDLIBS) $(LDLIBS) -lm

# Compiled once per instruction set (base/simd.h); the processor's best is chosen at run time.
SIMD_SOURCES := $(wildcard attention/cpu/*_simd.c layers/cpu/*_simd.c)
SOURCES      := $(filter-out $(SIMD_SOURCES),$(foreach folder,base comm attention attention/cpu layers layers/cpu \
                model dataloader checkpoint terminal,$(wildcard $(folder)/*.c)))
ISAS         := portable $(if $(findstring x86_64,$(shell $(CC) -dumpmachine 2> /dev/null)),avx2 avx512)
FLAGS_avx2   := -mavx2 -mfma
FLAGS_avx512 := -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512

OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o) $(foreach isa,$(ISAS),$(SIMD_SOURCES:%.c=$(BUILD)/%.$(isa).o))
LIBRARY := $(BUILD)/libtrain_gpt.a
BENCHES := $(patsubst dev/%.c,$(BUILD)/dev/%,$(wildcard dev/bench_*.c))

.PHONY: all run setup bench corpus clean help test test-release test-asan test-tsan \
        build-release build-asan build-tsan test-programs FORCE
.DELETE_ON_ERROR:
.SECONDARY: # object files are kept
all: train_gpt

# ---- what this machine has ------------------------------------------------------------------------------------------

# config.mk is made anew when a compiler, flag or library that it depends on is another than last time.
ifneq ($(filter-out run setup corpus clean help test test-release test-asan test-tsan,$(or $(MAKECMDGOALS),all)),)
-include $(BUILD)/config.mk
endif
$(BUILD)/config.mk: scripts/detect $(BUILD)/config.key
	@CC="$(CC)" SANITIZE="$(SANITIZE)" WITHOUT="$(WITHOUT)" scripts/detect > $@.new && mv $@.new $@
$(BUILD)/config.key: FORCE
	@mkdir -p $(@D)
	@echo '$(CC)' "`$(CC) --version 2> /dev/null | head -n 1`" '$(SANITIZE) $(WITHOUT) $(OPT) $(CFLAGS) $(LDFLAGS)' \
	    "`scripts/detect --modules`" > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# ---- building -------------------------------------------------------------------------------------------------------

ifeq ($(V),)
Q := @
say = @echo "  $(1)" $(patsubst $(BUILD)/%,%,$@)
endif

train_gpt: $(BUILD)/train_gpt
	@cp $< $@

$(BUILD)/train_gpt: $(BUILD)/train_gpt.o $(BUILD)/corpus.o $(LIBRARY)
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

$(BUILD)/%.o: %.c $(BUILD)/config.mk
	$(call say,CC  )
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -c $< -o $@

define simd_rule
$(BUILD)/%.$(1).o: %.c $(BUILD)/config.mk
	$$(call say,CC  )
	@mkdir -p $$(@D)
	$$(Q)$$(COMPILE) $$(FLAGS_$(1)) -ffp-contract=fast -DSIMD_ISA=$(1) -c $$< -o $$@
endef
$(foreach isa,$(ISAS),$(eval $(call simd_rule,$(isa))))

$(BUILD)/test/%: $(BUILD)/test/%.o $(LIBRARY)
	$(call say,LINK)
	$(Q)$(LINK) $^ $(LIBS) $(CMOCKA_LDLIBS) -o $@

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
RANKS_TESTS   := attention cli comm comm_failure model training
TEST          ?= $(patsubst test/test_%.c,%,$(wildcard test/test_*.c))
TEST_SOURCES   = $(TEST:%=test/test_%.c)
RELEASE_TESTS  = $(TEST_SOURCES:%.c=$(BUILD)/%)
ASAN_TESTS     = $(TEST_SOURCES:%.c=build/asan/%)
TSAN_TESTS     = $(patsubst %,build/tsan/test/test_%,$(filter $(RANKS_TESTS),$(TEST)))
ASAN          := BUILD=build/asan OPT=-O1 SANITIZE=address,undefined
TSAN          := BUILD=build/tsan OPT=-O1 SANITIZE=thread WITHOUT="mpi cblas openmp"

build-release: setup
	+@$(submake) test-programs PROGRAMS="$(RELEASE_TESTS)"
build-asan: setup
	+@$(submake) test-programs PROGRAMS="$(ASAN_TESTS)" $(ASAN)
build-tsan: setup
	+@$(submake) test-programs PROGRAMS="$(TSAN_TESTS)" $(TSAN)
test-programs: $(BUILD)/train_gpt $(PROGRAMS)
	@:

test: build-release build-asan build-tsan
	@scripts/run-tests $(RELEASE_TESTS) $(ASAN_TESTS) $(TSAN_TESTS)
test-release: build-release
	@scripts/run-tests $(RELEASE_TESTS)
test-asan: build-asan
	@scripts/run-tests $(ASAN_TESTS)
test-tsan: build-tsan
	@scripts/run-tests $(TSAN_TESTS)

clean:
	rm -rf build train_gpt

help:
	@sed -n '3,/^$$/s/^# \{0,3\}//p' Makefile

-include $(shell find $(BUILD) -name '*.d' 2> /dev/null)
