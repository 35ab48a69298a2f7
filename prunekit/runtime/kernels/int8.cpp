// The passes around an int8 product, one over the rows each: before it, quantise the activations; after it, turn the sums
// into floats with bias, GELU and residual. Each row is computed separately, so no result depends on the batch.

#include "vectors.hpp"

typedef int8_t Bytes __attribute__((vector_size(LANES)));

static inline float size_of(float x) { return x < 0 ? -x : x; }
static inline Vector size_of(Vector x) { return larger(x, -x); }

// Quantises rows first..last-1 of [rows, width] to integers from -127 to 127, with one scale per row. The scale is NaN if a
// number of the row is not finite, which makes everything computed from the row NaN.
extern "C" void prunekit_quantise(const float* rows, int64_t first, int64_t last, int64_t width, int8_t* whole, float* scale) {
    const int64_t even = width / LANES * LANES;
    for (int64_t r = first; r < last; ++r) {
        const float* row = rows + r * width;
        int8_t* to = whole + r * width;
        Vector most = {}, spoilt = {};
        for (int64_t c = 0; c < even; c += LANES) {
            const Vector x = load(row + c);
            most = larger(most, size_of(x));
            spoilt += x - x;  // 0, or NaN
        }
        float peak = widest(most), none = total(spoilt);
        for (int64_t c = even; c < width; ++c) peak = larger(peak, size_of(row[c])), none += row[c] - row[c];
        const float worth = larger(peak, 1e-12f) / 127;
        scale[r] = worth + none;
        if (none != 0) {
            memset(to, 0, width);
            continue;
        }
        for (int64_t c = 0; c < even; c += LANES) {
            const Bytes bytes = __builtin_convertvector(__builtin_convertvector(rounded(load(row + c) / worth), Whole), Bytes);
            memcpy(to + c, &bytes, sizeof bytes);
        }
        for (int64_t c = even; c < width; ++c) to[c] = (int8_t)rounded(row[c] / worth);
    }
}

// Loads a vector of which only `count` numbers exist; the others are zero
template <typename T>
static inline void few(T* to, const void* from, int64_t count) {
    *to = T{};
    if (count >= LANES)
        memcpy(to, from, sizeof *to);  // with a constant size this is one instruction
    else
        memcpy(to, from, count * 4);
}

// x Phi(x) with the exact normal distribution: erfc by formula 7.1.26 of Abramowitz and Stegun, to 1.5e-7
static inline Vector gelu(Vector x) {
    const Vector z = size_of(x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
    const Vector tail = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    const Vector half = 0.5f * tail * exponential(-z * z);  // the probability beyond |x|
    return x * (x < 0.0f ? half : 1.0f - half);
}

// Turns the sums [rows, width] of rows first..last-1, int32 if `whole`, into floats in place: times the scales of column and
// row, plus bias, then GELU if `curved`, then plus the residual [rows, width] if it is not null
extern "C" void prunekit_finish(void* sums, int32_t whole, int64_t first, int64_t last, int64_t width, const float* columns,
                                const float* rows, const float* bias, const float* residual, int32_t curved) {
    for (int64_t r = first; r < last; ++r)
        for (int64_t c = 0; c < width; c += LANES) {
            const int64_t left = width - c;
            char* place = (char*)sums + (r * width + c) * 4;
            Whole sum;
            few(&sum, place, left);
            Vector x, worth, more;
            memcpy(&x, &sum, sizeof x);
            if (whole) x = __builtin_convertvector(sum, Vector);
            few(&worth, columns + c, left), few(&more, bias + c, left);
            x = x * worth * rows[r] + more;
            if (curved) x = gelu(x);
            if (residual) few(&more, residual + r * width + c, left), x += more;
            if (left >= LANES)
                memcpy(place, &x, sizeof x);
            else
                memcpy(place, &x, left * 4);
        }
}
