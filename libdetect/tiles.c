#include "tiles.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC UINT64_C(0x3230656C6974616E) /* "natile02", also tells the byte order */
#define FIELD_CONTEXTS 7
#define MAX_TILINGS 255

/* What one context remembers of its own novelty. */
typedef struct {
    likelihood past;
    int32_t recent; /* novel tiles among the last `window` records */
    int32_t unused;
} context;

/* One field, or one pair of fields (which uses the first context only). */
typedef struct {
    double centre, scale;        /* of the learning records */
    double u, e2, e3, d;         /* last value, short and long mean, spread; squashed */
    double last;                 /* last value as it came */
    value_range range;
    int64_t t;                   /* records in which it was present */
    context contexts[FIELD_CONTEXTS];
} lane;

/* Everything a snapshot holds, in one block without pointers: this header, the lanes,
 * their rings of novelty, and the set of tiles. */
typedef struct {
    uint64_t magic;
    uint64_t size;
    tile_options options;
    stream_counts counts;
    alarm_state alarm;
    int64_t t;        /* records with a value */
    int64_t learnt;   /* records that centre, scale and past come from; 0 before the first score */
    int64_t buffered; /* learning records kept, or -1 once nothing is learnt anew */
} header;

/* A record's effect on one lane before it is decided whether to keep it. */
typedef struct {
    double u, e2, e3, d;
    int32_t novel[FIELD_CONTEXTS];
    int32_t recent[FIELD_CONTEXTS];
    int present;
} draft;

typedef struct {
    uint64_t fresh;
    uint32_t word;
} entry;

struct tiles {
    header *block;
    lane *lanes;
    unsigned char *rings;
    uint64_t *bits;
    double *buffer;    /* learning records: seconds, then one value per field */
    draft *drafts;
    entry *journal;    /* bits set by the current record */
    double *z;
    int64_t journal_length;
    uint64_t *salts;   /* per context */
    double *offsets;   /* o = k / T */
};

/* Numbers of a record's tiles in one dimension, one per tiling. */
typedef int32_t cuts[MAX_TILINGS];
static const cuts nowhere;

static int lane_count(const tile_options *options)
{
    return options->n_fields + options->n_pairs;
}

/* Per lane: `window` bytes and `lag + 1` 16-bit sums for each context. */
static size_t window_size(const tile_options *options)
{
    return ((size_t)options->window * FIELD_CONTEXTS + 1) / 2 * 2;
}

static size_t ring_size(const tile_options *options)
{
    size_t bytes = window_size(options) +
                   (size_t)(options->lag + 1) * FIELD_CONTEXTS * sizeof(uint16_t);
    return (bytes + 15) / 16 * 16;
}

static size_t block_size(const tile_options *options)
{
    size_t lanes = (size_t)lane_count(options);
    return sizeof(header) + lanes * (sizeof(lane) + ring_size(options)) +
           ((size_t)1 << options->log2_bits) / 8;
}

/* Learning records that are kept at most: the settling period if that is a quarter longer. */
static int64_t buffer_room(const tile_options *options)
{
    int64_t learning = options->learning, settling = options->settling;
    return 4 * settling >= 5 * learning ? settling : learning;
}

/* Records with which all is learnt next, 0 for never again. */
static int64_t next_stage(const header *h)
{
    int64_t room = buffer_room(&h->options);
    return h->learnt == 0 ? h->options.learning : h->learnt < room ? room : 0;
}

static size_t buffer_size(const tile_options *options, int64_t records)
{
    return records < 0 ? 0 : (size_t)records * (size_t)(options->n_fields + 1) * sizeof(double);
}

static uint8_t *window_ring(const tiles *s, int l)
{
    return s->rings + (size_t)l * ring_size(&s->block->options);
}

static uint16_t *lag_ring(const tiles *s, int l)
{
    return (uint16_t *)(window_ring(s, l) + window_size(&s->block->options));
}

static int options_fit(const tile_options *o)
{
    int64_t f = o->n_fields;
    return f >= 1 && f <= 4096 && o->n_pairs >= 0 && o->n_pairs <= f * (f - 1) / 2 &&
           o->n_tilings >= 1 && o->n_tilings <= MAX_TILINGS && o->log2_bits >= 6 &&
           o->log2_bits <= 30 && o->window >= 1 && o->window <= 64 && o->lag >= 0 &&
           o->lag <= 10000 && o->power >= 1 && o->power <= 64 && o->learning >= 1 &&
           o->learning <= 10000000 && o->settling >= 0 && o->settling <= 10000000 &&
           o->width >= 1e-6 && o->width <= 1e6 && o->rest_share >= 0 && o->rest_share <= 1 &&
           (o->rest_share == 0 || o->alarm.rest <= 10000000);
}

/* Allocates everything and points into the block; the block's content is left to the caller. */
static tiles *allocate(const tile_options *options, int64_t buffered)
{
    size_t lanes = (size_t)lane_count(options);
    size_t fields = (size_t)options->n_fields;
    tiles *s = calloc(1, sizeof *s);
    if (s == NULL)
        return NULL;
    s->block = calloc(1, block_size(options));
    s->drafts = calloc(lanes, sizeof(draft));
    s->z = calloc(lanes > FIELD_CONTEXTS ? lanes : FIELD_CONTEXTS, sizeof(double));
    s->journal = calloc((fields * FIELD_CONTEXTS + (lanes - fields)) * (size_t)options->n_tilings,
                        sizeof(entry));
    s->offsets = calloc((size_t)options->n_tilings, sizeof(double));
    s->salts = calloc(fields * FIELD_CONTEXTS + (lanes - fields), sizeof(uint64_t));
    if (buffered >= 0)
        s->buffer = calloc(buffer_size(options, buffer_room(options)), 1);
    if (!s->block || !s->drafts || !s->z || !s->journal || !s->salts || !s->offsets ||
        (buffered >= 0 && !s->buffer)) {
        tiles_free(s);
        return NULL;
    }
    for (size_t c = 0; c < fields * FIELD_CONTEXTS + (lanes - fields); c++)
        s->salts[c] = scramble(options->seed ^ (c + 1) * UINT64_C(0x9E3779B97F4A7C15));
    for (int k = 0; k < options->n_tilings; k++)
        s->offsets[k] = (double)k / options->n_tilings;
    s->lanes = (lane *)(s->block + 1);
    s->bits = (uint64_t *)(s->lanes + lanes);
    s->rings = (unsigned char *)s->bits + ((size_t)1 << options->log2_bits) / 8;
    return s;
}

/* Empties lanes, rings and the set of tiles. */
static void forget_all(tiles *s)
{
    header *h = s->block;
    memset(s->lanes, 0, h->size - sizeof *h);
    h->t = 0;
    for (int l = 0; l < lane_count(&h->options); l++) {
        s->lanes[l].scale = 1.0;
        range_start(&s->lanes[l].range, h->options.range_block);
    }
}

tiles *tiles_new(const tile_options *options)
{
    if (!options_fit(options))
        return NULL;
    tiles *s = allocate(options, 0);
    if (s == NULL)
        return NULL;
    header *h = s->block;
    h->magic = MAGIC;
    h->size = block_size(options);
    h->options = *options;
    h->counts.last_seconds = -DBL_MAX;
    alarm_start(&h->alarm);
    forget_all(s);
    return s;
}

void tiles_free(tiles *s)
{
    if (s == NULL)
        return;
    free(s->block);
    free(s->buffer);
    free(s->drafts);
    free(s->journal);
    free(s->salts);
    free(s->offsets);
    free(s->z);
    free(s);
}

static inline uint64_t tile_hash(uint64_t key, uint64_t salt)
{
    uint64_t x = (key ^ salt) * UINT64_C(0x9FB21C651E98DF25);
    x ^= x >> 32;
    return x * UINT64_C(0xD6E8FEB86659FD93);
}

/* floor, for |y| below 2^31 */
static inline int32_t whole(double y)
{
    int32_t i = (int32_t)y;
    return i - (y < (double)i);
}

static void cut(const tiles *s, double y, int32_t *restrict q)
{
    int n = s->block->options.n_tilings;
    double scaled = y / s->block->options.width;
    for (int k = 0; k < n; k++)
        q[k] = whole(scaled + s->offsets[k]);
}

/* Hashes one context's tiles and calls for their words, which are far apart: where they are
 * not in the cache, all are waited for at once. */
static void find(const tiles *s, uint64_t context_id, const int32_t *a, const int32_t *b,
                 uint64_t *restrict hashes)
{
    const tile_options *o = &s->block->options;
    int n = o->n_tilings, shift = 64 - o->log2_bits;
    uint64_t salt = s->salts[context_id];
    for (int k = 0; k < n; k++) {
        uint64_t key = (uint64_t)(uint32_t)a[k] << 32 | (uint32_t)b[k];
        hashes[k] = tile_hash(key, salt);
        PREFETCH(s->bits + (hashes[k] >> shift >> 6));
        salt += UINT64_C(0xA24BAED4963EE407);
    }
}

/* Sets one context's tiles and returns how many were unset. A tile is two bits of one word,
 * so two tiles are rarely taken for each other. */
static int visit(tiles *s, const uint64_t *hashes)
{
    const tile_options *o = &s->block->options;
    int n = o->n_tilings, shift = 64 - o->log2_bits;
    entry *journal = s->journal + s->journal_length;
    uint64_t *bits = s->bits;
    int novel = 0;
    for (int k = 0; k < n; k++) {
        uint64_t hash = hashes[k];
        uint32_t tile = (uint32_t)(hash >> shift);
        uint64_t word = bits[tile >> 6];
        uint64_t mask = (uint64_t)1 << (tile & 63) | (uint64_t)1 << (hash & 63);
        journal[novel] = (entry){.word = tile >> 6, .fresh = mask & ~word};
        novel += (word & mask) != mask;
        bits[tile >> 6] = word | mask;
    }
    s->journal_length += novel;
    return novel;
}

static void forget_tiles(tiles *s)
{
    for (int64_t i = 0; i < s->journal_length; i++)
        s->bits[s->journal[i].word] &= ~s->journal[i].fresh;
}

/* Sums of the last `window` novelties, once this record's are among them. */
static void draft_recent(const tiles *s, int l, int n_contexts)
{
    const lane *from = &s->lanes[l];
    draft *to = &s->drafts[l];
    int window = s->block->options.window;
    const uint8_t *oldest = window_ring(s, l) + (from->t % window) * FIELD_CONTEXTS;
    for (int c = 0; c < n_contexts; c++)
        to->recent[c] = from->contexts[c].recent + to->novel[c] -
                        (from->t >= window ? oldest[c] : 0);
}

/* The tiles of one field's contexts. */
static void hash_field(const tiles *s, int f, const draft *at, double previous, double hour,
                       uint64_t (*hashes)[MAX_TILINGS])
{
    uint64_t id = (uint64_t)f * FIELD_CONTEXTS;
    cuts now, other, third;
    cut(s, at->u, now);
    find(s, id, now, nowhere, hashes[0]);
    cut(s, previous, other);
    find(s, id + 1, now, other, hashes[1]);
    for (int k = 0; k < s->block->options.n_tilings; k++)
        other[k] = hour < 0 ? 0 : (int32_t)(hour + s->offsets[k]) % 24;
    find(s, id + 2, now, other, hashes[2]);
    cut(s, at->e2, other);
    find(s, id + 3, now, other, hashes[3]);
    cut(s, at->e3, other);
    find(s, id + 4, now, other, hashes[4]);
    cut(s, 3.0 * at->d, other);
    find(s, id + 5, other, nowhere, hashes[5]);
    cut(s, 2.0 * at->e2, other);
    cut(s, 2.0 * at->d, third);
    find(s, id + 6, other, third, hashes[6]);
}

/* Steps 1 to 3 for one field. */
static void draft_field(tiles *s, int f, double x, double hour)
{
    const lane *from = &s->lanes[f];
    draft *to = &s->drafts[f];
    double u = stream_asinh((x - from->centre) / from->scale);
    double previous = from->t ? from->u : u;
    double e2 = from->t ? from->e2 : u, e3 = from->t ? from->e3 : u;
    double d = from->t ? from->d : 0.0;
    e2 += 0.05 * (u - e2);
    e3 += 0.01 * (u - e3);
    d += 0.1 * (fabs(u - e2) - d);
    *to = (draft){.u = u, .e2 = e2, .e3 = e3, .d = d, .present = 1};

    uint64_t hashes[FIELD_CONTEXTS][MAX_TILINGS];
    hash_field(s, f, to, previous, hour, hashes);
    for (int c = 0; c < FIELD_CONTEXTS; c++)
        to->novel[c] = visit(s, hashes[c]);
    draft_recent(s, f, FIELD_CONTEXTS);
}

static void draft_pair(tiles *s, int l, int i, int j)
{
    const tile_options *o = &s->block->options;
    cuts a, b;
    uint64_t hashes[MAX_TILINGS];
    s->drafts[l] = (draft){.present = s->drafts[i].present && s->drafts[j].present};
    if (!s->drafts[l].present)
        return;
    cut(s, s->drafts[i].u, a);
    cut(s, s->drafts[j].u, b);
    uint64_t id = (uint64_t)o->n_fields * FIELD_CONTEXTS + (uint64_t)(l - o->n_fields);
    find(s, id, a, b, hashes);
    s->drafts[l].novel[0] = visit(s, hashes);
    draft_recent(s, l, 1);
}

/* Mean novelty, 0 to 1, when `recent` novel tiles were counted up to record t. */
static double mean_novelty(const tile_options *o, int32_t recent, int64_t t)
{
    int64_t n = t + 1 < o->window ? t + 1 : o->window;
    return (double)recent / (double)(n * o->n_tilings);
}

static int draft_all(tiles *s, const double *values, double hour)
{
    const tile_options *o = &s->block->options;
    int present = 0;
    s->journal_length = 0;
    for (int f = 0; f < o->n_fields; f++) {
        s->drafts[f].present = 0;
        if (isfinite(values[f])) {
            draft_field(s, f, values[f], hour);
            present++;
        }
    }
    int l = o->n_fields;
    for (int gap = 1; l < lane_count(o); gap++) /* the first pairs chain all fields */
        for (int i = 0; i + gap < o->n_fields && l < lane_count(o); i++)
            draft_pair(s, l++, i, i + gap);
    return present;
}

/* Step 4 for one lane. */
static double deviation(tiles *s, int l, int n_contexts)
{
    const tile_options *o = &s->block->options;
    const lane *at = &s->lanes[l];
    double z[FIELD_CONTEXTS];
    for (int c = 0; c < n_contexts; c++) {
        const likelihood *past = &at->contexts[c].past;
        double a = mean_novelty(o, s->drafts[l].recent[c], at->t);
        z[c] = likelihood_deviation(past, &o->likelihood, a);
    }
    return n_contexts == 1 ? z[0] : power_mean(z, n_contexts, o->power);
}

/* The strongest field, or all pairs together where they are stronger. */
static double largest_deviation(tiles *s, double *strengths)
{
    const tile_options *o = &s->block->options;
    double largest = 0.0;
    for (int f = 0; f < o->n_fields; f++) {
        double z = s->drafts[f].present ? deviation(s, f, FIELD_CONTEXTS) : 0.0;
        if (strengths)
            strengths[f] = z / o->alarm.deviation_scale;
        largest = z > largest ? z : largest;
    }
    int n = 0;
    for (int l = o->n_fields; l < lane_count(o); l++)
        if (s->drafts[l].present)
            s->z[n++] = deviation(s, l, 1);
    double pairs = power_mean(s->z, n, o->power);
    return pairs > largest ? pairs : largest;
}

/* Step 6 for all fields, before they are learnt. An infinite value is always outside. */
static double largest_range(tiles *s, const double *values, double *strengths)
{
    const tile_options *o = &s->block->options;
    double largest = 0.0;
    for (int f = 0; f < o->n_fields; f++) {
        double e = isnan(values[f])   ? 0.0
                   : isinf(values[f]) ? DBL_MAX
                                      : range_novelty(&s->lanes[f].range, values[f]);
        double part = e / o->alarm.range_scale;
        if (strengths) {
            strengths[f] = part > strengths[f] ? part : strengths[f];
            strengths[f] = strengths[f] < 4.0 ? strengths[f] : 4.0;
        }
        largest = e > largest ? e : largest;
    }
    return largest;
}

/* Step 5 for one lane, with the novelty of `lag` records ago. */
static void learn_likelihood(tiles *s, int l, int n_contexts)
{
    const tile_options *o = &s->block->options;
    lane *at = &s->lanes[l];
    int64_t then = at->t - o->lag;
    if (then < 0 || (double)(then + 1) <= o->skip * (double)s->block->learnt)
        return;
    const uint16_t *sums = lag_ring(s, l) + (then % (o->lag + 1)) * FIELD_CONTEXTS;
    for (int c = 0; c < n_contexts; c++)
        likelihood_learn(&at->contexts[c].past, &o->likelihood,
                         mean_novelty(o, sums[c], then));
}

/* Makes a lane's draft its state. */
static void keep(tiles *s, int l, int n_contexts, double x, enum stream_mode mode)
{
    const tile_options *o = &s->block->options;
    const draft *from = &s->drafts[l];
    lane *at = &s->lanes[l];
    if (!from->present)
        return;
    uint8_t *window = window_ring(s, l) + (at->t % o->window) * FIELD_CONTEXTS;
    uint16_t *lag = lag_ring(s, l) + (at->t % (o->lag + 1)) * FIELD_CONTEXTS;
    for (int c = 0; c < n_contexts; c++) {
        window[c] = (uint8_t)from->novel[c];
        lag[c] = (uint16_t)from->recent[c];
        at->contexts[c].recent = from->recent[c];
    }
    if (mode == STREAM_LEARN)
        learn_likelihood(s, l, n_contexts);
    if (l < o->n_fields) {
        at->u = from->u;
        at->e2 = from->e2;
        at->e3 = from->e3;
        at->d = from->d;
        at->last = x;
        if (mode == STREAM_LEARN)
            range_learn(&at->range, x);
    }
    at->t++;
}

/* One record through all steps; live is 0 for the learning records. */
static double step(tiles *s, const double *values, double seconds, int live,
                   enum stream_mode mode, double *raw, double *strengths)
{
    const tile_options *o = &s->block->options;
    double hour;
    int weekday;
    clock_parts(seconds, &hour, &weekday);
    int present = draft_all(s, values, hour);
    double score = 0.0;
    if (live) {
        alarm_state alarm = s->block->alarm;
        alarm_options options = o->alarm;
        options.rest += (int64_t)(o->rest_share * (double)s->block->learnt);
        double z = largest_deviation(s, strengths);
        double e = largest_range(s, values, strengths);
        score = alarm_score(&alarm, &options, z, e);
        if (mode != STREAM_PEEK)
            s->block->alarm = alarm;
    }
    int32_t novel = 0;
    for (int f = 0; f < o->n_fields; f++)
        for (int c = 0; c < FIELD_CONTEXTS && s->drafts[f].present; c++)
            novel += s->drafts[f].novel[c];
    *raw = present ? (double)novel / (present * FIELD_CONTEXTS * o->n_tilings) : 0.0;
    if (mode != STREAM_LEARN)
        forget_tiles(s);
    if (mode != STREAM_PEEK && present) {
        for (int l = 0; l < lane_count(o); l++)
            keep(s, l, l < o->n_fields ? FIELD_CONTEXTS : 1, l < o->n_fields ? values[l] : 0.0,
                 mode);
        s->block->t++;
    }
    return score;
}

/* Learns centre and scale from the buffer, then passes it through the steps. */
static int learn_buffer(tiles *s)
{
    header *h = s->block;
    int64_t n = h->buffered;
    int stride = h->options.n_fields + 1;
    double *column = malloc((size_t)n * sizeof(double));
    double raw;
    if (column == NULL)
        return -1;
    forget_all(s);
    h->learnt = n;
    for (int f = 0; f < h->options.n_fields; f++) {
        int64_t found = 0;
        for (int64_t i = 0; i < n; i++)
            if (isfinite(s->buffer[i * stride + 1 + f]))
                column[found++] = s->buffer[i * stride + 1 + f];
        centre_and_scale(column, found, &s->lanes[f].centre, &s->lanes[f].scale);
    }
    free(column);
    for (int64_t i = 0; i < n; i++)
        step(s, s->buffer + i * stride + 1, s->buffer[i * stride], 0, STREAM_LEARN, &raw, NULL);
    if (next_stage(h) == 0) {
        free(s->buffer);
        s->buffer = NULL;
        h->buffered = -1;
    }
    return 0;
}

/* Keeps a learning record, and learns all of them once they are enough. */
static int keep_record(tiles *s, const double *values, double seconds)
{
    header *h = s->block;
    int fields = h->options.n_fields;
    double *to = s->buffer + h->buffered * (fields + 1);
    to[0] = seconds;
    memcpy(to + 1, values, (size_t)fields * sizeof(double));
    for (int f = 0; f < fields; f++)
        if (isfinite(values[f]))
            s->lanes[f].last = values[f];
    h->buffered++;
    if (h->buffered < next_stage(h) || learn_buffer(s) == 0)
        return 0;
    h->buffered--; /* the record is lost to what is learnt anew, the state is whole */
    return -1;
}

static void count_values(tiles *s, const double *values)
{
    int finite = 0, infinite = 0;
    for (int f = 0; f < s->block->options.n_fields; f++) {
        finite += isfinite(values[f]) != 0;
        infinite += isinf(values[f]) != 0;
    }
    s->block->counts.records++;
    s->block->counts.infinite += infinite > 0;
    s->block->counts.missing += !finite && !infinite;
}

int tiles_process(tiles *s, const double *values, const double *seconds, int64_t n,
                  enum stream_mode mode, double *scores, double *raw, double *strengths,
                  double *expected)
{
    int fields = s->block->options.n_fields;
    for (int64_t i = 0; i < n; i++, values += fields) {
        double now = seconds ? seconds[i] : NAN;
        int finite = 0, infinite = 0;
        for (int f = 0; f < fields; f++) {
            finite |= isfinite(values[f]) != 0;
            infinite |= isinf(values[f]) != 0;
            if (strengths)
                strengths[i * fields + f] = isinf(values[f]) ? 4.0 : 0.0;
            if (expected)
                expected[i * fields + f] =
                    s->block->t || s->block->buffered > 0 ? s->lanes[f].last : values[f];
        }
        if (mode != STREAM_PEEK) {
            count_values(s, values);
            count_time(&s->block->counts, now);
        }
        scores[i] = raw[i] = 0.0;
        if (!finite && !infinite)
            continue;
        if (s->block->learnt)
            scores[i] = step(s, values, now, 1, mode, raw + i,
                             strengths ? strengths + i * fields : NULL);
        else if (infinite)
            scores[i] = 0.8;
        if (s->block->buffered >= 0 && finite && mode == STREAM_LEARN &&
            keep_record(s, values, now) < 0)
            return -1;
    }
    return 0;
}

const stream_counts *tiles_counts(const tiles *s)
{
    return &s->block->counts;
}

const tile_options *tiles_options(const tiles *s)
{
    return &s->block->options;
}

int tiles_ready(const tiles *s)
{
    return s->block->learnt > 0;
}

size_t tiles_memory(const tiles *s)
{
    const tile_options *o = &s->block->options;
    size_t lanes = (size_t)lane_count(o);
    size_t tiles_per_record =
        (lanes + (size_t)o->n_fields * (FIELD_CONTEXTS - 1)) * (size_t)o->n_tilings;
    return sizeof *s + block_size(o) + lanes * (sizeof(draft) + sizeof(double)) +
           tiles_per_record * sizeof(entry) + (size_t)o->n_tilings * sizeof(double) +
           (s->buffer ? buffer_size(o, buffer_room(o)) : 0);
}

size_t tiles_size(const tiles *s)
{
    return block_size(&s->block->options) + buffer_size(&s->block->options, s->block->buffered);
}

void tiles_save(const tiles *s, unsigned char *bytes)
{
    size_t block = block_size(&s->block->options);
    size_t buffer = buffer_size(&s->block->options, s->block->buffered);
    memcpy(bytes, s->block, block);
    if (buffer)
        memcpy(bytes + block, s->buffer, buffer);
}

/* Whether the counts of learning records can be used as they are. */
static int progress_fits(const header *h)
{
    return h->t >= 0 && h->learnt >= 0 && h->learnt <= buffer_room(&h->options) &&
           (h->buffered >= 0 ? h->buffered < next_stage(h) : h->buffered == -1 && h->learnt > 0);
}

tiles *tiles_load(const unsigned char *bytes, size_t size)
{
    header h;
    if (size < sizeof h)
        return NULL;
    memcpy(&h, bytes, sizeof h);
    if (h.magic != MAGIC || !options_fit(&h.options) || h.size != block_size(&h.options) ||
        !progress_fits(&h) || size != h.size + buffer_size(&h.options, h.buffered))
        return NULL;
    tiles *s = allocate(&h.options, h.buffered);
    if (s == NULL)
        return NULL;
    memcpy(s->block, bytes, h.size);
    if (h.buffered > 0)
        memcpy(s->buffer, bytes + h.size, size - h.size);
    for (int l = 0; l < lane_count(&h.options); l++) {
        const lane *at = &s->lanes[l];
        if (at->t < 0 || !(fabs(at->u) + fabs(at->e2) + fabs(at->e3) + fabs(at->d) < 1e4)) {
            tiles_free(s);
            return NULL;
        }
    }
    return s;
}
