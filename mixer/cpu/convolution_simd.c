// Long convolutions' loops, vectorised: columns of tokens to rows of channels and back, products of spectra, sines.
#include "mixer/cpu/convolution.h"

#include "base/simd.h"
#include "layers/cpu/transpose.h"

// ---- columns and rows -----------------------------------------------------------------------------------------------

// The windows at token t of the channels from c on.
static vfloat window_at(const TileWindow *w, int64_t c, int64_t t) {
    return vload(w->gain + c) * vexp(vload(w->rate + c) * -(float)t) + vload(w->floor + c);
}

// SIMD_WIDTH channels' values of SIMD_WIDTH tokens from t on.
static void block_to_rows(float *rows, int64_t stride, const float *columns, int64_t width, int64_t t,
                          const TileWindow *window, int64_t c) {
    vfloat block[SIMD_WIDTH];
    for (int i = 0; i < SIMD_WIDTH; i++) {
        block[i] = vload(columns + i * width);
        if (window != NULL) block[i] *= window_at(window, c, t + i);
    }
    transpose_block(block);
    for (int i = 0; i < SIMD_WIDTH; i++) vstore(rows + i * stride, block[i]);
}

static void block_from_rows(float *columns, int64_t width, const float *rows, int64_t stride, int64_t t,
                            const TileWindow *window, int64_t c) {
    vfloat block[SIMD_WIDTH];
    for (int i = 0; i < SIMD_WIDTH; i++) block[i] = vload(rows + i * stride);
    transpose_block(block);
    for (int i = 0; i < SIMD_WIDTH; i++) {
        if (window != NULL) block[i] *= window_at(window, c, t + i);
        vstore(columns + i * width, block[i]);
    }
}

// The last tokens or channels, which fill no vector.
static void part_to_rows(float *rows, int64_t stride, const float *columns, int64_t width, int64_t begin, int64_t end,
                         int64_t channels, const TileWindow *window, int64_t first) {
    for (int64_t t = begin; t < end; t++) {
        vfloat scale = window != NULL ? window_at(window, first, t) : vset(1);
        for (int64_t c = 0; c < channels; c++) rows[c * stride + t] = columns[t * width + c] * scale[c];
    }
}

static void part_from_rows(float *columns, int64_t width, const float *rows, int64_t stride, int64_t begin, int64_t end,
                           int64_t channels, const TileWindow *window, int64_t first) {
    for (int64_t t = begin; t < end; t++) {
        vfloat scale = window != NULL ? window_at(window, first, t) : vset(1);
        for (int64_t c = 0; c < channels; c++) columns[t * width + c] = rows[c * stride + t] * scale[c];
    }
}

static void to_rows(float *rows, int64_t stride, const float *columns, int64_t width, int64_t T, int64_t channels,
                    const TileWindow *window) {
    for (int64_t c = 0; c < channels; c += SIMD_WIDTH) {
        int64_t some = channels - c < SIMD_WIDTH ? channels - c : SIMD_WIDTH, t = 0;
        float *its = rows + c * stride;
        for (; some == SIMD_WIDTH && t + SIMD_WIDTH <= T; t += SIMD_WIDTH)
            block_to_rows(its + t, stride, columns + t * width + c, width, t, window, c);
        part_to_rows(its, stride, columns + c, width, t, T, some, window, c);
    }
}

static void from_rows(float *columns, int64_t width, const float *rows, int64_t stride, int64_t T, int64_t channels,
                      const TileWindow *window) {
    for (int64_t c = 0; c < channels; c += SIMD_WIDTH) {
        int64_t some = channels - c < SIMD_WIDTH ? channels - c : SIMD_WIDTH, t = 0;
        const float *its = rows + c * stride;
        for (; some == SIMD_WIDTH && t + SIMD_WIDTH <= T; t += SIMD_WIDTH)
            block_from_rows(columns + t * width + c, width, its + t, stride, t, window, c);
        part_from_rows(columns + c, width, its, stride, t, T, some, window, c);
    }
}

// ---- spectra --------------------------------------------------------------------------------------------------------

static void product(float *restrict x, const float *restrict a, int64_t count, float scale) {
    for (int64_t i = 0; i < count; i++) {
        float re = x[2 * i] * scale, im = x[2 * i + 1] * scale;
        x[2 * i] = a[2 * i] * re - a[2 * i + 1] * im;
        x[2 * i + 1] = a[2 * i] * im + a[2 * i + 1] * re;
    }
}

static void conjugate_product(float *restrict x, const float *restrict a, int64_t count, float scale) {
    for (int64_t i = 0; i < count; i++) {
        float re = x[2 * i] * scale, im = x[2 * i + 1] * scale;
        x[2 * i] = a[2 * i] * re + a[2 * i + 1] * im;
        x[2 * i + 1] = a[2 * i] * im - a[2 * i + 1] * re;
    }
}

static void add_conjugate_product(float *restrict sum, const float *restrict x, const float *restrict a, int64_t count,
                                  float scale) {
    for (int64_t i = 0; i < count; i++) {
        float re = x[2 * i] * scale, im = x[2 * i + 1] * scale;
        sum[2 * i] += a[2 * i] * re + a[2 * i + 1] * im;
        sum[2 * i + 1] += a[2 * i] * im - a[2 * i + 1] * re;
    }
}

// ---- sines ----------------------------------------------------------------------------------------------------------

// sin(x + quarters pi / 2) for quarters 0 and 1, within 1.2e-7 for |x| < 20,000: x - n pi in [-pi/2, pi/2] by pi in
// three parts, of which n times the first two is exact, and a polynomial fitted there.
static vfloat sine_of(vfloat x, int quarters) {
    const vfloat round_to_integer = vset(12582912.0f); // 1.5 * 2^23: adding it leaves the integer in the low bits
    const float half = 0.5f * (float)quarters;
    vfloat shifted = (x * 0.318309886f + half) + round_to_integer;
    vfloat n = (shifted - round_to_integer) - half;
    vfloat r = ((x - n * 3.140625f) - n * 9.675025939941e-4f) - n * 1.509958025281e-7f;
    vfloat s = r * r;
    vfloat p = s * 2.634638122e-6f - 1.982270333e-4f;
    p = p * s + 8.333241567e-3f;
    p = p * s - 1.666666567e-1f;
    vfloat value = r + r * s * p;
    return (vfloat)((vbits)value ^ ((vbits)shifted << 31));
}

static vfloat sine_step(vfloat x, const vfloat *d_out) {
    x *= (float)FILTER_SINE;
    return d_out == NULL ? sine_of(x, 0) : sine_of(x, 1) * *d_out * (float)FILTER_SINE;
}

static void sine(float *out, const float *x, const float *d_out, int64_t count) {
    int64_t i = 0;
    for (; i + SIMD_WIDTH <= count; i += SIMD_WIDTH) {
        vfloat d = {0};
        if (d_out != NULL) d = vload(d_out + i);
        vstore(out + i, sine_step(vload(x + i), d_out != NULL ? &d : NULL));
    }
    for (; i < count; i++) {
        vfloat d = vset(d_out != NULL ? d_out[i] : 0);
        out[i] = sine_step(vset(x[i]), d_out != NULL ? &d : NULL)[0];
    }
}

static void features(float *f, int64_t first, int64_t rows, int64_t positions) {
    const float turn = 6.28318531f;
    for (int64_t i = 0; i < rows; i++, f += FILTER_FEATURES) {
        uint32_t t = (uint32_t)(first + i);
        for (int k = 0; k < FILTER_FEATURES; k++) { // angles in [-pi, pi), cosines a quarter of a period on
            uint32_t k2 = k < 2 ? 0 : (uint32_t)(k - 2), period = FILTER_LEAST_PERIOD << k2 / 2;
            uint32_t place = (t + (k2 & 1) * (period / 4) + period / 2) & (period - 1);
            f[k] = (float)((int32_t)place - (int32_t)(period / 2)) * (turn / (float)period);
        }
        for (int k = 0; k < FILTER_FEATURES; k += SIMD_WIDTH) vstore(f + k, sine_of(vload(f + k), 0));
        f[0] = 1;
        f[1] = (float)((double)(first + i) / (double)positions);
    }
}

const ConvolutionLoops SIMD_NAME(convolution_loops) = {
    to_rows, from_rows, product, conjugate_product, add_conjugate_product, sine, features};
