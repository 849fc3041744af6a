/* Tests one value window and one rate window.
 *
 *   make -C libdetect
 *   libdetect/build/example anomaly/models/value_default_model */
#include <stdio.h>

#include "detect.h"

#define WINDOW 180

static int test_value(const char *fname)
{
    int data_c[2 * WINDOW + 1], data_b[2 * WINDOW + 1], data_a[WINDOW + 1], sample_result;
    ValueData value_data = {data_a, data_b, data_c, WINDOW + 1, 2 * WINDOW + 1, 2 * WINDOW + 1};
    void *handle;
    float prob;
    for (int i = 0; i < 2 * WINDOW + 1; i++)
        data_b[i] = data_c[i] = 100 + i % 7;
    for (int i = 0; i < WINDOW; i++)
        data_a[i] = 100 + i % 7;
    data_a[WINDOW] = 10;
    if (NULL == (handle = load_model(fname))) {
        printf("load model error\n");
        return 1;
    }
    int ret = value_predict(handle, &value_data, &sample_result, &prob);
    printf("value: ret=%d result=%d prob=%f\n", ret, sample_result, prob);
    free_model(handle);
    return ret;
}

static int test_rate(void)
{
    double data_c[2 * WINDOW + 1], data_b[2 * WINDOW + 1], data_a[WINDOW + 1];
    RateData rate_data = {data_a, data_b, data_c, WINDOW + 1, 2 * WINDOW + 1, 2 * WINDOW + 1};
    int sample_result;
    float prob;
    for (int i = 0; i < 2 * WINDOW + 1; i++)
        data_b[i] = data_c[i] = 100 - 0.1 * (i % 5);
    for (int i = 0; i < WINDOW; i++)
        data_a[i] = 100 - 0.1 * (i % 5);
    data_a[WINDOW] = 85.9;
    int ret = rate_predict(&rate_data, &sample_result, &prob);
    printf("rate: ret=%d result=%d prob=%f\n", ret, sample_result, prob);
    return ret;
}

int main(int argc, char **argv)
{
    int failed = test_value(argc > 1 ? argv[1] : "../anomaly/models/value_default_model");
    return test_rate() != 0 || failed;
}
