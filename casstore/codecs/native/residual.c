/* Compiled twin of casstore/codecs/delta/residual.py: differences of elements as small unsigned numbers. */

#include "kernels.h"

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

static PyObject *run(PyObject *args, Loop *const loops[2][4]) {
    Py_buffer held[3];
    Py_ssize_t width;
    int floats, log = 0;
    if (!PyArg_ParseTuple(args, "y*y*w*np", &held[0], &held[1], &held[2], &width, &floats)) return NULL;
    while (log < 4 && width != (Py_ssize_t)1 << log) log++;
    if (log == 4 || held[0].len != held[1].len || held[0].len != held[2].len || held[0].len % width)
        return refuse("the elements do not fit one another", held, 3);
    Py_BEGIN_ALLOW_THREADS
    loops[floats][log](held[0].buf, held[1].buf, held[2].buf, held[0].len / width);
    Py_END_ALLOW_THREADS
    for (int k = 0; k < 3; k++) PyBuffer_Release(&held[k]);
    Py_RETURN_NONE;
}

PyObject *subtract(PyObject *self, PyObject *args) {
    static Loop *const loops[2][4] = {
        {subtract_integer_1, subtract_integer_2, subtract_integer_4, subtract_integer_8},
        {subtract_float_1, subtract_float_2, subtract_float_4, subtract_float_8},
    };
    (void)self;
    return run(args, loops);
}

PyObject *add(PyObject *self, PyObject *args) {
    static Loop *const loops[2][4] = {
        {add_integer_1, add_integer_2, add_integer_4, add_integer_8},
        {add_float_1, add_float_2, add_float_4, add_float_8},
    };
    (void)self;
    return run(args, loops);
}
