// The formats that are decoded (FASTA, IDX, ABC, WAV) against readers written again here in another way, against
// Python's wave module, published counts and hand-written files; and that no file, however damaged, does more than fail
// with one line.
#include "test/token_files.h"

#include <math.h>

#include "base/random.h"

enum { FASTA_END = 5, IDX_END = 256, WAV_END = 256, ABC_NEWLINE = 0, ABC_OTHER = 96, ABC_END = 97 };

// A file in the making.
typedef struct Bytes {
    unsigned char at[4096];
    size_t size;
} Bytes;

static void add(Bytes *bytes, const void *data, size_t size) {
    assert_true(bytes->size + size <= sizeof bytes->at);
    if (size > 0) memcpy(bytes->at + bytes->size, data, size);
    bytes->size += size;
}

static void add_little(Bytes *bytes, uint64_t value, int width) {
    for (int i = 0; i < width; i++) add(bytes, &(unsigned char){(unsigned char)(value >> 8 * i)}, 1);
}

static void add_big(Bytes *bytes, uint64_t value) {
    for (int i = 3; i >= 0; i--) add(bytes, &(unsigned char){(unsigned char)(value >> 8 * i)}, 1);
}

// All tokens of a source; to be freed.
static int32_t *all_tokens(const TokenSource *source) {
    Error err = {0};
    int64_t count = tokens_count(source);
    int32_t *token = malloc((size_t)count * sizeof *token);
    assert_non_null(token);
    must(tokens_read(source, 0, count, tokens_vocabulary(source), token, &err), &err);
    return token;
}

static TokenSource *open_as(const char *path, TokenFormat format) {
    Error err = {0};
    TokenSource *source = tokens_open(&path, 1, format, &err);
    must(source != NULL, &err);
    return source;
}

static const char *put(const char *folder, const void *data, size_t size) {
    static char path[PROGRAM_PATH];
    unlink(path_join(path, folder, "file")); // some file systems wait for the disk where a file is overwritten
    write_file(path, data, size);
    return path;
}

static void assert_tokens_as(const char *path, TokenFormat format, const int32_t *expected, int64_t count) {
    TokenSource *source = open_as(path, format);
    if (tokens_count(source) != count)
        fail_msg("%s: %lld tokens, not %lld", path, (long long)tokens_count(source), (long long)count);
    int32_t *token = all_tokens(source);
    for (int64_t t = 0; t < count; t++)
        if (token[t] != expected[t])
            fail_msg("%s: token %lld is %d, not %d", path, (long long)t, token[t], expected[t]);
    assert_int_equal(tokens_document_end(source), tokens_vocabulary(source) - 1);
    assert_true(tokens_always_below(source, tokens_vocabulary(source)));
    assert_false(tokens_always_below(source, tokens_vocabulary(source) - 1));
    free(token);
    tokens_close(source);
}

// What the file holds, known by its content and told by name.
static void assert_tokens(const char *path, TokenFormat format, const int32_t *expected, int64_t count) {
    assert_tokens_as(path, TOKENS_AUTO, expected, count);
    assert_tokens_as(path, format, expected, count);
}

static void refuse(const char *path, TokenFormat format, const char *says, const char *and_says) {
    Error err = {0};
    TokenSource *source = tokens_open(&path, 1, format, &err);
    if (source != NULL) fail_msg("%s should not open (%s)", path, says);
    assert_true(err.exit_code == EXIT_RUNTIME || err.exit_code == EXIT_USAGE);
    assert_error(&err, path, says, and_says, NULL);
}

static void is_bytes(const char *path) {
    TokenSource *source = open_as(path, TOKENS_AUTO);
    assert_true(tokens_are_bytes(source));
    assert_string_equal(tokens_unit(source), "byte");
    tokens_close(source);
}

// A file of the corpora beside the project's tree, which are not part of it.
static bool corpus(char path[PROGRAM_PATH], const char *name) {
    char root[PROGRAM_PATH], place[PROGRAM_PATH];
    *strrchr(project_path(root, "Makefile"), '/') = '\0';
    snprintf(place, sizeof place, "../shared/data/%s", name);
    if (access(path_join(path, root, place), R_OK) == 0) return true;
    print_message("skipped: there is no %s\n", path);
    return false;
}

// ---- FASTA ----------------------------------------------------------------------------------------------------------

// The tokens as letters, '|' for the end of a record.
static void assert_bases(const char *folder, const char *text, const char *expected) {
    int32_t token[200];
    size_t count = strlen(expected);
    for (size_t i = 0; i < count; i++) token[i] = (int32_t)(strchr("ACGTN|", expected[i]) - "ACGTN|");
    assert_tokens(put(folder, text, strlen(text)), TOKENS_FASTA, token, (int64_t)count);
}

static void test_fasta(void **state) {
    assert_bases(*state, ">one\nACGT\nAC\n>two\nGG\n", "ACGTAC|GG|");
    assert_bases(*state, ">one\r\nACGT\r\n\r\nAC\r\n>two\r\nGG", "ACGTAC|GG|"); // no newline at the end
    assert_bases(*state, ">lower case, and RNA\nacgtn\nACGUu\n", "ACGTNACGTT|");
    assert_bases(*state, ">one of several\nACGTACGTAR\n", "ACGTACGTAN|");
    assert_bases(*state, ">empty\n>one\n;a comment, of any letters\nACG\n;>another\nT\n>empty\n\n\n", "ACGT|");
    assert_bases(*state, ">\n\n\nA\n>name without a base", "A|");
    // Where it is told: without a header, with blanks between, of the rarer codes.
    static const char text[] = "AC GT\t\nRYKMSWBDHVN\nrykmswbdhvn";
    int32_t token[] = {0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, FASTA_END};
    is_bytes(put(*state, text, strlen(text)));
    assert_tokens_as(put(*state, text, strlen(text)), TOKENS_FASTA, token, sizeof token / sizeof *token);
}

static void test_fasta_of_other_letters(void **state) {
    static const char protein[] = ">protein\nMKVLA\n", late[] = ">DNA\nACGT\nACGT\n\n>and a protein\r\nACGE\n",
                      gap[] = ">one\nAC-GT\n", strange[] = ">one\nAC\x01";
    refuse(put(*state, protein, strlen(protein)), TOKENS_FASTA, "line 2: 'L' is no nucleotide", "--data-format bytes");
    refuse(put(*state, late, strlen(late)), TOKENS_FASTA, "line 6: 'E'", NULL);
    refuse(put(*state, gap, strlen(gap)), TOKENS_FASTA, "line 2: '-'", NULL);
    refuse(put(*state, strange, strlen(strange)), TOKENS_FASTA, "line 2: '\\x01'", NULL);
    refuse(put(*state, ">only\n>names\n", 13), TOKENS_FASTA, "holds no bases", NULL);
    is_bytes(put(*state, protein, strlen(protein)));
    static const char *const texts[] = {"> quoted\n\nBad\n", ">", ">\n", "> that\nthat hat\n", "ACGT\n", ">a\nAC GT\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) is_bytes(put(*state, texts[i], strlen(texts[i])));

    // Known by its beginning, and damaged after it.
    enum { SIZE = 100000 };
    char *text = malloc(SIZE);
    assert_non_null(text);
    for (int i = 0; i < SIZE; i++) text[i] = i % 61 == 60 ? '\n' : "ACGT"[i % 7 % 4];
    text[0] = '>';
    text[90000] = '!';
    refuse(put(*state, text, SIZE), TOKENS_AUTO, "line 1476: '!'", NULL); // 90,000 / 61 = 1,475 whole lines before
    free(text);
}

// Lines by fgets and letters by toupper and strchr: what the reader does with tables.
static void test_fasta_corpora(void **state) {
    (void)state;
    static const struct Genome {
        const char *name;
        int64_t bases; // as published with the sequences NC_000913.3 and NC_001416.1
    } genomes[] = {{"genome/ecoli-k12-mg1655.fa", 4641652}, {"genome/lambda-phage.fa", 48502}};
    char path[PROGRAM_PATH], line[4096];
    for (size_t i = 0; i < sizeof genomes / sizeof *genomes; i++) {
        if (!corpus(path, genomes[i].name)) continue;
        TokenSource *source = open_one(path);
        assert_int_equal(tokens_count(source), genomes[i].bases + 1);
        assert_int_equal(tokens_vocabulary(source), 6);
        assert_string_equal(tokens_unit(source), "base");
        int32_t *token = all_tokens(source);
        int64_t place = 0, wrong = 0;
        FILE *file = fopen(path, "r");
        assert_non_null(file);
        while (fgets(line, sizeof line, file) != NULL)
            for (char *c = line; *line != '>' && *c > ' '; c++)
                wrong += token[place++] != strchr("ACGTN", *c >= 'a' ? *c - 'a' + 'A' : *c) - "ACGTN";
        fclose(file);
        assert_int_equal(wrong, 0);
        assert_int_equal(place, genomes[i].bases);
        assert_int_equal(token[place], FASTA_END);
        free(token);
        tokens_close(source);
    }
}

// ---- IDX ------------------------------------------------------------------------------------------------------------

static Bytes idx(int type, int dimensions, const uint32_t *dimension, size_t elements) {
    Bytes file = {{0, 0, (unsigned char)type, (unsigned char)dimensions}, 4};
    for (int i = 0; i < dimensions; i++) add_big(&file, dimension[i]);
    for (size_t i = 0; i < elements; i++) add_little(&file, 255 - 7 * i, 1);
    return file;
}

static void test_idx(void **state) {
    static const struct Case {
        int dimensions;
        uint32_t dimension[4], images, pixels;
    } cases[] = {{3, {2, 3, 4, 0}, 2, 12}, {3, {1, 1, 1, 0}, 1, 1}, {4, {3, 2, 2, 3}, 3, 12}, {4, {2, 1, 1, 1}, 2, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct Case *c = &cases[i];
        Bytes file = idx(8, c->dimensions, c->dimension, c->images * c->pixels);
        int32_t token[100];
        int64_t count = 0;
        for (uint32_t image = 0; image < c->images; image++) {
            for (uint32_t p = 0; p < c->pixels; p++) token[count++] = (255 - 7 * (int)(image * c->pixels + p)) & 255;
            token[count++] = IDX_END;
        }
        assert_tokens(put(*state, file.at, file.size), TOKENS_IDX, token, count);
    }
}

static void test_idx_refused(void **state) {
    static const struct Case {
        int type, dimensions;
        uint32_t dimension[4];
        size_t elements;
        const char *says, *and_says;
    } cases[] = {
        {8, 3, {2, 3, 4}, 23, "truncated: the header says 24 pixels, but 23 bytes follow", "copy it again"},
        {8, 3, {2, 3, 4}, 25, "too long: the header says 24 pixels, but 25", NULL},
        {8, 3, {2, 3, 4}, 0, "truncated", NULL},
        {8, 3, {0, 3, 4}, 0, "one of its dimensions is 0", NULL},
        {8, 3, {2, 0, 4}, 0, "one of its dimensions is 0", NULL},
        {8, 3, {~0u, ~0u, ~0u}, 10, "more pixels than can be counted", NULL},
        {8, 4, {~0u, ~0u, ~0u, ~0u}, 10, "more pixels than can be counted", NULL},
        {8, 4, {1u << 16, 1u << 16, 1u << 16, 1u << 16}, 0, "more pixels than can be counted", NULL}, // 2^64
        {8, 4, {1u << 31, 1u << 31, 2, 1}, 8, "truncated", NULL},                                     // 2^63
        {8, 4, {0, ~0u, ~0u, ~0u}, 0, "one of its dimensions is 0", NULL},
        {8, 1, {10}, 10, "such as labels, holds no images", "leave it out"},
        {8, 2, {2, 5}, 10, "2 dimensions", "--data-format bytes"},
        {13, 3, {2, 2, 2}, 32, "type 0x0d", "--data-format bytes"},
        {9, 3, {2, 2, 2}, 8, "type 0x09", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Bytes file = idx(cases[i].type, cases[i].dimensions, cases[i].dimension, cases[i].elements);
        const char *path = put(*state, file.at, file.size);
        refuse(path, TOKENS_IDX, cases[i].says, cases[i].and_says);
        refuse(path, TOKENS_AUTO, cases[i].says, cases[i].and_says);
        for (size_t size = 4; size < 4 + 4 * (size_t)cases[i].dimensions; size++)
            refuse(put(*state, file.at, size), TOKENS_IDX, cases[i].type == 8 ? "" : "type", NULL);
    }
    refuse(put(*state, "\0\0\010\003\0\0\0\001\0\0", 10), TOKENS_AUTO, "10 bytes are less than its header of 16", NULL);
    refuse(put(*state, "\0\0\010", 3), TOKENS_IDX, "no IDX file", NULL);
    refuse(put(*state, "text", 4), TOKENS_IDX, "no IDX file", "give another format");
    is_bytes(put(*state, "\0\0\010\005\0\0\0\001\0\0", 10)); // five dimensions
    is_bytes(put(*state, "\0\0\010\001\0\0\0\003\0\0", 10)); // of another size
    is_bytes(put(*state, "\0\0\007\003\0\0\0\001\0\0", 10));
}

// Published: 10,000 images of 28 x 28 (LeCun, Cortes, Burges, "The MNIST database of handwritten digits").
static void test_idx_mnist(void **state) {
    (void)state;
    enum { IMAGES = 10000, PIXELS = 28 * 28, HEADER = 16 };
    char path[PROGRAM_PATH];
    if (!corpus(path, "image/mnist-t10k-images-idx3-ubyte")) return;
    TokenSource *source = open_one(path);
    assert_int_equal(tokens_count(source), IMAGES * (PIXELS + 1));
    assert_string_equal(tokens_unit(source), "pixel");
    int32_t *token = all_tokens(source);
    FILE *file = fopen(path, "rb");
    assert_true(file != NULL && fseek(file, HEADER, SEEK_SET) == 0);
    int64_t wrong = 0;
    for (int64_t i = 0; i < IMAGES * (PIXELS + 1); i++)
        wrong += token[i] != (i % (PIXELS + 1) == PIXELS ? IDX_END : getc(file));
    assert_int_equal(wrong, 0);
    assert_int_equal(getc(file), EOF);
    fclose(file);
    free(token);
    tokens_close(source);
    if (corpus(path, "image/mnist-t10k-labels-idx1-ubyte")) refuse(path, TOKENS_AUTO, "labels", "leave it out");
}

// ---- ABC ------------------------------------------------------------------------------------------------------------

// Expected: characters as they are, '\n', '|' for the end of a tune, '\x01' for other.
static void assert_music(const char *folder, const char *text, const char *expected) {
    int32_t token[200];
    size_t count = strlen(expected);
    for (size_t i = 0; i < count; i++) {
        int c = (unsigned char)expected[i];
        token[i] = c == '\n' ? ABC_NEWLINE : c == '|' ? ABC_END : c == '\x01' ? ABC_OTHER : c - ' ' + 1;
    }
    assert_tokens(put(folder, text, strlen(text)), TOKENS_ABC, token, (int64_t)count);
}

static void test_abc(void **state) {
    assert_music(*state, "X:1\nK:G\nGAB~\n\nX: 2\nK:C\nc", "X:1\nK:G\nGAB~\n|X: 2\nK:C\nc\n|");
    assert_music(*state, "X:1\r\nK:G\r\n\r\n\r\nX:2\r\n", "X:1\nK:G\n|X:2\n|");
    assert_music(*state, "X:1\rK:G\rX:2", "X:1\nK:G\n|X:2\n|"); // ends of lines of old Macs
    assert_music(*state, "%abc-2.1\n\n% all of it\nX:1\nT:a\tb X:3\n", "%abc-2.1\n\n% all of it\nX:1\nT:a b X:3\n|");
    assert_music(*state, "\n%one\n\n X:1\nX:7\nA\n", "\n%one\n\n X:1\nX:7\nA\n|"); // a blank before is no beginning
    assert_music(*state, "X:1\nT:\xc3\xa9\xe2\x99\xad!\n", "X:1\nT:\x01\x01!\n|"); // UTF-8: é, a flat
    assert_music(*state, "X:1\nT:\xe9t\xe9\n", "X:1\nT:\x01t\x01\n|");             // Latin-1
    assert_music(*state, "\xef\xbb\xbfX:1\nT:\x7f\x02\n", "X:1\nT:\x01\x01\n|");   // a byte order mark; controls

    refuse(put(*state, "some text\n", 10), TOKENS_ABC, "holds no tune", "X:");
    refuse(put(*state, "%abc\n", 5), TOKENS_AUTO, "holds no tune", "--data-format bytes");
    static const char *const texts[] = {"", "X", "X:", "X: a\n", "%", "%abcd\n", "% X:1\n", "T:x\nX:1\n", "%\nX1"};
    for (size_t i = 1; i < sizeof texts / sizeof *texts; i++) is_bytes(put(*state, texts[i], strlen(texts[i])));
}

static void test_abc_corpus(void **state) {
    (void)state;
    char path[PROGRAM_PATH], line[4096];
    if (!corpus(path, "music/nottingham.abc")) return;
    TokenSource *source = open_one(path);
    assert_int_equal(tokens_vocabulary(source), 98);
    assert_string_equal(tokens_unit(source), "character");
    int32_t *token = all_tokens(source);
    int64_t count = tokens_count(source), place = 0, tunes = 0, blank = 0;
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL) {
        if (line[0] == '\n') {
            blank++; // of the tune, if more of it comes
            continue;
        }
        if (strncmp(line, "X:", 2) == 0) {
            if (tunes++ > 0) assert_int_equal(token[place++], ABC_END);
            blank = 0;
        }
        for (; blank > 0; blank--) assert_int_equal(token[place++], ABC_NEWLINE);
        for (const char *c = line; *c != '\0'; c++) assert_int_equal(token[place++], *c == '\n' ? 0 : *c - 31);
    }
    fclose(file);
    assert_int_equal(token[place++], ABC_END);
    assert_int_equal(place, count);
    assert_int_equal(tunes, 1034); // as the collection says
    free(token);
    tokens_close(source);
}

// ---- WAV ------------------------------------------------------------------------------------------------------------

// G.711 by its table: decision values of 14 bits, in steps of 2, 4, 8, ... 256 (the first step is 1); the codes count
// down from 0xff, and from 0x7f below zero.
static int mu_law(double sample) { // of 16 bits
    double magnitude = floor(fabs(sample) / 4), decision = 1;
    int steps = 0, segment = 0;
    while (steps < 127 && magnitude >= decision) {
        steps++;
        if (steps % 16 == 0 && steps > 0) segment++;
        decision += 2 << segment;
    }
    return (sample < 0 ? 0x7f : 0xff) - steps;
}

// As published: segments end at these decision values of 14 bits.
static void test_mu_law_of_the_test(void **state) {
    (void)state;
    static const int ends[] = {31, 95, 223, 479, 991, 2015, 4063};
    for (int i = 0; i < 7; i++) {
        assert_int_equal(mu_law(4 * ends[i]), 0xff - 16 * (i + 1));
        assert_int_equal(mu_law(4 * ends[i] - 1), 0xff - 16 * (i + 1) + 1);
        assert_int_equal(mu_law(-4 * ends[i]), 0x7f - 16 * (i + 1));
    }
    assert_int_equal(mu_law(32767), 0x80);
    assert_int_equal(mu_law(-32768), 0x00);
    assert_int_equal(mu_law(0), 0xff);
}

typedef struct Wav {
    int encoding, channels, bits;
    bool extensible;
    const void *data;
    size_t size;     // of the data
    uint32_t stated; // what the header says of it
    uint32_t riff;   // 0: the right one
    bool data_first, odd_chunks;
} Wav;

static void add_chunk(Bytes *file, const char *name, uint32_t stated, const void *data, size_t size) {
    add(file, name, 4);
    add_little(file, stated, 4);
    add(file, data, size);
    if (size % 2 != 0) add(file, "", 1);
}

static Bytes wav(const Wav *w) {
    static const unsigned char rest[] = {0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71};
    Bytes file = {.size = 0}, fmt = {.size = 0};
    add_little(&fmt, w->extensible ? 0xfffe : (uint64_t)w->encoding, 2);
    add_little(&fmt, (uint64_t)w->channels, 2);
    add_little(&fmt, 8000, 4);
    add_little(&fmt, (uint64_t)(8000 * w->channels * w->bits / 8), 4);
    add_little(&fmt, (uint64_t)(w->channels * w->bits / 8), 2);
    add_little(&fmt, (uint64_t)w->bits, 2);
    if (w->extensible) {
        add_little(&fmt, 22, 2);
        add_little(&fmt, (uint64_t)w->bits, 2);
        add_little(&fmt, 0, 4);
        add_little(&fmt, (uint64_t)w->encoding, 2);
        add(&fmt, rest, sizeof rest);
    }
    add(&file, "RIFF....WAVE", 12);
    if (w->odd_chunks) add_chunk(&file, "LIST", 5, "hello", 5);
    if (w->data_first) add_chunk(&file, "data", w->stated, w->data, w->size);
    if (w->odd_chunks) add_chunk(&file, "junk", 3, "abc", 3);
    add_chunk(&file, "fmt ", (uint32_t)fmt.size, fmt.at, fmt.size);
    if (w->odd_chunks) add_chunk(&file, "zero", 0, "", 0);
    if (!w->data_first) add_chunk(&file, "data", w->stated, w->data, w->size);
    put_le32(file.at + 4, w->riff > 0 ? w->riff : (uint32_t)file.size - 8);
    return file;
}

// `channels` samples of 16 bits a frame: each of the encodings holds them exactly, or as near as it can.
static void check_wav(const char *folder, int encoding, int channels, int bits, bool extensible) {
    static const int sample[] = {0,     1,     -1,   3,      4,      -4,    100,  -100,  123, -124, 1000, -1000,
                                 12345, -9876, 8031, -16000, -32768, 32767, 3970, -3971, 124, 132,  -132, 31000};
    enum { SAMPLES = sizeof sample / sizeof *sample };
    Bytes data = {.size = 0};
    int32_t token[SAMPLES + 1];
    double sum = 0;
    int frames = 0;
    for (int i = 0; i < SAMPLES / channels * channels; i++) {
        float real = (float)sample[i] / 32767;
        int32_t as_bits;
        memcpy(&as_bits, &real, sizeof real);
        double value = sample[i];
        if (encoding == 3) add_little(&data, (uint32_t)as_bits, 4);
        else if (encoding == 7) add_little(&data, (uint64_t)mu_law(sample[i]), 1);
        else if (bits == 8) add_little(&data, (uint64_t)(sample[i] + 32768) >> 8, 1);
        else add_little(&data, (uint64_t)((int64_t)sample[i] * (1 << (bits - 16)) + (bits > 16 ? i : 0)), bits / 8);
        if (bits == 8 && encoding == 1) value = 256 * floor(value / 256);
        if (encoding == 3 && value < -32767) value = -32767;
        sum += value;
        if (i % channels < channels - 1) continue;
        token[frames++] = mu_law(trunc(sum / channels));
        sum = 0;
    }
    token[frames++] = WAV_END;
    for (int form = 0; form < 4; form++) {
        Wav w = {encoding, channels, bits, extensible, data.at, data.size, (uint32_t)data.size, 0, form % 2, form / 2};
        Bytes file = wav(&w);
        assert_tokens(put(folder, file.at, file.size), TOKENS_WAV, token, frames);
    }
}

static void test_wav(void **state) {
    for (int extensible = 0; extensible < 2; extensible++) {
        for (int channels = 1; channels <= 6; channels += channels == 3 ? 3 : 1) {
            for (int bits = 8; bits <= 32; bits += 8) check_wav(*state, 1, channels, bits, extensible);
            check_wav(*state, 3, channels, 32, extensible);
        }
        check_wav(*state, 7, 1, 8, extensible);
    }
}

// Every sample of 16 bits has the code of the table; every code of mu-law stays itself, and averaged with itself too.
static void test_wav_all_samples(void **state) {
    enum { HEADER = 44, SAMPLES = 65536 };
    unsigned char *file = malloc(HEADER + 2 * SAMPLES);
    int32_t *token = malloc((SAMPLES + 1) * sizeof *token);
    assert_true(file != NULL && token != NULL);
    Wav w = {1, 1, 16, false, "", 0, 2 * SAMPLES, HEADER - 8 + 2 * SAMPLES, false, false};
    memcpy(file, wav(&w).at, HEADER);
    for (int i = 0; i < SAMPLES; i++) {
        file[HEADER + 2 * i] = (unsigned char)i;
        file[HEADER + 2 * i + 1] = (unsigned char)(i >> 8);
        token[i] = mu_law((int16_t)i);
    }
    token[SAMPLES] = WAV_END;
    assert_tokens(put(*state, file, HEADER + 2 * SAMPLES), TOKENS_WAV, token, SAMPLES + 1);
    free(file);
    free(token);

    unsigned char code[512];
    int32_t expected[257];
    for (int channels = 1; channels <= 2; channels++) {
        for (int i = 0; i < 256; i++) {
            code[channels * i] = code[channels * i + channels - 1] = (unsigned char)i;
            expected[i] = channels == 2 && i == 0x7f ? 0xff : i; // the zero below zero
        }
        expected[256] = WAV_END;
        w = (Wav){7, channels, 8, false, code, 256 * (size_t)channels, 256 * (uint32_t)channels, 0, false, false};
        Bytes made = wav(&w);
        assert_tokens(put(*state, made.at, made.size), TOKENS_WAV, expected, 257);
    }
}

static void test_wav_floats(void **state) {
    static const float value[] = {0.5f, 2.0f, -2.0f, INFINITY, -INFINITY, NAN, 1e-30f, -1.0f};
    static const int as16[] = {16384, 32767, -32767, 32767, -32767, 0, 0, -32767}; // 16383.5 to even
    int32_t token[9];
    for (int i = 0; i < 8; i++) token[i] = mu_law(as16[i]);
    token[8] = WAV_END;
    Wav w = {3, 1, 32, false, value, sizeof value, sizeof value, 0, false, false};
    Bytes file = wav(&w);
    assert_tokens(put(*state, file.at, file.size), TOKENS_WAV, token, 9);
}

// Written by a program that could not go back: sizes of 0 or as large as can be, and part of a frame at the end.
static void test_wav_streamed(void **state) {
    static const uint32_t sizes[][2] = {{0, 1}, {0, ~0u}, {~0u, ~0u}, {0x7ffff000, 0x7ffff024}, {~0u, 0x7ffff024}};
    static const unsigned char data[] = {0, 0, 4, 0, 0xfc, 0xff, 0x7b};
    const int32_t token[] = {0xff, mu_law(4), mu_law(-4), WAV_END};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        Wav w = {1, 1, 16, false, data, sizeof data, sizes[i][0], sizes[i][1], false, false};
        Bytes file = wav(&w);
        assert_tokens(put(*state, file.at, file.size - 1), TOKENS_WAV, token, 4); // without the padding
    }
}

static void test_wav_refused(void **state) {
    static const unsigned char data[12] = {0};
    static const struct Case {
        Wav wav;
        const char *says, *and_says;
    } cases[] = {
        {{1, 1, 16, false, data, 12, 14, 0, false, false}, "truncated: the header says 14", "but the file has 12"},
        {{1, 1, 16, false, data, 12, 0x7fffefff, 0, false, false}, "truncated", "copy it again"},
        {{1, 1, 16, false, data, 12, 11, 0, false, false}, "no whole number of frames of 2", NULL},
        {{1, 1, 16, false, data, 0, 0, 0, false, false}, "holds no sound", NULL},
        {{1, 1, 16, false, data, 0, ~0u, 0, false, false}, "holds no sound", NULL},
        {{1, 0, 16, false, data, 12, 12, 0, false, false}, "0 channels", "damaged"},
        {{1, 1, 0, false, data, 12, 12, 0, false, false}, "0 bytes a frame", NULL},
        {{1, 1, 12, false, data, 12, 12, 0, false, false}, "encoding 1 with 12 bits", "--data-format bytes"},
        {{1, 1, 64, false, data, 12, 12, 0, false, false}, "encoding 1 with 64 bits", NULL},
        {{3, 1, 64, false, data, 8, 8, 0, false, false}, "encoding 3 with 64 bits", "convert it"},
        {{2, 1, 8, false, data, 12, 12, 0, false, false}, "encoding 2", NULL}, // ADPCM
        {{0x55, 1, 8, true, data, 12, 12, 0, false, false}, "encoding 85", NULL},
        {{1, 8192, 32, false, data, 12, 12, 0, false, false}, "12 bytes of sound", "frames of 32768 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Bytes file = wav(&cases[i].wav);
        refuse(put(*state, file.at, file.size), TOKENS_AUTO, cases[i].says, cases[i].and_says);
    }
    Bytes file = wav(&(Wav){1, 2, 16, false, data, 12, 12, 0, false, true});
    for (size_t size = 1; size < file.size; size++) // cut at every place
        refuse(put(*state, file.at, size), TOKENS_WAV, "", NULL);
    file.at[12 + 14 + 12 + 8 + 12] = 3; // bytes of a frame
    refuse(put(*state, file.at, file.size), TOKENS_AUTO, "2 channels of 16 bits in frames of 3 bytes", NULL);
    refuse(put(*state, "RIFX....WAVE", 12), TOKENS_WAV, "no WAV file", "RIFF");
    refuse(put(*state, "RIFF....WAVE", 12), TOKENS_AUTO, "\"fmt \"", NULL);
}

// Written and taken apart by Python's wave module, and made tokens by G.711's formulas (test/sound_files.py).
static void test_wav_of_python(void **state) {
    static const char *const names[] = {"mono-16",   "stereo-16", "mono-24", "stereo-24",
                                        "mono-8",    "mono-32",   "six-16"};
    char script[PROGRAM_PATH], path[PROGRAM_PATH], name[32];
    const char *const words[] = {"python3", project_path(script, "test/sound_files.py"), *state, NULL};
    if (system("python3 -c 'import wave' 2> /dev/null") != 0) {
        print_message("skipped: no python3 with its wave module\n");
        skip();
    }
    ProgramResult result = run_program(words, 60);
    if (result.exit_code != 0) fail_msg("%s", result.err);
    free_result(&result);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t bytes;
        snprintf(name, sizeof name, "%s.tokens", names[i]);
        int32_t *token = (int32_t *)read_file(path_join(path, *state, name), &bytes);
        snprintf(name, sizeof name, "%s.wav", names[i]);
        assert_tokens(path_join(path, *state, name), TOKENS_WAV, token, (int64_t)(bytes / sizeof *token));
        free(token);
    }
}

// Python's wave module takes the file apart.
static void test_wav_corpora(void **state) {
    static const char *const names[] = {"audio/jfk-16khz-mono.wav", "audio/spoken-digits-8khz-mono.wav"};
    static const int64_t seconds_times_10[] = {110, 2582};
    char path[PROGRAM_PATH], raw[PROGRAM_PATH], command[3 * PROGRAM_PATH];
    path_join(raw, *state, "raw");
    for (int i = 0; i < 2; i++) {
        if (!corpus(path, names[i])) continue;
        snprintf(command, sizeof command,
                 "python3 -c 'import sys, wave; w = wave.open(sys.argv[1]); assert w.getsampwidth() == 2 and "
                 "w.getnchannels() == 1; sys.stdout.buffer.write(w.readframes(w.getnframes()))' %s > %s",
                 path, raw);
        if (system(command) != 0) {
            print_message("skipped: no python3 with its wave module\n");
            return;
        }
        TokenSource *source = open_one(path);
        assert_string_equal(tokens_unit(source), "sample");
        int32_t *token = all_tokens(source);
        int64_t count = tokens_count(source) - 1, wrong = 0;
        int64_t rate = i == 0 ? 16000 : 8000;
        assert_true(llabs(10 * count - seconds_times_10[i] * rate) < rate); // as the corpus says, to 0.1 s
        FILE *file = fopen(raw, "rb");
        assert_non_null(file);
        for (int64_t t = 0; t < count; t++) {
            int low = getc(file), high = getc(file);
            wrong += token[t] != mu_law((int16_t)(high << 8 | low));
        }
        assert_int_equal(getc(file), EOF);
        fclose(file);
        assert_int_equal(wrong, 0);
        assert_int_equal(token[count], WAV_END);
        free(token);
        tokens_close(source);
    }
}

// ---- all of them ----------------------------------------------------------------------------------------------------

static const char TUNES[] = "%abc-2.1\nX:1\nT:one\nK:G\nGAB|\n\nX:2\r\nK:C\ncde\xc3\xa9|\n",
                  BASES[] = ">one\nACGTNACGT\nacgu\n;comment\n>two\r\nGGCC\r\n";

// Damage: some bytes changed, the end cut off or doubled. A file opens, with tokens below its vocabulary, or fails.
static void damage(const char *folder, const Bytes *whole, TokenFormat format, uint64_t seed, int *opened) {
    Bytes file = *whole;
    Philox4 random = philox4x32(seed, (uint64_t)format, 0);
    int changes = (int)(random.word[0] % 4);
    for (int i = 0; i < changes; i++) {
        Philox4 r = philox4x32(seed, (uint64_t)format, 1 + (uint64_t)i);
        static const unsigned char favoured[] = {0, 1, 0x7f, 0x80, 0xff, '>', 'X', '\n'};
        size_t reach = r.word[3] % 2 ? file.size : file.size < 48 ? file.size : 48; // headers more often
        file.at[r.word[0] % reach] = r.word[1] % 2 ? (unsigned char)(r.word[2] >> 24) : favoured[r.word[2] % 8];
    }
    if (random.word[1] % 3 == 0) file.size = random.word[2] % (file.size + 1);
    if (random.word[1] % 7 == 1) add(&file, whole->at, whole->size);
    const char *path = put(folder, file.at, file.size);
    Error err = {0};
    TokenSource *source = tokens_open(&path, 1, random.word[3] % 2 ? format : TOKENS_AUTO, &err);
    if (source == NULL) {
        assert_error(&err, path, NULL);
        return;
    }
    free(all_tokens(source)); // which fails where one is beyond
    ++*opened;
    tokens_close(source);
}

static void test_damaged_files(void **state) {
    enum { TIMES = 1500 };
    unsigned char data[60];
    for (int i = 0; i < 60; i++) data[i] = (unsigned char)(37 * i);
    const struct {
        TokenFormat format;
        Bytes file;
    } whole[] = {
        {TOKENS_WAV, wav(&(Wav){1, 2, 24, true, data, 60, 60, 0, false, true})},
        {TOKENS_WAV, wav(&(Wav){3, 1, 32, false, data, 60, 60, 0, true, false})},
        {TOKENS_IDX, idx(8, 3, (uint32_t[]){2, 5, 6}, 60)},
        {TOKENS_IDX, idx(8, 4, (uint32_t[]){2, 5, 2, 3}, 60)},
    };
    Bytes text[2] = {{.size = 0}, {.size = 0}};
    add(&text[0], BASES, strlen(BASES));
    add(&text[1], TUNES, strlen(TUNES));
    for (int kind = 0; kind < 6; kind++) {
        int opened = 0;
        const Bytes *file = kind < 4 ? &whole[kind].file : &text[kind - 4];
        TokenFormat format = kind < 4 ? whole[kind].format : kind == 4 ? TOKENS_FASTA : TOKENS_ABC;
        for (uint64_t i = 0; i < TIMES; i++) damage(*state, file, format, i, &opened);
        assert_in_range(opened, 1, TIMES - 1); // both come to pass
    }
}

static void test_kinds_do_not_mix(void **state) {
    char path[3][PROGRAM_PATH];
    write_file(path_join(path[0], *state, "a.fa"), BASES, strlen(BASES));
    write_file(path_join(path[1], *state, "b.abc"), TUNES, strlen(TUNES));
    write_file(path_join(path[2], *state, "c.txt"), "text", 4);
    const char *folder = *state, *both[] = {path[1], path[2]};
    Error err = {0};
    assert_null(tokens_open(&folder, 1, TOKENS_AUTO, &err));
    assert_error(&err, "b.abc is music in ABC but ", "a.fa is a FASTA file", "--data-format bytes to take all", NULL);
    err = (Error){0};
    assert_null(tokens_open(both, 2, TOKENS_AUTO, &err));
    assert_error(&err, "c.txt is plain bytes", "b.abc is music in ABC", "--data-format bytes", NULL);
    TokenSource *source = tokens_open(&folder, 1, TOKENS_BYTES, &err);
    must(source != NULL, &err);
    assert_int_equal(tokens_count(source), strlen(BASES) + strlen(TUNES) + 4 + 3);
    assert_null(tokens_symbols(source));
    tokens_close(source);
}

// Of what the files mean, not of how they are written; and of the kind.
static void test_fingerprints(void **state) {
    static const char *const same[] = {">a\nACGTAC\n>b\nGG\n", ">other\r\nacg\r\nuac\r\n>\r\ngg"},
                             another[] = ">a\nACGTAC\n>b\nGA\n";
    uint64_t fingerprint[3];
    for (int i = 0; i < 3; i++) {
        const char *text = i < 2 ? same[i] : another;
        TokenSource *source = open_one(put(*state, text, strlen(text)));
        fingerprint[i] = tokens_fingerprint(source);
        tokens_close(source);
    }
    assert_true(fingerprint[0] == fingerprint[1] && fingerprint[1] != fingerprint[2]);
}

static void test_text(void **state) {
    int32_t token[64];
    int64_t count;
    size_t at;
    TokenSource *source = open_one(put(*state, BASES, strlen(BASES)));
    assert_true(tokens_are_text(source) && tokens_of_text(source, "acGUn", token, &count, &at));
    assert_int_equal(count, 5);
    for (int i = 0; i < 5; i++) assert_int_equal(tokens_character(source, token[i]), "ACGTN"[i]);
    assert_int_equal(tokens_character(source, FASTA_END), '\n');
    assert_false(tokens_of_text(source, "ac t", token, &count, &at));
    assert_int_equal(at, 2);
    tokens_close(source);

    source = open_one(put(*state, TUNES, strlen(TUNES)));
    assert_true(tokens_are_text(source) && tokens_of_text(source, "X: 1\r\n~\xc3\xa9", token, &count, &at));
    assert_int_equal(count, 7);
    for (int i = 0; i < 7; i++) assert_int_equal(tokens_character(source, token[i]), "X: 1\n~?"[i]);
    tokens_close(source);

    Bytes image = idx(8, 3, (uint32_t[]){1, 2, 2}, 4);
    source = open_one(put(*state, image.at, image.size));
    assert_false(tokens_are_text(source));
    tokens_close(source);
}

// ---- the program ----------------------------------------------------------------------------------------------------

static char *train(const char *data, int exit_code, const char *const *words) {
    Command command = {0};
    add_words(&command, train_gpt_path(), "--data", data, "--context", "32", "--sample-tokens", "9", "--eval-windows",
              "2", "--sp", "1", "--threads", "1", "--device", "cpu", NULL);
    for (; *words != NULL; words++) add_word(&command, *words);
    ProgramResult result = run_program(command.argv, 60);
    if (result.exit_code != exit_code) {
        print_command(&command);
        fail_msg("exit code %d, not %d: %s%s", result.exit_code, exit_code, result.out, result.err);
    }
    char *said = strdup(exit_code == 0 ? result.out : result.err);
    assert_non_null(said);
    free_result(&result);
    return said;
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define SIZES "--steps", "2", "--layers", "1", "--heads", "1", "--dim", "16"

static void says(char *said, const char *text, const char *and_text) {
    if (strstr(said, text) == NULL || strstr(said, and_text) == NULL)
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", said, text, and_text);
    free(said);
}

// Trained, resumed, used; and kept from data of another kind.
static void test_training_on_bases(void **state) {
    char dna[PROGRAM_PATH], abc[PROGRAM_PATH], out[PROGRAM_PATH], model[PROGRAM_PATH], text[4000];
    for (uint64_t i = 0; i < sizeof text; i++) text[i] = i % 60 == 59 ? '\n' : "ACGT"[philox4x32(1, 0, i).word[0] % 4];
    memcpy(text, ">one\n", 5);
    write_file(path_join(dna, *state, "a.fa"), text, sizeof text);
    memcpy(text, "X:1\n", 4);
    write_file(path_join(abc, *state, "b.abc"), text, sizeof text);
    path_join(out, *state, "out");
    path_join(model, out, "step-00000002");

    char *said = train(dna, 0, WORDS(SIZES, "--out", out, "--document-mask", "--sample", "acgu"));
    assert_non_null(strstr(said, "training tokens (bases A, C, G, T, N; end of record)"));
    assert_non_null(strstr(said, "within documents, which token 5 ends"));
    assert_non_null(strstr(said, "base-bigram model "));
    assert_non_null(strstr(said, "\nACGT"));
    says(said, "vocabulary 6: ", " bits per base, over 2 windows");
    says(train(dna, 0, WORDS("--out", out, "--resume", "--steps", "3")), "step 3/3", "bits per base");
    says(train(dna, 0, WORDS("--init", model, "--steps", "0", "--data-format", "fasta")),
         "vocabulary 6: ", "bits per base");

    says(train(dna, 2, WORDS("--init", model, "--data-format", "bytes")), "is bytes, which need a vocabulary of 257",
         "has 6;");
    says(train(abc, 2, WORDS("--init", model)), "is characters of music, which need a vocabulary of 98", "has 6;");
    says(train(dna, 2, WORDS(SIZES, "--vocab-size", "7")), "is bases, whose vocabulary is 6", "leave it out");
    says(train(dna, 2, WORDS(SIZES, "--val-data", abc)), "holds characters of music, but", "holds bases");
    says(train(dna, 2, WORDS(SIZES, "--sample", "AC\nT")), "--sample: character 3 of the prompt", "bases A, C");
    says(train(dna, 2, WORDS("--out", out, "--resume", "--data-format", "bytes")), "not on ", "another");
}

static void test_training_on_pixels(void **state) {
    Bytes image = idx(8, 3, (uint32_t[]){30, 5, 5}, 750);
    const char *path = put(*state, image.at, image.size);
    char *said = train(path, 0, WORDS(SIZES));
    assert_null(strstr(said, "sample: "));
    says(said, "pixel-bigram model ", " bits per pixel");
    says(train(path, 2, WORDS(SIZES, "--sample", "1 2")), "holds pixels, and a prompt is text", "leave it out");
}

#define TEST_WITH_FOLDER(f) cmocka_unit_test_setup_teardown(f, temp_folder_setup, temp_folder_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST_WITH_FOLDER(test_fasta),
        TEST_WITH_FOLDER(test_fasta_of_other_letters),
        cmocka_unit_test(test_fasta_corpora),
        TEST_WITH_FOLDER(test_idx),
        TEST_WITH_FOLDER(test_idx_refused),
        cmocka_unit_test(test_idx_mnist),
        TEST_WITH_FOLDER(test_abc),
        TEST_WITH_FOLDER(test_abc_corpus),
        cmocka_unit_test(test_mu_law_of_the_test),
        TEST_WITH_FOLDER(test_wav),
        TEST_WITH_FOLDER(test_wav_all_samples),
        TEST_WITH_FOLDER(test_wav_floats),
        TEST_WITH_FOLDER(test_wav_streamed),
        TEST_WITH_FOLDER(test_wav_refused),
        TEST_WITH_FOLDER(test_wav_of_python),
        TEST_WITH_FOLDER(test_wav_corpora),
        TEST_WITH_FOLDER(test_damaged_files),
        TEST_WITH_FOLDER(test_kinds_do_not_mix),
        TEST_WITH_FOLDER(test_fingerprints),
        TEST_WITH_FOLDER(test_text),
        TEST_WITH_FOLDER(test_training_on_bases),
        TEST_WITH_FOLDER(test_training_on_pixels),
    };
    return cmocka_run_group_tests_name("readers", tests, NULL, NULL);
}
