/* Checks a config file as `forgelm config check FILE` does.
 *
 *   tools/bazelw build //ffi:forgelm
 *   cc -Iffi/include ffi/examples/config_check.c -Lbazel-bin/ffi -lforgelm -o config_check
 *   LD_LIBRARY_PATH=bazel-bin/ffi ./config_check run.yaml
 *
 * Without a file it checks a config of its own, which is valid. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forgelm.h"

static const char example[] = "model:\n"
                              "  name_or_path: some/model\n"
                              "  load_in_4bit: false\n"
                              "data:\n"
                              "  dataset_name_or_path: rows.jsonl\n";

/* The whole file, or NULL. The caller frees it. */
static char *read_file(const char *name, size_t *out_len) {
    FILE *file = fopen(name, "rb");
    char *text = NULL;
    size_t len = 0, capacity = 0, n = 1;
    if (file == NULL) return NULL;
    while (n > 0) {
        if (len == capacity) {
            char *larger = realloc(text, capacity = capacity * 2 + 4096);
            if (larger == NULL) break;
            text = larger;
        }
        n = fread(text + len, 1, capacity - len, file);
        len += n;
    }
    if (ferror(file) || n > 0) {
        free(text);
        text = NULL;
    }
    fclose(file);
    *out_len = len;
    return text;
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "example.yaml";
    size_t len = strlen(example);
    char *text = argc > 1 ? read_file(name, &len) : NULL;
    if (argc > 1 && text == NULL) {
        perror(name);
        return FORGELM_RUNTIME_ERROR;
    }

    size_t n_errors = 0;
    char *report = NULL;
    forgelm_error *error = NULL;
    forgelm_status status = forgelm_config_check(text ? text : example, len, name, &n_errors,
                                                 &report, &error);
    free(text);
    if (status != FORGELM_OK) {
        fprintf(stderr, "%s: %s\n", forgelm_status_name(status), forgelm_error_message(error));
        forgelm_error_free(error);
        return status;
    }
    puts(report);
    forgelm_string_free(report);
    return n_errors == 0 ? FORGELM_OK : FORGELM_CONFIG_ERROR;
}
