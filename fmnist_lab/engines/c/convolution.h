/* Convolutions of stride 1 whose output is as large as their input, each followed by ReLU and, where
   asked for, by a maximum over windows of pool times pool.

   An image goes through all of them with one thread, and stays in its core's cache. Images lie
   within a border of zeros, pixel by pixel, each with all its channels: so the numbers that a row of
   the kernel is multiplied with lie in one piece, and a convolution is a few products of dense.h's
   kind, one for each row of the kernel.

   Gradients are summed up in PORTIONS of a batch, and these in one order, so that results do not
   depend on which thread had which.

   A brief convolution multiplies pairs of bfloat16, each in the place of one float, so its loops are
   the same, half as long: pairs of channels, or of pixels where the sum goes over pixels. */

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

/* How many floats' places a pixel takes up as an input of products. */
static int words_of(const struct convolution *l, int channels) {
    return l->brief ? channels / 2 : channels;
}
static long kernel_words(const struct convolution *l) {
    return words_of(l, weights_of(l) - 1) * (long)PANEL;
}

INLINE void some_pixels(
    const int pixels, const int brief, const struct convolution *l, const float *map, int pixel,
    const float *kernel, const vec bias[2], float *output
) {
    vec c[SPAN][2];
    int run = l->size * pixel;
    for (int r = 0; r < pixels; r++) c[r][0] = bias[0], c[r][1] = bias[1];
    for (int line = 0; line < l->size; line++)
        multiply(
            c, pixels, run, map + line * pitch_of(l, pixel), pixel, 1,
            kernel + (long)line * run * PANEL, PANEL, brief, 0
        );
    memcpy(output, c, pixels * sizeof *c);
}

INLINE void some_row(
    const int brief, const struct convolution *l, const float *map, int pixel, const float *kernel,
    const vec bias[2], float *output
) {
    int width = l->width;
    if (width <= HALF) {
        some_pixels(HALF, brief, l, map, pixel, kernel, bias, output);
        return;
    }
    for (int x = 0; x < width; x += SPAN) {
        if (x + SPAN > width && width >= SPAN) x = width - SPAN;
        some_pixels(
            SPAN, brief, l, map + (long)x * pixel, pixel, kernel, bias, output + (long)x * PANEL
        );
    }
}

/* A row of pixels, each of so many words, times a panel of the kernel. Tiles overlap rather than end
   in a remainder; those of narrow rows write beyond their end, up to SPAN pixels. */
static void row_of_pixels(
    const struct convolution *l, const float *map, int pixel, const float *kernel,
    const vec bias[2], float *output
) {
    if (l->brief) some_row(1, l, map, pixel, kernel, bias, output);
    else some_row(0, l, map, pixel, kernel, bias, output);
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
        mask more = ~(other <= best);
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
    struct worker *me, const struct convolution *l, const float *kernels, long kernel_step,
    const float *map, float *output, long pitch, int narrowed, uint8_t *chosen
) {
    int pool = l->pool, width = pooled_width(l), channels = stored(l->units);
    int pixel = words_of(l, l->channels);
    for (int panel = 0; panel < columns_of(l); panel++) {
        const float *kernel = kernels + panel * kernel_step;
        const float *bias = l->weights + ((long)(panel + 1) * weights_of(l) - 1) * PANEL;
        for (int y = 0; y < pooled_height(l); y++) {
            for (int line = 0; line < pool; line++)
                row_of_pixels(
                    l, map + (y * pool + line) * pitch_of(l, pixel), pixel, kernel,
                    (const vec *)bias, me->rows + (long)line * (l->width + SPAN) * PANEL
                );
            for (int x = 0; x < width; x++)
                for (int h = 0; h < 2; h++) {
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
struct pixels {
    const float *inputs, *errors;
    int count;                      /* of a row */
    long input_row, input_step;     /* from one row, or pixel, to the next */
    long error_row, error_step;
};

INLINE void some_weights(
    const int count, const int brief, int valid, int height, struct pixels at, float *sums, int first
) {
    vec c[SPAN][2];
    for (int r = 0; r < count; r++) {
        const vec *sum = (const vec *)(sums + (long)(r < valid ? r : 0) * PANEL);
        c[r][0] = first ? (vec){0} : sum[0], c[r][1] = first ? (vec){0} : sum[1];
    }
    for (int y = 0; y < height; y++)
        multiply(
            c, count, at.count, at.inputs + y * at.input_row, 1, at.input_step,
            at.errors + y * at.error_row, at.error_step, brief, 0
        );
    memcpy(sums, c, valid * sizeof *c);
}

INLINE void gradients_by(
    const int brief, const struct convolution *l, struct pixels at, float *sums, int first
) {
    int run = run_of(l);
    for (int panel = 0; panel < columns_of(l); panel++)
        for (int line = 0; line < l->size; line++)
            for (int k = 0; k < run; k += SPAN) {
                struct pixels here = at;
                here.inputs += line * at.input_row + k;
                here.errors += panel * PANEL;
                int rest = run - k;
                float *to = sums + ((long)panel * weights_of(l) + line * run + k) * PANEL;
                if (rest <= HALF) some_weights(HALF, brief, rest, l->height, here, to, first);
                else some_weights(SPAN, brief, rest < SPAN ? rest : SPAN, l->height, here, to, first);
            }
}

/* Add one image's gradients of the weights to the sums, panels like the weights; the first image of a
   portion finds what was left there and forgets it. */
static void gradients(
    struct worker *me, const struct convolution *l, const float *map, const float *errors,
    float *sums, int first
) {
    int channels = stored(l->units);
    const float *within = errors + inside(l, channels, 0, 0);
    struct pixels at = {
        map, within, l->width,
        pitch_of(l, l->channels), l->channels, pitch_of(l, channels), channels,
    };
    if (l->brief) {
        int count = (l->width + 1) / 2;
        at = (struct pixels){
            me->input_pairs, me->error_pairs, count,
            pitch_of(l, l->channels), 2L * l->channels, (long)count * channels, channels,
        };
        gradients_by(1, l, at, sums, first);
    } else {
        gradients_by(0, l, at, sums, first);
    }
    for (int panel = 0; panel < columns_of(l); panel++) {
        vec *bias = (vec *)(sums + ((long)(panel + 1) * weights_of(l) - 1) * PANEL);
        vec left = first ? (vec){0} : bias[0], right = first ? (vec){0} : bias[1];
        for (int y = 0; y < l->height; y++)
            for (int x = 0; x < l->width; x++) {
                const float *pixel = within + y * pitch_of(l, channels) + (long)x * channels;
                left += ((const vec *)(pixel + panel * PANEL))[0];
                right += ((const vec *)(pixel + panel * PANEL))[1];
            }
        bias[0] = left, bias[1] = right;
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
    for (int panel = 0; panel < l->channels / PANEL; panel++) {
        const float *kernel = turned + (long)panel * l->size * l->size * pixel * PANEL;
        for (int y = 0; y < l->height; y++) {
            row_of_pixels(l, errors + y * pitch_of(l, pixel), pixel, kernel, nothing, me->rows);
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
        long row = (long)(taps - 1 - tap) * l->channels + panel * PANEL;
        for (int u = 0; u < channels; u++) {
            const float *w = l->weights + (long)(u / PANEL) * weights_of(l) * PANEL + u % PANEL;
            vec two[2][2];
            float *column = (float *)two[u % 2];
            for (int j = 0; j < PANEL; j++) column[j] = w[(row + j) * PANEL];
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
    for (int panel = 0; panel < columns_of(l); panel++)
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
        *(halves *)((uint16_t *)me->narrow_errors + at) = narrow(*(const vec *)(errors + at));
    const halves nothing = {0};
    for (int y = 0; y < l->height; y++)
        for (int x = 0; x < l->width; x += 2)
            for (int u = 0; u < channels; u += LANES) {
                const uint16_t *pixel =
                    (const uint16_t *)me->narrow_errors + inside(l, channels, y, x) + u;
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

/* The images of this thread's portions. */
static void images_of(const struct worker *me, int portion, int *from, int *to) {
    int size = me->team->task->size, portions = me->team->portions;
    *from = (int)((int64_t)size * portion / portions);
    *to = (int)((int64_t)size * (portion + 1) / portions);
}

static float *map_of(const struct team *team, int j, int image) {
    const struct convolution *l = &team->task->convolutions[j];
    return team->maps[j] + image * map_floats(l, words_of(l, l->channels));
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
    images_of(me, from, &from, &(int){0});
    images_of(me, to, &to, &(int){0});
    for (int i = from; i < to; i++) {
        enter(task, task->images + order[i] * pixels, map_of(team, 0, i));
        if (step + 1 < task->stop) prefetch(task->images + order[task->size + i] * pixels, pixels);
        for (int j = 0; j <= last; j++) {
            const struct convolution *l = &ls[j];
            int channels = stored(l->units), narrowed = j < last && ls[j + 1].brief;
            float *output = row_of(team, team->features, i);
            long pitch = (long)pooled_width(l) * channels;
            if (j < last) {
                long begin = inside(&ls[j + 1], words_of(&ls[j + 1], channels), 0, 0);
                output = map_of(team, j + 1, i) + begin;
                pitch = pitch_of(&ls[j + 1], channels);
            }
            convolve(
                me, l, l->brief ? me->kernels[j] : l->weights,
                l->brief ? kernel_words(l) : (long)weights_of(l) * PANEL, map_of(team, j, i), output,
                pitch, narrowed, team->chosen[j] + i * pooled_floats(l)
            );
        }
    }
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
                    const float *given = l->brief ? me->narrow_errors : errors;
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
