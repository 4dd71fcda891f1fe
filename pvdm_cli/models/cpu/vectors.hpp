// Vectors of the width that the processor has, in the compiler's own types; numbers as float or BF16.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// Bytes of a vector; keys of attention at once, rows of a product at once, as registers allow.
#if defined(__AVX512F__)
constexpr int BYTES = 64, TILE = 12, ROWS = 14;
#elif defined(__AVX__)
constexpr int BYTES = 32, TILE = 6, ROWS = 6;
#else
constexpr int BYTES = 16, TILE = 8, ROWS = 6;
#endif
constexpr int LANES = BYTES / 4;

#define INLINE static inline __attribute__((always_inline))
typedef float V __attribute__((vector_size(BYTES), may_alias));
typedef int32_t I __attribute__((vector_size(BYTES)));
typedef float Loose __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(BYTES / 2)));

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
INLINE V read_vector(const float *at) { return *(const Loose *)at; }
INLINE V read_vector(const BF16 *at) {
    Halves bits;
    memcpy(&bits, at, sizeof bits);
    return (V)(__builtin_convertvector(bits, I) << 16);
}
INLINE void write_vector(float *at, V value) { *(Loose *)at = value; }
#if defined(__AVX512BF16__)
INLINE void write_vector(BF16 *at, V value) {
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)value);
    memcpy(at, &rounded, sizeof rounded);
}
#else
INLINE void write_vector(BF16 *at, V value) {
    typedef uint32_t U __attribute__((vector_size(BYTES)));
    const U bits = value != value ? (U)(I{} + 0x7fc00000) : (U)value;
    const Halves rounded = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Halves);
    memcpy(at, &rounded, sizeof rounded);
}
#endif
// Some of a vector, and after them `rest`.
template <typename T>
INLINE V read_some(const T *at, int64_t count, float rest = 0) {
    if (count >= LANES) return read_vector(at);
    V some = all(rest);
    for (int i = 0; i < count; i++) some[i] = read(at + i);
    return some;
}
#if defined(__AVX512F__)
INLINE V larger(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE V smaller(V a, V b) { return (V)_mm512_min_ps((__m512)a, (__m512)b); }
#else
INLINE V larger(V a, V b) { return a > b ? a : b; }
INLINE V smaller(V a, V b) { return a < b ? a : b; }
#endif

// 2^x for x up to 126: 2^round(x) as an exponent, times a polynomial. Relative error 1e-7, or 8e-5
// where results are rounded to BF16, which errs by up to 4e-3.
template <typename T = float>
INLINE V exp2(V x) {
    x = larger(all(-64), x);  // so that what it multiplies stays normal; in this order NaN stays
    const V shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds, and holds the integer in its low bits
    const V r = x - (shifted - 12582912.0f);
    V p;
    if constexpr (std::is_same_v<T, float>) {
        p = all(1.534581097e-04f);
        for (float c : {1.339993090e-03f, 9.618489072e-03f, 5.550328642e-02f, 2.402264625e-01f,
                        6.931471825e-01f, 1.0f})
            p = p * r + c;
    } else {
        p = all(5.517166898e-02f);
        for (float c : {2.426111222e-01f, 6.932609855e-01f, 9.999280735e-01f}) p = p * r + c;
    }
    return (V)((I)p + ((I)shifted << 23));
}

// The sum, and the largest, of a vector's numbers.
INLINE float total(V numbers) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) numbers[i] += numbers[i + half];
    return numbers[0];
}
INLINE float largest(V numbers) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            numbers[i] = numbers[i + half] > numbers[i] ? numbers[i + half] : numbers[i];
    return numbers[0];
}
// The largest size of `count` numbers; what is not a number is passed over.
template <typename T>
INLINE float largest(const T *numbers, int64_t count) {
    V most = V{};
    for (int64_t i = 0; i < count; i += LANES) {
        const V value = read_some(numbers + i, count - i);
        most = larger(larger(value, -value), most);
    }
    return largest(most);
}
