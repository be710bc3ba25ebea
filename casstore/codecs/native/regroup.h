/* Elements as runs of adjacent byte columns; see regroup.py, which is the specification. */

#ifndef CASSTORE_REGROUP_H
#define CASSTORE_REGROUP_H

#include <Python.h>
#include <stdint.h>

#define MAX_STRIDE 512
#define MAX_RUNS 255

typedef struct {
    Py_ssize_t start;     /* first column */
    Py_ssize_t columns;   /* number of columns */
    uint8_t *data;        /* run bytes: written by split, read by merge */
    int constant;         /* merge only: one item stands for all elements */
} Run;

/* Whether the sign of these elements can be moved: the last two runs are single columns. */
int casstore_may_move_sign(Py_ssize_t stride, const Run *runs, Py_ssize_t number);

/* Writes what each of the runs, which cover the elements, holds. Touches no Python object. */
void casstore_split(const uint8_t *body, Py_ssize_t elements, Py_ssize_t stride, int sign, const Run *runs, Py_ssize_t number);

#endif
