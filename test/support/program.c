// Bodies of test/program.h.
#include "test/program.h"

#include <dirent.h>

double program_clock(void) { // seconds
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void program_sleep(double seconds) {
    struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&pause, NULL);
}

double program_slowness(void) {
#if defined(__SANITIZE_THREAD__)
    return 10;
#elif defined(__SANITIZE_ADDRESS__)
    return 5;
#else
    return 1;
#endif
}

char *path_join(char out[PROGRAM_PATH], const char *folder, const char *name) {
    int length = snprintf(out, PROGRAM_PATH, "%s/%s", folder, name);
    if (length >= PROGRAM_PATH) fail_msg("path too long: %s/%s", folder, name);
    return out;
}

char *make_temp_folder(char out[PROGRAM_PATH]) {
    const char *parent = getenv("TMPDIR");
    path_join(out, parent && *parent ? parent : "/tmp", "train_gpt_test_XXXXXX");
    if (!mkdtemp(out)) fail_msg("cannot make a folder %s: %s", out, strerror(errno));
    return out;
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

void remove_tree(const char *path) {
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0 && errno != ENOENT)
        fail_msg("cannot remove %s: %s", path, strerror(errno));
}

bool path_exists(const char *path) { return access(path, F_OK) == 0; }

void write_file(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0)
        fail_msg("cannot write %s: %s", path, strerror(errno));
}

char *read_stream(FILE *file, size_t *bytes) {
    size_t used = 0, size = 1 << 16;
    char *text = malloc(size);
    for (;;) {
        if (!text) fail_msg("out of memory while reading a file");
        used += fread(text + used, 1, size - 1 - used, file);
        if (used < size - 1) break;
        text = realloc(text, size *= 2);
    }
    if (ferror(file)) fail_msg("cannot read a file: %s", strerror(errno));
    text[used] = 0;
    if (bytes) *bytes = used;
    return text;
}

char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("cannot open %s: %s", path, strerror(errno));
    char *text = read_stream(file, bytes);
    fclose(file);
    return text;
}

char *project_path(char out[PROGRAM_PATH], const char *name) {
    char folder[PROGRAM_PATH] = "";
    ssize_t length = readlink("/proc/self/exe", folder, sizeof folder - 1);
    if (length > 0) folder[length] = 0;
    for (char *slash; (slash = strrchr(folder, '/'));) {
        *slash = 0;
        if (path_exists(path_join(out, folder, name))) return out;
    }
    if (!path_exists(path_join(out, ".", name)))
        fail_msg("cannot find %s above this test or in the working directory", name);
    return out;
}

const char *train_gpt_path(void) {
    static char path[PROGRAM_PATH];
    const char *given = getenv("TRAIN_GPT");
    if (given && *given) return given;
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 16);
    if (length <= 0) fail_msg("cannot tell where this test lies: %s", strerror(errno));
    path[length] = 0;
    for (int level = 0; level < 2; level++) {
        char *slash = strrchr(path, '/');
        if (slash) *slash = 0;
    }
    strcat(path, "/train_gpt");
    if (access(path, X_OK) != 0) fail_msg("%s is not there: build it first, or set TRAIN_GPT", path);
    return path;
}

RunningProgram start_program(const char *const *argv) {
    RunningProgram program = {.out = tmpfile(), .err = tmpfile(), .started = program_clock()};
    if (!program.out || !program.err) fail_msg("cannot make a temporary file: %s", strerror(errno));
    fflush(NULL); // or the child would have a second copy of what is still buffered
    program.pid = fork();
    if (program.pid < 0) fail_msg("cannot fork: %s", strerror(errno));
    if (program.pid == 0) {
        setpgid(0, 0);
        const int usual[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1}; // whoever started the tests may ignore some
        for (int i = 0; i < 4; i++) signal(usual[i], SIG_DFL);
        prctl(PR_SET_PDEATHSIG, SIGKILL); // a test that is killed for hanging takes its programs along
        int nothing = open("/dev/null", O_RDONLY);
        dup2(nothing, STDIN_FILENO);
        dup2(fileno(program.out), STDOUT_FILENO);
        dup2(fileno(program.err), STDERR_FILENO);
        execvp(argv[0], (char *const *)(uintptr_t)argv);
        fprintf(stderr, "cannot run %s: %s\n", argv[0], strerror(errno));
        fflush(stderr);
        _exit(127);
    }
    setpgid(program.pid, program.pid);
    return program;
}

ProgramResult finish_program(RunningProgram *program, double time_limit) {
    ProgramResult result = {0};
    double limit = time_limit * program_slowness();
    int status = 0;
    for (;;) {
        pid_t ended = waitpid(program->pid, &status, WNOHANG);
        if (ended == program->pid) break;
        if (ended < 0 && errno != EINTR) fail_msg("cannot wait for a program: %s", strerror(errno));
        result.seconds = program_clock() - program->started;
        if (result.seconds > limit) { // first politely: mpirun takes its ranks along
            kill(-program->pid, result.timed_out ? SIGKILL : SIGTERM);
            result.timed_out = true;
            limit += 3;
        }
        program_sleep(0.002);
    }
    kill(-program->pid, SIGKILL); // whatever is left of the group
    result.seconds = program_clock() - program->started;
    result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    rewind(program->out);
    rewind(program->err);
    result.out = read_stream(program->out, NULL);
    result.err = read_stream(program->err, NULL);
    fclose(program->out);
    fclose(program->err);
    return result;
}

ProgramResult run_program(const char *const *argv, double time_limit) {
    RunningProgram program = start_program(argv);
    return finish_program(&program, time_limit);
}

void free_result(ProgramResult *result) {
    free(result->out);
    free(result->err);
    *result = (ProgramResult){0};
}

void add_word(Command *command, const char *word) {
    if (command->count == PROGRAM_MAX_ARGUMENTS) fail_msg("too many arguments for a test's command");
    command->argv[command->count++] = word;
    command->argv[command->count] = NULL;
}

void add_words(Command *command, ...) { // up to a NULL
    va_list words;
    va_start(words, command);
    for (const char *word; (word = va_arg(words, const char *));) add_word(command, word);
    va_end(words);
}

void add_number(Command *command, const char *option, double value) {
    char *text = command->text[command->count];
    snprintf(text, sizeof command->text[0], "%.17g", value);
    add_words(command, option, text, NULL);
}

bool add_mpirun(Command *command, int ranks) {
    const char *const version[] = {"mpirun", "--version", NULL};
    ProgramResult said = run_program(version, 20);
    bool found = said.exit_code == 0;
    bool open_mpi = found && (strstr(said.out, "Open MPI") || strstr(said.out, "open-mpi"));
    free_result(&said);
    if (!found) return false;
    setenv("HWLOC_COMPONENTS", "-gl", 0); // mpirun seeks an X server's GPUs: 5 s where no name server knows localhost
    add_word(command, "mpirun");
    if (open_mpi) add_words(command, "--oversubscribe", "--allow-run-as-root", "--bind-to", "none", NULL);
    add_number(command, "-np", ranks);
    return true;
}

void print_command(const Command *command) {
    for (int i = 0; i < command->count; i++) fprintf(stderr, "%s%s", i ? " " : "  command: ", command->argv[i]);
    fprintf(stderr, "\n");
}

ProgramResult run_command(const Command *command, double time_limit) {
    ProgramResult result = run_program(command->argv, time_limit);
    if (result.timed_out || result.exit_code != 0) {
        print_command(command);
        fprintf(stderr, "%s%s", result.out, result.err);
        if (result.timed_out) fail_msg("ran past %g s", time_limit * program_slowness());
        fail_msg("exit code %d", result.exit_code);
    }
    return result;
}

pid_t program_parent(pid_t pid) {
    char path[64], kind = 'Z';
    int parent = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    if (fscanf(file, "%*d (%*[^)]) %c %d", &kind, &parent) != 2) parent = 0;
    fclose(file);
    return kind == 'Z' ? 0 : parent;
}

int program_children(pid_t parent, pid_t *child, int most) {
    int count = 0;
    DIR *processes = opendir("/proc");
    assert_non_null(processes);
    for (struct dirent *entry; count < most && (entry = readdir(processes));) {
        pid_t pid = (pid_t)atoi(entry->d_name);
        if (pid > 0 && program_parent(pid) == parent) child[count++] = pid;
    }
    closedir(processes);
    return count;
}
