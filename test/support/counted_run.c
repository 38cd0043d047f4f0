// Bodies of test/counted_run.h.
#include "test/counted_run.h"

#include "layers/device.h"

enum { TIME_LIMIT = 60 };

static const char *counted_program(void) {
    static char path[PROGRAM_PATH];
    snprintf(path, sizeof path, "%s", train_gpt_path());
    *strrchr(path, '/') = '\0';
    strcat(path, "/test/train_gpt_counted");
    return path;
}

static void add_case(Command *command, const Case *c, char words[1024]) {
    add_words(command, counted_program(), "--device", c->device, "--eval-windows", "1", "--sample-tokens", "0", NULL);
    snprintf(words, 1024, "%s", c->options);
    for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " ")) add_word(command, word);
}

bool has_device(const char *device) {
    const char *why;
    return device_count(device_kind(device), &why) > 0;
}

static Counted counted_in(const ProgramResult *result) {
    Counted c;
    const char *line = strstr(result->err, "counted ");
    if (line == NULL || sscanf(line, "counted %lld %lld %lld %lld %lld", &c.calls, &c.peak, &c.resident,
                               &c.device_calls, &c.device_peak) != 5)
        fail_msg("the program did not count: %s", result->err);
    return c;
}

// Is this line of addr2line's in a source of the emulator?
static bool is_emulators(const char *line) {
    const char *file = strrchr(line, '/');
    const char folder[] = "/emulated";
    size_t length = sizeof folder - 1;
    return file != NULL && (size_t)(file - line) >= length && strncmp(file - length, folder, length) == 0;
}

// Fails with the places, outside of the emulator, from which the counted calls came.
static void expect_no_places(const char *said, const Case *c) {
    Command command = {0};
    char address[64][24], found[2000] = "";
    int count = 0;
    add_words(&command, "addr2line", "-Ce", counted_program(), NULL);
    for (const char *line = strstr(said, "\nfrom "); line != NULL && count < 64; line = strstr(line + 1, "\nfrom ")) {
        sscanf(line, "\nfrom %20s", address[count]);
        add_word(&command, address[count++]);
    }
    if (count == 0) return;
    ProgramResult result = run_command(&command, TIME_LIMIT);
    for (char *line = strtok(result.out, "\n"); line != NULL; line = strtok(NULL, "\n"))
        if (!is_emulators(line)) snprintf(found + strlen(found), sizeof found - strlen(found), "\n    %s", line);
    free_result(&result);
    if (found[0] != '\0')
        fail_msg("--device %s %s: allocates or frees after its first step:%s", c->device, c->options, found);
}

void nothing_is_allocated(const char *device, const char *const *options, int count) {
    for (int i = 0; i < count; i++) {
        Case c = {device, options[i]};
        char words[1024];
        Command command = {0};
        add_case(&command, &c, words);
        add_words(&command, "--steps", "3", "--layers", "2", "--threads", "2", "--batch", "2", "--micro-batch", "1",
                  NULL);
        ProgramResult result = run_command(&command, TIME_LIMIT);
        Counted counted = counted_in(&result);
        if (counted.device_calls != 0)
            fail_msg("--device %s %s: %lld calls of cudaMalloc and the like", device, options[i], counted.device_calls);
        expect_no_places(result.err, &c);
        free_result(&result);
    }
}

double planned(const Case *c) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB"};
    const char mark[] = "all ranks of this process together: ";
    Command command = {0};
    char words[1024], unit[8];
    double value, scale = 1;
    add_case(&command, c, words);
    add_words(&command, "--plan", "--threads", "2", NULL);
    ProgramResult result = run_command(&command, TIME_LIMIT);
    const char *line = strstr(result.out, mark);
    if (line == NULL || sscanf(line + sizeof mark - 1, "%lf %7s", &value, unit) != 2)
        fail_msg("no plan: %s", result.out);
    for (int i = 0; strcmp(units[i], unit) != 0; i++, scale *= 1024)
        if (i == 3) fail_msg("a plan in %s", unit);
    free_result(&result);
    return value * scale;
}

Counted measured(const Case *c) {
    Command command = {0};
    char words[1024];
    add_case(&command, c, words);
    add_words(&command, "--steps", "2", "--threads", "2", NULL);
    ProgramResult result = run_command(&command, TIME_LIMIT);
    Counted counted = counted_in(&result);
    free_result(&result);
    return counted;
}

void expect_as_planned(const Case *c, double bytes) {
    double plan = planned(c), limit = 0.05 * plan;
    if (getenv("SHOW_BYTES") != NULL)
        print_message("--device %s %s: planned %.1f MiB, measured %.1f (%+.2f%%)\n", c->device, c->options,
                      plan / 1048576, bytes / 1048576, 100 * (bytes - plan) / plan);
    if (!(bytes >= plan - limit && bytes <= plan + limit))
        fail_msg("--device %s %s: planned %.1f MiB, measured %.1f", c->device, c->options, plan / 1048576,
                 bytes / 1048576);
}
