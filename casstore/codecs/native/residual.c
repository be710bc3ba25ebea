/* Compiled twin of casstore/codecs/delta/residual.py: differences of elements as small unsigned numbers. */

#include "deltas.h"

/* The number of a bit pattern in the order of floats: where the sign is set, all other bits are inverted. */
#define NUMBER(NAME, WORD, BITS)                                                                                       \
    INLINE WORD NAME(WORD x) {                                                                                  \
        return (WORD)(x ^ ((WORD)(0 - (WORD)(x >> (BITS - 1))) & (WORD)(((WORD)1 << (BITS - 1)) - 1)));                \
    }
#define PLAIN(x) (x)

NUMBER(number_1, uint8_t, 8)
NUMBER(number_2, uint16_t, 16)
NUMBER(number_4, uint32_t, 32)
NUMBER(number_8, uint64_t, 64)

#define DIFFERENCES(NAME, WORD, BITS, ORDER)                                                                           \
    VECTORISED static void subtract_##NAME(const uint8_t *restrict actual, const uint8_t *restrict predicted,         \
                                           uint8_t *restrict out, Py_ssize_t count) {                                  \
        for (Py_ssize_t i = 0; i < count; i++) {                                                                       \
            WORD x, y, d;                                                                                              \
            memcpy(&x, actual + i * (Py_ssize_t)sizeof x, sizeof x);                                                   \
            memcpy(&y, predicted + i * (Py_ssize_t)sizeof y, sizeof y);                                                \
            d = (WORD)(ORDER(x) - ORDER(y));                                                                           \
            d = (WORD)((WORD)(d << 1) ^ (WORD)(0 - (WORD)(d >> (BITS - 1))));                                          \
            memcpy(out + i * (Py_ssize_t)sizeof d, &d, sizeof d);                                                      \
        }                                                                                                              \
    }                                                                                                                  \
    VECTORISED static void add_##NAME(const uint8_t *restrict differences, const uint8_t *restrict predicted,         \
                                      uint8_t *restrict out, Py_ssize_t count) {                                       \
        for (Py_ssize_t i = 0; i < count; i++) {                                                                       \
            WORD d, y, x;                                                                                              \
            memcpy(&d, differences + i * (Py_ssize_t)sizeof d, sizeof d);                                              \
            memcpy(&y, predicted + i * (Py_ssize_t)sizeof y, sizeof y);                                                \
            d = (WORD)((WORD)(d >> 1) ^ (WORD)(0 - (WORD)(d & 1)));                                                    \
            x = (WORD)(ORDER(y) + d);                                                                                  \
            x = ORDER(x);                                                                                              \
            memcpy(out + i * (Py_ssize_t)sizeof x, &x, sizeof x);                                                      \
        }                                                                                                              \
    }

DIFFERENCES(integer_1, uint8_t, 8, PLAIN)
DIFFERENCES(integer_2, uint16_t, 16, PLAIN)
DIFFERENCES(integer_4, uint32_t, 32, PLAIN)
DIFFERENCES(integer_8, uint64_t, 64, PLAIN)
DIFFERENCES(float_1, uint8_t, 8, number_1)
DIFFERENCES(float_2, uint16_t, 16, number_2)
DIFFERENCES(float_4, uint32_t, 32, number_4)
DIFFERENCES(float_8, uint64_t, 64, number_8)

typedef void Loop(const uint8_t *restrict, const uint8_t *restrict, uint8_t *restrict, Py_ssize_t);

static Loop *const subtract_loops[2][4] = {
    {subtract_integer_1, subtract_integer_2, subtract_integer_4, subtract_integer_8},
    {subtract_float_1, subtract_float_2, subtract_float_4, subtract_float_8},
};

static Loop *const add_loops[2][4] = {
    {add_integer_1, add_integer_2, add_integer_4, add_integer_8},
    {add_float_1, add_float_2, add_float_4, add_float_8},
};

static int log_of(Py_ssize_t width) {
    int log = 0;
    while (log < 4 && width != (Py_ssize_t)1 << log) log++;
    return log < 4 ? log : -1;
}

int casstore_is_width(Py_ssize_t width) { return log_of(width) >= 0; }

void casstore_subtract(const uint8_t *actual, const uint8_t *predicted, uint8_t *out, Py_ssize_t size, Py_ssize_t width,
                       int floats) {
    subtract_loops[floats][log_of(width)](actual, predicted, out, size / width);
}

void casstore_add(const uint8_t *differences, const uint8_t *predicted, uint8_t *out, Py_ssize_t size, Py_ssize_t width,
                  int floats) {
    add_loops[floats][log_of(width)](differences, predicted, out, size / width);
}
