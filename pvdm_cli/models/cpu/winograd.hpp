// Images to Winograd's tiles and back (winograd.py).
#pragma once

#include "vectors.hpp"

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
template <int m, typename T>
void tiles_of(int threads, int64_t b, int64_t H, int64_t W, int64_t c, int64_t step, const T *x,
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
                in[i] = inside ? read_vector(x + ((image * H + y) * W + z) * c + k) : V{};
            }
            for (int i = 0; i < n; i++) apply<n, n>(matrix, in + i, n, half + i, n);
            for (int i = 0; i < n; i++) apply<n, n>(matrix, half + i * n, 1, out + i * n, 1);
            for (int i = 0; i < n * n; i++) *(Loose *)(values + i * step + tile * c + k) = out[i];
        }
    }
}

// Products [n * n, tiles, c], likewise, to images [b, H, W, c], with a bias [c].
template <int m, typename T>
void images_of(int threads, int64_t b, int64_t H, int64_t W, int64_t c, int64_t step,
               const float *products, const float *matrix, const float *bias, T *out) {
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
                    write_vector(out + ((image * H + y) * W + z) * c + k,
                                 found[i] + *(Loose *)(bias + k));
            }
        }
    }
}
