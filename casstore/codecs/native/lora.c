/* Compiled twin of casstore/codecs/delta/operations/lora.py: weights with a low-rank product added, step by step. */

#include "floats.h"

#define TILE 512
#define MAX_RANK 512
enum { ROUND_PRODUCT = 1, ROUND_SCALED = 2, SCALE_FIRST = 4, FUSED = 8 };

/* Two rows of the product at once, as each element of A is widened only once for both. */
VECTORISED static void multiply(float *restrict one, float *restrict two, const uint8_t *restrict a, double b, double c, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        float x;
        memcpy(&x, a + 4 * i, 4);
        one[i] = (float)((double)one[i] + b * (double)x);
        two[i] = (float)((double)two[i] + c * (double)x);
    }
}

INLINE float to_f16(float x) { return float_of(widen_f16(narrow_to_f16(bits_of(x)))); }

INLINE float to_bf16(float x) { return float_of(widen_bf16(narrow_to_bf16(bits_of(x)))); }

INLINE float to_f32(float x) { return x; }

/* The bits of a NaN that arithmetic made differ between machines. */
#define MERGE(NAME, ROUND)                                                                                             \
    VECTORISED static void NAME(const uint8_t *restrict weights, const float *restrict product, uint8_t *restrict out, \
                                Py_ssize_t count, float scale, int rule) {                                             \
        for (Py_ssize_t i = 0; i < count; i++) {                                                                       \
            float w, p = product[i], t, sum;                                                                           \
            uint32_t bits;                                                                                             \
            memcpy(&w, weights + 4 * i, 4);                                                                            \
            p = rule & ROUND_PRODUCT ? ROUND(p) : p;                                                                   \
            t = p * scale;                                                                                             \
            t = rule & ROUND_SCALED ? ROUND(t) : t;                                                                    \
            sum = w + t;                                                                                               \
            sum = rule & FUSED ? (float)((double)w + (double)p * (double)scale) : sum;                                 \
            bits = bits_of(ROUND(sum));                                                                                \
            bits = (bits & 0x7FFFFFFF) > 0x7F800000u ? 0x7FC00000u : bits;                                             \
            memcpy(out + 4 * i, &bits, 4);                                                                             \
        }                                                                                                              \
    }

MERGE(merge_f32, to_f32)
MERGE(merge_f16, to_f16)
MERGE(merge_bf16, to_bf16)

static float rounded(int format, float x) { return format == F16 ? to_f16(x) : format == BF16 ? to_bf16(x) : x; }

typedef struct {
    const uint8_t *weights, *a, *b;
    uint8_t *out;
    Py_ssize_t count, first, columns, rank, block;
    int format, rule;
    float scale;
} Product;

static double factor(const Product *p, Py_ssize_t row, Py_ssize_t k) {
    float b;
    memcpy(&b, p->b + 4 * (row * p->rank + k), 4);
    return p->rule & SCALE_FIRST ? rounded(p->format, p->scale * b) : b;
}

static void merge_row(const Product *p, Py_ssize_t row, Py_ssize_t from, Py_ssize_t end, const float *product) {
    Py_ssize_t low = row * p->columns + from, high = row * p->columns + end, last = p->first + p->count;
    float scale = p->rule & SCALE_FIRST ? 1.0f : p->scale;
    if (low < p->first) {
        product += p->first - low;
        low = p->first;
    }
    if (high > last) high = last;
    if (low >= high) return;
    (p->format == F16 ? merge_f16 : p->format == BF16 ? merge_bf16 : merge_f32)(
        p->weights + 4 * (low - p->first), product, p->out + 4 * (low - p->first), high - low, scale, p->rule);
}

/* Whether columns `from` to before `end` of a row have any of the elements. */
static int is_needed(const Product *p, Py_ssize_t row, Py_ssize_t from, Py_ssize_t end) {
    return row * p->columns + end > p->first && row * p->columns + from < p->first + p->count;
}

static void run(const Product *p) {
    float one[TILE], two[TILE], sums[2][TILE];
    double factors[2][MAX_RANK];
    Py_ssize_t rows = (p->first + p->count + p->columns - 1) / p->columns;
    for (Py_ssize_t row = 0; row < rows; row += 2) {
        Py_ssize_t other = row + 1 < rows ? row + 1 : row;
        for (Py_ssize_t k = 0; k < p->rank; k++) {
            factors[0][k] = factor(p, row, k);
            factors[1][k] = factor(p, other, k);
        }
        for (Py_ssize_t at = 0; at < p->columns; at += TILE) {
            Py_ssize_t end = p->columns - at < TILE ? p->columns : at + TILE;
            if (!is_needed(p, row, at, end) && !is_needed(p, other, at, end)) continue;
            for (Py_ssize_t from = 0; from < p->rank; from += p->block) {
                Py_ssize_t to = p->rank - from < p->block ? p->rank : from + p->block;
                float *first = from ? one : sums[0], *second = from ? two : sums[1];
                memset(first, 0, sizeof one);
                memset(second, 0, sizeof two);
                for (Py_ssize_t k = from; k < to; k++)
                    multiply(first, second, p->a + 4 * (k * p->columns + at), factors[0][k], factors[1][k], end - at);
                for (Py_ssize_t i = 0; from && i < end - at; i++) {
                    sums[0][i] += one[i];
                    sums[1][i] += two[i];
                }
            }
            merge_row(p, row, at, end, sums[0]);
            if (other != row) merge_row(p, other, at, end, sums[1]);
        }
    }
}

PyObject *lora(PyObject *self, PyObject *args) {
    Py_buffer held[4];
    Product p;
    Py_ssize_t rows;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*w*iinnnnf", &held[0], &held[1], &held[2], &held[3], &p.format, &p.rule, &p.rank,
                          &p.block, &p.columns, &p.first, &p.scale))
        return NULL;
    p.weights = held[0].buf;
    p.a = held[1].buf;
    p.b = held[2].buf;
    p.out = held[3].buf;
    p.count = held[0].len / 4;
    if (held[0].len % 4 || held[3].len != held[0].len || p.rank < 1 || p.rank > MAX_RANK || p.block < 1 || p.block > p.rank || p.columns < 1 ||
        p.columns > (Py_ssize_t)1 << 32 || p.first < 0 || p.first >= p.columns || p.format < F32 || p.format > BF16 ||
        p.rule < 0 || p.rule > 15 || held[1].len != 4 * p.rank * p.columns)
        return refuse("the matrices do not fit one another", held, 4);
    rows = (p.first + p.count + p.columns - 1) / p.columns;
    if (held[2].len / 4 / p.rank != rows || held[2].len % (4 * p.rank)) return refuse("the matrices do not fit one another", held, 4);
    Py_BEGIN_ALLOW_THREADS
    FLOATS_BEGIN
    run(&p);
    FLOATS_END
    Py_END_ALLOW_THREADS
    for (int k = 0; k < 4; k++) PyBuffer_Release(&held[k]);
    Py_RETURN_NONE;
}
