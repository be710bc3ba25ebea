/* What the kernels of deltas use of one another. Touches no Python object; sizes and formats were checked. */

#ifndef CASSTORE_DELTAS_H
#define CASSTORE_DELTAS_H

#include "kernels.h"

/* Whether elements of residuals may have so many bytes. */
int casstore_is_width(Py_ssize_t width);

/* Whole elements, `size` bytes of them: residual.py says what is written. */
void casstore_subtract(const uint8_t *actual, const uint8_t *predicted, uint8_t *out, Py_ssize_t size, Py_ssize_t width,
                       int floats);
void casstore_add(const uint8_t *differences, const uint8_t *predicted, uint8_t *out, Py_ssize_t size, Py_ssize_t width,
                  int floats);

/* Whether there is such a cast, and the bytes of a float in a format that one has. */
int casstore_is_cast(int source, int target, int rounding);
int casstore_float_width(int format);

/* Writes `count` floats in another format: between FLOATS_BEGIN and FLOATS_END. */
void casstore_cast(int source, int target, const uint8_t *from, uint8_t *out, Py_ssize_t count, int rounding, int saturate);

#endif
