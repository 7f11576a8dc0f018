/* Kills the program at one of its operations on regular files and folders, counted from 1: loaded
 * before the C library (LD_PRELOAD). Of a write, the first half is made.
 *
 * KILL_AT: which one; 0 or not set: none. COUNT_TO: a file that gets their number when the program
 * ends. What the program asks of the system without the C library (a rename that must not replace) is
 * not counted; the operations before and after it are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long n_operations;

/* Whether this is the one. */
static int is_due(void) {
    const char *at = getenv("KILL_AT");
    long n = atomic_fetch_add(&n_operations, 1) + 1;
    return at != NULL && atol(at) == n;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) {
        pause();
    }
}

static int is_regular(int fd) {
    struct stat info;
    return fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *bytes, size_t n) {
    if (is_regular(fd) && is_due()) {
        NEXT(write)(fd, bytes, n / 2);
        die();
    }
    return NEXT(write)(fd, bytes, n);
}

int fsync(int fd) {
    if (is_due()) {
        die();
    }
    return NEXT(fsync)(fd);
}

int fdatasync(int fd) {
    if (is_due()) {
        die();
    }
    return NEXT(fdatasync)(fd);
}

int rename(const char *from, const char *to) {
    if (is_due()) {
        die();
    }
    return NEXT(rename)(from, to);
}

int mkdir(const char *path, mode_t mode) {
    if (is_due()) {
        die();
    }
    return NEXT(mkdir)(path, mode);
}

int unlink(const char *path) {
    if (is_due()) {
        die();
    }
    return NEXT(unlink)(path);
}

int unlinkat(int dir, const char *path, int flags) {
    if (is_due()) {
        die();
    }
    return NEXT(unlinkat)(dir, path, flags);
}

int rmdir(const char *path) {
    if (is_due()) {
        die();
    }
    return NEXT(rmdir)(path);
}

int ftruncate64(int fd, off_t length) {
    if (is_due()) {
        die();
    }
    return NEXT(ftruncate64)(fd, length);
}

__attribute__((destructor)) static void say_how_many(void) {
    const char *path = getenv("COUNT_TO");
    FILE *file = path == NULL ? NULL : fopen(path, "w");
    if (file != NULL) {
        fprintf(file, "%ld\n", atomic_load(&n_operations));
        fclose(file);
    }
}
