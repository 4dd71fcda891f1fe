// Attention that reads queries, keys and values where a linear map left them, so that nothing is
// copied into the order of heads, and keeps its scores in the first-level cache. Lanes are queries:
// a key's or value's number is broadcast to all.
#include <cmath>
#include <vector>

#include "halves.hpp"

constexpr int QUERIES = 4 * LANES, KEYS = 8 * TILE;  // at once
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
template <typename N>
INLINE void score(int keys, int d, int width, const N *q, const typename Of<N>::Single *k,
                  N *scores, typename Of<N>::Vector *top) {
    typedef typename Of<N>::Vector Vector;
    constexpr int lanes = BYTES / sizeof(N);
    in_tiles(keys, [&](int64_t j, auto count) {
        for (int i = 0; i < width; i += 2 * lanes) {
            Vector sum[count][2] = {}, *most = top + i / lanes;
            multiply<N>(d, k + j * d, d, 1, q + i, QUERIES, sum);
            N *out = scores + j * QUERIES + i;
#pragma GCC unroll 16
            for (int r = 0; r < count; r++) {
                most[0] = larger(most[0], sum[r][0]);
                most[1] = larger(most[1], sum[r][1]);
                *(Vector *)(out + r * QUERIES) = sum[r][0];
                *(Vector *)(out + r * QUERIES + lanes) = sum[r][1];
            }
        }
    });
}

// Add values [keys][d], weighted by [keys][QUERIES], to what is kept of [d][QUERIES], or begin it.
template <typename N>
INLINE void mix(int keys, int d, int width, const N *weights, const typename Of<N>::Single *v,
                const V *kept, float *mixed) {
    constexpr int lanes = BYTES / sizeof(N), wide = 2 * lanes / LANES;
    for (int c = 0; c < d; c += 8)
        for (int i = 0; i < width; i += 2 * lanes) {
            typename Of<N>::Vector sum[8][2] = {};
            multiply<N>(keys, v + c, 1, d, weights + i, QUERIES, sum);
#pragma GCC unroll 8
            for (int r = 0; r < 8; r++) {
                V found[wide], *out = (V *)(mixed + (c + r) * QUERIES + i);
                widen(sum[r][0], found);
                widen(sum[r][1], found + wide / 2);
#pragma GCC unroll 4
                for (int w = 0; w < wide; w++)
                    out[w] = kept == nullptr ? found[w] : out[w] * kept[i / LANES + w] + found[w];
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

// Weighted sums [d][QUERIES] of n values [n][d], and the sums [QUERIES] of their weights, for queries
// [d][QUERIES]; softmax online, a block of keys at a time (Milakov and Gimelshein 2018).
template <typename N, typename T>
INLINE void attend_to_all(int d, int width, int64_t n, const N *queries,
                          const typename Of<N>::Single *keys,
                          const typename Of<N>::Single *values, float *mixed, V *total) {
    typedef typename Of<N>::Vector Vector;
    constexpr int lanes = BYTES / sizeof(N), wide = lanes / LANES;
    alignas(BYTES) N scores[KEYS * QUERIES];
    Vector top[QUERIES / lanes];
    for (Vector &each : top) each = Vector{} - (N)(std::is_same_v<N, float> ? 3e38f : 6e4f);
    for (int i = 0; i < QUERIES / LANES; i++) total[i] = V{};
    for (int64_t begin = 0; begin < n; begin += KEYS) {
        const int count = n - begin < KEYS ? n - begin : KEYS;
        Vector before[QUERIES / lanes];
        V kept[QUERIES / LANES];
        memcpy(before, top, sizeof top);
        score(count, d, width, queries, keys + begin * d, scores, top);
        for (int i = 0; i < width / lanes; i++) {
            const Vector most = top[i];
            Vector sum = Vector{};
#pragma GCC unroll 4
            for (int j = 0; j < count; j++) {
                Vector *at = (Vector *)(scores + j * QUERIES + i * lanes);
                *at = exp2<T>(*at - most);
                sum += *at;
            }
            V sums[wide];
            widen(sum, sums);
            widen(exp2<T>(before[i] - most), kept + i * wide);
            for (int w = 0; w < wide; w++) {
                V &so_far = total[i * wide + w];
                so_far = so_far * kept[i * wide + w] + sums[w];
            }
        }
        mix(count, d, width, scores, values + begin * d, begin ? kept : nullptr, mixed);
    }
}

// Keys and values [n][d] of a head, side by side; as FP16 too, or null, values there times `factor`.
struct Sides {
    const float *keys, *values;
    const Twice *short_keys, *short_values;
    float largest_key, factor;
};

// Attend for `here` queries from `first` on. D: numbers of a head where the compiler is to know it,
// else 0.
template <int D, typename T>
INLINE void attend_block(int head, int64_t first, int here, int64_t n, Rows<const T> q,
                         const Sides sides, Rows<T> out, const float *cos, const float *sin) {
    constexpr int SPACE = D ? D : MOST;
    const int d = D ? D : head, few = 2 * LANES;
    const int width = here <= few && sides.short_keys == nullptr ? few : QUERIES;
    alignas(BYTES) float queries[SPACE * QUERIES], mixed[SPACE * QUERIES];
    const float scale = 1.4426950408889634f / std::sqrt(static_cast<float>(d));
    if (here < width) memset(queries, 0, sizeof(float) * d * QUERIES);
    for (int i = 0; i < here; i++) {
        float row[SPACE];
        take(d, q[first + i], cos, sin, first + i, row);
        for (int c = 0; c < d; c++) queries[c * QUERIES + i] = scale * row[c];
    }
    V total[QUERIES / LANES];
    float factor = 1;
    bool halves = false;
#if HALVES
    // Scores that FP16 may not be able to hold are left to float.
    if (sides.short_keys != nullptr)
        halves = largest(queries, d * QUERIES) * sides.largest_key * d < 3e4f;
    if (halves) {
        alignas(BYTES) FP16 shorter[SPACE * QUERIES];
        for (int i = 0; i < d * QUERIES; i += LANES)
            write_vector(shorter + i, read_vector(queries + i));
        attend_to_all<FP16, T>(d, width, n, shorter, sides.short_keys, sides.short_values, mixed,
                               total);
        factor = sides.factor;
    }
#endif
    if (!halves)
        attend_to_all<float, T>(d, width, n, queries, sides.keys, sides.values, mixed, total);
    float *rows = queries;  // which are not needed any more
    for (int i = 0; i < here; i++)
        for (int c = 0; c < d; c++) rows[i * d + c] = mixed[c * QUERIES + i];
    for (int i = 0; i < here; i++) {
        const float part = 1 / (((const float *)total)[i] * factor), *row = rows + i * d;
        T *to = out[first + i];
        int c = 0;
        for (; c + LANES <= d; c += LANES) write_vector(to + c, read_vector(row + c) * part);
        for (; c < d; c++) write(to + c, row[c] * part);
    }
}

// Attend for the queries from `first` to before `last`, once keys and values are side by side.
template <int D, typename T>
void attend_some(int head, int64_t first, int64_t last, int64_t n, Rows<const T> q, Rows<const T> k,
                 Rows<const T> v, Rows<T> out, const float *cos, const float *sin) {
    static thread_local std::vector<float> space;
    const int d = D ? D : head;
    const int64_t size = n * d;
    if (space.size() < static_cast<size_t>(2 * size)) space.resize(2 * size);
    float *keys = space.data(), *values = keys + size;
    for (int64_t j = 0; j < n; j++) {
        take(d, k[j], cos, sin, j, keys + j * d);
        take<T>(d, v[j], nullptr, nullptr, j, values + j * d);
    }
    Sides sides = {keys, values, nullptr, nullptr, 0, 1};
#if HALVES
    if (!std::is_same_v<T, float> && n >= QUERIES) {
        static thread_local std::vector<Twice> short_space;
        const int64_t room = (size + LANES - 1) / LANES * LANES;
        if (short_space.size() < static_cast<size_t>(2 * room)) short_space.resize(2 * room);
        Twice *short_keys = short_space.data(), *short_values = short_keys + room;
        const float factor = below_16(largest(values, size));
        for (int64_t i = 0; i < size; i += LANES) {
            write_vector(short_keys + i, read_some(keys + i, size - i));
            write_vector(short_values + i, read_some(values + i, size - i) * factor);
        }
        sides = {keys, values, short_keys, short_values, largest(keys, size), factor};
    }
#endif
    for (; first < last; first += QUERIES)
        attend_block<D>(d, first, static_cast<int>(last - first < QUERIES ? last - first : QUERIES),
                        n, q, sides, out, cos, sin);
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

#define FOR(T, NAME)                                                                               \
    void attend_##NAME(int threads, const int64_t *sizes, const int64_t *strides, const T *q,      \
                       const T *k, const T *v, T *out, const float *cos, const float *sin) {       \
        attend(threads, sizes, strides, q, k, v, out, cos, sin);                                   \
    }
extern "C" {
FOR(float, float32)
FOR(BF16, bfloat16)
}
