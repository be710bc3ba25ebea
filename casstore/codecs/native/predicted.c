/* Compiled twin of casstore/codecs/delta/predicted.py: predictions that need no memory of their own, many at once.
 *
 * Each is bytes in parts, as they are or cast to another format. They are made a few at a time, and compared with what they
 * predict, or added to what they missed, while they are in the core's first cache.
 */

#include "deltas.h"

#define TILE 4096

typedef struct {
    Py_buffer own;             /* what is predicted */
    Py_buffer differences;     /* what the prediction missed, if that is given */
    Py_buffer *parts;
    Py_ssize_t count;          /* parts */
    Py_ssize_t part, at;       /* where the next element comes from */
    Py_ssize_t from, to;       /* bytes of an element of the parts, and of the prediction */
    Py_ssize_t width;          /* bytes of an element of the residual */
    int source, target, rounding, saturate, floats;
} Task;

typedef struct {
    Task *all;
    Py_ssize_t count, size;    /* tasks, and the bytes that are predicted */
} Tasks;

static void release_tasks(Tasks *tasks) {
    for (Py_ssize_t k = 0; k < tasks->count; k++) {
        Task *task = &tasks->all[k];
        for (Py_ssize_t i = 0; i < task->count; i++) PyBuffer_Release(&task->parts[i]);
        PyMem_Free(task->parts);
        /* A buffer that nobody took has no object, and releasing it does nothing. */
        PyBuffer_Release(&task->own);
        PyBuffer_Release(&task->differences);
    }
    PyMem_Free(tasks->all);
}

/* Takes hold of the parts; returns whether they make as many bytes as are predicted. */
static int take_parts(Task *task, PyObject *parts) {
    Py_ssize_t count = PyTuple_GET_SIZE(parts), made = 0;
    task->parts = PyMem_Calloc((size_t)count + 1, sizeof *task->parts);
    if (task->parts == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    for (; task->count < count; task->count++) {
        Py_buffer *part = &task->parts[task->count];
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(parts, task->count), part, PyBUF_SIMPLE) != 0) return 0;
        /* The part is held, whatever its length. */
        if (part->len % task->from != 0) {
            task->count++;
            return 0;
        }
        made += part->len / task->from * task->to;
    }
    return made == task->own.len;
}

/* One task of Python's: (own, parts, differences or None, width, floats, None or (source, target, rounding, saturate)). */
static int take_task(Task *task, PyObject *item, int writes) {
    PyObject *own, *parts, *differences, *cast;
    task->from = task->to = 1;
    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "OO!OnpO", &own, &PyTuple_Type, &parts, &differences, &task->width, &task->floats, &cast))
        return 0;
    if (cast != Py_None) {
        if (!PyTuple_Check(cast) ||
            !PyArg_ParseTuple(cast, "iiip", &task->source, &task->target, &task->rounding, &task->saturate))
            return 0;
        if (!casstore_is_cast(task->source, task->target, task->rounding)) return 0;
        task->from = casstore_float_width(task->source);
        task->to = casstore_float_width(task->target);
    }
    if (PyObject_GetBuffer(own, &task->own, writes ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0) return 0;
    if (differences != Py_None && PyObject_GetBuffer(differences, &task->differences, PyBUF_SIMPLE) != 0) return 0;
    return casstore_is_width(task->width) && task->own.len % task->width == 0 &&
           (differences == Py_None || task->differences.len == task->own.len) && take_parts(task, parts);
}

/* Takes hold of all tasks of a tuple; returns whether they fit, and raises ValueError if not. */
static int take_tasks(Tasks *tasks, PyObject *items, int writes) {
    tasks->count = tasks->size = 0;
    tasks->all = PyMem_Calloc((size_t)PyTuple_GET_SIZE(items) + 1, sizeof *tasks->all);
    if (tasks->all == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    while (tasks->count < PyTuple_GET_SIZE(items)) {
        Task *task = &tasks->all[tasks->count];
        int fits = take_task(task, PyTuple_GET_ITEM(items, tasks->count), writes);
        tasks->count++;
        if (!fits) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "the elements do not fit one another");
            release_tasks(tasks);
            return 0;
        }
        tasks->size += task->own.len;
    }
    return 1;
}

/* Returns the next `size` bytes of a prediction, whole elements of it: where they are, or made in `room`. */
static const uint8_t *next_tile(Task *task, Py_ssize_t size, uint8_t *room) {
    Py_ssize_t done = 0;
    while (done < size) {
        const Py_buffer *part = &task->parts[task->part];
        const uint8_t *from = (const uint8_t *)part->buf + task->at;
        Py_ssize_t left = (part->len - task->at) / task->from, count = (size - done) / task->to;
        if (left == 0) {
            task->part++;
            task->at = 0;
            continue;
        }
        if (count > left) count = left;
        task->at += count * task->from;
        if (task->source == 0 && count == size) return from;
        if (task->source == 0) memcpy(room + done, from, (size_t)count);
        else casstore_cast(task->source, task->target, from, room + done, count, task->rounding, task->saturate);
        done += count * task->to;
    }
    return room;
}

enum { EXACT, RESTORED, LOST };

/* Writes what a prediction missed, and adds it again to see what that restores. Where it is exact, nothing is written. */
static int subtract_task(Task *task, uint8_t *out) {
    const uint8_t *own = task->own.buf;
    uint8_t room[TILE], again[TILE];
    int found = EXACT;
    for (Py_ssize_t at = 0; at < task->own.len; at += TILE) {
        Py_ssize_t size = task->own.len - at < TILE ? task->own.len - at : TILE;
        const uint8_t *predicted = next_tile(task, size, room);
        if (found == EXACT) {
            if (memcmp(own + at, predicted, (size_t)size) == 0) continue;
            memset(out, 0, (size_t)at);
            found = RESTORED;
        }
        casstore_subtract(own + at, predicted, out + at, size, task->width, task->floats);
        casstore_add(out + at, predicted, again, size, task->width, task->floats);
        if (memcmp(own + at, again, (size_t)size) != 0) found = LOST;
    }
    return found;
}

static void add_task(Task *task) {
    uint8_t *own = task->own.buf, room[TILE];
    const uint8_t *differences = task->differences.buf;
    for (Py_ssize_t at = 0; at < task->own.len; at += TILE) {
        Py_ssize_t size = task->own.len - at < TILE ? task->own.len - at : TILE;
        if (task->differences.obj != NULL) {
            const uint8_t *predicted = next_tile(task, size, room);
            casstore_add(differences + at, predicted, own + at, size, task->width, task->floats);
        } else {
            const uint8_t *predicted = next_tile(task, size, own + at);
            if (predicted != own + at) memcpy(own + at, predicted, (size_t)size);
        }
    }
}

PyObject *subtract_each(PyObject *self, PyObject *args) {
    PyObject *items, *outcomes = NULL;
    Py_buffer out;
    Tasks tasks;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!w*", &PyTuple_Type, &items, &out)) return NULL;
    if (!take_tasks(&tasks, items, 0)) {
        PyBuffer_Release(&out);
        return NULL;
    }
    if (tasks.size <= out.len) {
        uint8_t *found = PyMem_Malloc((size_t)tasks.count + 1);
        if (found == NULL) PyErr_NoMemory();
        else {
            uint8_t *to = out.buf;
            BEGIN_WITHOUT_GIL(tasks.size)
            FLOATS_BEGIN
            for (Py_ssize_t k = 0; k < tasks.count; k++) {
                found[k] = (uint8_t)subtract_task(&tasks.all[k], to);
                if (found[k] != EXACT) to += tasks.all[k].own.len;
            }
            FLOATS_END
            END_WITHOUT_GIL
            outcomes = PyBytes_FromStringAndSize((const char *)found, tasks.count);
            PyMem_Free(found);
        }
    } else PyErr_SetString(PyExc_ValueError, "the differences have no room");
    release_tasks(&tasks);
    PyBuffer_Release(&out);
    return outcomes;
}

PyObject *add_each(PyObject *self, PyObject *args) {
    PyObject *items;
    Tasks tasks;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &items)) return NULL;
    if (!take_tasks(&tasks, items, 1)) return NULL;
    BEGIN_WITHOUT_GIL(tasks.size)
    FLOATS_BEGIN
    for (Py_ssize_t k = 0; k < tasks.count; k++) add_task(&tasks.all[k]);
    FLOATS_END
    END_WITHOUT_GIL
    release_tasks(&tasks);
    Py_RETURN_NONE;
}
