// Attention that reads queries, keys and values where a linear map left them, so that nothing is
// copied into the order of heads, and keeps its scores in the first-level cache. Lanes are queries:
// a key's or value's number is broadcast to all.
#pragma once

#include <cmath>
#include <vector>

#include "vectors.hpp"

constexpr int VECTORS = 4, QUERIES = VECTORS * LANES, KEYS = 5 * TILE;
constexpr int64_t MOST = 256;  // numbers of a head

// Call f with as many rows at once as there are left: f(first row, a constant, their count).
template <typename F>
INLINE void in_tiles(int64_t rows, F f) {
    int64_t r = 0;
    for (; r + TILE <= rows; r += TILE) f(r, std::integral_constant<int, TILE>{});
    for (; r + 4 <= rows; r += 4) f(r, std::integral_constant<int, 4>{});
    for (; r < rows; r++) f(r, std::integral_constant<int, 1>{});
}

// Scores [keys][QUERIES] of keys [keys][d] for queries [d][QUERIES], and their maxima so far.
INLINE void score(int keys, int d, int width, const float *q, const float *k, float *scores,
                  V *top) {
    in_tiles(keys, [&](int64_t j, auto count) {
        for (int i = 0; i < width; i += 2 * LANES) {
            V sum[count][2] = {}, *most = top + i / LANES;
            multiply(d, k + j * d, d, 1, q + i, QUERIES, sum);
            float *out = scores + j * QUERIES + i;
#pragma GCC unroll 16
            for (int r = 0; r < count; r++) {
                most[0] = larger(most[0], sum[r][0]);
                most[1] = larger(most[1], sum[r][1]);
                *(V *)(out + r * QUERIES) = sum[r][0];
                *(V *)(out + r * QUERIES + LANES) = sum[r][1];
            }
        }
    });
}

// Add values [keys][d], weighted by [keys][QUERIES], to [d][QUERIES].
INLINE void mix(int keys, int d, int width, const float *weights, const float *v, float *mixed) {
    for (int c = 0; c < d; c += 8)
        for (int i = 0; i < width; i += 2 * LANES) {
            V sum[8][2] = {};
            multiply(keys, v + c, 1, d, weights + i, QUERIES, sum);
            float *out = mixed + c * QUERIES + i;
#pragma GCC unroll 8
            for (int r = 0; r < 8; r++) {
                *(V *)(out + r * QUERIES) += sum[r][0];
                *(V *)(out + r * QUERIES + LANES) += sum[r][1];
            }
        }
}

// Copy a head's numbers as float; with tables of its place, turn neighbouring pairs by them.
template <typename T>
INLINE void take(int d, const T *from, const float *cos, const float *sin, int64_t place,
                 float *to) {
    for (int c = 0; c < d; c++) to[c] = read(from + c);
    if (cos != nullptr)
#pragma GCC unroll 8
        for (int c = 0; c < d; c += 8) {
            typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
            typedef int32_t Places __attribute__((vector_size(32)));
            const Eight x = *(Eight *)(to + c), signs = {-1, 1, -1, 1, -1, 1, -1, 1};
            const Eight partner = __builtin_shuffle(x, Places{1, 0, 3, 2, 5, 4, 7, 6});
            *(Eight *)(to + c) = x * *(Eight *)(cos + place * d + c) +
                               partner * signs * *(Eight *)(sin + place * d + c);
        }
}

// One head: rows of d numbers, `step` apart.
template <typename T>
struct Rows {
    T *data;
    int64_t step;
    T *operator[](int64_t i) const { return data + i * step; }
};

// Attend for `here` queries from `first` on over n keys and values [n][d]; softmax online, a block
// of keys at a time (Milakov and Gimelshein 2018). D: numbers of a head where the compiler is to
// know it, else 0.
template <int D, typename T>
INLINE void attend_block(int head, int64_t first, int here, int64_t n, Rows<const T> q,
                         const float *keys, const float *values, Rows<T> out, const float *cos,
                         const float *sin) {
    constexpr int SPACE = D ? D : MOST;
    const int d = D ? D : head, width = (here + 2 * LANES - 1) / (2 * LANES) * 2 * LANES;
    alignas(64) float queries[SPACE * QUERIES], mixed[SPACE * QUERIES], scores[KEYS * QUERIES];
    const float scale = 1.4426950408889634f / std::sqrt(static_cast<float>(d));
    for (int i = 0; i < width; i++) {
        float row[SPACE] = {};
        if (i < here) take(d, q[first + i], cos, sin, first + i, row);
        for (int c = 0; c < d; c++) queries[c * QUERIES + i] = scale * row[c];
    }
    V top[VECTORS], sum[VECTORS];
    for (int i = 0; i < VECTORS; i++) top[i] = all(-3e38f), sum[i] = V{};
    memset(mixed, 0, sizeof(float) * d * QUERIES);
    for (int64_t begin = 0; begin < n; begin += KEYS) {
        const int count = n - begin < KEYS ? n - begin : KEYS;
        V before[VECTORS];
        memcpy(before, top, sizeof top);
        score(count, d, width, queries, keys + begin * d, scores, top);
        for (int i = 0; i < width / LANES; i++) {
            const V most = top[i], kept = exp2(before[i] - most);
            V total = sum[i] * kept;
            for (int c = 0; c < d; c++) *(V *)(mixed + c * QUERIES + i * LANES) *= kept;
#pragma GCC unroll 4
            for (int j = 0; j < count; j++) {
                V *at = (V *)(scores + j * QUERIES + i * LANES);
                *at = exp2<T>(*at - most);
                total += *at;
            }
            sum[i] = total;
        }
        mix(count, d, width, scores, values + begin * d, mixed);
    }
    for (int i = 0; i < width / LANES; i++)
        for (int c = 0; c < d; c++) *(V *)(mixed + c * QUERIES + i * LANES) /= sum[i];
    for (int i = 0; i < here; i++)
        for (int c = 0; c < d; c++) write(out[first + i] + c, mixed[c * QUERIES + i]);
}

// Attend for the queries from `first` to before `last`, once keys and values are side by side.
template <int D, typename T>
void attend_some(int head, int64_t first, int64_t last, int64_t n, Rows<const T> q, Rows<const T> k,
                 Rows<const T> v, Rows<T> out, const float *cos, const float *sin) {
    static thread_local std::vector<float> space;
    const int d = D ? D : head;
    if (space.size() < static_cast<size_t>(2 * n * d)) space.resize(2 * n * d);
    float *keys = space.data(), *values = keys + n * d;
    for (int64_t j = 0; j < n; j++) {
        take(d, k[j], cos, sin, j, keys + j * d);
        take<T>(d, v[j], nullptr, nullptr, j, values + j * d);
    }
    for (; first < last; first += QUERIES)
        attend_block<D>(d, first, static_cast<int>(last - first < QUERIES ? last - first : QUERIES),
                        n, q, keys, values, out, cos, sin);
}

// A tensor [a, b, m, rows, d] by its first four strides.
template <typename T>
INLINE Rows<T> head_of(T *data, const int64_t *strides, int64_t a, int64_t b, int64_t m) {
    return {data + a * strides[0] + b * strides[1] + m * strides[2], strides[3]};
}

// sizes: a, b, m, queries, keys, d; strides: four each of q, k, v and out.
template <typename T>
void attend(int threads, const int64_t *sizes, const int64_t *strides, const T *q, const T *k,
            const T *v, T *out, const float *cos, const float *sin) {
    const int64_t b = sizes[1], m = sizes[2], n = sizes[3], d = sizes[5];
    const int64_t heads = sizes[0] * b * m, blocks = (n + QUERIES - 1) / QUERIES;
    const int64_t wanted = (8 * threads + heads - 1) / heads;  // so that no thread waits for long
    const int64_t parts = wanted < blocks ? wanted : blocks, works = heads * parts;
    const int64_t chunk = works / (16 * threads) + 1;
    auto *some = d == 16   ? attend_some<16, T>
                 : d == 32 ? attend_some<32, T>
                 : d == 64 ? attend_some<64, T>
                           : attend_some<0, T>;
#pragma omp parallel for num_threads(threads) schedule(dynamic, chunk)
    for (int64_t work = 0; work < works; work++) {
        const int64_t part = work % parts, head = work / parts;
        const int64_t first = blocks * part / parts * QUERIES;
        const int64_t last = blocks * (part + 1) / parts * QUERIES;
        const int64_t place[3] = {head / m / b, head / m % b, head % m};
        auto rows = [&](auto *data, int which) {
            return head_of(data, strides + 4 * which, place[0], place[1], place[2]);
        };
        some(static_cast<int>(d), first, last < n ? last : n, sizes[4], rows(q, 0), rows(k, 1),
             rows(v, 2), rows(out, 3), cos, sin);
    }
}
