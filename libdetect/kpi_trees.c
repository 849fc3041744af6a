/* XGBoost's own model bytes to trees, each checked before it may be used. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kpi.h"
#include "kpi_reader.h"

#define MAX_TREES 100000
#define MAX_NODES 4000000

/* One tree as XGBoost writes it: columns of the same length. */
enum { LEFT, RIGHT, SPLIT, FEATURE, DEFAULT, N_COLUMNS };
static const char *const columns[N_COLUMNS] = {"left_children", "right_children",
                                               "split_conditions", "split_indices",
                                               "default_left"};

typedef struct {
    reader in;
    kpi_model *model;
    double *column[N_COLUMNS];
    int64_t length[N_COLUMNS], room[N_COLUMNS];
    int32_t *queue;
    uint8_t *seen;
    int64_t queue_room;
    int32_t trees_room, nodes_room;
    int has_trees, has_objective, has_base;
} tree_loader;

static int is(const reader *r, const char *word)
{
    return r->length == strlen(word) && memcmp(r->text, word, r->length) == 0;
}

/* Makes room for one more item of the size; doubles. Returns 0 or -1. */
static int grow(void **items, int64_t count, int64_t *room, size_t size)
{
    if (count < *room)
        return 0;
    int64_t more = *room ? 2 * *room : 64;
    void *grown = realloc(*items, (size_t)more * size);
    if (grown == NULL)
        return -1;
    *items = grown;
    *room = more;
    return 0;
}

static int read_column(tree_loader *l, int which)
{
    token t = reader_next(&l->in);
    if (t != TOKEN_ARRAY || l->length[which] >= 0)
        return -1;
    l->length[which] = 0;
    while ((t = reader_next(&l->in)) != TOKEN_ARRAY_END) {
        if (t != TOKEN_NUMBER && t != TOKEN_OTHER)
            return -1;
        if (l->length[which] >= MAX_NODES ||
            grow((void **)&l->column[which], l->length[which], &l->room[which], sizeof(double)))
            return -1;
        l->column[which][l->length[which]++] = l->in.number;
    }
    return 0;
}

static int whole(double value, double least, double most)
{
    return value >= least && value <= most && value == floor(value);
}

/* Checks node i of the tree and whether its children are new. */
static int check_node(tree_loader *l, int32_t i)
{
    double n = (double)l->length[LEFT], left = l->column[LEFT][i], right = l->column[RIGHT][i];
    if (!(fabs(l->column[SPLIT][i]) <= 3.4028234e38))
        return -1;
    if (left == -1 && right == -1)
        return 0;
    if (!whole(left, 1, n - 1) || !whole(right, 1, n - 1) || left == right)
        return -1;
    if (l->seen[(int32_t)left] || l->seen[(int32_t)right])
        return -1;
    l->seen[(int32_t)left] = l->seen[(int32_t)right] = 1;
    if (!whole(l->column[FEATURE][i], 0, l->model->info.n_features - 1))
        return -1;
    return whole(l->column[DEFAULT][i], 0, 1) ? 1 : -1;
}

static int room_for_tree(tree_loader *l)
{
    int64_t n = l->length[LEFT], nodes = l->nodes_room, trees = l->trees_room;
    if (n < 1)
        return -1;
    for (int i = 1; i < N_COLUMNS; i++)
        if (l->length[i] != n)
            return -1;
    if (l->model->info.n_trees >= MAX_TREES || l->model->info.n_nodes + n > MAX_NODES)
        return -1;
    while (nodes < l->model->info.n_nodes + n)
        if (grow((void **)&l->model->nodes, nodes, &nodes, sizeof(kpi_node)))
            return -1;
    l->nodes_room = (int32_t)nodes;
    if (grow((void **)&l->model->roots, l->model->info.n_trees, &trees, sizeof(int32_t)))
        return -1;
    l->trees_room = (int32_t)trees;
    while (l->queue_room < n) {
        int64_t room = l->queue_room;
        if (grow((void **)&l->seen, room, &room, 1) ||
            grow((void **)&l->queue, l->queue_room, &l->queue_room, sizeof(int32_t)))
            return -1;
    }
    memset(l->seen, 0, (size_t)n);
    return 0;
}

/* Lays the tree out level by level: children side by side, after their parent, so
 * that a walk always moves forward and ends. */
static int add_tree(tree_loader *l)
{
    if (room_for_tree(l) != 0)
        return -1;
    kpi_model *m = l->model;
    int32_t base = m->info.n_nodes, known = 1;
    l->queue[0] = 0;
    l->seen[0] = 1;
    for (int32_t at = 0; at < known; at++) {
        int32_t i = l->queue[at];
        kpi_node *node = &m->nodes[base + at];
        int kind = check_node(l, i);
        if (kind < 0)
            return -1;
        memset(node, 0, sizeof *node);
        node->split = (float)l->column[SPLIT][i];
        if (kind == 0)
            continue;
        node->left = base + known;
        node->feature = (uint16_t)l->column[FEATURE][i];
        node->default_left = (uint16_t)l->column[DEFAULT][i];
        l->queue[known++] = (int32_t)l->column[LEFT][i];
        l->queue[known++] = (int32_t)l->column[RIGHT][i];
    }
    m->roots[m->info.n_trees++] = base;
    m->info.n_nodes += known;
    return 0;
}

/* Calls `member` for each key of an object whose opening token comes next. */
typedef int (*read_member)(tree_loader *l);

static int read_object(tree_loader *l, token first, read_member member)
{
    token t;
    if (first != TOKEN_OBJECT)
        return -1;
    while ((t = reader_next(&l->in)) == TOKEN_KEY)
        if (member(l) != 0)
            return -1;
    return t == TOKEN_OBJECT_END ? 0 : -1;
}

static int skip(tree_loader *l)
{
    return reader_skip(&l->in, reader_next(&l->in));
}

/* Text of a number, possibly in brackets: "5E-1", "[5E-1]". */
static int text_number(const reader *r, double *value)
{
    const char *p = r->text, *end = r->text + r->length;
    int bracket = p < end && *p == '[';
    p = kpi_number(p + bracket, end, value);
    return p == NULL || p + bracket != end || (bracket && *p != ']') ? -1 : 0;
}

static int expect_text_number(tree_loader *l, double least, double most, double *value)
{
    if (reader_next(&l->in) != TOKEN_STRING || text_number(&l->in, value) != 0)
        return -1;
    return *value >= least && *value <= most ? 0 : -1;
}

static int tree_param(tree_loader *l)
{
    double value;
    if (is(&l->in, "size_leaf_vector"))
        return expect_text_number(l, 0, 1, &value);
    return skip(l);
}

static int tree_member(tree_loader *l)
{
    for (int i = 0; i < N_COLUMNS; i++)
        if (is(&l->in, columns[i]))
            return read_column(l, i);
    if (is(&l->in, "tree_param"))
        return read_object(l, reader_next(&l->in), tree_param);
    if (is(&l->in, "categories_nodes")) { /* splits on categories are not ours */
        if (reader_next(&l->in) != TOKEN_ARRAY)
            return -1;
        return reader_next(&l->in) == TOKEN_ARRAY_END ? 0 : -1;
    }
    return skip(l);
}

static int read_trees(tree_loader *l)
{
    token t;
    if (reader_next(&l->in) != TOKEN_ARRAY || l->has_trees)
        return -1;
    l->has_trees = 1;
    while ((t = reader_next(&l->in)) == TOKEN_OBJECT) {
        for (int i = 0; i < N_COLUMNS; i++)
            l->length[i] = -1;
        if (read_object(l, t, tree_member) != 0 || add_tree(l) != 0)
            return -1;
    }
    return t == TOKEN_ARRAY_END ? 0 : -1;
}

static int booster_model(tree_loader *l)
{
    return is(&l->in, "trees") ? read_trees(l) : skip(l);
}

static int expect_name(tree_loader *l, const char *one, const char *other)
{
    if (reader_next(&l->in) != TOKEN_STRING)
        return -1;
    return is(&l->in, one) || is(&l->in, other) ? 0 : -1;
}

static int booster_member(tree_loader *l)
{
    if (is(&l->in, "model"))
        return read_object(l, reader_next(&l->in), booster_model);
    if (is(&l->in, "name"))
        return expect_name(l, "gbtree", "gbtree");
    return skip(l);
}

static int objective_member(tree_loader *l)
{
    if (!is(&l->in, "name"))
        return skip(l);
    l->has_objective = 1;
    return expect_name(l, "binary:logistic", "reg:logistic");
}

static int learner_param(tree_loader *l)
{
    double value;
    if (is(&l->in, "base_score")) {
        if (expect_text_number(l, 1e-7, 1 - 1e-7, &value) != 0)
            return -1;
        float probability = (float)value;
        l->model->base_margin = (float)-log(1.0 / (double)probability - 1.0);
        l->has_base = 1;
        return 0;
    }
    if (is(&l->in, "num_class"))
        return expect_text_number(l, 0, 1, &value);
    if (is(&l->in, "num_target"))
        return expect_text_number(l, 0, 1, &value);
    if (is(&l->in, "num_feature"))
        return expect_text_number(l, l->model->info.n_features, l->model->info.n_features, &value);
    return skip(l);
}

static int learner_member(tree_loader *l)
{
    if (is(&l->in, "gradient_booster"))
        return read_object(l, reader_next(&l->in), booster_member);
    if (is(&l->in, "learner_model_param"))
        return read_object(l, reader_next(&l->in), learner_param);
    if (is(&l->in, "objective"))
        return read_object(l, reader_next(&l->in), objective_member);
    return skip(l);
}

static int model_member(tree_loader *l)
{
    if (is(&l->in, "learner"))
        return read_object(l, reader_next(&l->in), learner_member);
    return skip(l);
}

int kpi_trees_read(kpi_model *model, const uint8_t *bytes, size_t size, int format)
{
    tree_loader l;
    memset(&l, 0, sizeof l);
    l.model = model;
    model->info.n_trees = model->info.n_nodes = 0;
    reader_open(&l.in, bytes, size, format);
    int bad = read_object(&l, reader_next(&l.in), model_member) != 0 ||
              reader_next(&l.in) != TOKEN_END || !l.has_trees || !l.has_objective || !l.has_base;
    for (int i = 0; i < N_COLUMNS; i++)
        free(l.column[i]);
    free(l.queue);
    free(l.seen);
    if (bad) {
        free(model->nodes);
        free(model->roots);
        model->nodes = NULL;
        model->roots = NULL;
    }
    return bad ? -1 : 0;
}

float kpi_margin(const kpi_model *model, const double *features)
{
    float x[KPI_FEATURES], margin = model->base_margin;
    for (int i = 0; i < KPI_FEATURES; i++)
        x[i] = (float)features[i];
    for (int32_t t = 0; t < model->info.n_trees; t++) {
        const kpi_node *node = &model->nodes[model->roots[t]];
        while (node->left != 0) {
            float value = x[node->feature];
            int right = value != value ? !node->default_left : !(value < node->split);
            node = &model->nodes[node->left + right];
        }
        margin += node->split;
    }
    return margin;
}
