#include "likelihood.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10

double stream_asinh(double x)
{
    double a = x < 0 ? -x : x;
    if (a > DBL_MAX)
        a = DBL_MAX;
    /* w = exp(asinh(a)) = m * 2^e; asinh(a) = e ln 2 + 2 artanh((m - 1) / (m + 1)). */
    double t, result;
    int e = 0;
    double root = a < 1e8 ? sqrt(1.0 + a * a) : a;
    double w = a < 1e8 ? a + root : a; /* above 1e8: half of it, mended by e below */
    if (w < 1.4142135623730951) {
        t = a / (1.0 + root);
    } else {
        double m = frexp(w, &e);
        if (m < 0.7071067811865476) {
            m *= 2.0;
            e -= 1;
        }
        if (a >= 1e8)
            e += 1;
        t = (m - 1.0) / (m + 1.0);
    }
    double s = t * t;
    static const double odd[] = {1.0 / 23, 1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13,
                                 1.0 / 11, 1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3};
    double series = odd[0];
    for (int k = 1; k < 11; k++)
        series = series * s + odd[k];
    result = e * LN2_LOW + 2.0 * (t + t * s * series) + e * LN2_HIGH;
    return x < 0 ? -result : result;
}

double stream_decay(double x)
{
    int halvings = 0;
    while (x > 0.25 && halvings < 64) {
        x *= 0.5;
        halvings++;
    }
    double sum = 1.0;
    for (int k = 16; k >= 1; k--)
        sum = 1.0 - x * sum / k;
    for (int i = 0; i < halvings; i++)
        sum *= sum;
    return sum;
}

double likelihood_deviation(const likelihood *past, const likelihood_options *options, double a)
{
    double mean = past->mean > options->mean_floor ? past->mean : options->mean_floor;
    double variance =
        past->variance > options->variance_floor ? past->variance : options->variance_floor;
    double z = (a - mean) / sqrt(variance);
    z = z < 0.0 ? 0.0 : z > 15.0 ? 15.0 : z;
    return past->n > 0 ? z : 0.0;
}

void likelihood_learn(likelihood *past, const likelihood_options *options, double a)
{
    past->n += 1;
    double n = (double)past->n;
    double rate = 1.0 / (n < options->horizon ? n : options->horizon);
    double delta = a - past->mean;
    past->mean += rate * delta;
    past->variance = (1.0 - rate) * (past->variance + rate * (delta * delta));
}

void range_start(value_range *range, int64_t block)
{
    range->low = range->old_low = DBL_MAX;
    range->high = range->old_high = -DBL_MAX;
    range->block = block;
    range->filled = 0;
}

double range_novelty(const value_range *range, double x)
{
    double low = range->low < range->old_low ? range->low : range->old_low;
    double high = range->high > range->old_high ? range->high : range->old_high;
    double width = high - low;
    if (!(width > 0.0))
        return 0.0;
    double outside = x > high ? x - high : x < low ? low - x : 0.0;
    if (outside == 0.0 || width > DBL_MAX)
        return 0.0;
    return outside / width;
}

void range_learn(value_range *range, double x)
{
    if (range->block > 0 && range->filled >= range->block) {
        range->old_low = range->low;
        range->old_high = range->high;
        range->low = DBL_MAX;
        range->high = -DBL_MAX;
        range->filled = 0;
    }
    range->filled++;
    if (x < range->low)
        range->low = x;
    if (x > range->high)
        range->high = x;
}

void alarm_start(alarm_state *alarm)
{
    alarm->recent = 0.0;
    alarm->age = INT64_C(1) << 40; /* for ever ago */
}

static double at_most(double x, double limit)
{
    return x < limit ? x : limit;
}

double alarm_score(alarm_state *alarm, const alarm_options *options, double deviation,
                   double range)
{
    double s1 = at_most(deviation / options->deviation_scale, 4.0);
    double s2 = at_most(range / options->range_scale, 4.0);
    double g = s1 / (1.0 + options->fatigue * alarm->recent);
    alarm->age += 1;
    alarm->recent *= options->fatigue_keep;
    int resting = alarm->age <= options->rest;
    if (resting)
        g = 0.5 * at_most(g, 1.0);
    double y = g > s2 ? g : s2;
    if (y >= 1.0)
        alarm->recent += 1.0;
    if (y >= 1.0 || (resting && s1 >= 1.0))
        alarm->age = 0;
    return y / (1.0 + y);
}

double power_mean(const double *z, int n, int power)
{
    double sum = 0.0;
    if (power == 8) {
        for (int i = 0; i < n; i++) {
            double square = z[i] * z[i];
            double fourth = square * square;
            sum += fourth * fourth;
        }
        return n > 0 ? sqrt(sqrt(sqrt(sum / n))) : 0.0;
    }
    for (int i = 0; i < n; i++) {
        double product = 1.0;
        for (int k = 0; k < power; k++)
            product *= z[i];
        sum += product;
    }
    return n > 0 ? pow(sum / n, 1.0 / power) : 0.0;
}

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

void centre_and_scale(double *values, int64_t n, double *centre, double *scale)
{
    *centre = 0.0;
    *scale = 1.0;
    if (n == 0)
        return;
    qsort(values, (size_t)n, sizeof(double), ascending);
    *centre = 0.5 * values[(n - 1) / 2] + 0.5 * values[n / 2];
    double unit = 1.0; /* keeps the squares of huge values finite */
    double largest = fabs(values[0]) > fabs(values[n - 1]) ? fabs(values[0]) : fabs(values[n - 1]);
    if (largest > 1e100)
        unit = largest;
    double mean = 0.0, sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        mean += values[i] / unit;
    mean /= (double)n;
    for (int64_t i = 0; i < n; i++)
        sum += (values[i] / unit - mean) * (values[i] / unit - mean);
    double deviation = unit * sqrt(sum / (double)n);
    *scale = deviation > 1e-9 ? deviation : 1e-9;
}

void clock_parts(double seconds, double *hour, int *weekday)
{
    *hour = -1.0;
    *weekday = -1;
    if (!(fabs(seconds) < 1e17))
        return;
    double days = floor(seconds / 86400.0);
    double rest = seconds - days * 86400.0;
    *hour = rest < 0.0 ? 0.0 : rest >= 86400.0 ? 23.999999 : rest / 3600.0;
    int64_t day = ((int64_t)days + 3) % 7; /* 1970-01-01 was a Thursday */
    *weekday = (int)(day < 0 ? day + 7 : day);
}

void count_time(stream_counts *counts, double seconds)
{
    if (!isfinite(seconds))
        return;
    if (seconds == counts->last_seconds)
        counts->repeated++;
    else if (seconds < counts->last_seconds)
        counts->backward++;
    counts->last_seconds = seconds;
}
