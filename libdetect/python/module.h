/* Shared by the files of the Python binding. Each area has one file here that
 * turns Python objects into pointers and calls the C core with the GIL released. */
#ifndef ANOMALY_MODULE_H
#define ANOMALY_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Opens a C-contiguous buffer of the given struct format ("d", "f", "i", "q", "B", ...).
 * Returns 0, or -1 with a TypeError that names the argument. Release with PyBuffer_Release. */
int open_buffer(PyObject *object, const char *name, const char *format, int writable,
                Py_buffer *view);

/* Number of items in a buffer opened by open_buffer. */
static inline Py_ssize_t buffer_length(const Py_buffer *view)
{
    return view->itemsize > 0 ? view->len / view->itemsize : 0;
}

#endif
