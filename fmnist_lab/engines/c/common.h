#pragma once

/* What the parts of the program share: what Python describes, threads that go through a step
   together, vectors, and a tile of a product.

   The vectors are GCC's and Clang's, which any processor's instructions are made from. */

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

/* A tile has as many accumulators as stay in registers, a number of rows times two vectors: ROWS for
   dense layers; SPAN, or HALF of it, for convolutions. The rows of images are 28 pixels, or after
   pooling 14 and 7, so that most tiles are full where there are registers for so many. */
#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8, SPAN = 14 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 4, SPAN = 6 };
#elif defined(__aarch64__)
enum { LANES = 4, ROWS = 8, SPAN = 14 };
#else
enum { LANES = 4, ROWS = 4, SPAN = 6 };
#endif
/* TILE: vectors in a tile of ROWS rows of a panel. */
enum { PANEL = 2 * LANES, TILE = 2 * ROWS, HALF = SPAN / 2, LINE = 64, MOST_THREADS = 64 };

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * LANES), may_alias));
typedef uint8_t bytes __attribute__((vector_size(LANES), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), may_alias));

#define INLINE static inline __attribute__((always_inline))

/* What Python describes; see native.py. */

struct layer {
    int32_t inputs, units;
    float *weights; /* panels of (rows, PANEL), as are the optimizer's two memories of them */
    float *first, *second;
};

/* A kernel of size times size, for `channels` numbers a pixel of its input. */
struct convolution {
    int32_t size, channels, units;
    int32_t height, width; /* of its input and, before the pooling, its output */
    int32_t pool;          /* height and width of the windows whose maxima go on; 1: all do */
    int32_t brief;         /* whether its products are of bfloat16, summed up in float32 */
    float *weights;        /* panels of (size, size, channels) rows and one more of biases */
    float *first, *second;
};

enum { SGD, MOMENTUM, NESTEROV, ADAM };

struct rule {
    int32_t kind;
    float first, second; /* Adam's 1 - beta_1 and 1 - beta_2; the momentum is in first */
    float epsilon, decay;
};

struct task {
    struct convolution *convolutions; /* before the layers */
    struct layer *layers;
    int32_t fronts, depth;  /* how many of each */
    int32_t size, threads;  /* size: images a step */
    struct rule rule;
    float scale, offset;    /* from a byte to a network's input */
    float smoothing;        /* the share of each label that is spread over all classes */
    const uint8_t *images;  /* (n, pixels), or with convolutions (n, height, width, channels) */
    const int32_t *labels;  /* (n,) */
    const int64_t *order;   /* (steps, size), which image comes when */
    const float *rates;     /* (steps,), the learning rate */
    const float *strides;   /* (steps,), the same with Adam's correction */
    int64_t start, stop;    /* which steps to take, at most */
    double loss, hits;      /* sums, added to */
    double seconds;         /* after how long to take no more; then, how long it took */
};

struct team {
    struct task *task;
    int threads, rows; /* rows: of a batch, padded */
    float **outputs, **deltas, **turned;
    float *losses;     /* of each image of the batch */
    int32_t *right;
    /* Of the convolutions, each image's: their inputs, which pixels were the maxima, and what leaves
       the last of them, with its errors; each portion's gradients; kernels turned about. */
    int portions;
    float **maps, *features, *errors, **sums, **turned_kernels;
    uint8_t **chosen;
    double began;
    int taken; /* steps */
    int over;  /* written by the first thread between two meets, read by all after the second */
    _Atomic int gate, arrived, phase;
};

struct worker {
    struct team *team;
    int index;
    pthread_t thread;
    float *inputs;
    int32_t *labels;
    /* Of the convolutions: some rows of one panel, an image's errors in each, and below it. */
    float *rows, **errors, *below;
    /* Of brief ones, in bfloat16: kernels and errors; and in pairs of pixels inputs and errors. */
    float **kernels, *brief_errors, *input_pairs, *error_pairs;
};

static int up(int n, int unit) { return (n + unit - 1) / unit * unit; }
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

/* Images lie anywhere in memory; unless they are asked for in advance, every step waits for them. */
static void prefetch(const uint8_t *image, int pixels) {
    for (int p = 0; p < pixels; p += LINE) __builtin_prefetch(image + p);
}

static void rescale(const struct task *task, const uint8_t *image, int pixels, float *inputs) {
    float scale = task->scale, offset = task->offset;
    for (int p = 0; p < pixels; p++) inputs[p] = image[p] * scale + offset;
}

INLINE vec all(float x) { return x - (vec){0}; }

INLINE vec root(vec x) {
    vec y;
    for (int i = 0; i < LANES; i++) y[i] = __builtin_sqrtf(x[i]);
    return y;
}

/* NaN stays, so that a training that has gone wrong shows it. */
INLINE vec unless_negative(vec x, vec of) { return (vec)((mask)x & ~(of <= (vec){0})); }

/* Two bfloat16 lie in the place of a float, so what follows takes them for floats. A sum in float32
   of the products of each two. Other processors than those with the instructions are not asked to do
   it, save by tests. */
INLINE vec dot(vec sum, vec x, vec y) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#else
    words upper = {0};
    upper += 0xffff0000u;
    sum += (vec)((words)x << 16) * (vec)((words)y << 16);
    return sum + (vec)((words)x & upper) * (vec)((words)y & upper);
#endif
}

/* Rounded to bfloat16. */
INLINE halves narrow(vec x) {
#if defined(__AVX512BF16__)
    return (halves)_mm512_cvtneps_pbh((__m512)x);
#else
    words bits = (words)x;
    return __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, halves);
#endif
}

/* Pairs, the first of each in the lower half of a word. */
INLINE words pair(halves first, halves second) {
    return __builtin_convertvector(first, words) | __builtin_convertvector(second, words) << 16;
}

/* Some rows of a times one panel b: c[r] += sum over k of a[r, k] b[k]; brief: of pairs of bfloat16;
   half: the panel's left vector alone. With ahead, the a of the tile that is so many numbers further
   on is fetched meanwhile. */
INLINE void multiply(
    vec c[][2], const int height, int count, const float *a, long a_row, long a_k, const float *b,
    long b_k, const int brief, const int half, const int ahead
) {
    for (int k = 0; k < count; k++) {
        const vec *row = (const vec *)(b + k * b_k);
        if (ahead) __builtin_prefetch(a + k * a_k + ahead);
        vec left = row[0], right = half ? (vec){0} : row[1];
#pragma GCC unroll 16
        for (int r = 0; r < height; r++) {
            const float *x = a + r * a_row + k * a_k;
            if (brief) {
                /* Arithmetic would take some pairs for denormals. */
                uint32_t bits;
                memcpy(&bits, x, sizeof bits);
                vec both = (vec)(bits | (words){0});
                c[r][0] = dot(c[r][0], both, left);
                if (!half) c[r][1] = dot(c[r][1], both, right);
            } else {
                c[r][0] += all(*x) * left;
                if (!half) c[r][1] += all(*x) * right;
            }
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
        if (kind == NESTEROV) m = m * rule->first - gradient * stride;
        w += m;
    }
    *weights = w;
}
