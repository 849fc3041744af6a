/* The contract of detect.h, checked from C. Prints what failed; exits 1 then.
 *
 *   build/test MODEL */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "detect.h"
#include "kpi.h"

static int failures;

#define CHECK(claim)                                                     \
    do {                                                                 \
        if (!(claim)) {                                                  \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #claim);   \
            failures++;                                                  \
        }                                                                \
    } while (0)

#define W 180
#define FULL (2 * W + 1)

typedef struct {
    int a[W + 1], b[FULL], c[FULL];
    ValueData data;
} whole_window;

typedef struct {
    double a[W + 1], b[FULL], c[FULL];
    RateData data;
} real_window;

static void fill_whole(whole_window *w, int last)
{
    unsigned state = 7;
    for (int i = 0; i < FULL; i++) {
        state = state * 1103515245u + 12345u;
        w->c[i] = 1000 + (int)(state >> 16) % 40;
        w->b[i] = 1000 + (int)(state >> 20) % 40;
        if (i < W)
            w->a[i] = 1000 + (int)(state >> 18) % 40;
    }
    w->a[W] = last;
    w->data = (ValueData){w->a, w->b, w->c, W + 1, FULL, FULL};
}

static void fill_real(real_window *r, const whole_window *w)
{
    for (int i = 0; i < FULL; i++) {
        r->b[i] = w->b[i];
        r->c[i] = w->c[i];
    }
    for (int i = 0; i <= W; i++)
        r->a[i] = w->a[i];
    r->data = (RateData){r->a, r->b, r->c, W + 1, FULL, FULL};
}

static void value_answers(void *model)
{
    whole_window w;
    int result = 7;
    float prob = 7;
    fill_whole(&w, 1015);
    CHECK(value_predict(model, &w.data, &result, &prob) == 0 && result == 1 && prob > 0.15f);
    fill_whole(&w, 0);
    CHECK(value_predict(model, &w.data, &result, &prob) == 0 && result == 0 && prob < 0.15f);
    fill_whole(&w, 2000);
    CHECK(value_predict(model, &w.data, &result, &prob) == 0 && result == 0 && prob < 0.15f);
}

static void value_failures(void *model)
{
    whole_window w;
    int result = 7;
    float prob = 7;
    fill_whole(&w, 1015);
    CHECK(value_predict(NULL, &w.data, &result, &prob) == DETECT_NULL);
    CHECK(value_predict(model, NULL, &result, &prob) == DETECT_NULL);
    CHECK(value_predict(model, &w.data, NULL, &prob) == DETECT_NULL);
    CHECK(value_predict(model, &w.data, &result, NULL) == DETECT_NULL);
    w.data.data_b = NULL;
    CHECK(value_predict(model, &w.data, &result, &prob) == DETECT_NULL);
    const int lengths[][3] = {{181, 361, 360}, {180, 361, 361}, {10, 19, 19}, {0, 0, 0},
                              {-5, -11, -11}, {181, 181, 181}, {2147483647, 2147483647, 361}};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        fill_whole(&w, 1015);
        w.data.len_a = lengths[i][0];
        w.data.len_b = lengths[i][1];
        w.data.len_c = lengths[i][2];
        CHECK(value_predict(model, &w.data, &result, &prob) == DETECT_LENGTH);
    }
    CHECK(result == 7 && prob == 7);
}

static void reals_equal_whole(void *model)
{
    whole_window w;
    real_window r;
    int one, other;
    float p, q;
    fill_whole(&w, 1100);
    fill_real(&r, &w);
    CHECK(value_predict(model, &w.data, &one, &p) == 0);
    CHECK(value_predict_double(model, &r.data, &other, &q) == 0);
    CHECK(one == other && p == q);
    r.a[W] = NAN;
    CHECK(value_predict_double(model, &r.data, &other, &q) == DETECT_SERIES);
    r.a[W] = 1;
    r.b[3] = INFINITY;
    CHECK(value_predict_double(model, &r.data, &other, &q) == DETECT_SERIES);
    for (int i = 0; i < FULL; i++)
        r.b[i] = r.c[i] = NAN;
    CHECK(value_predict_double(model, &r.data, &other, &q) == 0 && other == 0);
    CHECK(value_predict_double(model, NULL, &other, &q) == DETECT_NULL);
}

static void any_window(void *model)
{
    for (int window = DETECT_MIN_WINDOW; window < 400; window += 13) {
        int full = 2 * window + 1, result;
        float prob;
        int *v = malloc((size_t)(full + full + window + 1) * sizeof *v);
        for (int i = 0; i < full + full + window + 1; i++)
            v[i] = i % 5;
        ValueData data = {v + 2 * full, v + full, v, window + 1, full, full};
        CHECK(value_predict(model, &data, &result, &prob) == 0);
        v[full + full + window] = 1000000;
        CHECK(value_predict(model, &data, &result, &prob) == 0 && result == 0);
        free(v);
    }
}

#define ROWS 500

static void *predict_all(void *argument)
{
    void **a = argument;
    int *code = a[4];
    *code = value_predict_batch(a[0], a[1], ROWS, W, a[2], a[3], NULL, 1);
    return NULL;
}

static void batches_and_threads(void *model)
{
    const int width = 5 * W + 3;
    double *rows = malloc(sizeof *rows * ROWS * (size_t)width);
    int results[3][ROWS], codes[ROWS], inner[2] = {9, 9};
    float probs[3][ROWS];
    unsigned state = 1;
    for (int i = 0; i < ROWS * width; i++)
        rows[i] = (state = state * 1103515245u + 12345u) >> 20;
    rows[width - 1] = NAN;
    results[0][0] = 7;
    CHECK(value_predict_batch(model, rows, ROWS, W, results[0], probs[0], codes, 1) == 0);
    CHECK(codes[0] == DETECT_SERIES && results[0][0] == 7 && codes[1] == 0);
    CHECK(value_predict_batch(model, rows, ROWS, W, results[1], probs[1], codes, 3) == 0);
    CHECK(memcmp(probs[0] + 1, probs[1] + 1, sizeof(float) * (ROWS - 1)) == 0);
    pthread_t threads[2];
    void *arguments[2][5] = {{model, rows, results[1], probs[1], &inner[0]},
                             {model, rows, results[2], probs[2], &inner[1]}};
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, predict_all, arguments[i]) == 0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    CHECK(inner[0] == 0 && inner[1] == 0);
    CHECK(memcmp(probs[0] + 1, probs[2] + 1, sizeof(float) * (ROWS - 1)) == 0);
    CHECK(value_predict_batch(NULL, rows, 1, W, NULL, NULL, NULL, 1) == DETECT_NULL);
    CHECK(value_predict_batch(model, rows, 1, 9, NULL, NULL, NULL, 1) == DETECT_LENGTH);
    CHECK(value_predict_batch(model, rows, 1, W, NULL, NULL, NULL, 0) == DETECT_LENGTH);
    CHECK(value_predict_batch(model, rows, 0, W, NULL, NULL, NULL, 1) == 0);
    free(rows);
}

static void rates(void)
{
    real_window r;
    whole_window w;
    int result = 7;
    float prob = 7;
    fill_whole(&w, 1015);
    fill_real(&r, &w);
    for (int i = 0; i < FULL; i++)
        r.b[i] = r.c[i] = 1;
    for (int i = 0; i <= W; i++)
        r.a[i] = 1;
    CHECK(rate_predict(&r.data, &result, &prob) == 0 && result == 1);
    r.a[W] = 1.0000001;
    CHECK(rate_predict(&r.data, &result, &prob) == 0 && result == 1);
    r.a[W] = 0.9;
    CHECK(rate_predict(&r.data, &result, &prob) == 0 && result == 0 && prob < 0.15f);
    result = 7;
    r.a[W] = NAN;
    CHECK(rate_predict(&r.data, &result, &prob) == DETECT_SERIES && result == 7);
    r.a[W] = 0.9;
    r.c[0] = INFINITY;
    CHECK(rate_predict(&r.data, &result, &prob) == DETECT_SERIES);
    r.c[0] = 1;
    r.data.len_c--;
    CHECK(rate_predict(&r.data, &result, &prob) == DETECT_LENGTH);
    r.data.data_c = NULL;
    CHECK(rate_predict(&r.data, &result, &prob) == DETECT_NULL);
    CHECK(rate_predict(NULL, &result, &prob) == DETECT_NULL);
    CHECK(result == 7);
}

static void model_files(const char *name, void *model)
{
    ModelInfo info;
    CHECK(load_model(NULL) == NULL);
    CHECK(load_model("/no/such/model") == NULL);
    CHECK(load_model("tests/test.c") == NULL);
    CHECK(load_model(".") == NULL);
    CHECK(load_model_memory(NULL, 5) == NULL);
    CHECK(load_model_memory("KPIVALUE", 8) == NULL);
    CHECK(model_info(model, &info) == 0 && info.n_trees > 0 && info.window == W);
    CHECK(info.threshold == DETECT_THRESHOLD && info.n_features == KPI_FEATURES);
    CHECK(model_info(NULL, &info) == DETECT_NULL && model_info(model, NULL) == DETECT_NULL);
    CHECK(detect_version()[0] == '1');
    free_model(NULL);
    void *again = load_model(name);
    CHECK(again != NULL);
    free_model(again);
}

static void digests(void)
{
    uint8_t digest[32];
    kpi_sha256("abc", 3, digest);
    CHECK(digest[0] == 0xba && digest[1] == 0x78 && digest[31] == 0xad);
    kpi_sha256("", 0, digest);
    CHECK(digest[0] == 0xe3 && digest[31] == 0x55);
}

int main(int argc, char **argv)
{
    void *model = argc == 2 ? load_model(argv[1]) : NULL;
    if (model == NULL) {
        printf("usage: test MODEL\n");
        return 2;
    }
    value_answers(model);
    value_failures(model);
    reals_equal_whole(model);
    any_window(model);
    batches_and_threads(model);
    rates();
    model_files(argv[1], model);
    digests();
    free_model(model);
    printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
    return failures != 0;
}
