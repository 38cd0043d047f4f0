// Engine sockets, in what is its own: how ranks find each other, or say clearly why they do not; messages longer than
// any buffer, sent before anybody asks for them; and training over it.
//
// That it does what all engines do is in test_comm and test_comm_failure. The program starts itself as the ranks:
// `test_comm_sockets RANKS TIMEOUT ROLE`, with their places in the environment.
#include "test/ranks.h"

#include <netdb.h>
#include <sched.h>
#include <sys/mount.h>

#include "test/compare.h"

// ---- the ranks ----------------------------------------------------------------------------------------------------

enum { LONG = 8 << 20, SHORTS = 300, MOST_SHORT = 60000 }; // bytes; messages; bytes

static void need(Comm *comm, bool right, const char *what) {
    Error err;
    if (right) return;
    error_set(&err, "rank %d: %s", comm_rank(comm), what);
    comm_fail(comm, &err);
}

static unsigned char *get(Comm *comm, size_t bytes) {
    unsigned char *memory = malloc(bytes);
    need(comm, memory != NULL, "out of memory");
    return memory;
}

static void fill(unsigned char *data, size_t bytes, int from, int n) {
    uint32_t state = (uint32_t)(from * 7919 + n * 104729 + 1);
    for (size_t i = 0; i < bytes; i++) data[i] = (unsigned char)((state = state * 1664525u + 1013904223u) >> 24);
}

static void need_filled(Comm *comm, const unsigned char *data, size_t bytes, int from, int n, const char *what) {
    unsigned char *expected = get(comm, bytes);
    fill(expected, bytes, from, n);
    need(comm, memcmp(data, expected, bytes) == 0, what);
    free(expected);
}

static CommRequest send_to(Comm *comm, const void *data, size_t bytes, int to) {
    return comm_exchange_begin(comm, data, bytes, to, NULL, 0, to);
}
static CommRequest receive_from(Comm *comm, void *data, size_t bytes, int from) {
    return comm_exchange_begin(comm, NULL, 0, from, data, bytes, from);
}

// Long messages to everyone from everyone, all under way at once.
static void cross(Comm *comm) {
    enum { MESSAGES = 3 };
    int size = comm_size(comm), me = comm_rank(comm);
    unsigned char *out = get(comm, LONG), *in = get(comm, (size_t)size * MESSAGES * LONG);
    CommRequest requests[8 * MESSAGES];
    fill(out, LONG, me, 0);
    int64_t before = comm_bytes_sent(comm);
    for (int n = 0; n < MESSAGES; n++)
        for (int shift = 1; shift < size; shift++)
            requests[n * size + shift] =
                comm_exchange_begin(comm, out, LONG, (me + shift) % size, in + (size_t)(n * size + shift) * LONG, LONG,
                                    (me + size - shift) % size);
    for (int i = MESSAGES * size - 1; i >= 0; i--) { // the last one first
        int shift = i % size;
        if (shift == 0) continue;
        comm_wait(comm, &requests[i]);
        need_filled(comm, in + (size_t)i * LONG, LONG, (me + size - shift) % size, 0, "a long message came wrong");
    }
    need(comm, comm_bytes_sent(comm) - before == (int64_t)MESSAGES * (size - 1) * LONG, "bytes of long messages");
    free(out);
    free(in);
}

static size_t short_bytes(int n) { return 1 + (size_t)(n * 7919 % MOST_SHORT); }

// Everything is sent before anybody asks for anything, with collectives in between.
static void send_early(Comm *comm) {
    int me = comm_rank(comm), other = 1 - me;
    unsigned char *out = get(comm, LONG), *in = get(comm, LONG), *shorts = get(comm, (size_t)SHORTS * MOST_SHORT);
    CommRequest longs[2], *requests = malloc(SHORTS * sizeof *requests);
    need(comm, requests != NULL, "out of memory");
    fill(out, LONG, me, 1);
    longs[0] = send_to(comm, out, LONG, other);
    for (int n = 0; n < SHORTS; n++) {
        fill(shorts + (size_t)n * MOST_SHORT, short_bytes(n), me, n);
        requests[n] = send_to(comm, shorts + (size_t)n * MOST_SHORT, short_bytes(n), other);
    }
    longs[1] = send_to(comm, out, LONG - 1, other);
    double ones[2] = {1, me};
    comm_all_reduce_sum(comm, ones, 2);
    need(comm, ones[0] == 2 && ones[1] == 1, "a sum beside messages that wait");
    comm_barrier(comm);
    CommRequest receive = receive_from(comm, in, LONG, other);
    comm_wait(comm, &receive);
    need_filled(comm, in, LONG, other, 1, "a long message that waited came wrong");
    for (int n = 0; n < SHORTS; n++) {
        receive = receive_from(comm, in, short_bytes(n), other);
        comm_wait(comm, &receive);
        need_filled(comm, in, short_bytes(n), other, n, "a short message that waited came wrong");
    }
    receive = receive_from(comm, in, LONG - 1, other);
    comm_wait(comm, &receive);
    need_filled(comm, in, LONG - 1, other, 1, "the second long message came wrong");
    for (int n = 0; n < SHORTS; n++) comm_wait(comm, &requests[n]);
    for (int n = 0; n < 2; n++) comm_wait(comm, &longs[n]);
    free(out);
    free(in);
    free(shorts);
    free(requests);
}

// The same two ranks in two groups: each group's messages are matched apart.
static void two_groups(Comm *comm) {
    int me = comm_rank(comm), other = 1 - me, got[2] = {0, 0}, sent[2] = {10 + me, 20 + me};
    Comm *same = comm_split(comm, 0, me), *swapped = comm_split(comm, 0, -me);
    CommRequest first = send_to(same, &sent[0], sizeof sent[0], other);
    CommRequest second = send_to(swapped, &sent[1], sizeof sent[1], comm_rank(same)); // there I am the other one
    CommRequest receive = receive_from(swapped, &got[1], sizeof got[1], comm_rank(same));
    comm_wait(swapped, &receive);
    receive = receive_from(same, &got[0], sizeof got[0], other);
    comm_wait(same, &receive);
    comm_wait(same, &first);
    comm_wait(swapped, &second);
    need(comm, got[0] == 10 + other && got[1] == 20 + other, "messages of two groups were mixed up");
    comm_free(same);
    comm_free(swapped);
}

static void mistaken_sizes(Comm *comm, size_t sent, size_t expected, bool early) {
    unsigned char *data = get(comm, LONG);
    if (early == (comm_rank(comm) == 0)) program_sleep(0.2); // who comes second
    CommRequest request = comm_rank(comm) == 1 ? send_to(comm, data, sent, 0) : receive_from(comm, data, expected, 1);
    comm_wait(comm, &request);
    comm_barrier(comm);
    free(data);
}

static void play(Comm *comm, void *argument) {
    const char *role = argument;
    int rank = comm_rank(comm);
    if (strcmp(role, "sum") == 0) {
        double values[1] = {rank + 1};
        comm_all_reduce_sum(comm, values, 1);
        printf("%g\n", values[0]);
    }
    if (strcmp(role, "cross") == 0) cross(comm);
    if (strcmp(role, "early") == 0) send_early(comm), two_groups(comm);
    if (strcmp(role, "long-short") == 0) mistaken_sizes(comm, LONG, 16, true);
    if (strcmp(role, "short-long") == 0) mistaken_sizes(comm, 16, LONG, true);
    if (strcmp(role, "long-short-late") == 0) mistaken_sizes(comm, LONG, 16, false);
    if (strcmp(role, "short-long-late") == 0) mistaken_sizes(comm, 16, LONG, false);
    if (strcmp(role, "judge stopped") == 0) {
        Error err;
        if (rank == 0) raise(SIGSTOP);
        program_sleep(0.3);
        error_set(&err, "rank %d cannot go on", rank);
        comm_fail(comm, &err);
    }
}

static int play_alone(char **words) {
    CommLaunch launch = {.engine = COMM_AUTO, .ranks = atoi(words[1]), .timeout_seconds = atof(words[2])};
    Error err = {0};
    alarm(100);
    if (!comm_run(&launch, play, words[3], &err)) die(&err);
    return 0;
}

// ---- starting them ------------------------------------------------------------------------------------------------

typedef struct Place { // of a rank to be started; what is left out is usual
    int rank, size, port;
    const char *address, *role;
    double timeout;
} Place;

static RunningProgram start_rank(Place place) {
    char rank[16], size[16], port[16], timeout[16];
    snprintf(rank, sizeof rank, "%d", place.rank);
    snprintf(size, sizeof size, "%d", place.size);
    snprintf(port, sizeof port, "%d", place.port);
    snprintf(timeout, sizeof timeout, "%g", place.timeout > 0 ? place.timeout : 60);
    set_place(rank, size, place.address ? place.address : "127.0.0.1", port);
    const char *const words[] = {own_path(), size, timeout, place.role ? place.role : "sum", NULL};
    RunningProgram program = start_program(words);
    set_place(NULL, NULL, NULL, NULL);
    return program;
}

static void expect(RunningProgram *program, int exit_code, const char *out, const char *err, double limit) {
    ProgramResult result = finish_program(program, limit);
    if (result.timed_out || result.exit_code != exit_code || strcmp(result.out, out) != 0 ||
        (*err == 0 ? *result.err != 0 : strstr(result.err, err) == NULL))
        fail_msg("expected %d, \"%s\" and \"%s\"; got %d after %.1f s: %s%s", exit_code, out, err, result.exit_code,
                 result.seconds, result.out, result.err);
    free_result(&result);
}

static void expect_all(RunningProgram *programs, int count, const char *out) {
    for (int i = 0; i < count; i++) expect(&programs[i], 0, out, "", 20);
}

// ---- finding each other -------------------------------------------------------------------------------------------

static void test_late_rank_0(void **state) {
    (void)state;
    int port = free_port();
    RunningProgram programs[3];
    for (int rank = 2; rank >= 0; rank--) {
        programs[rank] = start_rank((Place){.rank = rank, .size = 3, .port = port});
        program_sleep(0.3);
    }
    expect_all(programs, 3, "6\n");
}

static void test_many_ranks(void **state) {
    (void)state;
    enum { RANKS = 12 };
    int port = free_port();
    RunningProgram programs[RANKS];
    for (int rank = 0; rank < RANKS; rank++)
        programs[rank] = start_rank((Place){.rank = rank, .size = RANKS, .port = port});
    expect_all(programs, RANKS, "78\n");
}

static void meet_at(const char *address) {
    int port = free_port();
    RunningProgram programs[2];
    for (int rank = 0; rank < 2; rank++)
        programs[rank] = start_rank((Place){.rank = rank, .size = 2, .port = port, .address = address});
    expect_all(programs, 2, "3\n");
}

// Names may be several addresses, of both kinds.
static void test_addresses(void **state) {
    (void)state;
    char host[256] = "";
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    int probe = socket(AF_INET6, SOCK_STREAM, 0);
    meet_at("localhost");
    if (probe >= 0 && bind(probe, (struct sockaddr *)&here, sizeof here) == 0) meet_at("::1");
    else print_message("# no IPv6 here\n");
    if (probe >= 0) close(probe);
    if (gethostname(host, sizeof host - 1) == 0) meet_at(host);
}

// A machine as bare as can be: nothing in /etc/hosts, no name server. In a process of its own, which sees it so.
enum { NOT_PERMITTED = 77 };
static bool hide(const char *file) { return !path_exists(file) || mount("/dev/null", file, NULL, MS_BIND, NULL) == 0; }
static int meet_without_names(void) {
    char host[256] = "";
    struct addrinfo *found = NULL;
    if (unshare(CLONE_NEWNS | (geteuid() == 0 ? 0 : CLONE_NEWUSER)) != 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 || !hide("/etc/hosts") || !hide("/etc/resolv.conf"))
        return NOT_PERMITTED;
    if (getaddrinfo("localhost", NULL, NULL, &found) == 0) freeaddrinfo(found); // by some other service, which is well
    else print_message("# no names here\n");
    meet_at("127.0.0.1");
    meet_at("localhost");
    if (gethostname(host, sizeof host - 1) == 0) meet_at(host);
    return 0;
}

static void test_without_names(void **state) {
    (void)state;
    const char *const words[] = {own_path(), "without-names", NULL};
    ProgramResult result = run_program(words, 30);
    if (result.exit_code == NOT_PERMITTED) {
        print_message("skipped: /etc/hosts cannot be hidden from a process here\n");
        free_result(&result);
        skip();
    }
    if (result.exit_code != 0) fail_msg("exit code %d: %s%s", result.exit_code, result.out, result.err);
    free_result(&result);
}

// Whose agent listens on MASTER_PORT itself.
static void test_torchrun(void **state) {
    (void)state;
    int port = free_port(), agent = listen_on(port);
    assert_true(agent >= 0);
    setenv("TORCHELASTIC_RUN_ID", "none", 1);
    setenv("SLURM_PROCID", "0", 1); // of the machine, where srun has started torchrun
    setenv("SLURM_STEP_NUM_TASKS", "2", 1);
    RunningProgram programs[2];
    for (int rank = 0; rank < 2; rank++) programs[rank] = start_rank((Place){.rank = rank, .size = 2, .port = port});
    unsetenv("TORCHELASTIC_RUN_ID");
    unsetenv("SLURM_PROCID");
    unsetenv("SLURM_STEP_NUM_TASKS");
    expect_all(programs, 2, "3\n");
    close(agent);
}

static int call(int port) {
    struct sockaddr_in there = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    for (int attempt = 0; attempt < 2000; attempt++) {
        int made = socket(AF_INET, SOCK_STREAM, 0);
        if (made >= 0 && connect(made, (struct sockaddr *)&there, sizeof there) == 0) return made;
        close(made);
        program_sleep(0.005);
    }
    fail_msg("nobody listens on port %d", port);
    return -1;
}

// Who says nothing, who says something else, who goes away: none of them holds up the meeting.
static void test_strangers(void **state) {
    (void)state;
    enum { SILENT = 40 };
    static const char request[] = "GET / HTTP/1.0\r\n\r\n";
    int port = free_port(), silent[SILENT];
    RunningProgram programs[2];
    programs[0] = start_rank((Place){.rank = 0, .size = 2, .port = port});
    int browser = call(port);
    assert_true(send(browser, request, sizeof request - 1, MSG_NOSIGNAL) == sizeof request - 1);
    for (int i = 0; i < SILENT; i++) silent[i] = call(port);
    close(silent[3]);
    char answer;
    assert_true(recv(browser, &answer, 1, 0) <= 0); // shown the door
    programs[1] = start_rank((Place){.rank = 1, .size = 2, .port = port});
    expect_all(programs, 2, "3\n");
    for (int i = 0; i < SILENT; i++)
        if (i != 3) close(silent[i]);
    close(browser);
}

static void test_wrong_world_size_and_rank(void **state) {
    (void)state;
    int port = free_port();
    RunningProgram programs[3], other, twin;
    programs[0] = start_rank((Place){.rank = 0, .size = 3, .port = port});
    other = start_rank((Place){.rank = 1, .size = 4, .port = port});
    expect(&other, 2, "", "train_gpt: WORLD_SIZE is 4 for rank 1, but 3 for rank 0: give the same to all\n", 10);
    programs[1] = start_rank((Place){.rank = 1, .size = 3, .port = port});
    program_sleep(0.5 * program_slowness()); // it is there by now
    twin = start_rank((Place){.rank = 1, .size = 3, .port = port});
    expect(&twin, 2, "", "train_gpt: there is a rank 1 already: give each process a RANK of its own\n", 10);
    programs[2] = start_rank((Place){.rank = 2, .size = 3, .port = port});
    expect(&programs[0], 0, "6\n", "WORLD_SIZE is 4 for rank 1, but 3 for rank 0", 10);
    expect_all(programs + 1, 2, "6\n");
}

static void test_port_in_use(void **state) {
    (void)state;
    int port = free_port(), listener = listen_on(port);
    assert_true(listener >= 0);
    char line[200];
    RunningProgram programs[2];
    for (int rank = 0; rank < 2; rank++) programs[rank] = start_rank((Place){.rank = rank, .size = 2, .port = port});
    snprintf(line, sizeof line,
             "train_gpt: port %d of 127.0.0.1 is in use by another program, or by another rank 0: "
             "give all ranks another ",
             port);
    expect(&programs[0], 1, "", line, 10);
    int caller = accept(listener, NULL, NULL);
    char answer[2000] = "HTTP/1.0 400 Bad Request\r\n\r\n";
    assert_true(caller >= 0 && send(caller, answer, sizeof answer, MSG_NOSIGNAL) == sizeof answer);
    snprintf(line, sizeof line, "train_gpt: another program answers at 127.0.0.1 port %d, not rank 0", port);
    expect(&programs[1], 2, "", line, 10);
    close(caller);
    close(listener);
}

// A rank that does not come, and ranks that go while others are awaited.
static void test_absent_ranks(void **state) {
    (void)state;
    enum { SCENES = 4 };
    int port[SCENES];
    char line[SCENES][200];
    for (int i = 0; i < SCENES; i++) port[i] = free_port();
    RunningProgram lonely = start_rank((Place){.rank = 0, .size = 3, .port = port[0], .timeout = 1});
    RunningProgram seeking = start_rank((Place){.rank = 1, .size = 2, .port = port[1], .timeout = 1});
    RunningProgram left[2], leaving[2];
    for (int i = 0; i < 2; i++) { // rank 0 stays and rank 1 is killed, and the other way round
        left[i] = start_rank((Place){.rank = i, .size = 3, .port = port[2 + i]});
        leaving[i] = start_rank((Place){.rank = 1 - i, .size = 3, .port = port[2 + i]});
    }
    program_sleep(0.5 * program_slowness());
    for (int i = 0; i < 2; i++) kill(leaving[i].pid, SIGKILL);
    snprintf(line[0], sizeof line[0], "train_gpt: rank 1 has not come to 127.0.0.1 port %d within 1 s (1 of 3 ",
             port[0]);
    snprintf(line[1], sizeof line[1], "train_gpt: rank 1 found no rank 0 at 127.0.0.1 port %d within 1 s (Connection ",
             port[1]);
    snprintf(line[3], sizeof line[3], "train_gpt: rank 0 at 127.0.0.1 port %d ended the connection with rank 1",
             port[3]);
    expect(&lonely, 1, "", line[0], 4);
    expect(&seeking, 1, "", line[1], 4);
    expect(&left[0], 1, "", "ended while the ranks were connecting; see what it said\n", 4);
    expect(&left[1], 1, "", line[3], 4);
    for (int i = 0; i < 2; i++) expect(&leaving[i], 128 + SIGKILL, "", "", 4);
}

// Rank 0, which is to speak for all, has been stopped: another does.
static void test_stopped_judge(void **state) {
    (void)state;
    int port = free_port();
    RunningProgram programs[3];
    for (int rank = 0; rank < 3; rank++)
        programs[rank] = start_rank((Place){.rank = rank, .size = 3, .port = port, .role = "judge stopped"});
    ProgramResult first = finish_program(&programs[1], 10), second = finish_program(&programs[2], 10);
    assert_int_equal(first.exit_code, 1);
    assert_int_equal(second.exit_code, 1);
    assert_non_null(strstr(first.err, "train_gpt: rank 1 cannot go on\n"));
    assert_string_equal(second.err, "");
    free_result(&first);
    free_result(&second);
    kill(programs[0].pid, SIGCONT); // and it hears of it
    expect(&programs[0], 1, "", "", 10);
}

// ---- messages -----------------------------------------------------------------------------------------------------

static ProgramResult launch_role(int ranks, const char *role) {
    Command command = {0};
    add_sockets_launcher(&command, ranks);
    add_words(&command, own_path(), command.argv[2], "60", role, NULL);
    return run_program(command.argv, 30);
}

static void test_long_messages(void **state) {
    (void)state;
    static const struct Scene {
        int ranks;
        const char *role;
    } scenes[] = {{2, "cross"}, {3, "cross"}, {2, "early"}, {2, "nothing"}};
    for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++) {
        ProgramResult result = launch_role(scenes[i].ranks, scenes[i].role);
        if (result.exit_code != 0 || *result.err != 0)
            fail_msg("%s: %d after %.1f s: %s", scenes[i].role, result.exit_code, result.seconds, result.err);
        free_result(&result);
    }
}

static void test_mistaken_sizes(void **state) {
    (void)state;
    static const char *const roles[] = {"long-short", "short-long", "long-short-late", "short-long-late"};
    for (int i = 0; i < 4; i++) {
        ProgramResult result = launch_role(2, roles[i]);
        assert_int_equal(result.exit_code, 1);
        assert_string_equal(result.err, i % 2 == 0
                                            ? "train_gpt: rank 1 sends 8388608 bytes to rank 0, which expects 16: "
                                              "a programming error\n"
                                            : "train_gpt: rank 1 sends 16 bytes to rank 0, which expects 8388608: "
                                              "a programming error\n");
        free_result(&result);
    }
}

// ---- the environment ----------------------------------------------------------------------------------------------

static void never(Comm *comm, void *argument) {
    (void)comm;
    *(bool *)argument = true;
}

static void expect_usage(CommEngine engine, int ranks, const char *part) {
    bool ran = false;
    Error err = {0};
    CommLaunch launch = {.engine = engine, .ranks = ranks, .timeout_seconds = 1};
    assert_false(comm_run(&launch, never, &ran, &err));
    assert_false(ran);
    assert_int_equal(err.exit_code, EXIT_USAGE);
    if (strstr(err.message, part) == NULL) fail_msg("expected \"%s\" in: %s", part, err.message);
}

static void test_environment(void **state) {
    (void)state;
    static const struct Case {
        const char *rank, *size, *address, *port;
        int ranks;
        const char *says;
    } cases[] = {
        {NULL, NULL, NULL, NULL, 2, "--engine sockets: start a process for each of the 2 ranks"},
        {"0", NULL, "127.0.0.1", "29500", 2, "RANK is in the environment, but WORLD_SIZE is not"},
        {NULL, "2", "127.0.0.1", "29500", 2, "WORLD_SIZE is in the environment, but RANK is not"},
        {"2", "2", "127.0.0.1", "29500", 2, "RANK is 2 and WORLD_SIZE 2 in the environment: ranks are 0 to 1"},
        {"-1", "2", "127.0.0.1", "29500", 2, "RANK is \"-1\" in the environment: that is no number"},
        {"0", "two", "127.0.0.1", "29500", 2, "WORLD_SIZE is \"two\" in the environment"},
        {"0", "0", "127.0.0.1", "29500", 2, "WORLD_SIZE is 0"},
        {"0", "2", "127.0.0.1", "29500", 3, "--sp x --dp = 3 ranks, but WORLD_SIZE is 2: start 3 processes"},
        {"0", "2", NULL, "29500", 2, "MASTER_ADDR is not in the environment"},
        {"0", "2", "127.0.0.1", NULL, 2, "MASTER_PORT is not in the environment"},
        {"0", "2", "127.0.0.1", "http", 2, "MASTER_PORT is \"http\" in the environment: that is no number"},
        {"0", "2", "127.0.0.1", "29500x", 2, "MASTER_PORT is \"29500x\""},
        {"0", "2", "127.0.0.1", "65536", 2, "MASTER_PORT is 65536 in the environment: ports are 1 to 65535"},
        {"0", "2", "127.0.0.1", "99999999999999999999", 2, "MASTER_PORT is \"99999999999999999999\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct Case *c = &cases[i];
        set_place(c->rank, c->size, c->address, c->port);
        expect_usage(COMM_SOCKETS, c->ranks, c->says);
        assert_int_equal(comm_ranks_are_processes(COMM_AUTO), c->address != NULL || c->port != NULL);
        if (c->address != NULL) expect_usage(COMM_AUTO, c->ranks, c->says); // it is what auto chooses
    }
    set_place("3", "4", "127.0.0.1", "29500");
    assert_true(comm_ranks_are_processes(COMM_AUTO) && !comm_ranks_are_processes(COMM_LOCAL));
    assert_int_equal(comm_process_rank(), 3);
    assert_int_equal(comm_processes_here(), 4);
    assert_int_equal(comm_process_rank_here(), 3);
    setenv("LOCAL_RANK", "1", 1);
    setenv("LOCAL_WORLD_SIZE", "2", 1);
    assert_int_equal(comm_processes_here(), 2);
    assert_int_equal(comm_process_rank_here(), 1);
    expect_usage(COMM_LOCAL, 4, "would train alone; leave out torchrun");
    unsetenv("LOCAL_RANK");
    unsetenv("LOCAL_WORLD_SIZE");

    bool ran = false;
    Error err = {0};
    set_place("0", "1", "127.0.0.1", "29500"); // torchrun's, of one process: that may well run all ranks as threads
    assert_false(comm_ranks_are_processes(COMM_AUTO));
    assert_true(comm_run(&(CommLaunch){.engine = COMM_SOCKETS, .ranks = 1}, never, &ran, &err) && ran);
    set_place(NULL, NULL, NULL, NULL);
}

// ---- training -----------------------------------------------------------------------------------------------------

static Log train(const char *folder, const char *name, int processes, const char *sp, const char *dp) {
    static char out[PROGRAM_PATH], data[PROGRAM_PATH];
    Command command = {0};
    path_join(out, folder, name);
    project_path(data, "LICENSE");
    if (processes > 1) add_sockets_launcher(&command, processes);
    add_words(&command, train_gpt_path(), "--data", data, "--layers", "2", "--heads", "4", "--dim", "32", NULL);
    add_words(&command, "--context", "96", "--batch", "4", "--steps", "8", "--warmup", "3", "--threads", "1", NULL);
    add_words(&command, "--sample-tokens", "0", "--log", out, "--sp", sp, "--dp", dp, NULL);
    ProgramResult result = run_command(&command, 30);
    free_result(&result);
    return read_log(out);
}

// The very bits of the same ranks as threads.
static void test_training(void **state) {
    Log threads = train(*state, "threads.jsonl", 1, "2", "2"),
        processes = train(*state, "processes.jsonl", 4, "2", "2");
    assert_int_equal(threads.count, 8);
    assert_int_equal(processes.count, 8);
    assert_memory_equal(threads.loss, processes.loss, sizeof threads.loss[0] * 8);
    assert_memory_equal(threads.gradient_norm, processes.gradient_norm, sizeof threads.gradient_norm[0] * 8);
    assert_true(threads.validation_loss == processes.validation_loss);
}

// What each process was told is compared before anything is computed: here, by a shell for each rank, the option given.
static void expect_difference(const char *option, const char *difference) {
    char script[300];
    Command command = {0};
    add_sockets_launcher(&command, 2);
    snprintf(script, sizeof script, "exec \"$0\" --sp 2 --steps 1 --context 64 --sample-tokens 0 %s", option);
    add_words(&command, "/bin/sh", "-c", script, train_gpt_path(), NULL);
    ProgramResult result = run_program(command.argv, 30);
    if (result.exit_code != EXIT_USAGE || strstr(result.err, difference) == NULL)
        fail_msg("%s: exit code %d: %s", option, result.exit_code, result.err);
    free_result(&result);
}

static void test_other_runs(void **state) {
    (void)state;
    expect_difference("--lr 0.00$((RANK + 1))", "train_gpt: rank 1 has --lr 0.002, rank 0 has --lr 0.001; start every");
    expect_difference("--seed $RANK", "rank 1 has --seed 1, rank 0 has --seed 0");
    expect_difference("$([ $RANK = 1 ] && echo --data /etc/passwd)", "rank 1 has --data, rank 0 has --data not given");
}

int main(int argc, char **argv) {
    if (is_launcher(argc, argv)) return launch_ranks(argv);
    if (argc == 4) return play_alone(argv);
    if (argc == 2 && strcmp(argv[1], "without-names") == 0) return meet_without_names();
    alarm(300);
    pass_over_what_is_not_ours();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_late_rank_0),
        cmocka_unit_test(test_many_ranks),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_without_names),
        cmocka_unit_test(test_torchrun),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_wrong_world_size_and_rank),
        cmocka_unit_test(test_port_in_use),
        cmocka_unit_test(test_absent_ranks),
        cmocka_unit_test(test_stopped_judge),
        cmocka_unit_test(test_long_messages),
        cmocka_unit_test(test_mistaken_sizes),
        cmocka_unit_test(test_training),
        cmocka_unit_test(test_other_runs),
    };
    return cmocka_run_group_tests_name("comm by sockets", tests, make_folder_for_ranks, remove_folder_of_ranks);
}
