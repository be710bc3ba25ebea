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

static Loop *const subtract_loops[2][4] = {
    {subtract_integer_1, subtract_integer_2, subtract_integer_4, subtract_integer_8},
    {subtract_float_1, subtract_float_2, subtract_float_4, subtract_float_8},
};

static Loop *const add_loops[2][4] = {
    {add_integer_1, add_integer_2, add_integer_4, add_integer_8},
    {add_float_1, add_float_2, add_float_4, add_float_8},
};

/* What Python gave: two operands and the room for the result, whole elements of as many bytes. */
typedef struct {
    Py_buffer held[3];
    Py_ssize_t width;
    int floats, log;
} Call;

static int take_call(Call *call, PyObject *args) {
    call->log = 0;
    if (!PyArg_ParseTuple(args, "y*y*w*np", &call->held[0], &call->held[1], &call->held[2], &call->width, &call->floats))
        return 0;
    while (call->log < 4 && call->width != (Py_ssize_t)1 << call->log) call->log++;
    if (call->log < 4 && call->held[0].len == call->held[1].len && call->held[0].len == call->held[2].len &&
        call->held[0].len % call->width == 0)
        return 1;
    refuse("the elements do not fit one another", call->held, 3);
    return 0;
}

static void release_call(Call *call) {
    for (int k = 0; k < 3; k++) PyBuffer_Release(&call->held[k]);
}

/* Bytes that are subtracted and added again at once: all of them stay in the core's first cache. */
#define TILE 4096

enum { EXACT, RESTORED, LOST };

/* Writes the differences and adds them again. Where nothing differs, nothing is written. */
static int subtract_all(const Call *call) {
    const uint8_t *actual = call->held[0].buf, *predicted = call->held[1].buf;
    uint8_t *out = call->held[2].buf, again[TILE];
    Py_ssize_t size = call->held[0].len;
    int found = RESTORED;
    if (memcmp(actual, predicted, (size_t)size) == 0) return EXACT;
    for (Py_ssize_t at = 0; at < size; at += TILE) {
        Py_ssize_t length = size - at < TILE ? size - at : TILE, count = length / call->width;
        subtract_loops[call->floats][call->log](actual + at, predicted + at, out + at, count);
        add_loops[call->floats][call->log](out + at, predicted + at, again, count);
        if (memcmp(actual + at, again, (size_t)length) != 0) found = LOST;
    }
    return found;
}

PyObject *subtract(PyObject *self, PyObject *args) {
    Call call;
    int found;
    (void)self;
    if (!take_call(&call, args)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    found = subtract_all(&call);
    Py_END_ALLOW_THREADS
    release_call(&call);
    return PyLong_FromLong(found);
}

PyObject *add(PyObject *self, PyObject *args) {
    Call call;
    (void)self;
    if (!take_call(&call, args)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    add_loops[call.floats][call.log](call.held[0].buf, call.held[1].buf, call.held[2].buf, call.held[0].len / call.width);
    Py_END_ALLOW_THREADS
    release_call(&call);
    Py_RETURN_NONE;
}
