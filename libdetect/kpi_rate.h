/* kpi_rate.h: rate detection on flat arrays, shared with the Python binding. */
#ifndef KPI_RATE_H
#define KPI_RATE_H

#include "detect.h"

/* The segments of one window; b and c may be NULL where they are not known. */
typedef struct {
    const double *a, *b, *c;
    int window;
} rate_window;

/* Score of the tested point (1 is the threshold). Returns 0, -2 or -3. */
int rate_score(const rate_window *data, const RateOptions *options, double *score);
int rate_volume_score(const rate_window *data, const rate_window *volume,
                      const RateOptions *options, double *score);

/* Probability of normal: 0.15 at a score of 1. */
double rate_probability(double score);

/* Chance of a beta variable with parameters a, b > 0 to lie below x: the binomial tail. */
double rate_beta(double x, double a, double b);

#endif
