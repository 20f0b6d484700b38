#pragma once

/* Dense layers. The threads share out a layer's columns in the forward product, the inputs' columns in
   the backward one, the weights in the update. A weight stays with one thread, and so in its core's
   cache, and a gradient never leaves its core: it becomes an update while the next ones are summed up.

   Weights are kept in panels, PANEL columns of all rows of a layer in one piece. The bias is one row
   more, under an input that is always 1. Rows and columns are padded with zeros, whose gradient is
   zero, so no loop has a remainder. */

#include "common.h"

static int rows_of(const struct layer *l) { return up(l->inputs + 1, ROWS); }
static int panels_of(const struct layer *l) { return up(l->units, PANEL) / PANEL; }

INLINE void clear(vec c[ROWS][2]) {
    for (int r = 0; r < ROWS; r++) c[r][0] = c[r][1] = (vec){0};
}

/* outputs = relu(inputs weights), or without the relu for the last layer. */
static void forward(
    struct worker *me, const struct layer *l, const float *inputs, float *outputs, int last
) {
    int rows = rows_of(l), in = stride_of(l->inputs), out = stride_of(l->units);
    int blocks = me->team->rows / ROWS, from, to;
    share(me, panels_of(l) * blocks, &from, &to);
    for (int item = from; item < to; item++) {
        int panel = item / blocks, i = item % blocks * ROWS;
        vec c[ROWS][2];
        const float *weights = l->weights + (long)panel * rows * PANEL;
        clear(c);
        multiply(c, ROWS, rows, inputs + (long)i * in, in, 1, weights, PANEL, 0, 0, 0);
        for (int r = 0; r < ROWS; r++) {
            vec *to_row = (vec *)(outputs + (long)(i + r) * out + panel * PANEL);
            for (int h = 0; h < 2; h++) to_row[h] = last ? c[r][h] : unless_negative(c[r][h], c[r][h]);
            int one = l->units - panel * PANEL;
            if (one < PANEL) ((float *)to_row)[one] = 1;
        }
    }
}

/* From a layer's errors to those of the layer below, through its ReLU. */
static void backward(
    struct worker *me, const struct layer *l, const float *deltas, float *turned,
    const float *outputs_below, float *deltas_below
) {
    int units = l->units, rows = rows_of(l);
    int in = stride_of(l->units), out = stride_of(l->inputs);
    int blocks = me->team->rows / ROWS, from, to, turned_panel = -1;
    share(me, up(l->inputs, PANEL) / PANEL * blocks, &from, &to);
    turned += (long)me->index * units * PANEL;
    for (int item = from; item < to; item++) {
        int panel = item / blocks, i = item % blocks * ROWS;
        if (panel != turned_panel) {
            for (int j = 0; j < PANEL; j++)
                for (int u = 0; u < units; u++) {
                    int row = panel * PANEL + j;
                    const float *w = l->weights + ((long)(u / PANEL) * rows + row) * PANEL;
                    turned[u * PANEL + j] = row < l->inputs ? w[u % PANEL] : 0;
                }
            turned_panel = panel;
        }
        vec c[ROWS][2];
        clear(c);
        multiply(c, ROWS, units, deltas + (long)i * in, in, 1, turned, PANEL, 0, 0, 0);
        for (int r = 0; r < ROWS; r++) {
            long at = (long)(i + r) * out + panel * PANEL;
            for (int h = 0; h < 2; h++)
                ((vec *)(deltas_below + at))[h] =
                    unless_negative(c[r][h], ((const vec *)(outputs_below + at))[h]);
        }
    }
}

/* A tile of weights, whose gradients are known and which are not updated yet. */
struct pending {
    vec gradients[TILE];
    vec *weights, *first, *second;
};

/* Tile by tile, the gradients, and meanwhile the update of the tile before: its roots, its divisions
   and its way from memory take no time from the products. */
INLINE void learn_by(
    const int kind, struct worker *me, const struct layer *l, const float *inputs,
    const float *deltas, float stride, float decay
) {
    const struct rule rule = me->team->task->rule;
    int rows = rows_of(l), in = stride_of(l->inputs), out = stride_of(l->units);
    int blocks = rows / ROWS, from, to;
    struct pending before = {0};
    share(me, panels_of(l) * blocks, &from, &to);
    /* Once more at the end, with an update only: a second copy of it could be compiled to others
       than these bits. */
    for (int item = from; item <= to; item++) {
        int panel = item / blocks, row = item % blocks * ROWS, images = 0;
        int count = item < to ? me->team->task->size : 0;
        vec c[ROWS][2];
        clear(c);
        for (int i = 0; i < TILE; i++) {
            /* Only Adam's update is long enough to be spread over them. */
            int more = (kind == ADAM ? count * (i + 1) / TILE : count) - images;
            multiply(
                c, ROWS, more, inputs + row + (long)images * in, 1, in,
                deltas + panel * PANEL + (long)images * out, out, 0, 0, 2 * ROWS
            );
            images += more;
            if (item == from) continue;
            vec *first = kind == SGD ? 0 : before.first + i;
            vec *second = kind == ADAM ? before.second + i : 0;
            update(kind, &rule, stride, decay, before.gradients[i], before.weights + i, first, second);
        }
        long at = ((long)panel * rows + row) * PANEL;
        memcpy(before.gradients, c, sizeof c);
        before.weights = (vec *)(l->weights + at);
        before.first = (vec *)(l->first + at);
        before.second = (vec *)(l->second + at);
    }
}

static void learn(
    struct worker *me, const struct layer *l, const float *inputs, const float *deltas,
    float stride, float decay
) {
    switch (me->team->task->rule.kind) {
        case SGD: learn_by(SGD, me, l, inputs, deltas, stride, decay); break;
        case MOMENTUM: learn_by(MOMENTUM, me, l, inputs, deltas, stride, decay); break;
        case NESTEROV: learn_by(NESTEROV, me, l, inputs, deltas, stride, decay); break;
        default: learn_by(ADAM, me, l, inputs, deltas, stride, decay);
    }
}

/* Loss and errors of the last layer: cross-entropy of the softmax, averaged over the batch. */
static void judge(struct worker *me) {
    struct team *team = me->team;
    const struct task *task = team->task;
    int classes = task->layers[task->depth - 1].units, step = stride_of(classes), from, to;
    float spread = task->smoothing / classes, peak = 1 - task->smoothing;
    share(me, task->size, &from, &to);
    for (int i = from; i < to; i++) {
        const float *logits = team->outputs[task->depth - 1] + (long)i * step;
        float *deltas = team->deltas[task->depth - 1] + (long)i * step;
        int label = me->labels[i], best = 0;
        for (int j = 1; j < classes; j++)
            if (logits[j] > logits[best]) best = j;
        float sum = 0, total = 0;
        for (int j = 0; j < classes; j++) {
            sum += deltas[j] = expf(logits[j] - logits[best]);
            total += logits[j] - logits[best];
        }
        float expected = peak * (logits[label] - logits[best]) + spread * total;
        team->losses[i] = logf(sum) - expected;
        team->right[i] = best == label;
        for (int j = 0; j < classes; j++) {
            float target = spread + (j == label ? peak : 0);
            deltas[j] = (deltas[j] / sum - target) / task->size;
        }
    }
}
