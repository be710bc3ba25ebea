/* Compiled twins of casstore/codecs/regroup.py, which is the specification: both give the same bytes.
 *
 * Elements are `stride` bytes, little-endian; a run is the same adjacent byte columns of every element, one
 * element after the other. Work goes in tiles that stay in the core's first cache; the loops over a tile are
 * written so that compilers vectorise them. codecs/native/ has the kernels of deltas.
 */

#include "codecs/native/kernels.h"
#include "codecs/native/huffman.h"
#include "codecs/native/regroup.h"

#if defined(_MSC_VER)
#define restrict __restrict
#endif

#define TILE 2048

/* ---- taking elements apart */

#define SPLIT_COLUMN(NAME, WORD, OUT)                                                          \
    VECTORISED static void NAME(const uint8_t *restrict body, uint8_t *restrict out,           \
                                Py_ssize_t count, int shift) {                                 \
        for (Py_ssize_t i = 0; i < count; i++) {                                               \
            WORD word;                                                                         \
            OUT part;                                                                          \
            memcpy(&word, body + i * (Py_ssize_t)sizeof word, sizeof word);                    \
            part = (OUT)(word >> shift);                                                       \
            memcpy(out + i * (Py_ssize_t)sizeof part, &part, sizeof part);                     \
        }                                                                                      \
    }

SPLIT_COLUMN(split_2_1, uint16_t, uint8_t)
SPLIT_COLUMN(split_4_1, uint32_t, uint8_t)
SPLIT_COLUMN(split_4_2, uint32_t, uint16_t)
SPLIT_COLUMN(split_8_1, uint64_t, uint8_t)
SPLIT_COLUMN(split_8_2, uint64_t, uint16_t)
SPLIT_COLUMN(split_8_4, uint64_t, uint32_t)

/* Of the 16 bits s eeeeeeee mmmmmmm at the top: smmmmmmm to `lower`, eeeeeeee to `upper`. */
#define SPLIT_SIGN(NAME, WORD, SHIFT)                                                          \
    VECTORISED static void NAME(const uint8_t *restrict body, uint8_t *restrict lower,         \
                                uint8_t *restrict upper, Py_ssize_t count) {                   \
        for (Py_ssize_t i = 0; i < count; i++) {                                               \
            WORD word;                                                                         \
            uint16_t top;                                                                      \
            memcpy(&word, body + i * (Py_ssize_t)sizeof word, sizeof word);                    \
            top = (uint16_t)(word >> (SHIFT));                                                 \
            upper[i] = (uint8_t)(top >> 7);                                                    \
            lower[i] = (uint8_t)((top & 0x7F) | ((top >> 8) & 0x80));                          \
        }                                                                                      \
    }

SPLIT_SIGN(split_sign_2, uint16_t, 0)
SPLIT_SIGN(split_sign_4, uint32_t, 16)

static void split_any(const uint8_t *body, Py_ssize_t stride, const Run *run, uint8_t *out, Py_ssize_t count) {
    const uint8_t *from = body + run->start;
    if (run->columns == 1) {
        for (Py_ssize_t i = 0; i < count; i++) out[i] = from[i * stride];
        return;
    }
    for (Py_ssize_t i = 0; i < count; i++) memcpy(out + i * run->columns, from + i * stride, (size_t)run->columns);
}

static void split_run(const uint8_t *body, Py_ssize_t stride, const Run *run, uint8_t *out, Py_ssize_t count) {
    int shift = 8 * (int)run->start;
    switch (stride * 16 + run->columns) {
    case 2 * 16 + 1: split_2_1(body, out, count, shift); return;
    case 4 * 16 + 1: split_4_1(body, out, count, shift); return;
    case 4 * 16 + 2: split_4_2(body, out, count, shift); return;
    case 8 * 16 + 1: split_8_1(body, out, count, shift); return;
    case 8 * 16 + 2: split_8_2(body, out, count, shift); return;
    case 8 * 16 + 4: split_8_4(body, out, count, shift); return;
    default: split_any(body, stride, run, out, count);
    }
}

void casstore_split(const uint8_t *body, Py_ssize_t elements, Py_ssize_t stride, int sign, const Run *runs, Py_ssize_t number) {
    Py_ssize_t plain = sign ? number - 2 : number;
    for (Py_ssize_t at = 0; at < elements; at += TILE) {
        Py_ssize_t count = elements - at < TILE ? elements - at : TILE;
        const uint8_t *tile = body + at * stride;
        for (Py_ssize_t k = 0; k < plain; k++)
            split_run(tile, stride, &runs[k], runs[k].data + at * runs[k].columns, count);
        if (sign && stride == 2) split_sign_2(tile, runs[plain].data + at, runs[plain + 1].data + at, count);
        if (sign && stride == 4) split_sign_4(tile, runs[plain].data + at, runs[plain + 1].data + at, count);
    }
}

/* ---- putting elements together */

#define MERGE_COLUMN(NAME, WORD, IN)                                                           \
    VECTORISED static void NAME(WORD *restrict words, const uint8_t *restrict data,            \
                                Py_ssize_t count, int shift) {                                 \
        for (Py_ssize_t i = 0; i < count; i++) {                                               \
            IN part;                                                                           \
            memcpy(&part, data + i * (Py_ssize_t)sizeof part, sizeof part);                    \
            words[i] |= (WORD)((WORD)part << shift);                                           \
        }                                                                                      \
    }

MERGE_COLUMN(merge_4_1, uint32_t, uint8_t)
MERGE_COLUMN(merge_4_2, uint32_t, uint16_t)
MERGE_COLUMN(merge_8_1, uint64_t, uint8_t)
MERGE_COLUMN(merge_8_2, uint64_t, uint16_t)
MERGE_COLUMN(merge_8_4, uint64_t, uint32_t)

/* Fill `words` with what the constant runs say: all others are combined with it by "or". */
#define FILL(NAME, WORD)                                                                       \
    static void NAME(WORD *words, WORD value, Py_ssize_t count) {                              \
        for (Py_ssize_t i = 0; i < count; i++) words[i] = value;                               \
    }

FILL(fill_4, uint32_t)
FILL(fill_8, uint64_t)

/* Elements of the usual runs in one pass: `lower` and `upper` are the two top bytes, perhaps sign-transformed. */
#define PLAIN_TOP(lower, upper) ((unsigned)(lower) | (unsigned)(upper) << 8)
#define SIGN_TOP(lower, upper) ((unsigned)(upper) << 7 | ((lower) & 0x7Fu) | ((lower) & 0x80u) << 8)

#define JOIN_2(NAME, TOP)                                                                      \
    VECTORISED static void NAME(uint8_t *restrict out, const uint8_t *restrict lower,          \
                                const uint8_t *restrict upper, Py_ssize_t count) {             \
        for (Py_ssize_t i = 0; i < count; i++) {                                               \
            uint16_t word = (uint16_t)TOP(lower[i], upper[i]);                                 \
            memcpy(out + 2 * i, &word, 2);                                                     \
        }                                                                                      \
    }

JOIN_2(join_2, PLAIN_TOP)
JOIN_2(join_sign_2, SIGN_TOP)

#define JOIN_4(NAME, TOP)                                                                      \
    VECTORISED static void NAME(uint8_t *restrict out, const uint8_t *restrict pairs,          \
                                const uint8_t *restrict lower, const uint8_t *restrict upper,  \
                                Py_ssize_t count) {                                            \
        for (Py_ssize_t i = 0; i < count; i++) {                                               \
            uint16_t pair;                                                                     \
            uint32_t word;                                                                     \
            memcpy(&pair, pairs + 2 * i, 2);                                                   \
            word = (uint32_t)pair | (uint32_t)TOP(lower[i], upper[i]) << 16;                   \
            memcpy(out + 4 * i, &word, 4);                                                     \
        }                                                                                      \
    }

JOIN_4(join_4, PLAIN_TOP)
JOIN_4(join_sign_4, SIGN_TOP)

#define JOIN_ALL(NAME, TOP)                                                                    \
    VECTORISED static void NAME(uint8_t *restrict out, const uint8_t *restrict first,          \
                                const uint8_t *restrict second, const uint8_t *restrict lower, \
                                const uint8_t *restrict upper, Py_ssize_t count) {             \
        for (Py_ssize_t i = 0; i < count; i++) {                                               \
            uint32_t word = first[i] | (uint32_t)second[i] << 8 | (uint32_t)TOP(lower[i], upper[i]) << 16; \
            memcpy(out + 4 * i, &word, 4);                                                     \
        }                                                                                      \
    }

JOIN_ALL(join_all_4, PLAIN_TOP)
JOIN_ALL(join_all_sign_4, SIGN_TOP)

/* Runs of the usual widths, two or four bytes in single columns or with the first two together, and tiles of the constant ones. */
typedef struct {
    const Run *runs;
    Py_ssize_t number;
    uint8_t constants[4][2 * TILE];
} Usual;

static int is_usual(Py_ssize_t stride, const Run *runs, Py_ssize_t number) {
    if (number < 2 || runs[number - 1].columns != 1 || runs[number - 2].columns != 1) return 0;
    return (stride == 2 && number == 2) || (stride == 4 && (number == 3 || number == 4));
}

static void begin_usual(Usual *usual, const Run *runs, Py_ssize_t number) {
    usual->runs = runs;
    usual->number = number;
    for (Py_ssize_t k = 0; k < number; k++)
        for (Py_ssize_t i = 0; runs[k].constant && i < 2 * TILE; i++)
            usual->constants[k][i] = runs[k].data[i % runs[k].columns];
}

static const uint8_t *tile_of(const Usual *usual, Py_ssize_t run, Py_ssize_t at) {
    const Run *from = &usual->runs[run];
    return from->constant ? usual->constants[run] : from->data + at * from->columns;
}

/* Put `count` elements from `at` on together, at most TILE. */
static void join_usual(const Usual *usual, uint8_t *out, Py_ssize_t at, Py_ssize_t count, int sign) {
    const uint8_t *lower = tile_of(usual, usual->number - 2, at), *upper = tile_of(usual, usual->number - 1, at);
    if (usual->number == 2) (sign ? join_sign_2 : join_2)(out, lower, upper, count);
    else if (usual->number == 3) (sign ? join_sign_4 : join_4)(out, tile_of(usual, 0, at), lower, upper, count);
    else (sign ? join_all_sign_4 : join_all_4)(out, tile_of(usual, 0, at), tile_of(usual, 1, at), lower, upper, count);
}

static int merge_usual(uint8_t *out, const uint8_t *expected, Py_ssize_t elements, Py_ssize_t stride, int sign,
                       const Run *runs, Py_ssize_t number) {
    uint8_t memory[4 * TILE];
    Usual usual;
    begin_usual(&usual, runs, number);
    for (Py_ssize_t at = 0; at < elements; at += TILE) {
        Py_ssize_t count = elements - at < TILE ? elements - at : TILE;
        join_usual(&usual, out != NULL ? out + at * stride : memory, at, count, sign);
        if (out == NULL && memcmp(expected + at * stride, memory, (size_t)(count * stride)) != 0) return 0;
    }
    return 1;
}

/* Write the elements to `out` or, where that is NULL, compare them with `expected`; say whether they are equal. */
static int merge_words(uint8_t *out, const uint8_t *expected, Py_ssize_t elements, Py_ssize_t stride, int sign,
                       const Run *runs, Py_ssize_t number) {
    uint64_t memory[TILE];
    uint64_t constant = 0;
    /* All elements of two bytes are such, and all that are sign-transformed. */
    if (is_usual(stride, runs, number)) return merge_usual(out, expected, elements, stride, sign, runs, number);
    for (Py_ssize_t k = 0; k < number; k++)
        if (runs[k].constant) memcpy((uint8_t *)&constant + runs[k].start, runs[k].data, (size_t)runs[k].columns);
    for (Py_ssize_t at = 0; at < elements; at += TILE) {
        Py_ssize_t count = elements - at < TILE ? elements - at : TILE;
        if (stride == 4) fill_4((uint32_t *)memory, (uint32_t)constant, count);
        else fill_8(memory, constant, count);
        for (Py_ssize_t k = 0; k < number; k++) {
            const uint8_t *data = runs[k].data + at * runs[k].columns;
            int shift = 8 * (int)runs[k].start;
            if (runs[k].constant) continue;
            switch (stride * 16 + runs[k].columns) {
            case 4 * 16 + 1: merge_4_1((uint32_t *)memory, data, count, shift); break;
            case 4 * 16 + 2: merge_4_2((uint32_t *)memory, data, count, shift); break;
            case 8 * 16 + 1: merge_8_1(memory, data, count, shift); break;
            case 8 * 16 + 2: merge_8_2(memory, data, count, shift); break;
            default: merge_8_4(memory, data, count, shift);
            }
        }
        if (out != NULL) memcpy(out + at * stride, memory, (size_t)(count * stride));
        else if (memcmp(expected + at * stride, memory, (size_t)(count * stride)) != 0) return 0;
    }
    return 1;
}

static void merge_any(uint8_t *out, Py_ssize_t elements, Py_ssize_t stride, const Run *runs, Py_ssize_t number) {
    for (Py_ssize_t at = 0; at < elements; at += TILE) {
        Py_ssize_t count = elements - at < TILE ? elements - at : TILE;
        for (Py_ssize_t k = 0; k < number; k++) {
            const Run *run = &runs[k];
            Py_ssize_t step = run->constant ? 0 : run->columns;
            const uint8_t *data = run->data + at * step;
            uint8_t *to = out + at * stride + run->start;
            for (Py_ssize_t i = 0; i < count; i++) memcpy(to + i * stride, data + i * step, (size_t)run->columns);
        }
    }
}

static int is_any(const uint8_t *expected, Py_ssize_t elements, Py_ssize_t stride, const Run *runs, Py_ssize_t number) {
    for (Py_ssize_t at = 0; at < elements; at += TILE) {
        Py_ssize_t count = elements - at < TILE ? elements - at : TILE;
        for (Py_ssize_t k = 0; k < number; k++) {
            const Run *run = &runs[k];
            Py_ssize_t step = run->constant ? 0 : run->columns;
            const uint8_t *data = run->data + at * step;
            const uint8_t *given = expected + at * stride + run->start;
            for (Py_ssize_t i = 0; i < count; i++)
                if (memcmp(given + i * stride, data + i * step, (size_t)run->columns) != 0) return 0;
        }
    }
    return 1;
}

static int has_words(Py_ssize_t stride, const Run *runs, Py_ssize_t number) {
    if (stride != 2 && stride != 4 && stride != 8) return 0;
    for (Py_ssize_t k = 0; k < number; k++) {
        Py_ssize_t columns = runs[k].columns;
        if (!(columns == 1 || (columns == 2 && stride > 2) || (columns == 4 && stride == 8))) return 0;
    }
    return 1;
}

/* ---- what Python calls */

PyObject *refuse(const char *message, Py_buffer *buffers, int count) {
    while (count) PyBuffer_Release(&buffers[--count]);
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, message);
    return NULL;
}

int casstore_may_move_sign(Py_ssize_t stride, const Run *runs, Py_ssize_t number) {
    return (stride == 2 || stride == 4) && number >= 2 && runs[number - 1].columns == 1 && runs[number - 2].columns == 1;
}

#define UNCOVERED "the runs do not cover the elements"

/* Whether so many bytes may be elements of `stride` bytes, in so many runs. */
static int are_elements(Py_ssize_t size, Py_ssize_t stride, Py_ssize_t number) {
    return stride >= 1 && stride <= MAX_STRIDE && number >= 1 && number <= MAX_RUNS && size % stride == 0;
}

/* Notes run `at` of `width` columns, behind those before it; returns whether it has room. */
static int place_run(Run *runs, Py_ssize_t at, Py_ssize_t width, Py_ssize_t stride) {
    Py_ssize_t start = at ? runs[at - 1].start + runs[at - 1].columns : 0;
    runs[at] = (Run){start, width, NULL, 0};
    return width >= 1 && width <= stride - start;
}

/* Whether the runs hold all columns, and those that the sign transform takes if there is one. */
static int are_whole(const Run *runs, Py_ssize_t number, Py_ssize_t stride, int sign) {
    if (runs[number - 1].start + runs[number - 1].columns != stride) return 0;
    return !sign || casstore_may_move_sign(stride, runs, number);
}

static PyObject *split(PyObject *self, PyObject *args) {
    Py_buffer body, out;
    Py_ssize_t stride, number, elements;
    int sign;
    PyObject *columns;
    Run runs[MAX_RUNS];
    (void)self;
    if (!PyArg_ParseTuple(args, "y*w*npO!", &body, &out, &stride, &sign, &PyTuple_Type, &columns)) return NULL;
    number = PyTuple_GET_SIZE(columns);
    if (!are_elements(body.len, stride, number) || out.len < body.len) goto wrong;
    elements = body.len / stride;
    for (Py_ssize_t k = 0; k < number; k++) {
        if (!place_run(runs, k, PyLong_AsSsize_t(PyTuple_GET_ITEM(columns, k)), stride)) goto wrong;
        runs[k].data = (uint8_t *)out.buf + elements * runs[k].start;
    }
    if (!are_whole(runs, number, stride, sign)) goto wrong;
    BEGIN_WITHOUT_GIL(body.len)
    casstore_split(body.buf, elements, stride, sign, runs, number);
    END_WITHOUT_GIL
    PyBuffer_Release(&body);
    PyBuffer_Release(&out);
    Py_RETURN_NONE;
wrong:
    return refuse(UNCOVERED, (Py_buffer[]){body, out}, 2);
}

/* The runs that Python gave for elements of `stride` bytes, and the buffers that they borrow. */
typedef struct {
    Run runs[MAX_RUNS];
    Py_buffer held[MAX_RUNS];
    Py_ssize_t number, taken;
} Taken;

static void release_runs(Taken *from) {
    while (from->taken) PyBuffer_Release(&from->held[--from->taken]);
}

static int take_runs(Taken *into, PyObject *given, Py_ssize_t size, Py_ssize_t stride, int sign) {
    into->taken = 0;
    into->number = PyTuple_GET_SIZE(given);
    if (!are_elements(size, stride, into->number)) goto wrong;
    for (Py_ssize_t k = 0; k < into->number; k++) {
        Py_ssize_t width;
        Py_buffer *held = &into->held[k];
        int constant;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(given, k), "ny*p", &width, held, &constant)) goto wrong;
        into->taken++;
        if (!place_run(into->runs, k, width, stride) || held->len != (constant ? width : width * (size / stride))) goto wrong;
        into->runs[k].data = held->buf;
        into->runs[k].constant = constant;
    }
    if (are_whole(into->runs, into->number, stride, sign)) return 1;
wrong:
    release_runs(into);
    refuse(UNCOVERED, NULL, 0);
    return 0;
}

static PyObject *merge(PyObject *self, PyObject *args) {
    Py_buffer out;
    Taken taken;
    Py_ssize_t stride, elements;
    int sign;
    PyObject *given;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*npO!", &out, &stride, &sign, &PyTuple_Type, &given)) return NULL;
    if (!take_runs(&taken, given, out.len, stride, sign)) {
        PyBuffer_Release(&out);
        return NULL;
    }
    elements = out.len / stride;
    BEGIN_WITHOUT_GIL(out.len)
    if (sign || has_words(stride, taken.runs, taken.number))
        merge_words(out.buf, NULL, elements, stride, sign, taken.runs, taken.number);
    else merge_any(out.buf, elements, stride, taken.runs, taken.number);
    END_WITHOUT_GIL
    release_runs(&taken);
    PyBuffer_Release(&out);
    Py_RETURN_NONE;
}

static PyObject *merges_to(PyObject *self, PyObject *args) {
    Py_buffer expected;
    Taken taken;
    Py_ssize_t stride, elements;
    int sign, same;
    PyObject *given;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*npO!", &expected, &stride, &sign, &PyTuple_Type, &given)) return NULL;
    if (!take_runs(&taken, given, expected.len, stride, sign)) {
        PyBuffer_Release(&expected);
        return NULL;
    }
    elements = expected.len / stride;
    BEGIN_WITHOUT_GIL(expected.len)
    if (sign || has_words(stride, taken.runs, taken.number))
        same = merge_words(NULL, expected.buf, elements, stride, sign, taken.runs, taken.number);
    else same = is_any(expected.buf, elements, stride, taken.runs, taken.number);
    END_WITHOUT_GIL
    release_runs(&taken);
    PyBuffer_Release(&expected);
    return PyBool_FromLong(same);
}

static PyObject *equal(PyObject *self, PyObject *args) {
    Py_buffer one, other;
    int same;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*", &one, &other)) return NULL;
    same = one.len == other.len && memcmp(one.buf, other.buf, (size_t)(one.len < FIRST ? one.len : FIRST)) == 0;
    if (same && one.len > FIRST) {
        Py_BEGIN_ALLOW_THREADS
        same = memcmp(one.buf, other.buf, (size_t)one.len) == 0;
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&one);
    PyBuffer_Release(&other);
    return PyBool_FromLong(same);
}

static PyObject *repeats(PyObject *self, PyObject *args) {
    Py_buffer data;
    Py_ssize_t period;
    int same = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*n", &data, &period)) return NULL;
    if (period < 1 || period > data.len) return refuse("the period is not within the data", &data, 1);
    same = memcmp(data.buf, (const uint8_t *)data.buf + period, (size_t)(data.len - period < FIRST ? data.len - period : FIRST)) == 0;
    if (same && data.len - period > FIRST) {
        Py_BEGIN_ALLOW_THREADS
        same = memcmp(data.buf, (const uint8_t *)data.buf + period, (size_t)(data.len - period)) == 0;
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    return PyBool_FromLong(same);
}

static PyObject *literals(PyObject *self, PyObject *args) {
    Py_buffer out, *held;
    PyObject *pieces, *sizes = NULL;
    Py_ssize_t number, taken = 0;
    size_t room = 0, used = 0, *found;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!w*", &PyTuple_Type, &pieces, &out)) return NULL;
    number = PyTuple_GET_SIZE(pieces);
    held = PyMem_Calloc((size_t)number + 1, sizeof held[0]);
    found = PyMem_Calloc((size_t)number + 1, sizeof found[0]);
    if (held == NULL || found == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    for (; taken < number; taken++) {
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(pieces, taken), &held[taken], PyBUF_SIMPLE) != 0) goto end;
        room += casstore_literals_room((size_t)held[taken].len);
    }
    if (room > (size_t)out.len) {
        PyErr_SetString(PyExc_ValueError, "the frames have no room");
        goto end;
    }
    /* All of them at once: whoever gives the lock away may have to wait for it. */
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t k = 0; k < number; k++) {
        found[k] = casstore_literals(held[k].buf, (size_t)held[k].len, (uint8_t *)out.buf + used);
        used += found[k];
    }
    Py_END_ALLOW_THREADS
    sizes = PyTuple_New(number);
    for (Py_ssize_t k = 0; sizes != NULL && k < number; k++) {
        PyObject *size = PyLong_FromSize_t(found[k]);
        if (size == NULL) Py_CLEAR(sizes);
        else PyTuple_SET_ITEM(sizes, k, size);
    }
end:
    while (taken > 0) PyBuffer_Release(&held[--taken]);
    PyMem_Free(held);
    PyMem_Free(found);
    PyBuffer_Release(&out);
    return sizes;
}

static PyObject *probe_literals(PyObject *self, PyObject *args) {
    Py_buffer data;
    size_t size, found;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*", &data)) return NULL;
    /* As few bytes as a sample has take less time than giving the lock away. */
    size = casstore_literals(data.buf, (size_t)data.len, NULL);
    found = casstore_repeats(data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    return Py_BuildValue("nn", (Py_ssize_t)size, (Py_ssize_t)found);
}

static PyObject *column_bits(PyObject *self, PyObject *args) {
    Py_buffer data;
    uint64_t bits[15];
    PyObject *answer;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*", &data)) return NULL;
    if (data.len >= 16 << 20) return refuse("the sample is too large", &data, 1);
    casstore_column_bits(data.buf, (size_t)data.len, bits);
    PyBuffer_Release(&data);
    answer = PyList_New(15);
    for (int k = 0; answer != NULL && k < 15; k++) {
        PyObject *item = PyLong_FromUnsignedLongLong(bits[k]);
        if (item == NULL) Py_CLEAR(answer);
        else PyList_SET_ITEM(answer, k, item);
    }
    return answer;
}

static PyObject *literals_room(PyObject *self, PyObject *args) {
    Py_ssize_t size;
    (void)self;
    if (!PyArg_ParseTuple(args, "n", &size)) return NULL;
    return PyLong_FromSize_t(casstore_literals_room((size_t)size));
}

static PyMethodDef methods[] = {
    {"split", split, METH_VARARGS, "split(body, out, stride, sign, columns): write the runs of columns one after the other."},
    {"merge", merge, METH_VARARGS, "merge(out, stride, sign, ((columns, data, constant), ...)): the inverse of split."},
    {"planes", planes, METH_VARARGS, "planes(stretch, memory, out, edges, phase, stride, sign, ((columns, literals), ...), lead): write payloads of adjacent chunks; return their sizes, negative for a chunk as it is."},
    {"onnx_parts", onnx_parts, METH_VARARGS, "onnx_parts(data, begin, end, whole, base, (node, tensor, plain), depth, fields, tensors): find tensors in the parts of an ONNX graph; return where the last one read ends, how many fields are left, and the tensors."},
    {"onnx_tensor", onnx_tensor, METH_VARARGS, "onnx_tensor(data, begin, end, whole, base, depth, fields): read one tensor; return how many fields are left and a list of the tensor, None to leave it to Python."},
    {"merges_to", merges_to, METH_VARARGS, "merges_to(expected, stride, sign, runs): whether merge would write these bytes."},
    {"equal", equal, METH_VARARGS, "equal(one, other): whether two buffers hold the same bytes."},
    {"repeats", repeats, METH_VARARGS, "repeats(data, period): whether the first `period` bytes fill all of data."},
    {"subtract_each", subtract_each, METH_VARARGS, "subtract_each(((actual, parts, None, width, float, cast), ...), out): write zigzagged differences from predictions in parts, one after the other, unless there are none; return what add_each makes of them."},
    {"add_each", add_each, METH_VARARGS, "add_each(((out, parts, differences, width, float, cast), ...)): the inverse of subtract_each; without differences, write the predictions."},
    {"cast", cast, METH_VARARGS, "cast(values, out, source, target, rounding, saturate): write floats in another format."},
    {"transpose", transpose, METH_VARARGS, "transpose(parts, out, width, shape, distances, first): write permuted elements."},
    {"quantise", quantise, METH_VARARGS, "quantise(values, out, scales, zeros, bits, low, high, rule, first, inner, channels, outer)"},
    {"combine", combine, METH_VARARGS, "combine(operands, out, element, format, order, weights): weighted sums, step by step."},
    {"gguf", gguf, METH_VARARGS, "gguf(values, out, scales, type): write floats as blocks of GGUF; scales may be None."},
    {"lora", lora, METH_VARARGS, "lora(weights, a, b, out, rounding, rule, rank, columns, first, scale): add a scaled product."},
    {"literals", literals, METH_VARARGS, "literals(pieces, out): write a zstd frame of literals for each; return the sizes, 0 for none."},
    {"probe_literals", probe_literals, METH_VARARGS, "probe_literals(data): about the size of its frame of literals, 0 for none, and how many repeats it has."},
    {"probe_columns", probe_columns, METH_VARARGS, "probe_columns(data, stride, phase, step, pieces, rows, fields, move_sign): what probe_literals says of each field of a sample."},
    {"column_bits", column_bits, METH_VARARGS, "column_bits(data): the entropy of the columns of elements of 1, 2, 4 and 8 bytes, in 65536ths of a bit."},
    {"literals_room", literals_room, METH_VARARGS, "literals_room(size): the bytes that a frame may take while it is written."},
    {"sketch_entropy", sketch_entropy, METH_VARARGS, "sketch_entropy(words, width): the entropies of byte columns times the elements, in 65536ths of bits."},
    {"sketch_compare", sketch_compare, METH_VARARGS, "sketch_compare(actual, predicted, width, float, first, limit): the entropy of the differences, -1 if those of the first elements have more bits."},
    {"sketch_distances", sketch_distances, METH_VARARGS, "sketch_distances(actual, rows, out, width, float): write the bits of the differences from each row."},
    {"sketch_signs", sketch_signs, METH_VARARGS, "sketch_signs(words, width, count): the top bits of so many of the elements, equally far apart."},
    {"read_ranges", read_ranges, METH_VARARGS, "read_ranges(descriptor, ranges, out): read ranges of a file, 64-bit offsets and lengths, one after the other."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "casstore._kernels", "Compiled kernels; casstore/codecs/kernels.py chooses them.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
