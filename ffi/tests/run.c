/* A C program that trains, stops, continues, verifies, and asks the tuned model. In its working
 * directory are model/ and data.jsonl; what it prints is only for a failed run. */
#define _XOPEN_SOURCE 700
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "forgelm.h"

#define CHECK(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

static const char config[] =
    "model: {name_or_path: model, max_length: 128, load_in_4bit: false}\n"
    "lora: {r: 4, alpha: 8, target_modules: [q_proj, v_proj]}\n"
    "training: {output_dir: out, max_steps: 12, per_device_train_batch_size: 4,\n"
    "           gradient_accumulation_steps: 1, learning_rate: 5e-3, eval_steps: 4, save_steps: 4,\n"
    "           threads: 1, compute_dtype: float32, report_to: none}\n"
    "data: {dataset_name_or_path: data.jsonl}\n";

/* What dlpack.h declares, as far as it is read here. */
struct DLManagedTensor {
    struct {
        void *data;
        struct { int32_t device_type, device_id; } device;
        int32_t ndim;
        struct { uint8_t code, bits; uint16_t lanes; } dtype;
        int64_t *shape, *strides;
        uint64_t byte_offset;
    } dl_tensor;
    void *manager_ctx;
    void (*deleter)(struct DLManagedTensor *);
};

struct seen {
    unsigned steps, checkpoints;
    uint64_t last_step, stop_after;
    double last_loss;
    const forgelm_engine *engine;
};

static int32_t on_event(void *user, const forgelm_event *event) {
    struct seen *seen = user;
    CHECK(event->struct_size >= sizeof *event);
    CHECK(strstr(event->json, "\"event\"") != NULL);
    seen->steps += strcmp(event->name, "step") == 0;
    seen->checkpoints += strcmp(event->name, "checkpoint") == 0;
    if (strcmp(event->name, "step") == 0) {
        CHECK(event->n_steps == 12 && event->step > seen->last_step);
        CHECK(isfinite(event->loss));
        seen->last_step = event->step;
        seen->last_loss = event->loss;
    }
    if (seen->engine != NULL && strcmp(event->name, "step") == 0) {
        /* a callback may call everything but what works on its own call */
        char *info = NULL;
        CHECK(forgelm_engine_info(seen->engine, &info, NULL) == FORGELM_OK);
        forgelm_string_free(info);
    }
    return seen->stop_after != 0 && event->step >= seen->stop_after;
}

static forgelm_status train(const forgelm_engine *engine, const char *options, struct seen *seen,
                            const forgelm_cancel *cancel, char **result) {
    forgelm_error *error = NULL;
    forgelm_status status = forgelm_train(engine, config, strlen(config), "run.yaml", options,
                                          on_event, seen, cancel, result, &error);
    if (error != NULL) fprintf(stderr, "%s\n", forgelm_error_message(error));
    CHECK(error == NULL);
    return status;
}

static void it_trains_stops_and_goes_on(const forgelm_engine *engine) {
    struct seen first = {0}, second = {0};
    char *result = NULL;
    first.engine = engine;
    first.stop_after = 5;
    CHECK(train(engine, NULL, &first, NULL, &result) == FORGELM_INTERRUPTED);
    CHECK(strstr(result, "\"step\":5") != NULL && strstr(result, "\"exit_code\":7") != NULL);
    forgelm_string_free(result);
    CHECK(first.steps == 5 && first.checkpoints >= 1);

    CHECK(train(engine, "{\"resume\": true}", &second, NULL, &result) == FORGELM_OK);
    CHECK(strstr(result, "\"success\":true") != NULL);
    forgelm_string_free(result);
    CHECK(second.steps == 7 && second.last_step == 12);
}

static void a_flag_stops_a_run_before_its_first_step(const forgelm_engine *engine) {
    struct seen seen = {0};
    forgelm_cancel *cancel = NULL;
    forgelm_error *error = NULL;
    char *result = NULL;
    char other[sizeof config + 8];
    char *place = NULL;
    forgelm_status status;
    CHECK(forgelm_cancel_new(&cancel, NULL) == FORGELM_OK);
    forgelm_cancel_trigger(cancel);
    strcpy(other, config);
    place = strstr(other, "output_dir: out");
    memcpy(place, "output_dir: two", strlen("output_dir: two"));
    status = forgelm_train(engine, other, strlen(other), "two.yaml", NULL, on_event, &seen, cancel,
                           &result, &error);
    CHECK(status == FORGELM_INTERRUPTED && seen.steps == 0);
    forgelm_string_free(result);
    forgelm_error_free(error);
    forgelm_cancel_free(cancel);
}

static const forgelm_cancel *of_signal;
static volatile sig_atomic_t n_signals;

static void on_signal(int number) {
    (void)number;
    n_signals = n_signals + 1;
    if (n_signals == 20) forgelm_cancel_trigger(of_signal);
}

/* Each signal interrupts what the system is asked for just then. */
static void a_signal_stops_a_run_and_handlers_stay_the_hosts(const forgelm_engine *engine) {
    static const char yaml[] =
        "model: {name_or_path: model, max_length: 128, load_in_4bit: false}\n"
        "lora: {r: 4, target_modules: [q_proj]}\n"
        "training: {output_dir: three, max_steps: 100000, save_steps: 20, threads: 1,\n"
        "           report_to: none}\n"
        "data: {dataset_name_or_path: data.jsonl}\n";
    const struct itimerval every = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
    struct sigaction mine, found, interrupt, terminate;
    forgelm_cancel *cancel = NULL;
    char *result = NULL;
    CHECK(forgelm_cancel_new(&cancel, NULL) == FORGELM_OK);
    of_signal = cancel;
    CHECK(sigaction(SIGINT, NULL, &interrupt) == 0 && sigaction(SIGTERM, NULL, &terminate) == 0);
    memset(&mine, 0, sizeof mine);
    mine.sa_handler = on_signal;
    CHECK(sigaction(SIGALRM, &mine, NULL) == 0 && setitimer(ITIMER_REAL, &every, NULL) == 0);
    CHECK(forgelm_train(engine, yaml, strlen(yaml), "three.yaml", NULL, NULL, NULL, cancel, &result,
                        NULL) == FORGELM_INTERRUPTED);
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0 && n_signals >= 20);
    CHECK(strstr(result, "\"exit_code\":7") != NULL);
    CHECK(sigaction(SIGALRM, NULL, &found) == 0 && found.sa_handler == on_signal);
    CHECK(sigaction(SIGINT, NULL, &found) == 0 && found.sa_handler == interrupt.sa_handler);
    CHECK(sigaction(SIGTERM, NULL, &found) == 0 && found.sa_handler == terminate.sa_handler);
    forgelm_string_free(result);
    forgelm_cancel_free(cancel);
}

static void evidence_is_verified_and_a_change_is_found(const forgelm_engine *engine) {
    char *report = NULL;
    FILE *file = NULL;
    CHECK(forgelm_verify(engine, "bundle", "out", NULL, &report, NULL) == FORGELM_OK);
    CHECK(strstr(report, "\"success\":true") != NULL);
    forgelm_string_free(report);
    CHECK(forgelm_verify(engine, "audit_log", "out", NULL, NULL, NULL) == FORGELM_OK);
    CHECK(forgelm_verify(engine, "integrity", "out/final_model", NULL, NULL, NULL) == FORGELM_OK);
    CHECK(forgelm_verify(engine, "annex_iv", "nowhere.json", NULL, NULL, NULL) != FORGELM_OK);
    file = fopen("out/metrics.jsonl", "ab");
    CHECK(file != NULL && fputs("{}\n", file) >= 0 && fclose(file) == 0);
    CHECK(forgelm_verify(engine, "bundle", "out", NULL, &report, NULL) == FORGELM_INTEGRITY_ERROR);
    CHECK(strstr(report, "metrics.jsonl") != NULL);
    forgelm_string_free(report);
}

static const char request[] =
    "{\"prompts\": [{\"messages\": [{\"role\": \"user\", \"content\": \"What is item 4?\"}]},"
    " \"Item 7 is\"], \"max_new_tokens\": 12}";

struct pieces {
    char text[2][256];
    unsigned n;
    const forgelm_model *model;
    forgelm_status busy;
};

static int32_t on_piece(void *user, size_t prompt, const char *piece) {
    struct pieces *pieces = user;
    CHECK(prompt < 2);
    strncat(pieces->text[prompt], piece, sizeof pieces->text[0] - strlen(pieces->text[prompt]) - 1);
    if (pieces->n++ == 0) {
        /* at work: it stays */
        forgelm_model_free((forgelm_model *)(uintptr_t)pieces->model);
        pieces->busy = forgelm_model_set_adapter(pieces->model, NULL, NULL);
    }
    return 0;
}

static void tensors_and_tokens_come_out(const forgelm_model *model) {
    static const uint32_t tokens[] = {5, 6, 7};
    struct DLManagedTensor *tensor = NULL;
    char *text = NULL, *encoded = NULL;
    forgelm_error *error = NULL;
    CHECK(forgelm_model_logprobs(model, "{\"tokens\": [5, 6, 7]}", NULL, &tensor, NULL) ==
          FORGELM_OK);
    CHECK(tensor->dl_tensor.ndim == 1 && tensor->dl_tensor.shape[0] == 2);
    CHECK(tensor->dl_tensor.device.device_type == 1 && tensor->dl_tensor.dtype.bits == 32);
    CHECK(((float *)tensor->dl_tensor.data)[1] < 0.0f);
    tensor->deleter(tensor);
    CHECK(forgelm_model_encode(model, "Item 7", &encoded, NULL) == FORGELM_OK);
    CHECK(strstr(encoded, "\"tokens\":[") != NULL);
    forgelm_string_free(encoded);
    CHECK(forgelm_model_decode(model, tokens, 3, &text, NULL) == FORGELM_OK && text != NULL);
    forgelm_string_free(text);
    CHECK(forgelm_model_decode(model, NULL, 3, &text, &error) == FORGELM_INVALID_ARGUMENT);
    forgelm_error_free(error);
}

static void a_tuned_model_answers_and_its_adapter_can_be_changed(const forgelm_engine *engine) {
    forgelm_model *model = NULL;
    struct pieces pieces = {{{0}, {0}}, 0, NULL, FORGELM_OK};
    char *tuned = NULL, *base = NULL, *again = NULL, *scores = NULL, *info = NULL;
    forgelm_error *error = NULL;
    CHECK(forgelm_model_load(engine, "model", "{\"threads\": 1, \"adapter\": \"out/final_model\"}",
                             NULL, NULL, &model, NULL) == FORGELM_OK);
    CHECK(forgelm_model_info(model, &info, NULL) == FORGELM_OK);
    CHECK(strstr(info, "\"has_adapter\":true") != NULL);
    forgelm_string_free(info);
    pieces.model = model;
    CHECK(forgelm_model_generate(model, request, on_piece, &pieces, NULL, &tuned, NULL) ==
          FORGELM_OK);
    CHECK(pieces.n > 0 && pieces.busy == FORGELM_BUSY);
    CHECK(strstr(tuned, "\"finish_reason\"") != NULL);
    CHECK(forgelm_model_score(model, "{\"prompts\": [{\"tokens\": [5, 6, 7]}]}", NULL, &scores,
                              NULL) == FORGELM_OK);
    CHECK(strstr(scores, "\"sum_logprob\":-") != NULL);
    forgelm_string_free(scores);

    tensors_and_tokens_come_out(model);

    CHECK(forgelm_model_set_adapter(model, NULL, NULL) == FORGELM_OK);
    CHECK(forgelm_model_generate(model, request, NULL, NULL, NULL, &base, NULL) == FORGELM_OK);
    CHECK(strcmp(base, tuned) != 0);
    CHECK(forgelm_model_set_adapter(model, "data.jsonl", &error) == FORGELM_CONFIG_ERROR ||
          forgelm_error_status(error) != FORGELM_OK);
    forgelm_error_free(error);
    CHECK(forgelm_model_set_adapter(model, "out/final_model", NULL) == FORGELM_OK);
    CHECK(forgelm_model_generate(model, request, NULL, NULL, NULL, &again, NULL) == FORGELM_OK);
    CHECK(strcmp(again, tuned) == 0);
    forgelm_string_free(tuned);
    forgelm_string_free(base);
    forgelm_string_free(again);

    error = NULL;
    CHECK(forgelm_model_generate(model, "{\"prompts\": [{\"tokens\": [99999]}]}", NULL, NULL, NULL,
                                 NULL, &error) == FORGELM_CONFIG_ERROR);
    CHECK(strstr(forgelm_error_message(error), "99999") != NULL);
    forgelm_error_free(error);
    forgelm_model_free(model);
}

static void wrong_handles_options_and_texts_are_refused(const forgelm_engine *engine) {
    forgelm_error *error = NULL;
    forgelm_engine *made = NULL;
    char *out = NULL;
    static const char not_utf8[] = "\xff\xfe";
    CHECK(forgelm_engine_new("{\"operater\": \"x\"}", &made, &error) == FORGELM_CONFIG_ERROR);
    CHECK(strstr(forgelm_error_message(error), "`operater`") != NULL && made == NULL);
    forgelm_error_free(error);
    error = NULL;
    CHECK(forgelm_engine_new(not_utf8, &made, &error) == FORGELM_INVALID_ARGUMENT);
    forgelm_error_free(error);
    error = NULL;
    CHECK(forgelm_engine_info(NULL, &out, &error) == FORGELM_INVALID_ARGUMENT && out == NULL);
    forgelm_error_free(error);
    error = NULL;
    CHECK(forgelm_model_info((const forgelm_model *)(const void *)engine, &out, &error) ==
          FORGELM_INVALID_ARGUMENT);
    CHECK(strstr(forgelm_error_message(error), "is no forgelm_model") != NULL);
    forgelm_error_free(error);
    error = NULL;
    CHECK(forgelm_engine_info((const forgelm_engine *)(const void *)&error, &out, &error) ==
          FORGELM_INVALID_ARGUMENT);
    forgelm_error_free(error);
    error = NULL;
    CHECK(forgelm_engine_new(NULL, &made, NULL) == FORGELM_OK);
    forgelm_model_free((forgelm_model *)(void *)made);
    CHECK(forgelm_engine_info(made, &out, NULL) == FORGELM_OK);
    forgelm_string_free(out);
    out = NULL;
    forgelm_engine_free(made);
    forgelm_engine_free(made);
    CHECK(forgelm_engine_info(made, &out, &error) == FORGELM_INVALID_ARGUMENT && out == NULL);
    made = NULL;
    forgelm_error_free(error);
    error = NULL;
    CHECK(forgelm_train(engine, "model: 3", 8, "bad.yaml", NULL, NULL, NULL, NULL, NULL, &error) ==
          FORGELM_CONFIG_ERROR);
    CHECK(strstr(forgelm_error_details(error), "\"problems\":[{") != NULL);
    forgelm_error_free(error);
    error = NULL;
    CHECK(forgelm_verify(engine, "everything", ".", NULL, NULL, &error) == FORGELM_CONFIG_ERROR);
    forgelm_error_free(error);
    error = NULL;
    CHECK(forgelm_quantize(engine, "{\"model\": \"model\"}", NULL, NULL, NULL, NULL, &error) ==
          FORGELM_CONFIG_ERROR);
    CHECK(strstr(forgelm_error_message(error), "is missing") != NULL);
    forgelm_error_free(error);
    forgelm_engine_free(NULL);
    forgelm_cancel_free(NULL);
    forgelm_cancel_trigger(NULL);
    forgelm_model_free(NULL);
}

static void keys_signatures_and_lists(const forgelm_engine *engine) {
    char *made = NULL, *list = NULL;
    FILE *file = fopen("note.json", "wb");
    forgelm_error *error = NULL;
    CHECK(file != NULL && fputs("{}", file) >= 0 && fclose(file) == 0);
    CHECK(forgelm_key_generate(engine, "own.key", "{\"label\": \"host\"}", &made, NULL) ==
          FORGELM_OK);
    CHECK(strstr(made, "BEGIN PUBLIC KEY") != NULL);
    forgelm_string_free(made);
    CHECK(forgelm_key_generate(engine, "own.key", NULL, NULL, NULL) != FORGELM_OK);
    CHECK(forgelm_sign(engine, "note.json", "{\"signing_key\": \"own.key\"}", &made, NULL) ==
          FORGELM_OK);
    CHECK(strstr(made, "note.json.dsse.json") != NULL);
    forgelm_string_free(made);
    CHECK(forgelm_verify(engine, "signature", "note.json", "{\"keys\": [\"own.key.pub\"]}", NULL,
                         NULL) == FORGELM_OK);
    CHECK(forgelm_verify(engine, "signature", "note.json", NULL, NULL, NULL) != FORGELM_OK);
    CHECK(forgelm_plugin_list(engine, &list, NULL) == FORGELM_OK);
    CHECK(strstr(list, "\"name\":\"sft\"") != NULL && strstr(list, "\"broken\":[]") != NULL);
    forgelm_string_free(list);
    CHECK(forgelm_config_resolve(config, strlen(config), "run.yaml", &made, NULL) == FORGELM_OK);
    CHECK(strstr(made, "\"warmup_ratio\"") != NULL);
    forgelm_string_free(made);
    CHECK(forgelm_config_resolve("model: 3", 8, "run.yaml", &made, &error) == FORGELM_CONFIG_ERROR);
    forgelm_error_free(error);
    CHECK(forgelm_config_schema(&made, NULL) == FORGELM_OK);
    CHECK(strstr(made, "\"properties\"") != NULL);
    forgelm_string_free(made);
}

static void a_model_is_quantized(const forgelm_engine *engine) {
    char *result = NULL;
    CHECK(forgelm_quantize(engine,
                           "{\"model\": \"model\", \"method\": \"nf4\", \"output\": \"small\", "
                           "\"threads\": 1}",
                           NULL, NULL, NULL, &result, NULL) == FORGELM_OK);
    CHECK(strstr(result, "\"output_dir\":\"small\"") != NULL);
    forgelm_string_free(result);
}

int main(void) {
    forgelm_engine *engine = NULL;
    char *plan = NULL;
    CHECK(forgelm_engine_new("{\"operator\": \"host@test\", \"offline\": true, \"config_dir\": "
                             "\"home\", \"cache_dir\": \"cache\"}",
                             &engine, NULL) == FORGELM_OK);
    CHECK(forgelm_plan(engine, config, strlen(config), "run.yaml", &plan, NULL) == FORGELM_OK);
    CHECK(strstr(plan, "\"fit\"") != NULL);
    forgelm_string_free(plan);
    it_trains_stops_and_goes_on(engine);
    a_flag_stops_a_run_before_its_first_step(engine);
    a_signal_stops_a_run_and_handlers_stay_the_hosts(engine);
    a_tuned_model_answers_and_its_adapter_can_be_changed(engine);
    a_model_is_quantized(engine);
    keys_signatures_and_lists(engine);
    evidence_is_verified_and_a_change_is_found(engine);
    wrong_handles_options_and_texts_are_refused(engine);
    forgelm_engine_free(engine);
    puts("run: ok");
    return 0;
}
