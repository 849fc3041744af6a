/* Reads event logs of a purchase network: one JSON object a line. Only the plain
 * shape is read here: a flat object of string values, printable ASCII without
 * escapes, no repeated key, and a well-formed event. Every other line is left
 * to the caller, who has a whole JSON reader and the time to say what is wrong. */
#ifndef LIBDETECT_EVENT_LOG_H
#define LIBDETECT_EVENT_LOG_H

#include "network.h"

typedef struct {
    const char *start;
    size_t length;
} event_text;

enum { EVENT_PURCHASE = 1, EVENT_BEFRIEND, EVENT_UNFRIEND };

typedef struct {
    int kind;
    int64_t time;      /* microseconds since 1970-01-01 00:00:00 */
    int64_t amount;    /* millionths */
    event_text id[2];  /* the buyer, or the two friends */
} event;

#define EVENT_BLANK 0
#define EVENT_PLAIN 1
#define EVENT_OTHER 2 /* for the caller's JSON reader */

/* Reads one line without its newline. */
int event_parse(const char *line, size_t length, event *out);

/* Takes an event into the network. With `judge`, a purchase is judged first and
 * *verdict written; without, verdict may be NULL. NETWORK_OK or a negative code. */
int event_take(network *net, const event *e, int judge, network_verdict *verdict);

enum { FEED_END, FEED_OTHER, FEED_FLAGGED };

typedef struct {
    size_t line_start, line_end; /* the line that stopped the feed; line_end is
                                    after its newline */
    int64_t lines;               /* lines taken, the stopping one included */
    int64_t events[4];           /* events taken, by kind */
    network_verdict verdict;     /* of a flagged purchase */
} feed_result;

/* Takes the whole lines of text from *offset on, moving *offset, until the text
 * ends (FEED_END; a last line without a newline is left), a line is not plain
 * (FEED_OTHER; not taken into the network) or, when `judge`, a purchase is
 * flagged (FEED_FLAGGED; it is in the network). Negative: a NETWORK_ code. */
int event_log_feed(network *net, const char *text, size_t length, size_t *offset, int judge,
                   feed_result *result);

#endif
