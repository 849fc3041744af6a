/* The model container, and the score that trees and training-free parts make together. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, MAP_32BIT */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kpi.h"

#define HANDLE_MAGIC UINT64_C(0x6b70692d76616c31)
#define MAX_FILE (KPI_HEADER + KPI_MAX_PAYLOAD + KPI_DIGEST)

/* A zeroed handle, below 2 GB where the system can: callers that declare nothing, as the
 * original's ctypes example does, keep a handle in an int. */
static kpi_model *new_handle(void)
{
    kpi_model *m = NULL;
#ifdef MAP_32BIT
    void *low = mmap(NULL, sizeof *m, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
#else
    void *low = mmap((void *)0x20000000, sizeof *m, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANON, -1, 0);
#endif
    if (low != MAP_FAILED) {
        m = low;
        m->mapped = 1;
        return m;
    }
    return calloc(1, sizeof *m);
}

static void drop_handle(kpi_model *m)
{
    m->magic = 0;
    free(m->nodes);
    free(m->roots);
    if (m->mapped)
        munmap(m, sizeof *m);
    else
        free(m);
}

static uint32_t word(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static double real(const uint8_t *p)
{
    uint64_t bits = word(p) | (uint64_t)word(p + 4) << 32;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int sound_constants(const double *k)
{
    for (int i = 0; i < KPI_CONSTANTS; i++)
        if (!(fabs(k[i]) <= 1e30))
            return 0;
    return k[KPI_JOIN_SLOPE] > 0 && k[KPI_JOIN_WEIGHT] >= 0 && k[KPI_JOIN_WEIGHT] <= 1 &&
           k[KPI_JOIN_SCALE] > 0 && k[KPI_JOIN_STEEPNESS] > 0 && k[KPI_FREE_SCALE] > 0;
}

/* Reads the header; returns the payload's format, or -1 where the file is not sound. */
static int read_header(kpi_model *m, const uint8_t *bytes, size_t size)
{
    uint8_t digest[KPI_DIGEST];
    uint32_t payload, window, format;
    if (size < KPI_HEADER + KPI_DIGEST || size > MAX_FILE || memcmp(bytes, KPI_MAGIC, 8) != 0)
        return -1;
    window = word(bytes + 20);
    format = word(bytes + 24);
    payload = word(bytes + 28);
    if (payload != size - KPI_HEADER - KPI_DIGEST || format > 1)
        return -1;
    if (word(bytes + 8) != KPI_CONTAINER || word(bytes + 12) != KPI_FEATURE_SET ||
        word(bytes + 16) != KPI_FEATURES)
        return -1;
    if (window < DETECT_MIN_WINDOW || window > DETECT_MAX_WINDOW)
        return -1;
    kpi_sha256(bytes, size - KPI_DIGEST, digest);
    if (memcmp(digest, bytes + size - KPI_DIGEST, KPI_DIGEST) != 0)
        return -1;
    for (int i = 0; i < KPI_CONSTANTS; i++)
        m->constants[i] = real(bytes + 32 + 8 * i);
    m->info.container_version = KPI_CONTAINER;
    m->info.feature_set = KPI_FEATURE_SET;
    m->info.n_features = KPI_FEATURES;
    m->info.window = (int)window;
    m->info.threshold = DETECT_THRESHOLD;
    return sound_constants(m->constants) ? (int)format : -1;
}

void *load_model_memory(const void *bytes, size_t size)
{
    kpi_model *m = bytes != NULL ? new_handle() : NULL;
    if (m == NULL)
        return NULL;
    int format = read_header(m, bytes, size);
    const uint8_t *payload = (const uint8_t *)bytes + KPI_HEADER;
    if (format < 0 ||
        kpi_trees_read(m, payload, size - KPI_HEADER - KPI_DIGEST, format) != 0) {
        drop_handle(m);
        return NULL;
    }
    m->magic = HANDLE_MAGIC;
    return m;
}

void *load_model(const char *fname)
{
    FILE *file = fname != NULL ? fopen(fname, "rb") : NULL;
    uint8_t *bytes = NULL, *grown;
    size_t size = 0, room = 1 << 16, got = 1;
    void *handle = NULL;
    if (file == NULL)
        return NULL;
    while (got > 0 && size <= MAX_FILE) {
        room = bytes == NULL ? room : 2 * room;
        if ((grown = realloc(bytes, room)) == NULL)
            break;
        bytes = grown;
        got = fread(bytes + size, 1, room - size, file);
        size += got;
        while (got > 0 && size < room) {
            got = fread(bytes + size, 1, room - size, file);
            size += got;
        }
    }
    if (got == 0 && !ferror(file))
        handle = load_model_memory(bytes, size);
    fclose(file);
    free(bytes);
    return handle;
}

void free_model(void *handle)
{
    kpi_model *m = handle;
    if (m != NULL && m->magic == HANDLE_MAGIC)
        drop_handle(m);
}

int model_info(void *handle, ModelInfo *info)
{
    kpi_model *m = handle;
    if (m == NULL || info == NULL || m->magic != HANDLE_MAGIC)
        return DETECT_NULL;
    *info = m->info;
    return DETECT_OK;
}

double kpi_probability(double score, double steepness)
{
    double odds = (1 - DETECT_THRESHOLD) / DETECT_THRESHOLD * pow(score, steepness);
    return 1 / (1 + odds);
}

double kpi_join(const kpi_model *model, const kpi_result *result, double *prob)
{
    const double *k = model->constants;
    double alone = kpi_free_score(result->parts) / k[KPI_FREE_SCALE];
    double margin = (double)kpi_margin(model, result->features);
    double trees = k[KPI_JOIN_SLOPE] * (margin - k[KPI_JOIN_MARGIN]);
    double joined = (1 - k[KPI_JOIN_WEIGHT]) * log(alone > 1e-6 ? alone : 1e-6) +
                    k[KPI_JOIN_WEIGHT] * trees;
    double score = exp(joined) / k[KPI_JOIN_SCALE];
    *prob = kpi_probability(score, k[KPI_JOIN_STEEPNESS]);
    return score;
}
