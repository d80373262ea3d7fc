/* A disk that fails on demand: preloaded into a process, it counts the changes made below one directory and makes
 * the one numbered FAULTS_AT fail. Environment (or faults_arm, for a process that forks):
 *
 *   FAULTS_ROOT    the directory; without it nothing happens
 *   FAULTS_AT      number of the operation, from 1; 0: none, only count
 *   FAULTS_ERRNO   the error that it returns; 0: none
 *   FAULTS_HALF    1: a write writes half of its bytes first
 *   FAULTS_KILL    1: the process is killed (SIGKILL) instead of returning
 *   FAULTS_STICKY  1: every later operation fails as well
 *   FAULTS_LOG     file that gets one line "number name path" per operation
 *   FAULTS_RECORD  file that gets every operation with its data, and what goes to standard error, for tests/crash/power.py
 *   FAULTS_FROZEN  1: read-only media: nothing below the directory can be opened for writing, made or removed
 *   FAULTS_CLOCK   seconds added to the time of day
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char root[PATH_MAX];
static long fail_at, count, clock_shift;
static int error_number, half, kills, sticky, frozen, log_fd = -1, record_fd = -1;

#define REAL(result, name, ...) ((result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

void faults_arm(const char *directory, long at, int number_of_error, int halve, int kill_it, int stay) {
    if (!realpath(directory, root)) snprintf(root, sizeof root, "%s", directory);
    fail_at = at, count = 0, error_number = number_of_error, half = halve, kills = kill_it, sticky = stay;
}

__attribute__((constructor)) static void start(void) {
    const char *directory = getenv("FAULTS_ROOT"), *log = getenv("FAULTS_LOG"), *record = getenv("FAULTS_RECORD");
    clock_shift = number("FAULTS_CLOCK");
    if (directory)
        faults_arm(directory, number("FAULTS_AT"), (int)number("FAULTS_ERRNO"), (int)number("FAULTS_HALF"),
                   (int)number("FAULTS_KILL"), (int)number("FAULTS_STICKY"));
    frozen = (int)number("FAULTS_FROZEN");
    if (log) log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (record) record_fd = open(record, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int below(const char *path) {
    size_t length = strlen(root);
    return length && strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int named(const char *path, char *full) {
    char folder[PATH_MAX];
    if (!root[0] || !path) return 0;
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path + 1) : 1, slash ? path : ".");
    if (!realpath(folder, full)) return 0;
    strncat(full, "/", PATH_MAX - strlen(full) - 1);
    strncat(full, slash ? slash + 1 : path, PATH_MAX - strlen(full) - 1);
    return below(full);
}

static int opened(int fd, char *full) {
    char link[64];
    if (!root[0] || fd == log_fd || fd == record_fd) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, full, PATH_MAX - 1);
    if (length < 0) return 0;
    full[length] = 0;
    return below(full);
}

/* 1 when this operation is the one that fails. */
static int due(const char *name, const char *path) {
    char line[PATH_MAX + 64];
    long here = __sync_add_and_fetch(&count, 1);
    if (log_fd >= 0) {
        int length = snprintf(line, sizeof line, "%ld %s %s\n", here, name, path);
        if (REAL(ssize_t, "write", int, const void *, size_t)(log_fd, line, (size_t)length) < 0) return 0;
    }
    return fail_at && (here == fail_at || (sticky && here > fail_at));
}

/* "name offset size path\n" and then `size` bytes of data; nothing when nobody records. */
static void record(const char *name, long long at, size_t size, const char *path, const void *data) {
    char line[PATH_MAX + 64];
    if (record_fd < 0) return;
    int length = snprintf(line, sizeof line, "%s %lld %zu %s\n", name, at, data ? size : 0, path);
    struct iovec parts[2] = {{line, (size_t)length}, {(void *)data, data ? size : 0}};
    if (REAL(ssize_t, "writev", int, const struct iovec *, int)(record_fd, parts, 2) < 0) abort();
}

/* What goes to standard error acknowledges what was stored before it. */
static void said(const void *data, size_t size) {
    record("said", 0, size, "-", data);
    if (log_fd >= 0 && REAL(ssize_t, "write", int, const void *, size_t)(log_fd, "0 said -\n", 9) < 0) abort();
}

static int give_up(void) {
    if (kills) raise(SIGKILL);
    errno = error_number;
    return -1;
}

#define FAULT_FD(name, fd) char path[PATH_MAX]; int broken = opened(fd, path) && due(name, path)
#define FAULT_PATH(name, where) char path[PATH_MAX]; int inside = named(where, path); \
    if (inside && frozen) { errno = EROFS; return -1; } \
    if (inside && due(name, path)) return give_up()

/* What an operation does on success is recorded before it is done: the process may be killed in between. */

ssize_t write(int fd, const void *data, size_t size) {
    FAULT_FD("write", fd);
    ssize_t (*real)(int, const void *, size_t) = REAL(ssize_t, "write", int, const void *, size_t);
    if (fd == 2) said(data, size);
    if (!broken) {
        if (record_fd >= 0 && opened(fd, path)) record("write", lseek(fd, 0, SEEK_CUR), size, path, data);
        return real(fd, data, size);
    }
    ssize_t done = half ? real(fd, data, size / 2) : 0;
    return !kills && !error_number ? done : give_up();
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    FAULT_FD("writev", fd);
    ssize_t (*real)(int, const struct iovec *, int) = REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (!broken) return real(fd, parts, n);
    ssize_t done = half ? real(fd, parts, (n + 1) / 2) : 0;
    return !kills && !error_number ? done : give_up();
}

#define PWRITE(function, offset_type) \
    ssize_t function(int fd, const void *data, size_t size, offset_type at) { \
        FAULT_FD("pwrite", fd); \
        ssize_t (*real)(int, const void *, size_t, offset_type) = \
            REAL(ssize_t, #function, int, const void *, size_t, offset_type); \
        if (!broken) { \
            if (record_fd >= 0 && opened(fd, path)) record("write", at, size, path, data); \
            return real(fd, data, size, at); \
        } \
        ssize_t done = half ? real(fd, data, size / 2, at) : 0; \
        return !kills && !error_number ? done : give_up(); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
    FAULT_FD("fwrite", fileno(file));
    size_t (*real)(const void *, size_t, size_t, FILE *) =
        REAL(size_t, "fwrite", const void *, size_t, size_t, FILE *);
    if (!broken) {
        if (record_fd >= 0 && opened(fileno(file), path)) record("write", -1, size * n, path, data);
        return real(data, size, n, file);
    }
    if (half) real(data, 1, size * n / 2, file), fflush(file);
    give_up();
    return 0;
}

#define SYNC(function) \
    int function(int fd) { \
        FAULT_FD(#function, fd); \
        if (broken) return give_up(); \
        int result = REAL(int, #function, int)(fd); \
        if (record_fd >= 0 && opened(fd, path)) record("sync", 0, 0, path, NULL); \
        return result; \
    }
SYNC(fsync)
SYNC(fdatasync)
int ftruncate(int fd, off_t size) {
    FAULT_FD("ftruncate", fd);
    if (!broken && record_fd >= 0 && opened(fd, path)) record("truncate", size, 0, path, NULL);
    return broken ? give_up() : REAL(int, "ftruncate", int, off_t)(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    FAULT_FD("ftruncate", fd);
    if (!broken && record_fd >= 0 && opened(fd, path)) record("truncate", size, 0, path, NULL);
    return broken ? give_up() : REAL(int, "ftruncate64", int, off64_t)(fd, size);
}

int rename(const char *from, const char *to) {
    FAULT_PATH("rename", to);
    char source[PATH_MAX];
    if (record_fd >= 0 && inside && named(from, source)) record("rename", 0, strlen(source), path, source);
    return REAL(int, "rename", const char *, const char *)(from, to);
}
int unlink(const char *name) {
    FAULT_PATH("unlink", name);
    if (inside) record("unlink", 0, 0, path, NULL);
    return REAL(int, "unlink", const char *)(name);
}
int rmdir(const char *name) {
    FAULT_PATH("rmdir", name);
    return REAL(int, "rmdir", const char *)(name);
}
int mkdir(const char *name, mode_t mode) {
    char full[PATH_MAX]; /* a directory that exists answers EEXIST first, as a read-only file system does */
    struct stat facts;
    if (named(name, full) && stat(full, &facts) == 0) { errno = EEXIST; return -1; }
    FAULT_PATH("mkdir", name);
    if (inside) record("mkdir", 0, 0, path, NULL);
    return REAL(int, "mkdir", const char *, mode_t)(name, mode);
}

#define OPEN(function) \
    int function(const char *name, int flags, ...) { \
        char full[PATH_MAX]; \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags), mode = va_arg(rest, mode_t), va_end(rest); \
        } \
        if (frozen && (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) && named(name, full)) { \
            errno = EROFS; \
            return -1; \
        } \
        if (record_fd >= 0 && (flags & (O_CREAT | O_TRUNC)) && named(name, full)) \
            record(flags & O_TRUNC ? "empty" : "create", 0, 0, full, NULL); \
        return REAL(int, #function, const char *, int, ...)(name, flags, mode); \
    }
OPEN(open)
OPEN(open64)

int access(const char *name, int mode) {
    char full[PATH_MAX];
    if (frozen && (mode & W_OK) && named(name, full)) { errno = EROFS; return -1; }
    return REAL(int, "access", const char *, int)(name, mode);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(int, "clock_gettime", clockid_t, struct timespec *)(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += clock_shift;
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = REAL(int, "gettimeofday", struct timeval *, void *)(now, zone);
    if (result == 0) now->tv_sec += clock_shift;
    return result;
}
time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
