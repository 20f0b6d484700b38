#pragma once

/* Convolutions of stride 1 whose output is as large as their input, each followed by ReLU and, where
   asked for, by a maximum over windows of pool times pool.

   An image goes through all of them, forth and later back, with one thread, so what a layer leaves is
   still in the core's cache when the next one takes it. Images lie within a border of zeros, pixel by
   pixel, each with all its channels: so the numbers that a row of the kernel is multiplied with lie
   in one piece, and a convolution is a few products of dense.h's kind, one for each row of the kernel.

   Gradients are summed up in PORTIONS of a batch, and these in one order, so that results do not
   depend on which thread had which.

   A brief convolution multiplies pairs of bfloat16, each in the place of one float, so its loops are
   the same, half as long: pairs of channels, or of pixels where the sum goes over pixels. The first
   is never brief, since bytes enter it as floats. */

#include "common.h"

/* More would let more threads share a batch, and cost each step more memory for the sums: 16 are 1 %
   of a step of the small CNN. */
enum { PORTIONS = 16 };

/* Channels are stored in whole vectors, so a kernel's last panel may be but half used. */
static int stored(int units) { return up(units, LANES); }
static int panels_for(int channels) { return up(channels, PANEL) / PANEL; }
static int is_half(int channels, int panel) { return channels - panel * PANEL <= LANES; }
static int border(const struct convolution *l) { return l->size / 2; }
/* Numbers that a row of the kernel meets at once. */
static int run_of(const struct convolution *l) { return l->size * l->channels; }
/* The kernel's weights, row by row of it, and the bias below. */
static int weights_of(const struct convolution *l) { return l->size * run_of(l) + 1; }
static long kernel_floats(const struct convolution *l) {
    return (long)weights_of(l) * panels_for(l->units) * PANEL;
}
static int pooled_height(const struct convolution *l) { return l->height / l->pool; }
static int pooled_width(const struct convolution *l) { return l->width / l->pool; }
static long pooled_floats(const struct convolution *l) {
    return (long)pooled_height(l) * pooled_width(l) * stored(l->units);
}
/* Of a kernel turned about; see `turn`. */
static long turned_floats(const struct convolution *l) {
    return (long)l->size * l->size * stored(l->units) * panels_for(l->channels) * PANEL;
}
/* From one row of pixels to the next, border included. */
static long pitch_of(const struct convolution *l, int channels) {
    return (long)(l->width + 2 * border(l)) * channels;
}
/* An image within its border. What tiles read beyond the image is not used, but must be there: SPAN
   pixels in the convolution, SPAN numbers in its gradients. */
static long map_floats(const struct convolution *l, int channels) {
    long image = (l->height + 2 * border(l)) * pitch_of(l, channels);
    return (image + (long)SPAN * (channels + 1) + PANEL - 1) / PANEL * PANEL;
}
/* A pixel within the border. */
static long inside(const struct convolution *l, int channels, int y, int x) {
    return (y + border(l)) * pitch_of(l, channels) + (long)(x + border(l)) * channels;
}

/* How many floats' places a pixel takes up as an input of products. */
static int words_of(const struct convolution *l, int channels) {
    return l->brief ? channels / 2 : channels;
}
static long kernel_words(const struct convolution *l) {
    return words_of(l, weights_of(l) - 1) * (long)PANEL;
}

static float *map_of(const struct team *team, int j, int image) {
    const struct convolution *l = &team->task->convolutions[j];
    return team->maps[j] + image * map_floats(l, words_of(l, l->channels));
}

INLINE void some_pixels(
    const int pixels, const int brief, const int half, const struct convolution *l,
    const float *map, int pixel, const float *kernel, const vec bias[2], float *output
) {
    vec c[SPAN][2];
    int run = l->size * pixel;
    for (int r = 0; r < pixels; r++) c[r][0] = bias[0], c[r][1] = bias[1];
    for (int line = 0; line < l->size; line++)
        multiply(
            c, pixels, run, map + line * pitch_of(l, pixel), pixel, 1,
            kernel + (long)line * run * PANEL, PANEL, brief, half, 0
        );
    memcpy(output, c, pixels * sizeof *c);
}

INLINE void some_row(
    const int brief, const int half, const struct convolution *l, const float *map, int pixel,
    const float *kernel, const vec bias[2], float *output
) {
    int width = l->width;
    if (width <= HALF) {
        some_pixels(HALF, brief, half, l, map, pixel, kernel, bias, output);
        return;
    }
    for (int x = 0; x < width; x += SPAN) {
        if (x + SPAN > width && width >= SPAN) x = width - SPAN;
        some_pixels(
            SPAN, brief, half, l, map + (long)x * pixel, pixel, kernel, bias,
            output + (long)x * PANEL
        );
    }
}

/* A row of pixels, each of so many words, times a panel of the kernel. Tiles overlap rather than end
   in a remainder; those of narrow rows write beyond their end, up to SPAN pixels. */
static void row_of_pixels(
    const struct convolution *l, const float *map, int pixel, const float *kernel,
    const vec bias[2], float *output, int half
) {
    switch (2 * l->brief + half) {
        case 0: some_row(0, 0, l, map, pixel, kernel, bias, output); break;
        case 1: some_row(0, 1, l, map, pixel, kernel, bias, output); break;
        case 2: some_row(1, 0, l, map, pixel, kernel, bias, output); break;
        default: some_row(1, 1, l, map, pixel, kernel, bias, output);
    }
}

/* The maximum of a window, the first of equals, as Keras has it, or a NaN, to let it show; and which
   pixel it is, or pool * pool where ReLU lets nothing through. */
INLINE vec maximum(const struct convolution *l, const vec *window, mask *from) {
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
    return unless_negative(best, best);
}

/* One image: relu(convolution), its windows' maxima, and which pixel of a window each came from.

   output: a pixel every `stored(units)` numbers, a row every `pitch`; bfloat16 if narrowed. */
static void convolve(
    struct worker *me, int j, int image, float *output, long pitch, int narrowed
) {
    const struct team *team = me->team;
    const struct convolution *l = &team->task->convolutions[j];
    const float *map = map_of(team, j, image);
    uint8_t *chosen = team->chosen[j] + image * pooled_floats(l);
    int pool = l->pool, width = pooled_width(l), channels = stored(l->units);
    int pixel = words_of(l, l->channels);
    for (int panel = 0; panel < panels_for(l->units); panel++) {
        const float *kernel = l->brief ? me->kernels[j] + panel * kernel_words(l)
                                       : l->weights + (long)panel * weights_of(l) * PANEL;
        const float *bias = l->weights + ((long)(panel + 1) * weights_of(l) - 1) * PANEL;
        int half = is_half(channels, panel);
        for (int y = 0; y < pooled_height(l); y++) {
            for (int line = 0; line < pool; line++)
                row_of_pixels(
                    l, map + (y * pool + line) * pitch_of(l, pixel), pixel, kernel,
                    (const vec *)bias, me->rows + (long)line * (l->width + SPAN) * PANEL, half
                );
            for (int x = 0; x < width; x++)
                for (int h = 0; h < 2 - half; h++) {
                    mask from;
                    vec best = maximum(l, (const vec *)(me->rows + (long)x * pool * PANEL) + h, &from);
                    long at = x * (long)channels + panel * PANEL + h * LANES;
                    long to = y * pitch + at;
                    if (narrowed) *(halves *)((uint16_t *)output + to) = narrow(best);
                    else *(vec *)(output + to) = best;
                    *(bytes *)(chosen + (long)y * width * channels + at) =
                        __builtin_convertvector(from, bytes);
                }
        }
    }
}

/* One image's errors: from the pooled ones to those of each pixel, within a border of zeros. */
static void unpool(
    const struct convolution *l, const float *deltas, const uint8_t *chosen, float *map
) {
    int pool = l->pool, channels = stored(l->units), width = pooled_width(l);
    for (int y = 0; y < pooled_height(l); y++)
        for (int q = 0; q < pool * pool; q++)
            for (int x = 0; x < width; x++) {
                long at = ((long)y * width + x) * channels;
                float *pixel = map + inside(l, channels, y * pool + q / pool, x * pool + q % pool);
                for (int u = 0; u < channels; u += LANES) {
                    mask from = __builtin_convertvector(*(const bytes *)(chosen + at + u), mask);
                    vec delta = *(const vec *)(deltas + at + u);
                    *(vec *)(pixel + u) = (vec)((mask)delta & (from == q));
                }
            }
}

/* What a sum over pixels goes through: numbers of the input and of the errors, or pairs. */
struct walk {
    const float *inputs, *errors;
    int count;                      /* of a row */
    long input_row, input_step;     /* from one row, or pixel, to the next */
    long error_row, error_step;
};

INLINE void some_weights(
    const int count, const int brief, const int half, int valid, int height, struct walk at,
    float *sums, int anew
) {
    vec c[SPAN][2];
    for (int r = 0; r < count; r++) {
        const vec *sum = (const vec *)(sums + (long)(r < valid ? r : 0) * PANEL);
        c[r][0] = anew ? (vec){0} : sum[0], c[r][1] = anew ? (vec){0} : sum[1];
    }
    for (int y = 0; y < height; y++)
        multiply(
            c, count, at.count, at.inputs + y * at.input_row, 1, at.input_step,
            at.errors + y * at.error_row, at.error_step, brief, half, 0
        );
    memcpy(sums, c, valid * sizeof *c);
}

INLINE void gradients_by(
    const int brief, const int half, const struct convolution *l, int panel, struct walk at,
    float *sums, int anew
) {
    int run = run_of(l), height = l->height;
    at.errors += panel * PANEL;
    for (int line = 0; line < l->size; line++)
        for (int k = 0; k < run; k += SPAN) {
            struct walk here = at;
            here.inputs += line * at.input_row + k;
            int rest = run - k, valid = rest < SPAN ? rest : SPAN;
            float *to = sums + ((long)panel * weights_of(l) + line * run + k) * PANEL;
            if (rest <= HALF) some_weights(HALF, brief, half, valid, height, here, to, anew);
            else some_weights(SPAN, brief, half, valid, height, here, to, anew);
        }
}

static void gradients_of_panel(
    const struct convolution *l, int panel, struct walk at, float *sums, int anew
) {
    switch (2 * l->brief + is_half(stored(l->units), panel)) {
        case 0: gradients_by(0, 0, l, panel, at, sums, anew); break;
        case 1: gradients_by(0, 1, l, panel, at, sums, anew); break;
        case 2: gradients_by(1, 0, l, panel, at, sums, anew); break;
        default: gradients_by(1, 1, l, panel, at, sums, anew);
    }
}

/* Add one image's gradients of the weights to the sums, panels like the weights; the first image of a
   portion begins anew. */
static void gradients(
    struct worker *me, const struct convolution *l, const float *map, const float *errors,
    float *sums, int anew
) {
    int channels = stored(l->units);
    const float *within = errors + inside(l, channels, 0, 0);
    struct walk at = {
        map, within, l->width,
        pitch_of(l, l->channels), l->channels, pitch_of(l, channels), channels,
    };
    if (l->brief) {
        int count = (l->width + 1) / 2;
        at = (struct walk){
            me->input_pairs, me->error_pairs, count,
            pitch_of(l, l->channels), 2L * l->channels, (long)count * channels, channels,
        };
    }
    for (int panel = 0; panel < panels_for(l->units); panel++) {
        gradients_of_panel(l, panel, at, sums, anew);
        vec *bias = (vec *)(sums + ((long)(panel + 1) * weights_of(l) - 1) * PANEL);
        for (int h = 0; h < 2 - is_half(channels, panel); h++) {
            vec sum = anew ? (vec){0} : bias[h];
            for (int y = 0; y < l->height; y++)
                for (int x = 0; x < l->width; x++) {
                    long pixel = y * pitch_of(l, channels) + (long)x * channels;
                    sum += ((const vec *)(within + pixel + panel * PANEL))[h];
                }
            bias[h] = sum;
        }
    }
}

/* From the errors of a convolution, within their border, to those of its input: a convolution with
   the kernel turned about. */
static void through(
    struct worker *me, const struct convolution *l, const float *errors, const float *turned,
    float *below
) {
    int pixel = words_of(l, stored(l->units));
    const vec nothing[2] = {{0}};
    for (int panel = 0; panel < panels_for(l->channels); panel++) {
        int half = is_half(l->channels, panel), count = half ? LANES : PANEL;
        const float *kernel = turned + (long)panel * l->size * l->size * pixel * PANEL;
        for (int y = 0; y < l->height; y++) {
            row_of_pixels(
                l, errors + y * pitch_of(l, pixel), pixel, kernel, nothing, me->rows, half
            );
            for (int x = 0; x < l->width; x++)
                memcpy(
                    below + ((long)y * l->width + x) * l->channels + panel * PANEL,
                    me->rows + (long)x * PANEL, count * sizeof(float)
                );
        }
    }
}

/* This thread's part of a kernel, turned about: its rows and columns last to first, its channels and
   units exchanged. Panels of (size, size, units, PANEL channels). */
static void turn(struct worker *me, const struct convolution *l, float *turned) {
    int channels = stored(l->units), taps = l->size * l->size, from, to;
    share(me, panels_for(l->channels) * taps, &from, &to);
    for (int item = from; item < to; item++) {
        int panel = item / taps, tap = item % taps;
        long row = (long)(taps - 1 - tap) * l->channels + panel * PANEL;
        int count = is_half(l->channels, panel) ? LANES : PANEL;
        vec two[2][2] = {{{0}}};
        for (int u = 0; u < channels; u++) {
            const float *w = l->weights + (long)(u / PANEL) * weights_of(l) * PANEL + u % PANEL;
            float *column = (float *)two[u % 2];
            for (int j = 0; j < count; j++) column[j] = w[(row + j) * PANEL];
            for (int h = 0; h < 2; h++) {
                words *to_row = (words *)(turned + words_of(l, item * channels + u) * (long)PANEL) + h;
                if (!l->brief) *to_row = (words)two[u % 2][h];
                else if (u % 2) *to_row = pair(narrow(two[0][h]), narrow(two[1][h]));
            }
        }
    }
}

/* What brief products are made from. */

/* A kernel's panels in bfloat16, in pairs of rows. */
static void narrow_kernel(const struct convolution *l, float *kernels) {
    for (int panel = 0; panel < panels_for(l->units); panel++)
        for (int row = 0; row < weights_of(l) - 1; row += 2)
            for (int h = 0; h < 2; h++) {
                const vec *w = (const vec *)(l->weights + ((long)panel * weights_of(l) + row) * PANEL);
                float *to_row = kernels + panel * kernel_words(l) + (long)row / 2 * PANEL;
                ((words *)to_row)[h] = pair(narrow(w[h]), narrow(w[2 + h]));
            }
}

/* The errors, within their border, in bfloat16; and in pairs of pixels, without the border. */
static void narrow_errors(struct worker *me, const struct convolution *l, const float *errors) {
    int channels = stored(l->units), count = (l->width + 1) / 2;
    long numbers = (l->height + 2L * border(l)) * pitch_of(l, channels);
    for (long at = 0; at < numbers; at += LANES)
        *(halves *)((uint16_t *)me->brief_errors + at) = narrow(*(const vec *)(errors + at));
    const halves nothing = {0};
    for (int y = 0; y < l->height; y++)
        for (int x = 0; x < l->width; x += 2)
            for (int u = 0; u < channels; u += LANES) {
                const uint16_t *pixel =
                    (const uint16_t *)me->brief_errors + inside(l, channels, y, x) + u;
                halves right = x + 1 < l->width ? *(const halves *)(pixel + channels) : nothing;
                long at = ((long)y * count + x / 2) * channels + u;
                *(words *)(me->error_pairs + at) = pair(*(const halves *)pixel, right);
            }
}

/* Each pixel of an input with the one after it. */
static void pair_inputs(struct worker *me, const struct convolution *l, const float *map) {
    int channels = l->channels;
    long numbers = (l->height + 2L * border(l)) * pitch_of(l, channels);
    for (long at = 0; at < numbers; at += LANES) {
        const uint16_t *pixel = (const uint16_t *)map + at;
        *(words *)(me->input_pairs + at) =
            pair(*(const halves *)pixel, *(const halves *)(pixel + channels));
    }
}

/* An image, from bytes to numbers, within its border. */
static void enter(const struct task *task, const uint8_t *image, float *map) {
    const struct convolution *l = &task->convolutions[0];
    int count = l->width * l->channels;
    for (int y = 0; y < l->height; y++)
        rescale(task, image + (long)y * count, count, map + inside(l, l->channels, y, 0));
}

/* A portion of a batch ends where the next one begins. */
static int first_image(const struct team *team, int portion) {
    return (int)((int64_t)team->task->size * portion / team->portions);
}

static float *row_of(const struct team *team, float *features, int image) {
    return features + (long)image * stride_of(team->task->layers[0].inputs);
}

/* A step's images, through all convolutions. */
static void convolve_all(struct worker *me, int64_t step) {
    struct team *team = me->team;
    const struct task *task = team->task;
    const struct convolution *ls = task->convolutions;
    const int64_t *order = task->order + step * task->size;
    int last = task->fronts - 1, pixels = ls->height * ls->width * ls->channels, from, to;
    for (int j = 1; j <= last; j++) {
        turn(me, &ls[j], team->turned_kernels[j]);
        if (ls[j].brief) narrow_kernel(&ls[j], me->kernels[j]);
    }
    share(me, team->portions, &from, &to);
    for (int i = first_image(team, from); i < first_image(team, to); i++) {
        enter(task, task->images + order[i] * pixels, map_of(team, 0, i));
        if (step + 1 < task->stop) prefetch(task->images + order[task->size + i] * pixels, pixels);
        for (int j = 0; j <= last; j++) {
            int channels = stored(ls[j].units), narrowed = j < last && ls[j + 1].brief;
            float *output = row_of(team, team->features, i);
            long pitch = (long)pooled_width(&ls[j]) * channels;
            if (j < last) {
                long begin = inside(&ls[j + 1], words_of(&ls[j + 1], channels), 0, 0);
                output = map_of(team, j + 1, i) + begin;
                pitch = pitch_of(&ls[j + 1], channels);
            }
            convolve(me, j, i, output, pitch, narrowed);
        }
    }
}

/* The errors of a step's images, back through all convolutions, summed up to gradients. */
static void convolve_back(struct worker *me) {
    struct team *team = me->team;
    const struct task *task = team->task;
    int from, to;
    share(me, team->portions, &from, &to);
    for (int portion = from; portion < to; portion++) {
        int first = first_image(team, portion);
        for (int i = first; i < first_image(team, portion + 1); i++) {
            const float *deltas = row_of(team, team->errors, i);
            for (int j = task->fronts - 1; j >= 0; j--) {
                const struct convolution *l = &task->convolutions[j];
                float *sums = team->sums[j] + portion * kernel_floats(l);
                const float *errors = me->errors[j];
                unpool(l, deltas, team->chosen[j] + i * pooled_floats(l), me->errors[j]);
                if (l->brief) {
                    narrow_errors(me, l, errors);
                    pair_inputs(me, l, map_of(team, j, i));
                }
                gradients(me, l, map_of(team, j, i), errors, sums, i == first);
                if (j) {
                    const float *given = l->brief ? me->brief_errors : errors;
                    through(me, l, given, team->turned_kernels[j], me->below);
                }
                deltas = me->below;
            }
        }
    }
}

/* The portions' sums, added up, and the updates. */
INLINE void learn_kernels_by(const int kind, struct worker *me, float stride, float decay) {
    const struct task *task = me->team->task;
    const struct rule rule = task->rule;
    for (int j = 0; j < task->fronts; j++) {
        const struct convolution *l = &task->convolutions[j];
        long floats = kernel_floats(l);
        int from, to;
        share(me, (int)(floats / LANES), &from, &to);
        for (long at = (long)from * LANES; at < (long)to * LANES; at += LANES) {
            vec gradient = {0};
            for (int portion = 0; portion < me->team->portions; portion++)
                gradient += *(const vec *)(me->team->sums[j] + portion * floats + at);
            vec *first = kind == SGD ? 0 : (vec *)(l->first + at);
            vec *second = kind == ADAM ? (vec *)(l->second + at) : 0;
            update(kind, &rule, stride, decay, gradient, (vec *)(l->weights + at), first, second);
        }
    }
}

static void learn_kernels(struct worker *me, float stride, float decay) {
    switch (me->team->task->rule.kind) {
        case SGD: learn_kernels_by(SGD, me, stride, decay); break;
        case MOMENTUM: learn_kernels_by(MOMENTUM, me, stride, decay); break;
        case NESTEROV: learn_kernels_by(NESTEROV, me, stride, decay); break;
        default: learn_kernels_by(ADAM, me, stride, decay);
    }
}
