#pragma once

/* Shared by all parts of the program: the structures that Python fills in, the threads that take a
   step together, vectors, and one tile of a matrix product.

   Vectors are the vector extension of GCC and Clang, which compiles to the instructions of any
   processor.

   Letters in the comments on shapes: n is the number of images per step; a shape (a, b) is stored
   row by row; "a row every s floats" means that rows are s floats apart. */

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

/* LANES is the number of floats per vector. A tile's accumulators stay in the registers:
   some rows times two vectors. Dense layers use ROWS rows; convolutions use SPAN, or HALF
   of it. Rows of images have 28 pixels, or 14 and 7 after pooling, so most tiles are full where there
   are enough registers.

   A processor with 16 registers has room for 12 accumulators, two vectors of the panel and one number.
   Fewer rows would leave its multipliers idle, since they load more numbers per product. With 32
   registers, 8 rows keep the multipliers busy, and more rows gain nothing.

   PIECES is the number of pieces that a tile's product is cut into, with a part of the optimizer's
   update after each; see dense_update_by. With 16 registers, each piece costs a round trip of the sums
   to memory. */
#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8, PIECES = 16, SPAN = 14 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 6, PIECES = 2, SPAN = 6 };
#elif defined(__aarch64__)
enum { LANES = 4, ROWS = 8, PIECES = 16, SPAN = 14 };
#else
enum { LANES = 4, ROWS = 6, PIECES = 2, SPAN = 6 };
#endif
/* PANEL: columns per panel of weights. TILE: vectors in a tile of ROWS rows of a panel. LINE: bytes
   per cache line, to which buffers are aligned. */
enum { PANEL = 2 * LANES, TILE = 2 * ROWS, HALF = SPAN / 2, LINE = 64, MOST_THREADS = 64 };

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * LANES), may_alias));
typedef uint8_t bytes __attribute__((vector_size(LANES), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), may_alias));

#define INLINE static inline __attribute__((always_inline))

/* The structures that Python fills in; layout.py declares the same fields in the same order. */

/* A dense layer: outputs (n, units) = inputs (n, inputs) times weights (inputs, units) + bias (units).

   weights, momentum, velocity: each (panels, rows, PANEL) with panels = units / PANEL and
   rows = inputs + 1, rounded up to whole panels and to multiples of ROWS; the bias is row `inputs`. */
struct dense_layer {
    int32_t inputs, units;
    int64_t floats; /* of each of the three, panels * rows * PANEL */
    float *weights;
    float *momentum, *velocity; /* the optimizer's state; velocity is Adam's alone */
};

/* A convolution of stride 1 with "same" padding, ReLU, and perhaps max-pooling.

   weights, momentum, velocity: each (panels, size * size * channels + 1, PANEL) with panels =
   units / PANEL, rounded up; rows are in the order (kernel row, kernel column, channel), and the
   bias is the last. */
struct conv_layer {
    int32_t size, channels, units; /* size: height and width of the kernel, odd */
    int32_t height, width;         /* of its input and, before the pooling, its output */
    int32_t pool;                  /* height and width of the pooling windows; 1: no pooling */
    int32_t bf16;                  /* 1: products of bfloat16, summed in float32 */
    int64_t floats;                /* of each of the three */
    float *weights;
    float *momentum, *velocity;
};

enum { SGD, MOMENTUM, NESTEROV, ADAM };

struct optimizer {
    int32_t kind;
    float momentum;                           /* of MOMENTUM and NESTEROV */
    float one_minus_beta_1, one_minus_beta_2; /* of ADAM */
    float epsilon, weight_decay;
};

/* One call's work. */
struct task {
    struct conv_layer *conv_layers;   /* (conv_count,), before the dense layers */
    struct dense_layer *dense_layers; /* (dense_count,) */
    int32_t conv_count, dense_count;
    int32_t batch_size, threads;
    struct optimizer optimizer;
    float scale, offset; /* a network's input is byte * scale + offset */
    float smoothing;     /* share of each label that is spread over all classes */
    int64_t image_count, steps;
    int64_t pixels;          /* bytes per image: height * width * channels, in this order */
    const uint8_t *images;   /* (image_count, pixels) */
    const int32_t *labels;   /* (image_count,), from 0 to the last layer's units - 1 */
    const int64_t *order;    /* (steps, batch_size), indices into images */
    const float *rates;      /* (steps,), the learning rates */
    const float *step_sizes; /* (steps,), the same times Adam's bias correction */
    int64_t start, stop;     /* take the steps from start to before stop, at most */
    double loss, correct;    /* sums over images, added to */
    double seconds;          /* in: begin no step after so long; out: how long the steps took */
};

/* Returned by fmnist_lab_train instead of a number of steps. */
enum { NO_MEMORY = -1, BAD_SIZES = -2, BAD_ORDER = -3, BAD_LABEL = -4 };

/* The threads of one call and the buffers that they share. S(u) stands for row_stride(u). */
struct team {
    struct task *task;
    int threads;
    float **outputs;    /* of each dense layer: (n, units), a row every S(units) floats */
    float **deltas;     /* the loss's derivatives by outputs, of the same shape */
    float **transposed; /* of each dense layer: (threads, units, PANEL), scratch of dense_backward */
    float *losses;      /* (n,) */
    int32_t *correct;   /* (n,), 1 where the greatest output is the label's */
    /* For convolutions. A batch is cut into shards, whose gradients are summed one by one. */
    int shards;
    float **padded;         /* of each convolution: n inputs, each within its border of zeros */
    float *features;        /* (n, pixels), the last convolution's outputs */
    float *feature_deltas;  /* the loss's derivatives by features, of the same shape */
    float **shard_sums;     /* of each convolution: (shards, ...), gradients shaped as its weights */
    float **flipped;        /* of each convolution but the first: see flip_kernel */
    uint8_t **argmax;       /* of each convolution: n pooled outputs, see max_of_window */
    double began;
    int steps_taken;
    int out_of_time; /* written by the first thread between two barriers, read after the second */
    _Atomic int gate, arrived, phase;
};

/* One thread and its own buffers. */
struct worker {
    struct team *team;
    int index;
    pthread_t thread;
    float *inputs;   /* (n, inputs of the first dense layer), a row every S(inputs) floats */
    int32_t *labels; /* (n,) */
    float *sums;     /* (rows of the longest panel, PANEL), scratch of dense_update; of large batches */
    /* For convolutions. */
    float *pixel_rows;     /* (pool, width + SPAN, PANEL), outputs of one panel before the pooling */
    float **padded_deltas; /* of each: one image's derivatives by its outputs, within a border */
    float *input_deltas;   /* (height, width, channels), one image's derivatives by its inputs */
    /* For those of bfloat16: kernels and derivatives, and both operands in pairs of pixels. */
    float **bf16_kernels, *bf16_deltas, *input_pairs, *delta_pairs;
};

/* ceil(n / unit) * unit. */
static int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

/* Floats from one image's activations to the next one's: units and the constant 1 that the next
   layer's bias is multiplied with, rounded up to whole tiles of the next layer's weights and to whole
   panels. */
static int row_stride(int units) { return round_up(round_up(units + 1, ROWS), PANEL); }

/* ceil(count / most): into how many parts `count` items are cut that have at most so many each. */
static int part_count(int count, int most) { return (count + most - 1) / most; }

/* The first item of part `part` of `parts` even parts: floor(count * part / parts). */
static int part_start(int count, int parts, int part) {
    return (int)((int64_t)count * part / parts);
}

/* Wait until all threads are here. They are never far apart, so it does not pay to sleep, unless
   the machine is crowded and a thread that is waited for has no core. */
static void barrier(struct team *team) {
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

/* Cut `count` pieces evenly between the threads: this thread's are from *from to before *to. */
static void partition(const struct worker *me, int count, int *from, int *to) {
    *from = part_start(count, me->team->threads, me->index);
    *to = part_start(count, me->team->threads, me->index + 1);
}

/* Have this thread's processor take denormal numbers for zero, as TensorFlow does: they would make it
   a hundred times as slow. Returns the state to restore. */
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

/* Undo flush_denormals. */
static void restore_denormals(uint64_t before) {
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#endif
    (void)before;
}

/* Fetch image (pixels,) into the cache ahead of time. Images lie anywhere in memory; without this,
   every step would wait for them. */
static void prefetch(const uint8_t *image, int pixels) {
    for (int p = 0; p < pixels; p += LINE) __builtin_prefetch(image + p);
}

/* inputs[p] = image[p] * scale + offset; image, inputs: (pixels,). */
static void rescale(const struct task *task, const uint8_t *image, int pixels, float *inputs) {
    float scale = task->scale, offset = task->offset;
    for (int p = 0; p < pixels; p++) inputs[p] = image[p] * scale + offset;
}

/* A vector with x in each lane. */
INLINE vec broadcast(float x) { return x - (vec){0}; }

/* sqrt(x), lane by lane. */
INLINE vec square_root(vec x) {
    vec y;
    for (int i = 0; i < LANES; i++) y[i] = __builtin_sqrtf(x[i]);
    return y;
}

/* to[r] = from[r] for `height` rows of two vectors. For so few, memcpy may become an instruction that
   takes longer to begin than the copy itself. */
INLINE void copy_rows(vec (*to)[2], vec (*from)[2], int height) {
#pragma GCC unroll 16
    for (int r = 0; r < height; r++) to[r][0] = from[r][0], to[r][1] = from[r][1];
}

/* x where `of` is positive, else 0: ReLU with of = x, its derivative with of = the outputs. A NaN in
   `of` lets x pass, so that a training that has gone wrong shows it. */
INLINE vec where_positive(vec x, vec of) { return (vec)((mask)x & ~(of <= (vec){0})); }

/* sum + x0 y0 + x1 y1 in float32, for each lane's pair of bfloat16 (x0, x1) and (y0, y1). A pair
   takes the place of one float, which is why the types say vec. The other branch is for tests:
   processors without the instruction are not given work in bfloat16. */
INLINE vec dot_bf16(vec sum, vec x, vec y) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#else
    words upper = {0};
    upper += 0xffff0000u;
    sum += (vec)((words)x << 16) * (vec)((words)y << 16);
    return sum + (vec)((words)x & upper) * (vec)((words)y & upper);
#endif
}

/* x, rounded to the nearest bfloat16. */
INLINE halves to_bf16(vec x) {
#if defined(__AVX512BF16__)
    return (halves)_mm512_cvtneps_pbh((__m512)x);
#else
    words bits = (words)x;
    return __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, halves);
#endif
}

/* Pairs of bfloat16 (first, second), the first in the lower half of each word. */
INLINE words pair(halves first, halves second) {
    return __builtin_convertvector(first, words) | __builtin_convertvector(second, words) << 16;
}

/* One tile of a matrix product: c[r] += sum over k < count of a[r, k] * b[k].

   c      (height, 2) vectors, in registers
   a      (height, count): a[r, k] is at a + r * a_row + k * a_k
   b      (count, PANEL): row k is at b + k * b_k, aligned to vectors
   bf16   1: a and b hold pairs of bfloat16, and both products of a pair are added
   half   1: only the left vector of the panel is used
   ahead  not 0: a[., k] of the tile that is so many floats further on is fetched meanwhile */
INLINE void multiply(
    vec c[][2], const int height, int count, const float *a, long a_row, long a_k, const float *b,
    long b_k, const int bf16, const int half, const int ahead
) {
    for (int k = 0; k < count; k++) {
        const vec *row = (const vec *)(b + k * b_k);
        if (ahead) __builtin_prefetch(a + k * a_k + ahead);
        vec left = row[0], right = half ? (vec){0} : row[1];
#pragma GCC unroll 16
        for (int r = 0; r < height; r++) {
            const float *x = a + r * a_row + k * a_k;
            if (bf16) {
                /* Not as a float: arithmetic would take some pairs for denormals. */
                uint32_t bits;
                memcpy(&bits, x, sizeof bits);
                vec both = (vec)(bits | (words){0});
                c[r][0] = dot_bf16(c[r][0], both, left);
                if (!half) c[r][1] = dot_bf16(c[r][1], both, right);
            } else {
                c[r][0] += broadcast(*x) * left;
                if (!half) c[r][1] += broadcast(*x) * right;
            }
        }
    }
}

/* The optimizer's update of one vector of weights w with gradient g; Keras' formulas, in Keras' order.
   s is step_size, m the momentum's state, v the velocity's. First w -= w * decay. Then

     SGD       w -= g s
     MOMENTUM  m = m momentum - g s;  w += m
     NESTEROV  m = m momentum - g s;  w += m momentum - g s
     ADAM      m += (g - m) (1 - beta_1);  v += (g g - v) (1 - beta_2);  w -= m s / (sqrt(v) + epsilon)

   step_size is the learning rate, for Adam times sqrt(1 - beta_2^t) / (1 - beta_1^t) in step t;
   decay is the learning rate times the weight decay. */
INLINE void update(
    const int kind, const struct optimizer *optimizer, float step_size, float decay, vec gradient,
    vec *weights, vec *momentum, vec *velocity
) {
    vec w = *weights;
    if (decay) w -= w * decay;
    if (kind == SGD) {
        w -= gradient * step_size;
    } else if (kind == ADAM) {
        vec m = *momentum, v = *velocity;
        *momentum = m += (gradient - m) * optimizer->one_minus_beta_1;
        *velocity = v += (gradient * gradient - v) * optimizer->one_minus_beta_2;
        w -= m * step_size / (square_root(v) + optimizer->epsilon);
    } else {
        vec m = *momentum = *momentum * optimizer->momentum - gradient * step_size;
        if (kind == NESTEROV) m = m * optimizer->momentum - gradient * step_size;
        w += m;
    }
    *weights = w;
}
