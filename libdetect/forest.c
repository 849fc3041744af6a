#include "forest.h"

#include <math.h>

int forest_check(const forest *self)
{
    if (self->n_outputs < 1 || self->n_outputs > FOREST_MAX_OUTPUTS || self->n_features < 1)
        return -1;
    if (self->rule > FOREST_LARGER || (self->rule == FOREST_LARGER) != (self->n_outputs == 2))
        return -1;
    for (size_t t = 0; t < self->n_trees; t++)
        if (self->roots[t] < 0 || (size_t)self->roots[t] >= self->n_nodes)
            return -1;
    for (size_t i = 0; i < self->n_nodes; i++) {
        const forest_node *node = &self->nodes[i];
        if (node->feature < 0 || (size_t)node->feature >= self->n_features)
            return -1;
        if (node->child[0] == (int32_t)i && node->child[1] == (int32_t)i)
            continue; /* a leaf */
        for (int side = 0; side < 2; side++) /* after its parent, so every path ends */
            if (node->child[side] < 0 || (size_t)node->child[side] <= i ||
                (size_t)node->child[side] >= self->n_nodes)
                return -1;
    }
    return 0;
}

static ptrdiff_t first_refused(const forest *self, const double *row)
{
    for (size_t j = 0; j < self->n_features; j++) {
        double value = self->check_as_float ? (double)(float)row[j] : row[j];
        if (isinf(value) || (isnan(value) && !self->allow_nan))
            return (ptrdiff_t)j;
    }
    return -1;
}

static inline int32_t step(const forest_node *nodes, int32_t at, const double *row)
{
    const forest_node *node = &nodes[at];
    double value = row[node->feature];
    int side = (value <= node->threshold) | ((value != value) & node->nan_left);
    return node->child[side];
}

/* Rows that walk down a tree together, so that their loads overlap. */
enum { LANES = 8 };

static void find_leaves(const forest *self, int32_t root, const double *rows, int32_t *at)
{
    const forest_node *nodes = self->nodes;
    const size_t n_features = self->n_features;
    for (int lane = 0; lane < LANES; lane++)
        at[lane] = root;
    for (int moved = 1; moved;) {
        moved = 0;
        for (int lane = 0; lane < LANES; lane++) {
            int32_t next = step(nodes, at[lane], rows + (size_t)lane * n_features);
            moved |= next != at[lane];
            at[lane] = next;
        }
    }
}

/* One row alone: here guessing the branch is faster than waiting for the value. */
static int32_t find_leaf(const forest *self, int32_t root, const double *row)
{
    int32_t at = root;
    for (;;) {
        const forest_node *node = &self->nodes[at];
        double value = row[node->feature];
        int32_t next;
        if (value <= node->threshold)
            next = node->child[1];
        else if (value > node->threshold)
            next = node->child[0];
        else
            next = node->child[node->nan_left];
        if (next == at)
            return at;
        at = next;
    }
}

static void add_leaf(const forest *self, int32_t leaf, double *sums)
{
    for (size_t k = 0; k < self->n_outputs; k++)
        sums[k] += self->values[(size_t)leaf * self->n_outputs + k];
}

static void add_tree(const forest *self, int32_t root, const double *rows, size_t count,
                     double (*sums)[FOREST_MAX_OUTPUTS])
{
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        int32_t leaves[LANES];
        find_leaves(self, root, rows + i * self->n_features, leaves);
        for (size_t lane = 0; lane < LANES; lane++)
            add_leaf(self, leaves[lane], sums[i + lane]);
    }
    for (; i < count; i++)
        add_leaf(self, find_leaf(self, root, rows + i * self->n_features), sums[i]);
}

static uint8_t finish(const forest *self, const double *sums, double *score)
{
    double outputs[FOREST_MAX_OUTPUTS];
    for (size_t k = 0; k < self->n_outputs; k++)
        outputs[k] = sums[k] / self->divisor * self->factor;
    *score = outputs[self->n_outputs - 1];
    if (self->rule == FOREST_LARGER)
        return outputs[1] > outputs[0];
    return self->rule == FOREST_AT_LEAST ? *score >= 0.0 : *score > 0.0;
}

/* Rows per block: trees stay in cache while a block of rows passes through each. */
enum { BLOCK = 512 };

ptrdiff_t forest_evaluate(const forest *self, const double *rows, size_t n_rows, double *scores,
                          uint8_t *labels)
{
    double sums[BLOCK][FOREST_MAX_OUTPUTS];
    for (size_t begin = 0; begin < n_rows; begin += BLOCK) {
        size_t count = n_rows - begin < BLOCK ? n_rows - begin : BLOCK;
        const double *block = rows + begin * self->n_features;
        for (size_t i = 0; i < count; i++) {
            ptrdiff_t refused = first_refused(self, block + i * self->n_features);
            if (refused >= 0)
                return (ptrdiff_t)((begin + i) * self->n_features) + refused;
            for (size_t k = 0; k < self->n_outputs; k++)
                sums[i][k] = self->start[k];
        }
        for (size_t t = 0; t < self->n_trees; t++)
            add_tree(self, self->roots[t], block, count, sums);
        for (size_t i = 0; i < count; i++)
            labels[begin + i] = finish(self, sums[i], &scores[begin + i]);
    }
    return -1;
}
