// What is multiplied: float, or FP16 where the processor multiplies twice as many of them at once.
// FP16 has more digits than BF16, but goes only to 65,504, so that numbers are brought to a size
// first; and only a few of its products are summed in it, the rest as float.
#pragma once

#include "vectors.hpp"

#if defined(__AVX512FP16__)
#include <immintrin.h>
#define HALVES 1
typedef _Float16 FP16;
typedef FP16 W __attribute__((vector_size(BYTES), may_alias));
typedef FP16 LooseW __attribute__((vector_size(BYTES), aligned(2), may_alias));
#else
#define HALVES 0
#endif

// For numbers N: their vectors, and the form in which one is brought into all of a vector. FP16's
// is the number twice, which takes no more time than a float.
template <typename N>
struct Of;
template <>
struct Of<float> {
    typedef V Vector;
    typedef float Single;
};
INLINE V read_whole(const float *at) { return read_vector(at); }
INLINE V everywhere(float number) { return all(number); }
INLINE void widen(V vector, V *to) { *to = vector; }
struct Twice {
    int32_t bits;
};

#if HALVES
template <>
struct Of<FP16> {
    typedef W Vector;
    typedef Twice Single;
};
INLINE W read_whole(const FP16 *at) { return *(const LooseW *)at; }
INLINE W everywhere(Twice number) { return (W)(I{} + number.bits); }
INLINE void widen(W vector, V *to) {  // the left and the right half
    const __m512i bits = (__m512i)vector;
    to[0] = (V)_mm512_cvtxph_ps((__m256h)_mm512_castsi512_si256(bits));
    to[1] = (V)_mm512_cvtxph_ps((__m256h)_mm512_extracti64x4_epi64(bits, 1));
}
INLINE Halves narrowed(V value) { return (Halves)_mm512_cvtxps_ph((__m512)value); }
INLINE void write_vector(FP16 *at, V value) {
    const Halves bits = narrowed(value);
    memcpy(at, &bits, sizeof bits);
}
INLINE void write_vector(Twice *at, V value) {
    const I bits = __builtin_convertvector(narrowed(value), I), twice = bits | bits << 16;
    memcpy(at, &twice, sizeof twice);
}
INLINE W larger(W a, W b) { return (W)_mm512_max_ph((__m512h)a, (__m512h)b); }
// 2^x for x up to 15, relative error 2e-3.
template <typename T>
INLINE W exp2(W x) {
    const __m512h whole = _mm512_roundscale_ph((__m512h)x, _MM_FROUND_TO_NEAREST_INT);
    const W r = x - (W)whole;
    W p = W{} + (FP16)5.517166898e-02f;
    for (float c : {2.426111222e-01f, 6.932609855e-01f, 9.999280735e-01f}) p = p * r + (FP16)c;
    return (W)_mm512_scalef_ph((__m512h)p, whole);
}
#endif

// The power of two that brings a size to at least 8 and below 16; 2^100 at most.
INLINE float below_16(float size) {
    uint32_t bits;
    memcpy(&bits, &size, 4);
    const int32_t power = 130 - static_cast<int32_t>(bits >> 23);  // 3 less the size's exponent
    bits = static_cast<uint32_t>((power < 100 ? power : 100) + 127) << 23;
    memcpy(&size, &bits, 4);
    return size;
}

// sum[r] += over k of a[r, k] * b[k], for `count` rows of numbers a and rows of two vectors b; each
// step also asks for the cache line `ahead`, which then moves on. Every third row has a pointer, so
// that registers hold them all.
template <typename N, int count>
INLINE void multiply(int64_t depth, const typename Of<N>::Single *a, int64_t a_row, int64_t a_k,
                     const N *b, int64_t b_k, typename Of<N>::Vector (&sum)[count][2],
                     const char *ahead = nullptr, int64_t ahead_step = 0) {
    constexpr int thirds = (count + 2) / 3;
    const typename Of<N>::Single *at[thirds];
    for (int i = 0; i < thirds; i++) at[i] = a + 3 * i * a_row;
    for (const N *end = b + depth * b_k; b != end; b += b_k) {
        const auto left = read_whole(b), right = read_whole(b + BYTES / sizeof(N));
        if (ahead != nullptr) __builtin_prefetch(ahead, 0, 2), ahead += ahead_step;
#pragma GCC unroll 16
        for (int r = 0; r < count; r++) {
            const auto number = everywhere(at[r / 3][r % 3 * a_row]);
            sum[r][0] += left * number;
            sum[r][1] += right * number;
        }
#pragma GCC unroll 16
        for (int i = 0; i < thirds; i++) at[i] += a_k;
    }
}
