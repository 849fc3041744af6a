/* Purchases over a social network: users, friendships, the last T purchases of
 * each user, and the question whether a purchase is out of line with what the
 * buyer's circle spends.
 *
 * The circle of a user is everybody at distance 1..degree, without the user.
 * The window is the newest `window` purchases of the circle. With N amounts in
 * it, S1 = sum x and Q = N * sum x^2 - S1^2, an amount x is flagged when N >= 2,
 * d = N * x - S1 > 0 and (d * down)^2 > up^2 * Q, where up/down is the number of
 * standard deviations. All of it is integer arithmetic: 128 bits where that is
 * proven to hold the numbers, 256 bits otherwise, so nothing overflows within
 * the limits below.
 *
 * Order: by time, then by arrival. A network belongs to one thread at a time;
 * judging writes its scratch marks, and so it takes a non-const pointer.
 * Functions that can fail return NETWORK_OK or a negative code and leave the
 * network as it was. */
#ifndef LIBDETECT_NETWORK_H
#define LIBDETECT_NETWORK_H

#include <stddef.h>
#include <stdint.h>

#define NETWORK_OK 0
#define NETWORK_NO_MEMORY (-1)
#define NETWORK_DAMAGED (-2) /* a saved state that cannot be one */
#define NETWORK_FULL (-3)    /* more than NETWORK_MAX_USERS users */

#define NETWORK_MAX_USERS INT32_MAX
/* Largest amount: a million million units of money in millionths. */
#define NETWORK_MAX_AMOUNT INT64_C(1000000000000000000)
/* Largest up and down of a sigma given as the fraction up / down. */
#define NETWORK_MAX_SIGMA INT32_MAX

typedef struct network network;

typedef struct {
    int64_t time;    /* any unit */
    int64_t arrival; /* 0, 1, 2, ... in order of arrival */
    int64_t amount;  /* 0 .. NETWORK_MAX_AMOUNT */
    int32_t user;
} network_purchase;

/* An unsigned 256-bit integer, least significant limb first. */
typedef struct {
    uint64_t limb[4];
} network_wide;

typedef struct {
    int32_t count;       /* N */
    int32_t flagged;     /* 1 or 0 */
    double score;        /* standard deviations above the mean; 0 when N < 2;
                            +-infinity off a window without spread */
    network_wide sum;    /* S1 */
    network_wide spread; /* Q */
} network_verdict;

/* degree >= 1, window >= 2, 0 <= sigma_up <= NETWORK_MAX_SIGMA and
 * 1 <= sigma_down <= NETWORK_MAX_SIGMA. NULL without memory. */
network *network_create(int32_t degree, int32_t window, int32_t sigma_up, int32_t sigma_down);
void network_free(network *net);

int32_t network_degree(const network *net);
int32_t network_window(const network *net);
int32_t network_users(const network *net);
int64_t network_live(const network *net); /* purchases that can still count */
int64_t network_friendships(const network *net);

/* The number of a user, or -1 if the id was never seen. */
int32_t network_find(const network *net, const char *id, size_t length);
/* The number of a user, who is entered if new; or NETWORK_NO_MEMORY, NETWORK_FULL. */
int32_t network_enter(network *net, const char *id, size_t length);
/* Id of a user: bytes owned by the network, valid until the next network_enter. */
const char *network_id(const network *net, int32_t user, size_t *length);

/* Repeated friendships, self-loops and unfriending strangers change nothing. */
int network_befriend(network *net, int32_t one, int32_t other);
void network_unfriend(network *net, int32_t one, int32_t other);
int network_buy(network *net, int32_t user, int64_t time, int64_t amount);

/* Judges an amount against the circle of a user; -1 is a user without friends. */
int network_judge(network *net, int32_t user, int64_t amount, network_verdict *verdict);
/* The purchases counted by the last network_judge, in no order. Owned by the
 * network, valid until its next change. */
const network_purchase *network_window_purchases(const network *net, int32_t *count);
/* Number of users in the circle. */
int32_t network_circle(network *net, int32_t user);

/* Saves into memory that the caller frees; *length bytes. NULL without memory. */
unsigned char *network_save(const network *net, size_t *length);
/* The inverse; *net is NULL unless NETWORK_OK is returned. */
int network_load(const unsigned char *bytes, size_t length, network **net);

#endif
