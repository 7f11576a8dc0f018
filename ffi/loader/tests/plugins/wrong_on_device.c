/* The example that works on a device, with one thing wrong there: what it believes to be the driver's
 * copy copies nothing, or ends the process where CRASHES is defined. On the processor it is right. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

static int copies_nothing(uint64_t to, uint64_t from, size_t n_bytes, void *stream) {
    (void)to;
    (void)from;
    (void)n_bytes;
    (void)stream;
#ifdef CRASHES
    abort();
#endif
    return 0;
}

#define dlsym(library, name) ((void *)(uintptr_t)copies_nothing)
#include "../../../examples/merge_on_device.c"
