/* Compiled twin of casstore/codecs/delta/operations/quantise.py: floats to integers of 4, 8 or 16 bits, by scale and zero point. */

#include "floats.h"

#define TILE 1024
enum { RECIPROCAL = 1, ZERO_FIRST = 2, HALF_AWAY = 4 };

/* Which scale an element has. */
typedef struct {
    const float *scales, *zeros;
    uint64_t inner, channels, outer;
} Channels;

typedef struct {
    float divisors[TILE]; /* or factors */
    float zeros[TILE];
} Tile;

static void fill(const Channels *all, uint64_t element, Py_ssize_t count, Tile *tile) {
    Py_ssize_t done = 0;
    while (done < count) {
        uint64_t at = element + (uint64_t)done, channel = at / all->inner % all->channels;
        /* Either neighbours have one scale, or one after the other. */
        uint64_t step = all->inner == 1;
        uint64_t run = step ? all->channels - channel : all->inner - at % all->inner;
        if (all->outer) {
            uint64_t rest = all->outer - at % all->outer;
            run = run < rest ? run : rest;
            channel += at / all->outer * all->channels;
        }
        if (run > (uint64_t)(count - done)) run = (uint64_t)(count - done);
        for (uint64_t i = 0; i < run; i++, done++, channel += step) {
            tile->divisors[done] = all->scales[channel];
            tile->zeros[done] = all->zeros[channel];
        }
    }
}

#define ROUND(NAME, ROUNDED, SCALED)                                                                                   \
    VECTORISED static void NAME(const uint8_t *restrict values, const Tile *restrict tile, int32_t *restrict out,      \
                                Py_ssize_t count, float low, float high, float first, float last) {                    \
        for (Py_ssize_t i = 0; i < count; i++) {                                                                       \
            float x, before = tile->zeros[i] * first, after = tile->zeros[i] * last, least, most;                      \
            memcpy(&x, values + 4 * i, 4);                                                                             \
            x = SCALED;                                                                                                \
            x = tile->divisors[i] == 0.0f ? 0.0f : x;                                                                  \
            x = x + before;                                                                                            \
            least = low - after;                                                                                       \
            most = high - after;                                                                                       \
            x = x > least ? x : least;                                                                                 \
            x = x < most ? x : most;                                                                                   \
            out[i] = (int32_t)(ROUNDED(x) + after);                                                                    \
        }                                                                                                              \
    }

ROUND(divide_even, nearest, x / tile->divisors[i])
ROUND(divide_away, nearest_away, x / tile->divisors[i])
ROUND(multiply_even, nearest, x * (1.0f / tile->divisors[i]))
ROUND(multiply_away, nearest_away, x * (1.0f / tile->divisors[i]))

#define STORE(NAME, OUT)                                                                                               \
    VECTORISED static void NAME(const int32_t *restrict from, uint8_t *restrict out, Py_ssize_t count) {               \
        for (Py_ssize_t i = 0; i < count; i++) {                                                                       \
            OUT value = (OUT)from[i];                                                                                  \
            memcpy(out + i * (Py_ssize_t)sizeof value, &value, sizeof value);                                          \
        }                                                                                                              \
    }

STORE(store_1, uint8_t)
STORE(store_2, uint16_t)

static void store_nibbles(const int32_t *from, uint8_t *out, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i + 1 < count; i += 2) out[i / 2] = (uint8_t)((from[i] & 15) | (from[i + 1] & 15) << 4);
    if (count % 2) out[count / 2] = (uint8_t)(from[count - 1] & 15);
}

static void run(const Channels *all, const uint8_t *values, Py_ssize_t count, uint64_t first, int bits, float low, float high, int rule, uint8_t *out) {
    Tile tile;
    int32_t found[TILE];
    int single = all->channels == 1 && !all->outer;
    for (Py_ssize_t at = 0; at < count; at += TILE) {
        Py_ssize_t some = count - at < TILE ? count - at : TILE;
        const uint8_t *from = values + 4 * at;
        float before = rule & ZERO_FIRST ? 1.0f : 0.0f, after = 1.0f - before;
        if (!single || at == 0) fill(all, first + (uint64_t)at, some, &tile);
        if (rule & RECIPROCAL) (rule & HALF_AWAY ? multiply_away : multiply_even)(from, &tile, found, some, low, high, before, after);
        else (rule & HALF_AWAY ? divide_away : divide_even)(from, &tile, found, some, low, high, before, after);
        if (bits == 4) store_nibbles(found, out + at / 2, some);
        else if (bits == 8) store_1(found, out + at, some);
        else store_2(found, out + 2 * at, some);
    }
}

PyObject *quantise(PyObject *self, PyObject *args) {
    Py_buffer held[4];
    int bits, low, high, rule;
    unsigned long long first, inner, outer, channels, last;
    Py_ssize_t count, number;
    Channels all;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*w*y*y*iiiiKKKK", &held[0], &held[1], &held[2], &held[3], &bits, &low, &high, &rule,
                          &first, &inner, &channels, &outer))
        return NULL;
    count = held[0].len / 4;
    number = held[2].len / 4;
    if (held[0].len % 4 || held[2].len % 4 || held[3].len != held[2].len || (bits != 4 && bits != 8 && bits != 16) ||
        held[1].len != (count * bits + 7) / 8 || rule < 0 || rule > 7 || low < -65536 || high > 65536 || low > high ||
        inner < 1 || channels < 1 || first > (unsigned long long)1 << 63 || channels > (unsigned long long)number ||
        (uintptr_t)held[2].buf % sizeof(float) || (uintptr_t)held[3].buf % sizeof(float))
        return refuse("the scales do not fit the elements", held, 4);
    last = count ? first + (unsigned long long)count - 1 : first;
    if (outer && last / outer >= (unsigned long long)number / channels) return refuse("the scales do not fit the elements", held, 4);
    all = (Channels){held[2].buf, held[3].buf, inner, channels, outer};
    Py_BEGIN_ALLOW_THREADS
    FLOATS_BEGIN
    run(&all, held[0].buf, count, first, bits, (float)low, (float)high, rule, held[1].buf);
    FLOATS_END
    Py_END_ALLOW_THREADS
    for (int k = 0; k < 4; k++) PyBuffer_Release(&held[k]);
    Py_RETURN_NONE;
}
