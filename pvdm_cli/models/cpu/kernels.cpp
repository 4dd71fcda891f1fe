// Kernels of ours for the CPU but for attention, compiled where they run and called by native.py;
// inference only.

#include "norm.hpp"
#include "product.hpp"
#include "winograd.hpp"

// Whether products of bfloat16 have instructions of their own that are worth it: Intel's without
// tiles take twice as long as float's.
#if defined(__AMX_BF16__) || defined(__ARM_FEATURE_BF16)
static int fast_bfloat16() { return 1; }
#elif defined(__AVX512BF16__)
static int fast_bfloat16() { return __builtin_cpu_is("amd"); }
#else
static int fast_bfloat16() { return 0; }
#endif

extern "C" {
int panel_width() { return PANEL<float>; }
int has_fast_bfloat16() { return fast_bfloat16(); }
int has_fast_float16() { return HALVES; }

#define FOR(T, NAME)                                                                               \
    void group_norm_##NAME(int threads, const int64_t *sizes, float eps, const T *x, T *out,       \
                           const T *weight, const T *bias, const T *film, int silu) {              \
        group_norm(threads, sizes[0], sizes[1], sizes[2], sizes[3], eps, x, out, weight, bias,     \
                   film, sizes[4], sizes[5], silu);                                                \
    }                                                                                              \
    void tiles_of_images_##NAME(int threads, const int64_t *sizes, const T *x,                     \
                                const float *matrix, float *values) {                              \
        (sizes[5] == 2 ? tiles_of<2, T> : tiles_of<4, T>)(threads, sizes[0], sizes[1], sizes[2],   \
                                                          sizes[3], sizes[4], x, matrix, values);  \
    }                                                                                              \
    void images_of_tiles_##NAME(int threads, const int64_t *sizes, const float *products,          \
                                const float *matrix, const float *bias, T *out) {                  \
        (sizes[5] == 2 ? images_of<2, T> : images_of<4, T>)(threads, sizes[0], sizes[1], sizes[2], \
                                                            sizes[3], sizes[4], products, matrix,  \
                                                            bias, out);                            \
    }
FOR(float, float32)
FOR(BF16, bfloat16)

#define MULTIPLY(T, U, NAME)                                                                       \
    void product_##NAME(int threads, const int64_t *sizes, int ending, float eps, const T *a,      \
                        const U *weights, const float *scales, const float *bias, const T *other,  \
                        const T *gain, const T *shift, T *out) {                                   \
        product<T, U>(threads, sizes, ending, a, weights, scales, bias, other, {gain, shift, eps}, \
                      out);                                                                        \
    }
MULTIPLY(float, float, float32)
MULTIPLY(BF16, BF16, bfloat16)
#if HALVES
MULTIPLY(float, FP16, by_float16_float32)
MULTIPLY(BF16, FP16, by_float16_bfloat16)
#endif
}
