/* Finds the tensors in the initializers and nodes of an ONNX graph: nearly all of the time of a walk in Python.
 *
 * The twin of the loops in Walk._message and Walk._tensor (tensors/onnx/walk.py); tensors/onnx/schema.py says what the messages
 * hold. Whatever is not of the common form, or lies where Python would read on, is left to it from that field on, so that both
 * find the same tensors, refuse the same files, read the same bytes, and count the same fields.
 * Source: https://protobuf.dev/programming-guides/encoding/.
 */

#include "../../codecs/native/kernels.h"

enum { VARINT, FIXED64, BYTES, FIXED32 = 5 };

#define NAME_SIZE 255  /* a longer name of an output is left to Python */
#define TEXT_SIZE 4096 /* MAX_NAME_BYTES in Python */
#define MAX_DIMS 16    /* as in Python */
#define MAX_ENTRIES 64 /* MAX_EXTERNAL_ENTRIES in Python */
#define FIELD_HEAD 20  /* FIELD_HEAD in Python: an attribute is searched if so many bytes of the window are left beside it */

/* Bytes by their indices in the window; a message may end behind it. */
typedef struct {
    Py_ssize_t at, end;
} Range;

typedef struct {
    const uint8_t *data;
    Py_ssize_t size, whole; /* bytes of the window; a field that begins at `whole` or behind makes Python read on */
    long long base;         /* the place of the window in the file */
    long long fields, tensors; /* that may yet be looked at */
    long long depth;           /* of the message */
    PyObject *found;
} Walk;

typedef struct {
    uint64_t number, wire, value;
    Range bytes;
} Field;

/* Reads a varint of up to `most` bytes; returns 0 where there is none. */
static int take_number(const Walk *walk, Range *message, int most, uint64_t *value) {
    Py_ssize_t end = message->end < walk->size ? message->end : walk->size;
    *value = 0;
    for (int k = 0; k < most && message->at < end; k++) {
        uint8_t byte = walk->data[message->at++];
        *value |= (uint64_t)(byte & 0x7F) << (7 * k);
        if (byte < 0x80) return 1;
    }
    return 0;
}

/* Steps over a field; returns 0 where it is left to Python, with no field or with the exception that is set. */
static int take_field(Walk *walk, Range *message, Field *field) {
    uint64_t tag, size;
    if (message->at >= walk->whole || --walk->fields < 0 || !take_number(walk, message, 2, &tag) || tag >> 3 == 0) return 0;
    field->number = tag >> 3;
    field->wire = tag & 7;
    switch (field->wire) {
    case VARINT: return take_number(walk, message, 10, &field->value);
    case FIXED64: size = 8; break;
    case FIXED32: size = 4; break;
    case BYTES:
        if (take_number(walk, message, 5, &size)) break;
        return 0;
    default: return 0;
    }
    if (size > (uint64_t)(message->end - message->at)) return 0;
    field->bytes = (Range){message->at, message->at + (Py_ssize_t)size};
    message->at = field->bytes.end;
    return 1;
}

/* ---- tensors */

/* What a TensorProto says; `places` are those of its bytes in fields 4, 9 and 10, if they are not at 0. */
typedef struct {
    uint64_t type, location, shape[MAX_DIMS];
    int rank, entries;
    Range name, places[11];
    PyObject *external;
} Tensor;

/* Whether Python would take the bytes without reading on, as text that is not absurd. */
static int is_text(const Walk *walk, const Field *field) {
    return field->wire == BYTES && field->bytes.end <= walk->size && field->bytes.end - field->bytes.at <= TEXT_SIZE;
}

/* Returns text, or NULL; whether it is UTF-8 is for Python to say, so no exception is set if it is not. */
static PyObject *text_of(const Walk *walk, Range bytes) {
    PyObject *text = PyUnicode_DecodeUTF8((const char *)walk->data + bytes.at, bytes.end - bytes.at, NULL);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) PyErr_Clear();
    return text;
}

/* Notes a pair of texts, the key and the value, that say where bytes lie in another file. */
static int take_entry(Walk *walk, Range entry, Tensor *tensor) {
    Range texts[3] = {{0, 0}, {0, 0}, {0, 0}};
    PyObject *key, *value;
    Field field;
    int done;
    if (tensor->entries++ >= MAX_ENTRIES) return 0;
    while (entry.at < entry.end) {
        if (!take_field(walk, &entry, &field)) return 0;
        if (field.number > 2) continue;
        /* Python checks each of several that the last of them replaces. */
        if (!is_text(walk, &field) || texts[field.number].end > 0) return 0;
        texts[field.number] = field.bytes;
    }
    if (tensor->external == NULL && (tensor->external = PyDict_New()) == NULL) return 0;
    key = text_of(walk, texts[1]);
    value = key == NULL ? NULL : text_of(walk, texts[2]);
    done = value != NULL && PyDict_SetItem(tensor->external, key, value) == 0;
    Py_XDECREF(key);
    Py_XDECREF(value);
    return done;
}

static int take_dimensions(Walk *walk, const Field *field, Tensor *tensor) {
    Range packed = field->bytes;
    uint64_t value = field->value;
    if (field->wire == VARINT) {
        if (tensor->rank == MAX_DIMS) return 0;
        tensor->shape[tensor->rank++] = value;
        return 1;
    }
    if (field->wire != BYTES || packed.end > walk->size) return 0;
    while (packed.at < packed.end) {
        if (tensor->rank == MAX_DIMS || !take_number(walk, &packed, 10, &value)) return 0;
        tensor->shape[tensor->rank++] = value;
    }
    return 1;
}

/* Reads the fields of a tensor; returns 0 as take_field does. */
static int read_tensor(Walk *walk, Range message, Tensor *tensor) {
    Field field;
    while (message.at < message.end) {
        if (!take_field(walk, &message, &field)) return 0;
        switch (field.number) {
        case 1:
            if (!take_dimensions(walk, &field, tensor)) return 0;
            break;
        case 2: case 14:
            if (field.wire != VARINT) return 0;
            *(field.number == 2 ? &tensor->type : &tensor->location) = field.value;
            break;
        case 8:
            if (!is_text(walk, &field) || tensor->name.end > 0) return 0;
            tensor->name = field.bytes;
            break;
        case 4: case 9: case 10:
            if (field.wire != BYTES) break;
            if (tensor->places[field.number].end > 0) return 0;
            tensor->places[field.number] = field.bytes;
            break;
        case 13:
            if (field.wire != BYTES || !take_entry(walk, field.bytes, tensor)) return 0;
        }
    }
    return 1;
}

/* The field that holds typed values as raw bytes: TYPED_FIELDS in Python. */
static int typed_field(uint64_t type) {
    switch (type) {
    case 1: case 14: return 4;
    case 11: case 15: return 10;
    default: return 9;
    }
}

static PyObject *shape_of(const Tensor *tensor) {
    PyObject *shape = PyTuple_New(tensor->rank);
    for (int k = 0; shape != NULL && k < tensor->rank; k++) {
        PyObject *dimension = PyLong_FromUnsignedLongLong(tensor->shape[k]);
        if (dimension == NULL) Py_CLEAR(shape);
        else PyTuple_SET_ITEM(shape, k, dimension);
    }
    return shape;
}

static PyObject *place_of(const Walk *walk, const Tensor *tensor) {
    const Range *place = &tensor->places[tensor->places[9].end > 0 ? 9 : typed_field(tensor->type)];
    if (place->end == 0) Py_RETURN_NONE;
    return Py_BuildValue("LL", walk->base + place->at, walk->base + place->end);
}

/* What FoundTensor holds in Python; takes `external`. */
static PyObject *made(const Walk *walk, Tensor *tensor, long long depth, Range label) {
    Range name = tensor->name.at < tensor->name.end ? tensor->name : label;
    unsigned long long type = tensor->type;
    PyObject *text, *shape = NULL, *place = NULL, *external = tensor->external;
    if (tensor->location != 1) Py_CLEAR(external);
    else if (external == NULL && (external = PyDict_New()) == NULL) return NULL;
    tensor->external = NULL;
    text = text_of(walk, name);
    if (text != NULL && (shape = shape_of(tensor)) != NULL && (place = place_of(walk, tensor)) != NULL) {
        if (external == NULL) return Py_BuildValue("LNKNNO", depth, text, type, shape, place, Py_None);
        return Py_BuildValue("LNKNNN", depth, text, type, shape, place, external);
    }
    Py_XDECREF(text);
    Py_XDECREF(shape);
    Py_XDECREF(external);
    return NULL;
}

/* Finds one tensor, which goes by `label` if it has no name; returns 0 as take_field does. */
static int find_tensor(Walk *walk, Range message, long long depth, Range label) {
    Tensor tensor = {0};
    PyObject *item = NULL;
    int done;
    if (--walk->tensors < 0) return 0;
    if (read_tensor(walk, message, &tensor)) item = made(walk, &tensor, depth, label);
    Py_XDECREF(tensor.external);
    done = item != NULL && PyList_Append(walk->found, item) == 0;
    Py_XDECREF(item);
    return done;
}

/* ---- nodes */

/* Whether some byte could be the first of a field that leads from an attribute to a tensor: LEADS_ON in Python. */
static int may_lead_on(const Walk *walk, Range attribute) {
    for (Py_ssize_t at = attribute.at; at < attribute.end; at++) {
        switch (walk->data[at]) {
        case 5 << 3 | BYTES: case 6 << 3 | BYTES: case 10 << 3 | BYTES: case 11 << 3 | BYTES:
        case 0x80 | (22 << 3 & 0x7F) | BYTES: case 0x80 | (23 << 3 & 0x7F) | BYTES: return 1;
        }
    }
    return 0;
}

/* Finds the tensor of an attribute; returns 0 if it leads to a graph or several tensors, or as take_field does. */
static int take_attribute(Walk *walk, Range attribute, Range label) {
    Field field;
    if (attribute.end - attribute.at <= walk->size - FIELD_HEAD && !may_lead_on(walk, attribute)) return 1;
    while (attribute.at < attribute.end) {
        if (!take_field(walk, &attribute, &field)) return 0;
        switch (field.number) {
        case 6: case 10: case 11: case 22: case 23: return 0;
        case 5:
            if (field.wire != BYTES || !find_tensor(walk, field.bytes, walk->depth + 3, label)) return 0;
        }
    }
    return 1;
}

static int is_plain_name(const Walk *walk, Range name) {
    if (name.end - name.at > NAME_SIZE) return 0;
    for (Py_ssize_t at = name.at; at < name.end; at++)
        if (walk->data[at] >= 0x80) return 0;
    return 1;
}

/* Finds the tensors of a node, which lies in the window; returns 0 as take_attribute does. */
static int take_node(Walk *walk, Range node) {
    Range label = {node.at, node.at};
    Field field;
    while (node.at < node.end) {
        /* Fields 1 to 10, each of which has a length. */
        if (!take_field(walk, &node, &field) || field.wire != BYTES || field.number > 10) return 0;
        /* The first output names the tensors of a node: whether it is a name is for Python to say. */
        if (field.number == 2 && !is_plain_name(walk, field.bytes)) return 0;
        if (field.number == 2 && label.at == label.end) label = field.bytes;
        if (field.number == 5 && !take_attribute(walk, field.bytes, label)) return 0;
    }
    return 1;
}

/* ---- what Python calls */

/* Fields of a message that holds tensors and nodes. */
typedef struct {
    int node, tensor;
    unsigned plain;
} Tags;

static int take_part(Walk *walk, Range *message, const Tags *tags) {
    uint8_t tag = message->at < walk->whole ? walk->data[message->at] : 0;
    Field field;
    if (tag >= 0x80 || !take_field(walk, message, &field) || field.wire != BYTES) return 0;
    if (tag == tags->node) return field.bytes.end <= walk->whole && take_node(walk, field.bytes);
    if (tag == tags->tensor) return find_tensor(walk, field.bytes, walk->depth + 1, (Range){0, 0});
    return tags->plain >> field.number & 1;
}

PyObject *onnx_parts(PyObject *self, PyObject *args) {
    Py_buffer data;
    Range message;
    Walk walk, before;
    Tags tags;
    Py_ssize_t number = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nnnL(iiI)LLL", &data, &message.at, &message.end, &walk.whole, &walk.base,
                          &tags.node, &tags.tensor, &tags.plain, &walk.depth, &walk.fields, &walk.tensors)) return NULL;
    walk.data = data.buf;
    walk.size = data.len;
    if (message.at < 0 || message.end < message.at || walk.whole > data.len)
        return refuse("the message is not within the data", &data, 1);
    walk.found = PyList_New(0);
    before = walk;
    while (walk.found != NULL && message.at < message.end) {
        Range next = message;
        if (!take_part(&walk, &next, &tags)) break;
        message = next;
        before = walk;
        number = PyList_GET_SIZE(walk.found);
    }
    PyBuffer_Release(&data);
    /* A part that is left to Python may have had tensors that were found. */
    if (walk.found != NULL && (PyErr_Occurred() || PyList_SetSlice(walk.found, number, PyList_GET_SIZE(walk.found), NULL) < 0))
        Py_CLEAR(walk.found);
    return walk.found == NULL ? NULL : Py_BuildValue("nLN", message.at, before.fields, walk.found);
}

PyObject *onnx_tensor(PyObject *self, PyObject *args) {
    Py_buffer data;
    Range message;
    Walk walk;
    int done;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nnnLLL", &data, &message.at, &message.end, &walk.whole, &walk.base, &walk.depth, &walk.fields))
        return NULL;
    walk.data = data.buf;
    walk.size = data.len;
    walk.tensors = 1;
    if (message.at < 0 || message.end < message.at || walk.whole > data.len)
        return refuse("the message is not within the data", &data, 1);
    walk.found = PyList_New(0);
    done = walk.found != NULL && find_tensor(&walk, message, walk.depth, (Range){0, 0});
    PyBuffer_Release(&data);
    if (!done && walk.found != NULL && !PyErr_Occurred()) {
        Py_DECREF(walk.found);
        Py_RETURN_NONE;
    }
    if (!done) {
        Py_XDECREF(walk.found);
        return NULL;
    }
    return Py_BuildValue("LN", walk.fields, walk.found);
}
