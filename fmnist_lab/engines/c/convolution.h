/* Convolutions of stride 1 whose output is as large as their input, each followed by ReLU and, where
   asked for, by a maximum over windows of pool times pool.

   An image goes through all of them with one thread, and stays in its core's cache. Images lie
   within a border of zeros, pixel by pixel, each with all its channels: so the numbers that a row of
   the kernel is multiplied with lie in one piece, and a convolution is a few products of dense.h's
   kind, one for each row of the kernel.

   Gradients are summed up in PORTIONS of a batch, and these in one order, so that results do not
   depend on which thread had which. */

enum { PORTIONS = 16 };

static int stored(int units) { return up(units, PANEL); }
static int border(const struct convolution *l) { return l->size / 2; }
/* Numbers that a row of the kernel meets at once. */
static int run_of(const struct convolution *l) { return l->size * l->channels; }
/* The kernel's weights, row by row of it, and the bias below. */
static int weights_of(const struct convolution *l) { return l->size * run_of(l) + 1; }
static int columns_of(const struct convolution *l) { return stored(l->units) / PANEL; }
static long kernel_floats(const struct convolution *l) {
    return (long)weights_of(l) * stored(l->units);
}
static int pooled_height(const struct convolution *l) { return l->height / l->pool; }
static int pooled_width(const struct convolution *l) { return l->width / l->pool; }
static long pooled_floats(const struct convolution *l) {
    return (long)pooled_height(l) * pooled_width(l) * stored(l->units);
}
/* Of a kernel turned about; see `turn`. */
static long turned_floats(const struct convolution *l) {
    return (long)l->size * l->size * stored(l->units) * l->channels;
}
/* From one row of pixels to the next, border included. */
static long pitch_of(const struct convolution *l, int channels) {
    return (long)(l->width + 2 * border(l)) * channels;
}
/* An image within its border; what a tile reads beyond the image is not used, but must be there. */
static long map_floats(const struct convolution *l, int channels) {
    long image = (l->height + 2 * border(l)) * pitch_of(l, channels);
    return (image + (long)SPAN * (channels + 1) + PANEL - 1) / PANEL * PANEL;
}
/* A pixel within the border. */
static long inside(const struct convolution *l, int channels, int y, int x) {
    return (y + border(l)) * pitch_of(l, channels) + (long)(x + border(l)) * channels;
}

/* A tile: some pixels of a row times a panel of the kernel, added to c. */
INLINE void window(
    vec c[][2], const int pixels, const struct convolution *l, const float *map, int channels,
    const float *kernel
) {
    int run = l->size * channels;
    long pitch = pitch_of(l, channels);
    for (int line = 0; line < l->size; line++)
        multiply(
            c, pixels, run, map + line * pitch, channels, 1, kernel + (long)line * run * PANEL, PANEL, 0
        );
}

INLINE void some_pixels(
    const int pixels, const struct convolution *l, const float *map, int channels,
    const float *kernel, const vec bias[2], float *output, long step
) {
    vec c[SPAN][2];
    for (int r = 0; r < pixels; r++) c[r][0] = bias[0], c[r][1] = bias[1];
    window(c, pixels, l, map, channels, kernel);
    for (int r = 0; r < pixels; r++) {
        ((vec *)(output + r * step))[0] = c[r][0];
        ((vec *)(output + r * step))[1] = c[r][1];
    }
}

/* A row of pixels times a panel of the kernel; step: from one pixel of the output to the next. Tiles
   overlap rather than end in a remainder. Narrow rows write beyond their end, up to SPAN pixels. */
static void row_of_pixels(
    const struct convolution *l, const float *map, int channels, const float *kernel,
    const vec bias[2], float *output, long step
) {
    int width = l->width;
    if (width <= HALF) {
        some_pixels(HALF, l, map, channels, kernel, bias, output, step);
        return;
    }
    for (int x = 0; x < width; x += SPAN) {
        if (x + SPAN > width && width >= SPAN) x = width - SPAN;
        some_pixels(
            SPAN, l, map + (long)x * channels, channels, kernel, bias, output + x * step, step
        );
    }
}

/* One image: relu(convolution), its windows' maxima, and which pixel of a window each came from;
   pool * pool where ReLU lets nothing through.

   output: a pixel every `stored(units)` floats, a row every `pitch`. */
static void convolve(
    struct worker *me, const struct convolution *l, const float *map, float *output, long pitch,
    uint8_t *chosen
) {
    int pool = l->pool, width = pooled_width(l), channels = stored(l->units);
    for (int panel = 0; panel < columns_of(l); panel++) {
        const float *kernel = l->weights + (long)panel * weights_of(l) * PANEL;
        const vec *bias = (const vec *)(kernel + (long)(weights_of(l) - 1) * PANEL);
        for (int y = 0; y < pooled_height(l); y++) {
            for (int line = 0; line < pool; line++)
                row_of_pixels(
                    l, map + (y * pool + line) * pitch_of(l, l->channels), l->channels, kernel, bias,
                    me->rows + (long)line * (l->width + SPAN) * PANEL, PANEL
                );
            for (int x = 0; x < width; x++)
                for (int h = 0; h < 2; h++) {
                    const vec *row = (const vec *)(me->rows + (long)x * pool * PANEL) + h;
                    vec best = *row;
                    mask from = {0};
                    for (int q = 1; q < pool * pool; q++) {
                        vec other = row[(q / pool) * (l->width + SPAN) * 2L + (q % pool) * 2];
                        /* The first of equals, as Keras has it; a NaN, to let it show. */
                        mask more = ~(other <= best);
                        best = (vec)(((mask)other & more) | ((mask)best & ~more));
                        from = (more & q) | (from & ~more);
                    }
                    mask off = best <= (vec){0};
                    from = (off & (pool * pool)) | (from & ~off);
                    long at = x * (long)channels + panel * PANEL + h * LANES;
                    *(vec *)(output + y * pitch + at) = unless_negative(best, best);
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

INLINE void some_weights(
    const int count, int valid, const struct convolution *l, const float *map, const float *deltas,
    float *sums, int first
) {
    int channels = stored(l->units);
    vec c[SPAN][2];
    for (int r = 0; r < count; r++) {
        vec *sum = (vec *)(sums + (long)(r < valid ? r : 0) * PANEL);
        c[r][0] = first ? (vec){0} : sum[0], c[r][1] = first ? (vec){0} : sum[1];
    }
    for (int y = 0; y < l->height; y++)
        multiply(
            c, count, l->width, map + y * pitch_of(l, l->channels), 1, l->channels,
            deltas + inside(l, channels, y, 0), channels, 0
        );
    for (int r = 0; r < valid; r++) {
        vec *sum = (vec *)(sums + (long)r * PANEL);
        sum[0] = c[r][0], sum[1] = c[r][1];
    }
}

/* Add one image's gradients of the weights to the sums, panels like the weights; the first image of a
   portion finds what was left there and forgets it. */
static void gradients(
    const struct convolution *l, const float *map, const float *deltas, float *sums, int first
) {
    int run = run_of(l), channels = stored(l->units);
    for (int panel = 0; panel < columns_of(l); panel++) {
        float *of_panel = sums + (long)panel * weights_of(l) * PANEL;
        const float *errors = deltas + panel * PANEL;
        for (int line = 0; line < l->size; line++)
            for (int k = 0, rest = run; rest > 0; k += SPAN, rest -= SPAN) {
                const float *from = map + line * pitch_of(l, l->channels) + k;
                float *to = of_panel + ((long)line * run + k) * PANEL;
                if (rest <= HALF) some_weights(HALF, rest, l, from, errors, to, first);
                else some_weights(SPAN, rest < SPAN ? rest : SPAN, l, from, errors, to, first);
            }
        vec *bias = (vec *)(of_panel + (long)(weights_of(l) - 1) * PANEL);
        vec left = first ? (vec){0} : bias[0], right = first ? (vec){0} : bias[1];
        for (int y = 0; y < l->height; y++) {
            const vec *error = (const vec *)(errors + inside(l, channels, y, 0));
            for (int x = 0; x < l->width; x++) {
                left += error[(long)x * channels / LANES];
                right += error[(long)x * channels / LANES + 1];
            }
        }
        bias[0] = left, bias[1] = right;
    }
}

/* From the errors of a convolution, within their border, to those of its input: a convolution with
   the kernel turned about. */
static void through(
    struct worker *me, const struct convolution *l, const float *deltas, const float *turned,
    float *below
) {
    int channels = stored(l->units);
    const vec nothing[2] = {{0}};
    for (int panel = 0; panel < l->channels / PANEL; panel++) {
        const float *kernel = turned + (long)panel * l->size * l->size * channels * PANEL;
        for (int y = 0; y < l->height; y++) {
            row_of_pixels(
                l, deltas + y * pitch_of(l, channels), channels, kernel, nothing, me->rows, PANEL
            );
            for (int x = 0; x < l->width; x++)
                memcpy(
                    below + ((long)y * l->width + x) * l->channels + panel * PANEL,
                    me->rows + (long)x * PANEL, PANEL * sizeof(float)
                );
        }
    }
}

/* This thread's part of a kernel, turned about: its rows and columns last to first, its channels and
   units exchanged. Panels of (size, size, units, PANEL channels). */
static void turn(struct worker *me, const struct convolution *l, float *turned) {
    int channels = stored(l->units), taps = l->size * l->size, from, to;
    share(me, l->channels / PANEL * taps, &from, &to);
    for (int item = from; item < to; item++) {
        int panel = item / taps, tap = item % taps;
        for (int u = 0; u < channels; u++) {
            const float *w = l->weights + (long)(u / PANEL) * weights_of(l) * PANEL + u % PANEL;
            long row = (long)(taps - 1 - tap) * l->channels + panel * PANEL;
            float *to_row = turned + ((long)item * channels + u) * PANEL;
            for (int j = 0; j < PANEL; j++) to_row[j] = w[(row + j) * PANEL];
        }
    }
}

/* An image, from bytes to numbers, within its border. */
static void enter(const struct task *task, const uint8_t *image, float *map) {
    const struct convolution *l = &task->convolutions[0];
    int count = l->width * l->channels;
    for (int y = 0; y < l->height; y++)
        rescale(task, image + (long)y * count, count, map + inside(l, l->channels, y, 0));
}

/* The images of this thread's portions. */
static void images_of(const struct worker *me, int portion, int *from, int *to) {
    int size = me->team->task->size, portions = me->team->portions;
    *from = (int)((int64_t)size * portion / portions);
    *to = (int)((int64_t)size * (portion + 1) / portions);
}

/* A step's images, through all convolutions. */
static void convolve_all(struct worker *me, int64_t step) {
    struct team *team = me->team;
    const struct task *task = team->task;
    const int64_t *order = task->order + step * task->size;
    const struct convolution *first = &task->convolutions[0];
    int last = task->fronts - 1, pixels = first->height * first->width * first->channels, from, to;
    share(me, team->portions, &from, &to);
    images_of(me, from, &from, &(int){0});
    images_of(me, to, &to, &(int){0});
    for (int i = from; i < to; i++) {
        enter(task, task->images + order[i] * pixels, team->maps[0] + i * map_floats(first, first->channels));
        if (step + 1 < task->stop) prefetch(task->images + order[task->size + i] * pixels, pixels);
        for (int j = 0; j <= last; j++) {
            const struct convolution *l = &task->convolutions[j];
            const struct convolution *next = l + 1;
            float *output = team->features + (long)i * stride_of(task->layers[0].inputs);
            long pitch = (long)pooled_width(l) * stored(l->units);
            if (j < last) {
                output = team->maps[j + 1] + i * map_floats(next, next->channels) +
                         inside(next, next->channels, 0, 0);
                pitch = pitch_of(next, next->channels);
            }
            convolve(
                me, l, team->maps[j] + i * map_floats(l, l->channels), output, pitch,
                team->chosen[j] + i * pooled_floats(l)
            );
        }
    }
    for (int j = 1; j <= last; j++) turn(me, &task->convolutions[j], team->turned_kernels[j]);
}

/* The errors of a step's images, back through all convolutions, summed up to gradients. */
static void convolve_back(struct worker *me) {
    struct team *team = me->team;
    const struct task *task = team->task;
    int from, to, first, end;
    share(me, team->portions, &from, &to);
    for (int portion = from; portion < to; portion++) {
        images_of(me, portion, &first, &end);
        for (int i = first; i < end; i++) {
            const float *deltas = team->errors + (long)i * stride_of(task->layers[0].inputs);
            for (int j = task->fronts - 1; j >= 0; j--) {
                const struct convolution *l = &task->convolutions[j];
                unpool(l, deltas, team->chosen[j] + i * pooled_floats(l), me->errors[j]);
                gradients(
                    l, team->maps[j] + i * map_floats(l, l->channels), me->errors[j],
                    team->sums[j] + portion * kernel_floats(l), i == first
                );
                if (j) through(me, l, me->errors[j], team->turned_kernels[j], me->below);
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
