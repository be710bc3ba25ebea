/* What the compiled kernels share: what they ask of the compiler, and the functions that _kernels.c gives to Python.
 *
 * Each kernel is the twin of numpy code, which is the specification: both give the same bytes. No function touches
 * Python objects while it works, so none needs the GIL. Buffers may lie at any address: elements are loaded and
 * stored with memcpy. Arguments are checked here as well as in Python: no call can reach beyond a buffer.
 */

#ifndef CASSTORE_KERNELS_H
#define CASSTORE_KERNELS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <fenv.h>
#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels are for little-endian machines; casstore runs without them"
#endif
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "each operation on floats has to round once; casstore runs without the kernels"
#endif

/* One portable build that uses AVX2 where the processor has it: needs the loader's indirect functions. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORISED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORISED
#endif

/* What is called in loops becomes part of them, in each of their versions. */
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* Between these, floats round to nearest even and subnormals are numbers, whatever another library left behind. */
#define FLOATS_BEGIN                                                                                                   \
    {                                                                                                                  \
        fenv_t floats_before;                                                                                          \
        fegetenv(&floats_before);                                                                                      \
        fesetenv(FE_DFL_ENV);
#define FLOATS_END                                                                                                     \
    fesetenv(&floats_before);                                                                                          \
    }

/* Bytes that are compared first, before the GIL is given away: most comparisons end there. */
#define FIRST 4096

/* Work on so few bytes takes less time than giving the GIL away and getting it back, which another thread may then hold. */
#define FEW (64 << 10)
#define BEGIN_WITHOUT_GIL(SIZE)                                                                                        \
    {                                                                                                                  \
        PyThreadState *gil_saved = (SIZE) > FEW ? PyEval_SaveThread() : NULL;
#define END_WITHOUT_GIL                                                                                                \
        if (gil_saved != NULL) PyEval_RestoreThread(gil_saved);                                                        \
    }

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Release the buffers and raise ValueError, unless there is an error already; return NULL. */
PyObject *refuse(const char *message, Py_buffer *buffers, int count);

PyObject *planes(PyObject *self, PyObject *args);
PyObject *probe_columns(PyObject *self, PyObject *args);
PyObject *onnx_parts(PyObject *self, PyObject *args);
PyObject *onnx_tensor(PyObject *self, PyObject *args);
PyObject *subtract_each(PyObject *self, PyObject *args);
PyObject *add_each(PyObject *self, PyObject *args);
PyObject *cast(PyObject *self, PyObject *args);
PyObject *transpose(PyObject *self, PyObject *args);
PyObject *quantise(PyObject *self, PyObject *args);
PyObject *combine(PyObject *self, PyObject *args);
PyObject *gguf(PyObject *self, PyObject *args);
PyObject *lora(PyObject *self, PyObject *args);
PyObject *sketch_entropy(PyObject *self, PyObject *args);
PyObject *sketch_compare(PyObject *self, PyObject *args);
PyObject *sketch_distances(PyObject *self, PyObject *args);
PyObject *sketch_signs(PyObject *self, PyObject *args);
PyObject *read_ranges(PyObject *self, PyObject *args);

#endif
