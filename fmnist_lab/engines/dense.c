/* Trains a stack of dense layers, ReLU between them and softmax at the end, by mini-batches.

   All threads go through each step together and share out the work: a layer's columns in the
   forward product, the inputs' columns in the backward one, the weights in the update. Every number
   is the work of one thread and summed in one order, so results are the same to the last bit for
   any number of threads. A weight stays with one thread, and so in its core's cache, and a
   gradient never leaves its core: it becomes an update while the next ones are summed up.

   Weights are kept in panels, PANEL columns of all rows of a layer in one piece. The bias is one row
   more, under an input that is always 1. Rows and columns are padded with zeros, whose gradient is
   zero, so no loop has a remainder.

   The vectors are GCC's and Clang's, which any processor's instructions are made from. */

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* As many accumulators as stay in registers: ROWS times two vectors. */
#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 4 };
#elif defined(__aarch64__)
enum { LANES = 4, ROWS = 8 };
#else
enum { LANES = 4, ROWS = 4 };
#endif
/* TILE: vectors in a tile of ROWS rows of a panel. */
enum { PANEL = 2 * LANES, TILE = 2 * ROWS, LINE = 64, MOST_THREADS = 64 };

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

/* What Python describes; see native.py. */

struct layer {
    int32_t inputs, units;
    float *weights; /* panels of (rows, PANEL), as are the optimizer's two memories of them */
    float *first, *second;
};

enum { SGD, MOMENTUM, NESTEROV, ADAM };

struct rule {
    int32_t kind;
    float first, second; /* Adam's 1 - beta_1 and 1 - beta_2; the momentum is in first */
    float epsilon, decay;
};

struct task {
    struct layer *layers;
    int32_t depth, size, threads; /* size: images a step */
    struct rule rule;
    float scale, offset;    /* from a byte to a network's input */
    float smoothing;        /* the share of each label that is spread over all classes */
    const uint8_t *images;  /* (n, inputs of the first layer) */
    const int32_t *labels;  /* (n,) */
    const int64_t *order;   /* (steps, size), which image comes when */
    const float *rates;     /* (steps,), the learning rate */
    const float *strides;   /* (steps,), the same with Adam's correction */
    int64_t start, stop;    /* which steps to take */
    double loss, hits;      /* sums, added to */
};

struct team {
    struct task *task;
    int threads, rows; /* rows: of a batch, padded */
    float **outputs, **deltas, **turned;
    float *losses;     /* of each image of the batch */
    int32_t *right;
    _Atomic int gate, arrived, phase;
};

struct worker {
    struct team *team;
    int index;
    pthread_t thread;
    float *inputs;
    int32_t *labels;
};

static int up(int n, int unit) { return (n + unit - 1) / unit * unit; }
static int rows_of(const struct layer *l) { return up(l->inputs + 1, ROWS); }
static int panels_of(const struct layer *l) { return up(l->units, PANEL) / PANEL; }
/* Floats from one image's activations to the next one's; there is room for the 1 after them. */
static int stride_of(int units) { return up(units + 1, PANEL); }

/* Wait for all threads. They are never far apart, so it does not pay to sleep, unless the machine
   is crowded and a thread that is waited for has no core. */
static void meet(struct team *team) {
    int phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add(&team->arrived, 1) == team->threads - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase; spins++) {
        if (spins > 4000) sched_yield();
#if defined(__x86_64__)
        else __builtin_ia32_pause();
#endif
    }
}

/* This thread's part of a number of pieces. */
static void share(const struct worker *me, int count, int *from, int *to) {
    *from = (int)((int64_t)count * me->index / me->team->threads);
    *to = (int)((int64_t)count * (me->index + 1) / me->team->threads);
}

/* Numbers too small for full precision take a processor a hundred times as long. TensorFlow takes
   them for zero, too. */
static uint64_t flush_denormals(void) {
    uint64_t before = 0;
#if defined(__x86_64__)
    before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr((unsigned)before | 0x8040);
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | 1 << 24));
#endif
    return before;
}

static void restore_denormals(uint64_t before) {
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#endif
    (void)before;
}

INLINE vec all(float x) { return x - (vec){0}; }

INLINE vec root(vec x) {
    vec y;
    for (int i = 0; i < LANES; i++) y[i] = __builtin_sqrtf(x[i]);
    return y;
}

/* NaN stays, so that a training that has gone wrong shows it. */
INLINE vec unless_negative(vec x, vec of) { return (vec)((mask)x & ~(of <= (vec){0})); }

INLINE void clear(vec c[ROWS][2]) {
    for (int r = 0; r < ROWS; r++) c[r][0] = c[r][1] = (vec){0};
}

/* ROWS rows of a times one panel b: c[r] += sum over k of a[r, k] b[k]. With ahead, the a of the
   tile that is so many numbers further on is fetched meanwhile. */
INLINE void multiply(
    vec c[ROWS][2], int count, const float *a, long a_row, long a_k, const float *b, long b_k,
    const int ahead
) {
    for (int k = 0; k < count; k++) {
        const vec *row = (const vec *)(b + k * b_k);
        if (ahead) __builtin_prefetch(a + k * a_k + ahead);
        vec left = row[0], right = row[1];
        for (int r = 0; r < ROWS; r++) {
            vec x = all(a[r * a_row + k * a_k]);
            c[r][0] += x * left;
            c[r][1] += x * right;
        }
    }
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
        multiply(c, rows, inputs + (long)i * in, in, 1, weights, PANEL, 0);
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
        multiply(c, units, deltas + (long)i * in, in, 1, turned, PANEL, 0);
        for (int r = 0; r < ROWS; r++) {
            long at = (long)(i + r) * out + panel * PANEL;
            for (int h = 0; h < 2; h++)
                ((vec *)(deltas_below + at))[h] =
                    unless_negative(c[r][h], ((const vec *)(outputs_below + at))[h]);
        }
    }
}

/* One vector of weights, given its gradient; Keras' formulas, in Keras' order. */
INLINE void update(
    const int kind, const struct rule *rule, float stride, float decay, vec gradient,
    vec *weights, vec *first, vec *second
) {
    vec w = *weights;
    if (decay) w -= w * decay;
    if (kind == SGD) {
        w -= gradient * stride;
    } else if (kind == ADAM) {
        vec m = *first, v = *second;
        *first = m += (gradient - m) * rule->first;
        *second = v += (gradient * gradient - v) * rule->second;
        w -= m * stride / (root(v) + rule->epsilon);
    } else {
        vec m = *first = *first * rule->first - gradient * stride;
        w += kind == NESTEROV ? m * rule->first - gradient * stride : m;
    }
    *weights = w;
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
                c, more, inputs + row + (long)images * in, 1, in,
                deltas + panel * PANEL + (long)images * out, out, 2 * ROWS
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

/* A step's images, as inputs of the first layer. Each thread has all of them for itself, which is
   quicker than to fetch half of them from another core. */
static void gather(struct worker *me, int64_t step) {
    const struct task *task = me->team->task;
    int pixels = task->layers[0].inputs, stride = stride_of(pixels);
    float scale = task->scale, offset = task->offset;
    const int64_t *order = task->order + step * task->size;
    for (int i = 0; i < task->size; i++) {
        const uint8_t *image = task->images + order[i] * pixels;
        float *inputs = me->inputs + (long)i * stride;
        for (int p = 0; p < pixels; p++) inputs[p] = image[p] * scale + offset;
        me->labels[i] = task->labels[order[i]];
    }
    if (step + 1 < task->stop)
        /* They lie anywhere in memory; without this, every step waits for them. */
        for (int i = 0; i < task->size; i++) {
            const uint8_t *next = task->images + order[task->size + i] * pixels;
            for (int p = 0; p < pixels; p += LINE) __builtin_prefetch(next + p);
        }
}

static void take_steps(struct worker *me) {
    struct team *team = me->team;
    struct task *task = team->task;
    struct layer *layers = task->layers;
    int last = task->depth - 1;
    for (int64_t step = task->start; step < task->stop; step++) {
        gather(me, step);
        for (int k = 0; k <= last; k++) {
            const float *inputs = k ? team->outputs[k - 1] : me->inputs;
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
        for (int k = last; k > 0; k--) {
            backward(
                me, &layers[k], team->deltas[k], team->turned[k], team->outputs[k - 1],
                team->deltas[k - 1]
            );
            meet(team);
        }
        float stride = task->strides[step], decay = task->rates[step] * task->rule.decay;
        for (int k = 0; k <= last; k++) {
            const float *inputs = k ? team->outputs[k - 1] : me->inputs;
            learn(me, &layers[k], inputs, team->deltas[k], stride, decay);
        }
        meet(team);
    }
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

/* Called twice: to add up what is needed, and to hand it out. */
static void furnish(struct arena *arena, struct team *team, struct worker *workers) {
    const struct task *task = team->task;
    int depth = task->depth, threads = task->threads, rows = team->rows;
    team->outputs = take(arena, depth * sizeof(float *));
    team->deltas = take(arena, depth * sizeof(float *));
    team->turned = take(arena, depth * sizeof(float *));
    team->losses = take(arena, task->size * sizeof(float));
    team->right = take(arena, task->size * sizeof(int32_t));
    for (int k = 0; k < depth; k++) {
        const struct layer *l = &task->layers[k];
        size_t activations = sizeof(float) * rows * stride_of(l->units);
        void *outputs = take(arena, activations), *deltas = take(arena, activations);
        void *turned = take(arena, sizeof(float) * threads * l->units * PANEL);
        if (!arena->at) continue;
        team->outputs[k] = outputs, team->deltas[k] = deltas, team->turned[k] = turned;
        for (int i = 0; i < rows; i++) team->outputs[k][(long)i * stride_of(l->units) + l->units] = 1;
    }
    int pixels = task->layers[0].inputs, stride = stride_of(pixels);
    for (int w = 0; w < threads; w++) {
        workers[w].inputs = take(arena, sizeof(float) * rows * stride);
        workers[w].labels = take(arena, task->size * sizeof(int32_t));
        if (!arena->at) continue;
        for (int i = 0; i < task->size; i++) workers[w].inputs[(long)i * stride + pixels] = 1;
    }
}

/* Take the steps from start to stop. Returns 0, or 1 if there is not enough memory. */
int fmnist_lab_train(struct task *task) {
    struct team team = {.task = task, .rows = up(task->size, ROWS)};
    struct worker workers[MOST_THREADS] = {0};
    if (task->threads > MOST_THREADS) task->threads = MOST_THREADS;
    struct arena arena = {0};
    furnish(&arena, &team, workers);
    void *memory = malloc(arena.size + LINE);
    if (!memory) return 1;
    memset(memory, 0, arena.size + LINE);
    arena = (struct arena){.at = (char *)(((uintptr_t)memory + LINE - 1) / LINE * LINE)};
    furnish(&arena, &team, workers);
    int threads = 1;
    for (int w = 0; w < task->threads; w++) workers[w].team = &team, workers[w].index = w;
    /* A system that grants fewer threads gets the same result, later. */
    while (threads < task->threads &&
           !pthread_create(&workers[threads].thread, 0, work, &workers[threads]))
        threads++;
    team.threads = threads;
    atomic_store_explicit(&team.gate, 1, memory_order_release);
    work(&workers[0]);
    for (int w = 1; w < threads; w++) pthread_join(workers[w].thread, 0);
    free(memory);
    return 0;
}

/* How the weights are to be laid out. */
int fmnist_lab_panel(void) { return PANEL; }
int fmnist_lab_rows(void) { return ROWS; }
