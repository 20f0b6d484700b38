/* Trains a network by mini-batches: perhaps convolutions, then dense layers, ReLU between them all
   and softmax at the end.

   All threads go through each step together and share out the work. Every number is the work of one
   thread and summed in one order, so results are the same to the last bit for any number of
   threads. */

#include "common.h"
#include "dense.h"
#include "convolution.h"

/* A step's images, as inputs of the first dense layer. Each thread has all of them for itself, which
   is quicker than to fetch half of them from another core. */
static void gather(struct worker *me, int64_t step) {
    const struct task *task = me->team->task;
    int pixels = task->layers[0].inputs, stride = stride_of(pixels);
    const int64_t *order = task->order + step * task->size;
    for (int i = 0; i < task->size; i++)
        rescale(task, task->images + order[i] * pixels, pixels, me->inputs + (long)i * stride);
    if (step + 1 < task->stop)
        for (int i = 0; i < task->size; i++)
            prefetch(task->images + order[task->size + i] * pixels, pixels);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

/* Between two meets, what one thread writes no other reads. Kernels turned about before the dense
   layers are used after them; and dense weights are updated when their backward products are done,
   so the convolutions' errors need not wait for that. */
static void take_steps(struct worker *me) {
    struct team *team = me->team;
    struct task *task = team->task;
    struct layer *layers = task->layers;
    int last = task->depth - 1;
    int64_t step = task->start;
    while (step < task->stop && !team->over) {
        for (int i = 0; i < task->size; i++)
            me->labels[i] = task->labels[task->order[step * task->size + i]];
        const float *entering = me->inputs;
        if (task->fronts) {
            entering = team->features;
            convolve_all(me, step);
            meet(team);
        } else {
            gather(me, step);
        }
        for (int k = 0; k <= last; k++) {
            const float *inputs = k ? team->outputs[k - 1] : entering;
            forward(me, &layers[k], inputs, team->outputs[k], k == last);
            meet(team);
        }
        judge(me);
        meet(team);
        if (me->index == 0)
            for (int i = 0; i < task->size; i++) {
                task->loss += team->losses[i];
                task->hits += team->right[i];
            }
        for (int k = last; k >= !task->fronts; k--) {
            backward(
                me, &layers[k], team->deltas[k], team->turned[k],
                k ? team->outputs[k - 1] : team->features, k ? team->deltas[k - 1] : team->errors
            );
            meet(team);
        }
        float stride = task->strides[step], decay = task->rates[step] * task->rule.decay;
        for (int k = 0; k <= last; k++) {
            const float *inputs = k ? team->outputs[k - 1] : entering;
            learn(me, &layers[k], inputs, team->deltas[k], stride, decay);
        }
        if (task->fronts) {
            convolve_back(me);
            meet(team);
            learn_kernels(me, stride, decay);
        }
        step++;
        if (me->index == 0 && now() - team->began > task->seconds) team->over = 1;
        meet(team);
    }
    if (me->index == 0) team->taken = (int)(step - task->start);
}

static void *work(void *argument) {
    struct worker *me = argument;
    uint64_t before = flush_denormals();
    while (!atomic_load_explicit(&me->team->gate, memory_order_acquire)) sched_yield();
    take_steps(me);
    restore_denormals(before);
    return 0;
}

/* All memory of a call, freed as one. */

struct arena {
    char *at;
    size_t size;
};

static void *take(struct arena *arena, size_t bytes) {
    void *found = arena->at ? arena->at + arena->size : 0;
    arena->size += (bytes + LINE - 1) / LINE * LINE;
    return found;
}

static float *take_floats(struct arena *arena, size_t count) {
    return take(arena, count * sizeof(float));
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static void furnish_convolutions(
    struct arena *arena, struct team *team, struct worker *workers
) {
    const struct task *task = team->task;
    int fronts = task->fronts, threads = task->threads;
    size_t features = (size_t)team->rows * stride_of(task->layers[0].inputs);
    size_t row = 0, below = 0, errors = 0, inputs = 0;
    team->features = take_floats(arena, features);
    team->errors = take_floats(arena, features);
    team->maps = take(arena, fronts * sizeof(float *));
    team->sums = take(arena, fronts * sizeof(float *));
    team->turned_kernels = take(arena, fronts * sizeof(float *));
    team->chosen = take(arena, fronts * sizeof(uint8_t *));
    for (int j = 0; j < fronts; j++) {
        const struct convolution *l = &task->convolutions[j];
        float *maps = take_floats(arena, task->size * map_floats(l, words_of(l, l->channels)));
        float *sums = take_floats(arena, team->portions * kernel_floats(l));
        float *turned = take_floats(arena, j ? turned_floats(l) : 0);
        uint8_t *chosen = take(arena, task->size * pooled_floats(l));
        row = larger(row, (size_t)l->pool * (l->width + SPAN) * PANEL);
        if (j) below = larger(below, (size_t)l->height * l->width * l->channels);
        if (l->brief) {
            errors = larger(errors, map_floats(l, stored(l->units)));
            inputs = larger(inputs, map_floats(l, l->channels));
        }
        if (!arena->at) continue;
        team->maps[j] = maps, team->sums[j] = sums;
        team->turned_kernels[j] = turned, team->chosen[j] = chosen;
    }
    for (int w = 0; w < threads; w++) {
        struct worker *me = &workers[w];
        me->rows = take_floats(arena, row);
        me->below = take_floats(arena, below);
        me->brief_errors = take_floats(arena, errors / 2 + LINE);
        me->error_pairs = take_floats(arena, errors);
        me->input_pairs = take_floats(arena, inputs);
        me->errors = take(arena, fronts * sizeof(float *));
        me->kernels = take(arena, fronts * sizeof(float *));
        for (int j = 0; j < fronts; j++) {
            const struct convolution *l = &task->convolutions[j];
            float *of_units = take_floats(arena, map_floats(l, stored(l->units)));
            float *kernels = take_floats(arena, l->brief ? panels_for(l->units) * kernel_words(l) : 0);
            if (arena->at) me->errors[j] = of_units, me->kernels[j] = kernels;
        }
    }
}

/* Called twice: to add up what is needed, and to hand it out. */
static void furnish(struct arena *arena, struct team *team, struct worker *workers) {
    const struct task *task = team->task;
    int depth = task->depth, threads = task->threads, rows = team->rows;
    int entering = task->layers[0].inputs, stride = stride_of(entering);
    team->outputs = take(arena, depth * sizeof(float *));
    team->deltas = take(arena, depth * sizeof(float *));
    team->turned = take(arena, depth * sizeof(float *));
    team->losses = take_floats(arena, task->size);
    team->right = take(arena, task->size * sizeof(int32_t));
    for (int k = 0; k < depth; k++) {
        const struct layer *l = &task->layers[k];
        size_t activations = (size_t)rows * stride_of(l->units);
        float *outputs = take_floats(arena, activations), *deltas = take_floats(arena, activations);
        float *turned = take_floats(arena, (size_t)threads * l->units * PANEL);
        if (!arena->at) continue;
        team->outputs[k] = outputs, team->deltas[k] = deltas, team->turned[k] = turned;
        for (int i = 0; i < rows; i++) team->outputs[k][(long)i * stride_of(l->units) + l->units] = 1;
    }
    for (int w = 0; w < threads; w++) workers[w].labels = take(arena, task->size * sizeof(int32_t));
    if (task->fronts) furnish_convolutions(arena, team, workers);
    for (int w = 0; w < threads && !task->fronts; w++)
        workers[w].inputs = take_floats(arena, (size_t)rows * stride);
    for (int w = 0; w < threads && arena->at; w++)
        for (int i = 0; i < task->size; i++)
            (task->fronts ? team->features : workers[w].inputs)[(long)i * stride + entering] = 1;
}

static int portions_of(int images) { return images < PORTIONS ? images : PORTIONS; }

/* How many threads a step may have. */
int fmnist_lab_most_threads(int images, int convolutions) {
    return convolutions ? portions_of(images) : MOST_THREADS;
}

/* Take steps from start to stop, at least one, and none that would begin after so many seconds.
   Returns how many they were, or -1 if there is not enough memory. */
int fmnist_lab_train(struct task *task) {
    struct team team = {.task = task, .rows = up(task->size, ROWS)};
    team.portions = portions_of(task->size);
    struct worker workers[MOST_THREADS] = {0};
    int most = fmnist_lab_most_threads(task->size, task->fronts);
    if (task->threads > most) task->threads = most;
    struct arena arena = {0};
    furnish(&arena, &team, workers);
    void *memory = calloc(1, arena.size + LINE);
    if (!memory) return -1;
    arena = (struct arena){.at = (char *)(((uintptr_t)memory + LINE - 1) / LINE * LINE)};
    furnish(&arena, &team, workers);
    int threads = 1;
    for (int w = 0; w < task->threads; w++) workers[w].team = &team, workers[w].index = w;
    /* A system that grants fewer threads gets the same result, later. */
    while (threads < task->threads &&
           !pthread_create(&workers[threads].thread, 0, work, &workers[threads]))
        threads++;
    team.threads = threads;
    team.began = now();
    atomic_store_explicit(&team.gate, 1, memory_order_release);
    work(&workers[0]);
    for (int w = 1; w < threads; w++) pthread_join(workers[w].thread, 0);
    task->seconds = now() - team.began;
    free(memory);
    return team.taken;
}

/* Whether the processor multiplies bfloat16 faster than float32. */
int fmnist_lab_brief(void) {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

/* How the weights are to be laid out. */
int fmnist_lab_lanes(void) { return LANES; }
int fmnist_lab_panel(void) { return PANEL; }
int fmnist_lab_rows(void) { return ROWS; }
