/* forgelm.h: ForgeLM for C and C++ programs.
 *
 * This header is complete: what is not declared here is not promised. It is written by hand and a
 * test compares it with the library.
 *
 * Rules that hold for every function:
 *   - Text is UTF-8. Where a length is given, no NUL is needed at the end.
 *   - Results come through out-pointers. They stay untouched on failure, and may be NULL where the
 *     comment says so.
 *   - No function prints, ends the process, installs a signal handler, or keeps global state.
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

/* Why a call failed: owned by the caller once handed out. */
typedef struct forgelm_error forgelm_error;

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
