// Attention within the sentences of packed rows, and the column sums of its probabilities: one pass, no padding.
//
// Compiled at first use by prunekit/runtime/native.py for the instruction set of the machine; no library, not even C++'s.
// Each sentence is computed by itself in a fixed order, so a result does not depend on the batch, bit for bit.

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, COLUMNS = 4 };  // floats of a vector; vectors of a block of scores: 4 x 4 accumulators of 32 registers
#elif defined(__AVX2__)
enum { LANES = 8, COLUMNS = 2 };
#else
enum { LANES = 4, COLUMNS = 2 };
#endif
enum { QUERIES = 4 };

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Whole __attribute__((vector_size(LANES * 4)));

static inline Vector load(const float* from) { Vector v; memcpy(&v, from, sizeof v); return v; }
static inline void store(float* to, Vector v) { memcpy(to, &v, sizeof v); }
static inline Vector all(float x) { return Vector{} + x; }
static inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

static inline float widest(Vector v) {
    float most = v[0];
    for (int lane = 1; lane < LANES; ++lane) most = v[lane] > most ? v[lane] : most;
    return most;
}

static inline float total(Vector v) {
    float sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += v[lane];
    return sum;
}

// e^x for x <= 0, to about 1e-7 of itself: 2^n e^r with |r| <= ln(2) / 2, and Taylor's polynomial of e^r
static inline Vector exponential(Vector x) {
    x = larger(x, all(-87.0f));
    Vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded: floats that large have no fraction
    Vector r = x - n * 0.693359375f;  // ln(2) in two parts, the first of which is exact in few bits
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

struct Bf16 { uint16_t bits; };

static inline float number(float x) { return x; }
static inline float number(Bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static inline void put(float* to, float x) { *to = x; }
static inline void put(Bf16* to, float x) {  // rounds to nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, 4);
    to->bits = (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// scores[r][c] of R queries and C vectors of keys
template <int R, int C>
static inline void score_block(const float* query, int64_t size, const float* keys, int64_t width, float* scores) {
    Vector sum[R][C] = {};
    for (int64_t d = 0; d < size; ++d) {
        Vector key[C];
        for (int c = 0; c < C; ++c) key[c] = load(keys + d * width + c * LANES);
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) sum[r][c] += query[r * size + d] * key[c];
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(scores + r * width + c * LANES, sum[r][c]);
}

// mixed[r][c] = sum over tokens of probs[r][token] * values[token][c]
template <int R, int C>
static inline void mix_block(const float* probs, int64_t width, int64_t tokens, const float* values, int64_t room, float* mixed) {
    Vector sum[R][C] = {};
    for (int64_t j = 0; j < tokens; ++j)
        for (int c = 0; c < C; ++c) {
            Vector value = load(values + j * room + c * LANES);
            for (int r = 0; r < R; ++r) sum[r][c] += probs[r * width + j] * value;
        }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(mixed + r * room + c * LANES, sum[r][c]);
}

// R queries of one head: their scores, probabilities, outputs, and what they add to the column sums
template <int R, typename T>
static inline void queries(const T* query, int64_t stride, int64_t tokens, int64_t size, int64_t width, int64_t room,
                           const float* keys, const float* values, float* sums, float* scratch, T* out, int64_t out_stride) {
    float *given = scratch, *scores = given + QUERIES * room, *mixed = scores + QUERIES * width;
    for (int r = 0; r < R; ++r)
        for (int64_t d = 0; d < size; ++d) given[r * size + d] = number(query[r * stride + d]);
    int64_t column = 0;
    for (; column + COLUMNS * LANES <= width; column += COLUMNS * LANES)
        score_block<R, COLUMNS>(given, size, keys + column, width, scores + column);
    for (; column < width; column += LANES) score_block<R, 1>(given, size, keys + column, width, scores + column);
    float share[R];
    for (int r = 0; r < R; ++r) {
        float* row = scores + r * width;
        for (int64_t j = tokens; j < width; ++j) row[j] = -3.0e38f;
        Vector most = load(row);
        for (int64_t j = LANES; j < width; j += LANES) most = larger(most, load(row + j));
        float peak = widest(most);
        for (int64_t j = 0; j < width; j += LANES) store(row + j, exponential(load(row + j) - peak));
        for (int64_t j = tokens; j < width; ++j) row[j] = 0;
        Vector sum = {};
        for (int64_t j = 0; j < width; j += LANES) sum += load(row + j);
        share[r] = 1.0f / total(sum);
    }
    if (sums)
        for (int64_t j = 0; j < width; j += LANES) {
            Vector sum = load(sums + j);
            for (int r = 0; r < R; ++r) sum += load(scores + r * width + j) * share[r];
            store(sums + j, sum);
        }
    int64_t d = 0;
    for (; d + COLUMNS * LANES <= room; d += COLUMNS * LANES)
        mix_block<R, COLUMNS>(scores, width, tokens, values + d, room, mixed + d);
    for (; d < room; d += LANES) mix_block<R, 1>(scores, width, tokens, values + d, room, mixed + d);
    for (int r = 0; r < R; ++r)
        for (int64_t c = 0; c < size; ++c) put(out + r * out_stride + c, mixed[r * room + c] * share[r]);
}

// Asks for one head's queries, keys and values of a row ahead of time: rows lie a page apart, and no processor foresees that.
template <typename T>
static inline void expect(const T* query, int64_t hidden, int64_t size) {
    for (int part = 0; part < 3; ++part)
        for (int64_t d = 0; d < size; d += 64 / (int64_t)sizeof(T)) __builtin_prefetch(query + part * hidden + d);
}

static inline int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

template <typename T>
static void attend(const T* qkv, const int64_t* offsets, int64_t first, int64_t last, int64_t heads, int64_t size, T* out,
                   float* received, int64_t received_stride, float* scratch) {
    const int64_t hidden = heads * size, stride = 3 * hidden, room = padded(size), rows = offsets[last];
    for (int64_t sentence = first; sentence < last; ++sentence) {
        const int64_t start = offsets[sentence], tokens = offsets[sentence + 1] - start, width = padded(tokens);
        if (tokens == 0) continue;
        float *keys = scratch, *values = keys + size * width, *sums = values + tokens * room, *rest = sums + width;
        memset(sums, 0, width * sizeof(float));
        for (int64_t head = 0; head < heads; ++head) {
            const T* query = qkv + start * stride + head * size;
            for (int64_t d = 0; d < size; ++d)
                for (int64_t j = tokens; j < width; ++j) keys[d * width + j] = 0;
            for (int64_t j = 0; j < tokens; ++j) {
                const T *key = query + j * stride + hidden, *value = key + hidden;
                if (head + 1 < heads)
                    expect(query + j * stride + size, hidden, size);
                else if (start + tokens + j < rows)  // of the next sentence
                    expect(qkv + (start + tokens + j) * stride, hidden, size);
                for (int64_t d = 0; d < size; ++d) keys[d * width + j] = number(key[d]);
                for (int64_t d = 0; d < size; ++d) values[j * room + d] = number(value[d]);
                for (int64_t d = size; d < room; ++d) values[j * room + d] = 0;
            }
            T* to = out + start * hidden + head * size;
            float* votes = received ? sums : 0;
            int64_t row = 0;
            for (; row + QUERIES <= tokens; row += QUERIES)
                queries<QUERIES, T>(query + row * stride, stride, tokens, size, width, room, keys, values, votes, rest,
                                    to + row * hidden, hidden);
            for (; row < tokens; ++row)
                queries<1, T>(query + row * stride, stride, tokens, size, width, room, keys, values, votes, rest,
                              to + row * hidden, hidden);
        }
        if (received)
            for (int64_t j = 0; j < tokens; ++j) received[sentence * received_stride + j] = sums[j] / heads;
    }
}

// floats of scratch that sentences of up to so many tokens need
extern "C" int64_t prunekit_scratch(int64_t tokens, int64_t size) {
    const int64_t width = padded(tokens), room = padded(size);
    return size * width + tokens * room + width + QUERIES * (2 * room + width);
}

// Sentences first..last of rows [rows, 3 * heads * size], queries scaled already; out is [rows, heads * size].
// received [sentences, received_stride] gets the column sums, averaged over heads; it may be null.
extern "C" void prunekit_attend(const void* qkv, const int64_t* offsets, int64_t first, int64_t last, int64_t heads,
                                int64_t size, void* out, float* received, int64_t received_stride, float* scratch,
                                int32_t bf16) {
    if (bf16)
        attend((const Bf16*)qkv, offsets, first, last, heads, size, (Bf16*)out, received, received_stride, scratch);
    else
        attend((const float*)qkv, offsets, first, last, heads, size, (float*)out, received, received_stride, scratch);
}
