// What a file is: bytes, an llm.c token shard, one of the formats that are decoded (dataloader/formats.h), or token
// numbers without a header.
//
// Shards and formats are certain, by what they start with. Numbers without a header (nanoGPT's train.bin) have nothing
// that marks them, so they must be named (--data-format). They would pass for bytes otherwise, and a model would train
// for hours on the halves of numbers: what looks like them is asked for. Byte data must not be, so all of this must
// hold:
//
//   - the name has no ending, or one that such files bear;
//   - it is no text: one byte in 50 or more is a control character, which no text has in any encoding of bytes, and
//     which the high bytes of the numbers of frequent tokens are;
//   - of uint16: no high byte is above 0xc4, as no token of a vocabulary below 50,432 has one (GPT-2 has 50,257, padded
//     50,304). Sound, pixels and machine code have such bytes;
//   - of uint16: low and high bytes are spread differently. In a stream of bytes, odd and even places are alike;
//   - of uint32: every number is below 2^20;
//   - few of the numbers are 0, as many are in tables of databases and the like.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dataloader/formats.h"

typedef struct Shard {
    const char *name;
    uint32_t magic;
    uint32_t version;
    int width; // bytes per token
    int64_t vocabulary;
} Shard;

static const Shard SHARDS[KIND_UINT32 + 1] = {
    {"plain bytes (no token shard's magic at its start)", 0, 0, 1, BYTE_VOCABULARY},
    {"a shard of uint16 tokens", 20240520, 1, 2, 50257},
    {"a shard of uint32 tokens", 20240801, 7, 4, 128256},
};

enum { HEADER_BYTES = 256 * 4 };

int64_t kind_vocabulary(Kind kind) {
    return format_of(kind) != NULL ? format_of(kind)->vocabulary : SHARDS[kind].vocabulary;
}

int kind_width(Kind kind) { return format_of(kind) != NULL ? 2 : SHARDS[kind].width; }

const char *kind_name(Kind kind) {
    static const char *const names[] = {"bytes", "uint16 tokens", "uint32 tokens"};
    return format_of(kind) != NULL ? format_of(kind)->units : names[kind];
}

const char *kind_described(Kind kind) {
    return format_of(kind) != NULL ? format_of(kind)->described : SHARDS[kind].name;
}

bool kind_is_numbers(Kind kind) { return kind == KIND_UINT16 || kind == KIND_UINT32; }

// ---- llm.c's shards -------------------------------------------------------------------------------------------------

// KIND_BYTES for what is no shard. A file that starts with another of llm.c's dated magics, or whose header is a
// shard's in all but the magic, is a damaged or misplaced file and no text.
static bool shard_kind(const TokenFile *file, Kind *kind, Error *err) {
    *kind = KIND_BYTES;
    if (file->size < 4) return true;
    uint32_t magic = read32(file->bytes);
    for (Kind k = KIND_UINT16; k <= KIND_UINT32; k++)
        if (magic == SHARDS[k].magic) *kind = k;
    if (*kind != KIND_BYTES) return true;

    bool misplaced = magic >= 20240101 && magic <= 20241231;
    if (file->size > HEADER_BYTES) {
        size_t version = read32(file->bytes + 4), count = read32(file->bytes + 8), body = file->size - HEADER_BYTES;
        for (Kind k = KIND_UINT16; k <= KIND_UINT32; k++)
            misplaced |= version == SHARDS[k].version && body == count * (size_t)SHARDS[k].width;
    }
    if (misplaced)
        return error_set(err, "%s: bad magic %u: token shards start with %u or %u; make it again or leave it out",
                         file->path, magic, SHARDS[KIND_UINT16].magic, SHARDS[KIND_UINT32].magic);
    return true;
}

static bool read_header(TokenFile *file, const Shard *format, Error *err) {
    if (file->size < HEADER_BYTES)
        return error_set(err, "%s: truncated: %zu bytes are less than a token shard's header of %d; make it again",
                         file->path, file->size, HEADER_BYTES);
    uint32_t version = read32(file->bytes + 4);
    if (version != format->version)
        return error_set(err, "%s: token shard of version %u; only version %u is known for magic %u: make it again",
                         file->path, version, format->version, format->magic);
    uint32_t count = read32(file->bytes + 8);
    if (count > INT32_MAX)
        return error_set(err, "%s: the header says %d tokens; copy or make it again", file->path, (int32_t)count);
    size_t expected = HEADER_BYTES + (size_t)count * (size_t)format->width;
    if (file->size != expected)
        return error_set(err,
                         "%s: %s: the header says %u tokens, %zu bytes in all, but the file has %zu; copy or make "
                         "it again",
                         file->path, file->size < expected ? "truncated" : "too long", count, expected, file->size);
    file->tokens = file->bytes + HEADER_BYTES;
    file->count = count;
    return true;
}

// ---- numbers without a header ---------------------------------------------------------------------------------------

enum {
    BLOCKS = 64,              // of a file's sample
    LEAST_NUMBERS = 256,      // less is too little to judge
    LARGEST_HIGH_BYTE = 0xc4, // of a uint16 below 50,432
    LARGEST_BITS = 20,        // of a uint32 token
};

// Counts over a sample of whole numbers.
typedef struct Sample {
    int64_t even[256], odd[256];         // bytes at even and at odd places
    int64_t wide, wide_small, wide_zero; // uint32: all, those below 2^20, those that are 0
    int64_t narrow_zero;                 // uint16: those that are 0
} Sample;

static void take_sample(Sample *sample, const TokenFile *file) {
    memset(sample, 0, sizeof *sample);
    token_file_will_be_sampled(file, true);
    size_t length = sample_length(file->size) / 4 * 4;
    bool several = file->size > SAMPLE_BLOCK;
    for (int block = 0; block < (several ? BLOCKS : 1); block++) {
        const unsigned char *p = file->bytes + sample_place(file->size, block, BLOCKS) / 4 * 4;
        for (size_t i = 0; i < length; i += 4) {
            uint32_t number = read32(p + i);
            sample->even[p[i]]++;
            sample->even[p[i + 2]]++;
            sample->odd[p[i + 1]]++;
            sample->odd[p[i + 3]]++;
            sample->wide++;
            sample->wide_small += number >> LARGEST_BITS == 0;
            sample->wide_zero += number == 0;
            sample->narrow_zero += ((number & 0xffff) == 0) + (number >> 16 == 0);
        }
    }
    token_file_will_be_sampled(file, false);
}

// Control characters that no text has. Tabs, ends of lines and pages, and escapes (of terminals and of ISO 2022) it
// has.
static bool is_control(int byte) {
    return (byte < 0x20 && !(byte >= '\t' && byte <= '\r') && byte != 0x1b) || byte == 0x7f;
}

static bool is_text(const Sample *s) {
    int64_t control = 0;
    for (int byte = 0; byte < 256; byte++)
        if (is_control(byte)) control += s->even[byte] + s->odd[byte];
    return 50 * control < 4 * s->wide;
}

// Half the sum of |p(b) - q(b)| over the bytes b at even and odd places: 0 where they are alike, 1 where they share no
// byte. A sample of n differs from itself by some sqrt(bytes in use / n).
static bool halves_differ(const Sample *s) {
    double n = 2.0 * (double)s->wide, distance = 0.0, used = 0.0;
    for (int byte = 0; byte < 256; byte++) {
        distance += 0.5 * fabs((double)(s->even[byte] - s->odd[byte])) / n;
        used += s->even[byte] + s->odd[byte] > 0;
    }
    return distance > 0.15 + 0.3 * sqrt(used / n);
}

static bool has_high_bytes(const Sample *s) {
    for (int byte = LARGEST_HIGH_BYTE + 1; byte < 256; byte++)
        if (s->odd[byte] > 0) return true;
    return false;
}

static bool named_like_tokens(const char *path) {
    static const char *const endings[] = {".bin", ".u16", ".u32", ".uint16", ".uint32", ".tok", ".tokens", ".ids"};
    const char *name = strrchr(path, '/'), *dot = strrchr(name != NULL ? name : path, '.');
    if (dot == NULL) return true;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (strcmp(dot, endings[i]) == 0) return true;
    return false;
}

// KIND_BYTES where it does not look like numbers.
static Kind looks_like(const TokenFile *file) {
    if (file->size % 2 != 0 || !named_like_tokens(file->path)) return KIND_BYTES;
    Sample sample;
    take_sample(&sample, file);
    if (2 * sample.wide < LEAST_NUMBERS || is_text(&sample)) return KIND_BYTES;
    bool wide = file->size % 4 == 0 && sample.wide >= LEAST_NUMBERS && sample.wide_small == sample.wide;
    if (wide && 4 * sample.wide_zero < sample.wide) return KIND_UINT32;
    bool narrow = 4 * sample.narrow_zero < 2 * sample.wide && !has_high_bytes(&sample) && halves_differ(&sample);
    return narrow ? KIND_UINT16 : KIND_BYTES;
}

// Other programs' files of tokens whose first bytes are certain: their headers would be taken for tokens.
static bool check_foreign(const TokenFile *file, Error *err) {
    static const struct Foreign {
        const char *begins, *name;
    } foreign[] = {
        {"\x93NUMPY", "a NumPy array"}, {"MMIDIDX", "an index of Megatron's"}, {"LITPKDS", "one of LitGPT's"}};
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        size_t length = strlen(foreign[i].begins);
        if (file->size >= length && memcmp(file->bytes, foreign[i].begins, length) == 0)
            return error_usage(err,
                               "%s is %s, whose header is not known here: write its tokens as bare numbers and give "
                               "--data-format uint16, or --data-format bytes to take it as it is",
                               file->path, foreign[i].name);
    }
    return true;
}

static bool read_bare(TokenFile *file, Kind kind, Error *err) {
    int width = SHARDS[kind].width;
    if (file->size % (size_t)width != 0)
        return error_usage(err,
                           "--data-format uint%d: %s has %zu bytes, which is no multiple of %d; copy it again, or "
                           "give another format",
                           8 * width, file->path, file->size, width);
    Sample sample;
    take_sample(&sample, file);
    if (2 * sample.wide >= LEAST_NUMBERS && is_text(&sample))
        return error_usage(err, "--data-format uint%d: %s is text; leave it out, or give another format", 8 * width,
                           file->path);
    file->tokens = file->bytes;
    file->count = (int64_t)(file->size / (size_t)width);
    return true;
}

// ---- all of them ----------------------------------------------------------------------------------------------------

static bool take_as_bytes(TokenFile *file) {
    file->tokens = file->bytes;
    file->count = (int64_t)file->size + 1;
    return true;
}

bool token_file_recognise(TokenFile *file, TokenFormat format, Kind *kind, Error *err) {
    *kind = KIND_BYTES;
    if (file->size == 0) return true;
    if (format == TOKENS_BYTES) return take_as_bytes(file);
    if (format_chosen(format) != KIND_BYTES) return format_decode(file, *kind = format_chosen(format), err);
    if (!shard_kind(file, kind, err)) return false;
    if (*kind != KIND_BYTES && (format == TOKENS_AUTO || format == TOKENS_LLMC))
        return read_header(file, &SHARDS[*kind], err);
    if (*kind != KIND_BYTES)
        return error_usage(err, "--data-format uint%d: %s is %s with llm.c's header; leave --data-format out",
                           format == TOKENS_UINT16 ? 16 : 32, file->path, SHARDS[*kind].name);
    if (format == TOKENS_LLMC)
        return error_usage(err,
                           "--data-format llmc: %s is no token shard: these start with %u or %u; leave it out, or "
                           "give another format",
                           file->path, SHARDS[KIND_UINT16].magic, SHARDS[KIND_UINT32].magic);
    if (!check_foreign(file, err)) return false;
    if (format == TOKENS_AUTO && (*kind = format_recognised(file)) != KIND_BYTES)
        return format_decode(file, *kind, err);
    if (format != TOKENS_AUTO) return read_bare(file, *kind = format == TOKENS_UINT16 ? KIND_UINT16 : KIND_UINT32, err);
    Kind likely = looks_like(file);
    if (likely == KIND_BYTES) return take_as_bytes(file);
    const char *name = likely == KIND_UINT16 ? "uint16" : "uint32";
    return error_usage(err,
                       "%s looks like %s token numbers without a header, as nanoGPT writes them: give --data-format "
                       "%s, or --data-format bytes if it is something else",
                       file->path, name, name);
}
