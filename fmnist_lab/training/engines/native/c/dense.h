#pragma once

/* Dense layers. The threads share the columns of a layer in the forward product, the columns of its
   inputs in the backward product, and the weights in the update. A weight therefore stays with one
   thread, in its core's cache, and a gradient never leaves its core: it becomes an update while the
   next gradients are summed.

   Weights are kept in panels: PANEL = 2 * LANES columns of all rows of a layer, one panel after the
   other. The bias is one row more, multiplied with an input that is always 1. Rows and columns are
   padded with zeros, whose gradient is zero, so that tiles of weights have no remainder.

   The n images of a step are cut into tiles as evenly as possible: 32 images into tiles of 5 and 6
   rows, where ROWS is 6, rather than into five of 6 and one of 2, which would take as long as one of 4.

   Shapes: n images per step; a layer has `in` inputs and `out` units; activations have a row every
   S(units) = row_stride(units) floats. */

#include "common.h"

/* The most images per part of a batch in dense_update; the parts are nearly even. What a tile reads of so many images stays in the
   first-level cache until the next tile, and so do the addresses of their pages (in the TLB). */
enum { IMAGES = 64 };

/* Rows of a panel: inputs and bias, rounded up. */
static int panel_rows(const struct dense_layer *l) { return round_up(l->inputs + 1, ROWS); }
static int panel_count(const struct dense_layer *l) { return round_up(l->units, PANEL) / PANEL; }

/* The operands of a product with one panel: c = a @ b.

   a  (., count), a row every a_row floats
   b  (count, PANEL)
   c  (., PANEL), a row every c_row floats */
struct product {
    const float *a, *b;
    float *c;
    long a_row, c_row;
    int count;
};

/* c[r] = 0 for all ROWS rows of a tile. */
INLINE void clear(vec c[ROWS][2]) {
    for (int r = 0; r < ROWS; r++) c[r][0] = c[r][1] = (vec){0};
}

/* c = a @ b for one tile of `height` rows of a and c. */
INLINE void product_tile(const int height, struct product p) {
    vec c[ROWS][2];
    clear(c);
    multiply(c, height, p.count, p.a, p.a_row, 1, p.b, PANEL, 0, 0, 0);
    for (int r = 0; r < height; r++) copy_rows((vec(*)[2])(p.c + r * p.c_row), c + r, 1);
}

/* c = a @ b for the rows of a and c that are this thread's.

   n         rows of all threads
   from, to  this thread's tiles, from `from` to before `to`, of part_count(n, ROWS) even ones */
static void product_tiles(int n, int from, int to, struct product p) {
    int tiles = part_count(n, ROWS);
    for (int tile = from; tile < to; tile++) {
        int row = part_start(n, tiles, tile);
        struct product here = p;
        here.a += row * p.a_row, here.c += row * p.c_row;
        /* A loop for each height, with all sums in registers. */
        switch (part_start(n, tiles, tile + 1) - row) {
            case 1: product_tile(1, here); break;
            case 2: product_tile(2, here); break;
            case 3: product_tile(3, here); break;
            case 4: product_tile(4, here); break;
            case 5: product_tile(5, here); break;
            case 6: product_tile(6, here); break;
            case 7: product_tile(7 < ROWS ? 7 : ROWS, here); break;
            default: product_tile(ROWS, here);
        }
    }
}

/* This thread's tiles of one panel, where all threads share the tiles of all panels. */
struct portion {
    int panel, from, to; /* tiles of the panel, from `from` to before `to` */
    int row, end;        /* images, from `row` to before `end` */
    int next;            /* the item after the last of these tiles */
};

/* The tiles from `item` to before `to` that belong to the same panel as item, where each panel has
   part_count(n, ROWS) of them. */
static struct portion portion_from(int item, int to, int n) {
    int tiles = part_count(n, ROWS), panel = item / tiles, begin = panel * tiles;
    int next = begin + tiles < to ? begin + tiles : to;
    return (struct portion){
        .panel = panel, .from = item - begin, .to = next - begin, .next = next,
        .row = part_start(n, tiles, item - begin), .end = part_start(n, tiles, next - begin),
    };
}

/* outputs = relu(inputs @ weights + bias); without the ReLU if `last`.

   inputs   (n, in), a row every S(in) floats, column `in` is 1
   weights  (in + 1, out) in panels of 2 * LANES columns, the bias below
   outputs  (n, out), a row every S(out) floats; column `out` is set to 1 */
static void dense_forward(
    struct worker *me, const struct dense_layer *l, const float *inputs, float *outputs, int last
) {
    int rows = panel_rows(l), in = row_stride(l->inputs), out = row_stride(l->units);
    int n = me->team->task->batch_size, item, to;
    partition(me, panel_count(l) * part_count(n, ROWS), &item, &to);
    while (item < to) {
        struct portion mine = portion_from(item, to, n);
        const float *weights = l->weights + (long)mine.panel * rows * PANEL;
        float *columns = outputs + mine.panel * PANEL;
        struct product p = {inputs, weights, columns, in, out, l->inputs + 1};
        product_tiles(n, mine.from, mine.to, p);
        int one = l->units - mine.panel * PANEL;
        for (int i = mine.row; i < mine.end; i++) {
            vec *row = (vec *)(columns + (long)i * out);
            for (int h = 0; h < 2 && !last; h++) row[h] = where_positive(row[h], row[h]);
            if (one < PANEL) ((float *)row)[one] = 1;
        }
        item = mine.next;
    }
}

/* transposed[u, j] = weights[panel * PANEL + j, u], or 0 beyond the inputs.

   weights     (in + 1, out) in panels of 2 * LANES columns
   transposed  (out, PANEL) */
static void transpose_panel(const struct dense_layer *l, int panel, float *transposed) {
    int units = l->units, rows = panel_rows(l), first_row = panel * PANEL;
    int inside = l->inputs - first_row < PANEL ? l->inputs - first_row : PANEL;
    /* Square by square, which stay in the first-level cache. */
    for (int first = 0; first < units; first += PANEL) {
        int count = units - first < PANEL ? units - first : PANEL;
        const float *square = l->weights + ((long)(first / PANEL) * rows + first_row) * PANEL;
        float *to = transposed + (long)first * PANEL;
        for (int j = 0; j < PANEL; j++)
            for (int u = 0; u < count; u++) to[u * PANEL + j] = j < inside ? square[j * PANEL + u] : 0;
    }
}

/* input_deltas = (deltas @ weights^T) * (inputs > 0): the derivatives by the layer's inputs, which
   are the outputs of a ReLU.

   deltas        (n, out), a row every S(out) floats
   transposed    (threads, out, PANEL), scratch: each thread's panel of weights^T
   inputs        (n, in), a row every S(in) floats
   input_deltas  (n, in), a row every S(in) floats */
static void dense_backward(
    struct worker *me, const struct dense_layer *l, const float *deltas, float *transposed,
    const float *inputs, float *input_deltas
) {
    int in = row_stride(l->inputs), out = row_stride(l->units);
    int n = me->team->task->batch_size, item, to;
    partition(me, round_up(l->inputs, PANEL) / PANEL * part_count(n, ROWS), &item, &to);
    transposed += (long)me->index * l->units * PANEL;
    while (item < to) {
        struct portion mine = portion_from(item, to, n);
        transpose_panel(l, mine.panel, transposed);
        float *columns = input_deltas + mine.panel * PANEL;
        struct product p = {deltas, transposed, columns, out, in, l->units};
        product_tiles(n, mine.from, mine.to, p);
        for (int i = mine.row; i < mine.end; i++) {
            vec *row = (vec *)(columns + (long)i * in);
            const vec *of = (const vec *)(inputs + (long)i * in + mine.panel * PANEL);
            for (int h = 0; h < 2; h++) row[h] = where_positive(row[h], of[h]);
        }
        item = mine.next;
    }
}

/* sums = inputs^T @ deltas over all images but those of the batch's last part, for some tiles of a
   panel. A whole batch would not stay in the first-level cache from one tile to the next.

   inputs    (n, in), a row every S(in) floats
   deltas    (n, PANEL), a row every S(out) floats
   from, to  tiles of ROWS rows of the panel, from `from` to before `to`
   sums      (tiles of the panel * ROWS, PANEL), of which these tiles are written */
static void sum_first_parts(
    const struct dense_layer *l, int n, const float *inputs, const float *deltas, int from, int to,
    float *sums
) {
    int in = row_stride(l->inputs), out = row_stride(l->units), parts = part_count(n, IMAGES);
    for (int part = 0; part < parts - 1; part++) {
        int image = part_start(n, parts, part), count = part_start(n, parts, part + 1) - image;
        for (int row = from * ROWS; row < to * ROWS; row += ROWS) {
            vec c[ROWS][2], (*sum)[2] = (vec(*)[2])(sums + (long)row * PANEL);
            if (part) copy_rows(c, sum, ROWS);
            else clear(c);
            multiply(
                c, ROWS, count, inputs + row + (long)image * in, 1, in, deltas + (long)image * out, out,
                0, 0, 2 * ROWS
            );
            copy_rows(sum, c, ROWS);
        }
    }
}

/* A tile of weights (ROWS, PANEL) whose gradients are known and which is not updated yet. */
struct pending {
    vec gradients[TILE];
    vec *weights, *momentum, *velocity;
};

/* dense_update for one kind of optimizer. Tile by tile, it computes the gradients and meanwhile
   updates the tile before, so that the update's square roots, divisions and memory accesses take
   little time from the products. */
INLINE void dense_update_by(
    const int kind, struct worker *me, const struct dense_layer *l, const float *inputs,
    const float *deltas, float step_size, float decay
) {
    const struct optimizer optimizer = me->team->task->optimizer;
    int rows = panel_rows(l), in = row_stride(l->inputs), out = row_stride(l->units);
    int tiles = rows / ROWS, n = me->team->task->batch_size, from, to;
    int parts = part_count(n, IMAGES), last_part = part_start(n, parts, parts - 1);
    struct pending before = {0};
    partition(me, panel_count(l) * tiles, &from, &to);
    /* One round more, for the last tile's update: a second copy of the update might be compiled to
       other last bits. */
    for (int item = from; item <= to; item++) {
        int panel = item / tiles, tile = item % tiles, row = tile * ROWS, image = last_part;
        int count = item < to ? n - last_part : 0;
        const float *columns = deltas + panel * PANEL;
        if (count && parts > 1 && (item == from || tile == 0)) {
            int end = to - item < tiles - tile ? tile + to - item : tiles;
            sum_first_parts(l, n, inputs, columns, tile, end, me->sums);
        }
        vec c[ROWS][2];
        if (parts > 1) copy_rows(c, (vec(*)[2])(me->sums + (long)row * PANEL), ROWS);
        else clear(c);
        for (int piece = 0; piece < PIECES; piece++) {
            /* Only Adam's update is long enough to be spread over the products. */
            int done = kind == ADAM ? part_start(count, PIECES, piece + 1) : count;
            int more = last_part + done - image;
            multiply(
                c, ROWS, more, inputs + row + (long)image * in, 1, in, columns + (long)image * out, out,
                0, 0, 2 * ROWS
            );
            image += more;
            if (item == from) continue;
            for (int i = piece * TILE / PIECES; i < (piece + 1) * TILE / PIECES; i++) {
                vec *momentum = kind == SGD ? 0 : before.momentum + i;
                vec *velocity = kind == ADAM ? before.velocity + i : 0;
                update(
                    kind, &optimizer, step_size, decay, before.gradients[i], before.weights + i,
                    momentum, velocity
                );
            }
        }
        long at = ((long)panel * rows + row) * PANEL;
        copy_rows((vec(*)[2])before.gradients, c, ROWS);
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
