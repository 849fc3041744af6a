#include "module.h"

#include <string.h>

#include "forest.h"

int register_forest(PyObject *module);

typedef struct {
    PyObject_HEAD
    forest forest;
    void *memory; /* one block: nodes, values, roots */
} ForestObject;

static const char *const argument_names[] = {
    "feature", "threshold", "left", "right", "nan_left", "values", "roots", NULL,
};
static const char *const argument_formats[] = {"i", "d", "i", "i", "B", "d", "i"};
enum { FEATURE, THRESHOLD, LEFT, RIGHT, NAN_LEFT, VALUES, ROOTS, N_ARRAYS };

static int open_arrays(PyObject *const *objects, Py_buffer *views)
{
    for (int i = 0; i < N_ARRAYS; i++)
        if (open_buffer(objects[i], argument_names[i], argument_formats[i], 0, &views[i]) < 0) {
            while (i-- > 0)
                PyBuffer_Release(&views[i]);
            return -1;
        }
    return 0;
}

/* Copies the arrays into one block that the object owns. */
static int copy_arrays(ForestObject *self, const Py_buffer *views)
{
    size_t n_nodes = (size_t)buffer_length(&views[FEATURE]);
    for (int i = THRESHOLD; i <= NAN_LEFT; i++)
        if ((size_t)buffer_length(&views[i]) != n_nodes) {
            PyErr_Format(PyExc_ValueError, "%s must have as many items as feature",
                         argument_names[i]);
            return -1;
        }
    if ((size_t)buffer_length(&views[VALUES]) != n_nodes * self->forest.n_outputs) {
        PyErr_SetString(PyExc_ValueError, "values must have a row of outputs for each node");
        return -1;
    }
    size_t node_bytes = n_nodes * sizeof(forest_node);
    size_t value_bytes = (size_t)views[VALUES].len;
    self->memory = PyMem_Malloc(node_bytes + value_bytes + (size_t)views[ROOTS].len + 1);
    if (self->memory == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    forest_node *nodes = self->memory;
    for (size_t i = 0; i < n_nodes; i++)
        nodes[i] = (forest_node){
            .threshold = ((const double *)views[THRESHOLD].buf)[i],
            .feature = ((const int32_t *)views[FEATURE].buf)[i],
            .child = {((const int32_t *)views[RIGHT].buf)[i],
                      ((const int32_t *)views[LEFT].buf)[i]},
            .nan_left = ((const uint8_t *)views[NAN_LEFT].buf)[i] != 0,
        };
    char *values = (char *)self->memory + node_bytes;
    memcpy(values, views[VALUES].buf, value_bytes);
    memcpy(values + value_bytes, views[ROOTS].buf, (size_t)views[ROOTS].len);
    self->forest.nodes = nodes;
    self->forest.values = (const double *)(void *)values;
    self->forest.roots = (const int32_t *)(void *)(values + value_bytes);
    self->forest.n_nodes = n_nodes;
    self->forest.n_trees = (size_t)buffer_length(&views[ROOTS]);
    return 0;
}

static int forest_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"feature", "threshold", "left",    "right",  "nan_left",
                               "values",  "roots",     "n_features", "start", "divisor",
                               "factor",  "rule",      "check_as_float", "allow_nan", NULL};
    ForestObject *self = (ForestObject *)object;
    PyObject *arrays[N_ARRAYS];
    Py_buffer views[N_ARRAYS];
    Py_ssize_t n_features;
    PyObject *start;
    int rule;
    if (self->memory != NULL) {
        PyErr_SetString(PyExc_TypeError, "a forest is made once");
        return -1;
    }
    forest *forest = &self->forest;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "OOOOOOOnO!ddipp", keywords, &arrays[0], &arrays[1], &arrays[2],
            &arrays[3], &arrays[4], &arrays[5], &arrays[6], &n_features, &PyTuple_Type, &start,
            &forest->divisor, &forest->factor, &rule, &forest->check_as_float,
            &forest->allow_nan))
        return -1;
    Py_ssize_t n_outputs = PyTuple_Size(start);
    if (n_features < 1 || rule < FOREST_ABOVE || rule > FOREST_LARGER || n_outputs < 1 ||
        n_outputs > FOREST_MAX_OUTPUTS) {
        PyErr_SetString(PyExc_ValueError, "n_features, rule or start is out of range");
        return -1;
    }
    for (Py_ssize_t k = 0; k < n_outputs; k++) {
        forest->start[k] = PyFloat_AsDouble(PyTuple_GetItem(start, k));
        if (PyErr_Occurred())
            return -1;
    }
    forest->n_features = (size_t)n_features;
    forest->n_outputs = (size_t)n_outputs;
    forest->rule = (enum forest_rule)rule;
    if (open_arrays(arrays, views) < 0)
        return -1;
    int failed = copy_arrays(self, views);
    for (int i = 0; i < N_ARRAYS; i++)
        PyBuffer_Release(&views[i]);
    if (!failed && forest_check(forest) < 0) {
        PyErr_SetString(PyExc_ValueError, "a node, root or column is out of range");
        failed = -1;
    }
    if (failed) { /* never leave a forest that was not checked */
        PyMem_Free(self->memory);
        self->memory = NULL;
    }
    return failed;
}

static void forest_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyMem_Free(((ForestObject *)object)->memory);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static const forest *checked(PyObject *object)
{
    ForestObject *self = (ForestObject *)object;
    if (self->memory == NULL)
        PyErr_SetString(PyExc_ValueError, "the forest was not initialised");
    return self->memory == NULL ? NULL : &self->forest;
}

static PyObject *evaluate_buffers(const forest *forest, Py_buffer *rows, Py_buffer *scores,
                                  Py_buffer *labels)
{
    size_t n_rows = (size_t)buffer_length(scores);
    if ((size_t)buffer_length(labels) != n_rows ||
        (size_t)buffer_length(rows) != n_rows * forest->n_features) {
        PyErr_Format(PyExc_ValueError, "rows must hold %zu values for each score and label",
                     forest->n_features);
        return NULL;
    }
    ptrdiff_t refused;
    Py_BEGIN_ALLOW_THREADS
    refused = forest_evaluate(forest, rows->buf, n_rows, scores->buf, labels->buf);
    Py_END_ALLOW_THREADS
    return PyLong_FromSsize_t((Py_ssize_t)refused);
}

PyDoc_STRVAR(evaluate_doc,
             "evaluate(rows, scores, labels)\n--\n\n"
             "Fill scores (float64) and labels (uint8) for rows of float64. Returns -1, or the\n"
             "position of the first value refused.");

static PyObject *method_evaluate(PyObject *object, PyObject *args)
{
    PyObject *objects[3], *result = NULL;
    Py_buffer rows, scores, labels;
    const forest *forest = checked(object);
    if (forest == NULL || !PyArg_ParseTuple(args, "OOO", &objects[0], &objects[1], &objects[2]))
        return NULL;
    if (open_buffer(objects[0], "rows", "d", 0, &rows) < 0)
        return NULL;
    if (open_buffer(objects[1], "scores", "d", 1, &scores) == 0) {
        if (open_buffer(objects[2], "labels", "B", 1, &labels) == 0) {
            result = evaluate_buffers(forest, &rows, &scores, &labels);
            PyBuffer_Release(&labels);
        }
        PyBuffer_Release(&scores);
    }
    PyBuffer_Release(&rows);
    return result;
}

PyDoc_STRVAR(evaluate_one_doc,
             "evaluate_one(values)\n--\n\n"
             "Label (bool) and score (float) of one row, a list of floats; None if a value is\n"
             "refused.");

static PyObject *method_evaluate_one(PyObject *object, PyObject *values)
{
    const forest *forest = checked(object);
    if (forest == NULL)
        return NULL;
    if (!PyList_Check(values) || (size_t)PyList_Size(values) != forest->n_features)
        return PyErr_Format(PyExc_ValueError, "values must be a list of %zu floats",
                            forest->n_features);
    double *row = PyMem_Malloc(forest->n_features * sizeof *row);
    if (row == NULL)
        return PyErr_NoMemory();
    for (size_t j = 0; j < forest->n_features; j++) {
        row[j] = PyFloat_AsDouble(PyList_GetItem(values, (Py_ssize_t)j));
        if (row[j] == -1.0 && PyErr_Occurred()) {
            PyMem_Free(row);
            return NULL;
        }
    }
    double score;
    uint8_t label;
    /* microseconds: handing the GIL over and back would cost more */
    ptrdiff_t refused = forest_evaluate(forest, row, 1, &score, &label);
    PyMem_Free(row);
    if (refused >= 0)
        Py_RETURN_NONE;
    return Py_BuildValue("(Nd)", PyBool_FromLong(label), score);
}

static PyMethodDef forest_methods[] = {
    {"evaluate", method_evaluate, METH_VARARGS, evaluate_doc},
    {"evaluate_one", method_evaluate_one, METH_O, evaluate_one_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(forest_doc,
             "Forest(feature, threshold, left, right, nan_left, values, roots, n_features, start,\n"
             "       divisor, factor, rule, check_as_float, allow_nan)\n--\n\n"
             "A checked, read-only ensemble of binary decision trees; see libdetect/forest.h.");

static PyType_Slot forest_slots[] = {
    {Py_tp_doc, (void *)forest_doc},
    {Py_tp_init, forest_init},
    {Py_tp_dealloc, forest_dealloc},
    {Py_tp_methods, forest_methods},
    {0, NULL},
};

static PyType_Spec forest_spec = {
    .name = "anomaly._core.Forest",
    .basicsize = sizeof(ForestObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = forest_slots,
};

int register_forest(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &forest_spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "Forest", type);
    Py_DECREF(type);
    return failed;
}
