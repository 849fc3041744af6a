/* kpi.h: what the files of the KPI area share; not for users of the library. */
#ifndef KPI_H
#define KPI_H

#include <stddef.h>
#include <stdint.h>

#include "detect.h"

/* Loops worth a version for wider registers, chosen when the library is loaded. The
 * results do not depend on the choice: lanes never share a sum. */
#if defined(__GLIBC__) && defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
#define KPI_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define KPI_WIDE
#endif

#define KPI_FEATURE_SET 1
#define KPI_FEATURES 72
#define KPI_PARTS 4

/* The order of the training-free parts. */
enum { KPI_STEP, KPI_SEASONAL, KPI_LEVEL, KPI_GLOBAL };

typedef struct {
    double parts[KPI_PARTS];       /* each scaled: 1 is about a 1 % false-alarm rate */
    double features[KPI_FEATURES]; /* what the trees see; NaN where unknown */
    double expected;               /* best guess of the tested point */
    double spread;                 /* residual that gives a step, seasonal or level part of 1 */
} kpi_result;

/* Number of doubles of scratch that kpi_measure needs at a window. */
size_t kpi_scratch(int window);

/* Measures one window of real numbers (c and b of 2 * window + 1, a of window + 1).
 * Returns 0 or DETECT_SERIES; scratch holds kpi_scratch(window) doubles. */
int kpi_measure(const double *c, const double *b, const double *a, int window, double *scratch,
                kpi_result *result);

/* Largest of the training-free parts. */
double kpi_free_score(const double *parts);

/* Quantile of n > 0 values, linear between neighbours; reorders the values. */
double kpi_quantile(double *values, int n, double q);

/* --- trees and model files --- */

typedef struct {
    float split;    /* go left below; the leaf's weight where left is 0 */
    int32_t left;   /* right is left + 1; 0 marks a leaf */
    uint16_t feature;
    uint16_t default_left;
} kpi_node;

enum {
    KPI_JOIN_MARGIN,    /* margin of the trees at a 1 % false-alarm rate */
    KPI_JOIN_SLOPE,     /* log score per unit of margin */
    KPI_JOIN_WEIGHT,    /* share of the trees in the joined log score, 0 ... 1 */
    KPI_JOIN_SCALE,     /* joined score at a 1 % false-alarm rate */
    KPI_JOIN_STEEPNESS, /* of the odds of an anomaly in the joined score */
    KPI_FREE_SCALE,     /* training-free score at a 1 % false-alarm rate */
    KPI_CONSTANTS = 16
};

typedef struct {
    uint64_t magic;
    ModelInfo info;
    double constants[KPI_CONSTANTS];
    float base_margin;
    int mapped;     /* by mmap, not malloc */
    int32_t *roots; /* n_trees */
    kpi_node *nodes;
} kpi_model;

/* The model file, numbers little-endian: 8 bytes of magic, then as uint32 the container
 * version, feature set, number of features, window, payload format (0 JSON, 1 UBJSON) and
 * payload size, then KPI_CONSTANTS doubles, the payload as XGBoost wrote it, and the
 * SHA-256 of everything before. */
#define KPI_MAGIC "KPIVALUE"
#define KPI_CONTAINER 1
#define KPI_HEADER (8 + 6 * 4 + 8 * KPI_CONSTANTS)
#define KPI_DIGEST 32
#define KPI_MAX_PAYLOAD (16 << 20)

/* Fills nodes and roots from XGBoost's own model bytes ('{' of JSON or UBJSON; format 0
 * or 1). Returns 0, or -1 and leaves nothing allocated. */
int kpi_trees_read(kpi_model *model, const uint8_t *bytes, size_t size, int format);

/* Margin (log odds of an anomaly) that the trees give KPI_FEATURES features. */
float kpi_margin(const kpi_model *model, const double *features);

/* Joined score (1 is about a 1 % false-alarm rate) and the probability of normal. */
double kpi_join(const kpi_model *model, const kpi_result *result, double *prob);

/* Probability of normal of a score whose threshold is 1. */
double kpi_probability(double score, double steepness);

/* One value per row in each, or NULL; written where the row's code is 0. */
typedef struct {
    double *scores, *normal; /* joined score, probability of normal */
    float *probs;
    int *results, *codes;
} kpi_outputs;

/* What value_predict_batch does, with every output. */
int kpi_test_rows(const kpi_model *model, const double *rows, int64_t n_rows, int window,
                  const kpi_outputs *out, int n_threads);

void kpi_sha256(const void *bytes, size_t size, uint8_t digest[32]);

/* --- numbers in text --- */

/* Reads one decimal number that starts at text; returns the character after it, or NULL.
 * Up to 15 digits and exponents to 22 are rounded correctly, others within 1 ulp. */
const char *kpi_number(const char *text, const char *end, double *value);

/* Reads comma-joined numbers into values (at most max of them, NULL to count only).
 * Returns how many there are, or -1 when one is not a finite decimal number. */
int64_t kpi_numbers(const char *text, size_t size, double *values, int64_t max);

#endif
