/* A C program that uses the library: what it prints is only for a failed run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forgelm.h"

#define CHECK(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

static const char good[] = "model: {name_or_path: some/model, load_in_4bit: false}\n"
                           "data: {dataset_name_or_path: rows.jsonl}\n";
static const char bad[] = "model: {name_or_path: some/model}\n"
                          "data: {dataset_name_or_path: rows.jsonl}\n"
                          "training: {lerning_rate: 0.1}\n";

static void a_valid_config_passes(void) {
    size_t n_errors = 99;
    char *report = NULL;
    forgelm_error *error = NULL;
    CHECK(forgelm_config_check(good, strlen(good), "run.yaml", &n_errors, &report, &error) ==
          FORGELM_OK);
    CHECK(n_errors == 0 && error == NULL);
    CHECK(strstr(report, "\"success\":true") != NULL);
    forgelm_string_free(report);
}

static void a_wrong_key_is_reported_with_its_place(void) {
    size_t n_errors = 0;
    char *report = NULL;
    CHECK(forgelm_config_check(bad, strlen(bad), "run.yaml", &n_errors, &report, NULL) ==
          FORGELM_OK);
    CHECK(n_errors == 1);
    CHECK(strstr(report, "training.lerning_rate") != NULL);
    CHECK(strstr(report, "\"line\":3") != NULL);
    forgelm_string_free(report);
}

static void a_null_argument_is_an_error_and_touches_nothing(void) {
    size_t n_errors = 99;
    char *report = NULL;
    forgelm_error *error = NULL;
    CHECK(forgelm_config_check(good, strlen(good), NULL, &n_errors, &report, &error) ==
          FORGELM_INVALID_ARGUMENT);
    CHECK(n_errors == 99 && report == NULL && error != NULL);
    CHECK(forgelm_error_status(error) == FORGELM_INVALID_ARGUMENT);
    CHECK(strstr(forgelm_error_message(error), "file_name") != NULL);
    forgelm_error_free(error);
}

int main(void) {
    CHECK(forgelm_abi_version() >= FORGELM_ABI_VERSION);
    CHECK(strlen(forgelm_version()) >= 5);
    CHECK(strcmp(forgelm_status_name(FORGELM_INTEGRITY_ERROR), "integrity error") == 0);
    a_valid_config_passes();
    a_wrong_key_is_reported_with_its_place();
    a_null_argument_is_an_error_and_touches_nothing();
    forgelm_error_free(NULL);
    forgelm_string_free(NULL);
    puts("c host: ok");
    return 0;
}
