// The CUDA device itself: opening it by name and number, its memory, uploads, copies of rows, the one line with which
// it gives up, and the events by which ranks wait for each other's streams.
#include "test/cuda_cases.h"

#include <pthread.h>

// ---- opening -------------------------------------------------------------------------------------------------------
static void opening(void **state) {
    (void)state;
    Device *device = cuda_device_of_test(), other;
    assert_string_equal(device->name, cuda_device_name());
    assert_int_equal(device->element_bytes, 2);
    assert_false(device->host_memory);
    assert_true(strlen(device->description) > 0);
    assert_true(device->memory_available(device) > 0);
    Error err = {0};
    assert_false(device_open(&other, cuda_device_kind(), 9999, 1, &err));
    assert_int_equal(err.exit_code, EXIT_USAGE);
    assert_non_null(strstr(err.message, "9999"));
    assert_false(device_open(&other, cuda_device_kind(), -1, 1, &err));
    assert_true(device_open(&other, cuda_device_kind(), 0, 1, &err)); // two ranks on one GPU
    assert_true(other.context != device->context);
    other.close(&other);
    device->synchronize(device); // closing one leaves the other as it was
}

static void devices_by_name(void **state) {
    (void)state;
    Device device;
    Error err = {0};
    const char *why = NULL;
    assert_true(device_count(DEVICE_CPU, &why) > 0);
    assert_int_equal(device_count(device_kind("tpu"), &why), 0);
    assert_non_null(why);
    assert_false(device_open(&device, device_kind("tpu"), 0, 1, &err));
    assert_non_null(strstr(err.message, "no such device"));
    assert_true(device_open(&device, device_kind("cpu"), 0, 3, &err));
    assert_int_equal(device.threads, 3);
    // A device that cannot be used says so instead of opening.
    const DeviceKind kinds[] = {DEVICE_CUDA, DEVICE_EMULATED};
    for (int i = 0; i < 2; i++) {
        if (device_count(kinds[i], &why) > 0) continue;
        assert_true(strlen(why) > 0);
        assert_false(device_open(&device, kinds[i], 0, 1, &err));
        assert_int_equal(err.exit_code, EXIT_RUNTIME);
    }
}

// What a kernel cannot do ends the program with one line, here a sum over more ranks than one machine has.
static void ask_too_much(void *argument) {
    enum { TERMS = 300 };
    Device *device = cuda_device_of_test();
    const char *path = argument;
    const float *terms[TERMS];
    CudaTensor t = cuda_floats(NULL, 8);
    for (int i = 0; i < TERMS; i++) terms[i] = t.data;
    if (freopen(path, "w", stderr) == NULL) _exit(3);
    device->sum_terms(device, STREAM_WORK, t.data, terms, TERMS, 8);
}

static void giving_up_is_one_line(void **state) {
    (void)state;
    char path[] = "/tmp/test_cuda_device.XXXXXX", line[1200] = "", rest[8] = "";
    const int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    close(descriptor);
    assert_int_equal(status_in_child(ask_too_much, path), EXIT_RUNTIME);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_non_null(fgets(line, sizeof line, file));
    assert_null(fgets(rest, sizeof rest, file));
    fclose(file);
    unlink(path);
    assert_ptr_equal(strstr(line, "train_gpt: CUDA: "), line);
    assert_non_null(strstr(line, "300 ranks"));
    assert_non_null(strstr(line, "streams.cu:"));
}

// ---- memory --------------------------------------------------------------------------------------------------------
static unsigned char *pattern(size_t bytes, unsigned seed) {
    unsigned char *host = checked(malloc(bytes + 1));
    for (size_t i = 0; i < bytes; i++) host[i] = (unsigned char)(i * 31 + i / 251 + seed);
    return host;
}

static void memory(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    Error err = {0};
    // The last is more than upload's ring holds.
    const size_t sizes[] = {0, 1, 255, 4097, (size_t)256 << 10, ((size_t)20 << 20) + 13};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const size_t bytes = sizes[s];
        char *a = device->allocate(device, bytes, &err), *b = device->allocate(device, bytes, &err);
        assert_true(a != NULL && b != NULL && a != b);
        assert_int_equal((uintptr_t)a % 256, 0);
        unsigned char *host = pattern(bytes, 1), *sent = pattern(bytes, 1), *got = checked(malloc(bytes + 1));
        memset(got, 1, bytes);
        device->download(device, got, a, bytes);
        for (size_t i = 0; i < bytes; i++) assert_true(got[i] == 0);
        device->upload(device, a, sent, bytes);
        memset(sent, 0xee, bytes); // what was sent is what it held then
        device->copy(device, b, a, bytes);
        device->zero(device, a, bytes);
        device->download(device, got, b, bytes);
        assert_memory_equal(got, host, bytes);
        device->download(device, got, a, bytes);
        for (size_t i = 0; i < bytes; i++) assert_true(got[i] == 0);
        device->release(device, a, bytes);
        device->release(device, b, bytes);
        free(host), free(sent), free(got);
    }
    assert_int_equal(err.exit_code, 0);
}

static void no_memory_is_an_error(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    const size_t sizes[] = {SIZE_MAX / 2, (size_t)1 << 52};
    for (int i = 0; i < 2; i++) {
        Error err = {0};
        assert_null(device->allocate(device, sizes[i], &err));
        assert_int_equal(err.exit_code, EXIT_RUNTIME);
        assert_non_null(strstr(err.message, "out of memory"));
    }
    CudaTensor t = cuda_floats(NULL, 5); // and the device goes on
    cuda_free(&t);
}

// Many uploads, small ones between larger ones, so that they share slots and the ring goes round while the device may
// be behind.
static void many_uploads(void **state) {
    (void)state;
    enum { UPLOADS = 600, MOST = 17000 };
    static int32_t values[MOST], got[UPLOADS * MOST];
    Device *device = cuda_device_of_test();
    CudaTensor t = cuda_tokens(NULL, UPLOADS * MOST);
    for (int32_t i = 0; i < UPLOADS; i++) {
        const int32_t count = i % 2 == 0 ? 1 + i % 7 : MOST;
        for (int32_t j = 0; j < count; j++) values[j] = i * i + j;
        device->upload(device, (int32_t *)t.data + (int64_t)i * MOST, values, (size_t)count * sizeof *values);
        memset(values, 0xff, sizeof values);
    }
    cuda_fetch_raw(&t, got);
    for (int32_t i = 0; i < UPLOADS; i++)
        for (int32_t j = 0; j < (i % 2 == 0 ? 1 + i % 7 : MOST); j++)
            if (got[i * MOST + j] != i * i + j) fail_msg("upload %d: value %d is %d", i, j, got[i * MOST + j]);
    cuda_free(&t);
}

static void copy_strided(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    // rows, row_bytes, to_stride, from_stride, to_offset, from_offset: units of 16, 8, 4, 2 and 1 bytes, and rows of
    // less than a thread's, of more than a block's.
    const int64_t shapes[][6] = {
        {1, 16, 16, 16, 0, 0}, {37, 48, 64, 96, 16, 32}, {37, 48, 64, 96, 8, 32},        {300, 20, 24, 20, 4, 0},
        {5, 6, 10, 8, 2, 6},   {7, 3, 5, 4, 1, 3},       {3, 40000, 40016, 48000, 0, 0}, {2, 1001, 1001, 1500, 0, 7},
        {1000, 1, 3, 2, 0, 1}, {0, 16, 16, 16, 0, 0},    {4, 0, 16, 16, 0, 0},           {3, 16400, 16400, 0, 0, 0}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const int64_t *shape = shapes[s], rows = shape[0], row_bytes = shape[1], to_stride = shape[2],
                      from_stride = shape[3];
        const int64_t to_bytes = rows * to_stride + row_bytes, from_bytes = rows * from_stride + row_bytes;
        unsigned char *from = pattern((size_t)from_bytes, 5), *expected = pattern((size_t)to_bytes, 77),
                      *got = checked(malloc((size_t)to_bytes + 1));
        CudaTensor to_tensor = cuda_tensor_at(KIND_BYTES, expected, to_bytes, shape[4]),
                   from_tensor = cuda_tensor_at(KIND_BYTES, from, from_bytes, shape[5]);
        for (int64_t i = 0; i < rows; i++) memcpy(expected + i * to_stride, from + i * from_stride, (size_t)row_bytes);
        device->copy_strided(device, to_tensor.data, to_stride, from_tensor.data, from_stride, rows, (size_t)row_bytes);
        cuda_fetch_raw(&to_tensor, got);
        if (memcmp(got, expected, (size_t)to_bytes) != 0) fail_msg("copy_strided of shape %d", (int)s);
        cuda_free(&to_tensor), cuda_free(&from_tensor);
        free(from), free(expected), free(got);
    }
}

// ---- between ranks -------------------------------------------------------------------------------------------------
// Two ranks, each a thread with its own Device, on two GPUs where there are two. What the first works out, the second
// fetches after the first's event, and the first overwrites it only after the second's. Without the events the emulated
// streams would run in another order. It is the second that records for the first, which waits meanwhile.
enum { RANKS_COUNT = 3000, ROUNDS = 20 };

typedef struct Ranks {
    Device *first;
    float *x; // the first's
    Event *made, *fetched;
    pthread_barrier_t turn;
    const char *failure; // of the second's thread
    float *sum;
} Ranks;

static const size_t ranks_bytes = RANKS_COUNT * sizeof(float);

static void second_rounds(Ranks *r, Device *device) {
    Error err = {0};
    float *y = device->allocate(device, ranks_bytes, &err), *sum = device->allocate(device, ranks_bytes, &err);
    r->fetched = device->event_create(device);
    for (int round = 1; round <= ROUNDS; round++) {
        pthread_barrier_wait(&r->turn); // the first has begun its part
        r->first->event_record(r->first, STREAM_WORK, r->made);
        device->stream_wait(device, STREAM_EXCHANGE, r->made);
        device->copy_on(device, STREAM_EXCHANGE, y, r->x, ranks_bytes);
        const float *terms[] = {sum, y};
        device->sum_terms(device, STREAM_EXCHANGE, sum, terms, 2, RANKS_COUNT);
        device->event_record(device, STREAM_EXCHANGE, r->fetched);
        pthread_barrier_wait(&r->turn);
    }
    device->stream_wait(device, STREAM_WORK, r->fetched);
    device->download(device, r->sum, sum, ranks_bytes);
    if (!device->event_done(device, r->fetched) || !r->first->event_done(r->first, r->made))
        r->failure = "an event not done";
    device->release(device, y, ranks_bytes);
    device->release(device, sum, ranks_bytes);
    pthread_barrier_wait(&r->turn); // nobody needs its event now
    device->event_release(device, r->fetched);
}

static void *second_rank(void *argument) {
    Ranks *r = argument;
    Device device;
    Error err = {0};
    const char *why = "";
    if (!device_open(&device, cuda_device_kind(), device_count(cuda_device_kind(), &why) > 1 ? 1 : 0, 1, &err)) {
        fprintf(stderr, "%s\n", err.message);
        abort();
    }
    second_rounds(r, &device);
    device.close(&device);
    return NULL;
}

static void events(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    Error err = {0};
    Ranks r = {.first = device, .sum = floats(RANKS_COUNT)};
    float *values = floats(RANKS_COUNT), *step;
    for (int i = 0; i < RANKS_COUNT; i++) values[i] = (float)i;
    r.x = device->allocate(device, ranks_bytes, &err);
    step = device->allocate(device, ranks_bytes, &err);
    assert_true(r.x != NULL && step != NULL);
    device->upload(device, step, values, ranks_bytes);
    r.made = device->event_create(device);
    pthread_barrier_init(&r.turn, NULL, 2);
    pthread_t second;
    assert_int_equal(pthread_create(&second, NULL, second_rank, &r), 0);
    for (int round = 1; round <= ROUNDS; round++) {
        if (round > 1) device->stream_wait(device, STREAM_WORK, r.fetched);
        device->add_float(device, r.x, step, RANKS_COUNT); // round * i
        pthread_barrier_wait(&r.turn);
        pthread_barrier_wait(&r.turn); // the second has begun its part
    }
    pthread_barrier_wait(&r.turn);
    pthread_join(second, NULL);
    if (r.failure != NULL) fail_msg("%s", r.failure);
    for (int i = 0; i < RANKS_COUNT; i++) assert_true(r.sum[i] == (float)(i * (ROUNDS * (ROUNDS + 1) / 2)));
    device->event_release(device, r.made);
    device->release(device, r.x, ranks_bytes);
    device->release(device, step, ranks_bytes);
    pthread_barrier_destroy(&r.turn);
    free(values), free(r.sum);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(giving_up_is_one_line), // in a process of its own, so first
        cmocka_unit_test(devices_by_name),
        cmocka_unit_test(opening),
        cmocka_unit_test(memory),
        cmocka_unit_test(no_memory_is_an_error),
        cmocka_unit_test(many_uploads),
        cmocka_unit_test(copy_strided),
        cmocka_unit_test(events),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
