// Group normalisation, FiLM and SiLU of channels-last features.
#pragma once

#include <cmath>
#include <vector>

#include "vectors.hpp"

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
template <typename T>
void group_norm(int threads, int64_t b, int64_t n, int64_t c, int64_t groups, float eps, const T *x,
                T *out, const T *weight, const T *bias, const T *film, int64_t film_step,
                int64_t repeat, int silu) {
    const int64_t parts = threads < groups ? threads : groups, members = c / groups;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t work = 0; work < b * parts; work++) {
        const int64_t row = work / parts, part = work % parts;
        const int64_t from = groups * part / parts * members;
        const int64_t run = groups * (part + 1) / parts * members - from;
        const T *in = x + row * n * c + from;
        T *to = out + row * n * c + from;
        std::vector<float> mean(run + LANES), gain(run + LANES), offset(run + LANES);
        sum_rows(n, run, mean.data(), [&](int64_t i, int64_t k) { return read(in + i * c + k); });
        share(run, members, n, mean.data());
        sum_rows(n, run, gain.data(), [&](int64_t i, int64_t k) {
            const float off = read(in + i * c + k) - mean[k];
            return off * off;
        });
        share(run, members, n, gain.data());
        for (int64_t k = 0; k < run; k++) {
            const T *told = film == nullptr ? film : film + row / repeat * film_step + from + k;
            const float scale = told == nullptr ? 1 : 1 + read(told);
            const float shift = told == nullptr ? 0 : read(told + c);
            gain[k] = scale * read(weight + from + k) / std::sqrt(gain[k] + eps);
            offset[k] = scale * read(bias + from + k) + shift;
        }
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < run; k += LANES) {
                const bool whole = run - k >= LANES;
                T some[LANES] = {};
                if (!whole) memcpy(some, in + i * c + k, sizeof(T) * (run - k));
                V y = read_vector(whole ? in + i * c + k : some) - read_vector(mean.data() + k);
                y = y * read_vector(gain.data() + k) + read_vector(offset.data() + k);
                if (silu) y /= 1 + exp2(smaller(y * -1.4426950408889634f, all(126)));
                write_vector(whole ? to + i * c + k : some, y);
                if (!whole) memcpy(to + i * c + k, some, sizeof(T) * (run - k));
            }
    }
}
