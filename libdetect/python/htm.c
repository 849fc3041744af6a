#include "streams.h"

#include "htm.h"

#include <string.h>

STREAM_KERNEL(htm, htm_get_options, 0);

/* Item of a dict as a long or double; 0 with an error set where it is missing. */
static long long whole(PyObject *options, const char *name)
{
    PyObject *item = PyErr_Occurred() ? NULL : PyDict_GetItemString(options, name);
    if (item == NULL) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_KeyError, "option %s is missing", name);
        return 0;
    }
    return PyLong_AsLongLong(item);
}

static double real(PyObject *options, const char *name)
{
    PyObject *item = PyErr_Occurred() ? NULL : PyDict_GetItemString(options, name);
    if (item == NULL) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_KeyError, "option %s is missing", name);
        return 0.0;
    }
    return PyFloat_AsDouble(item);
}

static void read_horizons(PyObject *options, htm_options *o)
{
    PyObject *given = PyErr_Occurred() ? NULL : PyDict_GetItemString(options, "horizons");
    Py_ssize_t n = given ? PySequence_Size(given) : 0;
    for (Py_ssize_t i = 0; i < n && i < HTM_MAX_HORIZONS; i++) {
        PyObject *item = PySequence_GetItem(given, i);
        o->horizons[i] = item ? (int32_t)PyLong_AsLong(item) : 0;
        Py_XDECREF(item);
    }
    o->n_horizons = (int32_t)n;
}

static void read_options(PyObject *d, htm_options *o)
{
    struct {
        const char *name;
        int32_t *to;
    } wholes[] = {
        {"n_fields", &o->n_fields},
        {"bits", &o->bits},
        {"active_bits", &o->active_bits},
        {"time_of_day", &o->time_of_day},
        {"weekday", &o->weekday},
        {"weekend", &o->weekend},
        {"columns", &o->columns},
        {"active_columns", &o->active_columns},
        {"cells", &o->cells},
        {"potential", &o->potential},
        {"pool_connected", &o->pool_connected},
        {"pool_increment", &o->pool_increment},
        {"pool_decrement", &o->pool_decrement},
        {"activation", &o->activation},
        {"matching", &o->matching},
        {"new_synapses", &o->new_synapses},
        {"max_synapses", &o->max_synapses},
        {"initial", &o->initial},
        {"connected", &o->connected},
        {"increment", &o->increment},
        {"decrement", &o->decrement},
        {"punishment", &o->punishment},
        {"max_segments", &o->max_segments},
        {"max_segments_per_cell", &o->max_segments_per_cell},
        {"rows", &o->rows},
        {"learning", &o->learning},
        {"settling", &o->settling},
        {"window", &o->window},
        {"lag", &o->lag},
        {"range_mode", &o->range_mode},
    };
    struct {
        const char *name;
        double *to;
    } reals[] = {
        {"low", &o->low},
        {"high", &o->high},
        {"steps", &o->steps},
        {"rate", &o->rate},
        {"mean_floor", &o->likelihood.mean_floor},
        {"variance_floor", &o->likelihood.variance_floor},
        {"horizon", &o->likelihood.horizon},
        {"deviation_scale", &o->alarm.deviation_scale},
        {"range_scale", &o->alarm.range_scale},
        {"fatigue", &o->alarm.fatigue},
    };
    for (size_t i = 0; i < sizeof wholes / sizeof *wholes; i++)
        *wholes[i].to = (int32_t)whole(d, wholes[i].name);
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++)
        *reals[i].to = real(d, reals[i].name);
    o->alarm.fatigue_keep = stream_decay(1.0 / real(d, "fatigue_period"));
    o->alarm.rest = whole(d, "rest");
    o->skip = whole(d, "skip");
    o->settled_rest = whole(d, "settled_rest");
    o->settled_skip = whole(d, "settled_skip");
    o->range_block = whole(d, "range_block");
    o->seed = (uint64_t)whole(d, "seed");
    read_horizons(d, o);
}

static PyObject *new_htm(PyObject *module, PyObject *options)
{
    htm_options o;
    memset(&o, 0, sizeof o);
    if (!PyDict_Check(options)) {
        PyErr_SetString(PyExc_TypeError, "options must be a dict");
        return NULL;
    }
    read_options(options, &o);
    if (PyErr_Occurred())
        return NULL;
    htm *state;
    Py_BEGIN_ALLOW_THREADS
    state = htm_new(&o);
    Py_END_ALLOW_THREADS
    return stream_wrap(module, &htm_kernel, state);
}

static PyObject *restore_htm(PyObject *module, PyObject *bytes)
{
    return stream_restore(module, &htm_kernel, bytes);
}

/* htm_forecast(stream, field, which) -> (mean, [values], [probabilities]) */
static PyObject *forecast(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *stream;
    int field, which;
    if (!PyArg_ParseTuple(args, "Oii", &stream, &field, &which))
        return NULL;
    const htm *state = stream_lock(stream, &htm_kernel);
    if (state == NULL)
        return NULL;
    const htm_options *o = htm_get_options(state);
    double values[HTM_CLASSES] = {0.0}, shares[HTM_CLASSES] = {0.0}, mean = 0.0;
    int outside = field < 0 || field >= o->n_fields || which < 0 || which >= o->n_horizons;
    if (!outside)
        mean = htm_forecast(state, field, which, values, shares);
    stream_unlock(stream);
    if (outside) {
        PyErr_SetString(PyExc_IndexError, "no such field or horizon");
        return NULL;
    }
    PyObject *value_list = PyList_New(HTM_CLASSES), *share_list = PyList_New(HTM_CLASSES);
    if (value_list == NULL || share_list == NULL) {
        Py_XDECREF(value_list);
        Py_XDECREF(share_list);
        return NULL;
    }
    for (int c = 0; c < HTM_CLASSES; c++) {
        PyList_SetItem(value_list, c, PyFloat_FromDouble(values[c]));
        PyList_SetItem(share_list, c, PyFloat_FromDouble(shares[c]));
    }
    return Py_BuildValue("dNN", mean, value_list, share_list);
}

static PyObject *list_of(const uint16_t *items, int n)
{
    PyObject *list = PyList_New(n);
    for (int i = 0; list != NULL && i < n; i++)
        PyList_SetItem(list, i, PyLong_FromLong(items[i]));
    return list;
}

/* htm_look(stream) -> dict of what the last record did */
static PyObject *look(PyObject *module, PyObject *stream)
{
    (void)module;
    const htm *state = stream_lock(stream, &htm_kernel);
    if (state == NULL)
        return NULL;
    const uint16_t *items;
    int n = htm_active_columns(state, &items);
    PyObject *columns = list_of(items, n);
    n = htm_active_cells(state, &items);
    PyObject *active = list_of(items, n);
    n = htm_winner_cells(state, &items);
    PyObject *winners = list_of(items, n);
    int segments = htm_segments(state);
    long long synapses = htm_synapses(state);
    stream_unlock(stream);
    return Py_BuildValue("{s:N,s:N,s:N,s:i,s:L}", "active_columns", columns, "active_cells",
                         active, "winner_cells", winners, "segments", segments, "synapses",
                         synapses);
}

static PyMethodDef functions[] = {
    {"new_htm", new_htm, METH_O, "A fresh temporal memory; see htm.h for the options."},
    {"restore_htm", restore_htm, METH_O, "A temporal memory from its snapshot."},
    {"htm_forecast", forecast, METH_VARARGS, "Mean, values and probabilities of what comes."},
    {"htm_look", look, METH_O, "Active columns and cells, and the size of the memory."},
    {NULL, NULL, 0, NULL},
};

int register_htm(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
