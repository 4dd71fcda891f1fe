// Products with weights that lie in panels: the outputs that two vectors hold, together for all of the
// depth. Small products mostly wait for their weights, so each panel is fetched while the one before
// it is worked on. BF16 is multiplied as float.
#pragma once

#include <utility>
#include <vector>

#include "vectors.hpp"

// GELU with the error function of Abramowitz and Stegun 7.1.26, wrong by 1.5e-7 at most.
INLINE V gelu(V x) {
    const V size = larger(x, -x), t = 1 / (1 + size * 0.23164189f);
    V p = all(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = p * t + c;
    return larger(all(0), x) - 0.5f * size * p * t * exp2(x * x * -0.72134752f);
}

constexpr int PANEL = 2 * LANES;  // outputs whose weights lie together: [depth][PANEL]
constexpr int64_t DEEP = 384, MANY = 1 << 15;  // of the depth at once; numbers of rows at once
constexpr int64_t FETCHING = 4;  // tiles that share in fetching the next weights

// Rows of numbers as float, how far apart: where they lie, or copied side by side.
struct Floats {
    const float *data;
    int64_t step;
};
INLINE Floats as_floats(const float *numbers, int64_t, int64_t, int64_t step,
                        std::vector<float> &) {
    return {numbers, step};
}
INLINE Floats as_floats(const BF16 *numbers, int64_t rows, int64_t count, int64_t step,
                        std::vector<float> &space) {
    if (space.size() < static_cast<size_t>(rows * count)) space.resize(rows * count);
    float *to = space.data();
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < count; i++) to[r * count + i] = read(numbers + r * step + i);
    return {to, count};
}

// Products of some rows with one panel, which begin their sums [count][PANEL] or are added to them.
template <int count>
static void multiply_tile(int64_t depth, const float *a, int64_t a_row, const float *b, bool begin,
                          float *sums, const char *ahead, int64_t ahead_step) {
    V sum[count][2] = {};
    multiply(depth, a, a_row, 1, b, PANEL, sum, ahead, ahead_step);
#pragma GCC unroll 16
    for (int r = 0; r < count; r++) {
        V *left = (V *)(sums + r * PANEL), *right = left + 1;
        *left = begin ? sum[r][0] : *left + sum[r][0];
        *right = begin ? sum[r][1] : *right + sum[r][1];
    }
}

template <int... counts>
INLINE auto tile_of(int64_t count, std::integer_sequence<int, counts...>) {
    static constexpr decltype(&multiply_tile<1>) tiles[] = {multiply_tile<counts + 1>...};
    return tiles[count - 1];
}

// Fetch the cache lines of one panel's row each that will be written.
template <typename T>
INLINE void expect(int64_t rows, int64_t width, const T *out) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < PANEL; i += 64 / sizeof(T)) __builtin_prefetch(out + r * width + i, 1);
}

enum Ending { PLAIN, ADD, MULTIPLY, GELU };

// What follows the sums of one row and panel.
template <typename T>
INLINE void finish(int ending, const float *sums, const float *bias, const T *other, T *out) {
    for (int i = 0; i < PANEL; i += LANES) {
        V value = read_vector(sums + i);
        if (bias != nullptr) value += read_vector(bias + i);
        if (ending == ADD) value += read_vector(other + i);
        if (ending == MULTIPLY) value *= read_vector(other + i);
        if (ending == GELU) value = gelu(value);
        write_vector(out + i, value);
    }
}

// One of a batch of products [rows][depth] x [width / PANEL][depth][PANEL] -> [rows][width].
template <typename T>
struct Product {
    int64_t rows, depth, width;
    int ending;
    const T *a, *weights;
    const float *bias;
    const T *other;
    T *out;
};

// Some tiles, of ROWS rows or fewer, and some panels of a product. The depth is cut, so that its rows
// stay in the caches for all panels.
template <typename T>
INLINE void multiply_panels(const Product<T> p, int64_t tiles, int64_t from, int64_t to,
                            int64_t first, int64_t last) {
    struct alignas(BYTES) Panel {
        float sums[PANEL];
    };
    static thread_local std::vector<float> row_space, panel_space;
    static thread_local std::vector<Panel> sum_space;
    const int64_t start = p.rows * from / tiles, count = p.rows * to / tiles - start;
    const int64_t cuts = (p.depth + DEEP - 1) / DEEP, kept = cuts == 1 ? 0 : count;
    const int64_t shares = to - from < FETCHING ? to - from : FETCHING;
    const int64_t share = (PANEL * static_cast<int64_t>(sizeof(T)) + shares - 1) / shares;
    const size_t needed = count + kept * (last - 1 - first);
    if (sum_space.size() < needed) sum_space.resize(needed);
    for (int64_t cut = 0; cut < cuts; cut++) {
        const int64_t top = p.depth * cut / cuts, deep = p.depth * (cut + 1) / cuts - top;
        const Floats in = as_floats(p.a + start * p.depth + top, count, deep, p.depth, row_space);
        for (int64_t panel = first; panel < last; panel++) {
            const T *packed = p.weights + (panel * p.depth + top) * PANEL, *next = packed;
            next += (panel + 1 < last ? p.depth : (first - panel) * p.depth + deep) * PANEL;
            const float *b = as_floats(packed, 1, deep * PANEL, 0, panel_space).data;
            const float *bias = p.bias == nullptr ? nullptr : p.bias + panel * PANEL;
            for (int64_t tile = from; tile < to; tile++) {
                const int64_t row = p.rows * tile / tiles, end = p.rows * (tile + 1) / tiles;
                T *out = p.out + row * p.width + panel * PANEL;
                const T *other = p.other + row * p.width + panel * PANEL;
                float *sums = sum_space[(panel - first) * kept + row - start].sums;
                if (cut == cuts - 1) expect(end - row, p.width, out);
                // The last tiles fetch the weights that come next, the others nothing new.
                const int64_t left = to - 1 - tile, step = left < shares ? share : 0;
                const char *ahead = (const char *)(step ? (const void *)next : b);
                tile_of(end - row, std::make_integer_sequence<int, ROWS>{})(
                    deep, in.data + (row - start) * in.step, in.step, b, cut == 0, sums,
                    ahead + left * deep * step, step);
                for (int64_t r = 0; cut == cuts - 1 && r < end - row; r++)
                    finish(p.ending, sums + r * PANEL, bias, other + r * p.width,
                           out + r * p.width);
            }
        }
    }
}

// sizes: batch, rows, depth, width, and how far products of the batch lie apart in a and in out.
template <typename T>
void product(int threads, const int64_t *sizes, int ending, const T *a, const T *weights,
             const float *bias, const T *other, T *out) {
    const int64_t batch = sizes[0], rows = sizes[1], depth = sizes[2], width = sizes[3];
    const int64_t panels = width / PANEL, tiles = (rows + ROWS - 1) / ROWS;
    const int64_t some = MANY / depth < 4 * ROWS ? 4 * ROWS : MANY / depth;  // rows at once
    const int64_t blocks = (rows + some - 1) / some;
    const int64_t wanted = (4 * threads + batch * blocks - 1) / (batch * blocks);
    const int64_t parts = wanted < panels ? wanted : panels, works = batch * blocks * parts;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t work = 0; work < works; work++) {
        const int64_t part = work % parts, block = work / parts % blocks, n = work / parts / blocks;
        multiply_panels<T>({rows, depth, width, ending, a + n * sizes[4],
                            weights + n * depth * width, bias, other, out + n * sizes[5]},
                           tiles, tiles * block / blocks, tiles * (block + 1) / blocks,
                           panels * part / parts, panels * (part + 1) / parts);
    }
}
