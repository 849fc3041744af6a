/* Features and the training-free score of one window.
 *
 * Every median looks back, so a residual of the tested point is compared with the
 * residuals that the same rule left at the points before it. */
#include <math.h>
#include <string.h>

#include "kpi.h"

#define HISTORY 150 /* residuals of A that set the scale */
#define BEFORE 15   /* points of the running median */
#define SLOTS 16    /* the running median's sorted slots, padded with infinity */
#define TOP 8
#define LANES 8  /* positions whose medians are taken side by side */
#define ROOM 160 /* HISTORY + 1 in whole lanes */

/* One residual series: `value[n]` is the tested point's. */
typedef struct {
    double value[HISTORY + 1];
    double q99, max, mean; /* of the absolute history */
} series;

typedef struct {
    int w, k, n;       /* window, points of the running median, residuals in the history */
    double *a, *b, *c; /* filled copies */
    int has_b, has_c;
    double *spare;
    /* At the n + 1 positions of the history and the tested point: */
    double median[3][HISTORY + 1]; /* before the point, in a, b, c */
    double around[2][ROOM]; /* centred median of 7, in b and c */
    double low[2][ROOM], high[2][ROOM];
    double all_q99[2], all_max[2]; /* residuals over all of b and c */
    double unit, tiny;             /* 1 for whole numbers else 0; the smallest scale */
    double x, level, floor, soft;
    double mean, sigma, least, most; /* of every known value but the tested one */
} window_state;

size_t kpi_scratch(int window)
{
    return (size_t)window * 9 + 5 + 2 * HISTORY;
}

/* Moves the values below (or, with `equal`, up to) the pivot to the front, without a
 * branch that the data decides; returns where the others begin. */
static int part(double *v, int left, int right, double pivot, int equal)
{
    int end = left;
    for (int i = left; i <= right; i++) {
        double value = v[i];
        v[i] = v[end];
        v[end] = value;
        end += equal ? value <= pivot : value < pivot;
    }
    return end;
}

static double middle_of_3(double x, double y, double z)
{
    double low = x < y ? x : y, high = x < y ? y : x;
    return z < low ? low : z > high ? high : z;
}

double kpi_quantile(double *v, int n, double q)
{
    double at = q * (n - 1), high = INFINITY;
    int k = (int)at, left = 0, right = n - 1;
    while (left < right) {
        double pivot = middle_of_3(v[left], v[left + (right - left) / 2], v[right]);
        int end = part(v, left, right, pivot, 0);
        if (k < end) {
            right = end - 1;
            continue;
        }
        left = part(v, end, right, pivot, 1);
        if (k < left)
            break;
    }
    if (at <= k)
        return v[k];
    for (int i = k + 1; i < n; i++)
        high = v[i] < high ? v[i] : high;
    return v[k] + (high - v[k]) * (at - k);
}

/* 99 % quantile and largest of n > 0 values, none negative. */
static double top_quantile(const double *v, int n, double *spare, double *max)
{
    double at = 0.99 * (n - 1);
    int low = (int)at, kept = n - low, filled = 0;
    double top[TOP + 1];
    if (kept > TOP) {
        memcpy(spare, v, (size_t)n * sizeof *v);
        double q = kpi_quantile(spare, n, 0.99);
        *max = v[0];
        for (int i = 1; i < n; i++)
            *max = v[i] > *max ? v[i] : *max;
        return q;
    }
    for (int i = 0; i < n; i++) {
        if (filled == kept && !(v[i] > top[kept - 1]))
            continue;
        int at_slot = filled < kept ? filled++ : kept - 1;
        for (; at_slot > 0 && top[at_slot - 1] < v[i]; at_slot--)
            top[at_slot] = top[at_slot - 1];
        top[at_slot] = v[i];
    }
    *max = top[0];
    return kept > 1 ? top[kept - 1] + (top[kept - 2] - top[kept - 1]) * (at - low) : top[0];
}

/* --- reading the window --- */

/* Copies n values with gaps filled from the left (the start from the right).
 * Returns how many are known, or -1 for a value out of range. */
static int fill(double *to, const double *from, int n)
{
    int known = 0;
    double last = NAN, worst = 0;
    for (int i = 0; i < n; i++) {
        double value = from[i];
        to[i] = value;
        worst = fabs(value) > worst ? fabs(value) : worst;
        known += value == value;
    }
    if (worst > 1e150)
        return -1;
    if (known == n || known == 0)
        return known;
    for (int i = 0; i < n; i++)
        to[i] = last = to[i] == to[i] ? to[i] : last;
    for (int i = n - 1; i >= 0; i--)
        to[i] = last = to[i] == to[i] ? to[i] : last;
    return known;
}

static int all_whole(const double *v, int n)
{
    const double shift = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to whole */
    int other = 0;
    for (int i = 0; i < n; i++)
        other += (v[i] + shift) - shift != v[i];
    return other == 0;
}

typedef struct {
    double sum, least, most;
} totals;

static void add_totals(totals *t, const double *v, int n)
{
    double s[4] = {0, 0, 0, 0}, low[4], high[4];
    int i = 0;
    for (int j = 0; j < 4; j++)
        low[j] = t->least, high[j] = t->most;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; j++) {
            s[j] += v[i + j];
            low[j] = v[i + j] < low[j] ? v[i + j] : low[j];
            high[j] = v[i + j] > high[j] ? v[i + j] : high[j];
        }
    for (; i < n; i++) {
        s[0] += v[i];
        low[0] = v[i] < low[0] ? v[i] : low[0];
        high[0] = v[i] > high[0] ? v[i] : high[0];
    }
    t->sum += (s[0] + s[1]) + (s[2] + s[3]);
    for (int j = 0; j < 4; j++) {
        t->least = low[j] < t->least ? low[j] : t->least;
        t->most = high[j] > t->most ? high[j] : t->most;
    }
}

static double squares(const double *v, int n, double mean)
{
    double s[4] = {0, 0, 0, 0};
    int i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; j++)
            s[j] += (v[i + j] - mean) * (v[i + j] - mean);
    for (; i < n; i++)
        s[0] += (v[i] - mean) * (v[i] - mean);
    return (s[0] + s[1]) + (s[2] + s[3]);
}

static void global_moments(window_state *s)
{
    int full = 2 * s->w + 1, n = s->w + (s->has_b + s->has_c) * full;
    totals t = {0, INFINITY, -INFINITY};
    double q = 0;
    if (s->has_c)
        add_totals(&t, s->c, full);
    if (s->has_b)
        add_totals(&t, s->b, full);
    add_totals(&t, s->a, s->w);
    s->mean = t.sum / n;
    if (s->has_c)
        q += squares(s->c, full, s->mean);
    if (s->has_b)
        q += squares(s->b, full, s->mean);
    q += squares(s->a, s->w, s->mean);
    s->sigma = sqrt(q / n);
    s->least = t.least;
    s->most = t.most;
}

/* --- medians --- */

/* Replaces one value of the sorted slots: both halves are straight-line code. */
static inline void slide(double *slots, double old, double new)
{
    double kept[SLOTS + 1];
    kept[0] = -INFINITY;
    for (int i = 0; i < SLOTS; i++)
        kept[i + 1] = slots[i] < old ? slots[i] : slots[i + 1];
    for (int i = 0; i < SLOTS; i++) {
        double raised = kept[i] > new ? kept[i] : new;
        slots[i] = raised < kept[i + 1] ? raised : kept[i + 1];
    }
}

/* Median of the k values before each position k ... last, to out[0 ...]. */
KPI_WIDE static void running_median(const double *v, int k, int last, double *out)
{
    double slots[SLOTS + 1];
    int odd = k % 2, half = k / 2;
    for (int i = 0; i <= SLOTS; i++)
        slots[i] = INFINITY;
    for (int i = 0; i < k; i++)
        slide(slots, INFINITY, v[i]);
    for (int j = k;; j++) {
        *out++ = odd ? slots[half] : 0.5 * (slots[half - 1] + slots[half]);
        if (j == last)
            return;
        slide(slots, v[j - k], v[j]);
    }
}

static inline void order(double *x, double *y)
{
    for (int l = 0; l < LANES; l++) {
        double low = x[l] < y[l] ? x[l] : y[l];
        y[l] = x[l] < y[l] ? y[l] : x[l];
        x[l] = low;
    }
}

/* Medians of the 5 values that begin at each of n positions: a sorting network.
 * Writes whole lanes. */
KPI_WIDE static void medians_of_5(const double *values, int n, double *out)
{
    double from[ROOM + 5] = {0};
    memcpy(from, values, (size_t)(n + 4) * sizeof *from);
    static const uint8_t pairs[][2] = {{0, 1}, {3, 4}, {0, 3}, {1, 4}, {1, 2}, {2, 3}, {1, 2}};
    for (int t = 0; t < n; t += LANES) {
        double v[5][LANES];
        for (int i = 0; i < 5; i++)
            for (int l = 0; l < LANES; l++)
                v[i][l] = from[i + t + l];
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
            order(v[pairs[i][0]], v[pairs[i][1]]);
        memcpy(out + t, v[2], sizeof v[2]);
    }
}

/* The same of 7 values, with their least and largest. */
KPI_WIDE static void medians_of_7(const double *values, int n, double *out, double *low,
                                  double *high)
{
    double from[ROOM + 7] = {0};
    memcpy(from, values, (size_t)(n + 6) * sizeof *from);
    static const uint8_t pairs[][2] = {{0, 5}, {0, 3}, {1, 6}, {2, 4}, {0, 1}, {3, 5}, {2, 6},
                                       {2, 3}, {3, 6}, {4, 5}, {1, 4}, {1, 3}, {3, 4}};
    for (int t = 0; t < n; t += LANES) {
        double v[7][LANES], least[LANES], most[LANES];
        for (int i = 0; i < 7; i++)
            for (int l = 0; l < LANES; l++)
                v[i][l] = from[i + t + l];
        memcpy(least, v[0], sizeof least);
        memcpy(most, v[0], sizeof most);
        for (int i = 1; i < 7; i++)
            for (int l = 0; l < LANES; l++) {
                least[l] = v[i][l] < least[l] ? v[i][l] : least[l];
                most[l] = v[i][l] > most[l] ? v[i][l] : most[l];
            }
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
            order(v[pairs[i][0]], v[pairs[i][1]]);
        memcpy(out + t, v[3], sizeof v[3]);
        memcpy(low + t, least, sizeof least);
        memcpy(high + t, most, sizeof most);
    }
}

/* Medians of one past day: before each point, around it, and the spread over all. */
static void measure_day(window_state *s, const double *v, int day)
{
    int n_all = 2 * s->w + 1 - s->k, first = s->w - s->n - s->k;
    double *all = s->spare;
    running_median(v, s->k, 2 * s->w, all);
    memcpy(s->median[1 + day], all + first, (size_t)(s->n + 1) * sizeof *all);
    for (int i = 0; i < n_all; i++)
        all[i] = fabs(v[s->k + i] - all[i]);
    s->all_q99[day] = top_quantile(all, n_all, s->spare + n_all, &s->all_max[day]);
    medians_of_7(v + s->w - s->n - 3, s->n + 1, s->around[day], s->low[day], s->high[day]);
}

/* --- residual series --- */

static void finish(window_state *s, series *r)
{
    double sum = 0;
    for (int t = 0; t < s->n; t++)
        sum += s->spare[t] = fabs(r->value[t]);
    r->mean = sum / s->n;
    r->q99 = top_quantile(s->spare, s->n, s->spare + s->n, &r->max);
}

static double larger(double x, double y)
{
    return x > y ? x : y;
}

static double spread(double q99, double least)
{
    return larger(q99 / 2.576, least);
}

static double last(const window_state *s, const series *r)
{
    return r->value[s->n];
}

/* Middle of the absolute history, as a standard deviation. */
static double middle(window_state *s, const series *r)
{
    for (int t = 0; t < s->n; t++)
        s->spare[t] = fabs(r->value[t]);
    return 1.4826 * kpi_quantile(s->spare, s->n, 0.5);
}

/* How much larger today runs than a past day: 1 where a ratio means nothing. */
static double gain(double today, double past)
{
    if (!(today > 0 && past > 0))
        return 1;
    double g = today / past;
    return g < 0.25 ? 0.25 : g > 4 ? 4 : g;
}

static void unknown(series *r, int n)
{
    for (int t = 0; t <= n; t++)
        r->value[t] = NAN;
    r->q99 = r->max = r->mean = NAN;
}

enum {
    STEP, MEDIAN, DIFF_B, DIFF_C, RATIO_B, RATIO_C, BOTH, ENVELOPE, SHORT, ROOT, ROOT_BOTH,
    N_SERIES
};

static void local_series(window_state *s, series *r)
{
    const double *a = s->a + s->w - s->n;
    double *recent = s->spare;
    medians_of_5(a - 5, s->n + 1, recent);
    for (int t = 0; t <= s->n; t++) {
        double rest = a[t] - s->median[0][t];
        r[STEP].value[t] = a[t] - a[t - 1];
        r[MEDIAN].value[t] = rest;
        r[SHORT].value[t] = a[t] - recent[t];
        r[ROOT].value[t] = rest / sqrt(fabs(s->median[0][t]) + s->unit + s->tiny);
    }
    finish(s, r + STEP);
    finish(s, r + MEDIAN);
    finish(s, r + SHORT);
    finish(s, r + ROOT);
}

static void day_series(window_state *s, int day, series *difference, series *ratio)
{
    const double *a = s->a + s->w - s->n;
    if (!(day ? s->has_c : s->has_b)) {
        unknown(difference, s->n);
        unknown(ratio, s->n);
        return;
    }
    for (int t = 0; t <= s->n; t++) {
        double local = a[t] - s->median[0][t];
        double shape = s->around[day][t] - s->median[1 + day][t];
        difference->value[t] = local - shape;
        ratio->value[t] = local - shape * gain(s->median[0][t], s->median[1 + day][t]);
    }
    finish(s, difference);
    finish(s, ratio);
}

/* What is left outside the range that the past days had around this time. */
static double outside(const window_state *s, int t, double local)
{
    double low = 0, high = 0;
    for (int day = 0; day < 2; day++) {
        if (!(day ? s->has_c : s->has_b))
            continue;
        double past = s->median[1 + day][t], g = gain(s->median[0][t], past);
        double down = (s->low[day][t] - past) * g, up = (s->high[day][t] - past) * g;
        low = down < low ? down : low;
        high = up > high ? up : high;
    }
    return local > high ? local - high : local < low ? local - low : 0;
}

static void joint_series(window_state *s, series *r)
{
    const series *one = s->has_b ? r + RATIO_B : r + RATIO_C;
    const series *two = s->has_c ? r + RATIO_C : r + RATIO_B;
    if (!s->has_b && !s->has_c)
        one = two = r + MEDIAN;
    for (int t = 0; t <= s->n; t++) {
        double both = 0.5 * (one->value[t] + two->value[t]);
        r[BOTH].value[t] = both;
        r[ENVELOPE].value[t] = outside(s, t, r[MEDIAN].value[t]);
        r[ROOT_BOTH].value[t] = both / sqrt(fabs(s->median[0][t]) + s->unit + s->tiny);
    }
    finish(s, r + BOTH);
    finish(s, r + ENVELOPE);
    finish(s, r + ROOT_BOTH);
}

/* --- the training-free score --- */

static double whole_spread(const window_state *s, int day)
{
    return spread(s->all_q99[day], s->floor);
}

static void free_parts(const window_state *s, const series *r, double *parts)
{
    double jump = fabs(last(s, r + MEDIAN)), local = jump / spread(r[MEDIAN].q99, s->floor);
    double one = s->has_b ? jump / whole_spread(s, 0) : local;
    double two = s->has_c ? jump / whole_spread(s, 1) : one;
    const series *season = s->has_b ? r + DIFF_B : r + DIFF_C;
    if (!s->has_b)
        one = two;
    parts[KPI_STEP] = fabs(last(s, r + STEP)) / spread(r[STEP].q99, s->floor) / 2.773;
    parts[KPI_SEASONAL] = s->has_b || s->has_c
                              ? fabs(last(s, season)) / spread(season->q99, s->floor) / 3.706
                              : 0;
    parts[KPI_LEVEL] = sqrt(local) * sqrt(sqrt(one * two)) / 2.493;
    parts[KPI_GLOBAL] = fabs(s->x - s->mean) / larger(s->sigma, s->tiny) / 1.912;
}

double kpi_free_score(const double *parts)
{
    double most = parts[0];
    for (int i = 1; i < KPI_PARTS; i++)
        most = parts[i] > most ? parts[i] : most;
    return most;
}

/* --- features --- */

static double exceeding(const window_state *s, const series *r)
{
    int count = 0;
    double x = fabs(last(s, r));
    for (int t = 0; t < s->n; t++)
        count += fabs(r->value[t]) >= x;
    return (double)count / s->n;
}

static double recent_mean(const window_state *s, const series *r)
{
    int count = s->n < 20 ? s->n : 20;
    double sum = 0;
    for (int t = s->n - count; t < s->n; t++)
        sum += fabs(r->value[t]);
    return sum / count;
}

static double ratio_or_nan(double above, double below)
{
    return below > 0 ? above / below : NAN;
}

static double *scale_features(window_state *s, const series *r, double *f)
{
    for (int i = 0; i < N_SERIES; i++) {
        int root = i == ROOT || i == ROOT_BOTH;
        double x = last(s, r + i), least = root ? 0.5 * s->unit + 1e-9 : s->soft;
        if (!root)
            *f++ = x / spread(r[i].q99, s->floor);
        *f++ = x == x ? x / spread(r[i].q99, least) : NAN;
        *f++ = x == x ? fabs(x) / larger(r[i].max, least) : NAN;
    }
    return f;
}

static double *day_features(const window_state *s, const series *r, double *f)
{
    double jump = fabs(last(s, r + MEDIAN));
    for (int day = 0; day < 2; day++) {
        int known = day ? s->has_c : s->has_b, n = s->n;
        double past = s->median[1 + day][n], scale = known ? whole_spread(s, day) : 1;
        const double *v = day ? s->c : s->b;
        double up = s->high[day][n] - past, down = past - s->low[day][n];
        f[0] = known ? jump / scale : NAN;
        f[1] = known ? jump / larger(s->all_max[day], s->soft) : NAN;
        f[2] = known ? (v[s->w] - past) / scale : NAN;
        f[3] = known ? larger(up, down) / scale : NAN;
        f[4] = known ? ratio_or_nan(s->level, past) : NAN;
        f += 5;
    }
    return f;
}

static double *global_features(const window_state *s, const series *r, double *f)
{
    double sigma = larger(s->sigma, s->tiny);
    double guess = s->x - last(s, r + BOTH);
    *f++ = (s->x - s->mean) / sigma;
    *f++ = (s->x - s->most) / sigma;
    *f++ = (s->least - s->x) / sigma;
    *f++ = (s->level - s->mean) / sigma;
    *f++ = ratio_or_nan(s->x, s->level);
    *f++ = ratio_or_nan(s->x, guess);
    *f++ = ratio_or_nan(s->x, s->most);
    return f;
}

static double *context_features(window_state *s, const series *r, double *f)
{
    int n = s->n, zeros = 0;
    double scale = spread(r[MEDIAN].q99, s->floor), step20 = recent_mean(s, r + STEP), most = 0;
    double level = fabs(s->level) + s->tiny, noise = middle(s, r + MEDIAN), newest[LANES];
    medians_of_5(s->a + s->w - 4, 1, newest);
    for (int i = 0; i < s->w; i++)
        zeros += s->a[i] == 0;
    for (int t = n > 5 ? n - 5 : 0; t < n; t++)
        most = fabs(r[MEDIAN].value[t]) > most ? fabs(r[MEDIAN].value[t]) : most;
    *f++ = last(s, r + STEP) / larger(middle(s, r + STEP), s->soft);
    *f++ = last(s, r + MEDIAN) / larger(noise, s->soft);
    *f++ = last(s, r + BOTH) / larger(middle(s, r + BOTH), s->soft);
    *f++ = last(s, r + ROOT_BOTH) / larger(middle(s, r + ROOT_BOTH), 0.5 * s->unit + 1e-9);
    *f++ = noise / level;
    *f++ = r[MEDIAN].q99 / larger(noise, s->soft);
    *f++ = r[BOTH].mean / larger(r[MEDIAN].mean, s->tiny);
    *f++ = noise / sqrt(level + s->unit);
    *f++ = (double)zeros / s->w;
    *f++ = s->unit;
    *f++ = s->unit > 0 ? last(s, r + MEDIAN) / sqrt(level + 1) : NAN;
    *f++ = r[MEDIAN].value[n - 1] / scale;
    *f++ = r[MEDIAN].value[n - 2] / scale;
    *f++ = most / scale;
    *f++ = (newest[0] - s->median[0][n > 5 ? n - 4 : 0]) / scale;
    *f++ = exceeding(s, r + STEP);
    *f++ = exceeding(s, r + MEDIAN);
    *f++ = exceeding(s, r + BOTH);
    *f++ = step20 / larger(r[STEP].mean, s->tiny);
    *f++ = last(s, r + STEP) / larger(step20, s->soft);
    return f;
}

/* --- the whole --- */

static int read_window(window_state *s, const double *c, const double *b, const double *a,
                       int window, double *scratch)
{
    int full = 2 * window + 1, known_a, known_b, known_c;
    s->w = window;
    s->k = window / 2 < BEFORE ? window / 2 : BEFORE;
    s->n = window - s->k < HISTORY ? window - s->k : HISTORY;
    s->c = scratch;
    s->b = s->c + full;
    s->a = s->b + full;
    s->spare = s->a + window + 1;
    known_c = fill(s->c, c, full);
    known_b = fill(s->b, b, full);
    known_a = fill(s->a, a, window + 1);
    if (known_a < 0 || known_b < 0 || known_c < 0 || a[window] != a[window])
        return DETECT_SERIES;
    if (known_a < DETECT_MIN_WINDOW + 1)
        return DETECT_SERIES;
    s->has_b = known_b >= DETECT_MIN_WINDOW;
    s->has_c = known_c >= DETECT_MIN_WINDOW;
    return DETECT_OK;
}

static void prepare(window_state *s)
{
    int full = 2 * s->w + 1;
    /* Only the history says what the numbers are: the tested point must not. */
    s->unit = all_whole(s->a, s->w) && (!s->has_b || all_whole(s->b, full)) &&
              (!s->has_c || all_whole(s->c, full));
    s->x = s->a[s->w];
    global_moments(s);
    s->tiny = 1e-9 * larger(s->most, -s->least) + 1e-300;
    double *medians = s->spare;
    running_median(s->a, s->k, s->w, medians);
    memcpy(s->median[0], medians + (s->w - s->n - s->k), (size_t)(s->n + 1) * sizeof *medians);
    s->level = s->median[0][s->n];
    s->soft = larger(larger(1e-6 * fabs(s->level), 0.5 * s->unit), s->tiny);
    s->floor = larger(0.005 * fabs(s->level), s->soft);
    if (s->has_b)
        measure_day(s, s->b, 0);
    if (s->has_c)
        measure_day(s, s->c, 1);
}

int kpi_measure(const double *c, const double *b, const double *a, int window, double *scratch,
                kpi_result *result)
{
    window_state s;
    series r[N_SERIES];
    double *f = result->features;
    int code = read_window(&s, c, b, a, window, scratch);
    if (code != DETECT_OK)
        return code;
    prepare(&s);
    local_series(&s, r);
    day_series(&s, 0, r + DIFF_B, r + RATIO_B);
    day_series(&s, 1, r + DIFF_C, r + RATIO_C);
    joint_series(&s, r);
    free_parts(&s, r, result->parts);
    f = scale_features(&s, r, f);
    memcpy(f, result->parts, sizeof result->parts);
    f = day_features(&s, r, f + KPI_PARTS);
    f = global_features(&s, r, f);
    f = context_features(&s, r, f);
    const series *season = s.has_b ? r + DIFF_B : s.has_c ? r + DIFF_C : r + MEDIAN;
    result->expected = s.x - last(&s, season);
    result->spread = 3.706 * spread(season->q99, s.floor);
    for (int i = 0; i < KPI_FEATURES; i++) /* they are compared as floats */
        result->features[i] = result->features[i] > 1e30    ? 1e30
                              : result->features[i] < -1e30 ? -1e30
                                                            : result->features[i];
    return DETECT_OK;
}
