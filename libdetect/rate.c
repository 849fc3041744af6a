/* Rate detection: near-normal series such as success ratios. */
#include <math.h>

#include "kpi.h"
#include "kpi_rate.h"

#define LANES 8
#define LIMIT 1e150

/* Sums over the known values of up to three stretches, in a fixed order. */
typedef struct {
    double sum, square;
    int64_t count;
} moments;

/* Residual of point i of a stretch: to 0, or to the mean of the past days. */
typedef struct {
    const double *v, *b, *c;
    int n;
} stretch;

static double past(const stretch *s, int i)
{
    double b = s->b != NULL ? s->b[i] : NAN, c = s->c != NULL ? s->c[i] : NAN;
    return b != b ? c : c != c ? b : 0.5 * (b + c);
}

KPI_WIDE static double plain_sum(const double *v, int n)
{
    double sum[LANES] = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            sum[j] += v[i + j];
    for (; i < n; i++)
        sum[0] += v[i];
    for (int j = 1; j < LANES; j++)
        sum[0] += sum[j];
    return sum[0];
}

KPI_WIDE static double plain_squares(const double *v, int n, double mean)
{
    double sum[LANES] = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            sum[j] += (v[i + j] - mean) * (v[i + j] - mean);
    for (; i < n; i++)
        sum[0] += (v[i] - mean) * (v[i] - mean);
    for (int j = 1; j < LANES; j++)
        sum[0] += sum[j];
    return sum[0];
}

KPI_WIDE static int plain_count(const double *v, int n, double mean, double far, int direction)
{
    int count = 0;
    double sign = direction == RATE_LOW ? -1 : 1;
    if (direction == RATE_BOTH)
        for (int i = 0; i < n; i++)
            count += fabs(v[i] - mean) >= far;
    else
        for (int i = 0; i < n; i++)
            count += sign * (v[i] - mean) >= far;
    return count;
}

/* All three, with gaps and a seasonal baseline. */
static void add_careful(moments *m, const stretch *s, double mean, int seasonal)
{
    for (int i = 0; i < s->n; i++) {
        double d = s->v[i] - (seasonal ? past(s, i) : 0) - mean;
        if (d != d)
            continue;
        m->sum += d;
        m->square += d * d;
        m->count++;
    }
}

/* Moments about a mean. A plain sum is NaN where there is a gap. */
static moments sum_up(const stretch *s, int n, double mean, int seasonal, int squared)
{
    moments m = {0, 0, 0};
    for (int i = 0; i < n && !seasonal; i++) {
        if (squared)
            m.square += plain_squares(s[i].v, s[i].n, mean);
        else
            m.sum += plain_sum(s[i].v, s[i].n);
        m.count += s[i].n;
    }
    if (!seasonal && m.sum == m.sum && m.square == m.square)
        return m;
    m = (moments){0, 0, 0};
    for (int i = 0; i < n; i++)
        add_careful(&m, s + i, mean, seasonal);
    return m;
}

/* How many history points lie at least `far` out; unknown ones do not. */
static int64_t as_far(const stretch *s, int n, double mean, double far, const RateOptions *o)
{
    int64_t total = 0;
    for (int i = 0; i < n; i++) {
        if (!o->seasonal) {
            total += plain_count(s[i].v, s[i].n, mean, far, o->direction);
            continue;
        }
        for (int j = 0; j < s[i].n; j++) {
            double d = s[i].v[j] - past(s + i, j) - mean;
            total += (-d >= far && o->direction != RATE_HIGH) |
                     (d >= far && o->direction != RATE_LOW);
        }
    }
    return total;
}

static double directed(double d, int direction)
{
    if (direction == RATE_BOTH)
        return fabs(d);
    d = direction == RATE_LOW ? -d : d;
    return d > 0 ? d : 0;
}

static int sound(const RateOptions *o)
{
    return (o->method == RATE_SIGMA || o->method == RATE_QUANTILE) &&
           o->direction >= RATE_BOTH && o->direction <= RATE_HIGH &&
           (o->seasonal == 0 || o->seasonal == 1) && o->n_sigma > 0 && o->n_sigma <= 1e6 &&
           o->alpha > 0 && o->alpha < 1 && o->min_effect >= 0 && o->min_effect <= 1e6;
}

static double over(double above, double below)
{
    return above > 0 ? above / (below > 1e-300 ? below : 1e-300) : 0;
}

/* History as stretches: all of c, b and a, or a alone against the past days. */
static int stretches(const rate_window *d, int seasonal, stretch *s)
{
    int n = 0, full = 2 * d->window + 1;
    if (seasonal) {
        s[0] = (stretch){d->a, d->b, d->c, d->window};
        return 1;
    }
    if (d->c != NULL)
        s[n++] = (stretch){d->c, NULL, NULL, full};
    if (d->b != NULL)
        s[n++] = (stretch){d->b, NULL, NULL, full};
    s[n++] = (stretch){d->a, NULL, NULL, d->window};
    return n;
}

int rate_score(const rate_window *data, const RateOptions *options, double *score)
{
    stretch s[3];
    RateOptions o = *options;
    double x = data->a[data->window], level;
    if (!sound(&o))
        return DETECT_LENGTH;
    if (!(fabs(x) <= LIMIT))
        return DETECT_SERIES;
    stretch tested = {data->a, data->b, data->c, 0};
    if (o.seasonal && (data->b == NULL || past(&tested, data->window) !=
                                              past(&tested, data->window)))
        o.seasonal = 0; /* nothing to compare with */
    level = o.seasonal ? fabs(past(&tested, data->window)) : 0;
    double value = x - (o.seasonal ? past(&tested, data->window) : 0);
    int n = stretches(data, o.seasonal, s);
    moments first = sum_up(s, n, 0, o.seasonal, 0);
    if (first.count < DETECT_MIN_WINDOW || !(fabs(first.sum) <= LIMIT * (double)first.count))
        return DETECT_SERIES;
    double mean = first.sum / (double)first.count;
    moments second = sum_up(s, n, mean, o.seasonal, 1);
    if (!(second.square <= INFINITY) || second.square == INFINITY)
        return DETECT_SERIES;
    double sigma = sqrt(second.square / (double)second.count);
    double far = directed(value - mean, o.direction);
    double best = over(far, o.n_sigma * sigma);
    double effect = over(far, o.min_effect * (level > 0 ? level : fabs(mean)));
    best = o.min_effect > 0 && effect < best ? effect : best;
    if (best > 1 && o.method == RATE_QUANTILE) {
        int64_t allowed = (int64_t)(o.alpha * (double)first.count);
        int64_t found = as_far(s, n, mean, far, &o);
        best = found > allowed ? (double)(allowed + 1) / (double)(found + 1) : best;
    }
    *score = best;
    return DETECT_OK;
}

double rate_probability(double score)
{
    double odds = (1 - DETECT_THRESHOLD) / DETECT_THRESHOLD;
    return 1 / (1 + odds * score * score * score * score);
}

/* --- known volumes --- */

/* Logarithm of the gamma function for x > 0 (Lanczos, 15 digits); no global sign. */
static double log_gamma(double x)
{
    static const double c[9] = {0.99999999999980993,  676.5203681218851,   -1259.1392167224028,
                                771.32342877765313,   -176.61502916214059, 12.507343278686905,
                                -0.13857109526572012, 9.9843695780195716e-6,
                                1.5056327351493116e-7};
    double sum = c[0], t;
    if (x < 0.5)
        return log(3.14159265358979323846 / sin(3.14159265358979323846 * x)) - log_gamma(1 - x);
    x -= 1;
    for (int i = 1; i < 9; i++)
        sum += c[i] / (x + i);
    t = x + 7.5;
    return 0.91893853320467274178 + (x + 0.5) * log(t) - t + log(sum);
}

/* Continued fraction of the incomplete beta function (Lentz). */
static double beta_fraction(double x, double a, double b)
{
    const double tiny = 1e-300;
    double c = 1, d = 1 - (a + b) * x / (a + 1), h;
    d = 1 / (fabs(d) < tiny ? tiny : d);
    h = d;
    for (int m = 1; m < 5000; m++) {
        double step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        d = 1 + step * d;
        c = 1 + step / c;
        d = 1 / (fabs(d) < tiny ? tiny : d);
        c = fabs(c) < tiny ? tiny : c;
        h *= d * c;
        step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        d = 1 + step * d;
        c = 1 + step / c;
        d = 1 / (fabs(d) < tiny ? tiny : d);
        c = fabs(c) < tiny ? tiny : c;
        h *= d * c;
        if (fabs(d * c - 1) < 1e-14)
            break;
    }
    return h;
}

double rate_beta(double x, double a, double b)
{
    if (x <= 0)
        return 0;
    if (x >= 1)
        return 1;
    double front = exp(log_gamma(a + b) - log_gamma(a) - log_gamma(b) + a * log(x) +
                       b * log1p(-x));
    if (x < (a + 1) / (a + b + 2))
        return front * beta_fraction(x, a, b) / a;
    return 1 - front * beta_fraction(1 - x, b, a) / b;
}

/* Chance of at most (low) or at least (high) k of n at rate p; normal where n is huge. */
static double binomial_tail(double k, double n, double p, int low)
{
    if (n > 1e5) {
        double z = (k - n * p + (low ? 0.5 : -0.5)) / sqrt(n * p * (1 - p));
        return 0.5 * erfc((low ? -z : z) * 0.70710678118654752440);
    }
    if (low)
        return k >= n ? 1 : rate_beta(1 - p, n - k, k + 1);
    return k <= 0 ? 1 : rate_beta(p, k, n - k + 1);
}

/* Adds successes, trials and later the squared residuals of one stretch. */
static int add_trials(const double *rate, const double *volume, int n, double *hits,
                      double *trials)
{
    for (int i = 0; i < n; i++) {
        if (rate[i] != rate[i] || volume[i] != volume[i])
            continue;
        if (!(rate[i] >= 0 && rate[i] <= 1 && volume[i] >= 0 && volume[i] <= LIMIT))
            return -1;
        *hits += rate[i] * volume[i];
        *trials += volume[i];
    }
    return 0;
}

static void add_spread(const double *rate, const double *volume, int n, double p, double *sum,
                       double *count)
{
    for (int i = 0; i < n; i++) {
        double d = (rate[i] - p) * (rate[i] - p) * volume[i];
        if (!(volume[i] > 0) || d != d)
            continue;
        *sum += d / (p * (1 - p));
        *count += 1;
    }
}

int rate_volume_score(const rate_window *data, const rate_window *volume,
                      const RateOptions *o, double *score)
{
    stretch r[3], v[3];
    int w = data->window, n = stretches(data, 0, r);
    double hits = 0, trials = 0, sum = 0, count = 0, rate = data->a[w], size = volume->a[w];
    stretches(volume, 0, v);
    if (!sound(o))
        return DETECT_LENGTH;
    if (!(rate >= 0 && rate <= 1 && size > 0 && size <= LIMIT))
        return DETECT_SERIES;
    for (int i = 0; i < n; i++)
        if (add_trials(r[i].v, v[i].v, r[i].n, &hits, &trials) != 0)
            return DETECT_SERIES;
    double p = (hits + 0.5) / (trials + 1); /* never 0 or 1 */
    for (int i = 0; i < n; i++)
        add_spread(r[i].v, v[i].v, r[i].n, p, &sum, &count);
    if (count < DETECT_MIN_WINDOW)
        return DETECT_SERIES;
    double wider = sum > count ? sum / count : 1; /* overdispersion */
    double events = size / wider, k = rate * events;
    double low = binomial_tail(k, events, p, 1), high = binomial_tail(k, events, p, 0);
    double tail = o->direction == RATE_LOW ? low : o->direction == RATE_HIGH ? high
                  : 2 * (low < high ? low : high);
    tail = tail > 1 ? 1 : tail < 1e-300 ? 1e-300 : tail;
    double best = sqrt(log(tail) / log(o->alpha));
    double effect = over(directed(rate - p, o->direction), o->min_effect * p);
    *score = o->min_effect > 0 && effect < best ? effect : best;
    return DETECT_OK;
}

/* --- the contract --- */

static const RateOptions usual = {RATE_QUANTILE, RATE_BOTH, 0, 3.0, 0.0027, 0.001};

static int window_of(const RateData *d)
{
    int w = d->len_a - 1;
    if (d->data_a == NULL || d->data_b == NULL || d->data_c == NULL)
        return DETECT_NULL;
    if (w < DETECT_MIN_WINDOW || w > DETECT_MAX_WINDOW)
        return DETECT_LENGTH;
    return d->len_b == 2 * w + 1 && d->len_c == d->len_b ? w : DETECT_LENGTH;
}

static int answer(int code, double score, int *result, float *prob)
{
    if (code != DETECT_OK)
        return code;
    *prob = (float)rate_probability(score);
    *result = !((double)*prob < DETECT_THRESHOLD);
    return DETECT_OK;
}

int rate_predict_with(const RateData *data, const RateOptions *options, int *sample_result,
                      float *prob)
{
    double score = 0;
    if (data == NULL || options == NULL || sample_result == NULL || prob == NULL)
        return DETECT_NULL;
    int w = window_of(data);
    if (w < 0)
        return w;
    rate_window d = {data->data_a, data->data_b, data->data_c, w};
    int code = rate_score(&d, options, &score);
    return answer(code, score, sample_result, prob);
}

int rate_predict(RateData *data, int *sample_result, float *prob)
{
    return rate_predict_with(data, &usual, sample_result, prob);
}

int rate_predict_volume(const RateData *data, const RateData *volume, const RateOptions *options,
                        int *sample_result, float *prob)
{
    double score = 0;
    if (data == NULL || volume == NULL || options == NULL || sample_result == NULL ||
        prob == NULL)
        return DETECT_NULL;
    int w = window_of(data), same = window_of(volume);
    if (w < 0 || same < 0)
        return w < 0 ? w : same;
    if (w != same)
        return DETECT_LENGTH;
    rate_window d = {data->data_a, data->data_b, data->data_c, w};
    rate_window v = {volume->data_a, volume->data_b, volume->data_c, w};
    int code = rate_volume_score(&d, &v, options, &score);
    return answer(code, score, sample_result, prob);
}
