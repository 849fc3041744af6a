#include "streams.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    const stream_kernel *kernel;
    void *state;
    PyThread_type_lock lock; /* one record or block at a time, whoever calls */
} stream_object;

static void take(stream_object *self)
{
    if (PyThread_acquire_lock(self->lock, NOWAIT_LOCK))
        return;
    Py_BEGIN_ALLOW_THREADS
    PyThread_acquire_lock(self->lock, WAIT_LOCK);
    Py_END_ALLOW_THREADS
}

PyObject *stream_wrap(PyObject *module, const stream_kernel *kernel, void *state)
{
    if (state == NULL)
        return PyErr_NoMemory();
    PyObject *type = PyObject_GetAttrString(module, "Stream");
    stream_object *self =
        type ? (stream_object *)PyType_GenericAlloc((PyTypeObject *)type, 0) : NULL;
    Py_XDECREF(type);
    if (self == NULL) {
        kernel->free(state);
        return NULL;
    }
    self->kernel = kernel;
    self->state = state;
    self->lock = PyThread_allocate_lock();
    if (self->lock == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void stream_dealloc(PyObject *object)
{
    stream_object *self = (stream_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->state != NULL)
        self->kernel->free(self->state);
    if (self->lock != NULL)
        PyThread_free_lock(self->lock);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

void *stream_lock(PyObject *object, const stream_kernel *kernel)
{
    stream_object *self = (stream_object *)object;
    if (PyType_GetSlot(Py_TYPE(object), Py_tp_dealloc) != (void *)stream_dealloc ||
        self->kernel != kernel) {
        PyErr_Format(PyExc_TypeError, "expected the state of a stream of kind %s", kernel->name);
        return NULL;
    }
    take(self);
    return self->state;
}

void stream_unlock(PyObject *object)
{
    PyThread_release_lock(((stream_object *)object)->lock);
}

PyObject *stream_restore(PyObject *module, const stream_kernel *kernel, PyObject *bytes)
{
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(bytes, &data, &size) < 0)
        return NULL;
    void *state = kernel->load((const unsigned char *)data, (size_t)size);
    if (state == NULL) {
        PyErr_Format(PyExc_ValueError,
                     "these %zd bytes are not a snapshot of a %s stream written by this version "
                     "on a machine of this byte order",
                     size, kernel->name);
        return NULL;
    }
    return stream_wrap(module, kernel, state);
}

static int mode_from(PyObject *object)
{
    long mode = PyLong_AsLong(object);
    if (mode == -1 && PyErr_Occurred())
        return -1;
    if (mode < STREAM_PEEK || mode > STREAM_FROZEN) {
        PyErr_Format(PyExc_ValueError, "mode must be 0, 1 or 2, got %ld", mode);
        return -1;
    }
    return (int)mode;
}

/* one(value, seconds, mode) -> (score, raw, expected) */
static PyObject *stream_one(PyObject *object, PyObject *const *args, Py_ssize_t n_args)
{
    stream_object *self = (stream_object *)object;
    if (n_args != 3) {
        PyErr_SetString(PyExc_TypeError, "one() takes value, seconds and mode");
        return NULL;
    }
    double value = PyFloat_AsDouble(args[0]);
    double seconds = value == -1.0 && PyErr_Occurred() ? 0.0 : PyFloat_AsDouble(args[1]);
    int mode = PyErr_Occurred() ? -1 : mode_from(args[2]);
    if (mode < 0)
        return NULL;
    if (self->kernel->n_fields(self->state) != 1) {
        PyErr_Format(PyExc_ValueError, "a record of this stream has %d values, got 1",
                     self->kernel->n_fields(self->state));
        return NULL;
    }
    double score, raw, expected;
    int failed;
    take(self);
    if (self->kernel->holds_gil) {
        failed = self->kernel->process(self->state, &value, &seconds, 1, mode, &score, &raw, NULL,
                                       &expected);
    } else {
        Py_BEGIN_ALLOW_THREADS
        failed = self->kernel->process(self->state, &value, &seconds, 1, mode, &score, &raw, NULL,
                                       &expected);
        Py_END_ALLOW_THREADS
    }
    PyThread_release_lock(self->lock);
    if (failed)
        return PyErr_NoMemory();
    return Py_BuildValue("ddd", score, raw, expected);
}

/* Opens args[i] as doubles of the wanted length; None gives a NULL pointer where allowed. */
static int open_doubles(PyObject *object, const char *name, int writable, int optional,
                        Py_ssize_t length, Py_buffer *view)
{
    if (optional && object == Py_None) {
        view->buf = NULL;
        view->obj = NULL;
        return 0;
    }
    if (open_buffer(object, name, "d", writable, view) < 0)
        return -1;
    if (length >= 0 && buffer_length(view) != length) {
        PyErr_Format(PyExc_ValueError, "%s must have %zd items, got %zd", name, length,
                     buffer_length(view));
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

/* process(values, seconds, mode, scores, raw, strengths, expected) */
static PyObject *stream_process(PyObject *object, PyObject *args)
{
    stream_object *self = (stream_object *)object;
    static const char *names[] = {"values", "seconds", "scores", "raw", "strengths", "expected"};
    PyObject *given[6], *mode_object;
    if (!PyArg_ParseTuple(args, "OOOOOOO", given, given + 1, &mode_object, given + 2, given + 3,
                          given + 4, given + 5))
        return NULL;
    int mode = mode_from(mode_object);
    if (mode < 0)
        return NULL;
    int fields = self->kernel->n_fields(self->state);
    Py_buffer views[6];
    Py_ssize_t n = 0;
    int opened = 0;
    for (; opened < 6; opened++) {
        Py_ssize_t length = opened == 0 ? -1 : opened < 4 ? n : n * fields;
        if (open_doubles(given[opened], names[opened], opened >= 2, opened == 1 || opened >= 4,
                         length, views + opened) < 0)
            break;
        if (opened == 0) {
            n = buffer_length(views) / fields;
            if (n * fields != buffer_length(views)) {
                PyErr_Format(PyExc_ValueError, "values must have %d items per record", fields);
                opened++;
                break;
            }
        }
    }
    int failed = 0;
    if (!PyErr_Occurred()) {
        take(self);
        Py_BEGIN_ALLOW_THREADS
        failed = self->kernel->process(self->state, views[0].buf, views[1].buf, n, mode,
                                       views[2].buf, views[3].buf, views[4].buf, views[5].buf);
        Py_END_ALLOW_THREADS
        PyThread_release_lock(self->lock);
        if (failed)
            PyErr_NoMemory();
    }
    while (opened-- > 0)
        if (views[opened].obj != NULL)
            PyBuffer_Release(views + opened);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *stream_to_bytes(PyObject *object, PyObject *unused)
{
    (void)unused;
    stream_object *self = (stream_object *)object;
    take(self);
    size_t size = self->kernel->size(self->state);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes != NULL)
        self->kernel->save(self->state, (unsigned char *)PyBytes_AsString(bytes));
    PyThread_release_lock(self->lock);
    return bytes;
}

static PyObject *stream_reduce(PyObject *object, PyObject *unused)
{
    stream_object *self = (stream_object *)object;
    PyObject *module = PyImport_ImportModule("anomaly._core");
    char name[64] = "restore_";
    strncat(name, self->kernel->name, sizeof name - sizeof "restore_");
    PyObject *restore = module ? PyObject_GetAttrString(module, name) : NULL;
    PyObject *bytes = restore ? stream_to_bytes(object, unused) : NULL;
    PyObject *result =
        bytes ? Py_BuildValue("O(O)", restore, bytes) : NULL;
    Py_XDECREF(bytes);
    Py_XDECREF(restore);
    Py_XDECREF(module);
    return result;
}

static PyObject *stream_info(PyObject *object, PyObject *unused)
{
    (void)unused;
    stream_object *self = (stream_object *)object;
    take(self);
    stream_counts counts = *self->kernel->counts(self->state);
    size_t memory = self->kernel->memory(self->state);
    int ready = self->kernel->ready(self->state);
    PyThread_release_lock(self->lock);
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L,s:n,s:O}", "records", (long long)counts.records,
                         "missing", (long long)counts.missing, "infinite",
                         (long long)counts.infinite, "repeated", (long long)counts.repeated,
                         "backward", (long long)counts.backward, "memory", (Py_ssize_t)memory,
                         "ready", ready ? Py_True : Py_False);
}

static PyMethodDef stream_methods[] = {
    {"one", (PyCFunction)(void (*)(void))stream_one, METH_FASTCALL,
     "one(value, seconds, mode): score, raw novelty and expected value of one record."},
    {"process", stream_process, METH_VARARGS,
     "process(values, seconds, mode, scores, raw, strengths, expected): a block of records."},
    {"to_bytes", stream_to_bytes, METH_NOARGS, "Snapshot of the whole state."},
    {"info", stream_info, METH_NOARGS, "Counts of records, bytes of memory, readiness."},
    {"__reduce__", stream_reduce, METH_NOARGS, "For pickle and copy."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stream_slots[] = {
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_methods, stream_methods},
    {Py_tp_doc, "State of one stream; safe to call from several threads."},
    {0, NULL},
};

static PyType_Spec stream_spec = {
    .name = "anomaly._core.Stream",
    .basicsize = sizeof(stream_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = stream_slots,
};

int register_streams(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&stream_spec);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "Stream", type);
    Py_DECREF(type);
    return failed;
}
