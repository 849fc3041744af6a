/* detect.h: value and rate detection on the newest point of a metric.
 *
 * A window holds three stretches of one metric at the same sampling interval:
 *   data_a  the last `window` points and then the tested point   window + 1 values
 *   data_b  the same time yesterday, `window` points either side  2 * window + 1
 *   data_c  the same time last week, `window` points either side  2 * window + 1
 * Any window from DETECT_MIN_WINDOW to DETECT_MAX_WINDOW points is accepted.
 *
 * Return codes, the same for every function that returns int:
 *    0  done
 *   -1  a null argument, null inner pointer or null handle
 *   -2  lengths that do not fit any window (or an option outside what is allowed)
 *   -3  an unusable series: the tested point is missing, a value is infinite or
 *       beyond 1e150, or fewer than DETECT_MIN_WINDOW of the last `window` points are known
 * Outputs are written only when 0 is returned.
 *
 * Results: 1 is normal, 0 is anomalous; prob is the probability of normal, and a
 * result is 0 exactly when prob is below DETECT_THRESHOLD.
 *
 * Threads: a loaded model is read-only; any number of threads may share one handle.
 * There is no global state, nothing is printed, and the locale does not matter.
 *
 * ABI: structures only ever grow by new functions with new structures; existing
 * layouts and signatures stay within one DETECT_ABI. Nothing but libm is linked.
 */
#ifndef DETECT_H
#define DETECT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DETECT_ABI 1
#define DETECT_MIN_WINDOW 10
#define DETECT_MAX_WINDOW 100000
#define DETECT_THRESHOLD 0.15

#define DETECT_OK 0
#define DETECT_NULL (-1)
#define DETECT_LENGTH (-2)
#define DETECT_SERIES (-3)

/* Whole numbers, as counters deliver them. The caller owns the arrays. */
typedef struct {
    int *data_a;
    int *data_b;
    int *data_c;
    int len_a;
    int len_b;
    int len_c;
} ValueData;

/* Real numbers; NaN marks a missing value. The caller owns the arrays. */
typedef struct {
    double *data_a;
    double *data_b;
    double *data_c;
    int len_a;
    int len_b;
    int len_c;
} RateData;

/* Reads a model file whole and checks it whole: container, SHA-256, every tree.
 * Returns a handle to give to free_model, or NULL for a null name, an unreadable,
 * damaged or foreign file, or no memory. */
void *load_model(const char *fname);

/* The same from `size` bytes in memory, which may be freed afterwards. */
void *load_model_memory(const void *bytes, size_t size);

/* Releases a handle of load_model; NULL is allowed. */
void free_model(void *handle);

typedef struct {
    int container_version;
    int feature_set;   /* version of the window features the trees were trained on */
    int n_features;
    int window;        /* window of the training data; others are accepted */
    int n_trees;
    int n_nodes;
    double threshold;  /* always DETECT_THRESHOLD in this version */
} ModelInfo;

/* What a handle holds: 0, or -1 for a null argument. */
int model_info(void *handle, ModelInfo *info);

/* Tests the last point of data_a. */
int value_predict(void *handle, ValueData *data, int *sample_result, float *prob);

/* The same on real numbers, NaN for missing values. */
int value_predict_double(void *handle, const RateData *data, int *sample_result, float *prob);

/* Tests n_rows windows that lie one after the other, each 5 * window + 3 values in
 * the order data_c, data_b, data_a. codes[i] is 0 or -3, and results[i] and probs[i]
 * are written where it is 0; any of the three outputs may be NULL. Rows are shared
 * out over n_threads threads (1 to 256; the caller's own thread is one of them). Returns
 * 0 when every row could be visited, and -3 when there was no memory to do so. */
int value_predict_batch(void *handle, const double *rows, int64_t n_rows, int window,
                        int *results, float *probs, int *codes, int n_threads);

/* Tests the last point of a rate: 3 sigma over the whole window, an effect of at
 * least 0.1 % of the mean, and no more than 0.27 % of the history as far out. */
int rate_predict(RateData *data, int *sample_result, float *prob);

#define RATE_SIGMA 0    /* n_sigma standard deviations, nothing else */
#define RATE_QUANTILE 1 /* sigma, and at most a share alpha of the history as far out */
#define RATE_BOTH 0
#define RATE_LOW 1
#define RATE_HIGH 2

typedef struct {
    int method;        /* RATE_SIGMA or RATE_QUANTILE */
    int direction;     /* RATE_BOTH, RATE_LOW or RATE_HIGH */
    int seasonal;      /* 1: test the difference to the mean of yesterday and last week */
    double n_sigma;    /* above 0 */
    double alpha;      /* share of false alarms, above 0 and below 1 */
    double min_effect; /* smallest relative difference to the mean that counts, 0 or more */
} RateOptions;

/* rate_predict with options. */
int rate_predict_with(const RateData *data, const RateOptions *options, int *sample_result,
                      float *prob);

/* Tests a rate with known volumes (`volume`: how many events each point of `data`
 * counts): the binomial tail of the tested point under the pooled rate of the
 * history, widened by the overdispersion seen there. Rates lie in 0 ... 1. */
int rate_predict_volume(const RateData *data, const RateData *volume, const RateOptions *options,
                        int *sample_result, float *prob);

/* Version of the library, as "1.0.0". */
const char *detect_version(void);

#ifdef __cplusplus
}
#endif

#endif
