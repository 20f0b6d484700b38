/* Trains a network by mini-batches: perhaps convolutions, then dense layers, with ReLU between all of
   them and softmax at the end.

   All threads take each step together and share its work. Every number is computed by one thread and
   summed in one order, so results are the same to the last bit for any number of threads. */

#include "common.h"
#include "dense.h"
#include "convolution.h"

/* Images that are fetched from memory at once. */
enum { FETCHED = 64 };

/* me->inputs[i] = images[order[step, i]] * scale + offset: (n, pixels), a row every S(pixels) floats.
   Each thread has all of them, which is faster than to fetch a part from another core. The images that
   follow in the order are fetched ahead of time, by groups that fit into the cache. */
static void load_batch(struct worker *me, int64_t step) {
    const struct task *task = me->team->task;
    int pixels = task->dense_layers[0].inputs, stride = row_stride(pixels), n = task->batch_size;
    int group = n < FETCHED ? n : FETCHED;
    const int64_t *order = task->order + step * n;
    int64_t left = (task->stop - step) * n; /* images of this step and those that follow */
    for (int begin = 0; begin < n; begin += group) {
        int stop = begin + group < n ? begin + group : n;
        for (int i = begin; i < stop; i++)
            rescale(task, task->images + order[i] * pixels, pixels, me->inputs + (long)i * stride);
        for (int i = begin + group; i < stop + group && i < left; i++)
            prefetch(task->images + order[i] * pixels, pixels);
    }
}

/* Seconds of a clock that only goes forward. */
static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

/* A thread's part of all steps: forward, loss, backward, update.

   Between two barriers, no thread reads what another one writes. Kernels that are flipped before the
   dense layers are used after them. Dense weights are updated when their backward products are done,
   so the convolutions' deltas need not wait for that. */
static void take_steps(struct worker *me) {
    struct team *team = me->team;
    struct task *task = team->task;
    struct dense_layer *layers = task->dense_layers;
    int last = task->dense_count - 1;
    int64_t step = task->start;
    while (step < task->stop && !team->out_of_time) {
        for (int i = 0; i < task->batch_size; i++)
            me->labels[i] = task->labels[task->order[step * task->batch_size + i]];
        const float *entering = me->inputs;
        if (task->conv_count) {
            entering = team->features;
            conv_forward_all(me, step);
            barrier(team);
        } else {
            load_batch(me, step);
        }
        for (int k = 0; k <= last; k++) {
            const float *inputs = k ? team->outputs[k - 1] : entering;
            dense_forward(me, &layers[k], inputs, team->outputs[k], k == last);
            barrier(team);
        }
        softmax_cross_entropy(me);
        barrier(team);
        if (me->index == 0)
            for (int i = 0; i < task->batch_size; i++) {
                task->loss += team->losses[i];
                task->correct += team->correct[i];
            }
        for (int k = last; k >= !task->conv_count; k--) {
            dense_backward(
                me, &layers[k], team->deltas[k], team->transposed[k],
                k ? team->outputs[k - 1] : team->features,
                k ? team->deltas[k - 1] : team->feature_deltas
            );
            barrier(team);
        }
        float step_size = task->step_sizes[step];
        float decay = task->rates[step] * task->optimizer.weight_decay;
        for (int k = 0; k <= last; k++) {
            const float *inputs = k ? team->outputs[k - 1] : entering;
            dense_update(me, &layers[k], inputs, team->deltas[k], step_size, decay);
        }
        if (task->conv_count) {
            conv_backward_all(me);
            barrier(team);
            conv_update(me, step_size, decay);
        }
        step++;
        if (me->index == 0 && now() - team->began > task->seconds) team->out_of_time = 1;
        barrier(team);
    }
    if (me->index == 0) team->steps_taken = (int)(step - task->start);
}

/* A thread from its start to its end; argument: its struct worker. */
static void *work(void *argument) {
    struct worker *me = argument;
    uint64_t before = flush_denormals();
    while (!atomic_load_explicit(&me->team->gate, memory_order_acquire)) sched_yield();
    take_steps(me);
    restore_denormals(before);
    return 0;
}

/* All memory of a call, in one piece that is freed at once. */
struct arena {
    char *at;    /* its begin, or null while sizes are only added up */
    size_t size; /* bytes handed out so far */
};

/* The next `bytes` bytes of an arena, aligned to LINE; null while sizes are only added up.

   With SEPARATE_BUFFERS each buffer is allocated on its own, by a function of tests/sanitized.c, so
   that a sanitizer finds an access beyond it. */
static void *arena_alloc(struct arena *arena, size_t bytes) {
#if defined(SEPARATE_BUFFERS)
    if (arena->at) return separate_buffer(bytes);
#endif
    void *found = arena->at ? arena->at + arena->size : 0;
    arena->size += (bytes + LINE - 1) / LINE * LINE;
    return found;
}

/* The next `count` floats of an arena. */
static float *arena_floats(struct arena *arena, size_t count) {
    return arena_alloc(arena, count * sizeof(float));
}

/* max(a, b). */
static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* allocate_workspace for the convolutions; the shapes are those of struct team and struct worker. */
static void allocate_conv_workspace(
    struct arena *arena, struct team *team, struct worker *workers
) {
    const struct task *task = team->task;
    int conv_count = task->conv_count, threads = task->threads;
    size_t features = (size_t)task->batch_size * row_stride(task->dense_layers[0].inputs);
    size_t row = 0, below = 0, deltas = 0, inputs = 0;
    team->features = arena_floats(arena, features);
    team->feature_deltas = arena_floats(arena, features);
    team->padded = arena_alloc(arena, conv_count * sizeof(float *));
    team->shard_sums = arena_alloc(arena, conv_count * sizeof(float *));
    team->flipped = arena_alloc(arena, conv_count * sizeof(float *));
    team->argmax = arena_alloc(arena, conv_count * sizeof(uint8_t *));
    for (int j = 0; j < conv_count; j++) {
        const struct conv_layer *l = &task->conv_layers[j];
        long image = padded_floats(l, pixel_words(l, l->channels));
        float *padded = arena_floats(arena, task->batch_size * image);
        float *sums = arena_floats(arena, team->shards * kernel_floats(l));
        float *flipped = arena_floats(arena, j ? flipped_floats(l) : 0);
        uint8_t *argmax = arena_alloc(arena, task->batch_size * pooled_floats(l));
        row = larger(row, (size_t)l->pool * (l->width + SPAN) * PANEL);
        if (j) below = larger(below, (size_t)l->height * l->width * l->channels);
        if (l->bf16) {
            deltas = larger(deltas, padded_floats(l, stored(l->units)));
            inputs = larger(inputs, padded_floats(l, l->channels));
        }
        if (!arena->at) continue;
        team->padded[j] = padded, team->shard_sums[j] = sums;
        team->flipped[j] = flipped, team->argmax[j] = argmax;
    }
    for (int w = 0; w < threads; w++) {
        struct worker *me = &workers[w];
        me->pixel_rows = arena_floats(arena, row);
        me->input_deltas = arena_floats(arena, below);
        me->bf16_deltas = arena_floats(arena, deltas / 2 + LINE);
        me->delta_pairs = arena_floats(arena, deltas);
        me->input_pairs = arena_floats(arena, inputs);
        me->padded_deltas = arena_alloc(arena, conv_count * sizeof(float *));
        me->bf16_kernels = arena_alloc(arena, conv_count * sizeof(float *));
        for (int j = 0; j < conv_count; j++) {
            const struct conv_layer *l = &task->conv_layers[j];
            long words = l->bf16 ? panels_for(l->units) * kernel_words(l) : 0;
            float *padded_deltas = arena_floats(arena, padded_floats(l, stored(l->units)));
            float *kernels = arena_floats(arena, words);
            if (arena->at) me->padded_deltas[j] = padded_deltas, me->bf16_kernels[j] = kernels;
        }
    }
}

/* Hand out all buffers of struct team and struct worker, which have their shapes, and set the columns
   of ones that the biases are multiplied with. Called twice: the first time, with an arena that has no
   memory, only adds up the size. */
static void allocate_workspace(struct arena *arena, struct team *team, struct worker *workers) {
    const struct task *task = team->task;
    int dense_count = task->dense_count, threads = task->threads, n = task->batch_size;
    int entering = task->dense_layers[0].inputs, stride = row_stride(entering);
    team->outputs = arena_alloc(arena, dense_count * sizeof(float *));
    team->deltas = arena_alloc(arena, dense_count * sizeof(float *));
    team->transposed = arena_alloc(arena, dense_count * sizeof(float *));
    team->losses = arena_floats(arena, n);
    team->correct = arena_alloc(arena, n * sizeof(int32_t));
    size_t sums = 0;
    for (int k = 0; k < dense_count; k++) {
        const struct dense_layer *l = &task->dense_layers[k];
        size_t activations = (size_t)n * row_stride(l->units);
        float *outputs = arena_floats(arena, activations);
        float *deltas = arena_floats(arena, activations);
        float *transposed = arena_floats(arena, (size_t)threads * l->units * PANEL);
        if (n > IMAGES) sums = larger(sums, (size_t)panel_rows(l) * PANEL);
        if (!arena->at) continue;
        team->outputs[k] = outputs, team->deltas[k] = deltas, team->transposed[k] = transposed;
        for (int i = 0; i < n; i++)
            team->outputs[k][(long)i * row_stride(l->units) + l->units] = 1;
    }
    for (int w = 0; w < threads; w++) {
        workers[w].labels = arena_alloc(arena, n * sizeof(int32_t));
        workers[w].sums = arena_floats(arena, sums);
    }
    if (task->conv_count) allocate_conv_workspace(arena, team, workers);
    for (int w = 0; w < threads && !task->conv_count; w++)
        workers[w].inputs = arena_floats(arena, (size_t)n * stride);
    for (int w = 0; w < threads && arena->at; w++)
        for (int i = 0; i < n; i++)
            (task->conv_count ? team->features : workers[w].inputs)[(long)i * stride + entering] = 1;
}

/* 1 if a layer's buffers begin where a vector may and have as many floats as the program takes them to
   have. */
static int buffers_fit(
    const struct task *task, const float *const buffers[3], int64_t floats, long expected
) {
    int used = task->optimizer.kind == SGD ? 1 : task->optimizer.kind == ADAM ? 3 : 2;
    for (int b = 0; b < used; b++)
        if (!buffers[b] || (uintptr_t)buffers[b] % LINE) return 0;
    return floats == expected;
}

/* 1 if all sizes are possible and each layer takes what the one before it leaves. */
static int sizes_fit(const struct task *task) {
    if (task->batch_size < 1 || task->threads < 1 || task->conv_count < 0 || task->dense_count < 1)
        return 0;
    if (task->start < 0 || task->start >= task->stop || task->stop > task->steps) return 0;
    if (task->optimizer.kind < SGD || task->optimizer.kind > ADAM) return 0;
    int64_t entering = task->pixels;
    for (int j = 0; j < task->conv_count; j++) {
        const struct conv_layer *l = &task->conv_layers[j];
        if (l->size < 1 || l->size % 2 == 0 || l->channels < 1 || l->units < 1) return 0;
        if (l->pool < 1 || l->pool > LARGEST_POOL || l->pool > l->height || l->pool > l->width)
            return 0;
        int height = j ? pooled_height(l - 1) : l->height, width = j ? pooled_width(l - 1) : l->width;
        if (l->height != height || l->width != width || (l->bf16 && !j)) return 0;
        if (entering != (int64_t)l->height * l->width * l->channels) return 0;
        const float *const buffers[] = {l->weights, l->momentum, l->velocity};
        if (!buffers_fit(task, buffers, l->floats, kernel_floats(l))) return 0;
        entering = pooled_floats(l);
    }
    for (int k = 0; k < task->dense_count; k++) {
        const struct dense_layer *l = &task->dense_layers[k];
        if (l->inputs < 1 || l->units < 1 || entering != l->inputs) return 0;
        const float *const buffers[] = {l->weights, l->momentum, l->velocity};
        long expected = (long)panel_count(l) * panel_rows(l) * PANEL;
        if (!buffers_fit(task, buffers, l->floats, expected)) return 0;
        entering = l->units;
    }
    return 1;
}

/* 0 if the steps from task->start to before task->stop read nothing beyond any buffer; else BAD_SIZES,
   BAD_ORDER (an index that is no image's) or BAD_LABEL (a label that is no class). */
static int check(const struct task *task) {
    if (!sizes_fit(task)) return BAD_SIZES;
    int bad = 0;
    int64_t stop = task->stop * task->batch_size;
    for (int64_t i = task->start * task->batch_size; i < stop; i++)
        bad |= (uint64_t)task->order[i] >= (uint64_t)task->image_count;
    if (bad) return BAD_ORDER;
    uint32_t classes = task->dense_layers[task->dense_count - 1].units;
    for (int64_t i = 0; i < task->image_count; i++) bad |= (uint32_t)task->labels[i] >= classes;
    return bad ? BAD_LABEL : 0;
}

/* Shards of a batch of so many images, min(images, SHARDS). */
static int shards_of(int images) { return images < SHARDS ? images : SHARDS; }

/* The most threads that a step of so many images may have. */
int fmnist_lab_most_threads(int images, int convolutions) {
    return convolutions ? shards_of(images) : MOST_THREADS;
}

/* Take steps from task->start to before task->stop: at least one, and none that would begin after
   task->seconds. Adds to task->loss and task->correct, updates all weights, momentum and velocity, and
   sets task->seconds to the time taken. Returns the number of steps; or NO_MEMORY, or what check finds,
   and has changed nothing. */
int fmnist_lab_train(struct task *task) {
    int fault = check(task);
    if (fault) return fault;
    struct team team = {.task = task, .shards = shards_of(task->batch_size)};
    struct worker workers[MOST_THREADS] = {0};
    int most = fmnist_lab_most_threads(task->batch_size, task->conv_count);
    if (task->threads > most) task->threads = most;
    struct arena arena = {0};
    allocate_workspace(&arena, &team, workers);
    void *memory = calloc(1, arena.size + LINE);
    if (!memory) return NO_MEMORY;
    arena = (struct arena){.at = (char *)(((uintptr_t)memory + LINE - 1) / LINE * LINE)};
    allocate_workspace(&arena, &team, workers);
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
    return team.steps_taken;
}

/* 1 if the processor multiplies bfloat16 faster than float32, else 0. */
int fmnist_lab_has_bf16(void) {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

/* Floats per vector, columns per panel and rows per tile of a dense layer: how the weights are to be
   laid out. */
int fmnist_lab_lanes(void) { return LANES; }
int fmnist_lab_panel(void) { return PANEL; }
int fmnist_lab_rows(void) { return ROWS; }
