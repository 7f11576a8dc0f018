/* Trains a config with a progress bar; Ctrl-C stops after the step, and the same command continues.
 *
 *   cc train.c $(pkg-config --cflags --libs forgelm) -o train
 *   ./train run.yaml [--resume] */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forgelm.h"

static forgelm_cancel *cancel;

static void on_signal(int signal) {
    (void)signal;
    forgelm_cancel_trigger(cancel);
}

static int32_t on_event(void *user, const forgelm_event *event) {
    (void)user;
    if (strcmp(event->name, "step") == 0) {
        int width = 40, done = (int)((double)width * (double)event->step / (double)event->n_steps);
        fprintf(stderr, "\r[%.*s%.*s] step %llu of %llu, loss %.4f ", done,
                "########################################", width - done,
                "........................................", (unsigned long long)event->step,
                (unsigned long long)event->n_steps, event->loss);
    } else if (strcmp(event->name, "warning") == 0) {
        fprintf(stderr, "\n%s\n", event->json);
    }
    return 0;
}

/* The whole file, or NULL. The caller frees it. */
static char *read_file(const char *name, size_t *out_len) {
    FILE *file = fopen(name, "rb");
    char *text = NULL;
    long size = 0;
    if (file == NULL) return NULL;
    if (fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0) {
        text = malloc((size_t)size + 1);
    }
    if (text != NULL && fread(text, 1, (size_t)size, file) != (size_t)size) {
        free(text);
        text = NULL;
    }
    fclose(file);
    *out_len = (size_t)size;
    return text;
}

int main(int argc, char **argv) {
    size_t len = 0;
    char *config = argc > 1 ? read_file(argv[1], &len) : NULL;
    const char *options = argc > 2 && strcmp(argv[2], "--resume") == 0 ? "{\"resume\": true}" : NULL;
    forgelm_engine *engine = NULL;
    forgelm_error *error = NULL;
    char *result = NULL;
    forgelm_status status;
    if (config == NULL) {
        fprintf(stderr, "usage: %s CONFIG [--resume]\n", argv[0]);
        return FORGELM_CONFIG_ERROR;
    }
    status = forgelm_engine_new(NULL, &engine, &error);
    if (status == FORGELM_OK) status = forgelm_cancel_new(&cancel, &error);
    if (status == FORGELM_OK) {
        signal(SIGINT, on_signal);
        status = forgelm_train(engine, config, len, argv[1], options, on_event, NULL, cancel, &result,
                               &error);
        signal(SIGINT, SIG_DFL);
        fputc('\n', stderr);
    }
    if (error != NULL) {
        fprintf(stderr, "%s: %s\n", forgelm_status_name(status), forgelm_error_message(error));
    } else {
        puts(result);
    }
    forgelm_error_free(error);
    forgelm_string_free(result);
    forgelm_cancel_free(cancel);
    forgelm_engine_free(engine);
    free(config);
    return status;
}
