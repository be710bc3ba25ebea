/* Rounding floats to narrower formats, and widening them, in integer arithmetic: operations/cast.py specifies it. */

#ifndef CASSTORE_FLOATS_H
#define CASSTORE_FLOATS_H

#include "kernels.h"

enum { F64 = 1, F32, F16, BF16, F8_E4M3, F8_E5M2, F8_E4M3FNUZ, F8_E5M2FNUZ };
enum { NEAREST_EVEN, TOWARD_ZERO, NEAREST_AWAY };

/* A format: bits of its mantissa, bias of its exponent, the largest finite pattern, what is beyond it, its NaN (0: a
 * NaN keeps the upper bits of its mantissa, and gets the top one), and whether it has only one zero. */
#define FORMAT_F32 23, 127, 0x7F7FFFFFu, 0x7F800000u, 0, 0
#define FORMAT_F16 10, 15, 0x7BFFu, 0x7C00u, 0, 0
#define FORMAT_BF16 7, 127, 0x7F7Fu, 0x7F80u, 0, 0
#define FORMAT_F8_E4M3 3, 7, 0x7Eu, 0x7Fu, 0x7Fu, 0
#define FORMAT_F8_E5M2 2, 15, 0x7Bu, 0x7Cu, 0, 0
#define FORMAT_F8_E4M3FNUZ 3, 8, 0x7Fu, 0x80u, 0x80u, 1
#define FORMAT_F8_E5M2FNUZ 2, 16, 0x7Fu, 0x80u, 0x80u, 1

/* `bits` is the width of the result; all but x, rounding and saturate are constants where this is inlined. */
#define NARROW(NAME, WORD, SOURCE_BITS, SOURCE_MANTISSA, SOURCE_BIAS)                                                  \
    INLINE uint32_t NAME(WORD x, int rounding, int saturate, int bits, int mantissa, int bias, uint32_t largest, \
                                uint32_t beyond, uint32_t nan, int one_zero) {                                         \
        const WORD hidden = (WORD)1 << SOURCE_MANTISSA;                                                                \
        const WORD infinity = (WORD)(2 * SOURCE_BIAS + 1) << SOURCE_MANTISSA;                                          \
        const int normal = SOURCE_BIAS - bias + 1, drop = SOURCE_MANTISSA - mantissa;                                  \
        const WORD toward = (WORD)(rounding != TOWARD_ZERO), even = (WORD)(rounding == NEAREST_EVEN);                  \
        const uint32_t saturated = (beyond ^ largest) & (0u - (uint32_t)(saturate != 0));                              \
        const uint32_t truncated = (beyond ^ largest) & (0u - (uint32_t)(rounding == TOWARD_ZERO));                    \
        const uint32_t infinite = beyond ^ saturated, full = beyond ^ (saturated | truncated);                         \
        WORD magnitude = x & (((WORD)1 << (SOURCE_BITS - 1)) - 1);                                                     \
        WORD sign = x >> (SOURCE_BITS - 1);                                                                            \
        WORD exponent = magnitude >> SOURCE_MANTISSA;                                                                  \
        WORD low = exponent ? (magnitude & (hidden - 1)) | hidden : magnitude;                                         \
        WORD deficit = (exponent ? exponent : 1) < (WORD)normal ? (WORD)normal - (exponent ? exponent : 1) : 0;        \
        WORD below = deficit ? ~(WORD)0 : 0;                                                                           \
        WORD shift = (WORD)drop + deficit;                                                                             \
        WORD from, half, result;                                                                                       \
        uint32_t found;                                                                                                \
        shift = shift > SOURCE_MANTISSA + 2 ? SOURCE_MANTISSA + 2 : shift;                                             \
        from = (low & below) | (magnitude & ~below);                                                                   \
        half = (WORD)1 << (shift - 1);                                                                                 \
        result = (from + (half & ((WORD)0 - toward)) - even + ((from >> shift) & even)) >> shift;                      \
        result -= ((WORD)(normal - 1) << mantissa) & ~below;                                                           \
        found = result > largest ? full : (uint32_t)result;                                                            \
        found = magnitude >= infinity ? infinite : found;                                                              \
        found = magnitude > infinity                                                                                   \
            ? (nan ? nan : beyond | (uint32_t)((magnitude & (hidden - 1)) >> drop) | (1u << (mantissa - 1)))           \
            : found;                                                                                                   \
        return found | (one_zero && found == 0 ? 0 : (uint32_t)sign << (bits - 1));                                    \
    }

NARROW(narrow_32, uint32_t, 32, 23, 127)
NARROW(narrow_64, uint64_t, 64, 52, 1023)

INLINE uint32_t narrow_to_f16(uint32_t x) { return narrow_32(x, NEAREST_EVEN, 0, 16, FORMAT_F16); }

INLINE uint32_t narrow_to_bf16(uint32_t x) { return narrow_32(x, NEAREST_EVEN, 0, 16, FORMAT_BF16); }

INLINE uint32_t widen_bf16(uint32_t x) { return x << 16; }

/* Subnormals are products that are exact. */
INLINE uint32_t widen_f16(uint32_t x) {
    uint32_t magnitude = x & 0x7FFF;
    uint32_t found = (magnitude << 13) + (112u << 23);
    uint32_t small = bits_of((float)(int32_t)magnitude * 0x1p-24f);
    found = magnitude < 0x400 ? small : found;
    found += magnitude >= 0x7C00 ? 112u << 23 : 0;
    return found | (x & 0x8000) << 16;
}

INLINE uint32_t widen_8(uint32_t x, int mantissa, int bias, uint32_t largest, uint32_t beyond, uint32_t nan, int one_zero) {
    uint32_t magnitude = x & 0x7F, sign = (x & 0x80) << 24, low = magnitude & ((1u << mantissa) - 1);
    int exponent = (int)(magnitude >> mantissa);
    if (one_zero ? x == nan : nan && magnitude == nan) return sign | 0x7FC00000u;
    if (magnitude > largest) return sign | 0x7F800000u | (magnitude - beyond) << (23 - mantissa);
    if (exponent == 0) return sign | bits_of((float)(int)low * float_of((uint32_t)(128 - bias - mantissa) << 23));
    return sign | (uint32_t)(exponent - bias + 127) << 23 | low << (23 - mantissa);
}

/* Round to an integer, to nearest even: |value| is less than 2^22. */
INLINE float nearest(float value) {
    const float whole = 0x1.8p23f;
    return (value + whole) - whole;
}

/* The same, of two equally near the one of greater magnitude. */
INLINE float nearest_away(float value) {
    float down = (float)(int32_t)value;
    float rest = value - down;
    return down + (rest >= 0.5f ? 1.0f : 0.0f) - (rest <= -0.5f ? 1.0f : 0.0f);
}

#endif
