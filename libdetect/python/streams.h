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

/* Defines KIND_kernel from KIND_free, KIND_ready, ... of a stream's header, which know the
 * type of their state; options_of is the function with its options. */
#define STREAM_KERNEL(kind, options_of, one_record_holds_gil)                                     \
    static void kind##_free_(void *s) { kind##_free(s); }                                         \
    static int kind##_n_fields_(const void *s) { return options_of(s)->n_fields; }                \
    static int kind##_ready_(const void *s) { return kind##_ready(s); }                           \
    static const stream_counts *kind##_counts_(const void *s) { return kind##_counts(s); }        \
    static size_t kind##_memory_(const void *s) { return kind##_memory(s); }                      \
    static size_t kind##_size_(const void *s) { return kind##_size(s); }                          \
    static void kind##_save_(const void *s, unsigned char *bytes) { kind##_save(s, bytes); }      \
    static void *kind##_load_(const unsigned char *b, size_t n) { return kind##_load(b, n); }     \
    static int kind##_process_(void *s, const double *values, const double *seconds, int64_t n,   \
                               enum stream_mode mode, double *scores, double *raw,                \
                               double *strengths, double *expected)                               \
    {                                                                                             \
        return kind##_process(s, values, seconds, n, mode, scores, raw, strengths, expected);     \
    }                                                                                             \
    static const stream_kernel kind##_kernel = {                                                  \
        .name = #kind,                                                                            \
        .free = kind##_free_,                                                                     \
        .n_fields = kind##_n_fields_,                                                             \
        .ready = kind##_ready_,                                                                   \
        .counts = kind##_counts_,                                                                 \
        .memory = kind##_memory_,                                                                 \
        .size = kind##_size_,                                                                     \
        .save = kind##_save_,                                                                     \
        .load = kind##_load_,                                                                     \
        .process = kind##_process_,                                                               \
        .holds_gil = one_record_holds_gil,                                                        \
    }

/* Wraps a state, which the object then owns; NULL state raises MemoryError. */
PyObject *stream_wrap(PyObject *module, const stream_kernel *kernel, void *state);
/* The state of a Stream of this kernel with its lock taken, or NULL with a TypeError. */
void *stream_lock(PyObject *object, const stream_kernel *kernel);
void stream_unlock(PyObject *object);

/* Rebuilds a Stream from the bytes of its snapshot. */
PyObject *stream_restore(PyObject *module, const stream_kernel *kernel, PyObject *bytes);

#endif
