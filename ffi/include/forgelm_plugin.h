/* forgelm_plugin.h: plugins for ForgeLM, in C or C++.
 *
 * A plugin is a shared library that exports one constant, `forgelm_plugin_entry`. It offers
 * trainers, merge methods, quantizers, evaluators, rewards or collectives: each kind has a factory,
 * found by its id.
 *
 * This header is complete: what is not declared here is not promised. It is written by hand and a
 * test compares it with the program on this machine's C and C++ compilers.
 *
 * Rules that hold everywhere:
 *   - A struct that begins with `struct_size` grows only at its end. Whoever makes one writes its
 *     own sizeof; whoever reads one asks FORGELM_HAS for what came after 1.0.
 *   - A revision such as `forgelm.trainer/1` never changes its meaning. New abilities are new ids,
 *     asked for with get_extension, on either side; an unknown id gives NULL.
 *   - Text is UTF-8. A forgelm_str has a length and no NUL, and is valid for the call; a
 *     `const char *` in a table ends with NUL and lives as long as the library.
 *   - Tensors are views as in DLPack: borrowed for the call, row-major without gaps. They lie in
 *     the processor's memory, except in functions of tables that a plugin offers for the device.
 *   - Options and reports are JSON objects.
 *   - The error record is the caller's. On failure a function returns a status and fills it; all
 *     other results stay as they were. `err` may be NULL.
 *   - Nothing may unwind out of a function: C++ code goes through forgelm::guard (below). After
 *     FORGELM_E_PANIC an instance may only be destroyed.
 *   - Memory is freed by whoever made it. No `free` across the border.
 *   - Loading runs the constructors of a library before anything is checked. A library is never
 *     unloaded.
 *   - Do not change the floating-point mode, the locale, signal handlers, the environment or the
 *     working directory, and do not end the process. Results must not depend on threads.
 *
 * Each function has four marks: Thread, Ownership, Errors, Since.
 *
 * Build: cc -std=c11 -O2 -fPIC -shared -fvisibility=hidden -Wl,-z,defs -Wl,-z,nodelete
 * and never -ffast-math. */
#ifndef FORGELM_PLUGIN_H
#define FORGELM_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus) && __cplusplus >= 201703L
/* From C++17 on a function that may throw does not fit into a table: say noexcept, and guard. */
#define FORGELM_NOEXCEPT noexcept
#else
#define FORGELM_NOEXCEPT
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FORGELM_PLUGIN_MAGIC UINT64_C(0x314942414d4c4746)
#define FORGELM_PLUGIN_ABI_MAJOR 1u
#define FORGELM_PLUGIN_ABI_MINOR 0u
/* Sizes and places of all fields of version 1.0 below, on 64-bit machines. */
#define FORGELM_PLUGIN_LAYOUT_HASH UINT64_C(0xc8628578f5bb2ff1)

/* How a call ended. Numbers are only ever added; one that is not known is an internal error. */
typedef int32_t forgelm_status;

#define FORGELM_OK 0
#define FORGELM_E_CANCELLED 1        /* stopped because the host asked for it */
#define FORGELM_E_INVALID_ARGUMENT 3 /* an option or an argument cannot be used */
#define FORGELM_E_DEADLINE 4         /* others gave no sign before the deadline */
#define FORGELM_E_OUT_OF_MEMORY 8    /* memory was refused */
#define FORGELM_E_UNIMPLEMENTED 12   /* the other side lacks what this needs */
#define FORGELM_E_INTERNAL 13        /* a bug, or something without a number of its own */
#define FORGELM_E_PANIC 100          /* caught a panic or an exception: only destroy may follow */

/* Importance of a log line. */
#define FORGELM_LOG_DEBUG 0u
#define FORGELM_LOG_INFO 1u
#define FORGELM_LOG_WARNING 2u
#define FORGELM_LOG_ERROR 3u

/* Whether a struct that the other side made has a field, and the field is not NULL. */
#define FORGELM_HAS(pointer, field)                                                      \
    ((size_t)(pointer)->struct_size >=                                                   \
         (size_t)((const char *)(&(pointer)->field + 1) - (const char *)(pointer)) &&    \
     (pointer)->field)

/* ---- text, tensors, errors ---------------------------------------------------------------- */

/* Borrowed UTF-8, not ended by NUL. */
typedef struct forgelm_str {
    const char *ptr; /* may be NULL when len is 0 */
    size_t len;
} forgelm_str;

/* DLPack's DLDevice. */
typedef struct forgelm_device {
    int32_t device_type; /* FORGELM_DEVICE_CPU or FORGELM_DEVICE_CUDA */
    int32_t device_id;
} forgelm_device;

#define FORGELM_DEVICE_CPU 1
#define FORGELM_DEVICE_CUDA 2

/* DLPack's DLDataType. */
typedef struct forgelm_dtype {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes; /* 1 */
} forgelm_dtype;

#define FORGELM_DTYPE_INT 0u
#define FORGELM_DTYPE_UINT 1u
#define FORGELM_DTYPE_FLOAT 2u
#define FORGELM_DTYPE_BFLOAT 4u

/* DLPack's DLTensor, byte for byte: a view. */
typedef struct forgelm_tensor {
    void *data;
    forgelm_device device;
    int32_t ndim;
    forgelm_dtype dtype;
    const int64_t *shape;   /* [ndim] */
    const int64_t *strides; /* [ndim], in numbers */
    uint64_t byte_offset;   /* from data to the first number */
} forgelm_tensor;

/* The caller's record of what went wrong. */
typedef struct forgelm_plugin_error {
    uint32_t struct_size;
    forgelm_status code;
    uint32_t message_len;
    uint32_t reserved;
    char message[496]; /* UTF-8, cut where it does not fit */
} forgelm_plugin_error;

/* ---- the host ----------------------------------------------------------------------------- */

/* What the host offers. It outlives every instance that was created with it. */
typedef struct forgelm_host forgelm_host;
struct forgelm_host {
    uint32_t struct_size;
    uint32_t abi_major;
    uint32_t abi_minor;
    uint32_t reserved;
    void *host_data;

    /* A table of functions by its id, such as "forgelm.score/1", which begins with struct_size.
     * Thread:    any.
     * Ownership: the host's; lives as long as the host's table.
     * Errors:    NULL if the host does not offer it.
     * Since:     1.0 */
    const void *(*get_extension)(const forgelm_host *host, const char *id) FORGELM_NOEXCEPT;

    /* Says something; it appears among the run's own lines, with the target as its origin.
     * Thread:    any.
     * Ownership: the texts are borrowed for the call.
     * Errors:    none. Text that is not UTF-8 is mended.
     * Since:     1.0 */
    void (*log)(const forgelm_host *host, uint32_t level, forgelm_str target,
                forgelm_str message) FORGELM_NOEXCEPT;

    /* Not 0 when the work should stop: return FORGELM_E_CANCELLED soon. Ask at least every 100 ms.
     * Thread:    any.
     * Ownership: nothing changes hands.
     * Errors:    none.
     * Since:     1.0 */
    uint32_t (*is_cancelled)(const forgelm_host *host) FORGELM_NOEXCEPT;

    /* Tells how far the work is, as a JSON object; not 0 when it should stop.
     * Thread:    any.
     * Ownership: the text is borrowed for the call.
     * Errors:    none.
     * Since:     1.0 */
    uint32_t (*progress)(const forgelm_host *host, forgelm_str event_json) FORGELM_NOEXCEPT;
};

/* ---- the entry ---------------------------------------------------------------------------- */

/* What a plugin exports, constant, under the name forgelm_plugin_entry:
 *
 *     FORGELM_PLUGIN_EXPORT const forgelm_entry forgelm_plugin_entry = {
 *         FORGELM_PLUGIN_MAGIC, FORGELM_PLUGIN_ABI_MAJOR, FORGELM_PLUGIN_ABI_MINOR,
 *         sizeof(forgelm_entry), 0, FORGELM_PLUGIN_LAYOUT_HASH,
 *         "my-plugin", "1.0.0", init, deinit, get_factory};
 *
 * The host checks the fields in this order, and calls nothing before all are right. */
typedef struct forgelm_entry {
    uint64_t magic;
    uint32_t abi_major;
    uint32_t abi_minor;
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t layout_hash;
    const char *name;
    const char *version;

    /* Called once, before anything else. plugin_dir is the folder that the library came from.
     * Thread:    one.
     * Ownership: the host's table may be kept; the text is borrowed for the call.
     * Errors:    a library that fails is not used. May be NULL: nothing to do.
     * Since:     1.0 */
    forgelm_status (*init)(const forgelm_host *host, forgelm_str plugin_dir,
                           forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Called at most once, when all instances are destroyed; not at all in a process that ends.
     * Thread:    one.
     * Ownership: nothing changes hands.
     * Errors:    none. May be NULL: nothing to do.
     * Since:     1.0 */
    void (*deinit)(void) FORGELM_NOEXCEPT;

    /* The factory of a kind, such as "forgelm.trainer/1".
     * Thread:    any.
     * Ownership: the plugin's; constant, lives as long as the library.
     * Errors:    NULL if the plugin has nothing of that kind. Must not be NULL itself.
     * Since:     1.0 */
    const void *(*get_factory)(const char *factory_id) FORGELM_NOEXCEPT;
} forgelm_entry;

/* One field of one struct of this header, as a compiler laid it out. */
typedef struct forgelm_field_layout {
    forgelm_str structure; /* "forgelm_scored" */
    forgelm_str field;     /* "logp" */
    uint64_t align;        /* of the struct */
    uint64_t offset;
    uint64_t size;
} forgelm_field_layout;

/* What a plugin may export besides, constant, under the name forgelm_plugin_layouts: its tables as
 * its compiler saw them, so that a host can name the first field that lies elsewhere. Plugins in
 * Rust do; in C the numbers come from offsetof and sizeof. */
typedef struct forgelm_layouts {
    uint32_t struct_size;
    uint32_t reserved;
    const forgelm_field_layout *fields; /* [n_fields] */
    size_t n_fields;
} forgelm_layouts;

#if defined(__GNUC__) || defined(__clang__)
#define FORGELM_PLUGIN_VISIBLE __attribute__((visibility("default"), used))
#else
#define FORGELM_PLUGIN_VISIBLE
#endif
#ifdef __cplusplus
#define FORGELM_PLUGIN_EXPORT extern "C" FORGELM_PLUGIN_VISIBLE
#else
#define FORGELM_PLUGIN_EXPORT FORGELM_PLUGIN_VISIBLE
#endif

/* ---- trainers: "forgelm.trainer/1" -------------------------------------------------------- */

#define FORGELM_TRAINER_FACTORY "forgelm.trainer/1"

/* What part a sequence plays in its record. */
#define FORGELM_ROLE_SOLE 0u     /* the record is this one sequence */
#define FORGELM_ROLE_CHOSEN 1u   /* the preferred answer of a pair, or a desirable one */
#define FORGELM_ROLE_REJECTED 2u /* the other answer of a pair, or one that is not desirable */
#define FORGELM_ROLE_KL 3u       /* a mismatched pair that estimates a KL term */
#define FORGELM_ROLE_ROLLOUT 4u  /* an answer that the policy generated */

/* The shape of a trainer's records. */
#define FORGELM_RECORDS_TEXT 0u       /* one text or conversation */
#define FORGELM_RECORDS_PREFERENCE 1u /* a prompt with a chosen and a rejected answer */
#define FORGELM_RECORDS_LABELLED 2u   /* an answer with a label: desirable or not */
#define FORGELM_RECORDS_PROMPT 3u     /* a prompt alone */

/* What the host must prepare. */
#define FORGELM_TRAINER_NEEDS_REFERENCE 1u /* log-probabilities of the reference model */
#define FORGELM_TRAINER_NEEDS_ROLLOUTS 2u  /* answers generated by the policy, with rewards */
#define FORGELM_TRAINER_NEEDS_PROMPTS 4u   /* log-probabilities of prompt tokens too */
#define FORGELM_TRAINER_NEEDS_DROPOUT 8u   /* dropout acts while training */

/* One sequence: the scored rows start..start + len. The two answers of a pair lie side by side,
 * the chosen one first. */
typedef struct forgelm_sequence {
    uint32_t role;
    uint32_t reserved; /* not read */
    uint64_t record;   /* number of the record in the data set */
    size_t start;
    size_t len;
} forgelm_sequence;

/* How much of one role a whole optimizer step has, over all its micro-batches. */
typedef struct forgelm_role_totals {
    uint64_t n_sequences;
    uint64_t n_scored;
    uint64_t n_trained;
} forgelm_role_totals;

/* What a trainer reads: R scored rows, sequence after sequence. */
typedef struct forgelm_scored {
    uint32_t struct_size;
    uint32_t reserved;
    const forgelm_sequence *sequences; /* end to end, together all R rows */
    size_t n_sequences;
    const forgelm_tensor *labels;    /* [R] uint32: the token that was predicted */
    const forgelm_tensor *trained;   /* [R] uint8: 1 if the row is trained, 0 if only scored */
    const forgelm_tensor *logp;      /* [R] float: log-probability under the policy */
    const forgelm_tensor *ref_logp;  /* [R] float: under the reference model; NULL if not needed */
    const forgelm_tensor *advantage; /* [n_sequences] float; NULL without rollouts */
    const forgelm_tensor *old_logp;  /* [R] float: under the policy that generated; NULL likewise */
    const forgelm_role_totals *totals; /* [n_roles] of the whole step */
    size_t n_roles;
} forgelm_scored;

/* What a trainer writes. */
typedef struct forgelm_loss {
    uint32_t struct_size;
    uint32_t reserved;
    double loss_sum;             /* written: sum over the terms, never a mean */
    uint64_t n_terms;            /* written: trained tokens, or pairs; the host divides by it */
    const forgelm_tensor *dlogp; /* [R] float, written: d loss_sum / d logp, 0 where not trained */
    void *metric_ctx;

    /* Adds to a named sum of the metrics file; the host divides by its number of terms.
     * Thread:    the caller's, during the call of loss.
     * Ownership: the name is borrowed for the call.
     * Errors:    none.
     * Since:     1.0 */
    void (*metric)(void *metric_ctx, forgelm_str name, double sum,
                   uint64_t n_terms) FORGELM_NOEXCEPT;
} forgelm_loss;

/* One trainer of a library. */
typedef struct forgelm_trainer_descriptor {
    uint32_t struct_size;
    uint32_t records; /* FORGELM_RECORDS_... */
    uint32_t needs;   /* FORGELM_TRAINER_NEEDS_... */
    uint32_t reserved;
    const char *name;            /* value of `training.trainer_type` */
    const char *summary;         /* one line for a person */
    const char *source;          /* where the method was published */
    const char *const *features; /* words "key:value", ended by NULL; may be NULL itself */
} forgelm_trainer_descriptor;

/* An instance: one objective with its options. */
typedef struct forgelm_trainer forgelm_trainer;
struct forgelm_trainer {
    uint32_t struct_size;
    uint32_t reserved;
    void *plugin_data;

    /* Ends the instance.
     * Thread:    any; no other call on the instance is running or follows.
     * Ownership: takes the instance.
     * Errors:    none.
     * Since:     1.0 */
    void (*destroy)(const forgelm_trainer *trainer) FORGELM_NOEXCEPT;

    /* Loss of one micro-batch and its gradient.
     * Thread:    any; one call at a time on an instance.
     * Ownership: everything is borrowed for the call.
     * Errors:    any status; the run ends with the message, and the last checkpoint is good.
     * Since:     1.0 */
    forgelm_status (*loss)(const forgelm_trainer *trainer, const forgelm_scored *scored,
                           forgelm_loss *out, forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* A table of functions by its id.
     * Thread:    any.
     * Ownership: the plugin's; lives as long as the instance.
     * Errors:    NULL if there is none of that id. May be NULL itself.
     * Since:     1.0 */
    const void *(*get_extension)(const forgelm_trainer *trainer, const char *id) FORGELM_NOEXCEPT;
};

/* The trainers of a library. */
typedef struct forgelm_trainer_factory forgelm_trainer_factory;
struct forgelm_trainer_factory {
    uint32_t struct_size;
    uint32_t reserved;

    /* Number of trainers.
     * Thread:    any.
     * Ownership: nothing changes hands.
     * Errors:    none.
     * Since:     1.0 */
    uint32_t (*count)(const forgelm_trainer_factory *factory) FORGELM_NOEXCEPT;

    /* One of them.
     * Thread:    any.
     * Ownership: the plugin's; constant, lives as long as the library.
     * Errors:    NULL if index is not below count.
     * Since:     1.0 */
    const forgelm_trainer_descriptor *(*descriptor)(const forgelm_trainer_factory *factory,
                                                    uint32_t index) FORGELM_NOEXCEPT;

    /* Makes an instance. Options that are not known are refused, not ignored.
     * Thread:    any.
     * Ownership: *out goes to the host, which calls its destroy; the host's table may be kept.
     * Errors:    FORGELM_E_INVALID_ARGUMENT for an option, and any other; *out is untouched.
     * Since:     1.0 */
    forgelm_status (*create)(const forgelm_trainer_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_trainer **out,
                             forgelm_plugin_error *err) FORGELM_NOEXCEPT;
};

/* ---- merge methods: "forgelm.merge_method/1" ---------------------------------------------- */

#define FORGELM_MERGE_METHOD_FACTORY "forgelm.merge_method/1"

/* How much of a tensor a method must see at once. */
#define FORGELM_MERGE_SCOPE_ELEMENTS 0u /* an element of each input, and the facts, make one */
#define FORGELM_MERGE_SCOPE_TENSOR 1u   /* every piece is a whole tensor */

/* What one pass over a tensor measures, before it is merged. */
typedef struct forgelm_merge_pass {
    size_t n_sums;  /* numbers that each piece adds to; the host adds them in order of pieces */
    size_t n_facts; /* numbers concluded from them, which all later pieces see */
} forgelm_merge_pass;

/* The tensor that is being merged. */
typedef struct forgelm_merge_tensor {
    uint32_t struct_size;
    uint32_t reserved;
    forgelm_str name;
    size_t len;          /* elements of the whole tensor */
    const double *facts; /* [n_facts] of the passes so far, end to end */
    size_t n_facts;
} forgelm_merge_tensor;

/* A part of a tensor: n elements from `start` on. */
typedef struct forgelm_merge_piece {
    uint32_t struct_size;
    uint32_t reserved;
    const forgelm_merge_tensor *tensor;
    size_t start;
    const forgelm_tensor *base;   /* [n] float; NULL if the method does not read it */
    const forgelm_tensor *inputs; /* [n_inputs] tensors [n] float, in the order of the weights */
    size_t n_inputs;
} forgelm_merge_piece;

/* One merge method of a library. */
typedef struct forgelm_merge_method_descriptor {
    uint32_t struct_size;
    uint32_t scope; /* FORGELM_MERGE_SCOPE_... */
    size_t n_inputs_min;
    size_t n_inputs_max;
    const char *name;            /* value of `merge.method` */
    const char *summary;         /* one line for a person */
    const char *source;          /* where the method was published */
    const char *const *features; /* words "key:value", ended by NULL; may be NULL itself */
} forgelm_merge_method_descriptor;

/* An instance: one method with its options and weights. Every function is a function of its
 * arguments alone: the result must not depend on how a tensor is cut, or on threads. */
typedef struct forgelm_merge_method forgelm_merge_method;
struct forgelm_merge_method {
    uint32_t struct_size;
    uint32_t reads_base; /* 1 if it reads the base model's values, 0 if not; constant */
    void *plugin_data;

    /* Ends the instance.
     * Thread:    any; no other call on the instance is running or follows.
     * Ownership: takes the instance.
     * Errors:    none.
     * Since:     1.0 */
    void (*destroy)(const forgelm_merge_method *method) FORGELM_NOEXCEPT;

    const forgelm_merge_pass *passes; /* constant; may be NULL when n_passes is 0 */
    size_t n_passes;

    /* Adds what a piece has to the sums of a pass: sums [n_sums], zero at the start of a piece.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    any status; the merge ends with the message. May be NULL without passes.
     * Since:     1.0 */
    forgelm_status (*measure)(const forgelm_merge_method *method, size_t pass,
                              const forgelm_merge_piece *piece, double *sums,
                              forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* What the sums of a pass over all pieces say: sums [n_sums] read, facts [n_facts] written.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    any status; the merge ends with the message. May be NULL without passes.
     * Since:     1.0 */
    forgelm_status (*conclude)(const forgelm_merge_method *method, size_t pass,
                               const forgelm_merge_tensor *tensor, const double *sums,
                               double *facts, forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Merges one piece: out [n] float written.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    any status; the merge ends with the message.
     * Since:     1.0 */
    forgelm_status (*merge)(const forgelm_merge_method *method, const forgelm_merge_piece *piece,
                            const forgelm_tensor *out, forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* A table of functions by its id.
     * Thread:    any.
     * Ownership: the plugin's; lives as long as the instance.
     * Errors:    NULL if there is none of that id. May be NULL itself.
     * Since:     1.0 */
    const void *(*get_extension)(const forgelm_merge_method *method,
                                 const char *id) FORGELM_NOEXCEPT;
};

/* The merge methods of a library. */
typedef struct forgelm_merge_method_factory forgelm_merge_method_factory;
struct forgelm_merge_method_factory {
    uint32_t struct_size;
    uint32_t reserved;

    /* Number of methods.
     * Thread:    any.
     * Ownership: nothing changes hands.
     * Errors:    none.
     * Since:     1.0 */
    uint32_t (*count)(const forgelm_merge_method_factory *factory) FORGELM_NOEXCEPT;

    /* One of them.
     * Thread:    any.
     * Ownership: the plugin's; constant, lives as long as the library.
     * Errors:    NULL if index is not below count.
     * Since:     1.0 */
    const forgelm_merge_method_descriptor *(*descriptor)(
        const forgelm_merge_method_factory *factory, uint32_t index) FORGELM_NOEXCEPT;

    /* Makes an instance for these weights, one finite number for each input.
     * Thread:    any.
     * Ownership: *out goes to the host, which calls its destroy; the host's table may be kept.
     * Errors:    FORGELM_E_INVALID_ARGUMENT for options or weights, and any other; *out is
     *            untouched.
     * Since:     1.0 */
    forgelm_status (*create)(const forgelm_merge_method_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json, const double *weights,
                             size_t n_weights, const forgelm_merge_method **out,
                             forgelm_plugin_error *err) FORGELM_NOEXCEPT;
};

/* ---- quantizers: "forgelm.quantizer/1" ---------------------------------------------------- */

#define FORGELM_QUANTIZER_FACTORY "forgelm.quantizer/1"

/* One quantizer of a library. */
typedef struct forgelm_quantizer_descriptor {
    uint32_t struct_size;
    uint32_t reserved;
    const char *name;            /* its name in a config */
    const char *summary;         /* one line for a person */
    const char *source;          /* where the format was published */
    const char *const *features; /* words "key:value", ended by NULL; may be NULL itself */
} forgelm_quantizer_descriptor;

/* An instance: one format with its options. A row stands for itself. */
typedef struct forgelm_quantizer forgelm_quantizer;
struct forgelm_quantizer {
    uint32_t struct_size;
    uint32_t reserved;
    void *plugin_data;

    /* Ends the instance.
     * Thread:    any; no other call on the instance is running or follows.
     * Ownership: takes the instance.
     * Errors:    none.
     * Since:     1.0 */
    void (*destroy)(const forgelm_quantizer *quantizer) FORGELM_NOEXCEPT;

    /* Bytes of a row of n_cols numbers.
     * Thread:    any; several at once.
     * Ownership: nothing changes hands.
     * Errors:    FORGELM_E_INVALID_ARGUMENT if the format has no rows of that width; *out is
     *            untouched.
     * Since:     1.0 */
    forgelm_status (*bytes_per_row)(const forgelm_quantizer *quantizer, size_t n_cols, size_t *out,
                                    forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* rows [R, C] float read, bytes [R, bytes per row] uint8 written.
     * Thread:    any; several at once, on different rows.
     * Ownership: everything is borrowed for the call.
     * Errors:    any status.
     * Since:     1.0 */
    forgelm_status (*quantize)(const forgelm_quantizer *quantizer, const forgelm_tensor *rows,
                               const forgelm_tensor *bytes,
                               forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* bytes [R, bytes per row] uint8 read, rows [R, C] float written.
     * Thread:    any; several at once, on different rows.
     * Ownership: everything is borrowed for the call.
     * Errors:    any status.
     * Since:     1.0 */
    forgelm_status (*dequantize)(const forgelm_quantizer *quantizer, const forgelm_tensor *bytes,
                                 const forgelm_tensor *rows,
                                 forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* A table of functions by its id.
     * Thread:    any.
     * Ownership: the plugin's; lives as long as the instance.
     * Errors:    NULL if there is none of that id. May be NULL itself.
     * Since:     1.0 */
    const void *(*get_extension)(const forgelm_quantizer *quantizer,
                                 const char *id) FORGELM_NOEXCEPT;
};

/* The quantizers of a library. */
typedef struct forgelm_quantizer_factory forgelm_quantizer_factory;
struct forgelm_quantizer_factory {
    uint32_t struct_size;
    uint32_t reserved;

    /* Number of quantizers.
     * Thread:    any.
     * Ownership: nothing changes hands.
     * Errors:    none.
     * Since:     1.0 */
    uint32_t (*count)(const forgelm_quantizer_factory *factory) FORGELM_NOEXCEPT;

    /* One of them.
     * Thread:    any.
     * Ownership: the plugin's; constant, lives as long as the library.
     * Errors:    NULL if index is not below count.
     * Since:     1.0 */
    const forgelm_quantizer_descriptor *(*descriptor)(const forgelm_quantizer_factory *factory,
                                                      uint32_t index) FORGELM_NOEXCEPT;

    /* Makes an instance. Options that are not known are refused, not ignored.
     * Thread:    any.
     * Ownership: *out goes to the host, which calls its destroy; the host's table may be kept.
     * Errors:    FORGELM_E_INVALID_ARGUMENT for an option, and any other; *out is untouched.
     * Since:     1.0 */
    forgelm_status (*create)(const forgelm_quantizer_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_quantizer **out,
                             forgelm_plugin_error *err) FORGELM_NOEXCEPT;
};

/* ---- evaluators: "forgelm.evaluator/1" ---------------------------------------------------- */

#define FORGELM_EVALUATOR_FACTORY "forgelm.evaluator/1"

/* Receives a text, whole or in parts. */
typedef struct forgelm_writer {
    void *ctx;

    /* Appends.
     * Thread:    the caller's, during the call that got the writer.
     * Ownership: the text is copied.
     * Errors:    none.
     * Since:     1.0 */
    void (*write)(void *ctx, forgelm_str text) FORGELM_NOEXCEPT;
} forgelm_writer;

/* One evaluator of a library. */
typedef struct forgelm_evaluator_descriptor {
    uint32_t struct_size;
    uint32_t reserved;
    const char *name;            /* its name in a config */
    const char *summary;         /* one line for a person */
    const char *source;          /* where the measure was published */
    const char *const *features; /* words "key:value", ended by NULL; may be NULL itself */
} forgelm_evaluator_descriptor;

/* An instance: one evaluator with its options. */
typedef struct forgelm_evaluator forgelm_evaluator;
struct forgelm_evaluator {
    uint32_t struct_size;
    uint32_t reserved;
    void *plugin_data;

    /* Ends the instance.
     * Thread:    any; no other call on the instance is running or follows.
     * Ownership: takes the instance.
     * Errors:    none.
     * Since:     1.0 */
    void (*destroy)(const forgelm_evaluator *evaluator) FORGELM_NOEXCEPT;

    /* Judges the model behind the services of this host and writes its report, a JSON object.
     * Thread:    any; one call at a time on an instance.
     * Ownership: everything is borrowed for the call, the services of the host too.
     * Errors:    any status; what was written is then dropped.
     * Since:     1.0 */
    forgelm_status (*evaluate)(const forgelm_evaluator *evaluator, const forgelm_host *host,
                               const forgelm_writer *report,
                               forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* A table of functions by its id.
     * Thread:    any.
     * Ownership: the plugin's; lives as long as the instance.
     * Errors:    NULL if there is none of that id. May be NULL itself.
     * Since:     1.0 */
    const void *(*get_extension)(const forgelm_evaluator *evaluator,
                                 const char *id) FORGELM_NOEXCEPT;
};

/* The evaluators of a library. */
typedef struct forgelm_evaluator_factory forgelm_evaluator_factory;
struct forgelm_evaluator_factory {
    uint32_t struct_size;
    uint32_t reserved;

    /* Number of evaluators.
     * Thread:    any.
     * Ownership: nothing changes hands.
     * Errors:    none.
     * Since:     1.0 */
    uint32_t (*count)(const forgelm_evaluator_factory *factory) FORGELM_NOEXCEPT;

    /* One of them.
     * Thread:    any.
     * Ownership: the plugin's; constant, lives as long as the library.
     * Errors:    NULL if index is not below count.
     * Since:     1.0 */
    const forgelm_evaluator_descriptor *(*descriptor)(const forgelm_evaluator_factory *factory,
                                                      uint32_t index) FORGELM_NOEXCEPT;

    /* Makes an instance. Options that are not known are refused, not ignored.
     * Thread:    any.
     * Ownership: *out goes to the host, which calls its destroy; the host's table may be kept.
     * Errors:    FORGELM_E_INVALID_ARGUMENT for an option, and any other; *out is untouched.
     * Since:     1.0 */
    forgelm_status (*create)(const forgelm_evaluator_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_evaluator **out,
                             forgelm_plugin_error *err) FORGELM_NOEXCEPT;
};

/* ---- rewards: "forgelm.reward/1" ---------------------------------------------------------- */

#define FORGELM_REWARD_FACTORY "forgelm.reward/1"

/* An answer to be judged. */
typedef struct forgelm_answer {
    forgelm_str prompt;     /* as the model read it, its special tokens written out */
    forgelm_str completion; /* what the model answered, without special tokens */
    forgelm_str record;     /* its columns, the prompt as it was written too: one JSON object */
} forgelm_answer;

/* One reward of a library. */
typedef struct forgelm_reward_descriptor {
    uint32_t struct_size;
    uint32_t reserved;
    const char *name;            /* its name in a config */
    const char *summary;         /* one line for a person */
    const char *source;          /* where it comes from */
    const char *const *features; /* words "key:value", ended by NULL; may be NULL itself */
} forgelm_reward_descriptor;

/* An instance: one reward with its options. What an answer earns must not depend on the answers
 * that are judged beside it, nor on what was judged before. */
typedef struct forgelm_reward forgelm_reward;
struct forgelm_reward {
    uint32_t struct_size;
    uint32_t reserved;
    void *plugin_data;

    /* Ends the instance.
     * Thread:    any; no other call on the instance is running or follows.
     * Ownership: takes the instance.
     * Errors:    none.
     * Since:     1.0 */
    void (*destroy)(const forgelm_reward *reward) FORGELM_NOEXCEPT;

    /* Judges n answers to one prompt: rewards [n] written, each a finite number. is_silent [n] is 0
     * in every place; a 1 says that this reward has nothing to say about the answer.
     * Thread:    any; one call at a time on an instance.
     * Ownership: everything is borrowed for the call.
     * Errors:    any status, and a number that is not finite or not written: the run ends with the
     *            message, and the last checkpoint is good.
     * Since:     1.0 */
    forgelm_status (*judge)(const forgelm_reward *reward, const forgelm_answer *answers, size_t n,
                            double *rewards, uint8_t *is_silent,
                            forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* A table of functions by its id.
     * Thread:    any.
     * Ownership: the plugin's; lives as long as the instance.
     * Errors:    NULL if there is none of that id. May be NULL itself.
     * Since:     1.0 */
    const void *(*get_extension)(const forgelm_reward *reward, const char *id) FORGELM_NOEXCEPT;
};

/* The rewards of a library. */
typedef struct forgelm_reward_factory forgelm_reward_factory;
struct forgelm_reward_factory {
    uint32_t struct_size;
    uint32_t reserved;

    /* Number of rewards.
     * Thread:    any.
     * Ownership: nothing changes hands.
     * Errors:    none.
     * Since:     1.0 */
    uint32_t (*count)(const forgelm_reward_factory *factory) FORGELM_NOEXCEPT;

    /* One of them.
     * Thread:    any.
     * Ownership: the plugin's; constant, lives as long as the library.
     * Errors:    NULL if index is not below count.
     * Since:     1.0 */
    const forgelm_reward_descriptor *(*descriptor)(const forgelm_reward_factory *factory,
                                                   uint32_t index) FORGELM_NOEXCEPT;

    /* Makes an instance. Options that are not known are refused, not ignored.
     * Thread:    any.
     * Ownership: *out goes to the host, which calls its destroy; the host's table may be kept.
     * Errors:    FORGELM_E_INVALID_ARGUMENT for an option, and any other; *out is untouched.
     * Since:     1.0 */
    forgelm_status (*create)(const forgelm_reward_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_reward **out,
                             forgelm_plugin_error *err) FORGELM_NOEXCEPT;
};

/* ---- collectives: "forgelm.collective/1" --------------------------------------------------- */

#define FORGELM_COLLECTIVE_FACTORY "forgelm.collective/1"

/* One collective of a library. */
typedef struct forgelm_collective_descriptor {
    uint32_t struct_size;
    uint32_t reserved;
    const char *name;            /* value of `distributed.engine` */
    const char *summary;         /* one line for a person */
    const char *source;          /* where it comes from */
    const char *const *features; /* words "key:value", ended by NULL; may be NULL itself */
} forgelm_collective_descriptor;

/* An instance: this process among the p of a run, or of a part of them. It carries bytes and adds
 * no numbers: sums are made by the host, in an order of its own.
 *
 * Every process calls the same functions in the same order, all from the thread that called create.
 * It lies in the program itself, never in a process of its own.
 *
 * deadline_ms is how long a call may wait for others, in milliseconds; 0: for ever. A call whose
 * deadline passes returns FORGELM_E_DEADLINE, and its message names the ranks that gave no sign.
 * After a call that failed only abort and destroy may follow. A call that has returned, whatever
 * its status, writes to no memory of the host any more. */
typedef struct forgelm_collective forgelm_collective;
struct forgelm_collective {
    uint32_t struct_size;
    uint32_t reserved;
    void *plugin_data;

    /* Leaves the others. May wait for them, but not for ever; after a failure it does not wait.
     * Thread:    that of create.
     * Ownership: takes the instance. What split made of it is destroyed before.
     * Errors:    none.
     * Since:     1.0 */
    void (*destroy)(const forgelm_collective *collective) FORGELM_NOEXCEPT;

    /* This process among them, counted from 0.
     * Thread:    that of create.
     * Ownership: nothing changes hands.
     * Errors:    none.
     * Since:     1.0 */
    uint32_t (*rank)(const forgelm_collective *collective) FORGELM_NOEXCEPT;

    /* Number of processes, p; at least 1.
     * Thread:    that of create.
     * Ownership: nothing changes hands.
     * Errors:    none.
     * Since:     1.0 */
    uint32_t (*size)(const forgelm_collective *collective) FORGELM_NOEXCEPT;

    /* The library that carries the bytes, with its version, for records and messages.
     * Thread:    that of create.
     * Ownership: the plugin's; lives as long as the instance.
     * Errors:    none.
     * Since:     1.0 */
    const char *(*library)(const forgelm_collective *collective) FORGELM_NOEXCEPT;

    /* Each process gives each other one a part of its own. sent: for each rank in turn as many
     * bytes as sent_bytes [p] says. received, written: from each rank in turn as many as
     * received_bytes [p] says, which is what that rank sends to this one; both may be 0.
     * Thread:    that of create.
     * Ownership: everything is borrowed for the call; sent and received do not overlap.
     * Errors:    FORGELM_E_DEADLINE and any other; what was received is then not to be used.
     * Since:     1.0 */
    forgelm_status (*all_to_all)(const forgelm_collective *collective, const void *sent,
                                 const size_t *sent_bytes, void *received,
                                 const size_t *received_bytes, uint64_t deadline_ms,
                                 forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Every process gets what each one gives. n_bytes [p] is the same on every rank. own: as many
     * bytes as it says of this rank. all, written: the bytes of each rank in turn.
     * Thread:    that of create.
     * Ownership: everything is borrowed for the call; own and all do not overlap.
     * Errors:    as all_to_all.
     * Since:     1.0 */
    forgelm_status (*all_gather)(const forgelm_collective *collective, const void *own, void *all,
                                 const size_t *n_bytes, uint64_t deadline_ms,
                                 forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Every process gets what the rank root has: bytes [n_bytes] read there, written on the others.
     * Thread:    that of create.
     * Ownership: everything is borrowed for the call.
     * Errors:    as all_to_all.
     * Since:     1.0 */
    forgelm_status (*broadcast)(const forgelm_collective *collective, void *bytes, size_t n_bytes,
                                uint32_t root, uint64_t deadline_ms,
                                forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Waits until every process has come here.
     * Thread:    that of create.
     * Ownership: nothing changes hands.
     * Errors:    as all_to_all.
     * Since:     1.0 */
    forgelm_status (*barrier)(const forgelm_collective *collective, uint64_t deadline_ms,
                              forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Those that give the same color, as an instance of their own, in the order of their ranks
     * here. Every process calls it.
     * Thread:    that of create.
     * Ownership: *out goes to the host, which calls its destroy.
     * Errors:    as all_to_all; *out is untouched.
     * Since:     1.0 */
    forgelm_status (*split)(const forgelm_collective *collective, uint32_t color,
                            uint64_t deadline_ms, const forgelm_collective **out,
                            forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Ends every process of the run, those outside of this instance too, with this exit code. It
     * may return where the library cannot do it, and then the host ends its own process.
     * Thread:    that of create.
     * Ownership: nothing changes hands.
     * Errors:    none.
     * Since:     1.0 */
    void (*abort)(const forgelm_collective *collective, int32_t exit_code) FORGELM_NOEXCEPT;

    /* A table of functions by its id.
     * Thread:    that of create.
     * Ownership: the plugin's; lives as long as the instance.
     * Errors:    NULL if there is none of that id. May be NULL itself.
     * Since:     1.0 */
    const void *(*get_extension)(const forgelm_collective *collective,
                                 const char *id) FORGELM_NOEXCEPT;
};

/* The collectives of a library. */
typedef struct forgelm_collective_factory forgelm_collective_factory;
struct forgelm_collective_factory {
    uint32_t struct_size;
    uint32_t reserved;

    /* Number of collectives.
     * Thread:    any.
     * Ownership: nothing changes hands.
     * Errors:    none.
     * Since:     1.0 */
    uint32_t (*count)(const forgelm_collective_factory *factory) FORGELM_NOEXCEPT;

    /* One of them.
     * Thread:    any.
     * Ownership: the plugin's; constant, lives as long as the library.
     * Errors:    NULL if index is not below count.
     * Since:     1.0 */
    const forgelm_collective_descriptor *(*descriptor)(const forgelm_collective_factory *factory,
                                                       uint32_t index) FORGELM_NOEXCEPT;

    /* Joins the processes that a launcher started, and waits for all of them, without a deadline. A
     * process joins once. Options that are not known are refused, not ignored.
     * Thread:    any; it is the thread of all further calls.
     * Ownership: *out goes to the host, which calls its destroy; the host's table may be kept.
     * Errors:    FORGELM_E_INVALID_ARGUMENT for an option, and any other; *out is untouched.
     * Since:     1.0 */
    forgelm_status (*create)(const forgelm_collective_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_collective **out,
                             forgelm_plugin_error *err) FORGELM_NOEXCEPT;
};

/* ---- host services ------------------------------------------------------------------------ */

#define FORGELM_RNG "forgelm.rng/1"

/* "forgelm.rng/1": random numbers as a function of (seed, step, index), without state, the same on
 * every machine, in any order, from any thread. Number i is the first word of
 * Philox4x32-10(counter = [i low, i high, step low, step high], key), where the key is the first
 * two words of Philox4x32-10(counter = [0x504c5547, 0, 0, 0], key = [seed low, seed high]). */
typedef struct forgelm_rng forgelm_rng;
struct forgelm_rng {
    uint32_t struct_size;
    uint32_t reserved;
    void *service_data;

    /* Numbers first, first + 1, ... to out [n]: 32 random bits each.
     * Thread:    any; several at once.
     * Ownership: out is borrowed for the call.
     * Errors:    none; nothing is written if out is NULL.
     * Since:     1.0 */
    void (*bits)(const forgelm_rng *rng, uint64_t seed, uint64_t step, uint64_t first, size_t n,
                 uint32_t *out) FORGELM_NOEXCEPT;

    /* The same numbers as floats in [0, 1): the upper 24 bits of each, times 2^-24.
     * Thread:    any; several at once.
     * Ownership: out is borrowed for the call.
     * Errors:    none; nothing is written if out is NULL.
     * Since:     1.0 */
    void (*uniform)(const forgelm_rng *rng, uint64_t seed, uint64_t step, uint64_t first, size_t n,
                    float *out) FORGELM_NOEXCEPT;
};

#define FORGELM_KERNELS "forgelm.kernels/1"

/* Which factors of a product are read transposed. The result is always [M, N]. */
#define FORGELM_GEMM_NN 0u /* a [M, K], b [K, N] */
#define FORGELM_GEMM_NT 1u /* a [M, K], b [N, K] */
#define FORGELM_GEMM_TN 2u /* a [K, M], b [K, N] */

/* Whether a result replaces what was there or is added to it. */
#define FORGELM_WRITE_REPLACE 0u
#define FORGELM_WRITE_ADD 1u

/* Work on a range of items. */
typedef struct forgelm_work {
    void *ctx;

    /* Works on items first to end - 1.
     * Thread:    any of the host's or the caller's; several at once, on different items.
     * Ownership: nothing changes hands.
     * Errors:    any status but FORGELM_OK ends the whole work. C++ goes through forgelm::guard.
     * Since:     1.0 */
    forgelm_status (*run)(void *ctx, size_t first, size_t end) FORGELM_NOEXCEPT;
} forgelm_work;

/* A product: c [M, N] = alpha * op(a) op(b), or c += that. */
typedef struct forgelm_gemm {
    uint32_t struct_size;
    uint32_t layout; /* FORGELM_GEMM_... */
    size_t m;
    size_t n;
    size_t k; /* terms of each sum */
    float alpha;
    uint32_t write; /* FORGELM_WRITE_... */
    const float *a;
    const float *b;
    float *c;
} forgelm_gemm;

/* "forgelm.kernels/1": the host's kernel library, on the host's threads.
 *
 * Every function gives the same bits on any number of threads: the order of additions follows from
 * sizes alone. On another kind of machine the last bits of gemm, rms_norm and log_softmax_gather may
 * differ, and those of the others not. The floating-point mode is the default one, whatever the
 * caller's.
 *
 * Several threads may call at once: one of them gets the host's threads, the others work alone
 * meanwhile, and so does a call from inside a forgelm_work. Nothing waits, nothing can hang.
 *
 * Arrays are row-major without gaps, aligned to their numbers. What is written shares no byte with
 * anything else of the call. A NULL where an array has numbers, sizes that no memory has, and
 * arrays that overlap are FORGELM_E_INVALID_ARGUMENT; nothing is written then. */
typedef struct forgelm_kernels forgelm_kernels;
struct forgelm_kernels {
    uint32_t struct_size;
    uint32_t reserved;
    void *service_data;

    /* Runs the work on items 0 to n_items - 1, n_together at a time: the ranges are 0 to
     * n_together, n_together to 2 n_together, ..., the last one shorter, in any order.
     * Thread:    any; several at once.
     * Ownership: the work is borrowed for the call.
     * Errors:    the status of the first range that has one, in the order of items: ranges after it
     *            may not have run. FORGELM_E_INVALID_ARGUMENT if n_together is 0.
     * Since:     1.0 */
    forgelm_status (*parallel_for)(const forgelm_kernels *kernels, size_t n_items,
                                   size_t n_together, const forgelm_work *work,
                                   forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* A product of matrices; sums in float.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT, as above and for a layout or write that is not known.
     * Since:     1.0 */
    forgelm_status (*gemm)(const forgelm_kernels *kernels, const forgelm_gemm *product,
                           forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* y [n] += a * x [n], rounded twice.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT, as above.
     * Since:     1.0 */
    forgelm_status (*axpy)(const forgelm_kernels *kernels, size_t n, float a, const float *x,
                           float *y, forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Sum of x [n] * y [n], in double.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT, as above.
     * Since:     1.0 */
    forgelm_status (*dot)(const forgelm_kernels *kernels, size_t n, const float *x, const float *y,
                          double *out, forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Sum of x [n], in double.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT, as above.
     * Since:     1.0 */
    forgelm_status (*sum)(const forgelm_kernels *kernels, size_t n, const float *x, double *out,
                          forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Sum of the squares of x [n], in double.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT, as above.
     * Since:     1.0 */
    forgelm_status (*sum_of_squares)(const forgelm_kernels *kernels, size_t n, const float *x,
                                     double *out, forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* The largest magnitude of x [n]: 0 of no numbers, NaN if one of them is.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT, as above.
     * Since:     1.0 */
    forgelm_status (*max_abs)(const forgelm_kernels *kernels, size_t n, const float *x, float *out,
                              forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* The smallest of the k largest magnitudes of x [n], and how many are above it: k - n_above of
     * those that equal it belong to the k largest. NaN is above every number.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT, as above and if k is not 1 to n.
     * Since:     1.0 */
    forgelm_status (*top_k_threshold)(const forgelm_kernels *kernels, size_t n, const float *x,
                                      size_t k, float *threshold, size_t *n_above,
                                      forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* y [R, C] = x [R, C] * inv_rms [R] * weight [C], inv_rms = 1 / sqrt(mean(x^2) + eps).
     * inv_rms may be NULL.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT, as above and if there are rows of no numbers.
     * Since:     1.0 */
    forgelm_status (*rms_norm)(const forgelm_kernels *kernels, size_t n_rows, size_t n_cols,
                               const float *x, const float *weight, float eps, float *y,
                               float *inv_rms, forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* logp [R]: the log-probability of labels [R] under the softmax of logits [R, V]; sums in
     * double.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT, as above and for a label that is not below V.
     * Since:     1.0 */
    forgelm_status (*log_softmax_gather)(const forgelm_kernels *kernels, size_t n_rows,
                                         size_t n_vocab, const float *logits,
                                         const uint32_t *labels, float *logp,
                                         forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Bytes of a row of n_cols numbers in a format: nf4, fp4, int8, q8_0, q4_0, q4_1, q4_k, q6_k.
     * nf4 and fp4: two numbers a byte, the earlier one in its upper half, then a float for each 64
     * numbers; int8: a signed byte a number, then a float; the others: blocks as in GGUF.
     * Thread:    any; several at once.
     * Ownership: the text is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT for a format that is not known, and if it has no rows of
     *            that width; *out is untouched.
     * Since:     1.0 */
    forgelm_status (*bytes_per_row)(const forgelm_kernels *kernels, forgelm_str format,
                                    size_t n_cols, size_t *out,
                                    forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* rows [R, C] to bytes [R, bytes per row].
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    as bytes_per_row; and FORGELM_E_INVALID_ARGUMENT for a number that is not finite or
     *            too large for the format: the bytes are then not to be used.
     * Since:     1.0 */
    forgelm_status (*quantize)(const forgelm_kernels *kernels, forgelm_str format, size_t n_rows,
                               size_t n_cols, const float *rows, uint8_t *bytes,
                               forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* bytes [R, bytes per row] to rows [R, C].
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    as bytes_per_row.
     * Since:     1.0 */
    forgelm_status (*dequantize)(const forgelm_kernels *kernels, forgelm_str format, size_t n_rows,
                                 size_t n_cols, const uint8_t *bytes, float *rows,
                                 forgelm_plugin_error *err) FORGELM_NOEXCEPT;
};

/* ---- on a device --------------------------------------------------------------------------- */

#define FORGELM_DEVICE_KERNELS "forgelm.device_kernels/1"

/* How merge_ties elects a sign. */
#define FORGELM_ELECTION_VOTES 0u /* each model has one vote; a draw is plus */
#define FORGELM_ELECTION_SUM 1u   /* that of the weighted sum; zero is plus */

/* DLPack's DLManagedTensor, byte for byte: a tensor that belongs to whoever has it. Any consumer of
 * DLPack may be handed one. */
typedef struct forgelm_managed_tensor forgelm_managed_tensor;
struct forgelm_managed_tensor {
    forgelm_tensor tensor;
    void *manager_ctx;

    /* Gives the memory back, in the order of the stream: work that was put there before may still
     * use it.
     * Thread:    any.
     * Ownership: takes the tensor.
     * Errors:    none.
     * Since:     1.0 */
    void (*deleter)(forgelm_managed_tensor *tensor) FORGELM_NOEXCEPT;
};

/* The models that are merged, on the device. */
typedef struct forgelm_device_models {
    const forgelm_tensor *inputs; /* [n_inputs] tensors [n] float */
    size_t n_inputs;
    const forgelm_tensor *base; /* [n] float; NULL where it is not read */
} forgelm_device_models;

/* Which changes merge_dare drops: element j (of the whole tensor) of model i stays if word j mod 4
 * of Philox4x32-10(counter = [j / 4 low, j / 4 high, i, 0], key) is below kept_below. */
typedef struct forgelm_drop_mask {
    uint32_t key_low;
    uint32_t key_high;
    uint64_t kept_below; /* 2^32 keeps all */
    uint64_t start;      /* place of the first element in its tensor */
} forgelm_drop_mask;

/* "forgelm.device_kernels/1": the device that a run computes on, its memory, its stream, and
 * kernels on it. NULL where the processor computes, and in a process of its own, whose addresses
 * are not the program's.
 *
 * A tensor of the device is a forgelm_tensor whose device is not FORGELM_DEVICE_CPU: its data is an
 * address of the device, and the processor must not follow it. Those that a plugin is given are
 * borrowed for the call; those that it allocates are its own. Row-major without gaps.
 *
 * All work of the program goes through one stream, in order. What a plugin puts on that stream
 * comes after what made its tensors, and before whatever the program does next: nothing needs to
 * wait. Work on another stream must wait for this one by an event, and this one for it. While a
 * plugin is called with tensors of the device, the device's primary context is current on the
 * calling thread. Functions here put work on the stream and return; those that give something to
 * the host wait for it.
 *
 * Every function gives the same bits as the method or the format of that name on the processor.
 *
 * Errors of all functions: FORGELM_E_INVALID_ARGUMENT for a tensor of the host or of another
 * device, for one that was freed or is not the program's, for shapes that do not fit, and where a
 * result overlaps what is read; FORGELM_E_OUT_OF_MEMORY if the device has no more;
 * FORGELM_E_INTERNAL if it failed. Each comes with a text, and nothing is written then. */
typedef struct forgelm_device_kernels forgelm_device_kernels;
struct forgelm_device_kernels {
    uint32_t struct_size;
    uint32_t reserved;
    void *service_data;
    forgelm_device device; /* FORGELM_DEVICE_CUDA, and which one */
    void *stream;          /* CUstream, or cudaStream_t */

    /* Zeros in memory of the run's pool: float or uint8.
     * Thread:    any; several at once.
     * Ownership: *out is the plugin's, which calls its deleter.
     * Errors:    as above; *out is untouched.
     * Since:     1.0 */
    forgelm_status (*allocate)(const forgelm_device_kernels *kernels, forgelm_dtype dtype,
                               int32_t ndim, const int64_t *shape, forgelm_managed_tensor **out,
                               forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Copies numbers of the host to a tensor of as many bytes, of float or uint8.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    as above.
     * Since:     1.0 */
    forgelm_status (*upload)(const forgelm_device_kernels *kernels, const forgelm_tensor *to,
                             const void *from, size_t n_bytes,
                             forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Copies a tensor of float or uint8 to as many bytes of the host. Waits.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    as above.
     * Since:     1.0 */
    forgelm_status (*download)(const forgelm_device_kernels *kernels, void *to,
                               const forgelm_tensor *from, size_t n_bytes,
                               forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Waits for all work of the stream.
     * Thread:    any; several at once.
     * Ownership: nothing changes hands.
     * Errors:    as above.
     * Since:     1.0 */
    forgelm_status (*synchronize)(const forgelm_device_kernels *kernels,
                                  forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* out [n] = sum over models of shares [n_inputs] times inputs; sums in double, in their order.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    as above.
     * Since:     1.0 */
    forgelm_status (*merge_linear)(const forgelm_device_kernels *kernels,
                                   const forgelm_tensor *out, const forgelm_device_models *models,
                                   const double *shares,
                                   forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Of two models: out [n] = a x + b y with coefficients [2], or around the base, if there is
     * one, base + a (x - base) + b (y - base).
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    as above.
     * Since:     1.0 */
    forgelm_status (*merge_slerp)(const forgelm_device_kernels *kernels, const forgelm_tensor *out,
                                  const forgelm_device_models *models, const double *coefficients,
                                  forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* counts [n_inputs, 2^bits]: how many changes of each model have each value of `bits` bits (11
     * at most) above the lowest `shift` of their magnitude, as 31 bits of a float. With prefixes
     * [n_inputs], which may be NULL, only those whose bits above are their model's. Waits.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    as above.
     * Since:     1.0 */
    forgelm_status (*ties_count)(const forgelm_device_kernels *kernels,
                                 const forgelm_device_models *models, const uint32_t *prefixes,
                                 uint32_t shift, uint32_t bits, uint64_t *counts,
                                 forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* Changes whose magnitude, as 31 bits of a float, is below their model's of thresholds
     * [n_inputs] are none; a sign is elected for each element, by one of FORGELM_ELECTION_..., and
     * the mean, by shares [n_inputs], of the changes that have it is added to the base.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    as above.
     * Since:     1.0 */
    forgelm_status (*merge_ties)(const forgelm_device_kernels *kernels, const forgelm_tensor *out,
                                 const forgelm_device_models *models, const uint32_t *thresholds,
                                 const double *shares, uint32_t election,
                                 forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* out [n] = base + sum over models of factors [n_inputs] times the changes that stay.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    as above.
     * Since:     1.0 */
    forgelm_status (*merge_dare)(const forgelm_device_kernels *kernels, const forgelm_tensor *out,
                                 const forgelm_device_models *models, const double *factors,
                                 const forgelm_drop_mask *mask,
                                 forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* rows [R, C] float to bytes [R, bytes per row] uint8, in nf4, fp4 or int8: see
     * forgelm_kernels, whose bytes_per_row says how many. Waits.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    as above; FORGELM_E_INVALID_ARGUMENT for a number that is not finite: the bytes
     *            are then not to be used; FORGELM_E_UNIMPLEMENTED for any other format.
     * Since:     1.0 */
    forgelm_status (*quantize)(const forgelm_device_kernels *kernels, forgelm_str format,
                               const forgelm_tensor *rows, const forgelm_tensor *bytes,
                               forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* bytes [R, bytes per row] uint8 to rows [R, C] float.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    as above, and FORGELM_E_UNIMPLEMENTED as quantize.
     * Since:     1.0 */
    forgelm_status (*dequantize)(const forgelm_device_kernels *kernels, forgelm_str format,
                                 const forgelm_tensor *bytes, const forgelm_tensor *rows,
                                 forgelm_plugin_error *err) FORGELM_NOEXCEPT;
};

#define FORGELM_MERGE_METHOD_ON_DEVICE "forgelm.merge_method_on_device/1"

/* What get_extension of a merge method gives for that id if the method takes tensors of the device.
 * Where the processor computes it gets those of the host, as ever: both must give the same bits. */
typedef struct forgelm_merge_method_on_device {
    uint32_t struct_size;
    uint32_t reserved;

    /* As measure of forgelm_merge_method, of tensors of the device: sums lie on the host.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    any status; the merge ends with the message. May be NULL: the method's own measure
     *            is called, with tensors of the host.
     * Since:     1.0 */
    forgelm_status (*measure)(const forgelm_merge_method *method, size_t pass,
                              const forgelm_merge_piece *piece, double *sums,
                              forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* As merge of forgelm_merge_method, of tensors of the device, out too.
     * Thread:    any; several at once.
     * Ownership: everything is borrowed for the call.
     * Errors:    any status; the merge ends with the message.
     * Since:     1.0 */
    forgelm_status (*merge)(const forgelm_merge_method *method, const forgelm_merge_piece *piece,
                            const forgelm_tensor *out, forgelm_plugin_error *err) FORGELM_NOEXCEPT;
} forgelm_merge_method_on_device;

#define FORGELM_QUANTIZER_ON_DEVICE "forgelm.quantizer_on_device/1"

/* What get_extension of a quantizer gives for that id if it takes tensors of the device. Where the
 * processor computes it gets those of the host, as ever: both must give the same bits. */
typedef struct forgelm_quantizer_on_device {
    uint32_t struct_size;
    uint32_t reserved;

    /* As quantize of forgelm_quantizer, of tensors of the device.
     * Thread:    any; several at once, on different rows.
     * Ownership: everything is borrowed for the call.
     * Errors:    any status.
     * Since:     1.0 */
    forgelm_status (*quantize)(const forgelm_quantizer *quantizer, const forgelm_tensor *rows,
                               const forgelm_tensor *bytes,
                               forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* As dequantize of forgelm_quantizer, of tensors of the device.
     * Thread:    any; several at once, on different rows.
     * Ownership: everything is borrowed for the call.
     * Errors:    any status.
     * Since:     1.0 */
    forgelm_status (*dequantize)(const forgelm_quantizer *quantizer, const forgelm_tensor *bytes,
                                 const forgelm_tensor *rows,
                                 forgelm_plugin_error *err) FORGELM_NOEXCEPT;
} forgelm_quantizer_on_device;

/* ---- host services for evaluators --------------------------------------------------------- */

#define FORGELM_SCORE "forgelm.score/1"
#define FORGELM_GENERATE "forgelm.generate/1"
#define FORGELM_HELD_OUT "forgelm.held_out/1"

/* A text and what follows it, as the model's tokenizer cuts them together. */
typedef struct forgelm_text_pair {
    forgelm_str prompt;     /* not scored */
    forgelm_str completion; /* scored */
} forgelm_text_pair;

/* "forgelm.score/1": log-probabilities of texts under the model. */
typedef struct forgelm_score forgelm_score;
struct forgelm_score {
    uint32_t struct_size;
    uint32_t reserved;
    void *service_data;

    /* Scores n completions: logp_sums [n], in natural logarithms, and n_tokens [n] written. A score
     * does not depend on the other pairs. The tokenizer cuts prompt and completion together, with
     * what it puts before a text and without what it puts after one; the text of a special token is
     * that token. A token that has a byte of the completion is scored, also where it begins in the
     * prompt; the very first token, which nothing stands before, is not.
     * Thread:    the caller's of evaluate.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT for a text that has no tokens to score or is too long
     *            for the model, FORGELM_E_CANCELLED, FORGELM_E_INTERNAL for a model that gives no
     *            numbers; nothing is written then.
     * Since:     1.0 */
    forgelm_status (*score)(const forgelm_score *service, const forgelm_text_pair *pairs, size_t n,
                            double *logp_sums, uint64_t *n_tokens,
                            forgelm_plugin_error *err) FORGELM_NOEXCEPT;
};

/* "forgelm.generate/1": the model's answers. */
typedef struct forgelm_generate forgelm_generate;
struct forgelm_generate {
    uint32_t struct_size;
    uint32_t reserved;
    void *service_data;

    /* Answers n prompts, each into its writer. An answer is a function of prompt and options, and
     * ends at a token that ends a text or a turn, which is not part of it. Options: max_new_tokens
     * (256), temperature (0; 0 always takes the likeliest token), top_p (1), seed (0), and chat
     * (false): whether a prompt is a user's turn in the model's chat template, or a text that goes
     * on, where the text of a special token is that token.
     * Thread:    the caller's of evaluate.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT for an option or a prompt, FORGELM_E_CANCELLED; what
     *            was written is then not to be used.
     * Since:     1.0 */
    forgelm_status (*generate)(const forgelm_generate *service, const forgelm_str *prompts,
                               size_t n, forgelm_str options_json, const forgelm_writer *answers,
                               forgelm_plugin_error *err) FORGELM_NOEXCEPT;
};

/* "forgelm.held_out/1": the records that the run holds out, its validation split. Of a record with
 * several answers it is the one that is preferred; records without one are left out. */
typedef struct forgelm_held_out forgelm_held_out;
struct forgelm_held_out {
    uint32_t struct_size;
    uint32_t reserved;
    void *service_data;

    /* Number of records.
     * Thread:    the caller's of evaluate.
     * Ownership: nothing changes hands.
     * Errors:    none.
     * Since:     1.0 */
    uint64_t (*count)(const forgelm_held_out *service) FORGELM_NOEXCEPT;

    /* Scores records first, first + 1, ... as the run evaluates itself: cut, rendered and masked as
     * in training, over trained tokens. logp_sums [n] and n_tokens [n] written.
     * Thread:    the caller's of evaluate.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT for records that there are not, FORGELM_E_CANCELLED,
     *            FORGELM_E_INTERNAL for a model that gives no numbers; nothing is written then.
     * Since:     1.0 */
    forgelm_status (*score)(const forgelm_held_out *service, uint64_t first, size_t n,
                            double *logp_sums, uint64_t *n_tokens,
                            forgelm_plugin_error *err) FORGELM_NOEXCEPT;

    /* A record as the model reads it, without what the tokenizer puts before a text: what stands
     * before its first trained token, and the rest. Special tokens are there as texts.
     * Thread:    the caller's of evaluate.
     * Ownership: everything is borrowed for the call.
     * Errors:    FORGELM_E_INVALID_ARGUMENT for a record that there is not; nothing is written then.
     * Since:     1.0 */
    forgelm_status (*text)(const forgelm_held_out *service, uint64_t record,
                           const forgelm_writer *prompt, const forgelm_writer *completion,
                           forgelm_plugin_error *err) FORGELM_NOEXCEPT;
};

#ifdef __cplusplus
}
#endif

/* ---- for plugins in C++ ------------------------------------------------------------------- */

#ifdef __cplusplus
#include <exception>
#include <new>
#include <stdexcept>

namespace forgelm {

/* Fills the record, if there is one, and returns the status.
 * Thread:    any.
 * Ownership: the text is copied, cut where it does not fit.
 * Errors:    none.
 * Since:     1.0 */
inline forgelm_status fail(forgelm_plugin_error *err, forgelm_status code,
                           const char *message) noexcept {
    if (err != nullptr) {
        uint32_t n = 0;
        while (message[n] != '\0' && n < sizeof err->message) {
            err->message[n] = message[n];
            ++n;
        }
        err->message_len = n;
        err->code = code;
    }
    return code;
}

/* Runs the body of a function of a table; what it throws becomes a status. std::invalid_argument
 * and std::bad_alloc have statuses of their own, everything else is FORGELM_E_PANIC.
 * Thread:    any.
 * Ownership: nothing changes hands.
 * Errors:    as above; otherwise what the body returns.
 * Since:     1.0 */
template <class Body>
forgelm_status guard(forgelm_plugin_error *err, Body &&body) noexcept {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return fail(err, FORGELM_E_OUT_OF_MEMORY, "out of memory");
    } catch (const std::invalid_argument &thrown) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, thrown.what());
    } catch (const std::exception &thrown) {
        return fail(err, FORGELM_E_PANIC, thrown.what());
    } catch (...) {
        return fail(err, FORGELM_E_PANIC, "an exception without a text");
    }
}

} /* namespace forgelm */
#endif

#endif
