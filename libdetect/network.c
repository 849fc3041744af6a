#include "network.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

__extension__ typedef unsigned __int128 u128;

/* ---- data ---------------------------------------------------------------- */

#define BLOCK 256 /* purchases in a block of the time-ordered list */
#define BEFORE_ALL INT64_MIN

typedef struct {
    int32_t *list;
    int32_t count, room;
} friends;

/* The newest purchases of one user, oldest first, in a ring that grows to T. */
typedef struct {
    network_purchase *items;
    int32_t start, count, room;
} ring;

typedef struct {
    int64_t time, arrival;
} moment;

typedef struct {
    int32_t count;
    network_purchase items[BLOCK];
} block;

/* What a walk knows of a user, in steps beyond the radius of the marked ball: at
 * most `within`, more than `beyond`. */
typedef struct {
    uint32_t search;
    uint8_t within, beyond;
} knowledge;

struct network {
    int32_t degree, window, up, down;

    int32_t n_users, users_room;
    friends *friends;
    ring *rings;
    moment *newest; /* last purchase of each user; arrival -1 without one */

    char *names;
    size_t names_length, names_room;
    size_t *name_ends;
    int32_t *table; /* open addressing; -1 is free */
    uint32_t *hashes;
    uint32_t table_mask;

    block **blocks; /* every live purchase, and some dead ones, by time */
    int64_t n_blocks, blocks_room;
    int64_t listed, live, arrivals;
    int64_t half_edges; /* sum of degrees */
    double degree_squares;

    /* scratch of a query */
    uint8_t *marks; /* 1 + distance from the buyer, MAX_MARK at most; 0 is unmarked */
    int32_t *ball;  /* the marked users by distance: complete up to the radius, */
    int32_t radius, inner, ball_size; /* ball[0..inner), and part of the next level */
    int32_t opened, place; /* whose friends were marked, and so many of the next one's */
    int64_t degrees, frontier; /* sums over ball[0..inner) and over its last level */
    uint32_t search;
    knowledge *known;
    moment *moments;
    int64_t cost, budget;
    network_purchase *picked;
    int32_t n_picked, picked_room;
};

static int earlier(int64_t time, int64_t arrival, int64_t than_time, int64_t than_arrival)
{
    return time < than_time || (time == than_time && arrival < than_arrival);
}

static int grow(void **array, size_t item, size_t room)
{
    void *grown = realloc(*array, item * room);
    if (!grown)
        return NETWORK_NO_MEMORY;
    *array = grown;
    return NETWORK_OK;
}

/* ---- 256-bit integers ---------------------------------------------------- */

static network_wide wide_from(u128 value)
{
    return (network_wide){{(uint64_t)value, (uint64_t)(value >> 64), 0, 0}};
}

static network_wide wide_product(u128 a, u128 b)
{
    uint64_t left[2] = {(uint64_t)a, (uint64_t)(a >> 64)};
    uint64_t right[2] = {(uint64_t)b, (uint64_t)(b >> 64)};
    network_wide out = {{0, 0, 0, 0}};
    for (int i = 0; i < 2; i++) {
        uint64_t carry = 0;
        for (int j = 0; j < 2; j++) {
            u128 sum = (u128)left[i] * right[j] + out.limb[i + j] + carry;
            out.limb[i + j] = (uint64_t)sum;
            carry = (uint64_t)(sum >> 64);
        }
        out.limb[i + 2] = carry;
    }
    return out;
}

static network_wide wide_times(network_wide a, uint64_t factor)
{
    u128 carry = 0;
    for (int i = 0; i < 4; i++) {
        carry += (u128)a.limb[i] * factor;
        a.limb[i] = (uint64_t)carry;
        carry >>= 64;
    }
    return a;
}

static network_wide wide_sum(network_wide a, network_wide b)
{
    u128 carry = 0;
    for (int i = 0; i < 4; i++) {
        carry += (u128)a.limb[i] + b.limb[i];
        a.limb[i] = (uint64_t)carry;
        carry >>= 64;
    }
    return a;
}

/* a - b for a >= b */
static network_wide wide_less(network_wide a, network_wide b)
{
    uint64_t borrow = 0;
    for (int i = 0; i < 4; i++) {
        u128 part = (u128)a.limb[i] - b.limb[i] - borrow;
        a.limb[i] = (uint64_t)part;
        borrow = (uint64_t)(part >> 64) & 1;
    }
    return a;
}

static int wide_exceeds(network_wide a, network_wide b)
{
    for (int i = 3; i >= 0; i--)
        if (a.limb[i] != b.limb[i])
            return a.limb[i] > b.limb[i];
    return 0;
}

static double wide_double(network_wide a)
{
    double value = 0.0;
    for (int i = 3; i >= 0; i--)
        value = value * 18446744073709551616.0 + (double)a.limb[i];
    return value;
}

/* ---- life ---------------------------------------------------------------- */

#define FIRST_USERS 64
#define FIRST_TABLE 256

network *network_create(int32_t degree, int32_t window, int32_t sigma_up, int32_t sigma_down)
{
    network *net = calloc(1, sizeof *net);
    if (!net)
        return NULL;
    net->degree = degree;
    net->window = window;
    net->up = sigma_up;
    net->down = sigma_down;
    net->table_mask = FIRST_TABLE - 1;
    net->table = malloc(FIRST_TABLE * sizeof *net->table);
    net->hashes = malloc(FIRST_TABLE * sizeof *net->hashes);
    if (!net->table || !net->hashes) {
        network_free(net);
        return NULL;
    }
    memset(net->table, -1, FIRST_TABLE * sizeof *net->table);
    return net;
}

void network_free(network *net)
{
    if (!net)
        return;
    for (int32_t user = 0; user < net->n_users; user++) {
        free(net->friends[user].list);
        free(net->rings[user].items);
    }
    for (int64_t i = 0; i < net->n_blocks; i++)
        free(net->blocks[i]);
    void *arrays[] = {net->friends, net->rings,  net->newest, net->names, net->name_ends,
                      net->table,   net->hashes, net->blocks, net->marks, net->known,
                      net->ball,    net->picked, net->moments, net};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
}

int32_t network_degree(const network *net) { return net->degree; }
int32_t network_window(const network *net) { return net->window; }
int32_t network_users(const network *net) { return net->n_users; }
int64_t network_live(const network *net) { return net->live; }
int64_t network_friendships(const network *net) { return net->half_edges / 2; }

/* ---- users --------------------------------------------------------------- */

static uint32_t hash_of(const char *id, size_t length)
{
    uint64_t hash = UINT64_C(0x9E3779B97F4A7C15) ^ length;
    while (length >= 8) {
        uint64_t word;
        memcpy(&word, id, 8);
        hash = (hash ^ word) * UINT64_C(0xD6E8FEB86659FD93);
        hash ^= hash >> 32;
        id += 8;
        length -= 8;
    }
    uint64_t word = 0;
    if (length)
        memcpy(&word, id, length);
    hash = (hash ^ word) * UINT64_C(0xD6E8FEB86659FD93);
    hash ^= hash >> 32;
    hash *= UINT64_C(0xD6E8FEB86659FD93);
    return (uint32_t)(hash >> 32);
}

const char *network_id(const network *net, int32_t user, size_t *length)
{
    size_t start = user ? net->name_ends[user - 1] : 0;
    *length = net->name_ends[user] - start;
    return net->names + start;
}

/* The slot of the id, or the free one where it belongs. */
static uint32_t slot_of(const network *net, const char *id, size_t length, uint32_t hash)
{
    uint32_t slot = hash & net->table_mask;
    for (; net->table[slot] >= 0; slot = (slot + 1) & net->table_mask) {
        if (net->hashes[slot] != hash)
            continue;
        size_t found;
        const char *name = network_id(net, net->table[slot], &found);
        if (found == length && memcmp(name, id, length) == 0)
            break;
    }
    return slot;
}

int32_t network_find(const network *net, const char *id, size_t length)
{
    return net->table[slot_of(net, id, length, hash_of(id, length))];
}

static int grow_users(network *net)
{
    size_t room = net->users_room ? 2 * (size_t)net->users_room : FIRST_USERS;
    if (room > NETWORK_MAX_USERS)
        room = NETWORK_MAX_USERS;
    if (grow((void **)&net->friends, sizeof *net->friends, room) < 0 ||
        grow((void **)&net->rings, sizeof *net->rings, room) < 0 ||
        grow((void **)&net->newest, sizeof *net->newest, room) < 0 ||
        grow((void **)&net->name_ends, sizeof *net->name_ends, room) < 0 ||
        grow((void **)&net->marks, sizeof *net->marks, room) < 0 ||
        grow((void **)&net->known, sizeof *net->known, room) < 0 ||
        grow((void **)&net->moments, sizeof *net->moments, room) < 0 ||
        grow((void **)&net->ball, sizeof *net->ball, room + 1) < 0)
        return NETWORK_NO_MEMORY;
    net->users_room = (int32_t)room;
    return NETWORK_OK;
}

static int grow_table(network *net)
{
    size_t size = 2 * ((size_t)net->table_mask + 1);
    int32_t *table = malloc(size * sizeof *table);
    uint32_t *hashes = malloc(size * sizeof *hashes);
    if (!table || !hashes || size > UINT32_MAX) {
        free(table);
        free(hashes);
        return NETWORK_NO_MEMORY;
    }
    memset(table, -1, size * sizeof *table);
    for (size_t old = 0; old <= net->table_mask; old++) {
        if (net->table[old] < 0)
            continue;
        size_t slot = net->hashes[old] & (size - 1);
        while (table[slot] >= 0)
            slot = (slot + 1) & (size - 1);
        table[slot] = net->table[old];
        hashes[slot] = net->hashes[old];
    }
    free(net->table);
    free(net->hashes);
    net->table = table;
    net->hashes = hashes;
    net->table_mask = (uint32_t)(size - 1);
    return NETWORK_OK;
}

int32_t network_enter(network *net, const char *id, size_t length)
{
    uint32_t hash = hash_of(id, length);
    uint32_t slot = slot_of(net, id, length, hash);
    if (net->table[slot] >= 0)
        return net->table[slot];
    if (net->n_users == NETWORK_MAX_USERS)
        return NETWORK_FULL;
    if (net->n_users == net->users_room && grow_users(net) < 0)
        return NETWORK_NO_MEMORY;
    if ((uint32_t)net->n_users >= net->table_mask / 2) {
        if (grow_table(net) < 0)
            return NETWORK_NO_MEMORY;
        slot = slot_of(net, id, length, hash);
    }
    if (net->names_length + length > net->names_room) {
        size_t room = 2 * (net->names_length + length) + 1024;
        if (grow((void **)&net->names, 1, room) < 0)
            return NETWORK_NO_MEMORY;
        net->names_room = room;
    }
    int32_t user = net->n_users++;
    if (length)
        memcpy(net->names + net->names_length, id, length);
    net->names_length += length;
    net->name_ends[user] = net->names_length;
    net->friends[user] = (friends){NULL, 0, 0};
    net->rings[user] = (ring){NULL, 0, 0, 0};
    net->newest[user] = (moment){BEFORE_ALL, -1};
    net->marks[user] = 0;
    net->known[user] = (knowledge){0, 0, 0};
    net->table[slot] = user;
    net->hashes[slot] = hash;
    return user;
}

/* ---- friendships --------------------------------------------------------- */

static int32_t position(const friends *of, int32_t user)
{
    for (int32_t i = 0; i < of->count; i++)
        if (of->list[i] == user)
            return i;
    return -1;
}

static int are_friends(const network *net, int32_t one, int32_t other)
{
    const friends *a = &net->friends[one], *b = &net->friends[other];
    return a->count <= b->count ? position(a, other) >= 0 : position(b, one) >= 0;
}

static int make_room(friends *of)
{
    if (of->count < of->room)
        return NETWORK_OK;
    int32_t room = of->room < 4 ? 4 : of->room < INT32_MAX / 2 ? 2 * of->room : INT32_MAX;
    if (grow((void **)&of->list, sizeof *of->list, (size_t)room) < 0)
        return NETWORK_NO_MEMORY;
    of->room = room;
    return NETWORK_OK;
}

/* Keeps the sums of degrees that the planner of a query reads. */
static void change_degree(network *net, friends *of, int32_t change)
{
    net->degree_squares -= (double)of->count * of->count;
    of->count += change;
    net->degree_squares += (double)of->count * of->count;
    net->half_edges += change;
}

int network_befriend(network *net, int32_t one, int32_t other)
{
    if (one == other || are_friends(net, one, other))
        return NETWORK_OK;
    friends *a = &net->friends[one], *b = &net->friends[other];
    if (make_room(a) < 0 || make_room(b) < 0)
        return NETWORK_NO_MEMORY;
    a->list[a->count] = other;
    b->list[b->count] = one;
    change_degree(net, a, 1);
    change_degree(net, b, 1);
    return NETWORK_OK;
}

static void forget(network *net, int32_t one, int32_t other)
{
    friends *of = &net->friends[one];
    int32_t at = position(of, other);
    if (at < 0)
        return;
    of->list[at] = of->list[of->count - 1];
    change_degree(net, of, -1);
}

void network_unfriend(network *net, int32_t one, int32_t other)
{
    if (one == other || !are_friends(net, one, other))
        return;
    forget(net, one, other);
    forget(net, other, one);
}

/* ---- purchases ----------------------------------------------------------- */

static network_purchase *ring_at(const ring *of, int32_t i)
{
    int64_t at = (int64_t)of->start + i;
    return &of->items[at < of->room ? at : at - of->room];
}

static int grow_ring(ring *of, int32_t window)
{
    int32_t room = of->room < 4 ? 4 : of->room < INT32_MAX / 2 ? 2 * of->room : INT32_MAX;
    if (room > window)
        room = window;
    network_purchase *items = malloc((size_t)room * sizeof *items);
    if (!items)
        return NETWORK_NO_MEMORY;
    for (int32_t i = 0; i < of->count; i++)
        items[i] = *ring_at(of, i);
    free(of->items);
    *of = (ring){items, 0, of->count, room};
    return NETWORK_OK;
}

/* A new purchase has the highest arrival, so it follows all of its own time. */
static void ring_insert(ring *of, const network_purchase *bought)
{
    int32_t at = of->count++;
    for (; at > 0 && ring_at(of, at - 1)->time > bought->time; at--)
        *ring_at(of, at) = *ring_at(of, at - 1);
    *ring_at(of, at) = *bought;
}

/* First block whose last purchase is later than `time`; n_blocks if none. */
static int64_t block_after(const network *net, int64_t time)
{
    int64_t low = 0, high = net->n_blocks;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        const block *b = net->blocks[middle];
        if (b->items[b->count - 1].time > time)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Makes room for one more block at `at`; the block itself is left to the caller. */
static block *new_block(network *net, int64_t at)
{
    if (net->n_blocks == net->blocks_room) {
        int64_t room = net->blocks_room ? 2 * net->blocks_room : 16;
        if (grow((void **)&net->blocks, sizeof *net->blocks, (size_t)room) < 0)
            return NULL;
        net->blocks_room = room;
    }
    block *fresh = malloc(sizeof *fresh);
    if (!fresh)
        return NULL;
    fresh->count = 0;
    memmove(net->blocks + at + 1, net->blocks + at,
            (size_t)(net->n_blocks - at) * sizeof *net->blocks);
    net->blocks[at] = fresh;
    net->n_blocks++;
    return fresh;
}

static int list_append(network *net, const network_purchase *bought)
{
    block *last = net->n_blocks ? net->blocks[net->n_blocks - 1] : NULL;
    if (!last || last->count == BLOCK) {
        last = new_block(net, net->n_blocks);
        if (!last)
            return NETWORK_NO_MEMORY;
    }
    last->items[last->count++] = *bought;
    return NETWORK_OK;
}

static int list_insert(network *net, const network_purchase *bought)
{
    int64_t at = block_after(net, bought->time);
    if (at == net->n_blocks)
        return list_append(net, bought);
    block *into = net->blocks[at];
    if (into->count == BLOCK) {
        block *second = new_block(net, at + 1);
        if (!second)
            return NETWORK_NO_MEMORY;
        second->count = BLOCK / 2;
        into->count = BLOCK - BLOCK / 2;
        memcpy(second->items, into->items + into->count,
               (size_t)second->count * sizeof *second->items);
        if (into->items[into->count - 1].time <= bought->time)
            into = second;
    }
    int32_t place = into->count++;
    for (; place > 0 && into->items[place - 1].time > bought->time; place--)
        into->items[place] = into->items[place - 1];
    into->items[place] = *bought;
    return NETWORK_OK;
}

/* Drops the listed purchases that left the ring of their user: T newer ones of
 * the same user stand before them in every window. */
static void compact(network *net)
{
    int64_t into = 0;
    int32_t filled = 0;
    for (int64_t i = 0; i < net->n_blocks; i++) {
        block *from = net->blocks[i];
        int32_t count = from->count;
        for (int32_t j = 0; j < count; j++) {
            network_purchase bought = from->items[j];
            const network_purchase *oldest = ring_at(&net->rings[bought.user], 0);
            if (earlier(bought.time, bought.arrival, oldest->time, oldest->arrival))
                continue;
            if (filled == BLOCK) {
                net->blocks[into++]->count = BLOCK;
                filled = 0;
            }
            net->blocks[into]->items[filled++] = bought;
        }
    }
    net->blocks[into]->count = filled;
    for (int64_t i = into + 1; i < net->n_blocks; i++)
        free(net->blocks[i]);
    net->n_blocks = into + 1;
    net->listed = net->live;
}

int network_buy(network *net, int32_t user, int64_t time, int64_t amount)
{
    network_purchase bought = {time, net->arrivals, amount, user};
    ring *of = &net->rings[user];
    int full = of->count == net->window;
    if (full && time < ring_at(of, 0)->time) {
        net->arrivals++;
        return NETWORK_OK;
    }
    if (!full && of->count == of->room && grow_ring(of, net->window) < 0)
        return NETWORK_NO_MEMORY;
    if (list_insert(net, &bought) < 0)
        return NETWORK_NO_MEMORY;
    net->arrivals++;
    net->listed++;
    if (full) {
        of->start = of->start + 1 == of->room ? 0 : of->start + 1;
        of->count--;
    } else {
        net->live++;
    }
    ring_insert(of, &bought);
    const network_purchase *last = ring_at(of, of->count - 1);
    net->newest[user] = (moment){last->time, last->arrival};
    if (net->listed > 2 * net->live + 16 * BLOCK)
        compact(net);
    return NETWORK_OK;
}

/* ---- the window of a circle ---------------------------------------------- */

#define MAX_MARK 250

static void begin_query(network *net, int32_t user)
{
    for (int32_t i = 0; i < net->ball_size; i++)
        net->marks[net->ball[i]] = 0;
    if (net->search > UINT32_MAX / 2) {
        memset(net->known, 0, (size_t)net->n_users * sizeof *net->known);
        net->search = 0;
    }
    net->n_picked = 0;
    net->ball[0] = user;
    net->marks[user] = 1;
    net->ball_size = net->inner = 1;
    net->radius = net->opened = net->place = 0;
    net->degrees = net->frontier = net->friends[user].count;
}

/* The mark at so many steps from the buyer. */
static uint8_t mark_at(int32_t distance)
{
    return (uint8_t)(distance < MAX_MARK ? distance + 1 : MAX_MARK);
}

/* Marks a part of the next level: looks at so many friends of the last complete one. */
static void mark(network *net, int64_t looks)
{
    uint8_t level = mark_at(net->radius + 1);
    int32_t size = net->ball_size;
    while (net->opened < net->inner && looks > 0) {
        const friends *of = &net->friends[net->ball[net->opened]];
        int32_t end = of->count - net->place <= looks ? of->count : net->place + (int32_t)looks;
        looks -= end - net->place;
        for (int32_t i = net->place; i < end; i++) {
            int32_t other = of->list[i]; /* without a branch: nobody could predict it */
            uint8_t before = net->marks[other];
            net->marks[other] = before ? before : level;
            net->ball[size] = other;
            size += before == 0;
        }
        net->place = end;
        if (end == of->count) {
            net->opened++;
            net->place = 0;
        }
    }
    net->ball_size = size;
}

/* Marks the rest of the next level; 0 if nobody is there. */
static int expand(network *net)
{
    mark(net, INT64_MAX);
    int grown = net->ball_size > net->inner;
    net->radius++;
    net->frontier = 0;
    for (int32_t i = net->inner; i < net->ball_size && net->radius < net->degree; i++)
        net->frontier += net->friends[net->ball[i]].count;
    net->degrees += net->frontier;
    net->inner = net->ball_size;
    return grown;
}

/* Does one of the users have a mark, `highest` at most? Adds to the cost. */
static int touches(network *net, const friends *of, uint8_t highest)
{
    const uint8_t *marks = net->marks;
    const int32_t *list = of->list;
    int32_t i = 0;
    for (; i + 8 <= of->count; i += 8) {
        int found = 0;
        for (int32_t j = i; j < i + 8; j++)
            found |= (uint8_t)(marks[list[j]] - 1) < highest;
        if (found) {
            net->cost += i + 8;
            return 1;
        }
    }
    net->cost += of->count + 1;
    for (; i < of->count; i++)
        if ((uint8_t)(marks[list[i]] - 1) < highest)
            return 1;
    return 0;
}

/* Is the user at most `steps` beyond the radius? A mark that is found `taken`
 * steps away tells so if its own distance is at most radius + steps - taken.
 * Everybody up to the radius is marked, so a search `depth` = `steps` steps deep
 * decides; a shallower one may miss. Gives up, with 0, beyond the budget. */
static int near(network *net, int32_t user, int steps, int depth)
{
    if ((uint8_t)(net->marks[user] - 1) < mark_at(net->radius + steps))
        return 1;
    if (depth == 0)
        return 0;
    knowledge *of = &net->known[user];
    if (of->search != net->search)
        *of = (knowledge){net->search, UINT8_MAX, 0};
    if (of->within <= steps)
        return 1;
    if (of->beyond >= steps)
        return 0;
    const friends *around = &net->friends[user];
    int inside = 0;
    if (depth < steps || of->beyond == 0) {
        inside = touches(net, around, mark_at(net->radius + steps - 1));
        if (!inside)
            of->beyond = of->beyond ? of->beyond : 1;
    }
    for (int32_t i = 0; !inside && depth > 1 && i < around->count; i++) {
        net->cost++;
        inside = near(net, around->list[i], steps - 1, depth - 1);
        if (!inside && net->cost > net->budget)
            return 0;
    }
    if (inside)
        of->within = (uint8_t)steps;
    else if (depth == steps)
        of->beyond = (uint8_t)steps;
    return inside;
}

#define MAX_STEPS 8 /* of a search from the seller's side */

/* Walks the list from the newest purchase and picks those of sellers at most
 * `steps` beyond the radius. When sellers are searched over two steps or more,
 * marks of the next level let most searches end early: half of the expected cost
 * goes to them at once, and later as much as was spent on searching. Returns 0
 * when it gave up. */
static int walk(network *net, int32_t steps, int64_t expected, int64_t budget)
{
    int32_t buyer = net->ball[0];
    int search = steps < MAX_STEPS ? (int)steps : MAX_STEPS;
    int aided = search > 1 && net->radius + 2 < MAX_MARK;
    int64_t marking = aided ? expected / 2 : 0;
    mark(net, marking);
    net->search++;
    net->n_picked = 0;
    net->cost = 0;
    net->budget = budget;
    for (int64_t i = net->n_blocks - 1; i >= 0; i--) {
        const block *of = net->blocks[i];
        for (int32_t j = of->count - 1; j >= 0; j--) {
            const network_purchase *bought = &of->items[j];
            net->cost++;
            if (bought->user == buyer)
                continue;
            int inside = (search > 1 && near(net, bought->user, search, search - 1)) ||
                         near(net, bought->user, search, search);
            if (net->cost + marking > budget || (!inside && search < steps))
                return 0;
            if (aided && net->cost > marking) {
                mark(net, net->cost - marking);
                marking = net->cost;
            }
            if (!inside)
                continue;
            net->picked[net->n_picked++] = *bought;
            if (net->n_picked == net->window)
                return 1;
        }
    }
    return 1;
}

static void sift_down(network_purchase *heap, int32_t count, network_purchase item)
{
    int32_t at = 0;
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && earlier(heap[child + 1].time, heap[child + 1].arrival,
                                         heap[child].time, heap[child].arrival))
            child++;
        if (!earlier(heap[child].time, heap[child].arrival, item.time, item.arrival))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = item;
}

static void sift_up(network_purchase *heap, int32_t at, network_purchase item)
{
    while (at > 0) {
        int32_t parent = (at - 1) / 2;
        if (!earlier(item.time, item.arrival, heap[parent].time, heap[parent].arrival))
            break;
        heap[at] = heap[parent];
        at = parent;
    }
    heap[at] = item;
}

/* Rearranges the moments so that the k-th newest stands at k - 1, and returns it. */
static moment kth_newest(moment *all, int32_t count, int32_t k)
{
    int32_t low = 0, high = count - 1;
    while (low < high) {
        moment pivot = all[low + (high - low) / 2];
        int32_t i = low, j = high;
        while (i <= j) {
            while (earlier(pivot.time, pivot.arrival, all[i].time, all[i].arrival))
                i++;
            while (earlier(all[j].time, all[j].arrival, pivot.time, pivot.arrival))
                j--;
            if (i <= j) {
                moment swap = all[i];
                all[i++] = all[j];
                all[j--] = swap;
            }
        }
        if (k - 1 <= j)
            high = j;
        else if (k - 1 >= i)
            low = i;
        else
            break;
    }
    return all[k - 1];
}

/* A moment before which nothing of the marked ball can count: when T members or
 * more have bought, the newest purchases of T of them already fill the window. */
static moment no_earlier_than(network *net)
{
    moment *last = net->moments;
    int32_t buyers = 0;
    for (int32_t i = 1; i < net->ball_size; i++) {
        last[buyers] = net->newest[net->ball[i]];
        buyers += last[buyers].arrival >= 0;
    }
    if (buyers < net->window)
        return (moment){BEFORE_ALL, -1};
    return kth_newest(last, buyers, net->window);
}

/* Picks from the rings of the marked ball, with the oldest pick on top of a
 * heap, and opens only the rings whose newest purchase can still count. */
static void collect(network *net)
{
    network_purchase *heap = net->picked;
    int32_t count = 0, window = net->window;
    moment least = no_earlier_than(net);
    for (int32_t i = 1; i < net->ball_size; i++) {
        int32_t user = net->ball[i];
        const moment *last = &net->newest[user];
        if (last->arrival < 0 ||
            earlier(last->time, last->arrival, least.time, least.arrival))
            continue;
        const ring *of = &net->rings[user];
        for (int32_t j = of->count - 1; j >= 0; j--) {
            const network_purchase *bought = ring_at(of, j);
            if (earlier(bought->time, bought->arrival, least.time, least.arrival))
                break;
            if (count < window) {
                sift_up(heap, count, *bought);
                count++;
            } else if (earlier(heap[0].time, heap[0].arrival, bought->time, bought->arrival)) {
                sift_down(heap, count, *bought);
            } else {
                break;
            }
        }
    }
    net->n_picked = count;
}

/* ---- the plan of a query ------------------------------------------------- */

/* Reading and testing a listed purchase against opening a member, in looks at
 * a friend; measured, and without influence on the answer. */
#define COST_ENTRY 1.0
#define COST_LOOK 0.5 /* of a search; marking a friend costs 1 */
#define COST_MEMBER 3.0
#define COST_PICK 30.0
#define PLAN_LEVELS 8

typedef struct {
    double users, half_edges, branching, window, listed;
} outlook;

static outlook look(const network *net)
{
    double edges = (double)net->half_edges;
    double branching = edges > 0 ? net->degree_squares / edges - 1.0 : 0.0;
    return (outlook){net->n_users, edges, branching > 0 ? branching : 0.0, net->window,
                     (double)net->listed};
}

/* Purchases to read for a full window when a share of the users is inside. */
static double entries(const outlook *at, double inside)
{
    double read = at->window * at->users / (inside > 1.0 ? inside : 1.0);
    return read < at->listed ? read : at->listed;
}

/* Looks at friends to search for sellers, `steps` beyond marks that hold a share
 * of all degrees; with marks of the next level where they save more than they cost. */
static double search_cost(const outlook *at, double sellers, double share, int32_t steps,
                          double frontier)
{
    double level = at->users > 0 ? at->half_edges / at->users : 0.0, all = 1.0, before = 1.0;
    for (int32_t i = 0; i < steps && i < MAX_STEPS; i++) {
        before = all;
        all += level;
        level *= at->branching;
    }
    double each = share > 0.0 && 1.0 / share < all ? 1.0 / share : all;
    if (steps < 2 || at->half_edges < 1.0)
        return sellers * each * COST_LOOK;
    double worth = (at->branching + 1.0) / at->half_edges, marks = sqrt(sellers / worth);
    marks = marks < frontier ? marks : frontier;
    double missed = exp(-before * marks * worth);
    double found = 1.0 / (worth * marks + 1e-9);
    double aided = marks + sellers * ((found < before ? found : before) + missed * each);
    return (aided < sellers * each ? aided : sellers * each) * COST_LOOK;
}

/* Expected size of the ball `steps` beyond one of `size` with `frontier` degrees. */
static double ball_size(const outlook *at, double size, double frontier, int32_t steps)
{
    for (int32_t i = 0; i < steps && i < PLAN_LEVELS && size < at->users; i++) {
        size += frontier;
        frontier *= at->branching;
    }
    return size < at->users ? size : at->users;
}

/* Is walking the list now cheaper than marking one or more levels first? */
static int walk_now(const network *net, double *expected, double *budget)
{
    outlook at = look(net);
    int32_t left = net->degree - net->radius;
    double frontier = (double)net->frontier, degrees = (double)net->degrees;
    double size = net->ball_size, whole = ball_size(&at, size, frontier, left);
    double reads = entries(&at, whole), spent = 0.0, now = -1.0, best = -1.0;
    for (int32_t more = 0; more <= left && more <= PLAN_LEVELS; more++) {
        double share = degrees / (at.half_edges > 1.0 ? at.half_edges : 1.0);
        double walking = reads * COST_ENTRY + search_cost(&at, reads, share, left - more, frontier);
        if (more == left) {
            double opening = whole * COST_MEMBER + at.window * COST_PICK;
            walking = opening < walking ? opening : walking;
        }
        if (more == 0)
            now = walking;
        else if (best < 0.0 || spent + walking < best)
            best = spent + walking;
        spent += frontier;
        size += frontier;
        frontier = size < at.users ? frontier * at.branching : 0.0;
        degrees = degrees + frontier < at.half_edges ? degrees + frontier : at.half_edges;
    }
    *expected = now;
    *budget = 2.0 / COST_LOOK * (best > now ? best : now) + 1000.0;
    return now <= best;
}

/* Fills net->picked with the window of the user's circle. */
static void find_window(network *net, int32_t user)
{
    begin_query(net, user);
    int grown = 1;
    while (net->radius < net->degree && grown) {
        double expected, budget;
        if (net->radius > 0 && walk_now(net, &expected, &budget) &&
            walk(net, net->degree - net->radius, (int64_t)expected, (int64_t)budget))
            return;
        grown = expand(net);
    }
    outlook at = look(net);
    double members = net->ball_size * COST_MEMBER + at.window * COST_PICK;
    if (entries(&at, net->ball_size) * COST_ENTRY < members && walk(net, 0, 0, (int64_t)members))
        return;
    collect(net);
}

static int prepare_query(network *net)
{
    int64_t room = net->live < net->window ? net->live : net->window;
    if (room <= net->picked_room)
        return NETWORK_OK;
    room = 2 * room < net->window ? 2 * room : net->window;
    if (grow((void **)&net->picked, sizeof *net->picked, (size_t)room) < 0)
        return NETWORK_NO_MEMORY;
    net->picked_room = (int32_t)room;
    return NETWORK_OK;
}

/* ---- the verdict --------------------------------------------------------- */

/* Everything in 128 bits: the caller has shown that it fits. */
static int exceeds_small(const network *net, int64_t amount, network_verdict *verdict)
{
    uint64_t sum = 0, count = (uint64_t)net->n_picked;
    u128 squares = 0;
    for (int32_t i = 0; i < net->n_picked; i++) {
        uint64_t x = (uint64_t)net->picked[i].amount;
        sum += x;
        squares += (u128)x * x;
    }
    u128 spread = count * squares - (u128)sum * sum;
    verdict->sum = wide_from(sum);
    verdict->spread = wide_from(spread);
    int64_t above = (int64_t)(count * (uint64_t)amount) - (int64_t)sum;
    if (above <= 0)
        return 0;
    u128 left = (u128)(uint64_t)above * (uint64_t)net->down;
    return left * left > (u128)(uint64_t)net->up * (uint64_t)net->up * spread;
}

static int exceeds_wide(const network *net, int64_t amount, network_verdict *verdict)
{
    u128 sum = 0;
    network_wide squares = {{0, 0, 0, 0}};
    for (int32_t i = 0; i < net->n_picked; i++) {
        u128 x = (u128)(uint64_t)net->picked[i].amount;
        sum += x;
        squares = wide_sum(squares, wide_from(x * x));
    }
    uint64_t count = (uint64_t)net->n_picked;
    verdict->sum = wide_from(sum);
    verdict->spread = wide_less(wide_times(squares, count), wide_product(sum, sum));
    u128 scaled = (u128)count * (uint64_t)amount;
    if (scaled <= sum)
        return 0;
    u128 left = (scaled - sum) * (uint64_t)net->down;
    uint64_t up = (uint64_t)net->up;
    return wide_exceeds(wide_product(left, left), wide_times(verdict->spread, up * up));
}

/* Standard deviations above the mean, on the side of sigma that the exact test says. */
static double score_of(const network *net, int64_t amount, const network_verdict *verdict)
{
    u128 scaled = (u128)(uint32_t)verdict->count * (uint64_t)amount;
    u128 sum = (u128)verdict->sum.limb[1] << 64 | verdict->sum.limb[0];
    double above = scaled > sum ? (double)(scaled - sum) : -(double)(sum - scaled);
    double spread = sqrt(wide_double(verdict->spread));
    double score = above / spread;
    if (spread == 0.0)
        score = above > 0.0 ? INFINITY : above < 0.0 ? -INFINITY : 0.0;
    double sigma = (double)net->up / (double)net->down;
    if (verdict->flagged)
        return score > sigma ? score : nextafter(sigma, INFINITY);
    return score > sigma ? sigma : score;
}

int network_judge(network *net, int32_t user, int64_t amount, network_verdict *verdict)
{
    memset(verdict, 0, sizeof *verdict);
    net->n_picked = 0;
    if (user < 0 || net->friends[user].count == 0)
        return NETWORK_OK;
    if (prepare_query(net) < 0)
        return NETWORK_NO_MEMORY;
    find_window(net, user);
    verdict->count = net->n_picked;

    u128 largest = (u128)(uint64_t)amount;
    for (int32_t i = 0; i < net->n_picked; i++)
        if ((u128)(uint64_t)net->picked[i].amount > largest)
            largest = (u128)(uint64_t)net->picked[i].amount;
    u128 factor = (u128)(net->up > net->down ? (uint64_t)net->up : (uint64_t)net->down);
    /* every product of the test is at most (largest * count * factor)^2 */
    int small = largest * (uint64_t)net->n_picked * (factor + 1) < (u128)1 << 63;
    int flagged = small ? exceeds_small(net, amount, verdict) : exceeds_wide(net, amount, verdict);
    if (verdict->count < 2)
        return NETWORK_OK;
    verdict->flagged = flagged;
    verdict->score = score_of(net, amount, verdict);
    return NETWORK_OK;
}

const network_purchase *network_window_purchases(const network *net, int32_t *count)
{
    *count = net->n_picked;
    return net->picked;
}

int32_t network_circle(network *net, int32_t user)
{
    if (user < 0)
        return 0;
    begin_query(net, user);
    while (net->radius < net->degree && expand(net))
        ;
    return net->ball_size - 1;
}

/* ---- saved state --------------------------------------------------------- */

/* The purchases of the rings by time; the list is built from it again. */
static int by_moment(const void *left, const void *right)
{
    const network_purchase *a = left, *b = right;
    if (earlier(a->time, a->arrival, b->time, b->arrival))
        return -1;
    return earlier(b->time, b->arrival, a->time, a->arrival);
}

#define MAGIC UINT64_C(0x31304B5257544E50) /* "PNTWRK01" in memory on a little-endian machine */

typedef struct {
    uint64_t magic;
    int32_t degree, window, up, down;
    int64_t arrivals, n_users, names_length, half_edges, live;
} header;

typedef struct {
    int64_t time, arrival, amount;
} saved_purchase;

static size_t saved_length(const header *head)
{
    return sizeof *head + (size_t)head->n_users * (sizeof(uint64_t) + 2 * sizeof(int32_t)) +
           (size_t)head->live * sizeof(saved_purchase) +
           (size_t)head->half_edges * sizeof(int32_t) + (size_t)head->names_length;
}

static void put(unsigned char **to, const void *from, size_t length)
{
    if (length)
        memcpy(*to, from, length);
    *to += length;
}

unsigned char *network_save(const network *net, size_t *length)
{
    header head = {MAGIC,           net->degree,  net->window,
                   net->up,         net->down,    net->arrivals,
                   net->n_users,    (int64_t)net->names_length, net->half_edges,
                   net->live};
    *length = saved_length(&head);
    unsigned char *bytes = malloc(*length), *to = bytes;
    if (!bytes)
        return NULL;
    put(&to, &head, sizeof head);
    for (int32_t user = 0; user < net->n_users; user++) {
        uint64_t end = net->name_ends[user];
        put(&to, &end, sizeof end);
    }
    for (int32_t user = 0; user < net->n_users; user++) {
        put(&to, &net->friends[user].count, sizeof(int32_t));
        put(&to, &net->rings[user].count, sizeof(int32_t));
    }
    for (int32_t user = 0; user < net->n_users; user++) {
        for (int32_t i = 0; i < net->rings[user].count; i++) {
            const network_purchase *bought = ring_at(&net->rings[user], i);
            saved_purchase saved = {bought->time, bought->arrival, bought->amount};
            put(&to, &saved, sizeof saved);
        }
    }
    for (int32_t user = 0; user < net->n_users; user++)
        put(&to, net->friends[user].list, (size_t)net->friends[user].count * sizeof(int32_t));
    put(&to, net->names, net->names_length);
    return bytes;
}

static int plausible(const header *head, size_t length)
{
    int64_t most = (int64_t)(length < (size_t)INT64_MAX ? length : (size_t)INT64_MAX);
    return head->magic == MAGIC && head->degree >= 1 && head->window >= 2 && head->up >= 0 &&
           head->down >= 1 && head->arrivals >= 0 && head->n_users >= 0 &&
           head->n_users <= NETWORK_MAX_USERS && head->n_users <= most &&
           head->names_length >= 0 && head->names_length <= most && head->half_edges >= 0 &&
           head->half_edges <= most && head->live >= 0 && head->live <= most &&
           head->live <= head->arrivals && saved_length(head) == length;
}

static int load_users(network *net, const header *head, const unsigned char *ends,
                      const char *names)
{
    uint64_t start = 0;
    for (int64_t user = 0; user < head->n_users; user++) {
        uint64_t end;
        memcpy(&end, ends + (size_t)user * sizeof end, sizeof end);
        if (end < start || end > (uint64_t)head->names_length)
            return NETWORK_DAMAGED;
        int32_t entered = network_enter(net, names + start, (size_t)(end - start));
        if (entered < 0)
            return entered;
        if (entered != user)
            return NETWORK_DAMAGED;
        start = end;
    }
    return start == (uint64_t)head->names_length ? NETWORK_OK : NETWORK_DAMAGED;
}

static int load_ring(network *net, const header *head, int32_t user, int32_t count,
                     const unsigned char *from, network_purchase *all)
{
    for (int32_t i = 0; i < count; i++) {
        saved_purchase saved;
        memcpy(&saved, from + (size_t)i * sizeof saved, sizeof saved);
        all[i] = (network_purchase){saved.time, saved.arrival, saved.amount, user};
        if (saved.amount < 0 || saved.amount > NETWORK_MAX_AMOUNT || saved.arrival < 0 ||
            saved.arrival >= head->arrivals || (i > 0 && by_moment(&all[i - 1], &all[i]) >= 0))
            return NETWORK_DAMAGED;
    }
    ring *of = &net->rings[user];
    of->items = malloc((size_t)(count ? count : 1) * sizeof *of->items);
    if (!of->items)
        return NETWORK_NO_MEMORY;
    of->room = count ? count : 1;
    of->count = count;
    if (count) {
        memcpy(of->items, all, (size_t)count * sizeof *all);
        net->newest[user] = (moment){all[count - 1].time, all[count - 1].arrival};
    }
    return NETWORK_OK;
}

static int load_friends(network *net, const header *head, int32_t user, int32_t count,
                        const unsigned char *from)
{
    friends *of = &net->friends[user];
    of->list = malloc((size_t)(count ? count : 1) * sizeof *of->list);
    if (!of->list)
        return NETWORK_NO_MEMORY;
    of->room = count ? count : 1;
    memcpy(of->list, from, (size_t)count * sizeof *of->list);
    for (int32_t i = 0; i < count; i++)
        if (of->list[i] < 0 || of->list[i] >= head->n_users || of->list[i] == user)
            return NETWORK_DAMAGED;
    change_degree(net, of, count);
    return NETWORK_OK;
}

static int load_body(network *net, const header *head, const unsigned char *counts,
                     network_purchase *all)
{
    const unsigned char *bought = counts + (size_t)head->n_users * 2 * sizeof(int32_t);
    const unsigned char *list = bought + (size_t)head->live * sizeof(saved_purchase);
    int64_t purchases = 0, degrees = 0;
    for (int32_t user = 0; user < head->n_users; user++) {
        int32_t count[2];
        memcpy(count, counts + (size_t)user * sizeof count, sizeof count);
        if (count[0] < 0 || count[0] > head->half_edges - degrees || count[1] < 0 ||
            count[1] > head->window || count[1] > head->live - purchases)
            return NETWORK_DAMAGED;
        int code = load_friends(net, head, user, count[0],
                                list + (size_t)degrees * sizeof(int32_t));
        if (code == NETWORK_OK)
            code = load_ring(net, head, user, count[1],
                             bought + (size_t)purchases * sizeof(saved_purchase),
                             all + purchases);
        if (code < 0)
            return code;
        degrees += count[0];
        purchases += count[1];
    }
    if (degrees != head->half_edges || purchases != head->live)
        return NETWORK_DAMAGED;
    qsort(all, (size_t)purchases, sizeof *all, by_moment);
    for (int64_t i = 0; i < purchases; i++)
        if (list_append(net, &all[i]) < 0)
            return NETWORK_NO_MEMORY;
    net->listed = net->live = purchases;
    net->arrivals = head->arrivals;
    return NETWORK_OK;
}

int network_load(const unsigned char *bytes, size_t length, network **out)
{
    header head;
    *out = NULL;
    if (length < sizeof head)
        return NETWORK_DAMAGED;
    memcpy(&head, bytes, sizeof head);
    if (!plausible(&head, length))
        return NETWORK_DAMAGED;
    network *net = network_create(head.degree, head.window, head.up, head.down);
    network_purchase *all = malloc((size_t)(head.live ? head.live : 1) * sizeof *all);
    int code = net && all ? NETWORK_OK : NETWORK_NO_MEMORY;
    const unsigned char *ends = bytes + sizeof head;
    const char *names = (const char *)bytes + length - head.names_length;
    if (code == NETWORK_OK)
        code = load_users(net, &head, ends, names);
    if (code == NETWORK_OK)
        code = load_body(net, &head, ends + (size_t)head.n_users * sizeof(uint64_t), all);
    free(all);
    if (code < 0)
        network_free(net);
    else
        *out = net;
    return code;
}
