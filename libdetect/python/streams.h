/* One Python type holds the state of any stream kernel; each kernel fills in this table. */
#ifndef ANOMALY_STREAMS_H
#define ANOMALY_STREAMS_H

#include "module.h"

#include "likelihood.h"

typedef struct {
    const char *name;
    void (*free)(void *state);
    int (*n_fields)(const void *state);
    int (*ready)(const void *state);
    const stream_counts *(*counts)(const void *state);
    size_t (*memory)(const void *state);
    size_t (*size)(const void *state);
    void (*save)(const void *state, unsigned char *bytes);
    void *(*load)(const unsigned char *bytes, size_t size);
    int (*process)(void *state, const double *values, const double *seconds, int64_t n,
                   enum stream_mode mode, double *scores, double *raw, double *strengths,
                   double *expected);
    int holds_gil; /* a single record is too short to let others run */
} stream_kernel;

/* Wraps a state, which the object then owns; NULL state raises MemoryError. */
PyObject *stream_wrap(PyObject *module, const stream_kernel *kernel, void *state);
/* The state of a Stream of this kernel with its lock taken, or NULL with a TypeError. */
void *stream_lock(PyObject *object, const stream_kernel *kernel);
void stream_unlock(PyObject *object);

/* Rebuilds a Stream from the bytes of its snapshot. */
PyObject *stream_restore(PyObject *module, const stream_kernel *kernel, PyObject *bytes);

#endif
