#pragma once

/* Dense layers. The threads share the columns of a layer in the forward product, the columns of its
   inputs in the backward product, and the weights in the update. A weight therefore stays with one
   thread, in its core's cache, and a gradient never leaves its core: it becomes an update while the
   next gradients are summed.

   Weights are kept in panels: PANEL = 2 * LANES columns of all rows of a layer, one panel after the
   other. The bias is one row more, multiplied with an input that is always 1. Rows and columns are
   padded with zeros, whose gradient is zero, so that no loop has a remainder.

   Shapes: n images per step, `rows` = n rounded up to a multiple of ROWS; a layer has `in` inputs and
   `out` units; activations have a row every S(units) = row_stride(units) floats. */

#include "common.h"

/* Rows of a panel: inputs and bias, rounded up. */
static int panel_rows(const struct dense_layer *l) { return round_up(l->inputs + 1, ROWS); }
static int panel_count(const struct dense_layer *l) { return round_up(l->units, PANEL) / PANEL; }

/* c[r] = 0 for all ROWS rows of a tile. */
INLINE void clear(vec c[ROWS][2]) {
    for (int r = 0; r < ROWS; r++) c[r][0] = c[r][1] = (vec){0};
}

/* outputs = relu(inputs @ weights + bias); without the ReLU if `last`.

   inputs   (rows, in), a row every S(in) floats, column `in` is 1
   weights  (in + 1, out) in panels of 2 * LANES columns, the bias below
   outputs  (rows, out), a row every S(out) floats; column `out` is set to 1 */
static void dense_forward(
    struct worker *me, const struct dense_layer *l, const float *inputs, float *outputs, int last
) {
    int rows = panel_rows(l), in = row_stride(l->inputs), out = row_stride(l->units);
    int blocks = me->team->rows / ROWS, from, to;
    partition(me, panel_count(l) * blocks, &from, &to);
    for (int item = from; item < to; item++) {
        int panel = item / blocks, i = item % blocks * ROWS;
        vec c[ROWS][2];
        const float *weights = l->weights + (long)panel * rows * PANEL;
        clear(c);
        multiply(c, ROWS, rows, inputs + (long)i * in, in, 1, weights, PANEL, 0, 0, 0);
        for (int r = 0; r < ROWS; r++) {
            vec *to_row = (vec *)(outputs + (long)(i + r) * out + panel * PANEL);
            for (int h = 0; h < 2; h++) to_row[h] = last ? c[r][h] : where_positive(c[r][h], c[r][h]);
            int one = l->units - panel * PANEL;
            if (one < PANEL) ((float *)to_row)[one] = 1;
        }
    }
}

/* input_deltas = (deltas @ weights^T) * (inputs > 0): the derivatives by the layer's inputs, which
   are the outputs of a ReLU.

   deltas        (rows, out), a row every S(out) floats
   transposed    (threads, out, PANEL), scratch: each thread's panel of weights^T
   inputs        (rows, in), a row every S(in) floats
   input_deltas  (rows, in), a row every S(in) floats */
static void dense_backward(
    struct worker *me, const struct dense_layer *l, const float *deltas, float *transposed,
    const float *inputs, float *input_deltas
) {
    int units = l->units, rows = panel_rows(l);
    int in = row_stride(l->units), out = row_stride(l->inputs);
    int blocks = me->team->rows / ROWS, from, to, transposed_panel = -1;
    partition(me, round_up(l->inputs, PANEL) / PANEL * blocks, &from, &to);
    transposed += (long)me->index * units * PANEL;
    for (int item = from; item < to; item++) {
        int panel = item / blocks, i = item % blocks * ROWS;
        if (panel != transposed_panel) {
            for (int j = 0; j < PANEL; j++)
                for (int u = 0; u < units; u++) {
                    int row = panel * PANEL + j;
                    const float *w = l->weights + ((long)(u / PANEL) * rows + row) * PANEL;
                    transposed[u * PANEL + j] = row < l->inputs ? w[u % PANEL] : 0;
                }
            transposed_panel = panel;
        }
        vec c[ROWS][2];
        clear(c);
        multiply(c, ROWS, units, deltas + (long)i * in, in, 1, transposed, PANEL, 0, 0, 0);
        for (int r = 0; r < ROWS; r++) {
            long at = (long)(i + r) * out + panel * PANEL;
            for (int h = 0; h < 2; h++)
                ((vec *)(input_deltas + at))[h] =
                    where_positive(c[r][h], ((const vec *)(inputs + at))[h]);
        }
    }
}

/* A tile of weights (ROWS, PANEL) whose gradients are known and which is not updated yet. */
struct pending {
    vec gradients[TILE];
    vec *weights, *momentum, *velocity;
};

/* dense_update for one kind of optimizer. Tile by tile, it computes the gradients and meanwhile
   updates the tile before, so that the update's square roots, divisions and memory accesses take no
   time from the products. */
INLINE void dense_update_by(
    const int kind, struct worker *me, const struct dense_layer *l, const float *inputs,
    const float *deltas, float step_size, float decay
) {
    const struct optimizer optimizer = me->team->task->optimizer;
    int rows = panel_rows(l), in = row_stride(l->inputs), out = row_stride(l->units);
    int blocks = rows / ROWS, from, to;
    struct pending before = {0};
    partition(me, panel_count(l) * blocks, &from, &to);
    /* One round more, for the last tile's update: a second copy of the update might be compiled to
       other last bits. */
    for (int item = from; item <= to; item++) {
        int panel = item / blocks, row = item % blocks * ROWS, images = 0;
        int count = item < to ? me->team->task->batch_size : 0;
        vec c[ROWS][2];
        clear(c);
        for (int i = 0; i < TILE; i++) {
            /* Only Adam's update is long enough to be spread over the products. */
            int more = (kind == ADAM ? count * (i + 1) / TILE : count) - images;
            multiply(
                c, ROWS, more, inputs + row + (long)images * in, 1, in,
                deltas + panel * PANEL + (long)images * out, out, 0, 0, 2 * ROWS
            );
            images += more;
            if (item == from) continue;
            vec *momentum = kind == SGD ? 0 : before.momentum + i;
            vec *velocity = kind == ADAM ? before.velocity + i : 0;
            update(
                kind, &optimizer, step_size, decay, before.gradients[i], before.weights + i, momentum,
                velocity
            );
        }
        long at = ((long)panel * rows + row) * PANEL;
        memcpy(before.gradients, c, sizeof c);
        before.weights = (vec *)(l->weights + at);
        before.momentum = (vec *)(l->momentum + at);
        before.velocity = (vec *)(l->velocity + at);
    }
}

/* gradients = inputs^T @ deltas, the sum over the n images, and the optimizer's update by them.

   inputs                       (n, in), a row every S(in) floats, column `in` is 1
   deltas                       (n, out), a row every S(out) floats
   weights, momentum, velocity  (in + 1, out) in panels of 2 * LANES columns
   step_size, decay             see update */
static void dense_update(
    struct worker *me, const struct dense_layer *l, const float *inputs, const float *deltas,
    float step_size, float decay
) {
    switch (me->team->task->optimizer.kind) {
        case SGD: dense_update_by(SGD, me, l, inputs, deltas, step_size, decay); break;
        case MOMENTUM: dense_update_by(MOMENTUM, me, l, inputs, deltas, step_size, decay); break;
        case NESTEROV: dense_update_by(NESTEROV, me, l, inputs, deltas, step_size, decay); break;
        default: dense_update_by(ADAM, me, l, inputs, deltas, step_size, decay);
    }
}

/* Cross-entropy of softmax(logits) and the labels, and its derivatives by the logits.

     p       = softmax(logits)
     target  = (1 - smoothing) [j == label] + smoothing / classes
     loss    = -sum over j of target[j] log p[j]
     deltas  = (p - target) / n

   logits   (n, classes), the last layer's outputs, a row every S(classes) floats
   labels   (n,), from 0 to classes - 1
   losses   (n,)
   correct  (n,), 1 where the first of the greatest logits is the label's, else 0
   deltas   (n, classes), a row every S(classes) floats */
static void softmax_cross_entropy(struct worker *me) {
    struct team *team = me->team;
    const struct task *task = team->task;
    int last = task->dense_count - 1;
    int classes = task->dense_layers[last].units, stride = row_stride(classes), from, to;
    float spread = task->smoothing / classes, peak = 1 - task->smoothing;
    partition(me, task->batch_size, &from, &to);
    for (int i = from; i < to; i++) {
        const float *logits = team->outputs[last] + (long)i * stride;
        float *deltas = team->deltas[last] + (long)i * stride;
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
        team->correct[i] = best == label;
        for (int j = 0; j < classes; j++) {
            float target = spread + (j == label ? peak : 0);
            deltas[j] = (deltas[j] / sum - target) / task->batch_size;
        }
    }
}
