#pragma once

/* Convolutions of stride 1 with "same" padding, each followed by ReLU and perhaps by max-pooling over
   windows of pool x pool pixels.

   One thread takes an image through all convolutions, forward and later backward, so a layer's
   outputs are still in the core's cache when the next layer reads them. Images lie within a border of
   zeros, pixel by pixel, each pixel with all its channels. The floats that one row of the kernel is
   multiplied with are therefore contiguous, and a convolution is a few products of dense.h's kind, one
   for each row of the kernel.

   Gradients are summed in SHARDS of a batch, and the shards in one order, so that results do not
   depend on which thread had which image.

   A convolution in bfloat16 multiplies pairs of bfloat16, each in the place of one float, so its loops
   are the same and half as long: pairs of channels, or pairs of pixels where the sum is over pixels.
   The first convolution is always in float32, since bytes enter it as floats.

   Shapes: a layer l has an input (height, width, channels) and, before the pooling, an output (height,
   width, units); its kernel is (size, size, channels, units). Units are stored as stored(units)
   channels per pixel, and these are the `channels` of the next layer. "padded (height, width, c)"
   means within a border of size / 2 pixels; see padded_floats. */

#include "common.h"

/* More shards would let more threads share a batch and would cost each step more memory for the sums:
   16 are 1 % of a step of the small CNN. */
enum { SHARDS = 16 };
/* The number of a window's pixel is kept in a byte. */
enum { LARGEST_POOL = 15 };

/* Channels per stored pixel: whole vectors, so only the left half of a kernel's last panel may be in
   use. */
static int stored(int units) { return round_up(units, LANES); }
/* Panels of so many channels, ceil(channels / PANEL). */
static int panels_for(int channels) { return round_up(channels, PANEL) / PANEL; }
/* 1 if only the left vector of a panel has channels. */
static int is_half(int channels, int panel) { return channels - panel * PANEL <= LANES; }
/* Pixels of zeros on each side of an image, (size - 1) / 2 as size is odd. */
static int border(const struct conv_layer *l) { return l->size / 2; }
/* Contiguous inputs that one row of the kernel is multiplied with. */
static int kernel_row_inputs(const struct conv_layer *l) { return l->size * l->channels; }
/* Rows of a panel: size * size * channels weights and the bias. */
static int kernel_rows(const struct conv_layer *l) { return l->size * kernel_row_inputs(l) + 1; }
/* Floats of all panels of the weights. */
static long kernel_floats(const struct conv_layer *l) {
    return (long)kernel_rows(l) * panels_for(l->units) * PANEL;
}
/* The shape after pooling: floor(height / pool), floor(width / pool), and its floats per image. */
static int pooled_height(const struct conv_layer *l) { return l->height / l->pool; }
static int pooled_width(const struct conv_layer *l) { return l->width / l->pool; }
static long pooled_floats(const struct conv_layer *l) {
    return (long)pooled_height(l) * pooled_width(l) * stored(l->units);
}
/* Floats of a flipped kernel; see flip_kernel. */
static long flipped_floats(const struct conv_layer *l) {
    return (long)l->size * l->size * stored(l->units) * panels_for(l->channels) * PANEL;
}
/* Floats from one padded row of pixels to the next, for so many channels. */
static long padded_stride(const struct conv_layer *l, int channels) {
    return (long)(l->width + 2 * border(l)) * channels;
}
/* Floats of a padded image of so many channels. Tiles read beyond the image and ignore the result, so
   there are that many floats more: SPAN pixels in the convolution, SPAN floats in its gradients. */
static long padded_floats(const struct conv_layer *l, int channels) {
    long image = (l->height + 2 * border(l)) * padded_stride(l, channels);
    return (image + (long)SPAN * (channels + 1) + PANEL - 1) / PANEL * PANEL;
}
/* The place of pixel (y, x) in a padded image. */
static long padded_index(const struct conv_layer *l, int channels, int y, int x) {
    return (y + border(l)) * padded_stride(l, channels) + (long)(x + border(l)) * channels;
}

/* Floats' places per pixel of so many channels, as an input of products. */
static int pixel_words(const struct conv_layer *l, int channels) {
    return l->bf16 ? channels / 2 : channels;
}
/* Floats' places per panel of the kernel, without the bias. */
static long kernel_words(const struct conv_layer *l) {
    return pixel_words(l, kernel_rows(l) - 1) * (long)PANEL;
}

/* The padded input of convolution j for one image of the batch. */
static float *padded_input(const struct team *team, int j, int image) {
    const struct conv_layer *l = &team->task->conv_layers[j];
    return team->padded[j] + image * padded_floats(l, pixel_words(l, l->channels));
}

/* conv_pixels for a tile of so many pixels; arguments as there. */
INLINE void conv_tile(
    const int pixels, const int bf16, const int half, const struct conv_layer *l,
    const float *input, int pixel, const float *kernel, const vec bias[2], float *output
) {
    vec c[SPAN][2];
    int count = l->size * pixel;
    for (int r = 0; r < pixels; r++) c[r][0] = bias[0], c[r][1] = bias[1];
    for (int line = 0; line < l->size; line++)
        multiply(
            c, pixels, count, input + line * padded_stride(l, pixel), pixel, 1,
            kernel + (long)line * count * PANEL, PANEL, bf16, half, 0
        );
    copy_rows((vec(*)[2])output, c, pixels);
}

/* conv_pixels for one kind of numbers and one width of the panel; arguments as there. */
INLINE void conv_pixels_by(
    const int bf16, const int half, const struct conv_layer *l, const float *input, int pixel,
    const float *kernel, const vec bias[2], float *output
) {
    int width = l->width;
    if (width <= HALF) {
        conv_tile(HALF, bf16, half, l, input, pixel, kernel, bias, output);
        return;
    }
    for (int x = 0; x < width; x += SPAN) {
        if (x + SPAN > width && width >= SPAN) x = width - SPAN;
        conv_tile(
            SPAN, bf16, half, l, input + (long)x * pixel, pixel, kernel, bias,
            output + (long)x * PANEL
        );
    }
}

/* One row of a convolution's output pixels, for one panel of its units:

     output[x, u] = bias[u] + sum over (i, j, c) of input[i, x + j, c] * kernel[i, j, c, u]

   input   `size` rows of a padded image (., width, pixel), beginning with the topmost
   pixel   floats' places per pixel
   kernel  (size, size, pixel, PANEL)
   bias    (PANEL,)
   output  (width, PANEL). Tiles overlap rather than end in a remainder; those of narrow rows write
           beyond the end, up to SPAN pixels */
static void conv_pixels(
    const struct conv_layer *l, const float *input, int pixel, const float *kernel,
    const vec bias[2], float *output, int half
) {
    switch (2 * l->bf16 + half) {
        case 0: conv_pixels_by(0, 0, l, input, pixel, kernel, bias, output); break;
        case 1: conv_pixels_by(0, 1, l, input, pixel, kernel, bias, output); break;
        case 2: conv_pixels_by(1, 0, l, input, pixel, kernel, bias, output); break;
        default: conv_pixels_by(1, 1, l, input, pixel, kernel, bias, output);
    }
}

/* relu(maximum of a window), for one vector of units. The first of equals wins, as in Keras; a NaN
   wins over all, so that it shows.

   window  the window's top left pixel in pool rows of pixels (pool, width + SPAN, PANEL)
   from    (LANES,), the number of the winning pixel, row by row, or pool * pool where ReLU gives 0 */
INLINE vec max_of_window(const struct conv_layer *l, const vec *window, mask *from) {
    int pool = l->pool;
    long row = (l->width + SPAN) * 2L;
    vec best = *window;
    *from = (mask){0};
    for (int q = 1; q < pool * pool; q++) {
        vec other = window[q / pool * row + q % pool * 2];
        mask more = ~(other <= best) & (best == best);
        best = (vec)(((mask)other & more) | ((mask)best & ~more));
        *from = (more & q) | (*from & ~more);
    }
    mask off = best <= (vec){0};
    *from = (off & (pool * pool)) | (*from & ~off);
    return where_positive(best, best);
}

/* output = maxpool(relu(convolution(input) + bias)) of convolution j, for one image.

   input     padded (height, width, channels), that of padded_input
   output    (height / pool, width / pool, stored(units)), a row every `stride` floats, or bfloat16 if
             `to_half`
   argmax    the same shape without gaps, written: see max_of_window */
static void conv_forward(
    struct worker *me, int j, int image, float *output, long stride, int to_half
) {
    const struct team *team = me->team;
    const struct conv_layer *l = &team->task->conv_layers[j];
    const float *input = padded_input(team, j, image);
    uint8_t *argmax = team->argmax[j] + image * pooled_floats(l);
    int pool = l->pool, width = pooled_width(l), channels = stored(l->units);
    int pixel = pixel_words(l, l->channels);
    for (int panel = 0; panel < panels_for(l->units); panel++) {
        const float *kernel = l->bf16 ? me->bf16_kernels[j] + panel * kernel_words(l)
                                      : l->weights + (long)panel * kernel_rows(l) * PANEL;
        const float *bias = l->weights + ((long)(panel + 1) * kernel_rows(l) - 1) * PANEL;
        int half = is_half(channels, panel);
        for (int y = 0; y < pooled_height(l); y++) {
            for (int line = 0; line < pool; line++)
                conv_pixels(
                    l, input + (y * pool + line) * padded_stride(l, pixel), pixel, kernel,
                    (const vec *)bias, me->pixel_rows + (long)line * (l->width + SPAN) * PANEL, half
                );
            for (int x = 0; x < width; x++)
                for (int h = 0; h < 2 - half; h++) {
                    mask from;
                    const vec *window = (const vec *)(me->pixel_rows + (long)x * pool * PANEL) + h;
                    vec best = max_of_window(l, window, &from);
                    long at = x * (long)channels + panel * PANEL + h * LANES;
                    long to = y * stride + at;
                    if (to_half) *(halves *)((uint16_t *)output + to) = to_bf16(best);
                    else *(vec *)(output + to) = best;
                    *(bytes *)(argmax + (long)y * width * channels + at) =
                        __builtin_convertvector(from, bytes);
                }
        }
    }
}

/* The derivatives by a convolution's outputs before ReLU and pooling, for one image:

     deltas[y, x, u] = pooled_deltas[window of (y, x), u] if (y, x) is its maximum, else 0

   pooled_deltas  (height / pool, width / pool, stored(units))
   argmax         the same shape; see max_of_window
   deltas         padded (height, width, stored(units)); the border stays zero */
static void maxpool_backward(
    const struct conv_layer *l, const float *pooled_deltas, const uint8_t *argmax, float *deltas
) {
    int pool = l->pool, channels = stored(l->units), width = pooled_width(l);
    for (int y = 0; y < pooled_height(l); y++)
        for (int q = 0; q < pool * pool; q++)
            for (int x = 0; x < width; x++) {
                long at = ((long)y * width + x) * channels;
                float *pixel =
                    deltas + padded_index(l, channels, y * pool + q / pool, x * pool + q % pool);
                for (int u = 0; u < channels; u += LANES) {
                    mask from = __builtin_convertvector(*(const bytes *)(argmax + at + u), mask);
                    vec delta = *(const vec *)(pooled_deltas + at + u);
                    *(vec *)(pixel + u) = (vec)((mask)delta & (from == q));
                }
            }
}

/* The operands of a sum over pixels: inputs and deltas, or pairs of both. */
struct walk {
    const float *inputs, *deltas;
    int count;                      /* pixels, or pairs, per row */
    long input_row, input_step;     /* floats from one row, or pixel, to the next */
    long delta_row, delta_step;
};

/* sums[r] += sum over (y, x) of inputs[y, x, r] * deltas[y, x], for a tile of `count` weights.

   sums   (valid, PANEL); the tile's rows from `valid` on are computed and dropped
   first  1: begin with zero instead of the sums */
INLINE void weights_tile(
    const int count, const int bf16, const int half, int valid, int height, struct walk at,
    float *sums, int first
) {
    vec c[SPAN][2];
    for (int r = 0; r < count; r++) {
        const vec *sum = (const vec *)(sums + (long)(r < valid ? r : 0) * PANEL);
        c[r][0] = first ? (vec){0} : sum[0], c[r][1] = first ? (vec){0} : sum[1];
    }
    for (int y = 0; y < height; y++)
        multiply(
            c, count, at.count, at.inputs + y * at.input_row, 1, at.input_step,
            at.deltas + y * at.delta_row, at.delta_step, bf16, half, 0
        );
    for (int r = 0; r < count && r < valid; r++) copy_rows((vec(*)[2])sums + r, c + r, 1);
}

/* weights_of_panel for one kind of numbers and one width of the panel. */
INLINE void weights_of_panel_by(
    const int bf16, const int half, const struct conv_layer *l, int panel, struct walk at,
    float *sums, int first
) {
    int count = kernel_row_inputs(l), height = l->height;
    at.deltas += panel * PANEL;
    for (int line = 0; line < l->size; line++)
        for (int k = 0; k < count; k += SPAN) {
            struct walk here = at;
            here.inputs += line * at.input_row + k;
            int rest = count - k, valid = rest < SPAN ? rest : SPAN;
            float *to = sums + ((long)panel * kernel_rows(l) + line * count + k) * PANEL;
            if (rest <= HALF) weights_tile(HALF, bf16, half, valid, height, here, to, first);
            else weights_tile(SPAN, bf16, half, valid, height, here, to, first);
        }
}

/* conv_backward_weights for one panel, without the bias. */
static void weights_of_panel(
    const struct conv_layer *l, int panel, struct walk at, float *sums, int first
) {
    switch (2 * l->bf16 + is_half(stored(l->units), panel)) {
        case 0: weights_of_panel_by(0, 0, l, panel, at, sums, first); break;
        case 1: weights_of_panel_by(0, 1, l, panel, at, sums, first); break;
        case 2: weights_of_panel_by(1, 0, l, panel, at, sums, first); break;
        default: weights_of_panel_by(1, 1, l, panel, at, sums, first);
    }
}

/* Add one image's gradients of a convolution's weights and bias:

     sums[i, j, c, u] += sum over (y, x) of input[y + i, x + j, c] * deltas[y, x, u]
     sums[bias, u]    += sum over (y, x) of deltas[y, x, u]

   input   padded (height, width, channels); in bfloat16 me->input_pairs is read instead
   deltas  padded (height, width, stored(units)); in bfloat16 me->delta_pairs, save for the bias
   sums    (size * size * channels + 1, units) in panels of 2 * LANES columns, as the weights
   first   1: begin with zero instead of the sums, for the first image of a shard */
static void conv_backward_weights(
    struct worker *me, const struct conv_layer *l, const float *input, const float *deltas,
    float *sums, int first
) {
    int channels = stored(l->units);
    const float *within = deltas + padded_index(l, channels, 0, 0);
    struct walk at = {
        input, within, l->width,
        padded_stride(l, l->channels), l->channels, padded_stride(l, channels), channels,
    };
    if (l->bf16) {
        int count = (l->width + 1) / 2;
        at = (struct walk){
            me->input_pairs, me->delta_pairs, count,
            padded_stride(l, l->channels), 2L * l->channels, (long)count * channels, channels,
        };
    }
    for (int panel = 0; panel < panels_for(l->units); panel++) {
        weights_of_panel(l, panel, at, sums, first);
        vec *bias = (vec *)(sums + ((long)(panel + 1) * kernel_rows(l) - 1) * PANEL);
        for (int h = 0; h < 2 - is_half(channels, panel); h++) {
            vec sum = first ? (vec){0} : bias[h];
            for (int y = 0; y < l->height; y++)
                for (int x = 0; x < l->width; x++) {
                    long pixel = y * padded_stride(l, channels) + (long)x * channels;
                    sum += ((const vec *)(within + pixel + panel * PANEL))[h];
                }
            bias[h] = sum;
        }
    }
}

/* The derivatives by a convolution's inputs, for one image: a convolution of the deltas with the
   flipped kernel,

     input_deltas[y, x, c] = sum over (i, j, u) of padded deltas[y + i, x + j, u] * flipped[i, j, u, c]

   deltas        padded (height, width, stored(units)), bfloat16 if the layer is
   flipped       see flip_kernel
   input_deltas  (height, width, channels) */
static void conv_backward_input(
    struct worker *me, const struct conv_layer *l, const float *deltas, const float *flipped,
    float *input_deltas
) {
    int pixel = pixel_words(l, stored(l->units));
    const vec no_bias[2] = {{0}};
    for (int panel = 0; panel < panels_for(l->channels); panel++) {
        int half = is_half(l->channels, panel), count = half ? LANES : PANEL;
        const float *kernel = flipped + (long)panel * l->size * l->size * pixel * PANEL;
        for (int y = 0; y < l->height; y++) {
            conv_pixels(
                l, deltas + y * padded_stride(l, pixel), pixel, kernel, no_bias, me->pixel_rows, half
            );
            for (int x = 0; x < l->width; x++)
                memcpy(
                    input_deltas + ((long)y * l->width + x) * l->channels + panel * PANEL,
                    me->pixel_rows + (long)x * PANEL, count * sizeof(float)
                );
        }
    }
}

/* flipped[i, j, u, c] = kernel[size - 1 - i, size - 1 - j, c, u]; this thread's part of it.

   kernel   (size, size, channels, units), the layer's weights
   flipped  (size, size, stored(units), channels) in panels of 2 * LANES channels, each panel (size,
            size, stored(units), PANEL); pairs of units if the layer is in bfloat16 */
static void flip_kernel(struct worker *me, const struct conv_layer *l, float *flipped) {
    int channels = stored(l->units), taps = l->size * l->size, from, to;
    partition(me, panels_for(l->channels) * taps, &from, &to);
    for (int item = from; item < to; item++) {
        int panel = item / taps, tap = item % taps;
        long row = (long)(taps - 1 - tap) * l->channels + panel * PANEL;
        int count = is_half(l->channels, panel) ? LANES : PANEL;
        vec two[2][2] = {{{0}}};
        for (int u = 0; u < channels; u++) {
            const float *w = l->weights + (long)(u / PANEL) * kernel_rows(l) * PANEL + u % PANEL;
            float *column = (float *)two[u % 2];
            for (int j = 0; j < count; j++) column[j] = w[(row + j) * PANEL];
            for (int h = 0; h < 2; h++) {
                long at = pixel_words(l, item * channels + u) * (long)PANEL;
                words *to_row = (words *)(flipped + at) + h;
                if (!l->bf16) *to_row = (words)two[u % 2][h];
                else if (u % 2) *to_row = pair(to_bf16(two[0][h]), to_bf16(two[1][h]));
            }
        }
    }
}

/* The operands of products in bfloat16. */

/* The weights, without the bias, as pairs of rows in bfloat16: kernels[k, u] = (weights[2k, u],
   weights[2k + 1, u]).

   kernels  (panels, size * size * channels / 2, PANEL) pairs */
static void kernel_to_bf16(const struct conv_layer *l, float *kernels) {
    for (int panel = 0; panel < panels_for(l->units); panel++)
        for (int row = 0; row < kernel_rows(l) - 1; row += 2)
            for (int h = 0; h < 2; h++) {
                const vec *w = (const vec *)(l->weights + ((long)panel * kernel_rows(l) + row) * PANEL);
                float *to_row = kernels + panel * kernel_words(l) + (long)row / 2 * PANEL;
                ((words *)to_row)[h] = pair(to_bf16(w[h]), to_bf16(w[2 + h]));
            }
}

/* One image's deltas, padded (height, width, stored(units)), to bfloat16: me->bf16_deltas of the same
   shape; and as pairs of pixels, me->delta_pairs[y, x, u] = (deltas[y, 2x, u], deltas[y, 2x + 1, u]),
   (height, ceil(width / 2), stored(units)) without the border. */
static void deltas_to_bf16(struct worker *me, const struct conv_layer *l, const float *deltas) {
    int channels = stored(l->units), count = (l->width + 1) / 2;
    long numbers = (l->height + 2L * border(l)) * padded_stride(l, channels);
    for (long at = 0; at < numbers; at += LANES)
        *(halves *)((uint16_t *)me->bf16_deltas + at) = to_bf16(*(const vec *)(deltas + at));
    const halves nothing = {0};
    for (int y = 0; y < l->height; y++)
        for (int x = 0; x < l->width; x += 2)
            for (int u = 0; u < channels; u += LANES) {
                const uint16_t *pixel =
                    (const uint16_t *)me->bf16_deltas + padded_index(l, channels, y, x) + u;
                halves right = x + 1 < l->width ? *(const halves *)(pixel + channels) : nothing;
                long at = ((long)y * count + x / 2) * channels + u;
                *(words *)(me->delta_pairs + at) = pair(*(const halves *)pixel, right);
            }
}

/* me->input_pairs[y, x, c] = (input[y, x, c], input[y, x + 1, c]), both padded (height, width,
   channels); the input is in bfloat16. */
static void pair_inputs(struct worker *me, const struct conv_layer *l, const float *input) {
    int channels = l->channels;
    long numbers = (l->height + 2L * border(l)) * padded_stride(l, channels);
    for (long at = 0; at < numbers; at += LANES) {
        const uint16_t *pixel = (const uint16_t *)input + at;
        *(words *)(me->input_pairs + at) =
            pair(*(const halves *)pixel, *(const halves *)(pixel + channels));
    }
}

/* padded = image * scale + offset, within its border.

   image   (height, width, channels) bytes
   padded  padded (height, width, channels) */
static void load_image(const struct task *task, const uint8_t *image, float *padded) {
    const struct conv_layer *l = &task->conv_layers[0];
    int count = l->width * l->channels;
    for (int y = 0; y < l->height; y++)
        rescale(task, image + (long)y * count, count, padded + padded_index(l, l->channels, y, 0));
}

/* The first image of a shard of the batch; the shard before ends there. */
static int first_image(const struct team *team, int shard) {
    return part_start(team->task->batch_size, team->shards, shard);
}

/* One image's row of features or of feature_deltas. */
static float *feature_row(const struct team *team, float *features, int image) {
    return features + (long)image * row_stride(team->task->dense_layers[0].inputs);
}

/* features[i] = all convolutions of image i, for this thread's images of a step; see conv_forward.
   Writes the convolutions' padded inputs, argmax and flipped kernels on the way. */
static void conv_forward_all(struct worker *me, int64_t step) {
    struct team *team = me->team;
    const struct task *task = team->task;
    const struct conv_layer *ls = task->conv_layers;
    const int64_t *order = task->order + step * task->batch_size;
    int last = task->conv_count - 1, pixels = ls->height * ls->width * ls->channels, from, to;
    for (int j = 1; j <= last; j++) {
        flip_kernel(me, &ls[j], team->flipped[j]);
        if (ls[j].bf16) kernel_to_bf16(&ls[j], me->bf16_kernels[j]);
    }
    partition(me, team->shards, &from, &to);
    for (int i = first_image(team, from); i < first_image(team, to); i++) {
        load_image(task, task->images + order[i] * pixels, padded_input(team, 0, i));
        if (step + 1 < task->stop)
            prefetch(task->images + order[task->batch_size + i] * pixels, pixels);
        for (int j = 0; j <= last; j++) {
            int channels = stored(ls[j].units), to_half = j < last && ls[j + 1].bf16;
            float *output = feature_row(team, team->features, i);
            long stride = (long)pooled_width(&ls[j]) * channels;
            if (j < last) {
                long begin = padded_index(&ls[j + 1], pixel_words(&ls[j + 1], channels), 0, 0);
                output = padded_input(team, j + 1, i) + begin;
                stride = padded_stride(&ls[j + 1], channels);
            }
            conv_forward(me, j, i, output, stride, to_half);
        }
    }
}

/* shard_sums[j][s] = the gradients of convolution j, summed over the images of shard s, for this
   thread's shards; from feature_deltas backward through all convolutions. */
static void conv_backward_all(struct worker *me) {
    struct team *team = me->team;
    const struct task *task = team->task;
    int from, to;
    partition(me, team->shards, &from, &to);
    for (int shard = from; shard < to; shard++) {
        int first = first_image(team, shard);
        for (int i = first; i < first_image(team, shard + 1); i++) {
            const float *pooled_deltas = feature_row(team, team->feature_deltas, i);
            for (int j = task->conv_count - 1; j >= 0; j--) {
                const struct conv_layer *l = &task->conv_layers[j];
                float *sums = team->shard_sums[j] + shard * kernel_floats(l);
                const float *deltas = me->padded_deltas[j];
                maxpool_backward(
                    l, pooled_deltas, team->argmax[j] + i * pooled_floats(l), me->padded_deltas[j]
                );
                if (l->bf16) {
                    deltas_to_bf16(me, l, deltas);
                    pair_inputs(me, l, padded_input(team, j, i));
                }
                conv_backward_weights(me, l, padded_input(team, j, i), deltas, sums, i == first);
                if (j) {
                    const float *given = l->bf16 ? me->bf16_deltas : deltas;
                    conv_backward_input(me, l, given, team->flipped[j], me->input_deltas);
                }
                pooled_deltas = me->input_deltas;
            }
        }
    }
}

/* conv_update for one kind of optimizer. */
INLINE void conv_update_by(const int kind, struct worker *me, float step_size, float decay) {
    const struct task *task = me->team->task;
    const struct optimizer optimizer = task->optimizer;
    for (int j = 0; j < task->conv_count; j++) {
        const struct conv_layer *l = &task->conv_layers[j];
        long floats = kernel_floats(l);
        int from, to;
        partition(me, (int)(floats / LANES), &from, &to);
        for (long at = (long)from * LANES; at < (long)to * LANES; at += LANES) {
            vec gradient = {0};
            for (int shard = 0; shard < me->team->shards; shard++)
                gradient += *(const vec *)(me->team->shard_sums[j] + shard * floats + at);
            vec *momentum = kind == SGD ? 0 : (vec *)(l->momentum + at);
            vec *velocity = kind == ADAM ? (vec *)(l->velocity + at) : 0;
            update(
                kind, &optimizer, step_size, decay, gradient, (vec *)(l->weights + at), momentum,
                velocity
            );
        }
    }
}

/* gradients = sum over shards of shard_sums, and the optimizer's update of all convolutions by them;
   this thread's part of the weights.

   shard_sums        of each convolution: (shards, ...), in panels like its weights
   step_size, decay  see update */
static void conv_update(struct worker *me, float step_size, float decay) {
    switch (me->team->task->optimizer.kind) {
        case SGD: conv_update_by(SGD, me, step_size, decay); break;
        case MOMENTUM: conv_update_by(MOMENTUM, me, step_size, decay); break;
        case NESTEROV: conv_update_by(NESTEROV, me, step_size, decay); break;
        default: conv_update_by(ADAM, me, step_size, decay);
    }
}
