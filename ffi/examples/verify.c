/* Verifies the evidence of a run with public keys that are named, as a stranger would.
 *
 *   cc verify.c $(pkg-config --cflags --libs forgelm) -o verify
 *   ./verify OUT [KEY.pub] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forgelm.h"

int main(int argc, char **argv) {
    char options[4200] = "{\"ignore_environment\": true}";
    forgelm_engine *engine = NULL;
    forgelm_error *error = NULL;
    char *report = NULL;
    forgelm_status status = FORGELM_OK;
    if (argc < 2 || (argc > 2 && (strlen(argv[2]) > 4096 || strpbrk(argv[2], "\"\\") != NULL))) {
        fprintf(stderr, "usage: %s OUT [KEY.pub]\n", argv[0]);
        return FORGELM_CONFIG_ERROR;
    }
    status = forgelm_engine_new(argc > 2 ? options : NULL, &engine, &error);
    if (status == FORGELM_OK) {
        if (argc > 2) snprintf(options, sizeof options, "{\"keys\": [\"%s\"]}", argv[2]);
        status = forgelm_verify(engine, "bundle", argv[1], argc > 2 ? options : NULL, &report, &error);
    }
    if (error != NULL) {
        fprintf(stderr, "%s: %s\n", forgelm_status_name(status), forgelm_error_message(error));
    } else {
        puts(report);
    }
    forgelm_error_free(error);
    forgelm_string_free(report);
    forgelm_engine_free(engine);
    return status;
}
