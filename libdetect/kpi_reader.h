/* kpi_reader.h: one stream of tokens from JSON or UBJSON, without allocation. */
#ifndef KPI_READER_H
#define KPI_READER_H

#include <stddef.h>
#include <stdint.h>

#define READER_DEPTH 32

typedef enum {
    TOKEN_ERROR,
    TOKEN_END,
    TOKEN_OBJECT,
    TOKEN_OBJECT_END,
    TOKEN_ARRAY,
    TOKEN_ARRAY_END,
    TOKEN_KEY,
    TOKEN_STRING,
    TOKEN_NUMBER,
    TOKEN_OTHER /* null, true, false */
} token;

typedef struct {
    const uint8_t *p, *end;
    int binary, depth, started;
    struct {
        uint8_t object, after_key, type; /* type: of a typed UBJSON array, else 0 */
        uint8_t counted, first;
        int64_t left;
    } stack[READER_DEPTH];
    const char *text; /* of a key or string, escapes as they stand */
    size_t length;
    double number; /* of a number, true (1) or false (0) */
} reader;

void reader_open(reader *r, const uint8_t *bytes, size_t size, int binary);

/* The next token; after TOKEN_ERROR or TOKEN_END there is no other. */
token reader_next(reader *r);

/* Skips the value that `first` begins. Returns 0, or -1 for an error in it. */
int reader_skip(reader *r, token first);

#endif
