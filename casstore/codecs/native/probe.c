/* What literal frames would leave of the columns of a sample; select.py decides by it, and says what it means. */

#include "kernels.h"
#include "huffman.h"

#define MOST 32768  /* bytes of a sample */
#define MAX_FIELDS 16

/* The sample: `pieces` of `rows` elements each, `step` bytes from one to the next. */
typedef struct {
    const uint8_t *data;
    Py_ssize_t stride, step, pieces, rows;
} Sample;

static void gather(const Sample *sample, Py_ssize_t start, Py_ssize_t width, uint8_t *to) {
    for (Py_ssize_t k = 0; k < sample->pieces; k++) {
        const uint8_t *from = sample->data + k * sample->step + start;
        if (width == 1) {
            for (Py_ssize_t i = 0; i < sample->rows; i++) *to++ = from[i * sample->stride];
            continue;
        }
        for (Py_ssize_t i = 0; i < sample->rows; i++, to += width) memcpy(to, from + i * sample->stride, (size_t)width);
    }
}

/* About the size of a frame of literals, 0 if it would not be smaller, and how many repeats there are. */
typedef struct {
    size_t size, repeats;
} Probe;

static Probe probe(const uint8_t *column, Py_ssize_t size) {
    return (Probe){casstore_literals(column, (size_t)size, NULL), casstore_repeats(column, (size_t)size)};
}

/* Probes each field, and with `move_sign` the two columns whose sign is moved, too (see regroup.py). */
static void probe_all(const Sample *sample, const Py_ssize_t *widths, int number, int move_sign, Probe *found) {
    uint8_t memory[MOST], *to = memory;
    Py_ssize_t count = sample->pieces * sample->rows, start = 0;
    for (int k = 0; k < number; k++) {
        gather(sample, start, widths[k], to);
        found[k] = probe(to, count * widths[k]);
        start += widths[k];
        to += count * widths[k];
    }
    if (!move_sign) return;
    for (Py_ssize_t i = 0; i < count; i++) {
        unsigned word = memory[i] | (unsigned)memory[count + i] << 8;
        memory[i] = (uint8_t)((word & 0x7F) | (word >> 8 & 0x80));
        memory[count + i] = (uint8_t)(word >> 7);
    }
    for (int k = 0; k < 2; k++) found[number + k] = probe(memory + k * count, count);
}

PyObject *probe_columns(PyObject *self, PyObject *args) {
    Py_buffer data;
    PyObject *fields, *list;
    Sample sample;
    Py_ssize_t phase, widths[MAX_FIELDS], start = 0;
    int number, move_sign;
    Probe found[MAX_FIELDS + 2];
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nnnnnO!p", &data, &sample.stride, &phase, &sample.step, &sample.pieces, &sample.rows, &PyTuple_Type,
                          &fields, &move_sign))
        return NULL;
    if (sample.stride < 1 || phase < 0 || sample.pieces < 1 || sample.rows < 1 || sample.step < 0 || sample.stride > MOST
        || sample.rows > MOST / sample.stride || sample.pieces > MOST / (sample.rows * sample.stride) || phase > data.len
        || sample.rows * sample.stride > data.len - phase
        || (sample.pieces > 1 && sample.step > (data.len - phase - sample.rows * sample.stride) / (sample.pieces - 1)))
        return refuse("the sample is not within the data", &data, 1);
    sample.data = (const uint8_t *)data.buf + phase;
    if (PyTuple_GET_SIZE(fields) > MAX_FIELDS) return refuse("the fields are too many", &data, 1);
    number = (int)PyTuple_GET_SIZE(fields);
    for (int k = 0; k < number; k++) {
        widths[k] = PyLong_AsSsize_t(PyTuple_GET_ITEM(fields, k));
        if (widths[k] < 1 || widths[k] > sample.stride - start) return refuse("the fields do not cover the elements", &data, 1);
        start += widths[k];
    }
    if (start != sample.stride || (move_sign && (sample.stride != 2 || number != 2)))
        return refuse("the fields do not cover the elements", &data, 1);
    Py_BEGIN_ALLOW_THREADS
    probe_all(&sample, widths, number, move_sign, found);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    list = PyList_New(0);
    for (int k = 0; list != NULL && k < number + 2 * (move_sign != 0); k++) {
        PyObject *item = Py_BuildValue("nn", (Py_ssize_t)found[k].size, (Py_ssize_t)found[k].repeats);
        if (item == NULL || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}
