/* Compiled twin of casstore/codecs/delta/operations/transpose.py: a range of the elements of a permuted tensor. */

#include "kernels.h"

#define MAX_RANK 8
#define LINE 64     /* bytes that come from memory together */
#define BAND 8      /* elements of a column whose lines are taken together */

/* The tensor in memory, in parts: part k begins with element starts[k] of all, and starts[count] is their number. */
typedef struct {
    const uint8_t **data;
    const Py_ssize_t *starts;
    Py_ssize_t count;
    Py_ssize_t width;
} Tensor;

static Py_ssize_t part_of(const Tensor *tensor, Py_ssize_t element) {
    Py_ssize_t low = 0, high = tensor->count - 1;
    while (low < high) {
        Py_ssize_t middle = (low + high + 1) / 2;
        if (tensor->starts[middle] <= element) low = middle;
        else high = middle - 1;
    }
    return low;
}

/* Of `count` elements at distance `step`, `lines` neighbours each: neighbour g of element i goes to out[g * pitch + i].
 * Few elements at a time: the lines of those at a distance of a power of two fall on the same few places in the cache. */
#define GATHER(NAME, WORD, BLOCK)                                                                                      \
    static void NAME(const uint8_t *from, Py_ssize_t step, Py_ssize_t count, Py_ssize_t lines, uint8_t *out,           \
                     Py_ssize_t pitch) {                                                                               \
        const Py_ssize_t size = (Py_ssize_t)sizeof(WORD);                                                              \
        for (Py_ssize_t at = 0; at < count; at += BAND) {                                                              \
            Py_ssize_t end = count - at < BAND ? count : at + BAND, g = 0;                                             \
            if (end - at == BAND)                                                                                      \
                for (; g + BAND / size <= lines; g += BAND / size)                                                     \
                    BLOCK(from + (at * step + g) * size, step * size, out + (g * pitch + at) * size, pitch * size);    \
            for (; g < lines; g++)                                                                                     \
                for (Py_ssize_t i = at; i < end; i++)                                                                  \
                    memcpy(out + (g * pitch + i) * size, from + (i * step + g) * size, sizeof(WORD));                  \
        }                                                                                                              \
    }

/* Swap the parts of one word that `mask` covers, moved up by `shift`, with those of another. */
#define SWAP(one, other, shift, mask)                                                                                  \
    {                                                                                                                  \
        uint64_t both = ((one) >> (shift) ^ (other)) & (mask);                                                         \
        (one) ^= both << (shift);                                                                                      \
        (other) ^= both;                                                                                               \
    }

/* Transpose 8 x 8 bytes. */
INLINE void block_1(const uint8_t *from, Py_ssize_t step, uint8_t *out, Py_ssize_t pitch) {
    uint64_t rows[8];
    for (int i = 0; i < 8; i++) memcpy(&rows[i], from + i * step, 8);
    for (int i = 0; i < 4; i++) SWAP(rows[i], rows[i + 4], 32, 0x00000000FFFFFFFFull)
    for (int i = 0; i < 8; i += i & 1 ? 3 : 1) SWAP(rows[i], rows[i + 2], 16, 0x0000FFFF0000FFFFull)
    for (int i = 0; i < 8; i += 2) SWAP(rows[i], rows[i + 1], 8, 0x00FF00FF00FF00FFull)
    for (int i = 0; i < 8; i++) memcpy(out + i * pitch, &rows[i], 8);
}

/* Transpose 8 x 4 elements of two bytes. */
INLINE void block_2(const uint8_t *from, Py_ssize_t step, uint8_t *out, Py_ssize_t pitch) {
    for (int half = 0; half < 2; half++) {
        uint64_t rows[4];
        for (int i = 0; i < 4; i++) memcpy(&rows[i], from + (4 * half + i) * step, 8);
        for (int i = 0; i < 2; i++) SWAP(rows[i], rows[i + 2], 32, 0x00000000FFFFFFFFull)
        for (int i = 0; i < 4; i += 2) SWAP(rows[i], rows[i + 1], 16, 0x0000FFFF0000FFFFull)
        for (int i = 0; i < 4; i++) memcpy(out + i * pitch + 8 * half, &rows[i], 8);
    }
}

/* Transpose 8 x 2 elements of four bytes, and copy 8 elements of eight. */
INLINE void block_4(const uint8_t *from, Py_ssize_t step, uint8_t *out, Py_ssize_t pitch) {
    for (int i = 0; i < 8; i++) {
        memcpy(out + 4 * i, from + i * step, 4);
        memcpy(out + pitch + 4 * i, from + i * step + 4, 4);
    }
}

INLINE void block_8(const uint8_t *from, Py_ssize_t step, uint8_t *out, Py_ssize_t pitch) {
    (void)pitch;
    for (int i = 0; i < 8; i++) memcpy(out + 8 * i, from + i * step, 8);
}

GATHER(gather_1, uint8_t, block_1)
GATHER(gather_2, uint16_t, block_2)
GATHER(gather_4, uint32_t, block_4)
GATHER(gather_8, uint64_t, block_8)

static void gather(Py_ssize_t width, const uint8_t *from, Py_ssize_t step, Py_ssize_t count, Py_ssize_t lines, uint8_t *out, Py_ssize_t pitch) {
    if (step == 1 && lines == 1) memcpy(out, from, (size_t)(count * width));
    else if (width == 1) gather_1(from, step, count, lines, out, pitch);
    else if (width == 2) gather_2(from, step, count, lines, out, pitch);
    else if (width == 4) gather_4(from, step, count, lines, out, pitch);
    else gather_8(from, step, count, lines, out, pitch);
}

/* The same from a tensor in parts, beginning with element `first` of it. */
static void gather_parts(const Tensor *tensor, Py_ssize_t first, Py_ssize_t step, Py_ssize_t count, Py_ssize_t lines, uint8_t *out, Py_ssize_t pitch) {
    Py_ssize_t width = tensor->width, done = 0, part = part_of(tensor, first);
    while (done < count) {
        Py_ssize_t element = first + done * step, start, end, fit;
        while (tensor->starts[part + 1] <= element) part++;
        start = tensor->starts[part];
        end = tensor->starts[part + 1];
        if (end - element < lines) {
            /* Neighbours on both sides of an edge are taken one by one. */
            Py_ssize_t at = part;
            for (Py_ssize_t g = 0; g < lines; g++) {
                while (tensor->starts[at + 1] <= element + g) at++;
                memcpy(out + (g * pitch + done) * width, tensor->data[at] + (element + g - tensor->starts[at]) * width, (size_t)width);
            }
            done++;
            continue;
        }
        fit = step ? (end - lines - element) / step + 1 : count - done;
        if (fit > count - done) fit = count - done;
        gather(width, tensor->data[part] + (element - start) * width, step, fit, lines, out + done * width, pitch);
        done += fit;
    }
}

static void run(const Tensor *tensor, int rank, const Py_ssize_t *dims, const Py_ssize_t *steps, Py_ssize_t first, Py_ssize_t count, uint8_t *out) {
    Py_ssize_t place[MAX_RANK], element = 0, rest = first, width = tensor->width;
    Py_ssize_t row = dims[rank - 1], step = steps[rank - 1];
    int last = rank - 1, near = rank > 1 && steps[rank - 2] == 1 && step > 1;
    for (int axis = last; axis >= 0; axis--) {
        place[axis] = rest % dims[axis];
        rest /= dims[axis];
        element += place[axis] * steps[axis];
    }
    while (count) {
        Py_ssize_t lines = 1, taken = row - place[last];
        if (taken > count) taken = count;
        if (near && place[last] == 0 && count >= 2 * row) {
            lines = LINE / width;
            if (lines > dims[last - 1] - place[last - 1]) lines = dims[last - 1] - place[last - 1];
            if (lines > count / row) lines = count / row;
        }
        gather_parts(tensor, element, step, taken, lines, out, row);
        out += lines * taken * width;
        count -= lines * taken;
        /* The next row: the axes before the last one count up. */
        element -= place[last] * step;
        place[last] = 0;
        for (int axis = last - 1; axis >= 0; axis--, lines = 1) {
            place[axis] += lines;
            element += lines * steps[axis];
            if (place[axis] < dims[axis]) break;
            element -= place[axis] * steps[axis];
            place[axis] = 0;
        }
    }
}

static int read_sizes(PyObject *tuple, int rank, Py_ssize_t *sizes) {
    for (int axis = 0; axis < rank; axis++) {
        sizes[axis] = PyLong_AsSsize_t(PyTuple_GET_ITEM(tuple, axis));
        if (sizes[axis] < 1) return 0;
    }
    return 1;
}

PyObject *transpose(PyObject *self, PyObject *args) {
    Py_buffer out;
    Py_buffer *held = NULL;
    const uint8_t **data = NULL;
    Py_ssize_t *starts = NULL;
    Py_ssize_t number, taken = 0, width, first, total = 1, reach = 0, dims[MAX_RANK], steps[MAX_RANK];
    int rank, fits = 0;
    PyObject *parts, *shape, *distances;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!w*nO!O!n", &PyTuple_Type, &parts, &out, &width, &PyTuple_Type, &shape, &PyTuple_Type, &distances, &first))
        return NULL;
    number = PyTuple_GET_SIZE(parts);
    rank = PyTuple_GET_SIZE(shape) > MAX_RANK ? 0 : (int)PyTuple_GET_SIZE(shape);
    held = PyMem_Calloc((size_t)number + 1, sizeof *held);
    data = PyMem_Calloc((size_t)number + 1, sizeof *data);
    starts = PyMem_Calloc((size_t)number + 2, sizeof *starts);
    if (!held || !data || !starts) {
        PyErr_NoMemory();
        goto done;
    }
    if (number < 1 || rank < 1 || PyTuple_GET_SIZE(distances) != rank || (width != 1 && width != 2 && width != 4 && width != 8)) goto done;
    if (!read_sizes(shape, rank, dims) || !read_sizes(distances, rank, steps)) goto done;
    for (; taken < number; taken++) {
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(parts, taken), &held[taken], PyBUF_SIMPLE)) goto done;
        data[taken] = held[taken].buf;
        starts[taken + 1] = starts[taken] + held[taken].len / width;
        if (held[taken].len % width || held[taken].len == 0) {
            taken++;
            goto done;
        }
    }
    for (int axis = 0; axis < rank; axis++) {
        if (dims[axis] > starts[number] / total || steps[axis] > starts[number] / dims[axis]) goto done;
        total *= dims[axis];
        reach += (dims[axis] - 1) * steps[axis];
    }
    if (reach >= starts[number] || out.len % width || first < 0 || first > total || out.len / width > total - first) goto done;
    fits = 1;
    {
        Tensor tensor = {data, starts, number, width};
        Py_BEGIN_ALLOW_THREADS
        run(&tensor, rank, dims, steps, first, out.len / width, out.buf);
        Py_END_ALLOW_THREADS
    }
done:
    while (taken) PyBuffer_Release(&held[--taken]);
    PyMem_Free(held);
    PyMem_Free((void *)data);
    PyMem_Free(starts);
    PyBuffer_Release(&out);
    if (fits) Py_RETURN_NONE;
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "the tensor does not fit its shape");
    return NULL;
}
