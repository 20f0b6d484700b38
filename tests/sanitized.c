/* Trains random small networks, for sanitizers: each buffer is allocated on its own and has exactly
   the size that it is said to have.

   usage: sanitized FIRST_SEED LAST_SEED. Exits with 1 and a line on stderr if the numbers of threads
   differ in any bit, or if a fault of the caller is not answered with its code. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BUFFERS = 4096, LARGEST = 3, COPIES = 3 };

static void *buffers[MOST_BUFFERS];
static int buffer_count;

/* Zeros, aligned as vectors are; freed by free_from. */
static void *separate_buffer(size_t bytes) {
    void *found = 0;
    if (buffer_count == MOST_BUFFERS || posix_memalign(&found, 64, bytes)) abort();
    if (bytes) memset(found, 0, bytes);
    return buffers[buffer_count++] = found;
}

static void free_from(int first) {
    while (buffer_count > first) free(buffers[--buffer_count]);
}

#define SEPARATE_BUFFERS
#include "network.c"

static uint64_t state;

/* A whole number from low to high. */
static int draw(int low, int high) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return low + (int)((state >> 33) % (uint64_t)(high - low + 1));
}

static float draw_weight(void) { return draw(-1000, 1000) * 2e-4f; }

static void fail(const char *words, uint64_t seed) {
    fprintf(stderr, "%s, seed %llu\n", words, (unsigned long long)seed);
    exit(1);
}

/* Panels of (rows, PANEL); weights in the first `used` rows of each unit's column, the rest zeros. */
static float *draw_panels(int rows, int used, int units) {
    int panels = round_up(units, PANEL) / PANEL;
    float *found = separate_buffer(sizeof(float) * panels * rows * PANEL);
    for (int u = 0; u < units; u++)
        for (int row = 0; row < used; row++)
            found[((long)(u / PANEL) * rows + row) * PANEL + u % PANEL] = draw_weight();
    return found;
}

/* Buffers for the optimizer's state, zeros; only those that its kind has. */
static void draw_state(int kind, int64_t floats, float **momentum, float **velocity) {
    *momentum = kind == SGD ? 0 : separate_buffer(sizeof(float) * floats);
    *velocity = kind == ADAM ? separate_buffer(sizeof(float) * floats) : 0;
}

struct network {
    struct task task;
    struct conv_layer convs[LARGEST];
    struct dense_layer denses[LARGEST];
};

/* The same network for the same seed; its buffers lie in `buffers`. */
static void draw_network(struct network *network, uint64_t seed, int conv_count) {
    struct task *task = &network->task;
    state = seed;
    memset(network, 0, sizeof *network);
    int kind = draw(SGD, ADAM), bf16 = draw(0, 1);
    int height = draw(1, 12), width = draw(1, 30), channels = draw(1, 3);
    task->conv_layers = network->convs, task->dense_layers = network->denses;
    task->conv_count = conv_count, task->dense_count = draw(1, LARGEST);
    /* Large batches are summed in parts. */
    int largest = draw(0, conv_count ? 3 : 1) ? 20 : 150;
    task->batch_size = draw(1, largest), task->steps = draw(1, 3);
    task->stop = task->steps, task->seconds = 1e9;
    task->optimizer = (struct optimizer){kind, 0.9f, 0.1f, 0.001f, 1e-7f, draw(0, 1) * 0.01f};
    task->scale = 1 / 255.f, task->smoothing = draw(0, 1) * 0.1f;
    task->image_count = draw(1, 30), task->pixels = height * width * channels;
    int inputs = (int)task->pixels;
    for (int j = 0; j < conv_count; j++) {
        struct conv_layer *l = &network->convs[j];
        int smaller = height < width ? height : width;
        l->size = 2 * draw(0, 2) + 1, l->channels = channels, l->units = draw(1, 40);
        l->height = height, l->width = width;
        l->pool = draw(1, smaller < 3 ? smaller : 3), l->bf16 = bf16 && j;
        l->floats = kernel_floats(l);
        l->weights = draw_panels(kernel_rows(l), kernel_rows(l), l->units);
        draw_state(kind, l->floats, &l->momentum, &l->velocity);
        height /= l->pool, width /= l->pool, channels = stored(l->units);
        inputs = (int)pooled_floats(l);
    }
    for (int k = 0; k < task->dense_count; k++) {
        struct dense_layer *l = &network->denses[k];
        l->inputs = inputs, l->units = draw(2, 70);
        l->floats = (int64_t)panel_count(l) * panel_rows(l) * PANEL;
        l->weights = draw_panels(panel_rows(l), inputs + 1, l->units);
        draw_state(kind, l->floats, &l->momentum, &l->velocity);
        inputs = l->units;
    }
    uint8_t *images = separate_buffer(task->image_count * task->pixels);
    int32_t *labels = separate_buffer(sizeof(int32_t) * task->image_count);
    int64_t *order = separate_buffer(sizeof(int64_t) * task->steps * task->batch_size);
    float *rates = separate_buffer(sizeof(float) * task->steps);
    for (long i = 0; i < task->image_count * task->pixels; i++) images[i] = draw(0, 255);
    for (int i = 0; i < task->image_count; i++) labels[i] = draw(0, inputs - 1);
    for (int i = 0; i < task->steps * task->batch_size; i++)
        order[i] = draw(0, (int)task->image_count - 1);
    for (int i = 0; i < task->steps; i++) rates[i] = 0.01f;
    task->images = images, task->labels = labels, task->order = order;
    task->rates = task->step_sizes = rates;
}

/* Train, and free the workspace. */
static int train(struct task *task) {
    int first = buffer_count, steps = fmnist_lab_train(task);
    free_from(first);
    return steps;
}

/* Whether two networks have the same weights, to the last bit. */
static int same(const struct network *a, const struct network *b) {
    int equal = a->task.loss == b->task.loss && a->task.correct == b->task.correct;
    for (int j = 0; j < a->task.conv_count; j++)
        equal &= !memcmp(a->convs[j].weights, b->convs[j].weights, 4 * a->convs[j].floats);
    for (int k = 0; k < a->task.dense_count; k++)
        equal &= !memcmp(a->denses[k].weights, b->denses[k].weights, 4 * a->denses[k].floats);
    return equal;
}

/* Each fault of a caller's, made one at a time, has its code. */
static void check_faults(struct network *network, uint64_t seed) {
    struct task *task = &network->task;
    struct dense_layer *last = &network->denses[task->dense_count - 1];
    int64_t *index = (int64_t *)task->order + task->steps * task->batch_size - 1, image = *index;
    int32_t *label = (int32_t *)task->labels + task->image_count - 1, class = *label;
    int64_t indices[] = {-1, task->image_count, INT64_MAX, INT64_MIN};
    for (int i = 0; i < 4; i++) {
        *index = indices[i];
        if (train(task) != BAD_ORDER) fail("an index beyond the images is not told", seed);
    }
    *index = image;
    int32_t classes[] = {-1, last->units, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 4; i++) {
        *label = classes[i];
        if (train(task) != BAD_LABEL) fail("a label beyond the classes is not told", seed);
    }
    *label = class;
    int32_t *sizes[] = {&task->batch_size, &task->threads, &task->dense_count, &last->units};
    for (int i = 0; i < 4; i++) {
        int32_t size = *sizes[i];
        *sizes[i] = 0;
        if (train(task) != BAD_SIZES) fail("a size of 0 is not told", seed);
        *sizes[i] = size;
    }
    int64_t *lengths[] = {&task->stop, &task->pixels, &last->floats, &network->denses[0].floats};
    for (int i = 0; i < 4; i++) {
        ++*lengths[i];
        if (train(task) != BAD_SIZES) fail("a length that does not fit is not told", seed);
        --*lengths[i];
    }
    if (train(task) < 1) fail("what is mended is not trained", seed);
}

int main(int count, char **words) {
    const int threads[COPIES] = {1, 2, 5};
    if (count != 3) return 2;
    for (uint64_t seed = strtoull(words[1], 0, 10); seed <= strtoull(words[2], 0, 10); seed++)
        for (int conv_count = 0; conv_count <= LARGEST; conv_count++) {
            struct network copies[COPIES];
            for (int c = 0; c < COPIES; c++) {
                draw_network(&copies[c], seed, conv_count);
                struct task *task = &copies[c].task;
                task->threads = threads[c];
                if (train(task) != task->steps) fail("not all steps are taken", seed);
                /* The smaller last batch. */
                task->batch_size = (task->batch_size + 1) / 2, task->steps = task->stop = 1;
                task->threads = threads[c];
                if (train(task) != 1) fail("the last step is not taken", seed);
                if (!same(&copies[0], &copies[c])) fail("the numbers of threads differ", seed);
            }
            check_faults(&copies[0], seed);
            free_from(0);
        }
    return 0;
}
