/* forgelm.h: ForgeLM for C and C++ programs.
 *
 * This header is complete: what is not declared here is not promised. It is written by hand and a
 * test compares it with the library.
 *
 * Rules that hold for every function:
 *   - Text is UTF-8. Where a length is given, no NUL is needed at the end.
 *   - Results come through out-pointers. They stay untouched on failure, and may be NULL where the
 *     comment says so.
 *   - No function prints, ends the process, installs a signal handler, or keeps global state. Calls
 *     work on threads of their own, which are gone when the call returns.
 *   - Options, plans, events and reports are JSON objects; a key that is not known is refused. Their
 *     members only grow. NULL in place of options is all defaults.
 *   - NULL, a handle of another kind, one that was freed and a pointer to anything else are
 *     FORGELM_INVALID_ARGUMENT. Freeing what a call works with does nothing.
 *   - A callback is called on a thread of the call that it was passed to, until that call returns. It
 *     may call everything but what the comment excludes, and must return: no longjmp, no exception.
 *   - Paths are relative to the working directory of the process.
 *   - A bug inside never unwinds into the caller: it becomes FORGELM_PANIC.
 *   - Numbers and meanings of this header are only ever added to.
 *
 * Each function has four marks: Thread, Ownership, Errors, Since. */
#ifndef FORGELM_H
#define FORGELM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when something is added; a change of meaning would be a new header. */
#define FORGELM_ABI_VERSION 1u

/* How a call ended. 0 to 8 are the exit codes of the program. */
typedef int32_t forgelm_status;

#define FORGELM_OK 0               /* done */
#define FORGELM_CONFIG_ERROR 1     /* a config or an input is wrong */
#define FORGELM_RUNTIME_ERROR 2    /* the world refused: disk, network, device */
#define FORGELM_GATE_REJECTED 3    /* the model was judged not good enough */
#define FORGELM_AWAITING_APPROVAL 4 /* the model is staged for a person to approve */
#define FORGELM_CANCELLED 5        /* a dialog was cancelled */
#define FORGELM_INTEGRITY_ERROR 6  /* something was compared and differs */
#define FORGELM_INTERRUPTED 7      /* stopped, with a good checkpoint */
#define FORGELM_NO_RESOURCES 8     /* refused for lack of memory or disk */
#define FORGELM_PANIC 64           /* a bug in ForgeLM; what the call worked on is lost */
#define FORGELM_INVALID_ARGUMENT 65 /* an argument is NULL or not UTF-8 where it may not be */
#define FORGELM_BUSY 66            /* the object is at work, perhaps further up on this thread */

/* Why a call failed: owned by the caller once handed out. */
typedef struct forgelm_error forgelm_error;

/* What calls may know of the world: variables, folders, the network. */
typedef struct forgelm_engine forgelm_engine;

/* A flag that stops the calls that were given it. */
typedef struct forgelm_cancel forgelm_cancel;

/* A model in memory. */
typedef struct forgelm_model forgelm_model;

/* A tensor of DLPack: whoever reads it includes dlpack.h. */
struct DLManagedTensor;

/* Something that happened in a call. Members are only added at the end: read those that struct_size
 * covers. */
typedef struct forgelm_event {
    size_t struct_size;
    const char *name;  /* "started", "step", "evaluation", "checkpoint", "sample", "notice", ... */
    const char *json;  /* {"event": name, ...}, all that is known */
    uint64_t step;     /* optimizer steps done */
    uint64_t n_steps;  /* of the run; 0 until it starts */
    double loss;       /* of the last step; NaN before the first */
} forgelm_event;

/* Gets each event, which lives until it returns. Anything but 0 stops the call as a cancel does. */
typedef int32_t (*forgelm_event_fn)(void *user, const forgelm_event *event);

/* Gets a piece of the answer to prompt number `prompt`, ended by NUL, which lives until it returns.
 * Anything but 0 ends that answer. */
typedef int32_t (*forgelm_piece_fn)(void *user, size_t prompt, const char *piece);

/* The version of the library, such as "0.1.0".
 * Thread:    any.
 * Ownership: the library's; never freed.
 * Errors:    none.
 * Since:     0.1 */
const char *forgelm_version(void);

/* FORGELM_ABI_VERSION of the library, to compare with the header's at start.
 * Thread:    any.
 * Ownership: nothing changes hands.
 * Errors:    none.
 * Since:     0.1 */
uint32_t forgelm_abi_version(void);

/* The name of a status, such as "integrity error"; "unknown status" for other numbers.
 * Thread:    any.
 * Ownership: the library's; never freed.
 * Errors:    none.
 * Since:     0.1 */
const char *forgelm_status_name(forgelm_status status);

/* Checks the text of a config: keys, types, ranges, rules between keys. It opens no file.
 *
 * A config with problems is a result, not a failure: the call is FORGELM_OK and *out_n_errors says
 * how many errors there are; 0 means that the config is valid.
 *
 *   text, text_len   the YAML
 *   file_name        how messages call it, ended by NUL; nothing is opened
 *   out_n_errors     number of errors; may be NULL
 *   out_report       JSON, ended by NUL; may be NULL:
 *                    {"success": bool, "file": text, "problems": [{"severity": "error" | "warning"
 *                    | "note", "code", "line", "column", "key", "message", "found", "expected",
 *                    "hint"}]}, where absent parts are null
 *   out_error        why the call failed; may be NULL
 *
 * Thread:    any; calls do not share anything.
 * Ownership: *out_report goes to the caller, who calls forgelm_string_free; *out_error goes to the
 *            caller, who calls forgelm_error_free; the inputs are borrowed for the call.
 * Errors:    FORGELM_INVALID_ARGUMENT if text is NULL with a length, or file_name is NULL or not
 *            UTF-8. Text that is not UTF-8 is a problem in the report.
 * Since:     0.1 */
forgelm_status forgelm_config_check(const char *text, size_t text_len, const char *file_name,
                                    size_t *out_n_errors, char **out_report,
                                    forgelm_error **out_error);

/* A config with every default filled in, as JSON, secrets masked.
 * Thread:    any.
 * Ownership: *out_config goes to the caller, who calls forgelm_string_free.
 * Errors:    FORGELM_CONFIG_ERROR with every problem in the details.
 * Since:     0.1 */
forgelm_status forgelm_config_resolve(const char *text, size_t text_len, const char *file_name,
                                      char **out_config, forgelm_error **out_error);

/* The JSON schema of configs, as `forgelm config schema` prints it.
 * Thread:    any.
 * Ownership: *out_schema goes to the caller, who calls forgelm_string_free.
 * Errors:    none.
 * Since:     0.1 */
forgelm_status forgelm_config_schema(char **out_schema, forgelm_error **out_error);

/* Makes an engine. It holds no thread and no file; any number may exist.
 *
 *   options     {"operator": who is named in the evidence, "offline": bool, "config_dir": where a
 *               signing key is made and found, "cache_dir": where models are kept, "plugin_path":
 *               [folders and files], "program": path of the forgelm program, which plugins then run
 *               in, "environment": {name: text or null} seen in place of the process's variables,
 *               "ignore_environment": true to see no others}; NULL: all as the program has it.
 *               Plugins that ship with ForgeLM are found in ../lib/forgelm or beside the library.
 *   out_engine  the engine
 *
 * Thread:    any. Variables are read when calls begin: do not change them meanwhile.
 * Ownership: *out_engine goes to the caller, who calls forgelm_engine_free.
 * Errors:    FORGELM_CONFIG_ERROR for options that are not these.
 * Since:     0.1 */
forgelm_status forgelm_engine_new(const char *options, forgelm_engine **out_engine,
                                  forgelm_error **out_error);

/* What the library is and sees: version, abi_version, kernels, n_threads, folders.
 * Thread:    any.
 * Ownership: *out_info goes to the caller, who calls forgelm_string_free.
 * Errors:    none beyond wrong arguments.
 * Since:     0.1 */
forgelm_status forgelm_engine_info(const forgelm_engine *engine, char **out_info,
                                   forgelm_error **out_error);

/* Frees an engine. Models that were loaded with it stay. NULL is fine.
 * Thread:    any; once, while no call uses it.
 * Ownership: takes the engine.
 * Errors:    none.
 * Since:     0.1 */
void forgelm_engine_free(forgelm_engine *engine);

/* Makes a flag that is down.
 * Thread:    any.
 * Ownership: *out_cancel goes to the caller, who calls forgelm_cancel_free.
 * Errors:    none beyond wrong arguments.
 * Since:     0.1 */
forgelm_status forgelm_cancel_new(forgelm_cancel **out_cancel, forgelm_error **out_error);

/* Raises the flag for good. Calls that were given it end soon: training after its step, with a good
 * checkpoint, as FORGELM_INTERRUPTED. NULL is fine.
 * Thread:    any, and in a signal handler: it stores one word, and looks at nothing else.
 * Ownership: nothing changes hands.
 * Errors:    none; a flag that was freed is not found out.
 * Since:     0.1 */
void forgelm_cancel_trigger(const forgelm_cancel *cancel);

/* Frees a flag. Calls that were given it go on. NULL is fine.
 * Thread:    any; once, while nobody triggers it.
 * Ownership: takes the flag.
 * Errors:    none.
 * Since:     0.1 */
void forgelm_cancel_free(forgelm_cancel *cancel);

/* What forgelm_train would do with a config: as `forgelm --config FILE --dry-run` and --fit-check
 * print it, the latter under "fit" and not for pipelines. Model files may be fetched.
 * Thread:    any.
 * Ownership: *out_plan goes to the caller, who calls forgelm_string_free.
 * Errors:    FORGELM_CONFIG_ERROR with every problem in the details.
 * Since:     0.1 */
forgelm_status forgelm_plan(const forgelm_engine *engine, const char *text, size_t text_len,
                            const char *file_name, char **out_plan, forgelm_error **out_error);

/* Trains as the config says, to a tuned model with its evidence. Blocks until it ends.
 *
 *   options    {"resume": true for the newest checkpoint, or one's folder, "force_resume": bool,
 *              "offline": bool, "strict_compliance": bool}, and where the config has a `pipeline`
 *              section {"stage", "resume_from": names of stages, "input_model"}; may be NULL
 *   on_event   told what happens; may be NULL. It may not free what was passed to this call.
 *   cancel     stops the run after its step; may be NULL
 *   out_result what `forgelm --config FILE --output-format json` prints, with "exit_code"; may be NULL
 *
 * Thread:    any; several runs at once, in folders of their own.
 * Ownership: *out_result goes to the caller, who calls forgelm_string_free.
 * Errors:    FORGELM_GATE_REJECTED, FORGELM_AWAITING_APPROVAL and FORGELM_INTERRUPTED are ends of a
 *            run: *out_result is there and *out_error is not. Every other status is a failure.
 * Since:     0.1 */
forgelm_status forgelm_train(const forgelm_engine *engine, const char *text, size_t text_len,
                             const char *file_name, const char *options, forgelm_event_fn on_event,
                             void *user, const forgelm_cancel *cancel, char **out_result,
                             forgelm_error **out_error);

/* Merges the models of a config's `merge` section. As forgelm_train, without options.
 * Thread:    any; several at once, in folders of their own.
 * Ownership: *out_result goes to the caller, who calls forgelm_string_free.
 * Errors:    every status but FORGELM_OK is a failure.
 * Since:     0.1 */
forgelm_status forgelm_merge(const forgelm_engine *engine, const char *text, size_t text_len,
                             const char *file_name, forgelm_event_fn on_event, void *user,
                             const forgelm_cancel *cancel, char **out_result,
                             forgelm_error **out_error);

/* Quantizes a model.
 *
 *   request    {"model", "method", "output": a folder that is made, "revision"?, "offline"?,
 *              "options"?: {name: value}, "threads"?, "device"?: "auto" | "cpu" | "cuda:N",
 *              "signing_key"?: a file}
 *
 * Thread:    any; several at once, in folders of their own.
 * Ownership: *out_result goes to the caller, who calls forgelm_string_free.
 * Errors:    every status but FORGELM_OK is a failure.
 * Since:     0.1 */
forgelm_status forgelm_quantize(const forgelm_engine *engine, const char *request,
                                forgelm_event_fn on_event, void *user,
                                const forgelm_cancel *cancel, char **out_result,
                                forgelm_error **out_error);

/* Verifies evidence as a stranger would.
 *
 *   what       "bundle" (a run's folder), "audit_log", "signature" (a signed file), "annex_iv",
 *              "integrity" (a model's folder) or "gguf"
 *   path       the file or folder
 *   options    {"keys": [files of public keys], "trusted_keys": a trust store, "threshold": n,
 *              "allow_unsigned": bool, "require_hmac": bool}; without keys those of the environment
 *              and of this user are trusted; may be NULL
 *   out_report what `forgelm verify-...` prints as JSON; may be NULL
 *
 * Thread:    any.
 * Ownership: *out_report goes to the caller, who calls forgelm_string_free.
 * Errors:    FORGELM_OK: accepted. With a report and no error: FORGELM_INTEGRITY_ERROR, something was
 *            compared and differs; FORGELM_CONFIG_ERROR, it could not be compared;
 *            FORGELM_RUNTIME_ERROR, it could not be read. With an error: a wrong argument.
 * Since:     0.1 */
forgelm_status forgelm_verify(const forgelm_engine *engine, const char *what, const char *path,
                              const char *options, char **out_report, forgelm_error **out_error);

/* Makes a key pair: the private key in a file that only its owner may read, the public one in PATH.pub.
 * Nothing is overwritten.
 *
 *   options    {"label": text, "passphrase_env": a variable that holds the passphrase}; may be NULL
 *   out_key    {"keyid", "is_encrypted", "private_key", "public_key", "public_key_pem"}; may be NULL
 *
 * Thread:    any.
 * Ownership: *out_key goes to the caller, who calls forgelm_string_free.
 * Errors:    FORGELM_CONFIG_ERROR if the file exists.
 * Since:     0.1 */
forgelm_status forgelm_key_generate(const forgelm_engine *engine, const char *path,
                                    const char *options, char **out_key,
                                    forgelm_error **out_error);

/* Signs a file, or a model's folder (model.sig). Runs are signed when they end.
 *
 *   options       {"signing_key": a file}; without it the key is found as a run finds it; may be NULL
 *   out_signature {"path", "type", "signature": the file that was written, "keyid"}; may be NULL
 *
 * Thread:    any.
 * Ownership: *out_signature goes to the caller, who calls forgelm_string_free.
 * Errors:    FORGELM_CONFIG_ERROR if it is signed already, or cannot be.
 * Since:     0.1 */
forgelm_status forgelm_sign(const forgelm_engine *engine, const char *path, const char *options,
                            char **out_signature, forgelm_error **out_error);

/* The plugins that calls of this engine find: {"libraries": [{"name", "version", "path", "sha256",
 * "abi", "bundled", "isolation", "signature", "plugins": [{"kind", "name", "summary"}]}], "broken":
 * [why one cannot be used]}.
 * Thread:    any.
 * Ownership: *out_list goes to the caller, who calls forgelm_string_free.
 * Errors:    FORGELM_CONFIG_ERROR if a place cannot be searched.
 * Since:     0.1 */
forgelm_status forgelm_plugin_list(const forgelm_engine *engine, char **out_list,
                                   forgelm_error **out_error);

/* Loads a model to be asked.
 *
 *   name       a folder, an adapter's folder, a .gguf file, a hub id, or "pypi:NAME==VERSION"
 *   options    {"revision", "adapter": a folder, "offline": bool, "device": "auto" | "cpu" | "cuda:N",
 *              "threads": n, "compute_dtype": "auto" | "float32" | "bfloat16", "chat_template"};
 *              may be NULL
 *   on_event   told of what is fetched and noticed; may be NULL
 *
 * Thread:    any.
 * Ownership: *out_model goes to the caller, who calls forgelm_model_free.
 * Errors:    FORGELM_CONFIG_ERROR if there is no such model, FORGELM_NO_RESOURCES without memory.
 * Since:     0.1 */
forgelm_status forgelm_model_load(const forgelm_engine *engine, const char *name,
                                  const char *options, forgelm_event_fn on_event, void *user,
                                  forgelm_model **out_model, forgelm_error **out_error);

/* What is loaded: name, sha256, n_params, vocab_size, context, has_chat_template, has_adapter,
 * kernels, compute_dtype, n_threads.
 * Thread:    any.
 * Ownership: *out_info goes to the caller, who calls forgelm_string_free.
 * Errors:    none beyond wrong arguments.
 * Since:     0.1 */
forgelm_status forgelm_model_info(const forgelm_model *model, char **out_info,
                                  forgelm_error **out_error);

/* Puts the adapter of a folder on a model, in place of the one that is there; NULL takes it off. The
 * weights stay in memory: this takes milliseconds.
 * Thread:    any.
 * Ownership: nothing changes hands.
 * Errors:    FORGELM_BUSY while somebody asks the model; FORGELM_CONFIG_ERROR if it is no adapter of
 *            this model, which stays as it is.
 * Since:     0.1 */
forgelm_status forgelm_model_set_adapter(const forgelm_model *model, const char *dir,
                                         forgelm_error **out_error);

/* Answers prompts, several at once. An answer does not depend on what else is asked.
 *
 *   request    {"prompts": [{"messages": [{"role", "content"}]} | {"text"} | {"tokens"} | text],
 *              "max_new_tokens": 256, "temperature": 0 (the likeliest token), "top_p": 1, "top_k": 0,
 *              "repetition_penalty": 1, "seed": 0 (prompt i has seed + i), "batch_size": 8}
 *   on_piece   gets text as it comes; may be NULL. It may ask this model, and not change or free it.
 *   cancel     ends all answers; may be NULL
 *   out_answers {"answers": [{"text", "tokens", "n_prompt_tokens", "finish_reason": "stop" | "length"
 *              | "context" | "caller"}]}; may be NULL
 *
 * Thread:    any; callers share the model, each with keys and values of its own.
 * Ownership: *out_answers goes to the caller, who calls forgelm_string_free.
 * Errors:    FORGELM_CONFIG_ERROR for a prompt that cannot be used: nothing has run then;
 *            FORGELM_INTERRUPTED after a cancel.
 * Since:     0.1 */
forgelm_status forgelm_model_generate(const forgelm_model *model, const char *request,
                                      forgelm_piece_fn on_piece, void *user,
                                      const forgelm_cancel *cancel, char **out_answers,
                                      forgelm_error **out_error);

/* Log-probabilities of texts.
 *
 *   request    {"prompts": as for forgelm_model_generate}
 *   out_scores {"scores": [{"tokens", "logprobs": the natural logarithm of the probability of token
 *              i + 1 after those before it, "sum_logprob"}]}; may be NULL
 *
 * Thread:    any.
 * Ownership: *out_scores goes to the caller, who calls forgelm_string_free.
 * Errors:    as forgelm_model_generate.
 * Since:     0.1 */
forgelm_status forgelm_model_score(const forgelm_model *model, const char *request,
                                   const forgelm_cancel *cancel, char **out_scores,
                                   forgelm_error **out_error);

/* Log-probabilities of one text as a tensor: float32 [n_tokens - 1] on the CPU, contiguous.
 *
 *   prompt       {"messages"} | {"text"} | {"tokens"}, or a text as it stands
 *   out_logprobs a DLPack tensor (dlpack.h, version 1)
 *
 * Thread:    any.
 * Ownership: *out_logprobs goes to the caller, who calls its deleter, once.
 * Errors:    as forgelm_model_generate.
 * Since:     0.1 */
forgelm_status forgelm_model_logprobs(const forgelm_model *model, const char *prompt,
                                      const forgelm_cancel *cancel,
                                      struct DLManagedTensor **out_logprobs,
                                      forgelm_error **out_error);

/* The tokens of a prompt: {"tokens": [...]}. Prompts as for forgelm_model_logprobs.
 * Thread:    any.
 * Ownership: *out_tokens goes to the caller, who calls forgelm_string_free.
 * Errors:    FORGELM_CONFIG_ERROR for a prompt that cannot be used.
 * Since:     0.1 */
forgelm_status forgelm_model_encode(const forgelm_model *model, const char *prompt,
                                    char **out_tokens, forgelm_error **out_error);

/* The text of tokens, without control tokens.
 * Thread:    any.
 * Ownership: *out_text goes to the caller, who calls forgelm_string_free.
 * Errors:    FORGELM_INVALID_ARGUMENT if tokens is NULL with a number.
 * Since:     0.1 */
forgelm_status forgelm_model_decode(const forgelm_model *model, const uint32_t *tokens,
                                    size_t n_tokens, char **out_text, forgelm_error **out_error);

/* Frees a model. NULL is fine.
 * Thread:    any; once, while no call uses it.
 * Ownership: takes the model.
 * Errors:    none.
 * Since:     0.1 */
void forgelm_model_free(forgelm_model *model);

/* The status of a failed call.
 * Thread:    any; not while another thread frees it.
 * Ownership: nothing changes hands.
 * Errors:    FORGELM_INVALID_ARGUMENT if error is NULL.
 * Since:     0.1 */
forgelm_status forgelm_error_status(const forgelm_error *error);

/* What went wrong, in one or more lines; "" if error is NULL.
 * Thread:    any; not while another thread frees it.
 * Ownership: the error's; valid until it is freed.
 * Errors:    none.
 * Since:     0.1 */
const char *forgelm_error_message(const forgelm_error *error);

/* What else is known, as JSON: {"problems": [as in forgelm_config_check]} for a config; "{}" if error
 * is NULL.
 * Thread:    any; not while another thread frees it.
 * Ownership: the error's; valid until it is freed.
 * Errors:    none.
 * Since:     0.1 */
const char *forgelm_error_details(const forgelm_error *error);

/* Frees an error. NULL is fine.
 * Thread:    any; once.
 * Ownership: takes the error.
 * Errors:    none.
 * Since:     0.1 */
void forgelm_error_free(forgelm_error *error);

/* Frees a text that the library handed out. NULL is fine.
 * Thread:    any; once.
 * Ownership: takes the text.
 * Errors:    none.
 * Since:     0.1 */
void forgelm_string_free(char *text);

#ifdef __cplusplus
}
#endif

#endif /* FORGELM_H */
