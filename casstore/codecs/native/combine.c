/* Compiled twin of casstore/codecs/delta/operations/combine.py: weighted sums and task vectors, step by step. */

#include "floats.h"

#define TILE 1024
enum { SUM = 1, FUSED_SUM, TASKS, FUSED_TASKS, JOINT_TASKS };

#define LOOPS(TYPE, PREFIX)                                                                                            \
    VECTORISED static void PREFIX##_scale(TYPE *restrict to, const uint8_t *restrict from, TYPE w, Py_ssize_t count) { \
        for (Py_ssize_t i = 0; i < count; i++) {                                                                       \
            TYPE x;                                                                                                    \
            memcpy(&x, from + i * (Py_ssize_t)sizeof x, sizeof x);                                                     \
            to[i] = x * w;                                                                                             \
        }                                                                                                              \
    }                                                                                                                  \
    VECTORISED static void PREFIX##_subtract(TYPE *restrict to, const uint8_t *restrict one,                           \
                                             const uint8_t *restrict other, Py_ssize_t count) {                        \
        for (Py_ssize_t i = 0; i < count; i++) {                                                                       \
            TYPE x, y;                                                                                                 \
            memcpy(&x, one + i * (Py_ssize_t)sizeof x, sizeof x);                                                      \
            memcpy(&y, other + i * (Py_ssize_t)sizeof y, sizeof y);                                                    \
            to[i] = x - y;                                                                                             \
        }                                                                                                              \
    }                                                                                                                  \
    VECTORISED static void PREFIX##_add(TYPE *restrict to, const TYPE *restrict from, Py_ssize_t count) {              \
        for (Py_ssize_t i = 0; i < count; i++) to[i] = to[i] + from[i];                                                \
    }                                                                                                                  \
    VECTORISED static void PREFIX##_divide(TYPE *restrict to, TYPE divisor, Py_ssize_t count) {                        \
        for (Py_ssize_t i = 0; i < count; i++) to[i] = to[i] / divisor;                                                \
    }

LOOPS(float, f32)
LOOPS(double, f64)

/* The sum is exact enough in double: 24 bits times 24 bits, and one rounding more than a processor's own instruction has. */
VECTORISED static void f32_fuse(float *restrict to, const uint8_t *restrict from, float w, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        float x;
        memcpy(&x, from + 4 * i, 4);
        to[i] = (float)((double)to[i] + (double)w * (double)x);
    }
}

VECTORISED static void round_f16(float *restrict to, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) to[i] = float_of(widen_f16(narrow_to_f16(bits_of(to[i]))));
}

VECTORISED static void round_bf16(float *restrict to, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) to[i] = float_of(widen_bf16(narrow_to_bf16(bits_of(to[i]))));
}

static void round_to(int format, float *to, Py_ssize_t count) {
    if (format == F16) round_f16(to, count);
    if (format == BF16) round_bf16(to, count);
}

/* The bits of a NaN that arithmetic made differ between machines. */
VECTORISED static void store_f32(const float *restrict from, uint8_t *restrict out, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        uint32_t bits = bits_of(from[i]);
        bits = (bits & 0x7FFFFFFF) > 0x7F800000u ? 0x7FC00000u : bits;
        memcpy(out + 4 * i, &bits, 4);
    }
}

VECTORISED static void store_f64(const double *restrict from, uint8_t *restrict out, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        uint64_t bits;
        memcpy(&bits, &from[i], 8);
        bits = (bits & 0x7FFFFFFFFFFFFFFFull) > 0x7FF0000000000000ull ? 0x7FF8000000000000ull : bits;
        memcpy(out + 8 * i, &bits, 8);
    }
}

#define COMBINE(TYPE, PREFIX, FUSE, ROUND)                                                                             \
    static void combine_##PREFIX(const Py_buffer *operands, Py_ssize_t number, Py_ssize_t count, int format, int rule, \
                                 const double *weights, uint8_t *out) {                                                \
        const Py_ssize_t size = (Py_ssize_t)sizeof(TYPE);                                                              \
        TYPE total[TILE], part[TILE];                                                                                  \
        (void)format;                                                                                                  \
        for (Py_ssize_t at = 0; at < count; at += TILE) {                                                              \
            Py_ssize_t some = count - at < TILE ? count - at : TILE;                                                   \
            if (rule == SUM || rule == FUSED_SUM) {                                                                    \
                PREFIX##_scale(total, (const uint8_t *)operands[0].buf + at * size, (TYPE)weights[0], some);           \
                ROUND(format, total, some);                                                                            \
                for (Py_ssize_t k = 1; k < number; k++) {                                                              \
                    const uint8_t *from = (const uint8_t *)operands[k].buf + at * size;                                \
                    if (rule == FUSED_SUM) FUSE(total, from, (TYPE)weights[k], some);                                  \
                    else {                                                                                             \
                        PREFIX##_scale(part, from, (TYPE)weights[k], some);                                            \
                        ROUND(format, part, some);                                                                     \
                        PREFIX##_add(total, part, some);                                                               \
                    }                                                                                                  \
                    ROUND(format, total, some);                                                                        \
                }                                                                                                      \
                PREFIX##_divide(total, (TYPE)weights[number], some);                                                   \
                ROUND(format, total, some);                                                                            \
            } else {                                                                                                   \
                memcpy(total, (const uint8_t *)operands[0].buf + at * size, (size_t)(some * size));                    \
                if (rule == JOINT_TASKS) memset(total, 0, sizeof total);                                               \
                for (Py_ssize_t k = 1; k + 1 < number; k += 2) {                                                       \
                    PREFIX##_subtract(part, (const uint8_t *)operands[k].buf + at * size,                              \
                                      (const uint8_t *)operands[k + 1].buf + at * size, some);                         \
                    ROUND(format, part, some);                                                                         \
                    if (rule == FUSED_TASKS) FUSE(total, (const uint8_t *)part, (TYPE)weights[k / 2], some);           \
                    else {                                                                                             \
                        TYPE scaled[TILE];                                                                             \
                        PREFIX##_scale(scaled, (const uint8_t *)part, (TYPE)weights[k / 2], some);                     \
                        ROUND(format, scaled, some);                                                                   \
                        PREFIX##_add(total, scaled, some);                                                             \
                    }                                                                                                  \
                    ROUND(format, total, some);                                                                        \
                }                                                                                                      \
                if (rule == JOINT_TASKS) {                                                                             \
                    memcpy(part, (const uint8_t *)operands[0].buf + at * size, (size_t)(some * size));                 \
                    PREFIX##_add(total, part, some);                                                                   \
                    ROUND(format, total, some);                                                                        \
                }                                                                                                      \
            }                                                                                                          \
            store_##PREFIX(total, out + at * size, some);                                                              \
        }                                                                                                              \
    }

#define NO_FUSE(to, from, w, count) ((void)0)
#define NO_ROUND(format, to, count) ((void)0)
COMBINE(float, f32, f32_fuse, round_to)
COMBINE(double, f64, NO_FUSE, NO_ROUND)

PyObject *combine(PyObject *self, PyObject *args) {
    Py_buffer out, weights;
    Py_buffer *held = NULL;
    Py_ssize_t number, taken = 0, needed, width;
    int element, format, rule, fits = 0;
    PyObject *operands;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!w*iiiy*", &PyTuple_Type, &operands, &out, &element, &format, &rule, &weights)) return NULL;
    number = PyTuple_GET_SIZE(operands);
    width = element == F64 ? 8 : 4;
    held = PyMem_Calloc((size_t)number + 1, sizeof *held);
    if (!held) {
        PyErr_NoMemory();
        goto done;
    }
    if (number < 1 || rule < SUM || rule > JOINT_TASKS || (element != F64 && element != F32) ||
        (element == F64 ? format != F64 || rule == FUSED_SUM || rule == FUSED_TASKS : format < F32 || format > BF16))
        goto done;
    needed = rule <= FUSED_SUM ? number + 1 : number / 2;
    if ((rule > FUSED_SUM && number % 2 == 0) || weights.len != needed * 8 || (uintptr_t)weights.buf % sizeof(double) || out.len % width)
        goto done;
    for (; taken < number; taken++) {
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(operands, taken), &held[taken], PyBUF_SIMPLE)) goto done;
        if (held[taken].len != out.len) {
            taken++;
            goto done;
        }
    }
    fits = 1;
    Py_BEGIN_ALLOW_THREADS
    FLOATS_BEGIN
    if (element == F64) combine_f64(held, number, out.len / 8, format, rule, weights.buf, out.buf);
    else combine_f32(held, number, out.len / 4, format, rule, weights.buf, out.buf);
    FLOATS_END
    Py_END_ALLOW_THREADS
done:
    while (taken) PyBuffer_Release(&held[--taken]);
    PyMem_Free(held);
    PyBuffer_Release(&weights);
    PyBuffer_Release(&out);
    if (fits) Py_RETURN_NONE;
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "the operands do not fit one another");
    return NULL;
}
