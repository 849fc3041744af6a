/* Context-tile novelty: a stream detector of constant cost and memory.
 *
 * A record is one value per field and a wall clock. Its position in seven contexts per
 * field, and in one per pair of fields, is cut into tiles by several shifted tilings;
 * tiles never seen before make it novel. See docs/streams.md for the arithmetic.
 *
 * A `tiles` is owned by the caller and used by one thread at a time. Nothing is global,
 * nothing is printed, and only tiles_new and tiles_load allocate. */
#ifndef LIBDETECT_TILES_H
#define LIBDETECT_TILES_H

#include "likelihood.h"

#include <stddef.h>
#include <stdint.h>

typedef struct tiles tiles;

typedef struct {
    int32_t n_fields;  /* 1 to 4096 */
    int32_t n_pairs;   /* pairs compared: neighbours (0,1), (1,2), ..., then (0,2), ... */
    int32_t n_tilings; /* 1 to 255 */
    int32_t log2_bits; /* 6 to 30: size of the shared set of tiles */
    int32_t window;    /* W, 1 to 64 */
    int32_t lag;       /* 0 to 10000 */
    int32_t power;     /* p, 1 to 64 */
    int32_t learning;  /* L, 1 to 10^7 */
    int32_t settling;  /* 0 to 10^7: all is learnt anew with so many, if L is shorter */
    double skip;         /* share of the learning records that the likelihood skips */
    double rest_share;   /* of the learning records, added to alarm.rest */
    int64_t range_block; /* see value_range */
    double width;        /* w, at least 1e-6 */
    likelihood_options likelihood;
    alarm_options alarm;
    uint64_t seed;
} tile_options;

/* NULL when out of memory or an option is outside its range above. */
tiles *tiles_new(const tile_options *options);
void tiles_free(tiles *stream);

/* Processes n records. values has n * n_fields items, NaN where a field is missing;
 * seconds has n items (NaN: no clock) or is NULL. Writes n scores (0 to 0.8, alarm at
 * >= 0.5) and n raw novelties (0 to 1), and n * n_fields strengths (the part of each
 * field, 0 to 4, alarm at >= 1) and expected values where those are not NULL.
 * Returns 0, or -1 when out of memory (records before that are processed). */
int tiles_process(tiles *stream, const double *values, const double *seconds, int64_t n,
                  enum stream_mode mode, double *scores, double *raw, double *strengths,
                  double *expected);

const stream_counts *tiles_counts(const tiles *stream);
const tile_options *tiles_options(const tiles *stream);
/* 1 once the learning records are complete. */
int tiles_ready(const tiles *stream);

/* Bytes held, and bytes of a snapshot. */
size_t tiles_memory(const tiles *stream);
size_t tiles_size(const tiles *stream);
/* Writes tiles_size bytes. */
void tiles_save(const tiles *stream, unsigned char *bytes);
/* NULL when out of memory or the bytes are not a snapshot of this version and byte order. */
tiles *tiles_load(const unsigned char *bytes, size_t size);

#endif
