// Bodies of test/cuda_cases.h.
#include "test/cuda_cases.h"

static bool cuda_device_is_open(bool now) {
    static bool open;
    return open = open || now;
}

Device *cuda_device_of_test(void) {
    static Device device;
    if (cuda_device_is_open(false)) return &device;
    if (cuda_devices_here() == 0) skip();
    setenv("EMULATED_RACES", "1", 0);
    Error err = {0};
    if (!device_open(&device, cuda_device_kind(), 0, 1, &err)) fail_msg("%s", err.message);
    lend_stated_scratch(&device, 1 << 17, 4096, 1 << 17, 0); // never given back
    cuda_device_is_open(true);
    return &device;
}

Device *cpu_device_of_test(void) {
    static Device device;
    if (device.name != NULL) return &device;
    cpu_device(&device, 2);
    const AttentionShape shape = {1, 1, 1, ATTENTION_MAX_HEAD_DIM, 1};
    lend_stated_scratch(&device, 1 << 17, 4096, 1 << 17, stated_for_attention(&device, &shape, 0));
    return &device;
}

int status_in_child(void (*work)(void *argument), void *argument) {
    enum { NO_DEVICE = 77 };
    assert_false(cuda_device_is_open(false));
    fflush(NULL);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const char *why = "";
        if (device_count(cuda_device_kind(), &why) == 0) _exit(NO_DEVICE);
        work(argument);
        fflush(NULL);
        _exit(0);
    }
    int status;
    assert_true(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status)) fail_msg("ended by signal %d", WTERMSIG(status));
    if (WEXITSTATUS(status) == NO_DEVICE) skip();
    return WEXITSTATUS(status);
}

bool may_be_hopper(void) {
    const char *arch = getenv("EMULATED_ARCH");
    return cuda_device_is_gpu() || (arch != NULL && strcmp(arch, "90") == 0);
}

int run_on_architectures(int (*group)(const char *name), const char *name) {
    if (cuda_device_is_gpu() || getenv("EMULATED_ARCH") != NULL) return group(name);
    fflush(NULL);
    const pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) { // what is asked of the emulator is read once in a process
        char title[100];
        snprintf(title, sizeof title, "%s on Hopper", name);
        setenv("EMULATED_ARCH", "90", 1);
        exit(group(title) == 0 ? 0 : 1);
    }
    int status = 1;
    const bool ended = waitpid(child, &status, 0) == child;
    const int failed = group(name);
    return failed + (ended && WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : 1);
}

static void run_with_seed(void *argument) {
    const Run *run = argument;
    setenv("EMULATED_SEED", run->seed, 1);
    run->work(cuda_device_of_test(), run->results);
}

void expect_same_bits_in_runs(const char *what, void (*work)(Device *, void *results), size_t bytes, int times) {
    const char *seeds[] = {"1", "20261122", "3", "4"};
    char *results = mmap(NULL, (size_t)times * bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(results != MAP_FAILED);
    for (int i = 0; i < times; i++) {
        Run run = {seeds[i], work, results + (size_t)i * bytes};
        if (status_in_child(run_with_seed, &run) != 0) fail_msg("%s: run %d did not end well", what, i);
        if (memcmp(results, run.results, bytes) != 0) fail_msg("%s: other bits in another order of threads", what);
    }
    munmap(results, (size_t)times * bytes);
}

void expect_same_bits_twice(const char *what, void (*work)(Device *, void *results), size_t bytes) {
    expect_same_bits_in_runs(what, work, bytes, 2);
}

int run_on_each_gpu(int (*group)(void)) {
    int failed = 0, status;
    if (!cuda_device_is_gpu() && getenv("EMULATED_ARCH") == NULL) {
        fflush(NULL);
        const pid_t child = fork();
        if (child == 0) {
            setenv("EMULATED_ARCH", "90", 1);
            exit(group());
        }
        failed = child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) ? 1 : WEXITSTATUS(status);
    }
    return failed + group();
}

float *rounded(float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] = round_to_bf16(x[i]);
    return x;
}

double half_ulp(double x) {
    x = fabs(x);
    return x < 0x1p-126 ? 0x1p-134 : ldexp(1, ilogb(x) - 8);
}

void expect_storage(const char *what, int64_t i, double got, double expected, double tolerance) {
    expect_near(what, i, got, expected, tolerance + half_ulp(fabs(expected) + tolerance));
}

double product_tolerance(int64_t k, double magnitudes) {
    return sum_tolerance(k, magnitudes) + (double)k / 16 * 2 * UNIT * magnitudes / sqrt((double)k);
}

size_t kind_bytes(Kind kind) {
    const size_t bytes[] = {2, 4, 4, 8, 1};
    return bytes[kind];
}

CudaTensor cuda_tensor_at(Kind kind, const void *values, int64_t count, int64_t offset) {
    Device *device = cuda_device_of_test();
    Error err = {0};
    const size_t size = kind_bytes(kind), lead = 256 + (size_t)offset * size;
    CudaTensor t = {.kind = kind, .count = count, .lead = lead, .bytes = lead + (size_t)count * size + GUARD_BYTES};
    t.memory = device->allocate(device, t.bytes, &err);
    if (t.memory == NULL) fail_msg("%s", err.message);
    t.data = t.memory + lead;
    unsigned char *host = checked(malloc(t.bytes));
    memset(host, GUARD, t.bytes);
    if (values == NULL) memset(host + lead, 0, (size_t)count * size);
    else if (kind != KIND_STORAGE) memcpy(host + lead, values, (size_t)count * size);
    else
        for (int64_t i = 0; i < count; i++) {
            const uint16_t bits = to_bf16_bits(((const float *)values)[i]);
            memcpy(host + lead + 2 * i, &bits, sizeof bits);
        }
    device->upload(device, t.memory, host, t.bytes);
    memset(host, 0, t.bytes); // may change after the return
    free(host);
    return t;
}

CudaTensor cuda_storage(const float *values, int64_t count) { return cuda_tensor_at(KIND_STORAGE, values, count, 0); }

CudaTensor cuda_floats(const float *values, int64_t count) { return cuda_tensor_at(KIND_FLOAT, values, count, 0); }

CudaTensor cuda_tokens(const int32_t *values, int64_t count) { return cuda_tensor_at(KIND_INT32, values, count, 0); }

int32_t *documents_of_test(int64_t B, int64_t T, int64_t average) {
    int32_t *first = checked(malloc((size_t)(B * T) * sizeof *first));
    uint64_t next = 1;
    for (int64_t i = 0, left = 0; i < B * T; i++, left--) {
        if (left == 0 || i % T == 0) {
            next = next * 6364136223846793005u + 1442695040888963407u; // a linear congruential generator's
            left = 1 + (int64_t)((next >> 33) % (uint64_t)(2 * average - 1));
            first[i] = (int32_t)(i % T);
        } else {
            first[i] = first[i - 1];
        }
    }
    return first;
}

void cuda_fetch_raw(const CudaTensor *t, void *to) {
    Device *device = cuda_device_of_test();
    device->download(device, to, t->data, (size_t)t->count * kind_bytes(t->kind));
}

float *cuda_fetch(const CudaTensor *t) {
    float *values = floats(t->count);
    if (t->kind == KIND_FLOAT) {
        cuda_fetch_raw(t, values);
        return values;
    }
    assert_int_equal(t->kind, KIND_STORAGE);
    uint16_t *bits = checked(calloc((size_t)t->count + 1, sizeof *bits));
    cuda_fetch_raw(t, bits);
    for (int64_t i = 0; i < t->count; i++) values[i] = from_bf16_bits(bits[i]);
    free(bits);
    return values;
}

void cuda_free(CudaTensor *t) {
    Device *device = cuda_device_of_test();
    unsigned char *host = checked(malloc(t->bytes));
    device->download(device, host, t->memory, t->bytes);
    const size_t end = t->lead + (size_t)t->count * kind_bytes(t->kind);
    for (size_t i = 0; i < t->bytes; i++)
        if ((i < t->lead || i >= end) && host[i] != GUARD)
            fail_msg("byte %lld beside a tensor of %lld elements was written",
                     (long long)(i < t->lead ? i - t->lead : i - end), (long long)t->count);
    free(host);
    device->release(device, t->memory, t->bytes);
    *t = (CudaTensor){0};
}
