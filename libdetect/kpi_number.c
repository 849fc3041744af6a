/* Decimal text to double, without the locale that strtod obeys. */
#include "kpi.h"

static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static double scaled(double value, int exponent)
{
    for (; exponent > 22; exponent -= 22)
        value *= 1e22;
    for (; exponent < -22; exponent += 22)
        value /= 1e22;
    return exponent < 0 ? value / powers[-exponent] : value * powers[exponent];
}

/* Digits into mantissa; those past 18 only move the exponent. */
static const char *digits(const char *p, const char *end, uint64_t *mantissa, int *used,
                          int *dropped)
{
    for (; p < end && is_digit(*p); p++) {
        if (*mantissa < 100000000000000000u) {
            *mantissa = *mantissa * 10 + (uint64_t)(*p - '0');
            ++*used;
        } else if (*dropped < 100000) {
            ++*dropped;
        }
    }
    return p;
}

static const char *exponent_part(const char *p, const char *end, int *exponent)
{
    int negative = 0, value = 0;
    const char *first;
    if (p < end && (*p == '+' || *p == '-'))
        negative = *p++ == '-';
    first = p;
    for (; p < end && is_digit(*p); p++)
        if (value < 100000)
            value = value * 10 + (*p - '0');
    if (p == first)
        return NULL;
    *exponent += negative ? -value : value;
    return p;
}

const char *kpi_number(const char *text, const char *end, double *value)
{
    const char *p = text, *first, *point;
    uint64_t mantissa = 0;
    int negative = 0, used = 0, dropped = 0, exponent;
    if (p < end && (*p == '+' || *p == '-'))
        negative = *p++ == '-';
    first = p;
    p = digits(p, end, &mantissa, &used, &dropped);
    exponent = dropped;
    if (p < end && *p == '.') {
        point = ++p;
        used = 0;
        p = digits(p, end, &mantissa, &used, &dropped);
        exponent -= used;
        if (p == point && point == first + 1)
            return NULL;
    }
    if (p == first)
        return NULL;
    if (p < end && (*p == 'e' || *p == 'E') && (p = exponent_part(p + 1, end, &exponent)) == NULL)
        return NULL;
    if (exponent > 400)
        exponent = 400;
    if (exponent < -400)
        exponent = -400;
    *value = mantissa ? scaled((double)mantissa, exponent) : 0.0;
    if (negative)
        *value = -*value;
    return p;
}

static const char *skip_blanks(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
        p++;
    return p;
}

int64_t kpi_numbers(const char *text, size_t size, double *values, int64_t max)
{
    const char *p = text, *end = text + size;
    for (int64_t count = 0;;) {
        double value;
        p = kpi_number(skip_blanks(p, end), end, &value);
        if (p == NULL || !(value - value == 0))
            return -1;
        if (values != NULL && count < max)
            values[count] = value;
        count++;
        p = skip_blanks(p, end);
        if (p == end)
            return count;
        if (*p++ != ',')
            return -1;
    }
}
