#include "htm.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC UINT64_C(0x3330656C6D74686E)
#define NONE (-1)
#define TIME_BITS 240
#define TIME_BUCKETS 96
#define DAY_BITS 160
#define WEEKEND_BITS 80
#define TIME_ACTIVE 21
#define LANES 16 /* inputs per row are padded to this */

typedef int16_t lane8 __attribute__((vector_size(16)));

/* One of the synapses that listen to a cell: segment times HTM_MAX_SYNAPSES plus slot. */
typedef uint32_t listener;

/* A bit for each slot of a segment. */
typedef uint32_t slots;
#define SLOT(slot) ((slots)1 << (slot))

typedef struct {
    listener *items;
    int32_t n, room;
} listeners;

typedef struct {
    uint16_t cell;
    uint16_t n;            /* synapses; 0 means the segment is free */
    int32_t newer, older;  /* neighbours in order of last use */
    int32_t next_of_cell;
    int64_t used;          /* record in which it last learnt */
} segment;

typedef struct {
    double x0, resolution;  /* of the encoder */
    double last;            /* value */
    value_range range;
    int32_t seen;
    int32_t bucket_class;   /* class of the current value, NONE if missing */
} field_state;

/* What is neither structure nor synapse; copied as it is into snapshots. */
typedef struct {
    stream_counts counts;
    alarm_state alarm;
    likelihood past;
    int64_t t;        /* records encoded */
    int64_t buffered; /* learning records kept, or -1 once nothing is learnt anew */
    uint64_t random;
    int64_t scored;   /* records with a raw score */
    int32_t recent;   /* unpredicted columns among the last `window` records */
    int32_t n_segments, newest, oldest, free_head;
    int32_t n_columns, n_active, n_winners;
} core_state;

struct htm {
    htm_options o;
    core_state s;
    int n_inputs, stride, n_cells;
    double *buffer;
    field_state *fields;
    uint16_t *window_ring;
    uint32_t *lag_ring;
    /* spatial pooler */
    int16_t *permanence;    /* columns x stride; -1 outside the potential pool */
    uint8_t *connected;     /* inputs x columns */
    uint8_t *overlap_part;
    uint16_t *overlap;
    int16_t *delta;
    uint16_t *inputs;
    uint8_t *input_on;
    int n_on;
    /* temporal memory */
    segment *segments;
    uint16_t *syn_cell, *syn_place;
    int16_t *syn_permanence;
    slots *firm;            /* per segment: connected synapses */
    slots *reached;         /* per segment: synapses on the active cells */
    listeners *lists;       /* per cell */
    uint16_t *segments_of;  /* per cell: how many */
    int32_t *first_segment; /* per cell */
    uint16_t *activity;     /* per segment: connected << 8 | potential, on the active cells */
    uint16_t *column_of;    /* per segment in use */
    uint16_t *matched;      /* segments that match the last record, in order */
    int n_matched;
    uint8_t *cell_predicted;
    uint8_t *cell_mark;     /* scratch, all 0 between uses */
    uint8_t *column_on;     /* 1 in active columns of this record */
    uint8_t *column_predicted; /* connected synapses of its strongest prediction, or 0 */
    uint16_t *column_winner;   /* the cell that made it */
    int32_t *column_best;
    uint16_t *columns, *chosen; /* of the last record, of the one being scored */
    uint16_t *active, *winners, *old_winners, *candidates;
    /* value classifier: one table per horizon and field */
    float *weights;
    float *class_value;     /* per field: mean value of a class, centred on x0 */
    uint8_t *class_seen;
    float *foreseen;        /* per field: the forecast of this record, until it is learnt */
    int foreseen_known;
    uint16_t *history;      /* rows of the last records, one line each */
    int history_length;
};

/* Random numbers */

static uint64_t draw(htm *m)
{
    m->s.random += UINT64_C(0x9E3779B97F4A7C15);
    return scramble(m->s.random);
}

static uint32_t draw_below(htm *m, uint32_t n)
{
    return (uint32_t)((draw(m) >> 32) * n >> 32);
}

/* Construction */

static int between(int64_t x, int64_t low, int64_t high)
{
    return x >= low && x <= high;
}

static int options_fit(const htm_options *o)
{
    for (int i = 0; i < o->n_horizons && i < HTM_MAX_HORIZONS; i++)
        if (!between(o->horizons[i], i ? o->horizons[i - 1] + 1 : 1, 1000))
            return 0;
    return between(o->n_fields, 1, 256) && between(o->bits, 16, 4096) &&
           between(o->active_bits, 1, 128) && between(o->columns, 64, 16384) &&
           o->columns % 64 == 0 && between(o->active_columns, 1, o->columns) &&
           o->active_columns <= 4096 && between(o->cells, 1, 32) &&
           o->columns * o->cells <= 65536 && between(o->potential, 1, HTM_ONE) &&
           between(o->pool_connected, 1, HTM_ONE) && between(o->pool_increment, 0, HTM_ONE / 2) &&
           between(o->pool_decrement, 0, HTM_ONE / 2) && between(o->activation, 1, 32) &&
           between(o->matching, 1, 32) && between(o->max_synapses, 1, HTM_MAX_SYNAPSES) &&
           between(o->new_synapses, 1, o->max_synapses) && between(o->initial, 1, HTM_ONE) &&
           between(o->connected, 1, HTM_ONE) && between(o->increment, 0, HTM_ONE / 2) &&
           between(o->decrement, 0, HTM_ONE / 2) && between(o->punishment, 0, HTM_ONE / 2) &&
           between(o->max_segments, 1, 65535) && between(o->max_segments_per_cell, 1, 65535) &&
           between(o->rows, 1, 65536) && (o->rows & (o->rows - 1)) == 0 &&
           between(o->n_horizons, 0, HTM_MAX_HORIZONS) && between(o->learning, 1, 10000000) &&
           between(o->settling, 0, 10000000) &&
           between(o->window, 1, 64) && between(o->lag, 0, 10000) &&
           between(o->range_mode, 0, 2) && o->steps >= 1.0 && o->steps <= 1e6;
}

/* Learning records that are kept at most: the settling period if that is a quarter longer. */
static int64_t buffer_room(const htm_options *o)
{
    int64_t learning = o->learning, settling = o->settling;
    return 4 * settling >= 5 * learning ? settling : learning;
}

static int time_bits(const htm_options *o)
{
    return (o->time_of_day ? TIME_BITS : 0) + (o->weekday ? DAY_BITS : 0) +
           (o->weekend ? WEEKEND_BITS : 0);
}

/* Allocates n items of zeros into *place, remembering failure. */
static void *room_for(size_t n, size_t size, int *failed)
{
    void *place = calloc(n ? n : 1, size);
    if (place == NULL)
        *failed = 1;
    return place;
}

static size_t table_size(const htm_options *o)
{
    return (size_t)o->rows * HTM_CLASSES;
}

static htm *allocate(const htm_options *o)
{
    int failed = 0;
    htm *m = calloc(1, sizeof *m);
    if (m == NULL)
        return NULL;
    m->o = *o;
    m->n_inputs = o->n_fields * o->bits + time_bits(o);
    m->stride = (m->n_inputs + LANES - 1) / LANES * LANES;
    m->n_cells = o->columns * o->cells;
    m->history_length = o->n_horizons ? o->horizons[o->n_horizons - 1] : 0;
    size_t fields = (size_t)o->n_fields, columns = (size_t)o->columns;
    size_t inputs = (size_t)m->stride, cells = (size_t)m->n_cells;
    size_t segments = (size_t)o->max_segments, k = (size_t)o->active_columns;
    m->fields = room_for(fields, sizeof(field_state), &failed);
    m->window_ring = room_for((size_t)o->window, sizeof(uint16_t), &failed);
    m->lag_ring = room_for((size_t)o->lag + 1, sizeof(uint32_t), &failed);
    m->permanence = room_for(columns * inputs, sizeof(int16_t), &failed);
    m->connected = room_for(columns * inputs, 1, &failed);
    m->overlap_part = room_for(columns, 1, &failed);
    m->overlap = room_for(columns, sizeof(uint16_t), &failed);
    m->delta = room_for(inputs, sizeof(int16_t), &failed);
    m->inputs = room_for(inputs, sizeof(uint16_t), &failed);
    m->input_on = room_for(inputs, 1, &failed);
    m->segments = room_for(segments, sizeof(segment), &failed);
    m->syn_cell = room_for(segments * HTM_MAX_SYNAPSES, sizeof(uint16_t), &failed);
    m->syn_place = room_for(segments * HTM_MAX_SYNAPSES, sizeof(uint16_t), &failed);
    m->syn_permanence = room_for(segments * HTM_MAX_SYNAPSES, sizeof(int16_t), &failed);
    m->firm = room_for(segments, sizeof(slots), &failed);
    m->reached = room_for(segments, sizeof(slots), &failed);
    m->lists = room_for(cells, sizeof(listeners), &failed);
    m->segments_of = room_for(cells, sizeof(uint16_t), &failed);
    m->first_segment = room_for(cells, sizeof(int32_t), &failed);
    m->activity = room_for(segments, sizeof(uint16_t), &failed);
    m->column_of = room_for(segments, sizeof(uint16_t), &failed);
    m->matched = room_for(segments, sizeof(uint16_t), &failed);
    m->cell_predicted = room_for(cells, 1, &failed);
    m->cell_mark = room_for(cells, 1, &failed);
    m->column_on = room_for(columns, 1, &failed);
    m->column_predicted = room_for(columns, 1, &failed);
    m->column_winner = room_for(columns, sizeof(uint16_t), &failed);
    m->column_best = room_for(columns, sizeof(int32_t), &failed);
    m->columns = room_for(k, sizeof(uint16_t), &failed);
    m->chosen = room_for(k, sizeof(uint16_t), &failed);
    m->active = room_for(cells, sizeof(uint16_t), &failed);
    m->winners = room_for(k, sizeof(uint16_t), &failed);
    m->old_winners = room_for(k, sizeof(uint16_t), &failed);
    m->candidates = room_for(k, sizeof(uint16_t), &failed);
    m->weights = room_for(fields * (size_t)o->n_horizons * table_size(o), sizeof(float), &failed);
    m->class_value = room_for(fields * HTM_CLASSES, sizeof(float), &failed);
    m->class_seen = room_for(fields * HTM_CLASSES, 1, &failed);
    m->foreseen = room_for(fields * HTM_CLASSES, sizeof(float), &failed);
    m->history = room_for((size_t)m->history_length * (k + 1), sizeof(uint16_t), &failed);
    if (failed) {
        htm_free(m);
        return NULL;
    }
    return m;
}

static void index_connected(htm *m)
{
    for (int c = 0; c < m->o.columns; c++)
        for (int i = 0; i < m->stride; i++)
            m->connected[(size_t)i * m->o.columns + c] =
                m->permanence[(size_t)c * m->stride + i] >= m->o.pool_connected;
}

static void start_pooler(htm *m)
{
    const htm_options *o = &m->o;
    uint32_t above = (uint32_t)(HTM_ONE - o->pool_connected + 1);
    for (int c = 0; c < o->columns; c++) {
        int16_t *row = m->permanence + (size_t)c * m->stride;
        for (int i = 0; i < m->stride; i++) {
            row[i] = -1;
            if (i >= m->n_inputs || draw_below(m, HTM_ONE) >= (uint32_t)o->potential)
                continue;
            row[i] = draw_below(m, 2)
                         ? (int16_t)((uint32_t)o->pool_connected + draw_below(m, above))
                         : (int16_t)draw_below(m, (uint32_t)o->pool_connected);
        }
    }
    index_connected(m);
}

static void set_range(htm *m, int f, double low, double high)
{
    double width = high - low;
    double x0 = 0.5 * low + 0.5 * high;
    double least = 1e-9 * fabs(x0) + 1e-12;
    if (width > DBL_MAX)
        width = DBL_MAX;
    double resolution = width * (1.4 / m->o.steps);
    m->fields[f].x0 = x0;
    m->fields[f].resolution = resolution > least ? resolution : least;
}

htm *htm_new(const htm_options *options)
{
    if (!options_fit(options))
        return NULL;
    htm *m = allocate(options);
    if (m == NULL)
        return NULL;
    const htm_options *o = &m->o;
    m->s.random = scramble(o->seed + 1);
    m->s.buffered = o->range_mode == 0 ? -1 : 0;
    m->s.newest = m->s.oldest = NONE;
    m->s.counts.last_seconds = -DBL_MAX;
    alarm_start(&m->s.alarm);
    if (o->range_mode != 0) {
        m->buffer = calloc((size_t)buffer_room(o) * (size_t)(o->n_fields + 1), sizeof(double));
        if (m->buffer == NULL) {
            htm_free(m);
            return NULL;
        }
    }
    for (int f = 0; f < o->n_fields; f++) {
        range_start(&m->fields[f].range, o->range_block);
        m->fields[f].bucket_class = NONE;
        set_range(m, f, o->range_mode == 0 ? o->low : 0.0, o->range_mode == 0 ? o->high : 1.0);
    }
    for (int s = 0; s < o->max_segments; s++)
        m->segments[s].next_of_cell = s + 1 < o->max_segments ? s + 1 : NONE;
    for (int c = 0; c < m->n_cells; c++)
        m->first_segment[c] = NONE;
    for (int c = 0; c < o->columns; c++)
        m->column_best[c] = NONE;
    start_pooler(m);
    return m;
}

void htm_free(htm *m)
{
    if (m == NULL)
        return;
    if (m->lists != NULL)
        for (int c = 0; c < m->n_cells; c++)
            free(m->lists[c].items);
    void *owned[] = {m->buffer,      m->fields,         m->window_ring,      m->lag_ring,
                     m->permanence,  m->connected,      m->overlap_part,     m->overlap,
                     m->delta,       m->inputs,         m->input_on,         m->segments,
                     m->syn_cell,    m->syn_place,      m->syn_permanence,   m->lists,
                     m->segments_of, m->first_segment,  m->activity,         m->matched,
                     m->firm,        m->cell_predicted, m->cell_mark,        m->column_on,
                     m->columns,     m->column_best,    m->column_predicted, m->active,
                     m->winners,     m->old_winners,    m->candidates,       m->weights,
                     m->class_value, m->class_seen,     m->history,          m->chosen,
                     m->foreseen,    m->reached,        m->column_winner,
                     m->column_of};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    free(m);
}

/* Encoder */

static void switch_on(htm *m, int offset, int bits, uint64_t salt, int64_t position)
{
    uint64_t hash = scramble(salt ^ scramble((uint64_t)position));
    int input = offset + (int)((hash >> 32) * (uint64_t)bits >> 32);
    if (!m->input_on[input]) {
        m->input_on[input] = 1;
        m->inputs[m->n_on++] = (uint16_t)input;
    }
}

static int64_t bucket_of(const htm *m, int f, double x)
{
    double place = floor((x - m->fields[f].x0) / m->fields[f].resolution + 0.5);
    return place > 1e9 ? 1000000000 : place < -1e9 ? -1000000000 : (int64_t)place;
}

static void encode_clock(htm *m, double seconds)
{
    const htm_options *o = &m->o;
    int offset = o->n_fields * o->bits;
    double hour;
    int weekday;
    clock_parts(seconds, &hour, &weekday);
    if (weekday < 0)
        return;
    uint64_t salt = scramble(o->seed ^ UINT64_C(0x7469636B));
    if (o->time_of_day) {
        int64_t place = (int64_t)(hour * (TIME_BUCKETS / 24.0));
        for (int i = 0; i < TIME_ACTIVE; i++)
            switch_on(m, offset, TIME_BITS, salt, (place + i) % TIME_BUCKETS);
        offset += TIME_BITS;
    }
    if (o->weekday) {
        for (int i = 0; i < TIME_ACTIVE; i++)
            switch_on(m, offset, DAY_BITS, salt, 1000 + weekday * 100 + i);
        offset += DAY_BITS;
    }
    if (o->weekend)
        for (int i = 0; i < TIME_ACTIVE; i++)
            switch_on(m, offset, WEEKEND_BITS, salt, 2000 + (weekday >= 5) * 100 + i);
}

static void encode(htm *m, const double *values, double seconds)
{
    const htm_options *o = &m->o;
    for (int i = 0; i < m->n_on; i++)
        m->input_on[m->inputs[i]] = 0;
    m->n_on = 0;
    for (int f = 0; f < o->n_fields; f++) {
        if (!isfinite(values[f]))
            continue;
        uint64_t salt = scramble(o->seed ^ scramble((uint64_t)f + 1));
        int64_t bucket = bucket_of(m, f, values[f]);
        for (int i = 0; i < o->active_bits; i++)
            switch_on(m, f * o->bits, o->bits, salt, bucket + i);
    }
    if (time_bits(o))
        encode_clock(m, seconds);
}

/* Spatial pooler */

static void add_bytes(uint8_t *restrict sum, const uint8_t *restrict row, int n)
{
    for (int c = 0; c < n; c++)
        sum[c] = (uint8_t)(sum[c] + row[c]);
}

static void find_overlaps(htm *m)
{
    int columns = m->o.columns;
    for (int i = 0; i < m->n_on; i++)
        prefetch_span(m->connected + (size_t)m->inputs[i] * columns, (size_t)columns);
    memset(m->overlap, 0, (size_t)columns * sizeof(uint16_t));
    for (int start = 0; start < m->n_on; start += 255) {
        int stop = start + 255 < m->n_on ? start + 255 : m->n_on;
        memset(m->overlap_part, 0, (size_t)columns);
        for (int i = start; i < stop; i++)
            add_bytes(m->overlap_part, m->connected + (size_t)m->inputs[i] * columns, columns);
        for (int c = 0; c < columns; c++)
            m->overlap[c] = (uint16_t)(m->overlap[c] + m->overlap_part[c]);
    }
}

/* The columns of largest overlap in ascending order; ties go to the lower column, which
 * is as good as a random order because columns are drawn alike. */
static void choose_columns(htm *m)
{
    int columns = m->o.columns, wanted = m->o.active_columns, largest = 0;
    for (int c = 0; c < columns; c++)
        largest = m->overlap[c] > largest ? m->overlap[c] : largest;
    int least = largest + 1, above = 0, equal = 0;
    while (above + equal < wanted) {
        above += equal;
        equal = 0;
        least--;
        for (int c = 0; c < columns; c++)
            equal += m->overlap[c] == least;
    }
    int spare = wanted - above, n = 0;
    for (int c = 0; c < columns; c++) {
        int on = m->overlap[c] > least || (m->overlap[c] == least && spare-- > 0);
        if (on)
            m->chosen[n++] = (uint16_t)c;
    }
}

/* Moves LANES permanences; returns nonzero if a connection has changed. */
static int move_lane(int16_t *p, const int16_t *delta, int16_t connected)
{
    lane8 changed = {0};
    for (int i = 0; i < LANES; i += 8) {
        lane8 old, by;
        memcpy(&old, p + i, sizeof old);
        memcpy(&by, delta + i, sizeof by);
        lane8 moved = old + by;
        moved &= moved > 0;
        lane8 over = moved > HTM_ONE;
        moved = (over & HTM_ONE) | (~over & moved);
        lane8 outside = old < 0;
        moved = (outside & old) | (~outside & moved);
        changed |= (old >= connected) ^ (moved >= connected);
        memcpy(p + i, &moved, sizeof moved);
    }
    int64_t parts[2];
    memcpy(parts, &changed, sizeof parts);
    return (parts[0] | parts[1]) != 0;
}

static void learn_columns(htm *m)
{
    const htm_options *o = &m->o;
    for (int i = 0; i < m->stride; i++)
        m->delta[i] = (int16_t)(m->input_on[i] ? o->pool_increment : -o->pool_decrement);
    for (int k = 0; k < m->s.n_columns; k++) {
        int c = m->columns[k];
        int16_t *row = m->permanence + (size_t)c * m->stride;
        for (int i = 0; i < m->stride; i += LANES)
            if (move_lane(row + i, m->delta + i, (int16_t)o->pool_connected))
                for (int j = i; j < i + LANES; j++)
                    m->connected[(size_t)j * o->columns + c] = row[j] >= o->pool_connected;
    }
}

/* Temporal memory: synapses and segments */

static int listen(htm *m, int s, int slot)
{
    size_t at = (size_t)s * HTM_MAX_SYNAPSES + (size_t)slot;
    listeners *list = &m->lists[m->syn_cell[at]];
    if (list->n == list->room) {
        int room = list->room ? 2 * list->room : 8;
        listener *items = realloc(list->items, (size_t)room * sizeof *items);
        if (items == NULL)
            return -1;
        list->items = items;
        list->room = room;
    }
    m->syn_place[at] = (uint16_t)list->n;
    list->items[list->n++] = (listener)at;
    m->firm[s] &= ~SLOT(slot);
    if (m->syn_permanence[at] >= m->o.connected)
        m->firm[s] |= SLOT(slot);
    return 0;
}

/* The set with a slot taken out and the last one in its place. */
static slots without(slots set, int slot, int last)
{
    slots moved = set >> last & 1;
    set &= ~(SLOT(slot) | SLOT(last));
    return slot == last ? set : set | moved << slot;
}

static void drop_synapse(htm *m, int s, int slot)
{
    size_t base = (size_t)s * HTM_MAX_SYNAPSES, at = base + (size_t)slot;
    listeners *list = &m->lists[m->syn_cell[at]];
    listener moved = list->items[--list->n];
    list->items[m->syn_place[at]] = moved;
    m->syn_place[moved] = m->syn_place[at];
    int last = --m->segments[s].n;
    m->firm[s] = without(m->firm[s], slot, last);
    m->reached[s] = without(m->reached[s], slot, last);
    if (slot == last)
        return;
    m->syn_cell[at] = m->syn_cell[base + (size_t)last];
    m->syn_permanence[at] = m->syn_permanence[base + (size_t)last];
    m->syn_place[at] = m->syn_place[base + (size_t)last];
    m->lists[m->syn_cell[at]].items[m->syn_place[at]] = (listener)at;
}

static void unlink_use(htm *m, int s)
{
    segment *at = &m->segments[s];
    if (at->newer != NONE)
        m->segments[at->newer].older = at->older;
    else
        m->s.newest = at->older;
    if (at->older != NONE)
        m->segments[at->older].newer = at->newer;
    else
        m->s.oldest = at->newer;
}

static void link_use(htm *m, int s)
{
    segment *at = &m->segments[s];
    at->newer = NONE;
    at->older = m->s.newest;
    at->used = m->s.t;
    if (m->s.newest != NONE)
        m->segments[m->s.newest].newer = s;
    else
        m->s.oldest = s;
    m->s.newest = s;
}

static void drop_segment(htm *m, int s)
{
    segment *at = &m->segments[s];
    while (at->n > 0)
        drop_synapse(m, s, at->n - 1);
    unlink_use(m, s);
    int32_t *link = &m->first_segment[at->cell];
    while (*link != s)
        link = &m->segments[*link].next_of_cell;
    *link = at->next_of_cell;
    m->segments_of[at->cell]--;
    m->activity[s] = 0;
    at->next_of_cell = m->s.free_head;
    m->s.free_head = s;
    m->s.n_segments--;
}

static int oldest_of(const htm *m, int cell)
{
    int oldest = m->first_segment[cell];
    for (int s = oldest; s != NONE; s = m->segments[s].next_of_cell)
        if (m->segments[s].used < m->segments[oldest].used ||
            (m->segments[s].used == m->segments[oldest].used && s < oldest))
            oldest = s;
    return oldest;
}

static int new_segment(htm *m, int cell)
{
    if (m->segments_of[cell] >= m->o.max_segments_per_cell)
        drop_segment(m, oldest_of(m, cell));
    if (m->s.free_head == NONE)
        drop_segment(m, m->s.oldest);
    int s = m->s.free_head;
    segment *at = &m->segments[s];
    m->s.free_head = at->next_of_cell;
    at->cell = (uint16_t)cell;
    m->column_of[s] = (uint16_t)(cell / m->o.cells);
    at->n = 0;
    at->next_of_cell = m->first_segment[cell];
    m->first_segment[cell] = s;
    m->segments_of[cell]++;
    m->s.n_segments++;
    link_use(m, s);
    return s;
}

/* adapt for the common case that no synapse is dropped or changes its connection. */
static int adapt_plainly(htm *m, int s, int gain, int loss)
{
    static const lane8 bit = {1, 2, 4, 8, 16, 32, 64, 128};
    int16_t *permanence = m->syn_permanence + (size_t)s * HTM_MAX_SYNAPSES;
    int16_t connected = (int16_t)m->o.connected;
    int n = m->segments[s].n;
    slots held = n < 32 ? SLOT(n) - 1 : ~(slots)0, reached = m->reached[s];
    lane8 moved[HTM_MAX_SYNAPSES / 8], special = {0};
    for (int i = 0; i < HTM_MAX_SYNAPSES / 8; i++, held >>= 8, reached >>= 8) {
        lane8 old, on = ((int16_t)(reached & 255) & bit) != 0;
        lane8 here = ((int16_t)(held & 255) & bit) != 0;
        memcpy(&old, permanence + 8 * i, sizeof old);
        lane8 now = old + ((on & (int16_t)gain) | (~on & (int16_t)-loss));
        lane8 over = now > HTM_ONE;
        now = (over & HTM_ONE) | (~over & now);
        special |= here & ((now <= 0) | ((old >= connected) ^ (now >= connected)));
        moved[i] = (here & now) | (~here & old);
    }
    int64_t halves[2];
    memcpy(halves, &special, sizeof halves);
    if (halves[0] | halves[1])
        return 0;
    memcpy(permanence, moved, sizeof moved);
    return 1;
}

/* Adds to the synapses on cells that were active and takes from the others. */
static void adapt(htm *m, int s, int gain, int loss)
{
    int connected = m->o.connected;
    if (adapt_plainly(m, s, gain, loss))
        return;
    for (int slot = m->segments[s].n - 1; slot >= 0; slot--) {
        size_t at = (size_t)s * HTM_MAX_SYNAPSES + (size_t)slot;
        int old = m->syn_permanence[at];
        int moved = old + (m->reached[s] & SLOT(slot) ? gain : -loss);
        if (moved <= 0) {
            drop_synapse(m, s, slot);
            continue;
        }
        m->syn_permanence[at] = (int16_t)(moved < HTM_ONE ? moved : HTM_ONE);
        if ((old >= connected) != (moved >= connected))
            m->firm[s] ^= SLOT(slot);
    }
}

static void drop_weakest(htm *m, int s)
{
    size_t base = (size_t)s * HTM_MAX_SYNAPSES;
    int weakest = 0;
    for (int slot = 1; slot < m->segments[s].n; slot++)
        if (m->syn_permanence[base + (size_t)slot] < m->syn_permanence[base + (size_t)weakest])
            weakest = slot;
    drop_synapse(m, s, weakest);
}

/* Grows up to `wanted` synapses to winners of the record before. */
static int grow(htm *m, int s, int wanted, int n_winners)
{
    size_t base = (size_t)s * HTM_MAX_SYNAPSES;
    int n = 0;
    for (int slot = 0; slot < m->segments[s].n; slot++)
        m->cell_mark[m->syn_cell[base + (size_t)slot]] = 1;
    for (int i = 0; i < n_winners; i++)
        if (!m->cell_mark[m->old_winners[i]])
            m->candidates[n++] = m->old_winners[i];
    for (int slot = 0; slot < m->segments[s].n; slot++)
        m->cell_mark[m->syn_cell[base + (size_t)slot]] = 0;
    if (wanted > n)
        wanted = n;
    while (m->segments[s].n + wanted > m->o.max_synapses)
        drop_weakest(m, s);
    for (; wanted > 0; wanted--, n--) {
        uint32_t pick = draw_below(m, (uint32_t)n);
        int slot = m->segments[s].n;
        m->syn_cell[base + (size_t)slot] = m->candidates[pick];
        m->syn_permanence[base + (size_t)slot] = (int16_t)m->o.initial;
        m->candidates[pick] = m->candidates[n - 1];
        if (listen(m, s, slot) < 0)
            return -1;
        m->segments[s].n++;
    }
    return 0;
}

static int reinforce(htm *m, int s, int n_winners)
{
    int potential = m->activity[s] & 0xff;
    unlink_use(m, s);
    link_use(m, s);
    adapt(m, s, m->o.increment, m->o.decrement);
    int failed = m->o.new_synapses > potential
                     ? grow(m, s, m->o.new_synapses - potential, n_winners)
                     : 0;
    if (m->segments[s].n == 0)
        drop_segment(m, s);
    return failed;
}

static int least_used_cell(htm *m, int column)
{
    int first = column * m->o.cells, least = 65536, ties = 0;
    if (m->o.cells == 1)
        return first;
    for (int c = first; c < first + m->o.cells; c++) {
        if (m->segments_of[c] < least) {
            least = m->segments_of[c];
            ties = 0;
        }
        ties += m->segments_of[c] == least;
    }
    int pick = (int)draw_below(m, (uint32_t)ties);
    for (int c = first;; c++)
        if (m->segments_of[c] == least && pick-- == 0)
            return c;
}

/* Temporal memory: one record */

/* Learns in the segments that matched: those that predicted a winner gain, wrong ones
 * lose. Those that predicted another cell of its column do neither: if all learnt, the cells
 * of a column would come to predict the same, and a record would cost what all of them do. */
static int learn_matching(htm *m, int n_winners)
{
    int failed = 0;
    for (int i = 0; i < m->n_matched; i++) {
        int s = m->matched[i], column = m->column_of[s];
        if (!m->column_on[column]) {
            if (m->o.punishment > 0)
                adapt(m, s, -m->o.punishment, 0);
            if (m->segments[s].n == 0)
                drop_segment(m, s);
        } else if (m->activity[s] >> 8 >= m->o.activation &&
                   m->segments[s].cell == m->column_winner[column]) {
            failed |= reinforce(m, s, n_winners);
        }
    }
    return failed;
}

/* For each active column without a predicted cell, its best matching segment. */
static void find_best(htm *m)
{
    for (int i = 0; i < m->n_matched; i++) {
        int s = m->matched[i], column = m->column_of[s];
        int bursts = m->column_on[column] & (m->column_predicted[column] == 0);
        if (!bursts)
            continue;
        int best = m->column_best[column];
        if (best == NONE || (m->activity[s] & 0xff) > (m->activity[best] & 0xff))
            m->column_best[column] = s;
    }
}

static int burst(htm *m, int column, int learn, int n_winners, int *failed)
{
    int best = m->column_best[column];
    m->column_best[column] = NONE;
    if (best != NONE && (m->activity[best] & 0xff) >= m->o.matching) {
        int cell = m->segments[best].cell;
        if (learn)
            *failed |= reinforce(m, best, n_winners);
        return cell;
    }
    int cell = learn ? least_used_cell(m, column) : column * m->o.cells;
    if (learn && n_winners > 0) {
        int s = new_segment(m, cell);
        *failed |= grow(m, s, m->o.new_synapses, n_winners);
        if (m->segments[s].n == 0)
            drop_segment(m, s);
    }
    return cell;
}

static inline uint32_t bits_in(uint32_t x)
{
    x -= x >> 1 & 0x55555555;
    x = (x & 0x33333333) + (x >> 2 & 0x33333333);
    x = (x + (x >> 4)) & 0x0f0f0f0f;
    x += x >> 8;
    return (x + (x >> 16)) & 63;
}

/* Notes for each segment which synapses are on active cells, and counts them. */
static void reach(htm *m)
{
    int n = m->o.max_segments;
    for (int i = 0; i < m->s.n_active; i++)
        PREFETCH(m->lists + m->active[i]);
    for (int i = 0; i < m->s.n_active; i++) {
        const listeners *list = &m->lists[m->active[i]];
        prefetch_span(list->items, (size_t)list->n * sizeof *list->items);
    }
    slots *restrict reached = m->reached;
    const slots *restrict firm = m->firm;
    uint16_t *restrict activity = m->activity;
    memset(reached, 0, (size_t)n * sizeof *reached);
    for (int i = 0; i < m->s.n_active; i++) {
        const listener *items = m->lists[m->active[i]].items;
        for (int k = m->lists[m->active[i]].n - 1; k >= 0; k--)
            reached[items[k] / HTM_MAX_SYNAPSES] |= SLOT(items[k] % HTM_MAX_SYNAPSES);
    }
    for (int s = 0; s < n; s++)
        activity[s] = (uint16_t)(bits_in(reached[s]) | bits_in(reached[s] & firm[s]) << 8);
}

/* Notes which segments match and what they predict. */
static void predict(htm *m)
{
    const htm_options *o = &m->o;
    const uint16_t *activity = m->activity;
    int n = 0;
    reach(m);
    for (int s = 0; s < o->max_segments; s++) {
        m->matched[n] = (uint16_t)s;
        n += (activity[s] & 0xff) >= o->matching;
    }
    m->n_matched = n;
    memset(m->cell_predicted, 0, (size_t)m->n_cells);
    memset(m->column_predicted, 0, (size_t)o->columns);
    for (int i = 0; i < n; i++) {
        int s = m->matched[i], column = m->column_of[s], strength = activity[s] >> 8;
        if (strength < o->activation)
            continue;
        m->cell_predicted[m->segments[s].cell] = 1;
        if (strength > m->column_predicted[column]) {
            m->column_predicted[column] = (uint8_t)strength;
            m->column_winner[column] = m->segments[s].cell;
        }
    }
}

/* A record touches a thousand lines of memory here and there. The two functions below call
 * for them as soon as they are known, so that what is not in the cache is waited for once. */

/* What is known before the record comes: the segments that will learn. */
static void call_for_past(const htm *m)
{
    for (int i = 0; i < m->n_matched; i++) {
        PREFETCH(m->segments + m->matched[i]);
        PREFETCH(m->syn_permanence + (size_t)m->matched[i] * HTM_MAX_SYNAPSES);
    }
}

/* What its columns will need. */
static void call_for_columns(const htm *m)
{
    for (int k = 0; k < m->o.active_columns; k++) {
        size_t c = m->chosen[k];
        prefetch_span(m->permanence + c * (size_t)m->stride,
                      (size_t)m->stride * sizeof *m->permanence);
        prefetch_span(m->cell_predicted + c * (size_t)m->o.cells, (size_t)m->o.cells);
    }
}

static int activate(htm *m, int learn)
{
    int cells = m->o.cells, failed = 0, n_old = m->s.n_winners;
    uint16_t *swap = m->old_winners;
    m->old_winners = m->winners;
    m->winners = swap;
    for (int k = 0; k < m->s.n_columns; k++)
        m->column_on[m->columns[k]] = 1;
    find_best(m);
    if (learn)
        failed |= learn_matching(m, n_old);
    int n_winners = 0, n_active = 0;
    uint16_t *active = m->active;
    for (int k = 0; k < m->s.n_columns; k++) {
        int column = m->columns[k];
        m->winners[n_winners++] = m->column_predicted[column]
                                      ? m->column_winner[column]
                                      : (uint16_t)burst(m, column, learn, n_old, &failed);
    }
    for (int k = 0; k < m->s.n_columns; k++) {
        int column = m->columns[k], first = column * cells;
        for (int c = first; c < first + cells; c++)
            if (!m->column_predicted[column] || m->cell_predicted[c])
                active[n_active++] = (uint16_t)c;
        m->column_on[column] = 0;
    }
    m->s.n_active = n_active;
    m->s.n_winners = n_winners;
    predict(m);
    return failed;
}

/* Value classifier */

/* exp for the softmax; the same bits everywhere. */
static float power_of_e(float x)
{
    if (x < -80.0f)
        return 0.0f;
    float scaled = x * 1.44269504f;
    int32_t whole = (int32_t)scaled - (scaled < 0.0f);
    float t = (scaled - (float)whole) * 0.693147181f;
    float value = 1.0f + t * (1.0f + t * (0.5f + t * (0.166666667f + t * (0.0416666667f +
                  t * (0.00833333333f + t * (0.00138888889f + t * 0.000198412698f))))));
    union {
        float number;
        int32_t bits;
    } scale = {.bits = (whole + 127) * (1 << 23)};
    return value * scale.number;
}

static float *table(const htm *m, int field, int which)
{
    return m->weights + ((size_t)field * (size_t)m->o.n_horizons + (size_t)which) *
                            table_size(&m->o);
}

/* One line of history: the number of rows, then the rows. */
static uint16_t *history_line(const htm *m, int64_t t)
{
    return m->history + (size_t)(t % m->history_length) * (size_t)(m->o.active_columns + 1);
}

static void softmax(const float *weights, const uint16_t *line, float *p)
{
    float largest = -1e30f, sum = 0.0f;
    for (int i = 1; i <= line[0]; i++)
        prefetch_span(weights + (size_t)line[i] * HTM_CLASSES, HTM_CLASSES * sizeof *weights);
    for (int c = 0; c < HTM_CLASSES; c++)
        p[c] = 0.0f;
    for (int i = 1; i <= line[0]; i++) {
        const float *row = weights + (size_t)line[i] * HTM_CLASSES;
        for (int c = 0; c < HTM_CLASSES; c++)
            p[c] += row[c];
    }
    for (int c = 0; c < HTM_CLASSES; c++)
        largest = p[c] > largest ? p[c] : largest;
    for (int c = 0; c < HTM_CLASSES; c++) {
        p[c] = power_of_e(p[c] - largest);
        sum += p[c];
    }
    for (int c = 0; c < HTM_CLASSES; c++)
        p[c] /= sum;
}

static void learn_classes(htm *m)
{
    const htm_options *o = &m->o;
    float p[HTM_CLASSES];
    for (int which = 0; which < o->n_horizons; which++) {
        int64_t then = m->s.t - o->horizons[which];
        if (then < 0)
            continue;
        const uint16_t *line = history_line(m, then);
        for (int f = 0; f < o->n_fields; f++) {
            int target = m->fields[f].bucket_class;
            if (target == NONE)
                continue;
            float *weights = table(m, f, which);
            if (which == 0 && m->foreseen_known)
                memcpy(p, m->foreseen + (size_t)f * HTM_CLASSES, sizeof p);
            else
                softmax(weights, line, p);
            for (int c = 0; c < HTM_CLASSES; c++)
                p[c] = (float)o->rate * ((c == target ? 1.0f : 0.0f) - p[c]);
            for (int i = 1; i <= line[0]; i++) {
                float *row = weights + (size_t)line[i] * HTM_CLASSES;
                for (int c = 0; c < HTM_CLASSES; c++)
                    row[c] += p[c];
            }
        }
    }
}

static void remember_rows(htm *m)
{
    if (m->history_length == 0)
        return;
    uint16_t *line = history_line(m, m->s.t);
    for (int i = 0; i < m->s.n_winners; i++)
        line[1 + i] = (uint16_t)(scramble(m->winners[i]) & (uint64_t)(m->o.rows - 1));
    line[0] = (uint16_t)m->s.n_winners;
}

static void learn_class_value(htm *m, int f, double x)
{
    field_state *at = &m->fields[f];
    int64_t place = bucket_of(m, f, x) + HTM_CLASSES / 2;
    int c = place < 0 ? 0 : place >= HTM_CLASSES ? HTM_CLASSES - 1 : (int)place;
    size_t i = (size_t)f * HTM_CLASSES + (size_t)c;
    double offset = (x - at->x0) / at->resolution;
    offset = offset > 1e30 ? 1e30 : offset < -1e30 ? -1e30 : offset;
    float rate = m->class_seen[i] ? 0.3f : 1.0f;
    m->class_value[i] += rate * ((float)offset - m->class_value[i]);
    m->class_seen[i] = 1;
    at->bucket_class = c;
}

static double class_mean(const htm *m, int f, int c)
{
    size_t i = (size_t)f * HTM_CLASSES + (size_t)c;
    double offset = m->class_seen[i] ? (double)m->class_value[i] : c - HTM_CLASSES / 2;
    return m->fields[f].x0 + m->fields[f].resolution * offset;
}

/* Mean of the classes seen, by their shares; NaN if there is none. */
static double read_forecast(const htm *m, int field, const float *p, double *values,
                            double *probabilities)
{
    double mean = 0.0, total = 0.0;
    for (int c = 0; c < HTM_CLASSES; c++) {
        /* what never came has no place in the distribution */
        double share = m->class_seen[(size_t)field * HTM_CLASSES + (size_t)c] ? (double)p[c] : 0.0;
        double value = class_mean(m, field, c);
        if (values) {
            values[c] = value;
            probabilities[c] = share;
        }
        mean += share * value;
        total += share;
    }
    if (!(total > 0.0))
        return NAN;
    for (int c = 0; c < HTM_CLASSES && values; c++)
        probabilities[c] /= total;
    return mean / total;
}

double htm_forecast(const htm *m, int field, int which, double *values, double *probabilities)
{
    float p[HTM_CLASSES];
    if (m->s.t == 0 || m->o.n_horizons == 0)
        return NAN;
    softmax(table(m, field, which), history_line(m, m->s.t - 1), p);
    return read_forecast(m, field, p, values, probabilities);
}

/* One record */

static double mean_novelty(const htm *m, int32_t recent, int64_t scored)
{
    int64_t n = scored + 1 < m->o.window ? scored + 1 : m->o.window;
    return (double)recent / (double)(n * m->o.active_columns);
}

static int32_t recent_with(const htm *m, int unpredicted)
{
    int64_t t = m->s.scored;
    return m->s.recent + unpredicted -
           (t >= m->o.window ? m->window_ring[t % m->o.window] : 0);
}

static void learn_likelihood(htm *m, int unpredicted, int learn)
{
    int64_t t = m->s.scored;
    int32_t recent = recent_with(m, unpredicted);
    m->window_ring[t % m->o.window] = (uint16_t)unpredicted;
    m->lag_ring[t % (m->o.lag + 1)] = (uint32_t)recent;
    m->s.recent = recent;
    int64_t then = t - m->o.lag;
    if (learn && then >= m->o.skip && then >= 0) {
        int32_t sum = (int32_t)m->lag_ring[then % (m->o.lag + 1)];
        likelihood_learn(&m->s.past, &m->o.likelihood, mean_novelty(m, sum, then));
    }
    m->s.scored++;
}

static double largest_range(const htm *m, const double *values, double *strengths)
{
    double largest = 0.0;
    for (int f = 0; f < m->o.n_fields; f++) {
        double e = isnan(values[f])   ? 0.0
                   : isinf(values[f]) ? DBL_MAX
                                      : range_novelty(&m->fields[f].range, values[f]);
        double part = e / m->o.alarm.range_scale;
        if (strengths)
            strengths[f] = part < 4.0 ? part : 4.0;
        largest = e > largest ? e : largest;
    }
    return largest;
}

/* Shares the deviation among the fields by how far each is from what was expected. */
static void share_deviation(const htm *m, double z, const double *values, const double *expected,
                            double *strengths)
{
    double error[256], largest = 0.0;
    for (int f = 0; f < m->o.n_fields; f++) {
        double away = fabs(values[f] - expected[f]) / m->fields[f].resolution;
        error[f] = isfinite(away) ? away : 0.0;
        largest = error[f] > largest ? error[f] : largest;
    }
    for (int f = 0; f < m->o.n_fields; f++) {
        double part = z / m->o.alarm.deviation_scale * (largest > 0.0 ? error[f] / largest : 1.0);
        part = isnan(values[f]) ? 0.0 : part < 4.0 ? part : 4.0;
        strengths[f] = part > strengths[f] ? part : strengths[f];
    }
}

/* Follows the range of late where it has changed twofold. */
static void adapt_range(htm *m, int f)
{
    field_state *at = &m->fields[f];
    if (m->o.range_mode != 2 || at->range.filled < at->range.block || at->range.block == 0)
        return;
    double width = at->range.high - at->range.low;
    double used = at->resolution * m->o.steps / 1.4;
    if (width > 2.0 * used || (width > 0.0 && width < 0.5 * used)) {
        set_range(m, f, at->range.low, at->range.high);
        memset(m->class_seen + (size_t)f * HTM_CLASSES, 0, HTM_CLASSES);
        memset(m->class_value + (size_t)f * HTM_CLASSES, 0, HTM_CLASSES * sizeof(float));
        m->foreseen_known = 0;
        memset(table(m, f, 0), 0, (size_t)m->o.n_horizons * table_size(&m->o) * sizeof(float));
    }
}

static void learn_values(htm *m, const double *values, int learn)
{
    for (int f = 0; f < m->o.n_fields; f++) {
        m->fields[f].bucket_class = NONE;
        if (!isfinite(values[f]))
            continue;
        m->fields[f].last = values[f];
        m->fields[f].seen = 1;
        if (!learn)
            continue;
        range_learn(&m->fields[f].range, values[f]);
        adapt_range(m, f);
        learn_class_value(m, f, values[f]);
    }
}

static int step(htm *m, const double *values, double seconds, enum stream_mode mode,
                double *score, double *raw, double *strengths, const double *expected)
{
    const htm_options *o = &m->o;
    int learn = mode == STREAM_LEARN, unpredicted = 0, failed = 0, present = 0;
    for (int f = 0; f < o->n_fields; f++)
        present += isfinite(values[f]) != 0;
    if (present) {
        call_for_past(m);
        encode(m, values, seconds);
        find_overlaps(m);
        choose_columns(m);
        call_for_columns(m);
        for (int k = 0; k < o->active_columns; k++)
            unpredicted += !m->column_predicted[m->chosen[k]];
    }
    *raw = (double)unpredicted / o->active_columns;
    int live = m->s.t >= o->learning;
    *score = 0.0;
    alarm_state alarm = m->s.alarm;
    double e = largest_range(m, values, strengths);
    if (live) {
        double a = mean_novelty(m, recent_with(m, unpredicted), m->s.scored);
        double z = present ? likelihood_deviation(&m->s.past, &o->likelihood, a) : 0.0;
        if (strengths)
            share_deviation(m, z, values, expected, strengths);
        *score = alarm_score(&alarm, &o->alarm, z, e);
    } else if (e == DBL_MAX) {
        *score = 0.8;
    }
    if (mode == STREAM_PEEK)
        return 0;
    m->s.alarm = alarm;
    if (!present)
        return 0;
    uint16_t *chosen = m->chosen;
    m->chosen = m->columns;
    m->columns = chosen;
    m->s.n_columns = o->active_columns;
    learn_likelihood(m, unpredicted, learn);
    learn_values(m, values, learn);
    if (learn) {
        learn_classes(m);
        learn_columns(m);
    }
    failed |= activate(m, learn);
    remember_rows(m);
    m->s.t++;
    return failed;
}

/* Whether the range is known and records are scored. */
static int is_live(const htm *m)
{
    return m->s.buffered < 0 || m->s.buffered >= m->o.learning;
}

/* Learns the encoder's range from the buffer, then passes it through. */
static int go_live(htm *m)
{
    const htm_options *o = &m->o;
    int64_t n = o->learning;
    int stride = o->n_fields + 1;
    double *column = malloc((size_t)n * sizeof(double));
    double score, raw;
    int failed = 0;
    if (column == NULL) {
        m->s.buffered--; /* the record is lost, the state is whole */
        return -1;
    }
    for (int f = 0; f < o->n_fields; f++) {
        int64_t found = 0;
        for (int64_t i = 0; i < n; i++)
            if (isfinite(m->buffer[i * stride + 1 + f]))
                column[found++] = m->buffer[i * stride + 1 + f];
        double centre, deviation;
        if (found == 0)
            continue;
        centre_and_scale(column, found, &centre, &deviation);
        double low = column[0], high = column[found - 1]; /* sorted by now */
        double middle = 0.5 * low + 0.5 * high;
        if (high - low < 6.0 * deviation && 6.0 * deviation <= DBL_MAX) {
            low = middle - 3.0 * deviation;
            high = middle + 3.0 * deviation;
        }
        set_range(m, f, low, high);
    }
    free(column);
    for (int64_t i = 0; i < n; i++)
        failed |= step(m, m->buffer + i * stride + 1, m->buffer[i * stride], STREAM_LEARN, &score,
                       &raw, NULL, NULL);
    if (buffer_room(o) == n) {
        free(m->buffer);
        m->buffer = NULL;
        m->s.buffered = -1;
    }
    return failed;
}

/* Becomes the model whose learning period had been all of the records kept. */
static int settle(htm *m)
{
    htm_options o = m->o;
    o.learning = o.settling;
    o.skip = o.settled_skip;
    o.alarm.rest = o.settled_rest;
    htm *settled = htm_new(&o);
    if (settled != NULL) {
        settled->s.buffered = m->s.buffered;
        memcpy(settled->buffer, m->buffer,
               (size_t)m->s.buffered * (size_t)(o.n_fields + 1) * sizeof(double));
    }
    if (settled == NULL || go_live(settled) != 0) {
        htm_free(settled);
        m->s.buffered--; /* the record is lost to what is learnt anew, the state is whole */
        return -1;
    }
    settled->s.counts = m->s.counts;
    settled->s.alarm = m->s.alarm;
    htm replaced = *m;
    *m = *settled;
    *settled = replaced;
    htm_free(settled);
    return 0;
}

/* Keeps a learning record, and learns all of them once they are enough. */
static int keep_record(htm *m, const double *values, double seconds)
{
    int fields = m->o.n_fields;
    double *to = m->buffer + m->s.buffered * (fields + 1);
    to[0] = seconds;
    memcpy(to + 1, values, (size_t)fields * sizeof(double));
    for (int f = 0; f < fields; f++) {
        if (isfinite(values[f])) {
            m->fields[f].last = values[f];
            m->fields[f].seen = 1;
        }
    }
    m->s.buffered++;
    if (m->s.buffered == m->o.learning)
        return go_live(m);
    return m->s.buffered < buffer_room(&m->o) ? 0 : settle(m);
}

static void count_values(htm *m, const double *values)
{
    int finite = 0, infinite = 0;
    for (int f = 0; f < m->o.n_fields; f++) {
        finite += isfinite(values[f]) != 0;
        infinite += isinf(values[f]) != 0;
    }
    m->s.counts.records++;
    m->s.counts.infinite += infinite > 0;
    m->s.counts.missing += !finite && !infinite;
}

/* What was expected of this record: the forecast, or else the last value. */
static double expected_value(htm *m, int f, double x)
{
    if (is_live(m) && m->s.t > 0 && m->o.n_horizons && m->o.horizons[0] == 1) {
        float *p = m->foreseen + (size_t)f * HTM_CLASSES;
        softmax(table(m, f, 0), history_line(m, m->s.t - 1), p);
        m->foreseen_known = 1;
        double forecast = read_forecast(m, f, p, NULL, NULL);
        if (!isnan(forecast))
            return forecast;
    }
    return m->fields[f].seen ? m->fields[f].last : x;
}

int htm_process(htm *m, const double *values, const double *seconds, int64_t n,
                enum stream_mode mode, double *scores, double *raw, double *strengths,
                double *expected)
{
    int fields = m->o.n_fields;
    for (int64_t i = 0; i < n; i++, values += fields) {
        double now = seconds ? seconds[i] : NAN;
        double *strength = strengths ? strengths + i * fields : NULL;
        double *due = expected ? expected + i * fields : NULL;
        int finite = 0, infinite = 0, failed = 0;
        for (int f = 0; f < fields; f++) {
            finite |= isfinite(values[f]) != 0;
            infinite |= isinf(values[f]) != 0;
            if (strength)
                strength[f] = isinf(values[f]) ? 4.0 : 0.0;
            if (due)
                due[f] = expected_value(m, f, values[f]);
        }
        if (!due)
            m->foreseen_known = 0;
        if (mode != STREAM_PEEK) {
            count_values(m, values);
            count_time(&m->s.counts, now);
        }
        scores[i] = raw[i] = 0.0;
        if (!finite && !infinite)
            continue;
        if (is_live(m))
            failed = step(m, values, now, mode, scores + i, raw + i, due ? strength : NULL, due);
        else if (infinite)
            scores[i] = 0.8;
        m->foreseen_known = 0;
        if (m->s.buffered >= 0 && finite && mode == STREAM_LEARN)
            failed |= keep_record(m, values, now);
        if (failed)
            return -1;
    }
    return 0;
}

/* Inspection */

int htm_active_columns(const htm *m, const uint16_t **columns)
{
    *columns = m->columns;
    return m->s.n_columns;
}

int htm_active_cells(const htm *m, const uint16_t **cells)
{
    *cells = m->active;
    return m->s.n_active;
}

int htm_winner_cells(const htm *m, const uint16_t **cells)
{
    *cells = m->winners;
    return m->s.n_winners;
}

int htm_segments(const htm *m)
{
    return m->s.n_segments;
}

int64_t htm_synapses(const htm *m)
{
    int64_t total = 0;
    for (int s = m->s.newest; s != NONE; s = m->segments[s].older)
        total += m->segments[s].n;
    return total;
}

const stream_counts *htm_counts(const htm *m)
{
    return &m->s.counts;
}

const htm_options *htm_get_options(const htm *m)
{
    return &m->o;
}

int htm_ready(const htm *m)
{
    return m->s.t >= m->o.learning;
}

size_t htm_memory(const htm *m)
{
    const htm_options *o = &m->o;
    size_t columns = (size_t)o->columns, cells = (size_t)m->n_cells;
    size_t segments = (size_t)o->max_segments;
    size_t bytes = sizeof *m + (size_t)o->n_fields * (sizeof(field_state) + HTM_CLASSES * 5) +
                   columns * (size_t)m->stride * 3 + columns * 9 +
                   segments * (sizeof(segment) + 6 * HTM_MAX_SYNAPSES + 14) +
                   cells * (sizeof(listeners) + 10) +
                   (size_t)o->n_fields * (size_t)o->n_horizons * table_size(o) * sizeof(float);
    for (int c = 0; c < m->n_cells; c++)
        bytes += (size_t)m->lists[c].room * sizeof(listener);
    if (m->buffer)
        bytes += (size_t)buffer_room(o) * (size_t)(o->n_fields + 1) * sizeof(double);
    return bytes;
}

/* Snapshots: one walk over the state counts, writes or reads it. */

typedef struct {
    unsigned char *to;
    const unsigned char *from;
    size_t at, size;
    int failed;
} archive;

static void pass(archive *a, void *data, size_t n)
{
    if (a->to != NULL) {
        memcpy(a->to + a->at, data, n);
    } else if (a->from != NULL) {
        if (a->failed || a->size - a->at < n) {
            a->failed = 1;
            return;
        }
        memcpy(data, a->from + a->at, n);
    }
    a->at += n;
}

/* Segments from the least to the most recently used, each with its synapses. */
static void write_segments(archive *a, htm *m)
{
    for (int s = m->s.oldest; s != NONE; s = m->segments[s].newer) {
        segment *at = &m->segments[s];
        size_t base = (size_t)s * HTM_MAX_SYNAPSES;
        uint16_t id = (uint16_t)s;
        pass(a, &id, sizeof id);
        pass(a, &at->cell, sizeof at->cell);
        pass(a, &at->n, sizeof at->n);
        pass(a, &at->used, sizeof at->used);
        pass(a, m->syn_cell + base, at->n * sizeof(uint16_t));
        pass(a, m->syn_permanence + base, at->n * sizeof(int16_t));
    }
    for (int s = m->s.free_head; s != NONE; s = m->segments[s].next_of_cell) {
        uint16_t id = (uint16_t)s;
        pass(a, &id, sizeof id);
    }
}

/* Reads one segment; everything it refers to is checked. */
static void read_segment(archive *a, htm *m)
{
    uint16_t id = 0, cell = 0, n = 0;
    int64_t used = 0;
    pass(a, &id, sizeof id);
    pass(a, &cell, sizeof cell);
    pass(a, &n, sizeof n);
    pass(a, &used, sizeof used);
    if (a->failed || id >= m->o.max_segments || cell >= m->n_cells || n < 1 ||
        n > m->o.max_synapses || m->segments[id].n != 0) {
        a->failed = 1;
        return;
    }
    segment *at = &m->segments[id];
    size_t base = (size_t)id * HTM_MAX_SYNAPSES;
    pass(a, m->syn_cell + base, n * sizeof(uint16_t));
    pass(a, m->syn_permanence + base, n * sizeof(int16_t));
    for (int slot = 0; slot < n && !a->failed; slot++) {
        uint16_t from = m->syn_cell[base + (size_t)slot];
        int16_t permanence = m->syn_permanence[base + (size_t)slot];
        a->failed |= from >= m->n_cells || permanence < 1 || permanence > HTM_ONE;
        for (int other = 0; other < slot; other++)
            a->failed |= m->syn_cell[base + (size_t)other] == from;
        if (!a->failed)
            a->failed |= listen(m, id, slot) < 0;
    }
    if (a->failed)
        return;
    at->cell = cell;
    m->column_of[id] = (uint16_t)(cell / m->o.cells);
    at->n = n;
    at->next_of_cell = m->first_segment[cell];
    m->first_segment[cell] = id;
    m->segments_of[cell]++;
    link_use(m, id);
    at->used = used;
}

static void read_segments(archive *a, htm *m)
{
    int n = m->s.n_segments, total = m->o.max_segments;
    m->s.newest = m->s.oldest = m->s.free_head = NONE;
    for (int i = 0; i < n && !a->failed; i++)
        read_segment(a, m);
    int32_t *link = &m->s.free_head;
    for (int i = n; i < total && !a->failed; i++) {
        uint16_t id = 0;
        pass(a, &id, sizeof id);
        if (a->failed || id >= total || m->segments[id].n != 0 || m->activity[id]) {
            a->failed = 1;
            return;
        }
        m->activity[id] = 1; /* seen; cleared by predict */
        *link = id;
        link = &m->segments[id].next_of_cell;
        *link = NONE;
    }
}

static void pass_state(archive *a, htm *m)
{
    const htm_options *o = &m->o;
    size_t fields = (size_t)o->n_fields, k = (size_t)o->active_columns;
    pass(a, m->fields, fields * sizeof(field_state));
    pass(a, m->window_ring, (size_t)o->window * sizeof(uint16_t));
    pass(a, m->lag_ring, ((size_t)o->lag + 1) * sizeof(uint32_t));
    pass(a, m->permanence, (size_t)o->columns * (size_t)m->stride * sizeof(int16_t));
    pass(a, m->columns, k * sizeof(uint16_t));
    pass(a, m->winners, (size_t)m->s.n_winners * sizeof(uint16_t));
    pass(a, m->active, (size_t)m->s.n_active * sizeof(uint16_t));
    pass(a, m->weights,
         fields * (size_t)o->n_horizons * table_size(o) * sizeof(float));
    pass(a, m->class_value, fields * HTM_CLASSES * sizeof(float));
    pass(a, m->class_seen, fields * HTM_CLASSES);
    pass(a, m->history, (size_t)m->history_length * (k + 1) * sizeof(uint16_t));
    if (m->buffer)
        pass(a, m->buffer,
             (size_t)m->s.buffered * (size_t)(o->n_fields + 1) * sizeof(double));
}

static int all_below(const uint16_t *items, size_t n, int limit)
{
    for (size_t i = 0; i < n; i++)
        if (items[i] >= limit)
            return 0;
    return 1;
}

/* Whether everything read can be used as an index or a count. */
static int state_fits(const htm *m)
{
    const htm_options *o = &m->o;
    size_t k = (size_t)o->active_columns;
    int fits = m->s.scored >= 0 && m->s.t >= 0 &&
               all_below(m->columns, k, o->columns) &&
               all_below(m->winners, (size_t)m->s.n_winners, m->n_cells) &&
               all_below(m->active, (size_t)m->s.n_active, m->n_cells);
    for (int h = 0; h < m->history_length && fits; h++)
        fits = history_line(m, h)[0] <= k && all_below(history_line(m, h) + 1, k, o->rows);
    for (int f = 0; f < o->n_fields && fits; f++)
        fits = between(m->fields[f].bucket_class, NONE, HTM_CLASSES - 1) &&
               m->fields[f].resolution > 0.0;
    for (size_t i = 0; i < (size_t)o->columns * (size_t)m->stride && fits; i++)
        fits = between(m->permanence[i], -1, HTM_ONE);
    return fits;
}

size_t htm_size(const htm *m)
{
    archive a = {0};
    htm *state = (htm *)m; /* counting reads only */
    a.at = 2 * sizeof(uint64_t) + sizeof m->o + sizeof m->s;
    pass_state(&a, state);
    write_segments(&a, state);
    return a.at;
}

void htm_save(const htm *m, unsigned char *bytes)
{
    archive a = {.to = bytes};
    htm *state = (htm *)m; /* writing reads only */
    uint64_t head[2] = {MAGIC, sizeof m->o + sizeof m->s};
    pass(&a, head, sizeof head);
    pass(&a, &state->o, sizeof m->o);
    pass(&a, &state->s, sizeof m->s);
    pass_state(&a, state);
    write_segments(&a, state);
}

static int counts_fit(const htm_options *o, const core_state *s)
{
    int64_t most = (int64_t)o->active_columns * o->cells;
    return between(s->n_columns, 0, o->active_columns) && between(s->n_winners, 0, o->active_columns) &&
           between(s->n_active, 0, most) && between(s->n_segments, 0, o->max_segments) &&
           between(s->buffered, -1, buffer_room(o) - 1) && (s->buffered < 0 || o->range_mode != 0);
}

htm *htm_load(const unsigned char *bytes, size_t size)
{
    archive a = {.from = bytes, .size = size};
    uint64_t head[2] = {0, 0};
    htm_options o;
    core_state s;
    pass(&a, head, sizeof head);
    if (a.failed || head[0] != MAGIC || head[1] != sizeof o + sizeof s)
        return NULL;
    pass(&a, &o, sizeof o);
    pass(&a, &s, sizeof s);
    if (a.failed || !options_fit(&o) || !counts_fit(&o, &s))
        return NULL;
    htm *m = allocate(&o);
    if (m == NULL)
        return NULL;
    m->s = s;
    for (int c = 0; c < m->n_cells; c++)
        m->first_segment[c] = NONE;
    for (int c = 0; c < o.columns; c++)
        m->column_best[c] = NONE;
    if (s.buffered >= 0) {
        m->buffer = calloc((size_t)buffer_room(&o) * (size_t)(o.n_fields + 1), sizeof(double));
        a.failed |= m->buffer == NULL;
    }
    if (!a.failed)
        pass_state(&a, m);
    if (!a.failed)
        read_segments(&a, m);
    if (a.failed || a.at != size || !state_fits(m)) {
        htm_free(m);
        return NULL;
    }
    index_connected(m);
    predict(m);
    return m;
}
