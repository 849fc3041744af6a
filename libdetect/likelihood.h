/* What every stream detector shares: how novelty becomes a likelihood, how a value
 * outside the range seen so far counts, and how both become one score with a rest
 * after each alarm. Plain structs owned by the caller, no allocation, no failure.
 *
 * All arithmetic is +, -, *, / and sqrt in a fixed order, so the same input gives
 * the same bits on every platform that follows IEEE 754. */
#ifndef LIBDETECT_LIKELIHOOD_H
#define LIBDETECT_LIKELIHOOD_H

#include <stddef.h>
#include <stdint.h>

/* Asks for the memory at p, which need not be valid, ahead of its use. */
#if defined(__GNUC__)
#define PREFETCH(p) __builtin_prefetch(p)
#else
#define PREFETCH(p) ((void)(p))
#endif

static inline void prefetch_span(const void *start, size_t size)
{
    for (size_t at = 0; at < size; at += 64) /* the size of a cache line, or a multiple */
        PREFETCH((const char *)start + at);
}

enum stream_mode {
    STREAM_PEEK = 0,   /* score and leave no trace */
    STREAM_LEARN = 1,  /* score, then learn */
    STREAM_FROZEN = 2, /* score and move on in time, learn nothing */
};

/* Inverse hyperbolic sine within 4 units in the last place; infinities count as the
 * largest finite value. */
double stream_asinh(double x);

/* exp(-x) for x >= 0, within 4 units in the last place. */
double stream_decay(double x);

/* The share (0 to 1) of novelty, averaged over a short window, against its own past. */
typedef struct {
    double mean, variance;
    int64_t n;
} likelihood;

typedef struct {
    double mean_floor, variance_floor;
    double horizon; /* records after which old ones fade */
} likelihood_options;

/* Deviation of a from the past, from 0 to 15; 0 while there is no past. */
double likelihood_deviation(const likelihood *past, const likelihood_options *options, double a);
void likelihood_learn(likelihood *past, const likelihood_options *options, double a);

/* Smallest and largest value so far, or over the last block..2*block values. */
typedef struct {
    double low, high;         /* of the block being filled */
    double old_low, old_high; /* of the block before it */
    int64_t block;            /* values per block; 0 keeps everything */
    int64_t filled;
} value_range;

void range_start(value_range *range, int64_t block);
/* Distance outside the range, divided by its width; 0 inside or if the width is 0. */
double range_novelty(const value_range *range, double x);
void range_learn(value_range *range, double x);

/* One score out of both, with a rest after an alarm and fatigue after many. */
typedef struct {
    double deviation_scale; /* z0: the deviation that is an alarm */
    double range_scale;     /* tol: the range novelty that is an alarm */
    double fatigue;         /* gam: weight of the recent alarms */
    double fatigue_keep;    /* share of them kept per record, exp(-1/tau) */
    int64_t rest;           /* records of half volume after an alarm */
} alarm_options;

typedef struct {
    double recent; /* N */
    int64_t age;   /* records since the last alarm */
} alarm_state;

void alarm_start(alarm_state *alarm);
/* Moves the state on by one record and returns its score y / (1 + y): an alarm at >= 0.5.
 * deviation and range are not yet divided by their scales. */
double alarm_score(alarm_state *alarm, const alarm_options *options, double deviation,
                   double range);

/* (mean of z^power)^(1/power) */
double power_mean(const double *z, int n, int power);

/* Median and standard deviation (at least 1e-9) of n finite values; values is reordered.
 * With n = 0 they are 0 and 1. */
void centre_and_scale(double *values, int64_t n, double *centre, double *scale);

/* Hour of the day, 0 <= hour < 24, and day of the week, 0 = Monday, of a wall clock in
 * seconds since 1970-01-01; -1 for both where seconds is not finite. */
void clock_parts(double seconds, double *hour, int *weekday);

/* How many records came, and how many of them were special. */
typedef struct {
    int64_t records, missing, infinite, repeated, backward;
    double last_seconds;
} stream_counts;

/* Counts a record's time stamp (NaN: none). */
void count_time(stream_counts *counts, double seconds);

/* Scrambles 64 bits; the source of every hash and random number here. */
static inline uint64_t scramble(uint64_t x)
{
    x ^= x >> 32;
    x *= UINT64_C(0xD6E8FEB86659FD93);
    x ^= x >> 32;
    x *= UINT64_C(0xD6E8FEB86659FD93);
    x ^= x >> 32;
    return x;
}

#endif
