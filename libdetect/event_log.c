#include "event_log.h"

#include <string.h>

typedef struct {
    const char *at, *end;
} cursor;

static void skip_space(cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\r'))
        c->at++;
}

static int take(cursor *c, char wanted)
{
    skip_space(c);
    if (c->at == c->end || *c->at != wanted)
        return 0;
    c->at++;
    return 1;
}

static int take_string(cursor *c, event_text *out)
{
    if (!take(c, '"'))
        return 0;
    const char *start = c->at;
    while (c->at < c->end && *c->at != '"') {
        unsigned char byte = (unsigned char)*c->at;
        if (byte < 0x20 || byte >= 0x7F || byte == '\\')
            return 0;
        c->at++;
    }
    *out = (event_text){start, (size_t)(c->at - start)};
    return take(c, '"');
}

static int is(event_text text, const char *word, size_t length)
{
    return text.length == length && memcmp(text.start, word, length) == 0;
}

#define IS(text, word) is(text, word, sizeof(word) - 1)

/* "12", "12.5", "12.345678"; at most twelve digits before the point. */
static int read_amount(event_text text, int64_t *amount)
{
    const char *at = text.start, *end = at + text.length;
    int64_t whole = 0, part = 0;
    int digits = 0, decimals = 0;
    for (; at < end && *at >= '0' && *at <= '9' && digits < 12; at++, digits++)
        whole = 10 * whole + (*at - '0');
    if (digits == 0)
        return 0;
    if (at < end && *at == '.') {
        at++;
        for (; at < end && *at >= '0' && *at <= '9' && decimals < 6; at++, decimals++)
            part = 10 * part + (*at - '0');
        if (decimals == 0)
            return 0;
    }
    for (; decimals < 6; decimals++)
        part *= 10;
    *amount = whole * 1000000 + part;
    return at == end;
}

static int number(const char *at, int digits)
{
    int value = 0;
    for (int i = 0; i < digits; i++) {
        if (at[i] < '0' || at[i] > '9')
            return -1;
        value = 10 * value + (at[i] - '0');
    }
    return value;
}

/* Days since 1970-01-01 in the Gregorian calendar, counting years from March. */
static int64_t day_number(int year, int month, int day)
{
    int64_t y = month <= 2 ? year - 1 : year;
    int64_t from_march = (month + 9) % 12;
    return 365 * y + y / 4 - y / 100 + y / 400 + (153 * from_march + 2) / 5 + day - 1 - 719468;
}

/* "YYYY-MM-DD HH:MM:SS" */
static int read_time(event_text text, int64_t *time)
{
    static const int lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const char *at = text.start;
    if (text.length != 19 || at[4] != '-' || at[7] != '-' || at[10] != ' ' || at[13] != ':' ||
        at[16] != ':')
        return 0;
    int year = number(at, 4), month = number(at + 5, 2), day = number(at + 8, 2);
    int hour = number(at + 11, 2), minute = number(at + 14, 2), second = number(at + 17, 2);
    if (year < 1 || month < 1 || month > 12 || day < 1 || hour < 0 || hour > 23 || minute < 0 ||
        minute > 59 || second < 0 || second > 59)
        return 0;
    int leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > lengths[month - 1] + (leap && month == 2))
        return 0;
    int64_t seconds = day_number(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
    *time = seconds * 1000000;
    return 1;
}

/* The fields of an event, in the order of the bits that say which were found. */
enum { F_TYPE, F_TIME, F_ID, F_AMOUNT, F_ID1, F_ID2, F_COUNT };

static int field_of(event_text key)
{
    switch (key.length) {
    case 2: return IS(key, "id") ? F_ID : -1;
    case 3: return IS(key, "id1") ? F_ID1 : IS(key, "id2") ? F_ID2 : -1;
    case 6: return IS(key, "amount") ? F_AMOUNT : -1;
    case 9: return IS(key, "timestamp") ? F_TIME : -1;
    case 10: return IS(key, "event_type") ? F_TYPE : -1;
    default: return -1;
    }
}

static int read_fields(cursor *c, event_text fields[F_COUNT], unsigned *found)
{
    *found = 0;
    do {
        event_text key, value;
        if (!take_string(c, &key) || !take(c, ':') || !take_string(c, &value))
            return 0;
        int field = field_of(key);
        if (field < 0)
            continue;
        if (*found & 1u << field)
            return 0;
        *found |= 1u << field;
        fields[field] = value;
    } while (take(c, ','));
    return 1;
}

static int to_event(const event_text fields[F_COUNT], unsigned found, event *out)
{
    unsigned pair = 1u << F_ID1 | 1u << F_ID2, both = 1u << F_TYPE | 1u << F_TIME;
    unsigned single = 1u << F_ID | 1u << F_AMOUNT;
    if ((found & both) != both || !read_time(fields[F_TIME], &out->time))
        return 0;
    if (IS(fields[F_TYPE], "purchase")) {
        out->kind = EVENT_PURCHASE;
        out->id[0] = fields[F_ID];
        return (found & single) == single && read_amount(fields[F_AMOUNT], &out->amount);
    }
    out->kind = IS(fields[F_TYPE], "befriend")   ? EVENT_BEFRIEND
                : IS(fields[F_TYPE], "unfriend") ? EVENT_UNFRIEND
                                                 : 0;
    out->id[0] = fields[F_ID1];
    out->id[1] = fields[F_ID2];
    return out->kind && (found & pair) == pair;
}

int event_parse(const char *line, size_t length, event *out)
{
    cursor c = {line, line + length};
    event_text fields[F_COUNT] = {{NULL, 0}};
    unsigned found;
    skip_space(&c);
    if (c.at == c.end)
        return EVENT_BLANK;
    if (!take(&c, '{') || !read_fields(&c, fields, &found) || !take(&c, '}'))
        return EVENT_OTHER;
    skip_space(&c);
    return c.at == c.end && to_event(fields, found, out) ? EVENT_PLAIN : EVENT_OTHER;
}

/* ---- into the network ---------------------------------------------------- */

static int buy(network *net, const event *e, int judge, network_verdict *verdict)
{
    int code = NETWORK_OK;
    int32_t user = network_find(net, e->id[0].start, e->id[0].length);
    if (judge)
        code = network_judge(net, user, e->amount, verdict);
    if (code == NETWORK_OK && user < 0)
        user = network_enter(net, e->id[0].start, e->id[0].length);
    if (code < 0 || user < 0)
        return code < 0 ? code : user;
    return network_buy(net, user, e->time, e->amount);
}

static int change_friends(network *net, const event *e)
{
    const event_text *one = &e->id[0], *other = &e->id[1];
    if (is(*one, other->start, other->length))
        return NETWORK_OK;
    if (e->kind == EVENT_UNFRIEND) {
        int32_t a = network_find(net, one->start, one->length);
        int32_t b = network_find(net, other->start, other->length);
        if (a >= 0 && b >= 0)
            network_unfriend(net, a, b);
        return NETWORK_OK;
    }
    int32_t a = network_enter(net, one->start, one->length);
    if (a < 0)
        return a;
    int32_t b = network_enter(net, other->start, other->length);
    return b < 0 ? b : network_befriend(net, a, b);
}

int event_take(network *net, const event *e, int judge, network_verdict *verdict)
{
    return e->kind == EVENT_PURCHASE ? buy(net, e, judge, verdict) : change_friends(net, e);
}

int event_log_feed(network *net, const char *text, size_t length, size_t *offset, int judge,
                   feed_result *result)
{
    memset(result, 0, sizeof *result);
    while (*offset < length) {
        const char *line = text + *offset;
        const char *end = memchr(line, '\n', length - *offset);
        if (!end)
            break;
        event e;
        int shape = event_parse(line, (size_t)(end - line), &e);
        int code = NETWORK_OK;
        if (shape == EVENT_PLAIN)
            code = event_take(net, &e, judge, &result->verdict);
        if (code < 0)
            return code;
        result->line_start = *offset;
        result->line_end = *offset = (size_t)(end - text) + 1;
        result->lines++;
        if (shape == EVENT_OTHER)
            return FEED_OTHER;
        if (shape == EVENT_BLANK)
            continue;
        result->events[e.kind]++;
        if (e.kind == EVENT_PURCHASE && result->verdict.flagged)
            return FEED_FLAGGED;
    }
    return FEED_END;
}
