#include "streams.h"

#include "tiles.h"

#include <string.h>

STREAM_KERNEL(tiles, tiles_options, 1);

static PyObject *new_tiles(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {
        "n_fields", "n_pairs", "n_tilings", "log2_bits", "window", "lag", "power", "learning",
        "settling", "skip", "range_block", "width", "mean_floor", "variance_floor", "horizon",
        "deviation_scale", "range_scale", "fatigue", "fatigue_period", "rest",
        "rest_share", "seed", NULL};
    tile_options o;
    long long block, rest;
    unsigned long long seed;
    double period;
    memset(&o, 0, sizeof o);
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "$iiiiiiiiidLddddddddLdK", names, &o.n_fields, &o.n_pairs, &o.n_tilings,
            &o.log2_bits, &o.window, &o.lag, &o.power, &o.learning, &o.settling, &o.skip,
            &block, &o.width, &o.likelihood.mean_floor, &o.likelihood.variance_floor,
            &o.likelihood.horizon, &o.alarm.deviation_scale, &o.alarm.range_scale,
            &o.alarm.fatigue, &period, &rest, &o.rest_share, &seed))
        return NULL;
    o.range_block = block;
    o.alarm.rest = rest;
    o.alarm.fatigue_keep = stream_decay(1.0 / period);
    o.seed = seed;
    return stream_wrap(module, &tiles_kernel, tiles_new(&o));
}

static PyObject *restore_tiles(PyObject *module, PyObject *bytes)
{
    return stream_restore(module, &tiles_kernel, bytes);
}

static PyMethodDef functions[] = {
    {"new_tiles", (PyCFunction)(void (*)(void))new_tiles, METH_VARARGS | METH_KEYWORDS,
     "A fresh stream of context tiles; see tiles.h for the options."},
    {"restore_tiles", restore_tiles, METH_O, "A stream of context tiles from its snapshot."},
    {NULL, NULL, 0, NULL},
};

int register_tiles(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
