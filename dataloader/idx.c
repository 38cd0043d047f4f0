// IDX, the format of MNIST: two bytes 0, the type of an element, the number of dimensions, each dimension as a
// big-endian uint32, then the elements. Images are 3 dimensions (images, rows, columns) or 4 (with colours, where the
// file has them) of unsigned bytes: a pixel's value is a symbol, in the order of the file, row by row, and an image is
// a document.
#include "dataloader/formats.h"

enum { END = 256, VOCABULARY, HEADER = 4, UNSIGNED_BYTE = 8, MOST_DIMENSIONS = 4 };

static size_t dimension(const unsigned char *bytes, int i) {
    const unsigned char *p = bytes + HEADER + 4 * i;
    return (size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | (size_t)p[3];
}

static size_t header_size(const unsigned char *bytes) { return HEADER + 4 * (size_t)bytes[3]; }

// Bytes of an element; 0: no type of this format's.
static size_t element_size(int type) {
    static const unsigned char size[16] = {[0x08] = 1, [0x09] = 1, [0x0b] = 2, [0x0c] = 4, [0x0d] = 4, [0x0e] = 8};
    return type < 16 ? size[type] : 0;
}

// Elements of dimensions `first` and on; false: more than can be counted.
static bool elements(const unsigned char *bytes, int first, size_t *count) {
    *count = 1;
    for (int i = first; i < bytes[3]; i++)
        if (__builtin_mul_overflow(*count, dimension(bytes, i), count)) return false;
    return true;
}

static bool has_magic(const unsigned char *bytes, size_t size) {
    return size >= HEADER && bytes[0] == 0 && bytes[1] == 0 && element_size(bytes[2]) > 0 && bytes[3] > 0 &&
           bytes[3] <= MOST_DIMENSIONS;
}

static bool has_size(const unsigned char *bytes, size_t size) {
    size_t count, all;
    return elements(bytes, 0, &count) && !__builtin_mul_overflow(count, element_size(bytes[2]), &all) &&
           size - header_size(bytes) == all;
}

// Images by their magic alone, so that damaged ones are told; the others, to be refused, by their size too.
static bool recognise(const unsigned char *bytes, size_t size) {
    if (!has_magic(bytes, size)) return false;
    if (bytes[2] == UNSIGNED_BYTE && bytes[3] >= 3) return true;
    return size >= header_size(bytes) && has_size(bytes, size);
}

static bool check_header(const TokenFile *file, Error *err) {
    const unsigned char *bytes = file->bytes;
    if (!has_magic(bytes, file->size))
        return error_usage(err,
                           "--data-format idx: %s is no IDX file of images: these start with the bytes 0 0 8 3; leave "
                           "it out, or give another format",
                           file->path);
    if (bytes[2] != UNSIGNED_BYTE)
        return error_usage(err,
                           "%s: IDX elements of type 0x%02x; only pixels of unsigned bytes (type 0x08) are read: "
                           "convert it, or give --data-format bytes to take it as it is",
                           file->path, bytes[2]);
    if (bytes[3] < 3)
        return error_usage(err,
                           "%s: IDX of %d dimension%s, such as labels, holds no images: leave it out, or give "
                           "--data-format bytes to take it as it is",
                           file->path, bytes[3], bytes[3] == 1 ? "" : "s");
    if (file->size < header_size(bytes))
        return error_set(err, "%s: truncated: %zu bytes are less than its header of %zu; copy it again", file->path,
                         file->size, header_size(bytes));
    if (has_size(bytes, file->size)) return true;
    size_t count;
    if (!elements(bytes, 0, &count))
        return error_set(err, "%s: its dimensions are more pixels than can be counted: damaged; copy it again",
                         file->path);
    size_t body = file->size - header_size(bytes);
    return error_set(err, "%s: %s: the header says %zu pixels, but %zu bytes follow it; copy it again", file->path,
                     body < count ? "truncated" : "too long", count, body);
}

static bool decode(const TokenFile *file, Symbols *out, Error *err) {
    size_t pixels;
    if (!check_header(file, err)) return false;
    if (!elements(file->bytes, 1, &pixels) || pixels == 0 || dimension(file->bytes, 0) == 0)
        return error_set(err, "%s holds no pixels: one of its dimensions is 0; give a file that does", file->path);
    const unsigned char *pixel = file->bytes + header_size(file->bytes), *end = file->bytes + file->size;
    while (pixel < end && !out->failed) {
        for (size_t i = 0; i < pixels; i++) symbols_put(out, *pixel++);
        symbols_put(out, END);
    }
    return true;
}

const Format idx_format = {.option = "idx",
                           .described = "images in IDX",
                           .unit = "pixel",
                           .units = "pixels",
                           .symbols = "pixels of 8 bits, row by row; end of image",
                           .vocabulary = VOCABULARY,
                           .recognise = recognise,
                           .decode = decode};
