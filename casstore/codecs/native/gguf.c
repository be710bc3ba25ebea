/* Compiled twin of casstore/codecs/delta/operations/gguf_blocks.py: floats to blocks of GGUF. */

#include "floats.h"

#define MOST 256 /* elements of a block */

static const float levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

INLINE float load_half(const uint8_t *from) {
    uint16_t half;
    memcpy(&half, from, 2);
    return float_of(widen_f16(half));
}

INLINE void store_half(uint8_t *out, float value) {
    uint16_t half = (uint16_t)narrow_to_f16(bits_of(value));
    memcpy(out, &half, 2);
}

INLINE float inverse(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

/* Cut off at limits; what is no number becomes the lower one. */
INLINE float cut(float value, float low, float high) {
    value = value > low ? value : low;
    return value < high ? value : high;
}

/* A NaN counts as 0. */
INLINE void load(const uint8_t *from, float *x, int count) {
    for (int i = 0; i < count; i++) {
        float value;
        memcpy(&value, from + 4 * i, 4);
        x[i] = value == value ? value : 0.0f;
    }
}

/* ---- packing */

INLINE void nibbles(const uint8_t *quants, int count, int half, uint8_t *out) {
    for (int at = 0; at < count; at += 2 * half)
        for (int i = 0; i < half; i++) *out++ = (uint8_t)((quants[at + i] & 15) | quants[at + half + i] << 4);
}

INLINE void pairs(const uint8_t *quants, int shift, uint8_t *out) {
    for (int at = 0; at < 256; at += 128, out += 32)
        for (int i = 0; i < 32; i++)
            out[i] = (uint8_t)((quants[at + i] >> shift & 3) | (quants[at + 32 + i] >> shift & 3) << 2 |
                               (quants[at + 64 + i] >> shift & 3) << 4 | (quants[at + 96 + i] >> shift & 3) << 6);
}

INLINE void columns(const uint8_t *quants, int shift, uint8_t *out) {
    for (int i = 0; i < 32; i++) {
        int bits = 0;
        for (int k = 0; k < 8; k++) bits |= (quants[32 * k + i] >> shift & 1) << k;
        out[i] = (uint8_t)bits;
    }
}

INLINE void fifth_bits(const uint8_t *quants, uint8_t *out) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++) bits |= (uint32_t)(quants[i] >> 4) << i;
    memcpy(out, &bits, 4);
}

/* ---- types with 32 elements and a rule for scales */

INLINE uint32_t greatest_magnitude(const float *x) {
    uint32_t most = 0;
    for (int i = 0; i < 32; i++) {
        uint32_t magnitude = bits_of(x[i]) & 0x7FFFFFFF;
        most = magnitude > most ? magnitude : most;
    }
    return most;
}

VECTORISED static void q8_0(const uint8_t *values, const uint8_t *scales, uint8_t *out, Py_ssize_t count) {
    float x[32];
    int32_t quants[32];
    for (Py_ssize_t n = 0; n < count; n++, values += 128, out += 34) {
        float scale, factor;
        load(values, x, 32);
        if (scales) {
            scale = load_half(scales + 2 * n);
            memcpy(out, scales + 2 * n, 2);
        } else {
            scale = float_of(greatest_magnitude(x)) / 127.0f;
            store_half(out, scale);
        }
        factor = inverse(scale);
        for (int i = 0; i < 32; i++) {
            float v = x[i] * factor;
            x[i] = v == v ? v : 0.0f;
        }
        for (int i = 0; i < 32; i++) x[i] = cut(x[i], -128.0f, 127.0f);
        for (int i = 0; i < 32; i++) quants[i] = (int32_t)nearest_away(x[i]);
        for (int i = 0; i < 32; i++) out[2 + i] = (uint8_t)quants[i];
    }
}

/* The number of greatest magnitude, the first of several; 0 of zeros with any signs. */
INLINE float greatest(const float *x) {
    uint32_t most = greatest_magnitude(x);
    int first = 31;
    for (int i = 0; i < 32; i++) {
        int at = (bits_of(x[i]) & 0x7FFFFFFF) == most ? i : 31;
        first = at < first ? at : first;
    }
    return most ? x[first] : 0.0f;
}

/* Floats as integers in the same order, with one zero. */
INLINE int32_t number(float x) {
    int32_t bits = (int32_t)bits_of(x + 0.0f);
    return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

/* Of several zeros it is the first one: the numbers do not tell their signs. */
INLINE float of_number(int32_t number, const float *x) {
    if (number == 0)
        for (int i = 0; i < 32; i++)
            if (x[i] == 0.0f) return x[i];
    return float_of((uint32_t)(number ^ ((number >> 31) & 0x7FFFFFFF)));
}

INLINE void truncate_to(const float *x, float least, float factor, float half, float last, uint8_t *quants) {
    for (int i = 0; i < 32; i++) quants[i] = (uint8_t)(int)cut((x[i] - least) * factor + half, 0.0f, last);
}

INLINE void store_legacy(const uint8_t *quants, int five, uint8_t *out) {
    if (five) fifth_bits(quants, out);
    nibbles(quants, 32, 16, out + (five ? 4 : 0));
}

#define SIGNED(NAME, SIZE, LEVELS, FIVE)                                                                               \
    VECTORISED static void NAME(const uint8_t *values, const uint8_t *scales, uint8_t *out, Py_ssize_t count) {        \
        float x[32];                                                                                                   \
        uint8_t quants[32];                                                                                            \
        for (Py_ssize_t n = 0; n < count; n++, values += 128, out += SIZE) {                                           \
            float scale;                                                                                               \
            load(values, x, 32);                                                                                       \
            if (scales) {                                                                                              \
                scale = load_half(scales + 2 * n);                                                                     \
                memcpy(out, scales + 2 * n, 2);                                                                        \
            } else {                                                                                                   \
                scale = greatest(x) / (float)(-(LEVELS) / 2);                                                          \
                store_half(out, scale);                                                                                \
            }                                                                                                          \
            truncate_to(x, 0.0f, inverse(scale), (LEVELS) / 2 + 0.5f, (LEVELS)-1, quants);                             \
            store_legacy(quants, FIVE, out + 2);                                                                       \
        }                                                                                                              \
    }

SIGNED(q4_0, 18, 16, 0)
SIGNED(q5_0, 22, 32, 1)

#define RANGED(NAME, SIZE, LEVELS, FIVE)                                                                               \
    VECTORISED static void NAME(const uint8_t *values, const uint8_t *scales, uint8_t *out, Py_ssize_t count) {        \
        float x[32];                                                                                                   \
        uint8_t quants[32];                                                                                            \
        for (Py_ssize_t n = 0; n < count; n++, values += 128, out += SIZE) {                                           \
            float scale, least;                                                                                        \
            load(values, x, 32);                                                                                       \
            if (scales) {                                                                                              \
                scale = load_half(scales + 4 * n);                                                                     \
                least = load_half(scales + 4 * n + 2);                                                                 \
                memcpy(out, scales + 4 * n, 4);                                                                        \
            } else {                                                                                                   \
                int32_t low = INT32_MAX, high = INT32_MIN;                                                             \
                for (int i = 0; i < 32; i++) {                                                                         \
                    int32_t key = number(x[i]);                                                                        \
                    low = key < low ? key : low;                                                                       \
                    high = key > high ? key : high;                                                                    \
                }                                                                                                      \
                least = of_number(low, x);                                                                             \
                scale = of_number(high, x) - least;                                                                    \
                scale = scale / (float)((LEVELS)-1);                                                                   \
                store_half(out, scale);                                                                                \
                store_half(out + 2, least);                                                                            \
            }                                                                                                          \
            truncate_to(x, least, inverse(scale), 0.5f, (LEVELS)-1, quants);                                           \
            store_legacy(quants, FIVE, out + 4);                                                                       \
        }                                                                                                              \
    }

RANGED(q4_1, 20, 16, 0)
RANGED(q5_1, 24, 32, 1)

/* ---- types whose scales are given */

/* The step and the offset of each x. */
typedef struct {
    float steps[MOST], offsets[MOST];
} Parts;

INLINE void set_part(Parts *parts, int at, int count, float step, float offset) {
    for (int i = at; i < at + count; i++) {
        parts->steps[i] = step;
        parts->offsets[i] = offset;
    }
}

/* Quants of a block: those of a part without a step are 0. */
INLINE void round_parts(const float *x, const Parts *parts, float low, float high, uint8_t *quants) {
    int32_t found[MOST];
    for (int i = 0; i < MOST; i++) {
        float v = cut((x[i] + parts->offsets[i]) / parts->steps[i], low, high);
        found[i] = (int32_t)(nearest(v) - low);
    }
    for (int i = 0; i < MOST; i++) quants[i] = (uint8_t)(parts->steps[i] == 0.0f ? 0 : found[i]);
}

INLINE void level_part(const float *x, int count, float step, uint8_t *quants) {
    float factor = inverse(step);
    for (int i = 0; i < count; i++) {
        float v = x[i] * factor;
        int above = 0;
        for (int k = 0; k < 15; k++) above += !(v - levels[k] < levels[k + 1] - v);
        quants[i] = (uint8_t)above;
    }
}

#define GIVEN(NAME, ELEMENTS, SIZE, SCALES)                                                                            \
    VECTORISED static void NAME(const uint8_t *values, const uint8_t *scales, uint8_t *out, Py_ssize_t count) {        \
        float x[MOST];                                                                                                 \
        uint8_t quants[MOST];                                                                                          \
        for (Py_ssize_t n = 0; n < count; n++, values += 4 * (ELEMENTS), scales += (SCALES), out += (SIZE)) {          \
            load(values, x, ELEMENTS);                                                                                 \
            block_##NAME(x, scales, quants, out);                                                                      \
        }                                                                                                              \
    }

INLINE void block_q2_k(const float *x, const uint8_t *scales, uint8_t *quants, uint8_t *out) {
    Parts parts;
    float d = load_half(scales + 16), m = load_half(scales + 18);
    for (int j = 0; j < 16; j++)
        set_part(&parts, 16 * j, 16, d * (float)(scales[j] & 15), m * (float)(scales[j] >> 4));
    round_parts(x, &parts, 0.0f, 3.0f, quants);
    memcpy(out, scales, 16);
    pairs(quants, 0, out + 16);
    memcpy(out + 80, scales + 16, 4);
}

GIVEN(q2_k, 256, 84, 20)

INLINE void block_q3_k(const float *x, const uint8_t *scales, uint8_t *quants, uint8_t *out) {
    Parts parts;
    float d = load_half(scales + 12);
    for (int j = 0; j < 16; j++) {
        int low = j < 8 ? scales[j] & 15 : scales[j - 8] >> 4, high = scales[8 + j % 4] >> (2 * (j / 4)) & 3;
        set_part(&parts, 16 * j, 16, d * (float)((low | high << 4) - 32), 0.0f);
    }
    round_parts(x, &parts, -4.0f, 3.0f, quants);
    columns(quants, 2, out);
    pairs(quants, 0, out + 32);
    memcpy(out + 96, scales, 14);
}

GIVEN(q3_k, 256, 110, 14)

/* The parts of Q4_K and Q5_K, of which scale and minimum have six bits. */
INLINE void round_pairs(const float *x, const uint8_t *scales, float last, uint8_t *quants) {
    Parts parts;
    float d = load_half(scales), m = load_half(scales + 2);
    const uint8_t *low = scales + 4, *middle = scales + 8, *high = scales + 12;
    for (int j = 0; j < 8; j++) {
        int factor = j < 4 ? low[j] & 63 : (high[j - 4] & 15) | low[j - 4] >> 6 << 4;
        int minimum = j < 4 ? middle[j] & 63 : high[j - 4] >> 4 | middle[j - 4] >> 6 << 4;
        set_part(&parts, 32 * j, 32, d * (float)factor, m * (float)minimum);
    }
    round_parts(x, &parts, 0.0f, last, quants);
}

INLINE void block_q4_k(const float *x, const uint8_t *scales, uint8_t *quants, uint8_t *out) {
    round_pairs(x, scales, 15.0f, quants);
    memcpy(out, scales, 16);
    nibbles(quants, 256, 32, out + 16);
}

GIVEN(q4_k, 256, 144, 16)

INLINE void block_q5_k(const float *x, const uint8_t *scales, uint8_t *quants, uint8_t *out) {
    round_pairs(x, scales, 31.0f, quants);
    memcpy(out, scales, 16);
    columns(quants, 4, out + 16);
    nibbles(quants, 256, 32, out + 48);
}

GIVEN(q5_k, 256, 176, 16)

INLINE void block_q6_k(const float *x, const uint8_t *scales, uint8_t *quants, uint8_t *out) {
    Parts parts;
    float d = load_half(scales + 16);
    for (int j = 0; j < 16; j++)
        set_part(&parts, 16 * j, 16, d * (float)(int8_t)scales[j], 0.0f);
    round_parts(x, &parts, -32.0f, 31.0f, quants);
    nibbles(quants, 256, 64, out);
    pairs(quants, 4, out + 128);
    memcpy(out + 192, scales, 18);
}

GIVEN(q6_k, 256, 210, 18)

INLINE void block_iq4_nl(const float *x, const uint8_t *scales, uint8_t *quants, uint8_t *out) {
    level_part(x, 32, load_half(scales), quants);
    memcpy(out, scales, 2);
    nibbles(quants, 32, 16, out + 2);
}

GIVEN(iq4_nl, 32, 18, 2)

INLINE void block_iq4_xs(const float *x, const uint8_t *scales, uint8_t *quants, uint8_t *out) {
    float d = load_half(scales);
    int top = scales[2] | scales[3] << 8;
    for (int j = 0; j < 8; j++) {
        int low = scales[4 + j / 2] >> (4 * (j % 2)) & 15, high = top >> (2 * j) & 3;
        level_part(x + 32 * j, 32, d * (float)((low | high << 4) - 32), quants + 32 * j);
    }
    memcpy(out, scales, 8);
    nibbles(quants, 256, 16, out + 8);
}

GIVEN(iq4_xs, 256, 136, 8)

/* ---- what Python calls */

typedef void Rows(const uint8_t *, const uint8_t *, uint8_t *, Py_ssize_t);

typedef struct {
    int code, elements, size, scales, has_rule;
    Rows *rows;
} Type;

PyObject *gguf(PyObject *self, PyObject *args) {
    static const Type types[] = {
        {2, 32, 18, 2, 1, q4_0},     {3, 32, 20, 4, 1, q4_1},     {6, 32, 22, 2, 1, q5_0},    {7, 32, 24, 4, 1, q5_1},
        {8, 32, 34, 2, 1, q8_0},     {10, 256, 84, 20, 0, q2_k},  {11, 256, 110, 14, 0, q3_k}, {12, 256, 144, 16, 0, q4_k},
        {13, 256, 176, 16, 0, q5_k}, {14, 256, 210, 18, 0, q6_k}, {20, 32, 18, 2, 0, iq4_nl}, {23, 256, 136, 8, 0, iq4_xs},
    };
    const Type *type = types, *end = types + sizeof types / sizeof *types;
    Py_buffer held[3] = {{0}};
    PyObject *scales;
    Py_ssize_t count;
    int code, taken = 2;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*w*Oi", &held[0], &held[1], &scales, &code)) return NULL;
    if (scales != Py_None) {
        if (PyObject_GetBuffer(scales, &held[2], PyBUF_SIMPLE)) return refuse("", held, 2);
        taken = 3;
    }
    while (type < end && type->code != code) type++;
    if (type == end) return refuse("the blocks do not fit the floats", held, taken);
    count = held[0].len / (4 * type->elements);
    if (held[0].len % (4 * type->elements) || held[1].len != count * type->size ||
        (taken == 3 ? held[2].len != count * type->scales : !type->has_rule))
        return refuse("the blocks do not fit the floats", held, taken);
    Py_BEGIN_ALLOW_THREADS
    FLOATS_BEGIN
    type->rows(held[0].buf, taken == 3 ? held[2].buf : NULL, held[1].buf, count);
    FLOATS_END
    Py_END_ALLOW_THREADS
    while (taken) PyBuffer_Release(&held[--taken]);
    Py_RETURN_NONE;
}
