/* merge_on_device.c: a merge method in C that works on the run's device, against forgelm_plugin.h and
 * the driver's library alone. It gives the last of the models, as it is: on the processor by memcpy,
 * on the device by a copy that it puts on the run's own stream. A kernel of your own goes onto that
 * stream in the same way (cuLaunchKernel), and reads and writes the same addresses.
 *
 * It does without a device, in a process of its own for example: then it gets tensors of the host.
 *
 *     cc -std=c11 -O2 -fPIC -shared -fvisibility=hidden -Wl,-z,defs -Wl,-z,nodelete
 *        -I ffi/include ffi/examples/merge_on_device.c -o merge_on_device.so -ldl
 */
#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "forgelm_plugin.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* cuMemcpyDtoDAsync of the driver: CUresult, CUdeviceptr and CUstream as they are on every machine. */
typedef int (*copy_on_device_fn)(uint64_t to, uint64_t from, size_t n_bytes, void *stream);

typedef struct method {
    forgelm_merge_method table; /* first: a pointer to one is a pointer to the other */
    const forgelm_device_kernels *device; /* NULL where the processor computes */
    copy_on_device_fn copy;
} method;

static forgelm_status fail(forgelm_plugin_error *err, forgelm_status code, const char *message) {
    if (err != NULL) {
        size_t n = strlen(message);
        n = n < sizeof err->message ? n : sizeof err->message;
        memcpy(err->message, message, n);
        err->message_len = (uint32_t)n;
        err->code = code;
    }
    return code;
}

/* ---- on the processor ---- */

static char *first_byte(const forgelm_tensor *tensor) {
    return (char *)tensor->data + tensor->byte_offset;
}

static size_t bytes_of(const forgelm_tensor *tensor) {
    return (size_t)tensor->shape[0] * sizeof(float);
}

static forgelm_status merge(const forgelm_merge_method *table, const forgelm_merge_piece *piece,
                            const forgelm_tensor *out, forgelm_plugin_error *err) {
    (void)table;
    (void)err;
    memcpy(first_byte(out), first_byte(&piece->inputs[piece->n_inputs - 1]), bytes_of(out));
    return FORGELM_OK;
}

/* ---- on the device ---- */

/* By way of a tensor of our own, to show whose it is: its deleter gives it back after the copies that
 * are on the stream by then, so that nothing waits here. */
static forgelm_status merge_on_device(const forgelm_merge_method *table,
                                      const forgelm_merge_piece *piece, const forgelm_tensor *out,
                                      forgelm_plugin_error *err) {
    const method *self = (const method *)table;
    const forgelm_device_kernels *device = self->device;
    const forgelm_tensor *last = &piece->inputs[piece->n_inputs - 1];
    if (last->device.device_type != device->device.device_type ||
        last->device.device_id != device->device.device_id) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "a tensor of another device");
    }
    forgelm_managed_tensor *own = NULL;
    forgelm_status status =
        device->allocate(device, out->dtype, out->ndim, out->shape, &own, err);
    if (status != FORGELM_OK) {
        return status;
    }
    const uint64_t from = (uint64_t)(uintptr_t)first_byte(last);
    const uint64_t between = (uint64_t)(uintptr_t)first_byte(&own->tensor);
    const uint64_t to = (uint64_t)(uintptr_t)first_byte(out);
    int answer = self->copy(between, from, bytes_of(out), device->stream);
    if (answer == 0) {
        answer = self->copy(to, between, bytes_of(out), device->stream);
    }
    own->deleter(own);
    return answer == 0 ? FORGELM_OK : fail(err, FORGELM_E_INTERNAL, "the driver refused a copy");
}

static const forgelm_merge_method_on_device on_device = {sizeof on_device, 0, NULL,
                                                         merge_on_device};

static const void *get_extension(const forgelm_merge_method *table, const char *id) {
    const method *self = (const method *)table;
    const int is_asked = strcmp(id, FORGELM_MERGE_METHOD_ON_DEVICE) == 0;
    return is_asked && self->device != NULL && self->copy != NULL ? &on_device : NULL;
}

/* The driver's copy: where there is a device, the program has opened the driver's library for the whole
 * process. */
static copy_on_device_fn driver_copy(void) {
    void *found = dlsym(RTLD_DEFAULT, "cuMemcpyDtoDAsync_v2");
    copy_on_device_fn copy = NULL;
    memcpy(&copy, &found, sizeof copy);
    return copy;
}

/* ---- the method ---- */

static void destroy(const forgelm_merge_method *table) { free((void *)(uintptr_t)table); }

static const forgelm_merge_method_descriptor descriptors[] = {
    {sizeof(forgelm_merge_method_descriptor), FORGELM_MERGE_SCOPE_ELEMENTS, 1, 64, "last_c",
     "the last of the models", "none: an example", NULL},
};

static void say(const forgelm_host *host, const char *message) {
    const forgelm_str target = {"merge_on_device.c", strlen("merge_on_device.c")};
    const forgelm_str text = {message, strlen(message)};
    host->log(host, FORGELM_LOG_INFO, target, text);
}

static forgelm_status create(const forgelm_merge_method_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json, const double *weights,
                             size_t n_weights, const forgelm_merge_method **out,
                             forgelm_plugin_error *err) {
    (void)factory;
    (void)weights;
    (void)n_weights;
    if (index != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "no merge method has this index");
    }
    if (options_json.len != 2 || memcmp(options_json.ptr, "{}", 2) != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "last_c has no options");
    }
    method *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return fail(err, FORGELM_E_OUT_OF_MEMORY, "out of memory");
    }
    self->table.struct_size = sizeof self->table;
    self->table.destroy = destroy;
    self->table.merge = merge;
    self->table.get_extension = get_extension;
    self->device = host->get_extension(host, FORGELM_DEVICE_KERNELS);
    self->copy = self->device != NULL ? driver_copy() : NULL;
    say(host, self->copy != NULL ? "copies on the device" : "copies on the processor");
    *out = &self->table;
    return FORGELM_OK;
}

static uint32_t count(const forgelm_merge_method_factory *factory) {
    (void)factory;
    return sizeof descriptors / sizeof descriptors[0];
}

static const forgelm_merge_method_descriptor *
descriptor(const forgelm_merge_method_factory *factory, uint32_t index) {
    return index < count(factory) ? &descriptors[index] : NULL;
}

static const forgelm_merge_method_factory factory = {sizeof factory, 0, count, descriptor, create};

static const void *get_factory(const char *id) {
    return strcmp(id, FORGELM_MERGE_METHOD_FACTORY) == 0 ? &factory : NULL;
}

FORGELM_PLUGIN_EXPORT const forgelm_entry forgelm_plugin_entry = {
    FORGELM_PLUGIN_MAGIC,
    FORGELM_PLUGIN_ABI_MAJOR,
    FORGELM_PLUGIN_ABI_MINOR,
    sizeof(forgelm_entry),
    0,
    FORGELM_PLUGIN_LAYOUT_HASH,
    "example-merge-on-device",
    "1.0.0",
    NULL,
    NULL,
    get_factory,
};
