/* Steps over the nodes of an ONNX graph, and finds the constants in them: nearly all of the time of a walk in Python.
 *
 * The twin of the loop in Walk._message (tensors/onnx/walk.py), which says what the messages hold. Whatever is not of the common
 * form is left to it, from that field on, so that both find the same tensors, refuse the same files, and count the same fields.
 * Source: https://protobuf.dev/programming-guides/encoding/.
 */

#include "../../codecs/native/kernels.h"

enum { VARINT, FIXED64, BYTES, FIXED32 = 5 };

#define NAME_SIZE 255 /* a longer name is left to Python */
#define MOST 8        /* tensors in one node */
#define FIELD_HEAD 20 /* _FIELD_HEAD in Python: an attribute is searched if so many bytes of the window are left beside it */

typedef struct {
    const uint8_t *data;
    Py_ssize_t at, end;
    Py_ssize_t fields; /* looked at so far */
} Cursor;

/* Reads a varint of up to `most` bytes; returns 0 where there is none. */
static int take_number(Cursor *cursor, int most, uint64_t *value) {
    *value = 0;
    for (int k = 0; k < most && cursor->at < cursor->end; k++) {
        uint8_t byte = cursor->data[cursor->at++];
        *value |= (uint64_t)(byte & 0x7F) << (7 * k);
        if (byte < 0x80) return 1;
    }
    return 0;
}

/* Reads the length of a field and opens it; returns 0 if it is not whole. */
static int take_message(Cursor *cursor, Cursor *inner) {
    uint64_t size;
    if (!take_number(cursor, 5, &size) || size > (uint64_t)(cursor->end - cursor->at)) return 0;
    *inner = (Cursor){cursor->data, cursor->at, cursor->at + (Py_ssize_t)size, 0};
    cursor->at = inner->end;
    return 1;
}

/* What a node holds: ranges of tensors, and the name of its first output, which they go by. */
typedef struct {
    Cursor tensors[MOST], names[MOST];
    int number;
    Py_ssize_t searched; /* attributes of up to so many bytes are searched for bytes that may lead to a tensor */
} Constants;

/* Whether some byte could be the first of a field that leads from an attribute to a tensor: _LEADS_ON in Python. */
static int may_lead_on(const Cursor *attribute) {
    for (Py_ssize_t at = attribute->at; at < attribute->end; at++) {
        switch (attribute->data[at]) {
        case 5 << 3 | BYTES: case 6 << 3 | BYTES: case 10 << 3 | BYTES: case 11 << 3 | BYTES:
        case 0x80 | (22 << 3 & 0x7F) | BYTES: case 0x80 | (23 << 3 & 0x7F) | BYTES: return 1;
        }
    }
    return 0;
}

/* Steps over an attribute; returns 0 if it leads to a graph or several tensors, or is of a form that is rare. */
static int skip_attribute(Cursor attribute, const Cursor *name, Constants *found, Py_ssize_t *fields) {
    if (attribute.end - attribute.at <= found->searched && !may_lead_on(&attribute)) return 1;
    while (attribute.at < attribute.end) {
        uint64_t tag, value;
        Cursor inner;
        ++*fields;
        if (!take_number(&attribute, 2, &tag)) return 0;
        switch (tag >> 3) {
        case 0: case 6: case 10: case 11: case 22: case 23: return 0;
        case 5:
            if ((tag & 7) != BYTES || found->number == MOST || !take_message(&attribute, &inner)) return 0;
            found->names[found->number] = *name;
            found->tensors[found->number++] = inner;
            continue;
        }
        switch (tag & 7) {
        case VARINT:
            if (!take_number(&attribute, 10, &value)) return 0;
            break;
        case BYTES:
            if (!take_message(&attribute, &inner)) return 0;
            break;
        case FIXED64: case FIXED32:
            attribute.at += (tag & 7) == FIXED64 ? 8 : 4;
            if (attribute.at > attribute.end) return 0;
            break;
        default: return 0;
        }
    }
    return 1;
}

static int is_plain_name(const Cursor *name) {
    if (name->end - name->at > NAME_SIZE) return 0;
    for (Py_ssize_t at = name->at; at < name->end; at++)
        if (name->data[at] >= 0x80) return 0;
    return 1;
}

/* Steps over a node's fields; returns 0 as skip_attribute does. */
static int skip_node(Cursor node, Constants *found, Py_ssize_t *fields) {
    Cursor name = {node.data, node.at, node.at, 0};
    found->number = 0;
    while (node.at < node.end) {
        uint8_t tag = node.data[node.at++];
        Cursor inner;
        ++*fields;
        /* Fields 1 to 10, each of which has a length. */
        if ((tag & 7) != BYTES || tag >> 3 < 1 || tag >> 3 > 10 || !take_message(&node, &inner)) return 0;
        /* The first output names the tensors of a node: whether it is a name is for Python to say. */
        if (tag >> 3 == 2 && !is_plain_name(&inner)) return 0;
        if (tag >> 3 == 2 && name.at == name.end) name = inner;
        if (tag >> 3 == 5 && !skip_attribute(inner, &name, found, fields)) return 0;
    }
    return 1;
}

static int note(PyObject *list, const Constants *found) {
    for (int k = 0; k < found->number; k++) {
        const Cursor *tensor = &found->tensors[k], *name = &found->names[k];
        PyObject *item = Py_BuildValue("nnnn", tensor->at, tensor->end, name->at, name->end);
        int failed = item == NULL || PyList_Append(list, item) < 0;
        Py_XDECREF(item);
        if (failed) return 0;
    }
    return 1;
}

PyObject *skip_nodes(PyObject *self, PyObject *args) {
    Py_buffer data;
    Py_ssize_t begin, end;
    PyObject *list;
    Constants found;
    Cursor graph;
    int tag;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nni", &data, &begin, &end, &tag)) return NULL;
    if (begin < 0 || end < begin || end > data.len) return refuse("the message is not within the data", &data, 1);
    graph = (Cursor){data.buf, begin, end, 0};
    found.searched = data.len - FIELD_HEAD;
    list = PyList_New(0);
    while (list != NULL && graph.at < end && graph.data[graph.at] == tag) {
        Cursor next = graph, node;
        next.at++;
        next.fields++;
        if (!take_message(&next, &node) || !skip_node(node, &found, &next.fields)) break;
        if (!note(list, &found)) Py_CLEAR(list);
        graph = next;
    }
    PyBuffer_Release(&data);
    return list == NULL ? NULL : Py_BuildValue("nnN", graph.at, graph.fields, list);
}
