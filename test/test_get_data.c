// scripts/get_data against a web server of this machine (test/small_corpora.py), which drops connections, stands still,
// knows no ranges or has other files than expected; and what it unpacks.
#include "test/shell.h"

// ---- the server -----------------------------------------------------------------------------------------------------

static RunningProgram server;

// Makes the small corpora in the folder and serves them, until stop_server(). Without python3 all tests are skipped.
static int start_server(void **state) {
    make_folder(state);
    if (system("python3 -c '' 2> /dev/null") != 0) return 0;
    char helper[PROGRAM_PATH], port[PROGRAM_PATH];
    project_path(helper, "test/small_corpora.py");
    const char *const words[] = {"/bin/sh", "-c", "cd \"$0\" && exec python3 \"$1\" serve", folder, helper, NULL};
    server = start_program(words);
    for (int i = 0; i < 1000 && !path_exists(in_folder(port, "port")); i++) program_sleep(0.02);
    if (!path_exists(port)) fail_msg("the web server did not start within 20 s");
    // get MANNER ARGUMENTS: into out/, from the server's addresses of that manner
    make_script("get", "#!/bin/sh\nmanner=$1\nshift\nexport no_proxy=127.0.0.1\n"
                       "exec \"$tree/test/small_corpora.py\" get --out out "
                       "--base \"http://127.0.0.1:$(cat port)/$manner\" \"$@\"\n");
    return 0;
}
static int stop_server(void **state) {
    if (server.pid > 0) {
        kill(server.pid, SIGKILL);
        ProgramResult result = finish_program(&server, 60);
        free_result(&result);
    }
    return remove_folder(state);
}

static int begin(void **state) {
    (void)state;
    if (server.pid == 0) {
        print_message("skipped: no python3 here\n");
        skip();
    }
    free(run_shell("rm -rf out requests && : > requests", 0));
    return 0;
}

static void expect_requests(const char *lines) {
    char path[PROGRAM_PATH], *log = read_file(in_folder(path, "requests"), NULL);
    assert_string_equal(log, lines);
    free(log);
}
static void expect_text(const char *name, const char *content) {
    char path[PROGRAM_PATH], *text = read_file(in_folder(path, name), NULL);
    assert_string_equal(text, content);
    free(text);
}

// ---- downloads ------------------------------------------------------------------------------------------------------

static void whole(void **state) {
    begin(state);
    char *said = run_shell("get whole text book && cmp out/text/text book.txt && cmp out/book/book.txt book.txt && "
                           "ls -A out && cd out && sha256sum -c SHA256SUMS",
                           0);
    assert_string_equal(said, "out/text: 1 file, 809 KiB\nout/book: 1 file, 809 KiB\nSHA256SUMS\nbook\ntext\n"
                              "text/text: OK\nbook/book.txt: OK\n");
    free(said);
    said = run_shell("get whole text", 0);
    assert_string_equal(said, "out/text: already there\n");
    free(said);
    expect_requests("/whole/text.zip -\n/whole/book.txt -\n");
}

// The server ends two connections after half of what was left: 828,890 bytes, from 414,445 on, from 621,667 on.
static void dropped(void **state) {
    begin(state);
    free(run_shell("get drop book && cmp out/book/book.txt book.txt", 0));
    expect_requests("/drop/book.txt -\n/drop/book.txt bytes=414445-\n/drop/book.txt bytes=621667-\n");
}

static const char stopped_halfway[] = "{ env --default-signal=INT get slow book 2> said & }; pid=$!\n"
                                      "for i in $(seq 500); do [ \"$(cat out/book.partial/book.txt.partial 2> "
                                      "/dev/null | wc -c)\" -ge 262144 ] && break; "
                                      "sleep 0.02; done\n";

static void stopped(void **state) {
    begin(state);
    char command[2048], *said;
    snprintf(command, sizeof command, "%s! get whole book && kill -INT $pid; wait $pid; echo $? && cat said",
             stopped_halfway);
    said = run_shell(command, 0);
    expect_in(said, "get_data: book: another get_data is at work in out/book.partial\n130\n");
    expect_in(said, "get_data: book: stopped; the same command goes on\n");
    free(said);
    said = run_shell("wc -c < out/book.partial/book.txt.partial", 0);
    char requests[256];
    snprintf(requests, sizeof requests, "/slow/book.txt -\n/whole/book.txt bytes=%d-\n", atoi(said));
    free(said);
    free(run_shell("[ ! -e out/book ] && get whole book && cmp out/book/book.txt book.txt", 0));
    expect_requests(requests);
}

// A server without ranges sends all of it again, whatever is here already.
static void no_ranges(void **state) {
    begin(state);
    free(run_shell("mkdir -p out/book.partial && head -c 1000 book.txt > out/book.partial/book.txt.partial && "
                   "get plain book && cmp out/book/book.txt book.txt",
                   0));
    free(run_shell("rm -r out && get drop-plain book && cmp out/book/book.txt book.txt", 0));
    expect_requests("/plain/book.txt bytes=1000-\n/drop-plain/book.txt -\n/drop-plain/book.txt bytes=414445-\n"
                    "/drop-plain/book.txt bytes=414445-\n");
}

// What is here is longer than the file there: begun anew.
static void too_long(void **state) {
    begin(state);
    free(run_shell("mkdir -p out/book.partial && cat book.txt book.txt > out/book.partial/book.txt.partial && "
                   "get whole book && cmp out/book/book.txt book.txt",
                   0));
}

// ---- failures -------------------------------------------------------------------------------------------------------

static void refused(const char *command, const char *line) {
    char *said = run_shell(command, 1);
    expect_in(said, line);
    assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1); // one line
    free(said);
}

static void failures(void **state) {
    begin(state);
    refused("get whole lost", "/whole/none: the server says 404 Not Found; name a mirror with --base\n");
    refused("get whole wrong", "/whole/book.txt: SHA-256 is ");
    refused("get whole wrong", ", not the published 0000000000000000000000000000000000000000000000000000000000000000; "
                               "removed, so the same command begins anew\n");
    free(run_shell("[ ! -e out/wrong ] && [ ! -e out/wrong.partial/book.txt.partial ]", 0));
    refused("get whole book --base http://127.0.0.1:9",
            "get_data: book: http://127.0.0.1:9/book.txt: Connection refused;"
            " what came is kept: the same command goes on\n");
    free(run_shell("[ \"$(\"$tree\"/scripts/get_data --base nowhere mnist 2>&1 | tail -n 1)\" = "
                   "\"get_data: error: --base nowhere: no URL; give one that begins with https://, http:// or "
                   "file://\" ]",
                   0));
    refused("get whole book --base http://no.such.host.invalid", ": no network, or no such host (");
    refused("SPACE=1000000000000000000 get whole book",
            "get_data: book: takes 931322575 GiB with unpacking, and out has ");
    refused("(ulimit -f 500; get whole book)",
            "get_data: book: out: File too large; what came is kept: the same command goes on\n");
    free(run_shell("get whole book && cmp out/book/book.txt book.txt", 0)); // after all that
    refused("get whole torn",
            "get_data: torn: cannot be unpacked: Not a gzipped file (b'PK'); removed, so the same command "
            "begins anew\n");
    refused("get whole chapters", "get_data: chapters: flac is needed to decode it: install one of them\n");
    char *said = run_shell("get whole lost text", 1); // goes on with the next
    expect_in(said, "out/text: 1 file");
    free(said);
}

static void usage(void **state) {
    begin(state);
    char *said = run_shell("\"$tree/scripts/get_data\" enwik9", 2);
    expect_in(said, "get_data: error: no corpus \"enwik9\": give enwik8, pg19, chr21, ");
    free(said);
    said = run_shell("\"$tree/scripts/get_data\"", 2);
    expect_in(said, "get_data: error: which corpus?: give enwik8");
    free(said);
    said = run_shell(
        "\"$tree/scripts/get_data\" --list | grep -c '^    https://[^ ]*/[^/ ]*\\(  [0-9a-f]\\{64\\}\\)\\{0,1\\}$'", 0);
    assert_string_equal(said, "17\n");
    free(said);
}

// ---- unpacking ------------------------------------------------------------------------------------------------------

static void fasta(void **state) {
    begin(state);
    char *said = run_shell("get whole bases && gzip -d < bases.fa.gz | cmp - out/bases/bases.fa", 0);
    assert_string_equal(said, "bases.fa.gz: no published SHA-256; what it unpacks to is compared\n"
                              "out/bases: 1 file, 49.8 KiB\n");
    free(said);
    said = run_shell("get whole mutant", 1);
    expect_in(said, "get_data: mutant: cannot be unpacked: the bases of bases.fa have MD5 ");
    expect_in(said, ", not the published 00000000000000000000000000000000; removed");
    free(said);
    // the same bases in other letters: another file than that of the first download
    free(run_shell("gzip -d < bases.fa.gz | tr ACGTN acgtn | gzip > other && mv other bases.fa.gz && rm -r out/bases",
                   0));
    said = run_shell("get whole bases", 1);
    expect_in(said,
              "get_data: bases: bases/bases.fa is another file than at an earlier download; if that is right, delete "
              "its line in out/SHA256SUMS\n");
    free(said);
    free(run_shell("rm out/SHA256SUMS && get whole bases", 0));
}

// The pixel at row, column, channel of an image, as small_corpora.py made it.
static int pixel(int batch, int image, int row, int column, int channel) {
    return (batch * 7 + image * 5 + channel * 3 + row * 32 + column) % 251;
}
static void images(void **state) {
    begin(state);
    free(run_shell("get whole images && [ \"$(ls out/images | wc -l)\" = 2 ]", 0));
    const unsigned char header[16] = {0, 0, 8, 4, 0, 0, 0, 4, 0, 0, 0, 32, 0, 0, 0, 32};
    char path[PROGRAM_PATH];
    size_t bytes;
    unsigned char *file = (unsigned char *)read_file(in_folder(path, "out/images/train-images-idx4-ubyte"), &bytes);
    assert_int_equal(bytes, 20 + 4 * 3072);
    assert_memory_equal(file, header, sizeof header);
    assert_memory_equal(file + 16, "\0\0\0\3", 4);
    const unsigned char *at = file + 20;
    for (int batch = 1; batch <= 2; batch++)
        for (int image = 0; image < 2; image++)
            for (int row = 0; row < 32; row++)
                for (int column = 0; column < 32; column++)
                    for (int channel = 0; channel < 3; channel++)
                        assert_int_equal(*at++, pixel(batch, image, row, column, channel));
    free(file);
    file = (unsigned char *)read_file(in_folder(path, "out/images/test-images-idx4-ubyte"), &bytes);
    assert_int_equal(bytes, 20 + 2 * 3072);
    assert_int_equal(file[7], 2);
    assert_int_equal(file[20 + 3072 + 5], pixel(3, 1, 0, 1, 2));
    free(file);
}

// Samples of a recording, as wave's 44 bytes of header are followed by them.
static void expect_samples(const char *name, const char *samples) {
    char command[512], *said;
    snprintf(command, sizeof command, "tail -c +45 out/%s | od -An -v -t d2 -w1024", name);
    said = run_shell(command, 0);
    assert_string_equal(said, samples);
    free(said);
}
static void speech(void **state) {
    begin(state);
    free(run_shell("get whole digits && ls -m out/digits > names", 0));
    expect_text("names", "ann.wav, bob.wav\n");
    expect_samples("digits/ann.wav",
                   "    200    201    202    210    211    212   1000   1001   1002   1010   1011   1012\n");
    free(run_shell("python3 -c \"import wave; r = wave.open('out/digits/ann.wav'); "
                   "assert r.getparams()[:4] == (1, 2, 8000, 12), r.getparams()\"",
                   0));
    make_script("flac", "#!/bin/sh\nfor path; do :; done\nexec cat \"$path\"\n");
    free(run_shell("get whole chapters && rm flac && ls -m out/chapters > names && ! ls ../L1 2> /dev/null", 0));
    expect_text("names", "1-5.wav, 2-5.wav\n");
    expect_samples("chapters/2-5.wav", "   2000   2001\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole),    cmocka_unit_test(dropped),  cmocka_unit_test(stopped), cmocka_unit_test(no_ranges),
        cmocka_unit_test(too_long), cmocka_unit_test(failures), cmocka_unit_test(usage),   cmocka_unit_test(fasta),
        cmocka_unit_test(images),   cmocka_unit_test(speech),
    };
    return cmocka_run_group_tests_name("get_data", tests, start_server, stop_server);
}
