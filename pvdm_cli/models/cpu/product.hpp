// Products with weights that lie in panels: the outputs that two vectors hold, together for all of the
// depth. Small products mostly wait for their weights, so each panel is fetched while the one before
// it is worked on. Features of float or BF16 are multiplied as the weights lie: as float, which
// weights of BF16 become, or as FP16.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "halves.hpp"

// GELU with the error function of Abramowitz and Stegun 7.1.26, wrong by 1.5e-7 at most.
INLINE V gelu(V x) {
    const V size = larger(x, -x), t = 1 / (1 + size * 0.23164189f);
    V p = all(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = p * t + c;
    return larger(all(0), x) - 0.5f * size * p * t * exp2(x * x * -0.72134752f);
}

template <typename N>
constexpr int PANEL = 2 * BYTES / sizeof(N);  // outputs whose weights lie together: [depth][PANEL]
template <typename N>
constexpr int64_t DEEP = 1536 / sizeof(N);  // of the depth at once
constexpr int64_t MANY = 1 << 15;  // numbers of rows at once
constexpr int64_t FETCHING = 4;    // tiles that share in fetching the next weights
constexpr int64_t SUMMED = 128;    // products that are summed in FP16

// What normalises rows before they are multiplied: gain and shift of each number; or null.
template <typename T>
struct LayerNorm {
    const T *gain, *shift;
    float eps;
};

// Rows as they are multiplied, `step` apart, where they lie or copied side by side. Those of FP16
// are each brought to below 16 by a power of two, which `scales` undo: with weights below 16 too, no
// sum of SUMMED products is more than 32,768.
template <typename N>
struct Taken {
    const typename Of<N>::Single *data;
    int64_t step;
    const float *scales;
};
template <typename N>
struct Space {
    std::vector<typename Of<N>::Single> numbers;
    std::vector<float> scales, row, gain, shift;
};
template <typename T>
INLINE T *room(std::vector<T> &space, int64_t count) {
    if (space.size() < static_cast<size_t>(count)) space.resize(count);
    return space.data();
}
template <typename T>
INLINE float *copied(const T *numbers, int64_t count, float factor, std::vector<float> &space) {
    float *to = room(space, count + LANES);
    for (int64_t i = 0; i < count; i++) to[i] = factor * read(numbers + i);
    return to;
}

// Read a row as float; its mean, and the inverse of its deviation.
template <typename T>
INLINE float normalised(const T *from, int64_t depth, float eps, float *row, float &mean) {
    V sum = V{}, squares = V{};
    for (int64_t k = 0; k < depth; k += LANES) {
        const V value = read_some(from + k, depth - k);
        write_vector(row + k, value);
        sum += value;
    }
    mean = total(sum) / depth;
    for (int64_t k = 0; k < depth; k += LANES) {
        const V off = read_some(row + k, depth - k, mean) - mean;
        squares += off * off;
    }
    return 1 / std::sqrt(total(squares) / depth + eps);
}

// Of rows of `step` numbers those from `top` on, `depth` of each.
template <typename N, typename T>
INLINE Taken<N> take_rows(const T *rows, int64_t count, int64_t top, int64_t depth, int64_t step,
                          const LayerNorm<T> norm, Space<N> &space) {
    constexpr bool halves = !std::is_same_v<N, float>;
    if constexpr (std::is_same_v<N, T>)
        if (norm.gain == nullptr) return {rows + top, step, nullptr};
    const int64_t wide = (depth + LANES - 1) / LANES * LANES;
    auto *to = room(space.numbers, count * wide);
    float *const scales = room(space.scales, count), *const row = room(space.row, step + 2 * LANES);
    float factor = 1, *gains = nullptr, *shifts = nullptr;
    if (norm.gain != nullptr) {
        // No number is more than the root of their count from the mean, in deviations.
        if (halves)
            factor = below_16(std::sqrt(static_cast<float>(step)) * largest(norm.gain, step) +
                              largest(norm.shift, step));
        gains = copied(norm.gain, step, factor, space.gain) + top;
        shifts = copied(norm.shift, step, factor, space.shift) + top;
    }
    for (int64_t r = 0; r < count; r++, rows += step, to += wide) {
        if (gains != nullptr) {
            float mean;
            const float steepness = normalised(rows, step, norm.eps, row, mean);
            for (int64_t k = 0; k < depth; k += LANES)
                write_vector(to + k, (read_vector(row + top + k) - mean) * steepness *
                                             read_vector(gains + k) +
                                         read_vector(shifts + k));
        } else {
            V most = V{};
            for (int64_t k = 0; k < depth; k += LANES) {
                const V value = read_some(rows + top + k, depth - k);
                write_vector(halves ? row + k : (float *)to + k, value);
                most = larger(larger(value, -value), most);  // what is not a number is passed over
            }
            if constexpr (halves) {
                factor = below_16(largest(most));
                for (int64_t k = 0; k < depth; k += LANES)
                    write_vector(to + k, read_vector(row + k) * factor);
            }
        }
        scales[r] = 1 / factor;
    }
    return {space.numbers.data(), wide, scales};
}

// Products of some rows with one panel, which begin their sums [count][PANEL] or are added to them.
template <typename N, int count>
static void multiply_tile(int64_t depth, const typename Of<N>::Single *a, int64_t a_row,
                          const float *scales, const N *b, bool begin, float *sums,
                          const char *ahead, int64_t ahead_step) {
    constexpr int width = PANEL<N> / LANES;
    typename Of<N>::Vector sum[count][2] = {};
    multiply<N>(depth, a, a_row, 1, b, PANEL<N>, sum, ahead, ahead_step);
#pragma GCC unroll 16
    for (int r = 0; r < count; r++) {
        V found[width], *to = (V *)(sums + r * PANEL<N>);
        widen(sum[r][0], found);
        widen(sum[r][1], found + width / 2);
#pragma GCC unroll 4
        for (int i = 0; i < width; i++) {
            if (!std::is_same_v<N, float>) found[i] *= scales[r];
            to[i] = begin ? found[i] : to[i] + found[i];
        }
    }
}

template <typename N, int... counts>
INLINE auto tile_of(int64_t count, std::integer_sequence<int, counts...>) {
    static constexpr decltype(&multiply_tile<N, 1>) tiles[] = {multiply_tile<N, counts + 1>...};
    return tiles[count - 1];
}

// Fetch the cache lines of one panel's row each that will be written.
template <typename T>
INLINE void expect(int64_t rows, int64_t width, int panel, const T *out) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < panel; i += 64 / sizeof(T)) __builtin_prefetch(out + r * width + i, 1);
}

enum Ending { PLAIN, ADD, MULTIPLY, GELU, GEGLU };

// What follows the sums of one row and panel.
template <typename O, typename T>
INLINE void finish(int ending, int panel, const float *sums, const float *scales, const float *bias,
                   const O *other, T *out) {
    for (int i = 0; i < panel; i += LANES) {
        V value = read_vector(sums + i);
        if (scales != nullptr) value *= read_vector(scales + i);
        if (bias != nullptr) value += read_vector(bias + i);
        if (ending == ADD) value += read_vector(other + i);
        if (ending == MULTIPLY) value *= read_vector(other + i);
        if (ending == GELU) value = gelu(value);
        write_vector(out + i, value);
    }
}

// One of a batch of products [rows][depth] x [width / PANEL][depth][PANEL] -> [rows][width]; weights
// of FP16 have a scale for each output. GEGLU: panels of gates and of values take turns, and each two
// give one of [rows][width / 2].
template <typename T, typename U>
struct Product {
    int64_t rows, depth, width;
    int ending;
    const T *a;
    const U *weights;
    const float *scales, *bias;
    const T *other;
    LayerNorm<T> norm;
    T *out;
};

// What weights are multiplied as, and a panel of them so.
template <typename U>
using Multiplied = std::conditional_t<std::is_same_v<U, BF16>, float, U>;
template <typename U>
INLINE const Multiplied<U> *take_panel(const U *weights, int64_t count, Space<float> &space) {
    if constexpr (std::is_same_v<U, BF16>)
        return take_rows<float, BF16>(weights, 1, 0, count, 0, {}, space).data;
    else
        return weights;
}

// Some tiles, of ROWS rows or fewer, and some panels of a product. The depth is cut, so that its rows
// stay in the caches for all panels.
template <typename T, typename U>
INLINE void multiply_panels(const Product<T, U> p, int64_t tiles, int64_t from, int64_t to,
                            int64_t first, int64_t last) {
    typedef Multiplied<U> N;
    constexpr int P = PANEL<N>;
    constexpr int64_t summed = std::is_same_v<N, float> ? DEEP<N> : SUMMED;
    struct alignas(BYTES) Panel {
        float sums[P];
    };
    static thread_local Space<N> row_space;
    static thread_local Space<float> panel_space;
    static thread_local std::vector<Panel> sum_space;
    const int64_t start = p.rows * from / tiles, count = p.rows * to / tiles - start;
    const int64_t cuts = (p.depth + DEEP<N> - 1) / DEEP<N>, pair = p.ending == GEGLU ? 2 : 1;
    const int64_t shares = to - from < FETCHING ? to - from : FETCHING;
    const int64_t share = (P * static_cast<int64_t>(sizeof(U)) + shares - 1) / shares;
    const int64_t kept = cuts > 1 ? last - first : pair;  // panels
    Panel *const all_sums = room(sum_space, kept * count);
    const T *const rows = p.a + start * p.depth;
    for (int64_t cut = 0; cut < cuts; cut++) {
        const int64_t top = p.depth * cut / cuts, deep = p.depth * (cut + 1) / cuts - top;
        const Taken<N> in = take_rows<N>(rows, count, top, deep, p.depth, p.norm, row_space);
        for (int64_t panel = first; panel < last; panel++) {
            const U *packed = p.weights + (panel * p.depth + top) * P, *next = packed;
            next += (panel + 1 < last ? p.depth : (first - panel) * p.depth + deep) * P;
            const N *b = take_panel(packed, deep * P, panel_space);
            const float *bias = p.bias == nullptr ? nullptr : p.bias + panel * P;
            const float *scales = p.scales == nullptr ? nullptr : p.scales + panel * P;
            const bool gate = pair == 2 && panel % 2 == 0, done = cut == cuts - 1;
            for (int64_t tile = from; tile < to; tile++) {
                const int64_t row = p.rows * tile / tiles, end = p.rows * (tile + 1) / tiles;
                const int64_t place = row * (p.width / pair) + panel / pair * P;
                T *out = p.out + place;
                Panel *const sums = all_sums + (panel - first) % kept * count + row - start;
                if (done && !gate) expect(end - row, p.width / pair, P, out);
                // The last tiles fetch the weights that come next, the others nothing new.
                const int64_t left = to - 1 - tile, step = left < shares ? share : 0;
                const char *ahead = (const char *)(step ? (const void *)next : b);
                const auto multiply_rows =
                    tile_of<N>(end - row, std::make_integer_sequence<int, ROWS>{});
                for (int64_t k = 0; k < deep; k += summed)
                    multiply_rows(deep - k < summed ? deep - k : summed,
                                  in.data + (row - start) * in.step + k, in.step,
                                  in.scales + row - start, b + k * P, cut + k == 0, sums->sums,
                                  ahead + (left * deep + k) * step, step);
                for (int64_t r = 0; done && r < end - row; r++) {
                    float *found = sums[r].sums;
                    T *to_row = out + r * (p.width / pair);
                    if (gate)
                        finish(GELU, P, found, scales, bias, found, found);
                    else if (pair == 2)
                        finish(MULTIPLY, P, found, scales, bias, sums[r - count].sums, to_row);
                    else
                        finish(p.ending, P, found, scales, bias, p.other + place + r * p.width,
                               to_row);
                }
            }
        }
    }
}

// sizes: batch, rows, depth, width, and how far products of the batch lie apart in a and in out.
template <typename T, typename U>
void product(int threads, const int64_t *sizes, int ending, const T *a, const U *weights,
             const float *scales, const float *bias, const T *other, const LayerNorm<T> norm,
             T *out) {
    constexpr int P = PANEL<Multiplied<U>>;
    const int64_t batch = sizes[0], rows = sizes[1], depth = sizes[2], width = sizes[3];
    const int64_t pair = ending == GEGLU ? 2 : 1;
    const int64_t panels = width / P / pair, tiles = (rows + ROWS - 1) / ROWS;
    const int64_t some = MANY / depth < 4 * ROWS ? 4 * ROWS : MANY / depth;  // rows at once
    const int64_t blocks = (rows + some - 1) / some;
    // No more parts than let threads end together, or nearly: each of them takes its rows again.
    int64_t parts = 1, works = batch * blocks;
    while (parts < panels && works % threads && works < 4 * threads)
        works = batch * blocks * ++parts;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t work = 0; work < works; work++) {
        const int64_t part = work % parts, block = work / parts % blocks, n = work / parts / blocks;
        multiply_panels<T, U>(
            {rows, depth, width, ending, a + n * sizes[4], weights + n * depth * width,
             scales == nullptr ? nullptr : scales + n * width, bias, other, norm, out + n * sizes[5]},
            tiles, tiles * block / blocks, tiles * (block + 1) / blocks,
            panels * part / parts * pair, panels * (part + 1) / parts * pair);
    }
}
