/* Makes the emulated device a bad one: loaded before the C library (LD_PRELOAD) into a program that
 * finds the emulated driver.
 *
 * EMULATED_DRIVER: the driver's file. BAD_DEVICE: what is wrong with it: `old` (of a compute
 * capability that no kernel is for), `closed` (it cannot be opened), `driver` (the driver does not
 * start), `wrong` (one of the numbers that come back is wrong), or nothing: `two` (there are two). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *(*look_up)(void *, const char *);
typedef int (*copy_to_host)(void *, uint64_t, size_t, void *);

static copy_to_host right_copy;

static look_up real_dlsym(void) {
    void *found = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34");
    return (look_up)(found ? found : dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5"));
}

static int wrong_copy(void *to, uint64_t from, size_t n, void *stream) {
    int code = right_copy(to, from, n, stream);
    if (code == 0 && n >= 4) {
        ((unsigned char *)to)[3] ^= 0x40; /* of the first number's exponent */
    }
    return code;
}

static int is(const char *kind) {
    const char *bad = getenv("BAD_DEVICE");
    return bad != NULL && strcmp(bad, kind) == 0;
}

/* The program finds the driver's functions by their names. */
void *dlsym(void *library, const char *name) {
    void *found = real_dlsym()(library, name);
    if (found != NULL && is("wrong") && strcmp(name, "cuMemcpyDtoHAsync_v2") == 0) {
        right_copy = (copy_to_host)found;
        return (void *)wrong_copy;
    }
    return found;
}

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("EMULATED_DRIVER");
    void *driver = file ? dlopen(file, RTLD_NOW | RTLD_GLOBAL) : NULL;
    if (driver == NULL) {
        fprintf(stderr, "no emulated driver: %s\n", dlerror());
        exit(99);
    }
    look_up find = real_dlsym();
    void (*set_device)(int, const char *, int, int, uint64_t) = find(driver, "emulator_set_device");
    void (*fail_next)(const char *, int, unsigned) = find(driver, "emulator_fail_next");
    void (*set_stream_mode)(int) = find(driver, "emulator_set_stream_mode");
    set_stream_mode(0); /* work is done at once, so that a wrong number is not made right later */
    if (is("old")) {
        set_device(1, "an old device", 7, 5, (uint64_t)4 << 30);
    } else if (is("two")) {
        set_device(2, "one of two", 9, 0, (uint64_t)4 << 30);
    } else if (is("closed")) {
        fail_next("cuDevicePrimaryCtxRetain", 2, 0); /* CUDA_ERROR_OUT_OF_MEMORY */
    } else if (is("driver")) {
        fail_next("cuInit", 3, 0); /* CUDA_ERROR_NOT_INITIALIZED */
    }
}
