// WAV: sound. RIFF chunks in any order; PCM of 8, 16, 24 or 32 bits, floats of 32, or mu-law, named as such or by
// WAVE_FORMAT_EXTENSIBLE. Channels are averaged. A sample, at the file's rate, is a symbol: its 8-bit mu-law of ITU-T
// G.711, the byte as it is sent (silence is 0xff). A file is a document.
#include <math.h>
#include <string.h>

#include "dataloader/formats.h"

enum {
    END = 256,
    VOCABULARY,
    RIFF_HEADER = 12,
    CHUNK_HEADER = 8,
    PCM = 1,
    FLOATS = 3,
    MU_LAW = 7,
    EXTENSIBLE = 0xfffe,
    STREAMED = 0x7ffff000 // this and more, and 0: sizes of those who could not go back and write it
};

typedef struct Sound {
    uint32_t encoding, channels, bits;
    size_t frame;              // bytes of a sample of all channels
    const unsigned char *data; // NULL: none
    size_t size;
} Sound;

// A chunk's content as far as it lies in the file; `size` is what its header says.
typedef struct Chunk {
    const unsigned char *content; // NULL: none
    size_t size, here;
} Chunk;

static bool recognise(const unsigned char *bytes, size_t size) {
    return size >= RIFF_HEADER && memcmp(bytes, "RIFF", 4) == 0 && memcmp(bytes + 8, "WAVE", 4) == 0;
}

// The first chunk of this name.
static Chunk find_chunk(const TokenFile *file, const char *name) {
    size_t place = RIFF_HEADER;
    while (place <= file->size && file->size - place >= CHUNK_HEADER) {
        const unsigned char *chunk = file->bytes + place;
        size_t size = read32(chunk + 4), left = file->size - place - CHUNK_HEADER;
        if (memcmp(chunk, name, 4) == 0) return (Chunk){chunk + CHUNK_HEADER, size, size < left ? size : left};
        if (size > left) break;
        place += CHUNK_HEADER + size + size % 2;
    }
    return (Chunk){0};
}

static bool read_encoding(const TokenFile *file, Sound *sound, Error *err) {
    static const char guid[] = "\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"; // after the encoding's number
    Chunk fmt = find_chunk(file, "fmt ");
    if (fmt.content == NULL || fmt.here < 16)
        return error_set(err, "%s: a WAV file without a whole \"fmt \" chunk: damaged; copy it again", file->path);
    sound->encoding = read16(fmt.content);
    sound->channels = read16(fmt.content + 2);
    sound->frame = read16(fmt.content + 12);
    sound->bits = read16(fmt.content + 14);
    if (sound->encoding == EXTENSIBLE && fmt.here >= 40 && memcmp(fmt.content + 26, guid, 14) == 0)
        sound->encoding = read16(fmt.content + 24);
    if (sound->channels == 0 || sound->frame == 0)
        return error_set(err, "%s: a WAV file of %u channels and %zu bytes a frame: damaged; copy it again", file->path,
                         sound->channels, sound->frame);
    bool known = (sound->encoding == PCM && sound->bits % 8 == 0 && sound->bits >= 8 && sound->bits <= 32) ||
                 (sound->encoding == FLOATS && sound->bits == 32) || (sound->encoding == MU_LAW && sound->bits == 8);
    if (!known)
        return error_usage(err,
                           "%s: WAV of encoding %u with %u bits; read are PCM of 8, 16, 24 and 32 bits, floats of 32 "
                           "and mu-law: convert it, or give --data-format bytes to take it as it is",
                           file->path, sound->encoding, sound->bits);
    if (sound->frame == (size_t)sound->channels * sound->bits / 8) return true;
    return error_set(err, "%s: a WAV file of %u channels of %u bits in frames of %zu bytes: damaged; copy it again",
                     file->path, sound->channels, sound->bits, sound->frame);
}

// A size of 0 may be true as well: then the size of the whole file is told right.
static bool is_streamed(const TokenFile *file, size_t size) {
    return size >= STREAMED || (size == 0 && read32(file->bytes + 4) != file->size - 8);
}

static bool find_data(const TokenFile *file, Sound *sound, Error *err) {
    Chunk data = find_chunk(file, "data");
    if (data.content == NULL)
        return error_set(err, "%s: a WAV file without a \"data\" chunk: truncated or damaged; copy it again",
                         file->path);
    size_t left = file->size - (size_t)(data.content - file->bytes);
    bool streamed = (data.size > left || data.size == 0) && is_streamed(file, data.size);
    if (data.size > left && !streamed)
        return error_set(err, "%s: truncated: the header says %zu bytes of sound, but the file has %zu; copy it again",
                         file->path, data.size, left);
    sound->data = data.content;
    sound->size = streamed ? left - left % sound->frame : data.size;
    if (sound->size % sound->frame != 0)
        return error_set(err, "%s: %zu bytes of sound are no whole number of frames of %zu bytes; copy it again",
                         file->path, sound->size, sound->frame);
    return sound->size > 0 || error_set(err, "%s holds no sound; give a file that does", file->path);
}

// ---- samples --------------------------------------------------------------------------------------------------------

// G.711, of 16 bits: 132 added to the magnitude makes each segment's first value a power of two.
enum { BIAS = 132, LARGEST = 32635 };

static int to_mu_law(int sample) {
    int sign = sample < 0 ? 0x80 : 0, magnitude = sample < 0 ? -sample : sample, segment = 7;
    magnitude = (magnitude < LARGEST ? magnitude : LARGEST) + BIAS;
    while (segment > 0 && magnitude >> (segment + 7) == 0) segment--;
    return (sign | segment << 4 | (magnitude >> (segment + 3) & 15)) ^ 0xff;
}

static int from_mu_law(int byte) {
    int code = byte ^ 0xff, segment = code >> 4 & 7;
    int magnitude = ((((code & 15) << 3) + BIAS) << segment) - BIAS;
    return code & 0x80 ? -magnitude : magnitude;
}

static int from_float(const unsigned char *p) {
    uint32_t bits = read32(p);
    float value;
    memcpy(&value, &bits, sizeof value);
    if (isnan(value)) return 0;
    return value >= 1 ? 32767 : value <= -1 ? -32767 : (int)lrintf(32767 * value);
}

// As 16 bits: the upper ones of more.
static int sample_at(const unsigned char *p, const Sound *sound) {
    if (sound->encoding == FLOATS) return from_float(p);
    if (sound->encoding == MU_LAW) return from_mu_law(*p);
    if (sound->bits == 8) return (*p - 128) * 256; // the only ones without a sign
    return (int16_t)read16(p + sound->bits / 8 - 2);
}

static int mean_sample(const unsigned char *frame, const Sound *sound) {
    int64_t sum = 0;
    for (uint32_t channel = 0; channel < sound->channels; channel++)
        sum += sample_at(frame + channel * (sound->bits / 8), sound);
    return (int)(sum / (int64_t)sound->channels);
}

static bool decode(const TokenFile *file, Symbols *out, Error *err) {
    Sound sound = {0};
    if (!recognise(file->bytes, file->size))
        return error_usage(err,
                           "--data-format wav: %s is no WAV file: these start with RIFF and WAVE; leave it out, or "
                           "give another format",
                           file->path);
    if (!read_encoding(file, &sound, err) || !find_data(file, &sound, err)) return false;
    bool as_it_is = sound.encoding == MU_LAW && sound.channels == 1; // a zero has two codes
    for (size_t i = 0; i < sound.size && !out->failed; i += sound.frame)
        symbols_put(out, as_it_is ? sound.data[i] : to_mu_law(mean_sample(sound.data + i, &sound)));
    symbols_put(out, END);
    return true;
}

const Format wav_format = {.option = "wav",
                           .described = "sound in WAV",
                           .unit = "sample",
                           .units = "samples of sound",
                           .symbols = "samples of sound as 8-bit mu-law; end of recording",
                           .vocabulary = VOCABULARY,
                           .recognise = recognise,
                           .decode = decode};
