/* Payloads of planes for adjacent chunks in one call: the twin of `compose` in planes.py, which is the specification.
 *
 * Only runs that are raw, constant, or a frame of literals are written here. What is not smaller than its chunk is stored as it is.
 */

#include "kernels.h"
#include "huffman.h"
#include "regroup.h"

#define HEAD 8  /* bytes of a payload's header, and of each entry in its table */
#define RAW 0
#define ZSTD 1
#define CONSTANT 2

/* How the elements of a stretch are stored. */
typedef struct {
    Run runs[MAX_RUNS];
    uint8_t literals[MAX_RUNS];  /* whether a run becomes a frame, if that is smaller */
    Py_ssize_t number, stride;
    int sign;
} Plan;

/* A chunk, and which elements of the stretch are its own: those before and after them are kept as they are. */
typedef struct {
    const uint8_t *data;
    Py_ssize_t length, before, first, elements;
} Chunk;

static void put(uint8_t *to, uint64_t value, int bytes) {
    for (int k = 0; k < bytes; k++) to[k] = (uint8_t)(value >> (8 * k));
}

/* Adds bytes to a payload of at most `room` bytes; says whether they fit. */
static int append(uint8_t *to, Py_ssize_t *used, Py_ssize_t room, const uint8_t *data, Py_ssize_t size) {
    if (size > room - *used) return 0;
    memcpy(to + *used, data, (size_t)size);
    *used += size;
    return 1;
}

/* Writes the payload and returns its size; 0 if that would not be less than the chunk's. */
static Py_ssize_t write_payload(const Plan *plan, const Chunk *chunk, uint8_t *frame, uint8_t *to) {
    Py_ssize_t after = chunk->length - chunk->before - chunk->elements * plan->stride;
    Py_ssize_t used = HEAD + HEAD * plan->number, room = chunk->length - 1;
    if (used > room) return 0;
    put(to, 1 | (uint64_t)(plan->sign ? 1 : 0) << 8 | (uint64_t)plan->stride << 16 | (uint64_t)chunk->before << 32, 6);
    put(to + 6, (uint64_t)plan->number, 2);
    if (!append(to, &used, room, chunk->data, chunk->before)) return 0;
    if (!append(to, &used, room, chunk->data + chunk->length - after, after)) return 0;
    for (Py_ssize_t k = 0; k < plan->number; k++) {
        const Run *run = &plan->runs[k];
        const uint8_t *data = run->data + chunk->first * run->columns;
        Py_ssize_t size = chunk->elements * run->columns;
        uint8_t *entry = to + HEAD + HEAD * k;
        int mode = RAW;
        if (plan->literals[k]) {
            if (memcmp(data, data + run->columns, (size_t)(size - run->columns)) == 0) {
                mode = CONSTANT;
                size = run->columns;
            } else {
                Py_ssize_t packed = (Py_ssize_t)casstore_literals(data, (size_t)size, frame);
                if (packed > 0) {
                    mode = ZSTD;
                    data = frame;
                    size = packed;
                }
            }
        }
        put(entry, (uint64_t)run->columns | (uint64_t)mode << 16 | (uint64_t)size << 32, HEAD);
        if (!append(to, &used, room, data, size)) return 0;
    }
    return used;
}

/* Reads ((columns, literals), ...) into a plan; returns 0 unless the runs cover the elements. */
static int take_plan(Plan *plan, PyObject *given) {
    Py_ssize_t start = 0;
    plan->number = PyTuple_GET_SIZE(given);
    if (plan->stride < 2 || plan->stride > MAX_STRIDE || plan->number < 1 || plan->number > MAX_RUNS) return 0;
    for (Py_ssize_t k = 0; k < plan->number; k++) {
        Py_ssize_t columns;
        int literals;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(given, k), "np", &columns, &literals)) return 0;
        if (columns < 1 || columns > plan->stride - start) return 0;
        plan->runs[k] = (Run){start, columns, NULL, 0};
        plan->literals[k] = (uint8_t)literals;
        start += columns;
    }
    return start == plan->stride && (!plan->sign || casstore_may_move_sign(plan->stride, plan->runs, plan->number));
}

/* Reads the edges of chunks; returns their number, or 0 unless each has a whole element, and inner edges lie between elements. */
static Py_ssize_t take_edges(Chunk *chunks, PyObject *edges, const Py_buffer *body, Py_ssize_t phase, Py_ssize_t stride) {
    Py_ssize_t number = PyTuple_GET_SIZE(edges) - 1, begin = 0, first = 0;
    for (Py_ssize_t k = 0; k <= number; k++) {
        Py_ssize_t edge = PyLong_AsSsize_t(PyTuple_GET_ITEM(edges, k)), before = k == 1 ? phase : 0;
        if (k == 0) {
            if (edge != 0) return 0;
            continue;
        }
        if (edge <= begin || edge > body->len || edge - begin < before + stride || (k == number) != (edge == body->len)) return 0;
        if (k < number && (edge - phase) % stride) return 0;
        chunks[k - 1] = (Chunk){(const uint8_t *)body->buf + begin, edge - begin, before, first, (edge - begin - before) / stride};
        first += chunks[k - 1].elements;
        begin = edge;
    }
    return number;
}

/* Writes all payloads, and negative sizes for those that are the chunks themselves. */
static void write_all(Plan *plan, const Chunk *chunks, Py_ssize_t number, uint8_t *memory, uint8_t *to, Py_ssize_t lead, Py_ssize_t *sizes) {
    const Chunk *last = &chunks[number - 1];
    Py_ssize_t elements = last->first + last->elements;
    for (Py_ssize_t k = 0; k < plan->number; k++) plan->runs[k].data = memory + elements * plan->runs[k].start;
    casstore_split(chunks[0].data + chunks[0].before, elements, plan->stride, plan->sign, plan->runs, plan->number);
    for (Py_ssize_t k = 0; k < number; k++) {
        to += lead;
        sizes[k] = write_payload(plan, &chunks[k], memory + elements * plan->stride, to);
        if (sizes[k] == 0) {
            memcpy(to, chunks[k].data, (size_t)chunks[k].length);
            sizes[k] = -chunks[k].length;
        }
        to += sizes[k] < 0 ? -sizes[k] : sizes[k];
    }
}

PyObject *planes(PyObject *self, PyObject *args) {
    Py_buffer held[3];
    Py_buffer *body = &held[0], *memory = &held[1], *out = &held[2];
    PyObject *edges, *runs, *answer = NULL;
    Py_ssize_t phase, lead, number, longest = 0;
    Plan plan;
    Chunk *chunks;
    Py_ssize_t *sizes;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*w*w*O!nnpO!n", body, memory, out, &PyTuple_Type, &edges, &phase, &plan.stride, &plan.sign,
                          &PyTuple_Type, &runs, &lead))
        return NULL;
    number = PyTuple_GET_SIZE(edges) - 1;
    if (number < 1 || lead < 0 || phase < 0 || !take_plan(&plan, runs) || phase >= plan.stride)
        return refuse("the runs do not cover the elements", held, 3);
    chunks = PyMem_New(Chunk, number);
    sizes = PyMem_New(Py_ssize_t, number);
    if (chunks == NULL || sizes == NULL) {
        PyErr_NoMemory();
    } else if (take_edges(chunks, edges, body, phase, plan.stride) != number) {
        PyErr_SetString(PyExc_ValueError, "the chunks are not whole elements");
    } else {
        for (Py_ssize_t k = 0; k < number; k++)
            if (chunks[k].length > longest) longest = chunks[k].length;
        if (out->len < body->len || lead > (out->len - body->len) / number || memory->len < body->len
            || casstore_literals_room((size_t)longest) > (size_t)(memory->len - body->len)) {
            PyErr_SetString(PyExc_ValueError, "the payloads have no room");
        } else {
            BEGIN_WITHOUT_GIL(body->len)
            write_all(&plan, chunks, number, memory->buf, out->buf, lead, sizes);
            END_WITHOUT_GIL
            answer = PyList_New(number);
            for (Py_ssize_t k = 0; answer != NULL && k < number; k++) {
                PyObject *size = PyLong_FromSsize_t(sizes[k]);
                if (size == NULL) Py_CLEAR(answer);
                else PyList_SET_ITEM(answer, k, size);
            }
        }
    }
    PyMem_Free(chunks);
    PyMem_Free(sizes);
    for (int k = 0; k < 3; k++) PyBuffer_Release(&held[k]);
    return answer;
}
