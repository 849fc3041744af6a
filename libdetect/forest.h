/* Binary decision-tree ensembles, evaluated row by row.
 *
 * A forest is a flat list of nodes. Every tree starts at its root; a row goes
 * left where its value is at most the threshold, else right, and where the value
 * is NaN as the node says. The leaf adds its n_outputs values to the row's sums,
 * tree after tree, so the bits do not depend on the number of rows.
 *
 * Ownership: the caller owns every array, and the forest only points at them.
 * All functions read the forest only; any number of threads may share one. */
#ifndef LIBDETECT_FOREST_H
#define LIBDETECT_FOREST_H

#include <stddef.h>
#include <stdint.h>

enum { FOREST_MAX_OUTPUTS = 2 };

/* How the sums become a label. */
enum forest_rule {
    FOREST_ABOVE = 0,    /* label 1 if score > 0; score is the only output */
    FOREST_AT_LEAST = 1, /* label 1 if score >= 0; score is the only output */
    FOREST_LARGER = 2    /* label 1 if output 1 > output 0; score is output 1 */
};

typedef struct {
    double threshold;
    int32_t feature;  /* column compared */
    int32_t child[2]; /* [1] taken if value <= threshold, else [0]; both lead a leaf to itself */
    int32_t nan_left; /* 1: NaN goes to child[1]; 0: to child[0] */
} forest_node;

typedef struct {
    const forest_node *nodes;
    const double *values; /* a row of n_outputs for each node; those of leaves are used */
    const int32_t *roots; /* n_trees node numbers */
    size_t n_nodes, n_trees, n_features, n_outputs;
    double start[FOREST_MAX_OUTPUTS]; /* sums before the first tree */
    double divisor, factor;           /* output = (sum / divisor) * factor */
    enum forest_rule rule;
    int check_as_float; /* nonzero: a value that is infinite as a float is refused too */
    int allow_nan;      /* zero: a row with NaN is refused */
} forest;

/* Checks that every index is inside its array and that every path ends.
 * Returns 0, or -1 if the forest would read outside its arrays or loop. */
int forest_check(const forest *self);

/* Evaluates n_rows rows of n_features values, C order. scores and labels hold
 * n_rows items each. Returns -1 when done, or the position in rows of the first
 * value refused: infinite (as a float too, where asked for), or NaN where that is
 * not allowed. Rows from that one on are then not written.
 * The forest must have passed forest_check. */
ptrdiff_t forest_evaluate(const forest *self, const double *rows, size_t n_rows, double *scores,
                          uint8_t *labels);

#endif
