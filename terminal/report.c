// Lines of steps, the live line of a terminal, and the JSON log.
#include "terminal/report.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "terminal/output.h"

// Is this line of the log of a step after `step`?
static bool is_later(const char *line, int64_t step) {
    long long its;
    return sscanf(line, "{\"step\": %lld,", &its) == 1 && its > step;
}

// Leaves the log's whole lines up to the first of a later step, with the file's position at its end. What is no file (a
// terminal, a device) is left as it is.
static bool cut_back(FILE *log, int64_t step) {
    struct stat status;
    if (fstat(fileno(log), &status) != 0 || !S_ISREG(status.st_mode)) return true;
    rewind(log);
    char *line = NULL;
    size_t size = 0;
    off_t keep = 0;
    for (ssize_t length; (length = getline(&line, &size, log)) > 0; keep += length)
        if (line[length - 1] != '\n' || is_later(line, step)) break;
    free(line);
    return !ferror(log) && ftruncate(fileno(log), keep) == 0 && fseeko(log, 0, SEEK_END) == 0;
}

// A file that begins otherwise than a log must not be cut. What cannot be read, or is no file, is for open_log to tell.
static bool is_log(const char *path) {
    struct stat status;
    if (stat(path, &status) != 0 || !S_ISREG(status.st_mode)) return true;
    FILE *file = fopen(path, "re");
    if (file == NULL) return true;
    int first = fgetc(file);
    fclose(file);
    return first == '{' || first == EOF;
}

// Any file, terminal or device; of pipes and sockets only a pipe that somebody reads: no other could be waited for.
// Only a regular file is opened to be read too, for what it has already.
static FILE *open_log(const char *path, bool append) {
    struct stat status;
    int descriptor = file_open_to_write(path, append ? O_APPEND : O_TRUNC);
    if (descriptor < 0) return NULL;
    bool regular = fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
    FILE *log = append && regular ? fopen(path, "a+e") : fdopen(descriptor, append ? "a" : "w");
    if ((append && regular) || log == NULL) close(descriptor);
    return log;
}

bool reporter_open(Reporter *reporter, const char *log_path, bool append, int64_t step, Error *err) {
    const char *terminal = getenv("TERM");
    bool dumb = terminal != NULL && strcmp(terminal, "dumb") == 0;
    *reporter = (Reporter){.live = isatty(STDOUT_FILENO) && !dumb, .log_path = log_path};
    if (log_path == NULL) return true;
    if (append && !is_log(log_path))
        return error_set(err, "--log %s: --resume adds to a log, and this file is none; give another name", log_path);
    reporter->log = open_log(log_path, append);
    if (reporter->log != NULL && (!append || cut_back(reporter->log, step))) return true;
    error_set(err, "--log %s: cannot open: %s; give a file that can be written", log_path,
              errno == ENXIO ? "nobody reads this pipe" : strerror(errno));
    if (reporter->log != NULL) fclose(reporter->log);
    reporter->log = NULL;
    return false;
}

double machine_share(double reached, double *rate) {
    if (*rate <= 0) return NAN;
    if (reached > *rate) *rate = reached;
    return reached / *rate;
}

static int name_step(char *out, size_t size, const StepReport *r) {
    int digits = snprintf(NULL, 0, "%lld", (long long)r->steps);
    return snprintf(out, size, "step %*lld/%lld", digits, (long long)r->step, (long long)r->steps);
}

// What both kinds of line say after the number of the step.
static void describe(char *out, size_t size, const StepReport *r) {
    int n = snprintf(out, size, "loss %7.4f  lr %.2e  norm %6.3f  %7.0f tokens/s", r->loss, r->learning_rate,
                     r->gradient_norm, r->tokens_per_second);
    if (isfinite(r->machine_fraction) && r->machine_fraction > 0.0)
        n += snprintf(out + n, size - (size_t)n, "  %5.1f%% %s", 100.0 * r->machine_fraction,
                      r->fraction_of == NULL ? "of machine" : r->fraction_of);
    if (r->step < r->steps) {
        char left[32];
        format_seconds(left, r->seconds_left);
        snprintf(out + n, size - (size_t)n, "  %10s left", left);
    }
}

enum { LINE = 4096, LEAST_BAR = 8, LARGEST_BAR = 30 };

static void print_line(const StepReport *r) {
    char step[64], rest[LINE / 2];
    name_step(step, sizeof step, r);
    describe(rest, sizeof rest, r);
    printf("%s  %s", step, rest);
    if (isfinite(r->validation_loss)) printf("  validation %.4f", r->validation_loss);
    if (isfinite(r->accuracy)) printf("  accuracy %.1f%%", 100.0 * r->accuracy);
    putchar('\n');
}

static int terminal_columns(void) {
    struct winsize size;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// " [=====>    ]": as wide as is left on the line, or nothing where that is too little.
static void draw_bar(char *out, int columns, const StepReport *r) {
    int width = columns - 3 > LARGEST_BAR ? LARGEST_BAR : columns - 3;
    out[0] = '\0';
    if (width < LEAST_BAR) return;
    int done = r->steps > 0 ? (int)(width * ((double)r->step / (double)r->steps)) : 0;
    done = done > width ? width : done;
    memcpy(out, " [", 2);
    memset(out + 2, ' ', (size_t)width);
    memset(out + 2, '=', (size_t)done);
    if (done < width) out[2 + done] = '>';
    memcpy(out + 2 + width, "]", 2);
}

// Rewrites the terminal's last line. The last column stays empty: some terminals begin a new line when it is written.
static void rewrite_line(const StepReport *r) {
    char step[64], bar[LARGEST_BAR + 4], rest[LINE / 2], text[LINE];
    int columns = terminal_columns() - 1;
    int n = name_step(step, sizeof step, r);
    describe(rest, sizeof rest, r);
    draw_bar(bar, columns - n - 2 - (int)strlen(rest), r);
    snprintf(text, sizeof text, "%s%s  %s", step, bar, rest);
    printf("\r%.*s\033[K", columns, text);
}

// The shortest decimal that reads back as the same double; JSON has no NaN and no infinity.
static void write_number(FILE *log, const char *key, double value) {
    char text[32] = "null";
    if (isfinite(value)) {
        int precision = 1;
        do snprintf(text, sizeof text, "%.*g", precision, value);
        while (strtod(text, NULL) != value && ++precision <= 17);
    }
    fprintf(log, ", \"%s\": %s", key, text);
}

static void give_up_log(Reporter *reporter) {
    reporter_line_end(reporter);
    fprintf(stderr, "train_gpt: --log %s: cannot write: %s; training goes on without it\n", reporter->log_path,
            strerror(errno));
    reporter->log_failed = true;
    if (reporter->log != NULL) fclose(reporter->log);
    reporter->log = NULL;
}

void reporter_log(Reporter *reporter, const StepReport *r) {
    FILE *log = reporter->log;
    if (log == NULL) return;
    fprintf(log, "{\"step\": %lld", (long long)r->step);
    write_number(log, "loss", r->loss);
    write_number(log, "lr", r->learning_rate);
    write_number(log, "grad_norm", r->gradient_norm);
    write_number(log, "tokens_per_second", r->tokens_per_second);
    write_number(log, "machine_fraction", r->machine_fraction);
    write_number(log, "seconds", r->seconds);
    fprintf(log, ", \"bytes_sent\": %lld", (long long)r->bytes_sent);
    if (r->context > 0) fprintf(log, ", \"context\": %lld", (long long)r->context);
    if (!isnan(r->validation_loss)) write_number(log, "val_loss", r->validation_loss);
    if (!isnan(r->accuracy)) write_number(log, "val_accuracy", r->accuracy);
    fputs("}\n", log);
    if (fflush(log) != 0 || ferror(log)) give_up_log(reporter);
}

void reporter_step(Reporter *reporter, const StepReport *report) {
    if (report->context != reporter->context) {
        reporter_line_end(reporter);
        printf("from step %lld on, sequences of %lld tokens\n", (long long)report->step, (long long)report->context);
        reporter->context = report->context;
    }
    bool stays = !reporter->live || isfinite(report->validation_loss); // what was evaluated is not written over
    if (stays && reporter->live) fputs("\r\033[K", stdout);
    if (stays) print_line(report);
    else rewrite_line(report);
    reporter->line_open = !stays;
    output_flush();
}

void reporter_line_end(Reporter *reporter) {
    if (!reporter->line_open) return;
    putchar('\n');
    output_flush();
    reporter->line_open = false;
}

bool reporter_close(Reporter *reporter) {
    reporter_line_end(reporter);
    output_flush();
    FILE *log = reporter->log;
    reporter->log = NULL;
    if (log != NULL && fclose(log) != 0) give_up_log(reporter);
    return !reporter->log_failed;
}
