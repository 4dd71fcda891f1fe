// Kernels of ours for the CPU, compiled where they run (native.py); inference only.
//
// Attention reads queries, keys and values where a linear map left them, so that nothing is copied
// into the order of heads, and keeps its scores in the first-level cache. Lanes are queries:
// a key's or value's number is broadcast to all. Vectors are the compiler's own, of the width the
// processor has.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
constexpr int BYTES = 64, TILE = 12;  // of a vector; keys at once, as registers allow
#elif defined(__AVX__)
constexpr int BYTES = 32, TILE = 6;
#else
constexpr int BYTES = 16, TILE = 8;
#endif
constexpr int LANES = BYTES / 4, VECTORS = 4, QUERIES = VECTORS * LANES, KEYS = 5 * TILE;
constexpr int64_t MOST = 256;  // numbers of a head

#define INLINE static inline __attribute__((always_inline))
typedef float V __attribute__((vector_size(BYTES), may_alias));
typedef int32_t I __attribute__((vector_size(BYTES)));
typedef float Loose __attribute__((vector_size(BYTES), aligned(4), may_alias));

struct BF16 {
    uint16_t bits;
};

INLINE float read(const float *at) { return *at; }
INLINE float read(const BF16 *at) {
    uint32_t bits = static_cast<uint32_t>(at->bits) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
INLINE void write(float *at, float value) { *at = value; }
INLINE void write(BF16 *at, float value) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) bits = 0x7fc00000;  // rounding could carry NaN over to a number
    at->bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE V all(float value) { return V{} + value; }
INLINE V larger(V a, V b) { return a > b ? a : b; }
INLINE V smaller(V a, V b) { return a < b ? a : b; }

// 2^x for x up to 126, relative error 1e-7: 2^round(x) as an exponent, times a polynomial.
INLINE V exp2(V x) {
    x = larger(all(-126), x);  // in this order NaN stays
    const V shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds, and holds the integer in its low bits
    const V r = x - (shifted - 12582912.0f);
    V p = all(1.534581097e-04f);
    for (float c : {1.339993090e-03f, 9.618489072e-03f, 5.550328642e-02f, 2.402264625e-01f,
                    6.931471825e-01f, 1.0f})
        p = p * r + c;
    return (V)((I)p + ((I)shifted << 23));
}

// sum[r] += over k of a[r, k] * b[k], for `count` rows of numbers a and rows of two vectors b.
template <int count>
INLINE void multiply(int64_t depth, const float *a, int64_t a_row, int64_t a_k, const float *b,
                     int64_t b_k, V (&sum)[count][2]) {
    for (int64_t k = 0; k < depth; k++) {
        const V left = *(V *)(b + k * b_k), right = *(V *)(b + k * b_k + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < count; r++) {
            const V number = all(a[r * a_row + k * a_k]);
            sum[r][0] += left * number;
            sum[r][1] += right * number;
        }
    }
}

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
                *at = exp2(*at - most);
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

// Sum of f over n rows of `run` channels, one sum for each channel.
template <typename F>
INLINE void sum_rows(int64_t n, int64_t run, float *sum, F f) {
    for (int64_t c = 0; c < run; c++) sum[c] = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < run; c++) sum[c] += f(i, c);
}

// Means over each group's members of sums per channel, given back to its channels.
INLINE void share(int64_t run, int64_t members, int64_t n, float *sum) {
    for (int64_t c = 0; c < run; c += members) {
        double total = 0;
        for (int64_t i = 0; i < members; i++) total += sum[c + i];
        for (int64_t i = 0; i < members; i++) sum[c + i] = static_cast<float>(total / (n * members));
    }
}

// Group normalisation of x [b, n, c], then FiLM, then SiLU. Each piece of work is some groups of
// one row, all their tokens. film: rows of scale and shift, each for `repeat` rows of x; or null.
static void group_norm(int threads, int64_t b, int64_t n, int64_t c, int64_t groups, float eps,
                       const float *x, float *out, const float *weight, const float *bias,
                       const float *film, int64_t film_step, int64_t repeat, int silu) {
    const int64_t parts = threads < groups ? threads : groups, members = c / groups;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t work = 0; work < b * parts; work++) {
        const int64_t row = work / parts, part = work % parts;
        const int64_t from = groups * part / parts * members;
        const int64_t run = groups * (part + 1) / parts * members - from;
        const float *in = x + row * n * c + from;
        float *to = out + row * n * c + from;
        std::vector<float> mean(run + LANES), gain(run + LANES), offset(run + LANES);
        sum_rows(n, run, mean.data(), [&](int64_t i, int64_t k) { return in[i * c + k]; });
        share(run, members, n, mean.data());
        sum_rows(n, run, gain.data(), [&](int64_t i, int64_t k) {
            const float off = in[i * c + k] - mean[k];
            return off * off;
        });
        share(run, members, n, gain.data());
        for (int64_t k = 0; k < run; k++) {
            const float *told = film == nullptr ? film : film + row / repeat * film_step + from + k;
            const float scale = told == nullptr ? 1 : 1 + told[0];
            const float shift = told == nullptr ? 0 : told[c];
            gain[k] = scale * weight[from + k] / std::sqrt(gain[k] + eps);
            offset[k] = scale * bias[from + k] + shift;
        }
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < run; k += LANES) {
                const size_t here = sizeof(float) * (run - k < LANES ? run - k : LANES);
                V y = {};
                if (here == sizeof y) y = *(Loose *)(in + i * c + k);
                else memcpy(&y, in + i * c + k, here);
                y -= *(Loose *)(mean.data() + k);
                y = y * *(Loose *)(gain.data() + k) + *(Loose *)(offset.data() + k);
                if (silu) y /= 1 + exp2(smaller(y * -1.4426950408889634f, all(126)));
                if (here == sizeof y) *(Loose *)(to + i * c + k) = y;
                else memcpy(to + i * c + k, &y, here);
            }
    }
}

// matrix [outs][ins] applied to vectors `in`, `step` apart, to vectors `out`, `to` apart.
template <int outs, int ins>
INLINE void apply(const float *matrix, const V *in, int step, V *out, int to) {
#pragma GCC unroll 6
    for (int i = 0; i < outs; i++) {
        V sum = V{};
#pragma GCC unroll 6
        for (int k = 0; k < ins; k++) sum += in[k * step] * matrix[i * ins + k];
        out[i * to] = sum;
    }
}

// Images [b, H, W, c] to what Winograd's tiles of m x m outputs multiply: [n * n, tiles, c], of
// which each of the n * n lies `step` numbers after the one before.
template <int m>
void tiles_of(int threads, int64_t b, int64_t H, int64_t W, int64_t c, int64_t step, const float *x,
              const float *matrix, float *values) {
    constexpr int n = m + 2;
    const int64_t rows = (H + m - 1) / m, columns = (W + m - 1) / m;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t tile = 0; tile < b * rows * columns; tile++) {
        const int64_t image = tile / columns / rows;
        const int64_t top = tile / columns % rows * m - 1, left = tile % columns * m - 1;
        for (int64_t k = 0; k < c; k += LANES) {
            V in[n * n], half[n * n], out[n * n];
            for (int i = 0; i < n * n; i++) {
                const int64_t y = top + i / n, z = left + i % n;
                const bool inside = y >= 0 && y < H && z >= 0 && z < W;
                in[i] = inside ? *(Loose *)(x + ((image * H + y) * W + z) * c + k) : V{};
            }
            for (int i = 0; i < n; i++) apply<n, n>(matrix, in + i, n, half + i, n);
            for (int i = 0; i < n; i++) apply<n, n>(matrix, half + i * n, 1, out + i * n, 1);
            for (int i = 0; i < n * n; i++) *(Loose *)(values + i * step + tile * c + k) = out[i];
        }
    }
}

// Products [n * n, tiles, c], likewise, to images [b, H, W, c], with a bias [c].
template <int m>
void images_of(int threads, int64_t b, int64_t H, int64_t W, int64_t c, int64_t step,
               const float *products, const float *matrix, const float *bias, float *out) {
    constexpr int n = m + 2;
    const int64_t rows = (H + m - 1) / m, columns = (W + m - 1) / m;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t tile = 0; tile < b * rows * columns; tile++) {
        const int64_t image = tile / columns / rows;
        const int64_t top = tile / columns % rows * m, left = tile % columns * m;
        for (int64_t k = 0; k < c; k += LANES) {
            V in[n * n], half[m * n], found[m * m];
            for (int i = 0; i < n * n; i++) in[i] = *(Loose *)(products + i * step + tile * c + k);
            for (int i = 0; i < n; i++) apply<m, n>(matrix, in + i, n, half + i, n);
            for (int i = 0; i < m; i++) apply<m, n>(matrix, half + i * n, 1, found + i * m, 1);
            for (int i = 0; i < m * m; i++) {
                const int64_t y = top + i / m, z = left + i % m;
                if (y < H && z < W)
                    *(Loose *)(out + ((image * H + y) * W + z) * c + k) =
                        found[i] + *(Loose *)(bias + k);
            }
        }
    }
}

extern "C" {
void attend_float32(int threads, const int64_t *sizes, const int64_t *strides, const float *q,
                    const float *k, const float *v, float *out, const float *cos,
                    const float *sin) {
    attend(threads, sizes, strides, q, k, v, out, cos, sin);
}
void attend_bfloat16(int threads, const int64_t *sizes, const int64_t *strides, const BF16 *q,
                     const BF16 *k, const BF16 *v, BF16 *out, const float *cos, const float *sin) {
    attend(threads, sizes, strides, q, k, v, out, cos, sin);
}
void group_norm_float32(int threads, const int64_t *sizes, float eps, const float *x, float *out,
                        const float *weight, const float *bias, const float *film, int silu) {
    group_norm(threads, sizes[0], sizes[1], sizes[2], sizes[3], eps, x, out, weight, bias, film,
               sizes[4], sizes[5], silu);
}
void tiles_of_images(int threads, const int64_t *sizes, const float *x, const float *matrix,
                     float *values) {
    (sizes[5] == 2 ? tiles_of<2> : tiles_of<4>)(threads, sizes[0], sizes[1], sizes[2], sizes[3],
                                                sizes[4], x, matrix, values);
}
void images_of_tiles(int threads, const int64_t *sizes, const float *products, const float *matrix,
                     const float *bias, float *out) {
    (sizes[5] == 2 ? images_of<2> : images_of<4>)(threads, sizes[0], sizes[1], sizes[2], sizes[3],
                                                  sizes[4], products, matrix, bias, out);
}
}
