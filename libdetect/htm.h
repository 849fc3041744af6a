/* Hierarchical temporal memory: a stream detector that learns sequences.
 *
 * A record is encoded into active bits, the bits choose active columns (spatial pooler),
 * and cells in the columns learn which of them follow which (temporal memory). The share
 * of active columns that no cell predicted is the raw score. See docs/streams.md.
 *
 * Permanences are whole numbers of 1/HTM_ONE, so learning is exact. An `htm` is owned by
 * the caller and used by one thread at a time; nothing is global, nothing is printed. */
#ifndef LIBDETECT_HTM_H
#define LIBDETECT_HTM_H

#include "likelihood.h"

#include <stddef.h>
#include <stdint.h>

#define HTM_ONE 20000       /* permanence 1.0 */
#define HTM_MAX_SYNAPSES 32 /* per segment */
#define HTM_CLASSES 128     /* of values, in the predicted distribution */
#define HTM_MAX_HORIZONS 16

typedef struct htm htm;

typedef struct {
    int32_t n_fields; /* 1 to 256 */
    int32_t bits, active_bits;            /* per field; 16 to 4096, 1 to 128 */
    int32_t time_of_day, weekday, weekend; /* 1: encode it too */
    int32_t columns, active_columns;      /* columns a multiple of 64, at most 16384 */
    int32_t cells;                        /* per column, 1 to 32; columns * cells <= 65536 */
    int32_t potential;                    /* of the pooler, share times HTM_ONE */
    int32_t pool_connected, pool_increment, pool_decrement;
    int32_t activation, matching; /* connected, potential synapses on active cells */
    int32_t new_synapses, max_synapses;   /* at most HTM_MAX_SYNAPSES */
    int32_t initial, connected, increment, decrement, punishment;
    int32_t max_segments;          /* of all cells, 1 to 65535 */
    int32_t max_segments_per_cell; /* 1 to 65535 */
    int32_t rows;                  /* of the value classifier, a power of two */
    int32_t n_horizons;            /* 0 to HTM_MAX_HORIZONS */
    int32_t horizons[HTM_MAX_HORIZONS]; /* records ahead, 1 to 1000, ascending */
    int32_t learning;              /* L */
    int32_t window, lag;           /* as in tile_options */
    int32_t range_mode;            /* 0: given, 1: of the learning records, 2: adaptive */
    int32_t settling;              /* 0 to 10^7: all is learnt anew with so many, if L is shorter */
    int64_t skip;
    int64_t settled_skip, settled_rest; /* take the place of skip and alarm.rest then */
    int64_t range_block;
    double low, high;   /* of every field, when given */
    double steps;       /* buckets over 1.4 times the range */
    double rate;        /* of the value classifier */
    likelihood_options likelihood;
    alarm_options alarm;
    uint64_t seed;
} htm_options;

/* NULL when out of memory or an option is outside its range above. */
htm *htm_new(const htm_options *options);
void htm_free(htm *model);

/* As tiles_process. While the range is being learnt the records wait, scored 0. */
int htm_process(htm *model, const double *values, const double *seconds, int64_t n,
                enum stream_mode mode, double *scores, double *raw, double *strengths,
                double *expected);

/* Distribution of a field's value at horizons[which], after the last record: HTM_CLASSES
 * values and probabilities. Returns their mean, NaN before anything was learnt. */
double htm_forecast(const htm *model, int field, int which, double *values,
                    double *probabilities);

/* What the last record did, for plots and tests. Each returns the number of items and
 * points to them until the next call that changes the model. */
int htm_active_columns(const htm *model, const uint16_t **columns);
int htm_active_cells(const htm *model, const uint16_t **cells);
int htm_winner_cells(const htm *model, const uint16_t **cells);
int htm_segments(const htm *model);
int64_t htm_synapses(const htm *model);

const stream_counts *htm_counts(const htm *model);
const htm_options *htm_get_options(const htm *model);
int htm_ready(const htm *model);

size_t htm_memory(const htm *model);
size_t htm_size(const htm *model);
void htm_save(const htm *model, unsigned char *bytes);
htm *htm_load(const unsigned char *bytes, size_t size);

#endif
