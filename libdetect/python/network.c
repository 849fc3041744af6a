/* anomaly._core.Network: the purchase network of network.h and event_log.h. */
#include "module.h"

#include <stdio.h>
#include <stdlib.h>

#include "event_log.h"
#include "network.h"

typedef struct {
    PyObject_HEAD
    network *net;
    int busy; /* a feed runs without the GIL */
} Network;

static void *failed(int code)
{
    if (code == NETWORK_NO_MEMORY)
        return PyErr_NoMemory();
    if (code == NETWORK_FULL)
        PyErr_SetString(PyExc_OverflowError, "a network holds 2147483647 users at most");
    else
        PyErr_SetString(PyExc_ValueError, "the saved network is damaged");
    return NULL;
}

static network *usable(PyObject *self)
{
    Network *object = (Network *)self;
    if (object->busy) {
        PyErr_SetString(PyExc_RuntimeError, "the network is in use by another thread");
        return NULL;
    }
    return object->net;
}

static PyObject *wrap(PyTypeObject *type, network *net)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Network *self = (Network *)allocate(type, 0);
    if (!self) {
        network_free(net);
        return NULL;
    }
    self->net = net;
    self->busy = 0;
    return (PyObject *)self;
}

static PyObject *network_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"degree", "window", "sigma_up", "sigma_down", NULL};
    int degree, window, up, down;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiii", names, &degree, &window, &up, &down))
        return NULL;
    if (degree < 1 || window < 2 || up < 0 || down < 1) {
        PyErr_SetString(PyExc_ValueError, "degree >= 1, window >= 2, sigma_up >= 0 and "
                                          "sigma_down >= 1 are needed");
        return NULL;
    }
    network *net = network_create(degree, window, up, down);
    return net ? wrap(type, net) : PyErr_NoMemory();
}

static void network_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    network_free(((Network *)self)->net);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *from_wide(const network_wide *value)
{
    char digits[65];
    snprintf(digits, sizeof digits, "%016llx%016llx%016llx%016llx",
             (unsigned long long)value->limb[3], (unsigned long long)value->limb[2],
             (unsigned long long)value->limb[1], (unsigned long long)value->limb[0]);
    return PyLong_FromString(digits, NULL, 16);
}

static PyObject *from_verdict(const network_verdict *verdict)
{
    return Py_BuildValue("(iNNNd)", (int)verdict->count, from_wide(&verdict->sum),
                         from_wide(&verdict->spread), PyBool_FromLong(verdict->flagged),
                         verdict->score);
}

static int allowed_amount(long long amount)
{
    if (amount >= 0 && amount <= NETWORK_MAX_AMOUNT)
        return 1;
    PyErr_SetString(PyExc_ValueError, "an amount must be 0 to 10**18 millionths");
    return 0;
}

static PyObject *change_friends(PyObject *self, PyObject *args, int kind)
{
    const char *one, *other;
    Py_ssize_t one_length, other_length;
    network *net = usable(self);
    if (!net || !PyArg_ParseTuple(args, "y#y#", &one, &one_length, &other, &other_length))
        return NULL;
    event e = {.kind = kind,
               .id = {{one, (size_t)one_length}, {other, (size_t)other_length}}};
    int code = event_take(net, &e, 0, NULL);
    if (code < 0)
        return failed(code);
    Py_RETURN_NONE;
}

static PyObject *network_befriend_method(PyObject *self, PyObject *args)
{
    return change_friends(self, args, EVENT_BEFRIEND);
}

static PyObject *network_unfriend_method(PyObject *self, PyObject *args)
{
    return change_friends(self, args, EVENT_UNFRIEND);
}

static PyObject *network_buy_method(PyObject *self, PyObject *args)
{
    const char *id;
    Py_ssize_t length;
    long long time, amount;
    network *net = usable(self);
    if (!net || !PyArg_ParseTuple(args, "y#LL", &id, &length, &time, &amount) ||
        !allowed_amount(amount))
        return NULL;
    event e = {.kind = EVENT_PURCHASE, .time = time, .amount = amount,
               .id = {{id, (size_t)length}, {NULL, 0}}};
    int code = event_take(net, &e, 0, NULL);
    if (code < 0)
        return failed(code);
    Py_RETURN_NONE;
}

static PyObject *network_judge_method(PyObject *self, PyObject *args)
{
    const char *id;
    Py_ssize_t length;
    long long amount;
    network *net = usable(self);
    if (!net || !PyArg_ParseTuple(args, "y#L", &id, &length, &amount) || !allowed_amount(amount))
        return NULL;
    network_verdict verdict;
    int code = network_judge(net, network_find(net, id, (size_t)length), amount, &verdict);
    return code < 0 ? failed(code) : from_verdict(&verdict);
}

static PyObject *network_counted_method(PyObject *self, PyObject *args)
{
    (void)args;
    int32_t count;
    network *net = usable(self);
    if (!net)
        return NULL;
    const network_purchase *counted = network_window_purchases(net, &count);
    PyObject *list = PyList_New(count);
    for (int32_t i = 0; list && i < count; i++) {
        size_t length;
        const char *id = network_id(net, counted[i].user, &length);
        PyObject *item = Py_BuildValue("(LLy#L)", (long long)counted[i].time,
                                       (long long)counted[i].arrival, id, (Py_ssize_t)length,
                                       (long long)counted[i].amount);
        if (!item || PyList_SetItem(list, i, item) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *network_circle_method(PyObject *self, PyObject *args)
{
    const char *id;
    Py_ssize_t length;
    network *net = usable(self);
    if (!net || !PyArg_ParseTuple(args, "y#", &id, &length))
        return NULL;
    return PyLong_FromLong(network_circle(net, network_find(net, id, (size_t)length)));
}

static PyObject *network_feed_method(PyObject *self, PyObject *args)
{
    PyObject *source;
    Py_ssize_t offset;
    int judge;
    Py_buffer text;
    network *net = usable(self);
    if (!net || !PyArg_ParseTuple(args, "Onp", &source, &offset, &judge) ||
        open_buffer(source, "text", "B", 0, &text) < 0)
        return NULL;
    if (offset < 0 || offset > text.len) {
        PyBuffer_Release(&text);
        PyErr_SetString(PyExc_ValueError, "offset must lie in the text");
        return NULL;
    }
    size_t at = (size_t)offset;
    feed_result result;
    int code;
    ((Network *)self)->busy = 1;
    Py_BEGIN_ALLOW_THREADS
    code = event_log_feed(net, text.buf, (size_t)text.len, &at, judge, &result);
    Py_END_ALLOW_THREADS
    ((Network *)self)->busy = 0;
    PyBuffer_Release(&text);
    if (code < 0)
        return failed(code);
    PyObject *verdict = code == FEED_FLAGGED ? from_verdict(&result.verdict) : Py_NewRef(Py_None);
    return Py_BuildValue("(innL(LLL)N)", code, (Py_ssize_t)result.line_start, (Py_ssize_t)at,
                         (long long)result.lines, (long long)result.events[EVENT_PURCHASE],
                         (long long)result.events[EVENT_BEFRIEND],
                         (long long)result.events[EVENT_UNFRIEND], verdict);
}

static PyObject *network_save_method(PyObject *self, PyObject *args)
{
    (void)args;
    size_t length;
    network *net = usable(self);
    if (!net)
        return NULL;
    unsigned char *bytes = network_save(net, &length);
    if (!bytes)
        return PyErr_NoMemory();
    PyObject *out = PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)length);
    free(bytes);
    return out;
}

static PyObject *network_load_method(PyObject *type, PyObject *args)
{
    const char *bytes;
    Py_ssize_t length;
    network *net;
    if (!PyArg_ParseTuple(args, "y#", &bytes, &length))
        return NULL;
    int code = network_load((const unsigned char *)bytes, (size_t)length, &net);
    return code < 0 ? failed(code) : wrap((PyTypeObject *)type, net);
}

static PyObject *network_sizes_method(PyObject *self, PyObject *args)
{
    (void)args;
    network *net = usable(self);
    if (!net)
        return NULL;
    return Py_BuildValue("(iLL)", (int)network_users(net), (long long)network_friendships(net),
                         (long long)network_live(net));
}

static PyMethodDef network_methods[] = {
    {"befriend", network_befriend_method, METH_VARARGS, "befriend(id1: bytes, id2: bytes)"},
    {"unfriend", network_unfriend_method, METH_VARARGS, "unfriend(id1: bytes, id2: bytes)"},
    {"buy", network_buy_method, METH_VARARGS, "buy(id: bytes, time: int, amount: int)"},
    {"judge", network_judge_method, METH_VARARGS,
     "judge(id: bytes, amount: int) -> (count, sum, spread, flagged, score)"},
    {"counted", network_counted_method, METH_NOARGS,
     "counted() -> list of (time, arrival, id, amount), the window of the last judge"},
    {"circle", network_circle_method, METH_VARARGS, "circle(id: bytes) -> number of users"},
    {"feed", network_feed_method, METH_VARARGS,
     "feed(text, offset: int, judge: bool) -> (why, line_start, offset, lines, "
     "(purchases, befriends, unfriends), verdict)"},
    {"save", network_save_method, METH_NOARGS, "save() -> bytes"},
    {"load", network_load_method, METH_VARARGS | METH_CLASS, "load(bytes) -> Network"},
    {"sizes", network_sizes_method, METH_NOARGS,
     "sizes() -> (users, friendships, purchases that can still count)"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot network_slots[] = {
    {Py_tp_new, network_new},
    {Py_tp_dealloc, network_dealloc},
    {Py_tp_methods, network_methods},
    {Py_tp_doc, "The native purchase network; ids are bytes, money is in millionths."},
    {0, NULL},
};

static PyType_Spec network_spec = {
    .name = "anomaly._core.Network",
    .basicsize = sizeof(Network),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = network_slots,
};

int register_network(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &network_spec, NULL);
    if (!type)
        return -1;
    int code = PyModule_AddObjectRef(module, "Network", type);
    Py_DECREF(type);
    return code;
}
