/* The stream kernels over random, constant and extreme records: they stay finite, and go on
 * from any snapshot to the same bits. Run by `make`, and under the sanitizers by
 * `make sanitize`.
 *
 *   build/streams */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "htm.h"
#include "tiles.h"

#define N 900
#define MAX_FIELDS 3

static int failures;

#define CHECK(claim)                                                   \
    do {                                                               \
        if (!(claim)) {                                                \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #claim); \
            failures++;                                                \
        }                                                              \
    } while (0)

static uint64_t state;

static double uniform(void)
{
    state += UINT64_C(0x9E3779B97F4A7C15);
    return (double)(scramble(state) >> 11) / 9007199254740992.0;
}

enum content { RANDOM, CONSTANT, EXTREME, N_CONTENTS };

static double a_value(enum content content, int t)
{
    static const double odd[] = {1e300, -1e300, 1.7e308, 5e-324, 0.0, INFINITY, -INFINITY, NAN};
    if (content == CONSTANT)
        return 5.0;
    if (content == EXTREME && uniform() < 0.2)
        return odd[(int)(uniform() * 8)];
    return 10.0 * ((t / 7) % 4) + uniform();
}

typedef struct {
    double values[N * MAX_FIELDS], seconds[N];
} records;

static void fill(records *r, enum content content, int n_fields)
{
    static const double odd[] = {NAN, INFINITY, -1e300, 1e18};
    for (int i = 0; i < N * n_fields; i++)
        r->values[i] = a_value(content, i / n_fields);
    for (int t = 0; t < N; t++)
        r->seconds[t] = content == EXTREME && t % 50 == 9 ? odd[t / 50 % 4] : 1.7e9 + 300.0 * t;
}

static tile_options some_tiles(int n_fields, int learning)
{
    return (tile_options){
        .n_fields = n_fields, .n_pairs = n_fields * (n_fields - 1) / 2, .n_tilings = 12,
        .log2_bits = 14, .window = 10, .lag = 50, .power = 8, .learning = learning,
        .settling = 300, .skip = 0.8, .rest_share = 0.2, .width = 0.2,
        .likelihood = {0.01, 0.0003, 4000.0}, .alarm = {4.25, 0.05, 0.05, 0.9997, 60}, .seed = 1};
}

static htm_options some_htm(int n_fields, int cells, int range_mode, int clock)
{
    return (htm_options){
        .n_fields = n_fields, .bits = 100, .active_bits = 11, .time_of_day = clock,
        .weekday = clock, .weekend = clock, .columns = 128, .active_columns = 10, .cells = cells, .potential = 16000,
        .pool_connected = 4000, .pool_increment = 60, .pool_decrement = 10, .activation = 5,
        .matching = 4, .new_synapses = 8, .max_synapses = 16, .initial = 4800, .connected = 10000,
        .increment = 800, .decrement = 160, .punishment = 20, .max_segments = 200,
        .max_segments_per_cell = 2, .rows = 64, .n_horizons = 2, .horizons = {1, 5},
        .learning = 100, .window = 10, .lag = 50, .range_mode = range_mode, .settling = 400,
        .skip = 80, .settled_skip = 320, .settled_rest = 120, .range_block = 300, .low = 0.0,
        .high = 40.0, .steps = 60.0, .rate = 0.05, .likelihood = {0.06, 0.001, 4000.0},
        .alarm = {4.5, 0.05, 0.0, 0.9997, 60}, .seed = 1};
}

/* A kernel as one table, so that both are driven in the same way. */
typedef struct {
    int (*process)(void *, const double *, const double *, int64_t, enum stream_mode, double *,
                   double *, double *, double *);
    size_t (*size)(const void *);
    void (*save)(const void *, unsigned char *);
    void *(*load)(const unsigned char *, size_t);
    void (*free)(void *);
} kernel;

#define KERNEL(kind)                                                                              \
    static int kind##_process_(void *s, const double *x, const double *clock, int64_t n,          \
                               enum stream_mode mode, double *scores, double *raw,                \
                               double *strengths, double *expected)                               \
    {                                                                                             \
        return kind##_process(s, x, clock, n, mode, scores, raw, strengths, expected);            \
    }                                                                                             \
    static size_t kind##_size_(const void *s) { return kind##_size(s); }                          \
    static void kind##_save_(const void *s, unsigned char *bytes) { kind##_save(s, bytes); }      \
    static void *kind##_load_(const unsigned char *bytes, size_t n) { return kind##_load(bytes, n); } \
    static void kind##_free_(void *s) { kind##_free(s); }                                         \
    static const kernel kind##_kernel = {kind##_process_, kind##_size_, kind##_save_,             \
                                         kind##_load_, kind##_free_}

KERNEL(tiles);
KERNEL(htm);

static unsigned char *saved(const kernel *k, const void *stream, size_t *size)
{
    *size = k->size(stream);
    unsigned char *bytes = malloc(*size);
    if (bytes == NULL)
        exit(1);
    k->save(stream, bytes);
    return bytes;
}

/* The stream as restored from its snapshot; the old one is freed. */
static void *restored(const kernel *k, void *stream)
{
    size_t size;
    unsigned char *bytes = saved(k, stream, &size);
    CHECK(k->load(bytes, size - 1) == NULL);
    CHECK(k->load(bytes, 0) == NULL);
    void *again = k->load(bytes, size);
    CHECK(again != NULL);
    free(bytes);
    k->free(stream);
    return again;
}

/* Snapshots with a byte changed are refused, or can be used and freed. */
static void damage(const kernel *k, const void *stream, const records *r)
{
    size_t size;
    unsigned char *bytes = saved(k, stream, &size);
    double scores[20], raw[20];
    for (int i = 0; i < 60; i++) {
        size_t at = (size_t)(uniform() * (double)(i % 2 ? size : size < 600 ? size : 600));
        unsigned char kept = bytes[at];
        bytes[at] = (unsigned char)(uniform() * 256);
        void *found = k->load(bytes, size);
        if (found != NULL) {
            k->process(found, r->values, r->seconds, 20, STREAM_LEARN, scores, raw, NULL, NULL);
            k->free(found);
        }
        bytes[at] = kept;
    }
    free(bytes);
}

static void drive(const kernel *k, void *whole, void *broken, enum content content, int n_fields)
{
    static records r;
    static double scores[N], raw[N], strengths[N * MAX_FIELDS], expected[N * MAX_FIELDS];
    fill(&r, content, n_fields);
    CHECK(whole != NULL && broken != NULL);
    if (whole == NULL || broken == NULL)
        exit(1);
    CHECK(k->process(whole, r.values, r.seconds, N, STREAM_LEARN, scores, raw, strengths,
                     expected) == 0);
    for (int t = 0; t < N; t++) {
        const double *x = r.values + t * n_fields, *clock = r.seconds + t;
        double score, novelty;
        CHECK(scores[t] >= 0 && scores[t] <= 0.8 && raw[t] >= 0 && raw[t] <= 1);
        for (int f = 0; f < n_fields; f++)
            CHECK(strengths[t * n_fields + f] >= 0 && strengths[t * n_fields + f] <= 4);
        if (t % 45 == 3)
            broken = restored(k, broken);
        k->process(broken, x, clock, 1, STREAM_PEEK, &score, &novelty, NULL, NULL);
        CHECK(score == scores[t]);
        k->process(broken, x, clock, 1, STREAM_LEARN, &score, &novelty, NULL, NULL);
        CHECK(score == scores[t] && novelty == raw[t]);
        if (content == CONSTANT)
            CHECK(score < 0.5);
    }
    CHECK(k->process(whole, r.values, NULL, N, STREAM_FROZEN, scores, raw, NULL, NULL) == 0);
    damage(k, broken, &r);
    k->free(whole);
    k->free(broken);
}

static void test_tiles(void)
{
    for (enum content content = RANDOM; content < N_CONTENTS; content++)
        for (int n_fields = 1; n_fields <= MAX_FIELDS; n_fields += 2)
            for (int learning = 1; learning <= 400; learning += 133) {
                tile_options o = some_tiles(n_fields, learning);
                drive(&tiles_kernel, tiles_new(&o), tiles_new(&o), content, n_fields);
            }
    tile_options o = some_tiles(0, 100);
    CHECK(tiles_new(&o) == NULL);
    tiles_free(NULL);
}

static void test_htm(void)
{
    for (enum content content = RANDOM; content < N_CONTENTS; content++)
        for (int n_fields = 1; n_fields <= MAX_FIELDS; n_fields += 2)
            for (int range_mode = 0; range_mode <= 2; range_mode++) {
                htm_options o = some_htm(n_fields, n_fields == 1 ? 1 : 4, range_mode, content != CONSTANT);
                drive(&htm_kernel, htm_new(&o), htm_new(&o), content, n_fields);
            }
    htm_options o = some_htm(1, 4, 1, 1);
    htm *model = htm_new(&o);
    double values[HTM_CLASSES], shares[HTM_CLASSES];
    CHECK(model != NULL && isnan(htm_forecast(model, 0, 1, values, shares)));
    htm_free(model);
    o.columns = 100;
    CHECK(htm_new(&o) == NULL);
    htm_free(NULL);
}

int main(void)
{
    test_tiles();
    test_htm();
    printf("streams: %s\n", failures ? "failed" : "all claims hold");
    return failures != 0;
}
