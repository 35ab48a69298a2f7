// Attention within each sentence of packed rows, with the column sums of its probabilities, in one pass without padding.
//
// Each sentence is computed separately and in a fixed order, so its result is bit for bit the same in any batch.

#include "vectors.hpp"

enum { QUERIES = 4, COLUMNS = LANES == 16 ? 4 : 2 };  // block of scores: with AVX-512, 4 x 4 accumulators in 32 registers
static const int32_t PLACES[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};  // indices of a vector's lanes

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

// scores[r][c] of R queries with C vectors of keys
template <int R, int C>
static inline void score_block(const float* query, int64_t size, int64_t room, const float* keys, int64_t width, float* scores) {
    Vector sum[R][C] = {};
    for (int64_t d = 0; d < size; ++d) {
        Vector key[C];
        for (int c = 0; c < C; ++c) key[c] = load(keys + d * width + c * LANES);
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) sum[r][c] += query[r * room + d] * key[c];
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

// Scores, probabilities and outputs of R queries of one head; adds their probabilities to the column sums
template <int R>
static inline void queries(const float* query, int64_t tokens, int64_t size, int64_t width, int64_t room, const float* keys,
                           const float* values, float* sums, float* scores, float* mixed) {
    int64_t column = 0;
    for (; column + COLUMNS * LANES <= width; column += COLUMNS * LANES)
        score_block<R, COLUMNS>(query, size, room, keys + column, width, scores + column);
    for (; column < width; column += LANES) score_block<R, 1>(query, size, room, keys + column, width, scores + column);
    Whole place;
    memcpy(&place, PLACES, sizeof place);
    for (int r = 0; r < R; ++r) {
        float* row = scores + r * width;
        float* end = row + width - LANES;  // only the last vector has columns without a key
        Vector most = load(end);
        most = place < (int32_t)(tokens - (width - LANES)) ? most : all(-3.0e38f);
        store(end, most);
        for (int64_t j = 0; j < width - LANES; j += LANES) most = larger(most, load(row + j));
        float peak = widest(most);
        Vector sum = exponential(load(end) - peak);
        sum = place < (int32_t)(tokens - (width - LANES)) ? sum : Vector{};
        store(end, sum);
        for (int64_t j = 0; j < width - LANES; j += LANES) {
            Vector e = exponential(load(row + j) - peak);
            store(row + j, e);
            sum += e;
        }
        float share = 1.0f / total(sum);
        for (int64_t j = 0; j < width; j += LANES) store(row + j, load(row + j) * share);
    }
    if (sums)
        for (int64_t j = 0; j < width; j += LANES) {
            Vector sum = load(sums + j);
            for (int r = 0; r < R; ++r) sum += load(scores + r * width + j);
            store(sums + j, sum);
        }
    int64_t d = 0;
    for (; d + COLUMNS * LANES <= room; d += COLUMNS * LANES)
        mix_block<R, COLUMNS>(scores, width, tokens, values + d, room, mixed + d);
    for (; d + 2 * LANES <= room; d += 2 * LANES) mix_block<R, 2>(scores, width, tokens, values + d, room, mixed + d);
    for (; d < room; d += LANES) mix_block<R, 1>(scores, width, tokens, values + d, room, mixed + d);
}

static inline int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// Copies one row, as floats, into a separate block for each head, zero-padded to `room`
template <typename T>
static inline void spread(const T* row, int64_t heads, int64_t size, int64_t room, int64_t apart, float* to) {
    for (int64_t head = 0; head < heads; ++head, row += size, to += apart) {
        for (int64_t d = 0; d < size; ++d) to[d] = number(row[d]);
        for (int64_t d = size; d < room; ++d) to[d] = 0;
    }
}

// Transposes keys [tokens, room] to [size, width], four at a time; the last key is repeated up to the width
static inline void transposed(const float* from, int64_t tokens, int64_t size, int64_t width, int64_t room, float* to) {
    for (int64_t j = 0; j < width; j += 4) {
        const float* key[4];
        for (int i = 0; i < 4; ++i) key[i] = from + (j + i < tokens ? j + i : tokens - 1) * room;
        for (int64_t d = 0; d < size; ++d) {
            const Quad four = {key[0][d], key[1][d], key[2][d], key[3][d]};
            memcpy(to + d * width + j, &four, sizeof four);
        }
    }
}

// With `one`, there is one query per sentence, in its own row, instead of one per token. The rows of a sentence are read and
// written in memory order: head by head, each access would be a page from the last, which defeats the hardware prefetcher.
template <typename T>
static void attend(const T* query, int64_t query_stride, bool one, const T* pair, int64_t pair_stride, const int64_t* offsets,
                   int64_t first, int64_t last, int64_t heads, int64_t size, T* out, float* received, int64_t received_stride,
                   float* scratch) {
    const int64_t hidden = heads * size, room = padded(size);
    for (int64_t sentence = first; sentence < last; ++sentence) {
        const int64_t start = offsets[sentence], tokens = offsets[sentence + 1] - start, width = padded(tokens);
        const int64_t asked = one ? 1 : tokens, asked_from = one ? sentence : start;
        float *sums = scratch, *scores = sums + width, *across = scores + QUERIES * width, *own = across + size * width;
        float *keys = own + heads * asked * room, *values = keys + heads * tokens * room, *mixed = values + heads * tokens * room;
        memset(sums, 0, width * sizeof(float));
        if (tokens == 0) memset(mixed, 0, heads * asked * room * sizeof(float));
        for (int64_t j = 0; j < larger(asked, tokens); ++j) {
            if (j < asked) spread(query + (asked_from + j) * query_stride, heads, size, room, asked * room, own + j * room);
            if (j == tokens) break;
            const T* key = pair + (start + j) * pair_stride;
            spread(key, heads, size, room, tokens * room, keys + j * room);
            spread(key + hidden, heads, size, room, tokens * room, values + j * room);
        }
        for (int64_t head = 0; tokens && head < heads; ++head) {
            const float *given = own + head * asked * room, *value = values + head * tokens * room;
            float* to = mixed + head * asked * room;
            transposed(keys + head * tokens * room, tokens, size, width, room, across);
            float* votes = received ? sums : 0;
            int64_t row = 0;
            for (; row + QUERIES <= asked; row += QUERIES)
                queries<QUERIES>(given + row * room, tokens, size, width, room, across, value, votes, scores, to + row * room);
            given += row * room, to += row * room;
            if (asked - row == 3) queries<3>(given, tokens, size, width, room, across, value, votes, scores, to);
            if (asked - row == 2) queries<2>(given, tokens, size, width, room, across, value, votes, scores, to);
            if (asked - row == 1) queries<1>(given, tokens, size, width, room, across, value, votes, scores, to);
        }
        for (int64_t j = 0; j < asked; ++j)
            for (int64_t head = 0; head < heads; ++head) {
                T* to = out + (asked_from + j) * hidden + head * size;
                for (int64_t d = 0; d < size; ++d) put(to + d, mixed[(head * asked + j) * room + d]);
            }
        if (received)
            for (int64_t j = 0; j < tokens; ++j) received[sentence * received_stride + j] = sums[j] / heads;
    }
}

// Number of scratch floats for sentences of up to `tokens` tokens
extern "C" int64_t prunekit_scratch(int64_t tokens, int64_t heads, int64_t size) {
    const int64_t width = padded(tokens), room = padded(size);
    return (1 + QUERIES + size) * width + 4 * heads * larger<int64_t>(tokens, 1) * room;
}

// Computes sentences first..last-1 of qkv [rows, 3 * heads * size], whose queries are already scaled; out is
// [rows, heads * size]. received [sentences, received_stride] gets the column sums, averaged over heads; it may be null.
extern "C" void prunekit_attend(const void* qkv, const int64_t* offsets, int64_t first, int64_t last, int64_t heads,
                                int64_t size, void* out, float* received, int64_t received_stride, float* scratch,
                                int32_t bf16) {
    const int64_t hidden = heads * size, stride = 3 * hidden;
    if (bf16)
        attend((const Bf16*)qkv, stride, false, (const Bf16*)qkv + hidden, stride, offsets, first, last, heads, size, (Bf16*)out,
               received, received_stride, scratch);
    else
        attend((const float*)qkv, stride, false, (const float*)qkv + hidden, stride, offsets, first, last, heads, size,
               (float*)out, received, received_stride, scratch);
}

// The same with one query per sentence, [sentences, heads * size], over keys and values [rows, 2 * heads * size]; out is
// [sentences, heads * size].
extern "C" void prunekit_attend_one(const void* query, const void* pair, const int64_t* offsets, int64_t first, int64_t last,
                                    int64_t heads, int64_t size, void* out, float* scratch, int32_t bf16) {
    const int64_t hidden = heads * size;
    if (bf16)
        attend((const Bf16*)query, hidden, true, (const Bf16*)pair, 2 * hidden, offsets, first, last, heads, size, (Bf16*)out, 0,
               0, scratch);
    else
        attend((const float*)query, hidden, true, (const float*)pair, 2 * hidden, offsets, first, last, heads, size, (float*)out,
               0, 0, scratch);
}
