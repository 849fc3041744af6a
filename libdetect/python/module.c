#include "module.h"

#include <string.h>

int open_buffer(PyObject *object, const char *name, const char *format, int writable,
                Py_buffer *view)
{
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s must be a C-contiguous%s array", name,
                     writable ? ", writable" : "");
        return -1;
    }
    const char *found = view->format ? view->format : "B";
    if (strcmp(found, format) != 0) {
        PyErr_Format(PyExc_TypeError, "%s must have item format '%s', got '%s'", name, format,
                     found);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

/* One line per area; each adds its functions and types to the module. */
typedef int (*register_area)(PyObject *module);
int register_forest(PyObject *module);
int register_value(PyObject *module);
int register_streams(PyObject *module);
int register_tiles(PyObject *module);
int register_network(PyObject *module);
int register_htm(PyObject *module);
static const register_area areas[] = {
    register_forest,
    register_value,
    register_streams,
    register_tiles,
    register_network,
    register_htm,
    NULL,
};

static int core_exec(PyObject *module)
{
    for (const register_area *area = areas; *area != NULL; area++)
        if ((*area)(module) < 0)
            return -1;
    return 0;
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
    {0, NULL},
};

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "anomaly._core",
    .m_doc = "The native core: kernels of libdetect, called with the GIL released.",
    .m_size = 0,
    .m_slots = core_slots,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
