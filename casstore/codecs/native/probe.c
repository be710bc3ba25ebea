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

static PyObject *judged(const uint8_t *column, Py_ssize_t size) {
    return Py_BuildValue("nn", (Py_ssize_t)casstore_literals(column, (size_t)size, NULL),
                         (Py_ssize_t)casstore_repeats(column, (size_t)size));
}

PyObject *probe_columns(PyObject *self, PyObject *args) {
    Py_buffer data;
    PyObject *fields, *found = NULL;
    Sample sample;
    Py_ssize_t phase, count, number, start = 0;
    int move_sign;
    /* As few bytes as a sample has take less time than giving the lock away. */
    uint8_t memory[2 * MOST];
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nnnnnO!p", &data, &sample.stride, &phase, &sample.step, &sample.pieces, &sample.rows, &PyTuple_Type,
                          &fields, &move_sign))
        return NULL;
    number = PyTuple_GET_SIZE(fields);
    if (sample.stride < 1 || phase < 0 || sample.pieces < 1 || sample.rows < 1 || sample.step < 0 || number < 1 || number > MAX_FIELDS
        || sample.stride > MOST || sample.rows > MOST / sample.stride || sample.pieces > MOST / (sample.rows * sample.stride)
        || phase > data.len || sample.rows * sample.stride > data.len - phase
        || (sample.pieces > 1 && sample.step > (data.len - phase - sample.rows * sample.stride) / (sample.pieces - 1)))
        return refuse("the sample is not within the data", &data, 1);
    sample.data = (const uint8_t *)data.buf + phase;
    count = sample.pieces * sample.rows;
    found = PyList_New(0);
    for (Py_ssize_t k = 0; found != NULL && k < number; k++) {
        Py_ssize_t width = PyLong_AsSsize_t(PyTuple_GET_ITEM(fields, k));
        PyObject *item;
        if (width < 1 || width > sample.stride - start) goto wrong;
        gather(&sample, start, width, memory + count * start);
        item = judged(memory + count * start, count * width);
        if (item == NULL || PyList_Append(found, item) < 0) Py_CLEAR(found);
        Py_XDECREF(item);
        start += width;
    }
    if (found == NULL) goto done;
    if (start != sample.stride || (move_sign && sample.stride != 2)) goto wrong;
    if (move_sign) {
        /* The sign transform: see regroup.py. */
        uint8_t *below = memory, *top = memory + count;
        for (Py_ssize_t i = 0; i < count; i++) {
            unsigned word = below[i] | (unsigned)top[i] << 8;
            below[i] = (uint8_t)((word & 0x7F) | (word >> 8 & 0x80));
            top[i] = (uint8_t)(word >> 7);
        }
        for (int k = 0; found != NULL && k < 2; k++) {
            PyObject *item = judged(memory + k * count, count);
            if (item == NULL || PyList_Append(found, item) < 0) Py_CLEAR(found);
            Py_XDECREF(item);
        }
    }
done:
    PyBuffer_Release(&data);
    return found;
wrong:
    Py_CLEAR(found);
    return refuse("the fields do not cover the elements", &data, 1);
}
