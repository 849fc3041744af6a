/* Mutates a model file and loads it: every outcome but load or refuse is a failure,
 * which the sanitizers turn into an abort. Most mutants get a right checksum, or
 * none would reach the reader of the trees. Loaded mutants are used once.
 *
 *   build/fuzz_sanitized MODEL COUNT [SEED] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kpi.h"

#define W 20

static uint64_t state;

static uint32_t draw(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 16) % below);
}

static void change_bytes(uint8_t *bytes, size_t first, size_t size)
{
    static const char marks[] = "{}[]$#lLdDUiSZTF,:\"0123456789.-eE\\";
    for (uint32_t n = 1 + draw(6); n > 0; n--) {
        size_t at = first + draw((uint32_t)(size - first));
        switch (draw(4)) {
        case 0: bytes[at] ^= (uint8_t)(1u << draw(8)); break;
        case 1: bytes[at] = (uint8_t)draw(256); break;
        case 2: bytes[at] = (uint8_t)marks[draw(sizeof marks - 1)]; break;
        default: memset(bytes + at, (int)draw(256), size - at < 8 ? size - at : 8);
        }
    }
}

/* Takes out or doubles a stretch; returns the new size (the room is twice the size). */
static size_t move_bytes(uint8_t *bytes, size_t first, size_t size)
{
    size_t at = first + draw((uint32_t)(size - first)), span = 1 + draw(200);
    span = span < size - at ? span : size - at;
    if (draw(2)) {
        memmove(bytes + at, bytes + at + span, size - at - span);
        return size - span;
    }
    memmove(bytes + at + span, bytes + at, size - at);
    return size + span;
}

/* One mutant of the file's first `size` bytes; sealed with a right size and checksum. */
static size_t mutate(uint8_t *bytes, size_t size)
{
    size_t body = size - KPI_DIGEST, first = draw(20) ? KPI_HEADER : 0;
    /* Half the changes fall near the start, where the structure is. */
    size_t end = draw(2) && body > KPI_HEADER + 4000 ? KPI_HEADER + 4000 : body;
    change_bytes(bytes, first, end);
    if (draw(4) == 0)
        body = move_bytes(bytes, first < KPI_HEADER ? KPI_HEADER : first, body);
    if (draw(10) == 0)
        body = KPI_HEADER + draw((uint32_t)(body - KPI_HEADER));
    if (first != 0)
        for (int i = 0; i < 4; i++)
            bytes[28 + i] = (uint8_t)((body - KPI_HEADER) >> 8 * i);
    if (draw(50))
        kpi_sha256(bytes, body, bytes + body);
    return body + KPI_DIGEST;
}

static void use(void *model)
{
    double row[5 * W + 3];
    int result;
    float prob;
    for (int i = 0; i < 5 * W + 3; i++)
        row[i] = (double)draw(100);
    value_predict_batch(model, row, 1, W, &result, &prob, NULL, 1);
}

int main(int argc, char **argv)
{
    FILE *file = argc >= 3 ? fopen(argv[1], "rb") : NULL;
    long count = argc >= 3 ? atol(argv[2]) : 0, loaded = 0;
    state = argc > 3 ? (uint64_t)atoll(argv[3]) : 88172645463325252u;
    if (file == NULL) {
        printf("usage: fuzz MODEL COUNT [SEED]\n");
        return 2;
    }
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    uint8_t *original = malloc(size), *bytes = malloc(2 * size + 4096);
    if (fread(original, 1, size, file) != size)
        return 2;
    fclose(file);
    for (long i = 0; i < count; i++) {
        memcpy(bytes, original, size);
        size_t mutant = mutate(bytes, size);
        /* An exact block, so that reading past it is seen. */
        uint8_t *exact = malloc(mutant);
        memcpy(exact, bytes, mutant);
        void *model = load_model_memory(exact, mutant);
        free(exact);
        if (model != NULL) {
            loaded++;
            use(model);
            free_model(model);
        }
    }
    printf("%ld mutants: %ld loaded, %ld refused\n", count, loaded, count - loaded);
    free(original);
    free(bytes);
    return 0;
}
