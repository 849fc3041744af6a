/* Value detection as detect.h offers it. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "kpi.h"

#define MAX_THREADS 256

const char *detect_version(void)
{
    return "1.0.0";
}

static int window_of(int len_a, int len_b, int len_c)
{
    int window = len_a - 1;
    if (window < DETECT_MIN_WINDOW || window > DETECT_MAX_WINDOW)
        return DETECT_LENGTH;
    return len_b == 2 * window + 1 && len_c == len_b ? window : DETECT_LENGTH;
}

static int test(const kpi_model *model, const double *c, const double *b, const double *a,
                int window, double *scratch, int *result, float *prob)
{
    kpi_result measured;
    double normal;
    int code = kpi_measure(c, b, a, window, scratch, &measured);
    if (code != DETECT_OK)
        return code;
    kpi_join(model, &measured, &normal);
    *prob = (float)normal;
    *result = !((double)*prob < DETECT_THRESHOLD);
    return DETECT_OK;
}

int value_predict(void *handle, ValueData *data, int *sample_result, float *prob)
{
    ModelInfo info;
    if (model_info(handle, &info) != DETECT_OK || data == NULL || sample_result == NULL ||
        prob == NULL || data->data_a == NULL || data->data_b == NULL || data->data_c == NULL)
        return DETECT_NULL;
    int window = window_of(data->len_a, data->len_b, data->len_c);
    if (window < 0)
        return window;
    size_t full = 2 * (size_t)window + 1, row = 2 * full + (size_t)window + 1;
    double *values = malloc((row + kpi_scratch(window)) * sizeof *values);
    if (values == NULL)
        return DETECT_SERIES;
    for (size_t i = 0; i < full; i++) {
        values[i] = data->data_c[i];
        values[full + i] = data->data_b[i];
    }
    for (size_t i = 0; i <= (size_t)window; i++)
        values[2 * full + i] = data->data_a[i];
    int code = test(handle, values, values + full, values + 2 * full, window, values + row,
                    sample_result, prob);
    free(values);
    return code;
}

int value_predict_double(void *handle, const RateData *data, int *sample_result, float *prob)
{
    ModelInfo info;
    if (model_info(handle, &info) != DETECT_OK || data == NULL || sample_result == NULL ||
        prob == NULL || data->data_a == NULL || data->data_b == NULL || data->data_c == NULL)
        return DETECT_NULL;
    int window = window_of(data->len_a, data->len_b, data->len_c);
    if (window < 0)
        return window;
    double *scratch = malloc(kpi_scratch(window) * sizeof *scratch);
    if (scratch == NULL)
        return DETECT_SERIES;
    int code = test(handle, data->data_c, data->data_b, data->data_a, window, scratch,
                    sample_result, prob);
    free(scratch);
    return code;
}

/* --- batches --- */

typedef struct {
    const kpi_model *model;
    const double *rows;
    int64_t first, end;
    int window, failed;
    kpi_outputs out;
} share;

static void test_row(const share *s, int64_t i, double *scratch)
{
    int full = 2 * s->window + 1;
    const double *row = s->rows + i * (5 * (int64_t)s->window + 3);
    kpi_result measured;
    int code = kpi_measure(row, row + full, row + 2 * full, s->window, scratch, &measured);
    if (s->out.codes != NULL)
        s->out.codes[i] = code;
    if (code != DETECT_OK)
        return;
    double normal, score = kpi_join(s->model, &measured, &normal);
    if (s->out.scores != NULL)
        s->out.scores[i] = score;
    if (s->out.normal != NULL)
        s->out.normal[i] = normal;
    if (s->out.probs != NULL)
        s->out.probs[i] = (float)normal;
    if (s->out.results != NULL)
        s->out.results[i] = !((double)(float)normal < DETECT_THRESHOLD);
}

static void *test_share(void *argument)
{
    share *s = argument;
    double *scratch = malloc(kpi_scratch(s->window) * sizeof *scratch);
    s->failed = scratch == NULL;
    for (int64_t i = s->first; i < s->end && scratch != NULL; i++)
        test_row(s, i, scratch);
    free(scratch);
    return NULL;
}

int kpi_test_rows(const kpi_model *model, const double *rows, int64_t n_rows, int window,
                  const kpi_outputs *out, int n_threads)
{
    share shares[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    int started[MAX_THREADS] = {0}, failed = 0;
    if (window < DETECT_MIN_WINDOW || window > DETECT_MAX_WINDOW || n_rows < 0 ||
        n_threads < 1 || n_threads > MAX_THREADS)
        return DETECT_LENGTH;
    for (int i = 0; i < n_threads; i++)
        shares[i] = (share){model, rows, n_rows * i / n_threads, n_rows * (i + 1) / n_threads,
                            window, 0, *out};
    for (int i = 1; i < n_threads; i++)
        started[i] = pthread_create(&threads[i], NULL, test_share, &shares[i]) == 0;
    for (int i = 0; i < n_threads; i++)
        if (!started[i])
            test_share(&shares[i]);
    for (int i = 1; i < n_threads; i++)
        if (started[i])
            pthread_join(threads[i], NULL);
    for (int i = 0; i < n_threads; i++)
        failed |= shares[i].failed;
    return failed ? DETECT_SERIES : DETECT_OK;
}

int value_predict_batch(void *handle, const double *rows, int64_t n_rows, int window,
                        int *results, float *probs, int *codes, int n_threads)
{
    ModelInfo info;
    kpi_outputs out = {NULL, NULL, probs, results, codes};
    if (model_info(handle, &info) != DETECT_OK || rows == NULL)
        return DETECT_NULL;
    return kpi_test_rows(handle, rows, n_rows, window, &out, n_threads);
}
