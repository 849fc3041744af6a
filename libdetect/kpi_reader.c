/* JSON and UBJSON as far as XGBoost writes them. */
#include "kpi_reader.h"

#include <string.h>

#include "kpi.h"

void reader_open(reader *r, const uint8_t *bytes, size_t size, int binary)
{
    memset(r, 0, sizeof *r);
    r->p = bytes;
    r->end = bytes + size;
    r->binary = binary;
}

static token push(reader *r, int object)
{
    if (r->depth == READER_DEPTH)
        return TOKEN_ERROR;
    memset(&r->stack[r->depth], 0, sizeof r->stack[0]);
    r->stack[r->depth].object = (uint8_t)object;
    r->stack[r->depth].first = 1;
    r->depth++;
    return object ? TOKEN_OBJECT : TOKEN_ARRAY;
}

static token pop(reader *r)
{
    return r->stack[--r->depth].object ? TOKEN_OBJECT_END : TOKEN_ARRAY_END;
}

/* --- JSON --- */

static void skip_blanks(reader *r)
{
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\t' || *r->p == '\r'))
        r->p++;
}

static int eat(reader *r, uint8_t c)
{
    skip_blanks(r);
    if (r->p >= r->end || *r->p != c)
        return 0;
    r->p++;
    return 1;
}

static token json_string(reader *r, token kind)
{
    if (!eat(r, '"'))
        return TOKEN_ERROR;
    r->text = (const char *)r->p;
    for (; r->p < r->end && *r->p != '"'; r->p++)
        if (*r->p == '\\' && ++r->p == r->end)
            return TOKEN_ERROR;
    if (r->p >= r->end)
        return TOKEN_ERROR;
    r->length = (size_t)((const char *)r->p++ - r->text);
    return kind;
}

static int json_word(reader *r, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(r->end - r->p) < n || memcmp(r->p, word, n) != 0)
        return 0;
    r->p += n;
    return 1;
}

static token json_value(reader *r)
{
    const char *after;
    skip_blanks(r);
    if (r->p >= r->end)
        return TOKEN_ERROR;
    if (*r->p == '"')
        return json_string(r, TOKEN_STRING);
    if (*r->p == '{' || *r->p == '[')
        return push(r, *r->p++ == '{');
    r->number = *r->p == 't';
    if (json_word(r, "true") || json_word(r, "false") || json_word(r, "null"))
        return TOKEN_OTHER;
    after = kpi_number((const char *)r->p, (const char *)r->end, &r->number);
    if (after == NULL)
        return TOKEN_ERROR;
    r->p = (const uint8_t *)after;
    return TOKEN_NUMBER;
}

static token json_next(reader *r)
{
    int top = r->depth - 1;
    if (r->stack[top].after_key) {
        r->stack[top].after_key = 0;
        return eat(r, ':') ? json_value(r) : TOKEN_ERROR;
    }
    if (eat(r, r->stack[top].object ? '}' : ']'))
        return pop(r);
    if (!r->stack[top].first && !eat(r, ','))
        return TOKEN_ERROR;
    r->stack[top].first = 0;
    if (!r->stack[top].object)
        return json_value(r);
    r->stack[top].after_key = 1;
    return json_string(r, TOKEN_KEY);
}

/* --- UBJSON --- */

static int width(uint8_t type)
{
    switch (type) {
    case 'i': case 'U': case 'C': case 'B': return 1;
    case 'I': return 2;
    case 'l': case 'd': return 4;
    case 'L': case 'D': return 8;
    default: return 0;
    }
}

/* A number of the type at p, big-endian. */
static int ubj_number(reader *r, uint8_t type, double *value)
{
    int n = width(type);
    uint64_t bits = 0;
    float single;
    if (n == 0 || r->end - r->p < n)
        return -1;
    for (int i = 0; i < n; i++)
        bits = bits << 8 | *r->p++;
    if (type == 'd') {
        uint32_t low = (uint32_t)bits;
        memcpy(&single, &low, sizeof single);
        *value = single;
    } else if (type == 'D') {
        memcpy(value, &bits, sizeof *value);
    } else if (type == 'U' || type == 'C' || type == 'B') {
        *value = (double)bits;
    } else {
        uint64_t sign = (uint64_t)1 << (8 * n - 1);
        *value = (double)(int64_t)((bits ^ sign) - sign);
    }
    return 0;
}

/* A length: an integer with its type mark. Returns -1 if it cannot fit the bytes left. */
static int64_t ubj_length(reader *r)
{
    double value;
    uint8_t type;
    if (r->p >= r->end)
        return -1;
    type = *r->p++;
    if (type == 'd' || type == 'D' || type == 'C' || ubj_number(r, type, &value) != 0)
        return -1;
    return value >= 0 && value <= (double)(r->end - r->p) ? (int64_t)value : -1;
}

static token ubj_string(reader *r, token kind)
{
    int64_t n = ubj_length(r);
    if (n < 0)
        return TOKEN_ERROR;
    r->text = (const char *)r->p;
    r->length = (size_t)n;
    r->p += n;
    return kind;
}

static token ubj_array(reader *r)
{
    int top;
    if (push(r, 0) == TOKEN_ERROR)
        return TOKEN_ERROR;
    top = r->depth - 1;
    if (r->p < r->end && *r->p == '$') {
        if (r->end - r->p < 3 || width(r->p[1]) == 0 || r->p[2] != '#')
            return TOKEN_ERROR;
        r->stack[top].type = r->p[1];
        r->p += 2;
    }
    if (r->p < r->end && *r->p == '#') {
        r->p++;
        r->stack[top].counted = 1;
        if ((r->stack[top].left = ubj_length(r)) < 0)
            return TOKEN_ERROR;
    }
    return TOKEN_ARRAY;
}

static token ubj_value(reader *r, uint8_t type)
{
    switch (type) {
    case '{':
        if (r->p < r->end && (*r->p == '$' || *r->p == '#'))
            return TOKEN_ERROR; /* counted objects: XGBoost writes none */
        return push(r, 1);
    case '[': return ubj_array(r);
    case 'S': return ubj_string(r, TOKEN_STRING);
    case 'Z': case 'T': case 'F':
        r->number = type == 'T';
        return TOKEN_OTHER;
    default: return ubj_number(r, type, &r->number) == 0 ? TOKEN_NUMBER : TOKEN_ERROR;
    }
}

static token ubj_next(reader *r)
{
    int top = r->depth - 1;
    if (r->stack[top].counted && r->stack[top].left-- == 0)
        return pop(r);
    if (r->stack[top].type)
        return ubj_value(r, r->stack[top].type);
    if (r->p >= r->end)
        return TOKEN_ERROR;
    if (r->stack[top].after_key || !r->stack[top].object) {
        r->stack[top].after_key = 0;
        if (!r->stack[top].object && !r->stack[top].counted && *r->p == ']') {
            r->p++;
            return pop(r);
        }
        return ubj_value(r, *r->p++);
    }
    if (*r->p == '}') {
        r->p++;
        return pop(r);
    }
    r->stack[top].after_key = 1;
    return ubj_string(r, TOKEN_KEY);
}

/* --- either --- */

token reader_next(reader *r)
{
    if (r->depth > 0)
        return r->binary ? ubj_next(r) : json_next(r);
    if (!r->started) {
        r->started = 1;
        if (!r->binary)
            return json_value(r);
        return r->p < r->end ? ubj_value(r, *r->p++) : TOKEN_ERROR;
    }
    if (!r->binary)
        skip_blanks(r);
    return r->p == r->end ? TOKEN_END : TOKEN_ERROR;
}

int reader_skip(reader *r, token first)
{
    int depth = r->depth - 1;
    if (first != TOKEN_OBJECT && first != TOKEN_ARRAY)
        return first == TOKEN_ERROR ? -1 : 0;
    while (r->depth > depth)
        if (reader_next(r) == TOKEN_ERROR)
            return -1;
    return 0;
}
