/* Compiled twin of casstore/codecs/delta/operations/cast.py: floats in other formats. */

#include "deltas.h"
#include "floats.h"

#define CAST_DOWN(NAME, WORD, OUT, NARROWED, FORMAT)                                                                   \
    VECTORISED static void NAME(const uint8_t *restrict from, uint8_t *restrict out, Py_ssize_t count, int rounding,   \
                                int saturate) {                                                                        \
        for (Py_ssize_t i = 0; i < count; i++) {                                                                       \
            WORD word;                                                                                                 \
            OUT found;                                                                                                 \
            memcpy(&word, from + i * (Py_ssize_t)sizeof word, sizeof word);                                            \
            found = (OUT)NARROWED(word, rounding, saturate, 8 * (int)sizeof found, FORMAT);                            \
            memcpy(out + i * (Py_ssize_t)sizeof found, &found, sizeof found);                                          \
        }                                                                                                              \
    }

CAST_DOWN(f64_f32, uint64_t, uint32_t, narrow_64, FORMAT_F32)
CAST_DOWN(f64_f16, uint64_t, uint16_t, narrow_64, FORMAT_F16)
CAST_DOWN(f64_bf16, uint64_t, uint16_t, narrow_64, FORMAT_BF16)
CAST_DOWN(f64_e4m3, uint64_t, uint8_t, narrow_64, FORMAT_F8_E4M3)
CAST_DOWN(f64_e5m2, uint64_t, uint8_t, narrow_64, FORMAT_F8_E5M2)
CAST_DOWN(f64_e4m3fnuz, uint64_t, uint8_t, narrow_64, FORMAT_F8_E4M3FNUZ)
CAST_DOWN(f64_e5m2fnuz, uint64_t, uint8_t, narrow_64, FORMAT_F8_E5M2FNUZ)
CAST_DOWN(f32_f16, uint32_t, uint16_t, narrow_32, FORMAT_F16)
CAST_DOWN(f32_bf16, uint32_t, uint16_t, narrow_32, FORMAT_BF16)
CAST_DOWN(f32_e4m3, uint32_t, uint8_t, narrow_32, FORMAT_F8_E4M3)
CAST_DOWN(f32_e5m2, uint32_t, uint8_t, narrow_32, FORMAT_F8_E5M2)
CAST_DOWN(f32_e4m3fnuz, uint32_t, uint8_t, narrow_32, FORMAT_F8_E4M3FNUZ)
CAST_DOWN(f32_e5m2fnuz, uint32_t, uint8_t, narrow_32, FORMAT_F8_E5M2FNUZ)

#define CAST_UP(NAME, WORD, OUT, WIDENED)                                                                              \
    VECTORISED static void NAME(const uint8_t *restrict from, uint8_t *restrict out, Py_ssize_t count) {               \
        for (Py_ssize_t i = 0; i < count; i++) {                                                                       \
            WORD word;                                                                                                 \
            OUT found;                                                                                                 \
            memcpy(&word, from + i * (Py_ssize_t)sizeof word, sizeof word);                                            \
            found = WIDENED(word);                                                                                     \
            memcpy(out + i * (Py_ssize_t)sizeof found, &found, sizeof found);                                          \
        }                                                                                                              \
    }

/* A processor makes NaNs quiet when it widens them; their bits stay as they are here. */
INLINE uint64_t widen_f32(uint32_t x) {
    uint32_t magnitude = x & 0x7FFFFFFF;
    double value = float_of(magnitude);
    uint64_t found;
    memcpy(&found, &value, sizeof found);
    found = magnitude >= 0x7F800000u ? (uint64_t)magnitude << 29 | (uint64_t)0x7FF << 52 : found;
    return found | (uint64_t)(x >> 31) << 63;
}

CAST_UP(f32_f64, uint32_t, uint64_t, widen_f32)
CAST_UP(f16_f32, uint16_t, uint32_t, widen_f16)
CAST_UP(bf16_f32, uint16_t, uint32_t, widen_bf16)

static void f8_f32(const uint8_t *from, uint8_t *out, Py_ssize_t count, int source) {
    uint32_t table[256];
    for (uint32_t x = 0; x < 256; x++)
        table[x] = source == F8_E4M3       ? widen_8(x, FORMAT_F8_E4M3)
                   : source == F8_E5M2     ? widen_8(x, FORMAT_F8_E5M2)
                   : source == F8_E4M3FNUZ ? widen_8(x, FORMAT_F8_E4M3FNUZ)
                                           : widen_8(x, FORMAT_F8_E5M2FNUZ);
    for (Py_ssize_t i = 0; i < count; i++) memcpy(out + 4 * i, &table[from[i]], 4);
}

typedef void Down(const uint8_t *restrict, uint8_t *restrict, Py_ssize_t, int, int);

static int widths[] = {0, 8, 4, 2, 2, 1, 1, 1, 1};

int casstore_is_cast(int source, int target, int rounding) {
    return source >= F64 && source <= F8_E5M2FNUZ && target >= F64 && target <= F8_E5M2FNUZ && source != target &&
           rounding >= NEAREST_EVEN && rounding <= NEAREST_AWAY &&
           (source < target ? source <= F32 : target == F32 || source == F32);
}

int casstore_float_width(int format) { return widths[format]; }

void casstore_cast(int source, int target, const uint8_t *from, uint8_t *out, Py_ssize_t count, int rounding, int saturate) {
    static Down *const wide[] = {NULL, NULL, f64_f32, f64_f16, f64_bf16, f64_e4m3, f64_e5m2, f64_e4m3fnuz, f64_e5m2fnuz};
    static Down *const single[] = {NULL, NULL, NULL, f32_f16, f32_bf16, f32_e4m3, f32_e5m2, f32_e4m3fnuz, f32_e5m2fnuz};
    if (target > source) (source == F64 ? wide : single)[target](from, out, count, rounding, saturate);
    else if (source == F32) f32_f64(from, out, count);
    else if (source == F16) f16_f32(from, out, count);
    else if (source == BF16) bf16_f32(from, out, count);
    else f8_f32(from, out, count, source);
}

PyObject *cast(PyObject *self, PyObject *args) {
    Py_buffer held[2];
    int source, target, rounding, saturate;
    Py_ssize_t count;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*w*iiip", &held[0], &held[1], &source, &target, &rounding, &saturate)) return NULL;
    if (!casstore_is_cast(source, target, rounding)) return refuse("there is no such cast", held, 2);
    count = held[0].len / widths[source];
    if (held[0].len % widths[source] || held[1].len != count * widths[target])
        return refuse("the elements do not fit one another", held, 2);
    Py_BEGIN_ALLOW_THREADS
    FLOATS_BEGIN
    casstore_cast(source, target, held[0].buf, held[1].buf, count, rounding, saturate);
    FLOATS_END
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&held[0]);
    PyBuffer_Release(&held[1]);
    Py_RETURN_NONE;
}
