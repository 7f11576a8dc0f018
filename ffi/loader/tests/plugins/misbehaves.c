/* A trainer that does one thing wrong, chosen by a macro when it is compiled. */
#define _GNU_SOURCE
#include "forgelm_plugin.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef MAGIC
#define MAGIC FORGELM_PLUGIN_MAGIC
#endif
#ifndef MAJOR
#define MAJOR FORGELM_PLUGIN_ABI_MAJOR
#endif
#ifndef SIZE
#define SIZE sizeof(forgelm_entry)
#endif
#ifndef LAYOUT
#define LAYOUT FORGELM_PLUGIN_LAYOUT_HASH
#endif
#ifndef LIBRARY
#define LIBRARY "misbehaves"
#endif
#ifndef NAME
#define NAME "misbehaves"
#endif
#ifndef RECORDS
#define RECORDS FORGELM_RECORDS_TEXT
#endif
#ifndef FEATURES
#define FEATURES NULL
#endif
#ifndef GET_FACTORY
#define GET_FACTORY get_factory
#endif
#ifndef CREATE
#define CREATE create
#endif
#ifndef LOSS
#define LOSS loss
#endif
#ifndef INIT
#define INIT NULL
#endif

static const forgelm_host *the_host;

/* An allocator of its own: memory from the system, never from the host's malloc. */
static void *own_alloc(size_t n) {
    void *memory = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void destroy(const forgelm_trainer *trainer) {
    munmap((void *)(uintptr_t)trainer, sizeof *trainer);
}

static float *numbers(const forgelm_tensor *tensor) {
    return (float *)((char *)tensor->data + tensor->byte_offset);
}

/* The loss of `sft`, before this library does something else. */
static void nll(const forgelm_scored *scored, forgelm_loss *out) {
    const uint8_t *trained = (const uint8_t *)scored->trained->data;
    out->loss_sum = 0.0;
    out->n_terms = 0;
    for (int64_t row = 0; row < scored->logp->shape[0]; ++row) {
        if (trained[row]) {
            numbers(out->dlogp)[row] = -1.0f;
            out->loss_sum -= (double)numbers(scored->logp)[row];
            out->n_terms += 1;
        }
    }
}

static forgelm_status loss(const forgelm_trainer *trainer, const forgelm_scored *scored,
                           forgelm_loss *out, forgelm_plugin_error *err) {
    (void)trainer;
    (void)err;
    nll(scored, out);
    return FORGELM_OK;
}

/* A number that is none. */
forgelm_status nan_loss(const forgelm_trainer *trainer, const forgelm_scored *scored,
                        forgelm_loss *out, forgelm_plugin_error *err) {
    (void)trainer;
    (void)err;
    nll(scored, out);
    out->loss_sum = (double)NAN;
    return FORGELM_OK;
}

/* In its third call: what ends a process, or never ends. */
static int is_third_call(void) {
    static int n_calls = 0;
    return ++n_calls == 3;
}

forgelm_status crashes(const forgelm_trainer *trainer, const forgelm_scored *scored,
                       forgelm_loss *out, forgelm_plugin_error *err) {
    if (is_third_call()) {
        *(volatile int *)NULL = 1;
    }
    return loss(trainer, scored, out, err);
}

forgelm_status aborts(const forgelm_trainer *trainer, const forgelm_scored *scored,
                      forgelm_loss *out, forgelm_plugin_error *err) {
    if (is_third_call()) {
        abort();
    }
    return loss(trainer, scored, out, err);
}

forgelm_status exits(const forgelm_trainer *trainer, const forgelm_scored *scored,
                     forgelm_loss *out, forgelm_plugin_error *err) {
    if (is_third_call()) {
        exit(0);
    }
    return loss(trainer, scored, out, err);
}

forgelm_status hangs(const forgelm_trainer *trainer, const forgelm_scored *scored,
                     forgelm_loss *out, forgelm_plugin_error *err) {
    if (is_third_call()) {
        for (;;) {
            pause();
        }
    }
    return loss(trainer, scored, out, err);
}

/* In its third call: sleeps for three seconds, and goes on. */
forgelm_status dozes(const forgelm_trainer *trainer, const forgelm_scored *scored,
                     forgelm_loss *out, forgelm_plugin_error *err) {
    if (is_third_call()) {
        sleep(3);
    }
    return loss(trainer, scored, out, err);
}

/* Says every variable that it can see. */
extern char **environ;
forgelm_status tells_environment(const forgelm_trainer *trainer, const forgelm_scored *scored,
                                 forgelm_loss *out, forgelm_plugin_error *err) {
    const char *target = "environment";
    for (char **at = environ; *at; ++at) {
        forgelm_str from = {target, strlen(target)};
        forgelm_str line = {*at, strlen(*at)};
        the_host->log(the_host, FORGELM_LOG_INFO, from, line);
    }
    return loss(trainer, scored, out, err);
}

/* A gradient of the wrong size. */
forgelm_status wrong_slope(const forgelm_trainer *trainer, const forgelm_scored *scored,
                           forgelm_loss *out, forgelm_plugin_error *err) {
    forgelm_status ended = loss(trainer, scored, out, err);
    numbers(out->dlogp)[0] *= 1.1f;
    return ended;
}

/* A gradient where nothing is trained. */
forgelm_status untrained_slope(const forgelm_trainer *trainer, const forgelm_scored *scored,
                               forgelm_loss *out, forgelm_plugin_error *err) {
    forgelm_status ended = loss(trainer, scored, out, err);
    for (int64_t row = 0; row < scored->logp->shape[0]; ++row) {
        numbers(out->dlogp)[row] = -1.0f;
    }
    return ended;
}

/* Another loss each time. */
forgelm_status forgetful(const forgelm_trainer *trainer, const forgelm_scored *scored,
                         forgelm_loss *out, forgelm_plugin_error *err) {
    static double n_calls = 0.0;
    forgelm_status ended = loss(trainer, scored, out, err);
    out->loss_sum += n_calls;
    n_calls += 1.0;
    return ended;
}

/* A failure with a message that is longer than the record, and not UTF-8. */
forgelm_status long_failure(const forgelm_trainer *trainer, const forgelm_scored *scored,
                            forgelm_loss *out, forgelm_plugin_error *err) {
    (void)trainer;
    (void)scored;
    (void)out;
    memset(err->message, 0xff, sizeof err->message);
    memcpy(err->message, "it broke ", 9);
    err->message_len = 4000000000u;
    return 77;
}

/* Denormal numbers are zero from now on: what crtfastmath.o of GCC does when a library opens. */
static void denormals_are_zero(void) {
#if defined(__x86_64__)
    unsigned int word;
    __asm__ volatile("stmxcsr %0" : "=m"(word));
    word |= 0x8040u;
    __asm__ volatile("ldmxcsr %0" : : "m"(word));
#elif defined(__aarch64__)
    unsigned long word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    __asm__ volatile("msr fpcr, %0" : : "r"(word | 1ul << 24));
#endif
}

#ifdef FAST_MATH
__attribute__((constructor)) static void opened(void) { denormals_are_zero(); }
#endif

forgelm_status float_mode(const forgelm_trainer *trainer, const forgelm_scored *scored,
                          forgelm_loss *out, forgelm_plugin_error *err) {
    denormals_are_zero();
    return loss(trainer, scored, out, err);
}

static void *sleeper(void *context) {
    (void)context;
    for (;;) {
        usleep(1000);
    }
    return NULL;
}

/* A thread that outlives the call. */
forgelm_status starts_thread(const forgelm_trainer *trainer, const forgelm_scored *scored,
                             forgelm_loss *out, forgelm_plugin_error *err) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, sleeper, NULL) != 0) {
        return FORGELM_E_INTERNAL;
    }
    pthread_detach(thread);
    return loss(trainer, scored, out, err);
}

/* More metrics than anybody reads. */
forgelm_status many_metrics(const forgelm_trainer *trainer, const forgelm_scored *scored,
                            forgelm_loss *out, forgelm_plugin_error *err) {
    for (int i = 0; i < 1000; ++i) {
        char text[4] = {(char)('a' + i % 10), (char)('a' + i / 10 % 10), (char)('a' + i / 100), 0};
        forgelm_str name = {text, 3};
        out->metric(out->metric_ctx, name, 1.0, 1);
    }
    return loss(trainer, scored, out, err);
}

/* Talks, asks, and reports. */

forgelm_status talks(const forgelm_trainer *trainer, const forgelm_scored *scored,
                     forgelm_loss *out, forgelm_plugin_error *err) {
    forgelm_str target = {"talker", 6}, message = {"a step \xff", 8}, event = {"{\"at\": 1}", 9};
    the_host->log(the_host, FORGELM_LOG_WARNING, target, message);
    if (the_host->progress(the_host, event) || the_host->is_cancelled(the_host)) {
        memcpy(err->message, "was asked to stop", 17);
        err->message_len = 17;
        return FORGELM_E_CANCELLED;
    }
    if (the_host->get_extension(the_host, "forgelm.score/1") != NULL ||
        the_host->get_extension(the_host, "org.example.nothing/1") != NULL) {
        return FORGELM_E_INTERNAL;
    }
    return loss(trainer, scored, out, err);
}

/* Works for ever, and reports it, until it is asked to stop; a minute at most. */
forgelm_status works_until_stopped(const forgelm_trainer *trainer, const forgelm_scored *scored,
                                   forgelm_loss *out, forgelm_plugin_error *err) {
    (void)trainer;
    (void)scored;
    (void)out;
    (void)err;
    forgelm_str event = {"{}", 2};
    for (int i = 0; i < 6000; ++i) {
        if (the_host->progress(the_host, event)) {
            return FORGELM_E_CANCELLED;
        }
        usleep(10000);
    }
    return FORGELM_E_INTERNAL;
}

/* Random numbers of the host, as metrics. */
forgelm_status random_metrics(const forgelm_trainer *trainer, const forgelm_scored *scored,
                              forgelm_loss *out, forgelm_plugin_error *err) {
    const forgelm_rng *rng = the_host->get_extension(the_host, FORGELM_RNG);
    uint32_t bits[2];
    float uniform[2];
    if (rng == NULL || !FORGELM_HAS(rng, bits) || !FORGELM_HAS(rng, uniform)) {
        return FORGELM_E_UNIMPLEMENTED;
    }
    rng->bits(rng, 0x123456789abcdef0u, 7, UINT64_MAX, 2, bits);
    rng->uniform(rng, 0x123456789abcdef0u, 7, UINT64_MAX, 2, uniform);
    rng->bits(rng, 0, 0, 0, 1, NULL);
    const char *names[] = {"bits", "uniform"};
    for (int i = 0; i < 2; ++i) {
        forgelm_str name = {names[0], 4};
        out->metric(out->metric_ctx, name, (double)bits[i], (uint64_t)i);
        name.ptr = names[1];
        name.len = 7;
        out->metric(out->metric_ctx, name, (double)uniform[i], (uint64_t)i);
    }
    return loss(trainer, scored, out, err);
}

/* ---- the host's kernels ---- */

enum { N = 40000, K = 1000 };

typedef struct {
    const forgelm_kernels *kernels;
    const float *x;
    double *sums; /* one for each range */
} ranges;

static forgelm_status sums_of_ranges(void *ctx, size_t first, size_t end) {
    const ranges *of = ctx;
    return of->kernels->sum(of->kernels, end - first, of->x + first, &of->sums[first / K], NULL);
}

static forgelm_status fails_from_5000_on(void *ctx, size_t first, size_t end) {
    (void)ctx;
    (void)end;
    return first >= 5000 ? 42 : FORGELM_OK;
}

static void tell(forgelm_loss *out, const char *text, double value) {
    forgelm_str name = {text, strlen(text)};
    out->metric(out->metric_ctx, name, value, 1);
}

/* What the kernels give for made-up numbers, and how many wrong calls they refuse, as metrics. */
forgelm_status kernel_metrics(const forgelm_trainer *trainer, const forgelm_scored *scored,
                              forgelm_loss *out, forgelm_plugin_error *err) {
    static float x[N], y[N], z[N];
    static double sums[N / K];
    const forgelm_kernels *on = the_host->get_extension(the_host, FORGELM_KERNELS);
    if (on == NULL || !FORGELM_HAS(on, dequantize)) {
        return FORGELM_E_UNIMPLEMENTED;
    }
    for (int i = 0; i < N; ++i) {
        x[i] = (float)(i * 37 % 101 - 50) / 8.0f;
        y[i] = (float)(i % 7);
    }
    double value = 0.0, total = 0.0;
    float largest = 0.0f, threshold = 0.0f;
    size_t n_above = 0;
    int n_wrong = 0;
    n_wrong += on->dot(on, N, x, y, &value, err) != FORGELM_OK;
    tell(out, "dot", value);
    n_wrong += on->sum_of_squares(on, N, x, &value, err) != FORGELM_OK;
    tell(out, "sum_of_squares", value);
    n_wrong += on->max_abs(on, N, x, &largest, err) != FORGELM_OK;
    tell(out, "max_abs", (double)largest);
    n_wrong += on->top_k_threshold(on, N, x, K, &threshold, &n_above, err) != FORGELM_OK;
    tell(out, "threshold", (double)threshold);
    tell(out, "n_above", (double)n_above);
    n_wrong += on->axpy(on, N, 2.0f, x, y, err) != FORGELM_OK;
    n_wrong += on->sum(on, N, y, &value, err) != FORGELM_OK;
    tell(out, "axpy", value);
    ranges of = {on, x, sums};
    forgelm_work work = {&of, sums_of_ranges};
    n_wrong += on->parallel_for(on, N, K, &work, err) != FORGELM_OK;
    for (int i = 0; i < N / K; ++i) {
        total += sums[i];
    }
    tell(out, "parallel_for", total);
    forgelm_gemm product = {sizeof product, FORGELM_GEMM_NT, 100, 200, 40, 0.5f,
                            FORGELM_WRITE_REPLACE, x, y, z};
    n_wrong += on->gemm(on, &product, err) != FORGELM_OK;
    n_wrong += on->sum(on, 100 * 200, z, &value, err) != FORGELM_OK;
    tell(out, "gemm", value);
    n_wrong += on->rms_norm(on, 100, 400, x, y, 1e-5f, z, NULL, err) != FORGELM_OK;
    n_wrong += on->sum_of_squares(on, N, z, &value, err) != FORGELM_OK;
    tell(out, "rms_norm", value);
    static const uint32_t labels[] = {0, 3, 99, 7};
    n_wrong += on->log_softmax_gather(on, 4, 100, x, labels, z, err) != FORGELM_OK;
    n_wrong += on->sum(on, 4, z, &value, err) != FORGELM_OK;
    tell(out, "log_softmax_gather", value);
    static uint8_t bytes[125 * 340];
    const forgelm_str q8_0 = {"q8_0", 4}, unknown = {"q5_x", 4};
    size_t n_bytes = 0;
    n_wrong += on->bytes_per_row(on, q8_0, 320, &n_bytes, err) != FORGELM_OK;
    tell(out, "bytes_per_row", (double)n_bytes);
    n_wrong += on->quantize(on, q8_0, 125, 320, x, bytes, err) != FORGELM_OK;
    n_wrong += on->dequantize(on, q8_0, 125, 320, bytes, z, err) != FORGELM_OK;
    n_wrong += on->axpy(on, N, -1.0f, x, z, err) != FORGELM_OK;
    n_wrong += on->max_abs(on, N, z, &largest, err) != FORGELM_OK;
    tell(out, "off_by", (double)largest);
    tell(out, "n_wrong", (double)n_wrong);

    int n_refused = 0;
    n_refused += on->dot(on, N, NULL, y, &value, err) == FORGELM_E_INVALID_ARGUMENT;
    n_refused += on->sum(on, SIZE_MAX, x, &value, NULL) == FORGELM_E_INVALID_ARGUMENT;
    n_refused += on->axpy(on, N, 1.0f, x, x, NULL) == FORGELM_E_INVALID_ARGUMENT;
    n_refused += on->parallel_for(on, N, 0, &work, NULL) == FORGELM_E_INVALID_ARGUMENT;
    n_refused += on->bytes_per_row(on, unknown, 320, &n_bytes, NULL) == FORGELM_E_INVALID_ARGUMENT;
    tell(out, "n_refused", (double)n_refused);
    work.run = fails_from_5000_on;
    tell(out, "status", (double)on->parallel_for(on, N, K, &work, err));
    return loss(trainer, scored, out, err);
}

/* How many threads of the kernels work at once, as a metric: each range waits for EXPECTED others, and
 * then a little for more than that. */
#ifndef EXPECTED
#define EXPECTED 1
#endif
static int n_inside, n_inside_most;

static forgelm_status waits_for_others(void *ctx, size_t first, size_t end) {
    (void)ctx, (void)first, (void)end;
    int n = __atomic_add_fetch(&n_inside, 1, __ATOMIC_SEQ_CST);
    int most = __atomic_load_n(&n_inside_most, __ATOMIC_SEQ_CST);
    while (n > most && !__atomic_compare_exchange_n(&n_inside_most, &most, n, 0, __ATOMIC_SEQ_CST,
                                                    __ATOMIC_SEQ_CST)) {
    }
    for (int i = 0; i < 20000; ++i) {
        if (__atomic_load_n(&n_inside_most, __ATOMIC_SEQ_CST) >= EXPECTED) {
            break;
        }
        usleep(1000);
    }
    usleep(20000);
    __atomic_sub_fetch(&n_inside, 1, __ATOMIC_SEQ_CST);
    return FORGELM_OK;
}

forgelm_status thread_metrics(const forgelm_trainer *trainer, const forgelm_scored *scored,
                              forgelm_loss *out, forgelm_plugin_error *err) {
    const forgelm_kernels *on = the_host->get_extension(the_host, FORGELM_KERNELS);
    forgelm_work work = {NULL, waits_for_others};
    forgelm_status ended = on->parallel_for(on, 12, 1, &work, err);
    tell(out, "threads_at_once", (double)n_inside_most);
    return ended == FORGELM_OK ? loss(trainer, scored, out, err) : ended;
}

/* In its third call: lets the kernels work, longer and longer, until one call took two seconds. */
forgelm_status waits_for_kernels(const forgelm_trainer *trainer, const forgelm_scored *scored,
                                 forgelm_loss *out, forgelm_plugin_error *err) {
    const forgelm_kernels *on = the_host->get_extension(the_host, FORGELM_KERNELS);
    const forgelm_str q6_k = {"q6_k", 4};
    const size_t n_cols = 4096;
    double seconds = 0.0;
    for (size_t n_rows = 64; (seconds > 0.0 || is_third_call()) && seconds < 2.0; n_rows *= 2) {
        size_t n_bytes = 0;
        if (on->bytes_per_row(on, q6_k, n_cols, &n_bytes, err) != FORGELM_OK) {
            return FORGELM_E_INTERNAL;
        }
        float *rows = malloc(n_rows * n_cols * sizeof *rows);
        unsigned char *bytes = malloc(n_rows * n_bytes);
        for (size_t i = 0; i < n_rows * n_cols; ++i) {
            rows[i] = (float)(i % 1009) - 504.0f;
        }
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        forgelm_status ended = on->quantize(on, q6_k, n_rows, n_cols, rows, bytes, err);
        clock_gettime(CLOCK_MONOTONIC, &end);
        seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
        free(rows);
        free(bytes);
        if (ended != FORGELM_OK) {
            return ended;
        }
    }
    return loss(trainer, scored, out, err);
}

forgelm_status failing_init(const forgelm_host *host, forgelm_str dir, forgelm_plugin_error *err) {
    (void)host;
    memcpy(err->message, dir.ptr, dir.len < 200 ? dir.len : 200);
    err->message_len = (uint32_t)(dir.len < 200 ? dir.len : 200);
    return FORGELM_E_INTERNAL;
}

static forgelm_status create(const forgelm_trainer_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json, const forgelm_trainer **out,
                             forgelm_plugin_error *err) {
    (void)factory;
    (void)index;
    (void)options_json;
    (void)err;
    the_host = host;
    forgelm_trainer *trainer = own_alloc(sizeof *trainer);
    if (trainer == NULL) {
        return FORGELM_E_OUT_OF_MEMORY;
    }
    trainer->struct_size = sizeof *trainer;
    trainer->destroy = destroy;
    trainer->loss = LOSS;
    *out = trainer;
    return FORGELM_OK;
}

/* Ends the process while an instance is made. */
forgelm_status aborts_in_create(const forgelm_trainer_factory *factory, const forgelm_host *host,
                                uint32_t index, forgelm_str options_json,
                                const forgelm_trainer **out, forgelm_plugin_error *err) {
    (void)factory;
    (void)host;
    (void)index;
    (void)options_json;
    (void)out;
    (void)err;
    abort();
}

/* Says that all is well and hands out nothing. */
forgelm_status creates_nothing(const forgelm_trainer_factory *factory, const forgelm_host *host,
                               uint32_t index, forgelm_str options_json,
                               const forgelm_trainer **out, forgelm_plugin_error *err) {
    (void)factory;
    (void)host;
    (void)index;
    (void)options_json;
    (void)out;
    (void)err;
    return FORGELM_OK;
}

static const char *const needs_future[] = {"deterministic:yes", "needs:forgelm.future/9", NULL};
static const char *const needs_kernels[] = {"needs:" FORGELM_KERNELS, NULL};

static const forgelm_trainer_descriptor descriptors[] = {
    {sizeof(forgelm_trainer_descriptor), RECORDS, FORGELM_TRAINER_NEEDS_DROPOUT, 0, NAME,
     "does one thing wrong", "none", FEATURES},
    {sizeof(forgelm_trainer_descriptor), RECORDS, FORGELM_TRAINER_NEEDS_DROPOUT, 0, NAME, "its twin",
     "none", FEATURES},
};

#ifndef COUNT
#define COUNT 1
#endif
static uint32_t count(const forgelm_trainer_factory *factory) {
    (void)factory;
    (void)needs_future;
    (void)needs_kernels;
    (void)create;
    return COUNT;
}

static const forgelm_trainer_descriptor *descriptor(const forgelm_trainer_factory *factory,
                                                    uint32_t index) {
    (void)factory;
    return index < 2 ? &descriptors[index] : NULL;
}

static const forgelm_trainer_factory factory = {sizeof factory, 0, count, descriptor, CREATE};

static const void *get_factory(const char *id) {
    return strcmp(id, FORGELM_TRAINER_FACTORY) == 0 ? &factory : NULL;
}

const void *(*const keep)(const char *) = get_factory;

#ifdef LAYOUTS
/* Its layouts as this compiler has them, but for one field. */
#define TEXT(text) {text, sizeof text - 1}
#define FIELD(type, field, shift)                                                        \
    {TEXT(#type), TEXT(#field), _Alignof(type), offsetof(type, field) + (shift),         \
     sizeof(((type *)0)->field)}
static const forgelm_field_layout fields[] = {
    FIELD(forgelm_str, ptr, 0),
    FIELD(forgelm_str, len, LAYOUTS),
};
FORGELM_PLUGIN_EXPORT const forgelm_layouts forgelm_plugin_layouts = {
    sizeof(forgelm_layouts), 0, fields, sizeof fields / sizeof *fields};
#endif

#ifndef NO_ENTRY
FORGELM_PLUGIN_EXPORT const forgelm_entry forgelm_plugin_entry = {
    MAGIC, MAJOR, FORGELM_PLUGIN_ABI_MINOR, SIZE, 0, LAYOUT, LIBRARY, "0.1.0", INIT, NULL,
    GET_FACTORY,
};
#endif
