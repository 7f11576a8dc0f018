/* forgelm_mpi.c: the processes of a run joined by MPI, as a plugin (forgelm.collective/1).
 *
 * `forgelm comm build` compiles this file with the site's own mpicc, so that nothing of ForgeLM is
 * bound to one MPI. By hand:
 *
 *     mpicc -std=c11 -O2 -fPIC -shared -fvisibility=hidden -Wl,-z,nodelete -I INCLUDE \
 *         forgelm_mpi.c -o mpi.so
 *
 * where INCLUDE has forgelm_plugin.h. It wants MPI 3.0 or newer.
 *
 * A rank that was stopped or cut off must not make all others wait for ever, so nothing in here
 * waits inside MPI once the processes have joined:
 *
 *   - Every operation is started without waiting, and polled until it is done or its deadline has
 *     passed (wait_for). The exception is split, see there.
 *   - Who gives up calls the roll (call_the_roll): it tells all others where it is, and waits a
 *     second for them to do the same. Whoever polls sees such a call and gives up too. The ranks
 *     that do not answer are named in the error.
 *   - MPI cannot take an operation back, and may write to its memory as long as the process lives.
 *     So bytes arrive in memory of this file (`landing`), which is never freed after a failure, and
 *     are copied from there. That bounds the size of one message too: long ones go in rounds, which
 *     keeps the counts below 2^31.
 *
 * One thread makes all calls: MPI_THREAD_FUNNELED is enough. */

#define _POSIX_C_SOURCE 200809L

#include "forgelm_plugin.h"

#include <mpi.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if MPI_VERSION < 3
#error "this MPI is older than MPI 3.0, whose operations that do not wait are needed"
#endif

/* How long a poll only offers its core to others: a rank that is on time comes within it. */
#define YIELD_NS UINT64_C(500000)
/* How long it sleeps after that from one test to the next. */
#define SLEEP_NS 20000L
/* A test that took longer has moved bytes, and more of them may be waiting: no sleep after it. */
#define BUSY_NS UINT64_C(4000)
/* The most that counts as waiting from one test to the next. A longer gap means that this process
 * itself stood still, as when the whole job was suspended, which is no fault of the others. */
#define GAP_NS UINT64_C(200000000)
/* How long the others have to answer when the roll is called. */
#define ROLL_CALL_MS UINT64_C(1000)
/* How long who leaves waits for the others to leave too. */
#define LEAVE_MS UINT64_C(600000)
/* Memory in which bytes arrive, for all ranks together, and the least for one of them. A test that
 * wants many rounds compiles this file with less of it. */
#ifndef LANDING_BYTES
#define LANDING_BYTES ((size_t)16 << 20)
#endif
#define ROUND_BYTES_MIN ((size_t)64 << 10)
/* Bytes of a host's name that are kept, with the NUL at its end. */
#define HOST_BYTES 64
/* The most ranks that an error names. */
#define NAMED_MAX 4

/* Messages between two ranks. */
enum tag { TAG_BYTES = 1, TAG_ROLL_CALL = 2 };

/* What a rank is doing. Part of what it says when the roll is called. */
enum operation { ALL_TO_ALL, ALL_GATHER, BROADCAST, BARRIER, SPLIT, LEAVE, N_OPERATIONS };

static const char *const operation_names[N_OPERATIONS] = {"all_to_all", "all_gather", "broadcast",
                                                          "barrier",    "split",      "leaving"};

/* What a rank says when the roll is called: that it lives, and where it is. */
typedef struct sign {
    uint64_t operation;
    uint64_t number;
} sign;

#define SIGN_WORDS 2

/* MPI lets a process join once: what happened to one instance happened to the process. */
static bool has_joined;
static bool has_failed; /* only abort and destroy may follow */

/* An instance: the world, or a part of it. */
typedef struct collective {
    forgelm_collective table;
    MPI_Comm comm; /* of its own: nobody else's messages are seen */
    bool is_world;
    int rank;
    int size;
    char (*hosts)[HOST_BYTES]; /* [size] */
    char library[MPI_MAX_LIBRARY_VERSION_STRING];

    sign now;                /* the operation that runs, and its number */
    MPI_Request *requests;   /* [2 size] of it */
    MPI_Status *statuses;    /* [2 size] */
    int *counts;             /* [size] bytes of each rank in a round */
    int *places;             /* [size] where they land */
    size_t *sent_at;         /* [size] where the part of each rank begins in the host's memory */
    size_t *received_at;     /* [size] likewise */
    sign *signs;             /* [size] what was heard when the roll was called */
    MPI_Request *roll_sent;  /* [size] */
    MPI_Request *roll_heard; /* [size] */

    size_t round_bytes;     /* the most of one rank in one round: the same on every rank */
    unsigned char *landing; /* [size * round_bytes] */
} collective;

static collective *of(const forgelm_collective *table) { return table->plugin_data; }

/* ---- errors ------------------------------------------------------------------------------- */

/* Fills the record, if there is one, and returns the status. */
static forgelm_status fail(forgelm_plugin_error *err, forgelm_status code, const char *format,
                           ...) {
    if (err != NULL) {
        va_list arguments;
        va_start(arguments, format);
        int n = vsnprintf(err->message, sizeof err->message, format, arguments);
        va_end(arguments);
        int n_max = (int)sizeof err->message - 1;
        err->message_len = n < 0 ? 0 : (uint32_t)(n < n_max ? n : n_max);
        err->code = code;
    }
    return code;
}

static forgelm_status fail_memory(forgelm_plugin_error *err) {
    return fail(err, FORGELM_E_OUT_OF_MEMORY, "out of memory");
}

/* What MPI says about one of its error codes. */
static forgelm_status fail_mpi(forgelm_plugin_error *err, const char *where, int error) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;
    if (MPI_Error_string(error, text, &n) != MPI_SUCCESS) {
        n = 0;
    }
    return fail(err, FORGELM_E_INTERNAL, "%s: MPI failed: %.*s", where, n, text);
}

/* The same about the operation that runs, after which no other may. */
static forgelm_status break_mpi(collective *self, int error, forgelm_plugin_error *err) {
    char where[64];
    snprintf(where, sizeof where, "%s number %llu", operation_names[self->now.operation],
             (unsigned long long)self->now.number);
    has_failed = true;
    return fail_mpi(err, where, error);
}

/* A text of at most `size` bytes, to which more is added at `*n`; what does not fit is left out. */
static void append(char *text, size_t size, size_t *n, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int added = vsnprintf(text + *n, size - *n, format, arguments);
    va_end(arguments);
    if (added > 0) {
        *n = *n + (size_t)added < size ? *n + (size_t)added : size - 1;
    }
}

/* ---- waiting ------------------------------------------------------------------------------ */

static uint64_t now_ns(void) {
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* A wait from one test to the next, without the time in which this process stood still. All rounds
 * of an operation share one. */
typedef struct waiting {
    uint64_t deadline_ms; /* 0: none */
    uint64_t last_ns;
    uint64_t waited_ns;
} waiting;

static waiting start_waiting(uint64_t deadline_ms) { return (waiting){deadline_ms, now_ns(), 0}; }

static bool is_over(const waiting *wait) {
    return wait->deadline_ms != 0 && wait->waited_ns / UINT64_C(1000000) >= wait->deadline_ms;
}

/* Leaves the core to others, and asleep unless the wait is young or bytes are moving. */
static void pause_after_test(waiting *wait, uint64_t test_began_ns) {
    bool is_busy = now_ns() - test_began_ns > BUSY_NS;
    if (wait->waited_ns < YIELD_NS || is_busy) {
        sched_yield();
    } else {
        struct timespec pause = {0, SLEEP_NS};
        nanosleep(&pause, NULL);
    }
    uint64_t now = now_ns();
    uint64_t gap = now - wait->last_ns;
    wait->waited_ns += gap < GAP_NS ? gap : GAP_NS;
    wait->last_ns = now;
}

/* The error of a test of n requests: that of the first request that has one. */
static int error_of(const collective *self, int n, int error) {
    for (int i = 0; i < n && error == MPI_ERR_IN_STATUS; ++i) {
        int of_request = self->statuses[i].MPI_ERROR;
        bool is_error = of_request != MPI_SUCCESS && of_request != MPI_ERR_PENDING;
        error = is_error ? of_request : error;
    }
    return error;
}

/* Whether another rank has given up. */
static bool is_roll_called(const collective *self) {
    int is_there = 0;
    int error = MPI_Iprobe(MPI_ANY_SOURCE, TAG_ROLL_CALL, self->comm, &is_there, MPI_STATUS_IGNORE);
    return error == MPI_SUCCESS && is_there;
}

/* How long, as a person says it. */
static void append_time(char *text, size_t size, size_t *n, uint64_t ns) {
    double seconds = (double)ns / 1e9;
    append(text, size, n, seconds < 10.0 ? "%.1f s" : "%.0f s", seconds);
}

/* The ranks that did not answer; or, if all did, one that is elsewhere. */
static forgelm_status tell_who_is_missing(const collective *self, uint64_t waited,
                                          forgelm_plugin_error *err) {
    char text[sizeof err->message];
    size_t n = 0;
    int n_missing = 0;
    int elsewhere = -1;
    for (int i = 0; i < self->size; ++i) {
        const sign *said = &self->signs[i];
        bool is_missing = i != self->rank && self->roll_heard[i] != MPI_REQUEST_NULL;
        if (is_missing && ++n_missing <= NAMED_MAX) {
            append(text, sizeof text, &n, "%s rank %d (host %s)",
                   n_missing == 1 ? "no sign of" : " and of", i, self->hosts[i]);
        }
        if (i != self->rank && !is_missing &&
            (said->operation != self->now.operation || said->number != self->now.number)) {
            elsewhere = i;
        }
    }
    if (n_missing > NAMED_MAX) {
        append(text, sizeof text, &n, " and of %d others", n_missing - NAMED_MAX);
    }
    if (n_missing == 0) {
        append(text, sizeof text, &n, "every rank gives signs, but they came no further");
    }
    append(text, sizeof text, &n, " for ");
    append_time(text, sizeof text, &n, waited);
    append(text, sizeof text, &n, " in %s number %llu", operation_names[self->now.operation],
           (unsigned long long)self->now.number);
    if (n_missing == 0 && elsewhere >= 0) {
        uint64_t there = self->signs[elsewhere].operation;
        append(text, sizeof text, &n, "; rank %d (host %s) is in %s number %llu", elsewhere,
               self->hosts[elsewhere], there < N_OPERATIONS ? operation_names[there] : "nothing",
               (unsigned long long)self->signs[elsewhere].number);
    }
    return fail(err, FORGELM_E_DEADLINE, "%s", text);
}

/* Tells all others that this rank gave up and where it is, and hears the same of those that live.
 * What is still on its way stays so: nothing of it is ever freed. */
static forgelm_status call_the_roll(collective *self, uint64_t waited, forgelm_plugin_error *err) {
    has_failed = true;
    for (int i = 0; i < self->size; ++i) {
        self->roll_sent[i] = self->roll_heard[i] = MPI_REQUEST_NULL;
        if (i == self->rank) {
            continue;
        }
        /* What fails here fails for a rank that cannot be reached, which is told as missing. */
        (void)MPI_Irecv(&self->signs[i], SIGN_WORDS, MPI_UINT64_T, i, TAG_ROLL_CALL, self->comm,
                        &self->roll_heard[i]);
        (void)MPI_Isend(&self->now, SIGN_WORDS, MPI_UINT64_T, i, TAG_ROLL_CALL, self->comm,
                        &self->roll_sent[i]);
    }
    waiting wait = start_waiting(ROLL_CALL_MS);
    int has_heard_all = 0;
    while (!has_heard_all && !is_over(&wait)) {
        uint64_t test_began = now_ns();
        (void)MPI_Testall(self->size, self->roll_heard, &has_heard_all, self->statuses);
        pause_after_test(&wait, test_began);
    }
    /* Unless all are there, Testall completes none of them. */
    for (int i = 0; i < self->size && !has_heard_all; ++i) {
        int is_heard = 0;
        (void)MPI_Test(&self->roll_heard[i], &is_heard, MPI_STATUS_IGNORE);
    }
    return tell_who_is_missing(self, waited, err);
}

/* Waits until the first n requests are done, at most until the deadline. */
static forgelm_status wait_for(collective *self, int n, waiting *wait, forgelm_plugin_error *err) {
    for (;;) {
        int is_done = 0;
        uint64_t test_began = now_ns();
        int error = MPI_Testall(n, self->requests, &is_done, self->statuses);
        if (error != MPI_SUCCESS) {
            return break_mpi(self, error_of(self, n, error), err);
        }
        if (is_done) {
            return FORGELM_OK;
        }
        pause_after_test(wait, test_began);
        if (is_over(wait) || (wait->waited_ns >= YIELD_NS && is_roll_called(self))) {
            return call_the_roll(self, wait->waited_ns, err);
        }
    }
}

/* ---- operations --------------------------------------------------------------------------- */

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Bytes of one rank in the round that begins `done` bytes in. */
static size_t in_round(const collective *self, size_t n_bytes, size_t done) {
    return done < n_bytes ? smaller(n_bytes - done, self->round_bytes) : 0;
}

/* Memory of the host's in which the parts of all ranks lie in turn. */
typedef struct parts {
    unsigned char *first;
    const size_t *n_bytes; /* [size] */
    size_t *begins;        /* [size] */
} parts;

/* Where each part begins; returns the bytes of the largest, which say how many rounds it takes. */
static size_t lay_out(const collective *self, const parts *of_ranks) {
    size_t begin = 0;
    size_t most = 0;
    for (int i = 0; i < self->size; ++i) {
        size_t n = of_ranks->n_bytes[i];
        of_ranks->begins[i] = begin;
        begin += n;
        most = n > most ? n : most;
    }
    return most;
}

static unsigned char *part_of(const parts *of_ranks, int rank) {
    return of_ranks->first + of_ranks->begins[rank];
}

static unsigned char *landing_of(const collective *self, int rank) {
    return self->landing + (size_t)rank * self->round_bytes;
}

/* What every operation does first. */
static forgelm_status begin(collective *self, enum operation operation, forgelm_plugin_error *err) {
    if (has_failed) {
        return fail(err, FORGELM_E_INTERNAL,
                    "an operation failed before: only abort and destroy may follow");
    }
    self->now.operation = operation;
    self->now.number += 1;
    return FORGELM_OK;
}

/* One round: each other rank sends and gets what is left of its part, or as much as a round takes.
 * Two ranks agree on how many rounds they have with each other: nobody else needs to know. */
static forgelm_status exchange(collective *self, const parts *sent, const parts *received,
                               size_t done, waiting *wait, forgelm_plugin_error *err) {
    int n_requests = 0;
    int error = MPI_SUCCESS;
    for (int k = 1; k < self->size && error == MPI_SUCCESS; ++k) {
        int from = (self->rank + self->size - k) % self->size;
        int n = (int)in_round(self, received->n_bytes[from], done);
        if (n > 0) {
            error = MPI_Irecv(landing_of(self, from), n, MPI_BYTE, from, TAG_BYTES, self->comm,
                              &self->requests[n_requests++]);
        }
    }
    /* Each begins with the next rank: not all send to the same one at the same time. */
    for (int k = 1; k < self->size && error == MPI_SUCCESS; ++k) {
        int to = (self->rank + k) % self->size;
        int n = (int)in_round(self, sent->n_bytes[to], done);
        if (n > 0) {
            error = MPI_Isend(part_of(sent, to) + done, n, MPI_BYTE, to, TAG_BYTES, self->comm,
                              &self->requests[n_requests++]);
        }
    }
    if (error != MPI_SUCCESS) {
        return break_mpi(self, error, err);
    }
    forgelm_status ended = wait_for(self, n_requests, wait, err);
    for (int i = 0; i < self->size && ended == FORGELM_OK; ++i) {
        size_t n = i == self->rank ? 0 : in_round(self, received->n_bytes[i], done);
        if (n > 0) {
            memcpy(part_of(received, i) + done, landing_of(self, i), n);
        }
    }
    return ended;
}

static forgelm_status all_to_all(const forgelm_collective *table, const void *sent,
                                 const size_t *sent_bytes, void *received,
                                 const size_t *received_bytes, uint64_t deadline_ms,
                                 forgelm_plugin_error *err) {
    collective *self = of(table);
    size_t own = sent_bytes[self->rank];
    if (own != received_bytes[self->rank]) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT,
                    "rank %d sends itself %zu bytes and expects %zu", self->rank, own,
                    received_bytes[self->rank]);
    }
    forgelm_status ended = begin(self, ALL_TO_ALL, err);
    if (ended != FORGELM_OK) {
        return ended;
    }
    /* What is sent is only read: parts have one type for both. */
    parts from = {(unsigned char *)(uintptr_t)sent, sent_bytes, self->sent_at};
    parts to = {received, received_bytes, self->received_at};
    size_t sent_most = lay_out(self, &from);
    size_t received_most = lay_out(self, &to);
    if (own > 0) {
        memcpy(part_of(&to, self->rank), part_of(&from, self->rank), own);
    }
    size_t most = sent_most > received_most ? sent_most : received_most;
    waiting wait = start_waiting(deadline_ms);
    for (size_t done = 0; done < most && ended == FORGELM_OK; done += self->round_bytes) {
        ended = exchange(self, &from, &to, done, &wait, err);
    }
    return ended;
}

static forgelm_status all_gather(const forgelm_collective *table, const void *own, void *all,
                                 const size_t *n_bytes, uint64_t deadline_ms,
                                 forgelm_plugin_error *err) {
    collective *self = of(table);
    forgelm_status ended = begin(self, ALL_GATHER, err);
    if (ended != FORGELM_OK) {
        return ended;
    }
    parts to = {all, n_bytes, self->received_at};
    size_t most = lay_out(self, &to);
    waiting wait = start_waiting(deadline_ms);
    for (size_t done = 0; done < most && ended == FORGELM_OK; done += self->round_bytes) {
        /* Parts land end to end: the last place too is below 2^31 with any number of ranks. */
        int place = 0;
        for (int i = 0; i < self->size; ++i) {
            self->counts[i] = (int)in_round(self, n_bytes[i], done);
            self->places[i] = place;
            place += self->counts[i];
        }
        int n_own = self->counts[self->rank];
        const unsigned char *from = n_own > 0 ? (const unsigned char *)own + done : self->landing;
        int error = MPI_Iallgatherv(from, n_own, MPI_BYTE, self->landing, self->counts,
                                    self->places, MPI_BYTE, self->comm, self->requests);
        if (error != MPI_SUCCESS) {
            return break_mpi(self, error, err);
        }
        ended = wait_for(self, 1, &wait, err);
        for (int i = 0; i < self->size && ended == FORGELM_OK; ++i) {
            if (self->counts[i] > 0) {
                memcpy(part_of(&to, i) + done, self->landing + self->places[i],
                       (size_t)self->counts[i]);
            }
        }
    }
    return ended;
}

static forgelm_status broadcast(const forgelm_collective *table, void *bytes, size_t n_bytes,
                                uint32_t root, uint64_t deadline_ms, forgelm_plugin_error *err) {
    collective *self = of(table);
    if (root >= (uint32_t)self->size) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "root is %u; expected one of %d ranks",
                    (unsigned)root, self->size);
    }
    forgelm_status ended = begin(self, BROADCAST, err);
    bool is_root = (int)root == self->rank;
    size_t round_bytes = (size_t)self->size * self->round_bytes;
    waiting wait = start_waiting(deadline_ms);
    for (size_t done = 0; done < n_bytes && ended == FORGELM_OK; done += round_bytes) {
        size_t n = smaller(n_bytes - done, round_bytes);
        unsigned char *place = (unsigned char *)bytes + done;
        int error = MPI_Ibcast(is_root ? place : self->landing, (int)n, MPI_BYTE, (int)root,
                               self->comm, self->requests);
        if (error != MPI_SUCCESS) {
            return break_mpi(self, error, err);
        }
        ended = wait_for(self, 1, &wait, err);
        if (ended == FORGELM_OK && !is_root) {
            memcpy(place, self->landing, n);
        }
    }
    return ended;
}

/* On the communicator of the instance, or on the world's own, on which nothing else is done. */
static forgelm_status meet(collective *self, MPI_Comm comm, enum operation operation,
                           uint64_t deadline_ms, forgelm_plugin_error *err) {
    forgelm_status ended = begin(self, operation, err);
    if (ended != FORGELM_OK) {
        return ended;
    }
    int error = MPI_Ibarrier(comm, self->requests);
    if (error != MPI_SUCCESS) {
        return break_mpi(self, error, err);
    }
    waiting wait = start_waiting(deadline_ms);
    return wait_for(self, 1, &wait, err);
}

static forgelm_status barrier(const forgelm_collective *table, uint64_t deadline_ms,
                              forgelm_plugin_error *err) {
    collective *self = of(table);
    return meet(self, self->comm, BARRIER, deadline_ms, err);
}

static void abort_all(const forgelm_collective *table, int32_t exit_code) {
    (void)table;
    MPI_Abort(MPI_COMM_WORLD, exit_code);
}

/* ---- joining and leaving ------------------------------------------------------------------ */

static void fill_table(collective *self);

static void free_memory(collective *self) {
    free(self->hosts);
    free(self->requests);
    free(self->statuses);
    free(self->counts);
    free(self->places);
    free(self->sent_at);
    free(self->received_at);
    free(self->signs);
    free(self->roll_sent);
    free(self->roll_heard);
    free(self->landing);
    free(self);
}

/* The library's name and version: the first line of what it says of itself, up to a comma. */
static void read_library(collective *self) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int n = 0;
    if (MPI_Get_library_version(text, &n) != MPI_SUCCESS) {
        n = 0;
    }
    text[strcspn(text, ",\r\n")] = '\0';
    for (char *c = text; *c != '\0'; ++c) {
        *c = *c == '\t' ? ' ' : *c;
    }
    snprintf(self->library, sizeof self->library, "%s", text);
}

/* Memory for an instance of a communicator, which it owns from then on; NULL if there is none. */
static collective *new_collective(MPI_Comm comm, bool is_world) {
    collective *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return NULL;
    }
    MPI_Comm_rank(comm, &self->rank);
    MPI_Comm_size(comm, &self->size);
    self->comm = comm;
    self->is_world = is_world;
    size_t n = (size_t)self->size;
    size_t share = LANDING_BYTES / n;
    self->round_bytes = share > ROUND_BYTES_MIN ? share : ROUND_BYTES_MIN;
    self->hosts = calloc(n, sizeof *self->hosts);
    self->requests = calloc(2 * n, sizeof *self->requests);
    self->statuses = calloc(2 * n, sizeof *self->statuses);
    self->counts = calloc(n, sizeof *self->counts);
    self->places = calloc(n, sizeof *self->places);
    self->sent_at = calloc(n, sizeof *self->sent_at);
    self->received_at = calloc(n, sizeof *self->received_at);
    self->signs = calloc(n, sizeof *self->signs);
    self->roll_sent = calloc(n, sizeof *self->roll_sent);
    self->roll_heard = calloc(n, sizeof *self->roll_heard);
    self->landing = malloc(n * self->round_bytes);
    if (!self->hosts || !self->requests || !self->statuses || !self->counts || !self->places ||
        !self->sent_at || !self->received_at || !self->signs || !self->roll_sent ||
        !self->roll_heard || !self->landing) {
        free_memory(self);
        return NULL;
    }
    read_library(self);
    fill_table(self);
    return self;
}

/* Those that give the same color. All colors are gathered first, under the deadline: once they are
 * here every rank has come. MPI makes the communicator itself while it waits, and a rank that stops
 * in that moment is not noticed. */
static forgelm_status split(const forgelm_collective *table, uint32_t color, uint64_t deadline_ms,
                            const forgelm_collective **out, forgelm_plugin_error *err) {
    collective *self = of(table);
    forgelm_status ended = begin(self, SPLIT, err);
    if (ended != FORGELM_OK) {
        return ended;
    }
    uint32_t *colors = (void *)self->landing; /* as aligned as malloc has it, and large enough */
    colors[self->rank] = color;
    int error = MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, colors, 1, MPI_UINT32_T,
                               self->comm, self->requests);
    if (error != MPI_SUCCESS) {
        return break_mpi(self, error, err);
    }
    waiting wait = start_waiting(deadline_ms);
    ended = wait_for(self, 1, &wait, err);
    if (ended != FORGELM_OK) {
        return ended;
    }
    /* A color of MPI is an int: the first rank that has ours stands for it. */
    int first = 0;
    while (colors[first] != color) {
        ++first;
    }
    MPI_Comm comm = MPI_COMM_NULL;
    error = MPI_Comm_split(self->comm, first, self->rank, &comm);
    if (error != MPI_SUCCESS) {
        return break_mpi(self, error, err);
    }
    collective *part = new_collective(comm, false);
    if (part == NULL) {
        has_failed = true; /* the others go on with a part in which this rank is missing */
        return fail_memory(err);
    }
    for (int i = first, n = 0; i < self->size; ++i) {
        if (colors[i] == color) {
            memcpy(part->hosts[n++], self->hosts[i], HOST_BYTES);
        }
    }
    *out = &part->table;
    return FORGELM_OK;
}

/* MPI's own end waits for all ranks, and some libraries spin at full load meanwhile: so all meet
 * before, asleep. They do it where no operation of an instance can be mistaken for it. */
static void destroy(const forgelm_collective *table) {
    collective *self = of(table);
    if (has_failed) {
        return; /* MPI may still write to its memory */
    }
    if (self->is_world) {
        if (meet(self, MPI_COMM_WORLD, LEAVE, LEAVE_MS, NULL) != FORGELM_OK) {
            return;
        }
        MPI_Comm_free(&self->comm);
        MPI_Finalize();
    } else {
        MPI_Comm_free(&self->comm);
    }
    free_memory(self);
}

static uint32_t rank_of(const forgelm_collective *table) { return (uint32_t)of(table)->rank; }

static uint32_t size_of(const forgelm_collective *table) { return (uint32_t)of(table)->size; }

static const char *library_of(const forgelm_collective *table) { return of(table)->library; }

static void fill_table(collective *self) {
    self->table = (forgelm_collective){
        .struct_size = sizeof self->table,
        .plugin_data = self,
        .destroy = destroy,
        .rank = rank_of,
        .size = size_of,
        .library = library_of,
        .all_to_all = all_to_all,
        .all_gather = all_gather,
        .broadcast = broadcast,
        .barrier = barrier,
        .split = split,
        .abort = abort_all,
        .get_extension = NULL,
    };
}

/* Number of processes that a variable of a launcher speaks of; 0 if it is not set. */
static long started(const char *variable) {
    const char *value = getenv(variable);
    return value == NULL ? 0 : strtol(value, NULL, 10);
}

/* A launcher of one MPI does not reach the library of another: each process then believes that it
 * is alone, and all would do the whole work. The variables of launchers tell.
 *
 * Those of Open MPI and of PMI (MPICH, Intel MPI, Cray) are inherited where one launcher starts the
 * other: one that agrees is enough, unless this process believes to be alone and another one says
 * that it is not. Slurm's counts the daemons of mpirun, and is read where there is no mpirun. */
static forgelm_status check_launcher(const collective *self, forgelm_plugin_error *err) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    enum { OF_LAUNCHERS = 2, N_NAMES = 3 };
    bool is_said = false;
    bool is_agreed = false;
    int other = -1; /* the variable that says something else */
    for (int i = 0; i < N_NAMES && !(i == OF_LAUNCHERS && is_said); ++i) {
        long n = started(names[i]);
        is_said = is_said || n != 0;
        is_agreed = is_agreed || n == self->size;
        other = n > 0 && n != self->size ? i : other;
    }
    if (other < 0 || (is_agreed && !(self->size == 1 && started(names[other]) > 1))) {
        return FORGELM_OK;
    }
    return fail(err, FORGELM_E_INTERNAL,
                "the launcher started %ld processes (%s), but %s sees %d: launcher and library are "
                "of two MPIs\n  hint: start with the mpirun of this MPI, or `forgelm comm build "
                "--mpicc` with the mpicc of the launcher; under Slurm try srun --mpi=pmix",
                started(names[other]), names[other], self->library, self->size);
}

static bool is_empty_object(forgelm_str json) {
    size_t n_braces = 0;
    for (size_t i = 0; i < json.len; ++i) {
        if (json.ptr[i] == "{}"[smaller(n_braces, 2)] && n_braces < 2) {
            ++n_braces;
        } else if (strchr(" \t\r\n", json.ptr[i]) == NULL) {
            return false;
        }
    }
    return n_braces == 2;
}

/* Names of the hosts of all ranks, so that one that is lost can be named. */
static int gather_hosts(collective *self) {
    char *own = self->hosts[self->rank];
    if (gethostname(own, HOST_BYTES) != 0) {
        snprintf(own, HOST_BYTES, "unknown");
    }
    own[HOST_BYTES - 1] = '\0';
    return MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, self->hosts, HOST_BYTES, MPI_CHAR,
                         self->comm);
}

/* The world of a process in which MPI was started. */
static forgelm_status open_world(int n_threads, collective **out, forgelm_plugin_error *err) {
    if (n_threads < MPI_THREAD_FUNNELED) {
        return fail(err, FORGELM_E_UNIMPLEMENTED,
                    "this MPI allows no other threads in its process (MPI_THREAD_SINGLE); expected "
                    "MPI_THREAD_FUNNELED");
    }
    MPI_Comm comm = MPI_COMM_NULL;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    int error = MPI_Comm_dup(MPI_COMM_WORLD, &comm);
    if (error != MPI_SUCCESS) {
        return fail_mpi(err, "joining", error);
    }
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    collective *self = new_collective(comm, true);
    if (self == NULL) {
        return fail_memory(err);
    }
    forgelm_status ended = check_launcher(self, err);
    if (ended == FORGELM_OK) {
        error = gather_hosts(self);
        ended = error == MPI_SUCCESS ? FORGELM_OK : fail_mpi(err, "joining", error);
    }
    if (ended != FORGELM_OK) {
        if (self->size == 1) {
            MPI_Finalize(); /* there is nobody to wait for */
        }
        free_memory(self);
        return ended;
    }
    *out = self;
    return FORGELM_OK;
}

static forgelm_status create(const forgelm_collective_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_collective **out, forgelm_plugin_error *err) {
    (void)factory;
    (void)host;
    if (index != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "no collective of that index");
    }
    if (!is_empty_object(options_json)) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "`mpi` has no options");
    }
    int is_started = 0;
    MPI_Initialized(&is_started); /* stays true after the end */
    if (has_joined || is_started) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT,
                    "MPI was started in this process before: a process joins once");
    }
    has_joined = true;
    int n_threads = MPI_THREAD_SINGLE;
    int error = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &n_threads);
    if (error != MPI_SUCCESS) {
        return fail_mpi(err, "MPI_Init_thread", error);
    }
    collective *world = NULL;
    forgelm_status ended = open_world(n_threads, &world, err);
    if (ended == FORGELM_OK) {
        *out = &world->table;
    }
    return ended;
}

/* ---- what the library offers -------------------------------------------------------------- */

/* The MPI of the compiler, so that a list of plugins says which one this file is bound to. */
#define TEXT_OF(value) #value
#define TEXT(macro) TEXT_OF(macro)
#if defined(I_MPI_VERSION)
#define BUILT_WITH "Intel MPI " I_MPI_VERSION
#elif defined(MVAPICH2_VERSION)
#define BUILT_WITH "MVAPICH2 " MVAPICH2_VERSION
#elif defined(MPICH_VERSION)
#define BUILT_WITH "MPICH " MPICH_VERSION
#elif defined(OMPI_MAJOR_VERSION)
#define BUILT_WITH                                                                                 \
    "Open MPI " TEXT(OMPI_MAJOR_VERSION) "." TEXT(OMPI_MINOR_VERSION) "." TEXT(OMPI_RELEASE_VERSION)
#else
#define BUILT_WITH "MPI " TEXT(MPI_VERSION) "." TEXT(MPI_SUBVERSION)
#endif

static const forgelm_collective_descriptor mpi = {
    .struct_size = sizeof mpi,
    .name = "mpi",
    .summary = "the processes that a launcher started, through " BUILT_WITH,
    .source = "MPI Forum, MPI: A Message-Passing Interface Standard, version 3.0 and later",
};

static uint32_t count(const forgelm_collective_factory *factory) {
    (void)factory;
    return 1;
}

static const forgelm_collective_descriptor *descriptor(const forgelm_collective_factory *factory,
                                                       uint32_t index) {
    return index < count(factory) ? &mpi : NULL;
}

static const forgelm_collective_factory collectives = {
    .struct_size = sizeof collectives,
    .count = count,
    .descriptor = descriptor,
    .create = create,
};

static const void *get_factory(const char *id) {
    return strcmp(id, FORGELM_COLLECTIVE_FACTORY) == 0 ? &collectives : NULL;
}

FORGELM_PLUGIN_EXPORT const forgelm_entry forgelm_plugin_entry = {
    .magic = FORGELM_PLUGIN_MAGIC,
    .abi_major = FORGELM_PLUGIN_ABI_MAJOR,
    .abi_minor = FORGELM_PLUGIN_ABI_MINOR,
    .struct_size = sizeof(forgelm_entry),
    .layout_hash = FORGELM_PLUGIN_LAYOUT_HASH,
    .name = "forgelm_mpi",
    .version = "1.0.0",
    .get_factory = get_factory,
};
