// Vectors as wide as the instruction set allows, for the sources that prunekit/runtime/kernels/native.py compiles at first
// use. Uses no library, not even the C++ standard library.

#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16 };  // floats of a vector
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef float Quad __attribute__((vector_size(16)));
typedef int32_t Whole __attribute__((vector_size(LANES * 4)));

static inline Vector load(const float* from) { Vector v; memcpy(&v, from, sizeof v); return v; }
static inline void store(float* to, Vector v) { memcpy(to, &v, sizeof v); }
static inline Vector all(float x) { return Vector{} + x; }
template <typename T>
static inline T larger(T a, T b) { return a > b ? a : b; }

// The maximum and the sum of a vector's floats, by repeated halving: one by one, each step would wait for the one before.
static inline float widest(Vector v) {
    Quad part[LANES / 4];
    memcpy(part, &v, sizeof v);
    for (int left = LANES / 8; left; left /= 2)
        for (int i = 0; i < left; ++i) part[i] = larger(part[i], part[i + left]);
    return larger(larger(part[0][0], part[0][1]), larger(part[0][2], part[0][3]));
}

static inline float total(Vector v) {
    Quad part[LANES / 4];
    memcpy(part, &v, sizeof v);
    for (int left = LANES / 8; left; left /= 2)
        for (int i = 0; i < left; ++i) part[i] += part[i + left];
    return (part[0][0] + part[0][1]) + (part[0][2] + part[0][3]);
}

// Rounds to the nearest integer, ties to even, for numbers below 2^22: the added constant is so large that the sum has no
// fraction
template <typename T>
static inline T rounded(T x) { return (x + 12582912.0f) - 12582912.0f; }

// e^x for x <= 0, with a relative error of about 1e-7: 2^n e^r with |r| <= ln(2) / 2, and the Taylor polynomial of e^r
static inline Vector exponential(Vector x) {
    x = larger(x, all(-87.0f));
    Vector n = rounded(x * 1.44269504f);
    Vector r = x - n * 0.693359375f;  // ln(2) in two parts, the first of which has few bits, so that n times it is exact
    r = r - n * -2.12194440e-4f;
    Vector e = all(1.0f / 5040);
    e = e * r + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    Whole power = (__builtin_convertvector(n, Whole) + 127) << 23;
    Vector scale;
    memcpy(&scale, &power, sizeof scale);
    return e * scale;
}
