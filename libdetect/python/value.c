/* Python side of the KPI windows: arrays in, arrays out, the GIL released in between. */
#include "module.h"

#include <stdlib.h>
#include <string.h>

#include "../kpi.h"
#include "../kpi_rate.h"

static const char CAPSULE[] = "anomaly._core.value_model";

static void drop_model(PyObject *capsule)
{
    free_model(PyCapsule_GetPointer(capsule, CAPSULE));
}

static PyObject *core_value_load(PyObject *self, PyObject *bytes)
{
    char *data;
    Py_ssize_t size;
    void *handle;
    (void)self;
    if (PyBytes_AsStringAndSize(bytes, &data, &size) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    handle = load_model_memory(data, (size_t)size);
    Py_END_ALLOW_THREADS
    if (handle == NULL) {
        PyErr_SetString(PyExc_ValueError, "not a sound value model");
        return NULL;
    }
    return PyCapsule_New(handle, CAPSULE, drop_model);
}

static PyObject *core_value_info(PyObject *self, PyObject *capsule)
{
    ModelInfo info;
    (void)self;
    void *handle = PyCapsule_GetPointer(capsule, CAPSULE);
    if (handle == NULL)
        return NULL;
    model_info(handle, &info);
    return Py_BuildValue("{s:i,s:i,s:i,s:i,s:i,s:i,s:d}", "container_version",
                         info.container_version, "feature_set", info.feature_set, "n_features",
                         info.n_features, "window", info.window, "n_trees", info.n_trees,
                         "n_nodes", info.n_nodes, "threshold", info.threshold);
}

/* Opens count buffers of the formats; on failure releases those already open. */
static int open_all(PyObject *const *objects, const char *const *names, const char *formats,
                    int n_inputs, int count, Py_buffer *views)
{
    for (int i = 0; i < count; i++) {
        char format[2] = {formats[i], 0};
        if (open_buffer(objects[i], names[i], format, i >= n_inputs, &views[i]) == 0)
            continue;
        while (i-- > 0)
            PyBuffer_Release(&views[i]);
        return -1;
    }
    return 0;
}

static void close_all(Py_buffer *views, int count)
{
    for (int i = 0; i < count; i++)
        PyBuffer_Release(&views[i]);
}

/* Checks that the rows fill the first buffer and each output holds `each[i]` a row. */
static Py_ssize_t count_rows(const Py_buffer *views, const char *const *names, int window,
                             int n_inputs, int count, const int *each)
{
    Py_ssize_t width = 5 * (Py_ssize_t)window + 3, rows;
    if (window < DETECT_MIN_WINDOW || window > DETECT_MAX_WINDOW) {
        PyErr_Format(PyExc_ValueError, "window must be %d to %d, got %d", DETECT_MIN_WINDOW,
                     DETECT_MAX_WINDOW, window);
        return -1;
    }
    rows = buffer_length(&views[0]) / width;
    for (int i = 0; i < count; i++) {
        Py_ssize_t wanted = rows * (i < n_inputs ? width : each[i]);
        if (buffer_length(&views[i]) != wanted) {
            PyErr_Format(PyExc_ValueError, "%s must hold %zd items, got %zd", names[i], wanted,
                         buffer_length(&views[i]));
            return -1;
        }
    }
    return rows;
}

static const char measure_doc[] =
    "value_measure(rows, window, parts, features, expected, codes)\n--\n\n"
    "Features, training-free parts and (expected, spread) of each window.";

static PyObject *core_value_measure(PyObject *self, PyObject *arguments)
{
    static const char *const names[] = {"rows", "parts", "features", "expected", "codes"};
    static const int each[] = {0, KPI_PARTS, KPI_FEATURES, 2, 1};
    PyObject *objects[5];
    Py_buffer views[5];
    int window, full;
    double *scratch;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "OiOOOO", &objects[0], &window, &objects[1], &objects[2],
                          &objects[3], &objects[4]))
        return NULL;
    if (open_all(objects, names, "ddddi", 1, 5, views) < 0)
        return NULL;
    Py_ssize_t rows = count_rows(views, names, window, 1, 5, each);
    if (rows < 0) {
        close_all(views, 5);
        return NULL;
    }
    full = 2 * window + 1;
    scratch = malloc(kpi_scratch(window) * sizeof *scratch);
    if (scratch == NULL) {
        close_all(views, 5);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < rows; i++) {
        const double *row = (const double *)views[0].buf + i * (5 * (Py_ssize_t)window + 3);
        kpi_result result;
        int code = kpi_measure(row, row + full, row + 2 * full, window, scratch, &result);
        ((int *)views[4].buf)[i] = code;
        if (code != DETECT_OK)
            continue;
        memcpy((double *)views[1].buf + i * KPI_PARTS, result.parts, sizeof result.parts);
        memcpy((double *)views[2].buf + i * KPI_FEATURES, result.features,
               sizeof result.features);
        ((double *)views[3].buf)[2 * i] = result.expected;
        ((double *)views[3].buf)[2 * i + 1] = result.spread;
    }
    Py_END_ALLOW_THREADS
    free(scratch);
    close_all(views, 5);
    Py_RETURN_NONE;
}

static const char test_doc[] =
    "value_test(model, rows, window, scores, normal, codes, n_threads)\n--\n\n"
    "Joined score and probability of normal of each window.";

static PyObject *core_value_test(PyObject *self, PyObject *arguments)
{
    static const char *const names[] = {"rows", "scores", "normal", "codes"};
    static const int each[] = {0, 1, 1, 1};
    PyObject *capsule, *objects[4];
    Py_buffer views[4];
    int window, n_threads, code = DETECT_OK;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "OOiOOOi", &capsule, &objects[0], &window, &objects[1],
                          &objects[2], &objects[3], &n_threads))
        return NULL;
    const kpi_model *model = PyCapsule_GetPointer(capsule, CAPSULE);
    if (model == NULL || open_all(objects, names, "dddi", 1, 4, views) < 0)
        return NULL;
    Py_ssize_t rows = count_rows(views, names, window, 1, 4, each);
    if (rows >= 0) {
        kpi_outputs out = {views[1].buf, views[2].buf, NULL, NULL, views[3].buf};
        Py_BEGIN_ALLOW_THREADS
        code = kpi_test_rows(model, views[0].buf, rows, window, &out, n_threads);
        Py_END_ALLOW_THREADS
    }
    close_all(views, 4);
    if (rows < 0)
        return NULL;
    if (code == DETECT_LENGTH)
        return PyErr_Format(PyExc_ValueError, "n_threads must be 1 to 256, got %d", n_threads);
    if (code != DETECT_OK)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static const char margin_doc[] =
    "value_margin(model, features, margins)\n--\n\nMargin of the trees for each row of features.";

static PyObject *core_value_margin(PyObject *self, PyObject *arguments)
{
    static const char *const names[] = {"features", "margins"};
    PyObject *capsule, *objects[2];
    Py_buffer views[2];
    (void)self;
    if (!PyArg_ParseTuple(arguments, "OOO", &capsule, &objects[0], &objects[1]))
        return NULL;
    const kpi_model *model = PyCapsule_GetPointer(capsule, CAPSULE);
    if (model == NULL || open_all(objects, names, "dd", 1, 2, views) < 0)
        return NULL;
    Py_ssize_t rows = buffer_length(&views[1]);
    int fits = buffer_length(&views[0]) == rows * KPI_FEATURES;
    if (fits) {
        const double *features = views[0].buf;
        double *margins = views[1].buf;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < rows; i++)
            margins[i] = (double)kpi_margin(model, features + i * KPI_FEATURES);
        Py_END_ALLOW_THREADS
    }
    close_all(views, 2);
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "features must hold %d items for each margin",
                            KPI_FEATURES);
    Py_RETURN_NONE;
}

static const char parse_doc[] =
    "value_parse(text, values)\n--\n\n"
    "Read comma-joined numbers into values; how many there are, or -1 where one is illegal.";

static PyObject *core_value_parse(PyObject *self, PyObject *arguments)
{
    PyObject *object;
    Py_buffer view;
    const char *text;
    Py_ssize_t size;
    int64_t count;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "s#O", &text, &size, &object) ||
        open_buffer(object, "values", "d", 1, &view) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    count = kpi_numbers(text, (size_t)size, view.buf, buffer_length(&view));
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyLong_FromLongLong(count);
}

static const char rate_doc[] =
    "rate_test(rows, volumes, window, method, direction, seasonal, n_sigma, alpha, min_effect,"
    " scores, normal, codes)\n--\n\n"
    "Score and probability of normal of each window of rates; volumes may be None.";

static void test_rates(const double *rows, const double *volumes, Py_ssize_t n, int window,
                       const RateOptions *options, double *scores, double *normal, int *codes)
{
    Py_ssize_t width = 5 * (Py_ssize_t)window + 3, full = 2 * (Py_ssize_t)window + 1;
    for (Py_ssize_t i = 0; i < n; i++) {
        const double *r = rows + i * width;
        rate_window data = {r + 2 * full, r + full, r, window};
        if (volumes == NULL) {
            codes[i] = rate_score(&data, options, &scores[i]);
        } else {
            const double *v = volumes + i * width;
            rate_window volume = {v + 2 * full, v + full, v, window};
            codes[i] = rate_volume_score(&data, &volume, options, &scores[i]);
        }
        if (codes[i] == DETECT_OK)
            normal[i] = rate_probability(scores[i]);
    }
}

static PyObject *core_rate_test(PyObject *self, PyObject *arguments)
{
    static const char *const names[] = {"rows", "volumes", "scores", "normal", "codes"};
    static const int each[] = {0, 0, 1, 1, 1};
    PyObject *objects[5];
    Py_buffer views[5];
    RateOptions o;
    int window, known;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "OOiiiidddOOO", &objects[0], &objects[1], &window, &o.method,
                          &o.direction, &o.seasonal, &o.n_sigma, &o.alpha, &o.min_effect,
                          &objects[2], &objects[3], &objects[4]))
        return NULL;
    known = objects[1] != Py_None;
    objects[1] = known ? objects[1] : objects[0];
    if (open_all(objects, names, "ddddi", 2, 5, views) < 0)
        return NULL;
    Py_ssize_t rows = count_rows(views, names, window, 2, 5, each);
    if (rows >= 0) {
        Py_BEGIN_ALLOW_THREADS
        test_rates(views[0].buf, known ? views[1].buf : NULL, rows, window, &o, views[2].buf,
                   views[3].buf, views[4].buf);
        Py_END_ALLOW_THREADS
    }
    close_all(views, 5);
    if (rows < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"value_load", core_value_load, METH_O,
     "value_load(bytes)\n--\n\nCheck a model file's bytes and return its handle."},
    {"value_info", core_value_info, METH_O, "value_info(model)\n--\n\nWhat a handle holds."},
    {"value_measure", core_value_measure, METH_VARARGS, measure_doc},
    {"value_test", core_value_test, METH_VARARGS, test_doc},
    {"value_margin", core_value_margin, METH_VARARGS, margin_doc},
    {"value_parse", core_value_parse, METH_VARARGS, parse_doc},
    {"rate_test", core_rate_test, METH_VARARGS, rate_doc},
    {NULL, NULL, 0, NULL},
};

int register_value(PyObject *module)
{
    if (PyModule_AddIntConstant(module, "VALUE_FEATURES", KPI_FEATURES) < 0 ||
        PyModule_AddIntConstant(module, "VALUE_FEATURE_SET", KPI_FEATURE_SET) < 0)
        return -1;
    return PyModule_AddFunctions(module, methods);
}
