/* Compiled twin of casstore/store/adding/bases/tensors/likeness.py, and reads of many ranges of a file.
 *
 * Sketches are a few hundred elements: giving the GIL away would take longer than the work. All logarithms are integers, in
 * 65536ths, so that every machine comes to the same numbers.
 */

#include "kernels.h"
#include "logarithms.h"

#include <errno.h>
#include <unistd.h>

enum { STRANGERS = -1, MAX_COUNT = 1 << 20 };

INLINE uint64_t load(const uint8_t *from, int width) {
    uint64_t word = 0;
    switch (width) {
    case 1: return from[0];
    case 2: memcpy(&word, from, 2); return word;
    case 4: memcpy(&word, from, 4); return word;
    default: memcpy(&word, from, 8); return word;
    }
}

/* The residual of an element, as residual.c has it, for any width. */
INLINE uint64_t difference(uint64_t actual, uint64_t predicted, int width, int floats) {
    int unused = 64 - 8 * width;
    uint64_t top = (uint64_t)1 << (8 * width - 1), mask = ~(uint64_t)0 >> unused, apart;
    if (floats) {
        if (actual & top) actual ^= top - 1;
        if (predicted & top) predicted ^= top - 1;
    }
    apart = (actual - predicted) & mask;
    return ((apart << 1) ^ (apart & top ? mask : 0)) & mask;
}

/* The sum of the bits of residuals: of log2(x + 1), of the largest 64-bit number log2(x). */
static uint64_t bits_apart(const uint8_t *actual, const uint8_t *predicted, Py_ssize_t count, int width, int floats) {
    uint64_t total = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        uint64_t x = difference(load(actual + i * width, width), load(predicted + i * width, width), width, floats);
        total += log_of(x + (x != UINT64_MAX));
    }
    return total;
}

/* The entropies of the byte columns of elements, times their count. */
static int64_t entropy(const uint8_t *words, Py_ssize_t count, int width) {
    int64_t total = 0, all = count * (int64_t)log_of((uint64_t)count);
    uint32_t counts[256];
    for (int column = 0; column < width; column++) {
        int64_t bits = all, most = (int64_t)8 * count << LOG_BITS, seen = 0;
        memset(counts, 0, sizeof counts);
        for (Py_ssize_t i = 0; i < count; i++) counts[words[i * width + column]]++;
        for (int value = 0; value < 256; value++) {
            if (counts[value] == 0) continue;
            seen++;
            if (counts[value] > 1) bits -= counts[value] * (int64_t)log_of(counts[value]);
        }
        if (bits < 0) bits = 0;
        bits += (seen - 1) * MILLER;
        total += bits < most ? bits : most;
    }
    return total;
}

static int is_width(Py_ssize_t width) {
    return width == 1 || width == 2 || width == 4 || width == 8;
}

PyObject *sketch_entropy(PyObject *self, PyObject *args) {
    Py_buffer words;
    int width;
    int64_t found;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*i", &words, &width)) return NULL;
    if (!is_width(width) || words.len == 0 || words.len % width != 0 || words.len / width > MAX_COUNT)
        return refuse("these are no elements of a sketch", &words, 1);
    found = entropy(words.buf, words.len / width, width);
    PyBuffer_Release(&words);
    return PyLong_FromLongLong(found);
}

PyObject *sketch_compare(PyObject *self, PyObject *args) {
    Py_buffer held[2];
    Py_ssize_t first, count;
    unsigned long long limit;
    int width, floats;
    int64_t found = 0;
    uint8_t *made;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*ipnK", &held[0], &held[1], &width, &floats, &first, &limit)) return NULL;
    if (!is_width(width) || held[0].len == 0 || held[0].len != held[1].len || held[0].len % width != 0)
        return refuse("the elements do not fit one another", held, 2);
    count = held[0].len / width;
    if (first < 0 || first > count || count > MAX_COUNT) return refuse("there are not so many elements", held, 2);
    if (memcmp(held[0].buf, held[1].buf, (size_t)held[0].len) == 0) {
        found = 0;
    } else if (bits_apart(held[0].buf, held[1].buf, first, width, floats) > limit) {
        found = STRANGERS;
    } else {
        made = PyMem_Malloc((size_t)held[0].len);
        if (made == NULL) {
            PyBuffer_Release(&held[0]);
            PyBuffer_Release(&held[1]);
            return PyErr_NoMemory();
        }
        for (Py_ssize_t at = 0; at < held[0].len; at += width) {
            uint64_t x = difference(load((uint8_t *)held[0].buf + at, width), load((uint8_t *)held[1].buf + at, width), width, floats);
            memcpy(made + at, &x, (size_t)width);
        }
        found = entropy(made, count, width);
        PyMem_Free(made);
    }
    PyBuffer_Release(&held[0]);
    PyBuffer_Release(&held[1]);
    return PyLong_FromLongLong(found);
}

PyObject *sketch_distances(PyObject *self, PyObject *args) {
    Py_buffer held[3];
    Py_ssize_t rows, size;
    int width, floats;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*ip", &held[0], &held[1], &held[2], &width, &floats)) return NULL;
    size = held[0].len;
    if (!is_width(width) || size == 0 || size % width != 0 || size / width > MAX_COUNT || held[1].len % size != 0)
        return refuse("the elements do not fit one another", held, 3);
    rows = held[1].len / size;
    if (held[2].len != rows * (Py_ssize_t)sizeof(uint64_t)) return refuse("the distances have no room", held, 3);
    BEGIN_WITHOUT_GIL(held[1].len)
    for (Py_ssize_t row = 0; row < rows; row++) {
        uint64_t found = bits_apart(held[0].buf, (uint8_t *)held[1].buf + row * size, size / width, width, floats);
        memcpy((uint8_t *)held[2].buf + row * (Py_ssize_t)sizeof found, &found, sizeof found);
    }
    END_WITHOUT_GIL
    for (int k = 0; k < 3; k++) PyBuffer_Release(&held[k]);
    Py_RETURN_NONE;
}

PyObject *sketch_signs(PyObject *self, PyObject *args) {
    Py_buffer words;
    Py_ssize_t step, size;
    unsigned long found = 0;
    int width, wanted;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*ii", &words, &width, &wanted)) return NULL;
    if (!is_width(width) || words.len % width != 0 || wanted < 1 || wanted > 32 || words.len / width < wanted)
        return refuse("these are too few elements", &words, 1);
    size = width;
    step = words.len / size / wanted;
    for (int k = 0; k < wanted; k++) {
        const uint8_t *word = (uint8_t *)words.buf + k * step * size;
        found |= (unsigned long)(word[width - 1] >> 7) << k;
    }
    PyBuffer_Release(&words);
    return PyLong_FromUnsignedLong(found);
}

/* Read one range whole, and zeros behind the end of the file; return errno, 0 for success. */
static int read_range(int descriptor, uint8_t *out, size_t size, off_t offset) {
    while (size > 0) {
        ssize_t count = pread(descriptor, out, size, offset);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return errno;
        if (count == 0) break;
        out += count;
        size -= (size_t)count;
        offset += count;
    }
    memset(out, 0, size);
    return 0;
}

PyObject *read_ranges(PyObject *self, PyObject *args) {
    Py_buffer held[2];
    Py_ssize_t count, left;
    int descriptor, failed = 0, fit = 1;
    uint8_t *out;
    (void)self;
    if (!PyArg_ParseTuple(args, "iy*w*", &descriptor, &held[0], &held[1])) return NULL;
    count = held[0].len / (Py_ssize_t)(2 * sizeof(int64_t));
    out = held[1].buf;
    left = held[1].len;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t k = 0; k < count && fit && failed == 0; k++) {
        int64_t range[2];
        memcpy(range, (uint8_t *)held[0].buf + k * (Py_ssize_t)sizeof range, sizeof range);
        fit = range[0] >= 0 && range[1] >= 0 && range[1] <= left;
        if (!fit) break;
        failed = read_range(descriptor, out, (size_t)range[1], (off_t)range[0]);
        out += range[1];
        left -= (Py_ssize_t)range[1];
    }
    Py_END_ALLOW_THREADS
    if (!fit || (failed == 0 && left != 0)) return refuse("the ranges do not fill the room", held, 2);
    PyBuffer_Release(&held[0]);
    PyBuffer_Release(&held[1]);
    if (failed) {
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}
