/* Put in front of libc (LD_PRELOAD): sees every call that changes a state directory, and can end or fail it at a chosen one.

   A "point" is (program, call, path, n): the n-th time that a program of the agent makes this call on this path. Paths are relative
   to the state directory; long hexadecimal runs and random temporary names are written as # so that two runs name a point alike.
   Everything is told through one small shared file (struct control), so that the points of a whole process tree share one counter. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OFF = 0, KILL_BEFORE = 1, KILL_AFTER = 2, KILL_SELF = 3, KILL_TORN = 4, FAIL_FROM = 5 };
enum { WRITES = 1, CREATES = 2, REMOVES = 4, SYNCS = 8 }; /* kinds of calls; control.kinds says which of them fail */

struct control {
    uint32_t mode, occurrence, matched, fired, error, kinds;
    int32_t root; /* the agent's process; its children die with it */
    uint32_t pad;
    char role[32], call[32], path[448];
    char folder[512], log[512];
};

static struct control *control;
static char role[32];

void covey_shim_begin(const char *control_path, const char *program, int is_root) {
    int fd = (int)syscall(SYS_openat, AT_FDCWD, control_path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) _exit(99);
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (control == MAP_FAILED) _exit(99);
    snprintf(role, sizeof role, "%s", program);
    if (is_root) control->root = (int32_t)getpid();
}

void covey_shim_role(const char *program) { snprintf(role, sizeof role, "%s", program); }

/* The path relative to the state directory with what is random in it replaced; NULL if it lies elsewhere. */
static const char *point_path(const char *path, char *out, size_t size) {
    size_t skip = strlen(control->folder), n = 0;
    if (strncmp(path, control->folder, skip) != 0 || (path[skip] != '/' && path[skip] != 0)) return NULL;
    const char *p = path + skip;
    if (*p == '/') p++;
    while (*p && n + 2 < size) {
        const char *q = p;
        while (isxdigit((unsigned char)*q)) q++;
        if (q - p >= 16) { out[n++] = '#'; p = q; continue; }
        int at_start = n == 0 || out[n - 1] == '/';
        if (at_start && strncmp(p, "tmp", 3) == 0 && p[3] && p[3] != '/') {
            n += (size_t)snprintf(out + n, size - n, "tmp#");
            while (*p && *p != '/') p++;
            continue;
        }
        out[n++] = *p++;
    }
    out[n] = 0;
    return out;
}

static const char *path_of(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    if (n <= 0) return NULL;
    out[n] = 0;
    return out;
}

static const char *path_at(int dir, const char *path, char *out) {
    if (path[0] == '/') return path;
    char base[PATH_MAX];
    if (dir == AT_FDCWD) { if (!getcwd(base, sizeof base)) return NULL; }
    else if (!path_of(dir, base)) return NULL;
    snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
    return out;
}

static void note(const char *call, const char *path, long long offset, long long length) {
    char line[1200];
    int n = snprintf(line, sizeof line, "%s\t%s\t%s\t%lld\t%lld\n", role, call, path, offset, length);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, control->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return;
    syscall(SYS_write, fd, line, (size_t)n);
    syscall(SYS_close, fd);
}

static void die(int whole) {
    pid_t self = getpid(), root = control->root;
    __atomic_store_n(&control->fired, 1, __ATOMIC_SEQ_CST);
    if (whole && root > 0 && root != self && getppid() == root) syscall(SYS_kill, root, SIGKILL);
    syscall(SYS_kill, self, SIGKILL);
    for (;;) pause();
}

struct verdict { int armed, fail, torn; };

/* What is to become of this call. May not return. */
static struct verdict judge(int kind, const char *call, const char *full, long long offset, long long length) {
    struct verdict verdict = {0, 0, 0};
    char path[512];
    if (!control || !full || !point_path(full, path, sizeof path)) return verdict;
    uint32_t mode = control->mode;
    int hit = 0;
    if (mode != OFF && strcmp(control->role, role) == 0 && strcmp(control->call, call) == 0 && strcmp(control->path, path) == 0) {
        hit = __atomic_add_fetch(&control->matched, 1, __ATOMIC_SEQ_CST) == control->occurrence;
    }
    if (mode == FAIL_FROM) {
        if (hit || (mode == FAIL_FROM && control->role[0] == 0)) __atomic_store_n(&control->fired, 1, __ATOMIC_SEQ_CST);
        verdict.fail = control->fired && ((uint32_t)kind & control->kinds);
    }
    if (!verdict.fail) note(call, path, offset, length);
    if (hit && (mode == KILL_BEFORE || mode == KILL_SELF)) die(mode == KILL_BEFORE);
    verdict.armed = hit && mode == KILL_AFTER;
    verdict.torn = hit && mode == KILL_TORN;
    if (verdict.torn && kind != WRITES) die(1);
    return verdict;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define REFUSE(value) do { if (v.fail) { errno = (int)control->error; return value; } } while (0)
#define FINISH(result) do { if (v.armed) die(1); return result; } while (0)

#define SYNC(name) \
    int name(int fd) { \
        REAL(int, #name, int); \
        char buffer[PATH_MAX]; \
        struct verdict v = judge(SYNCS, #name, control ? path_of(fd, buffer) : NULL, 0, 0); \
        REFUSE(-1); \
        int r = real(fd); \
        FINISH(r); \
    }
SYNC(fsync)
SYNC(fdatasync)

static long long end_of(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 ? (long long)status.st_size : -1;
}

static long long place_of(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_APPEND) ? end_of(fd) : (long long)syscall(SYS_lseek, fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *data, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t);
    char buffer[PATH_MAX];
    const char *path = control ? path_of(fd, buffer) : NULL;
    struct verdict v = judge(WRITES, "write", path, path && path[0] == '/' ? place_of(fd) : 0, (long long)count);
    REFUSE(-1);
    if (v.torn) { real(fd, data, count / 2); die(1); }
    ssize_t r = real(fd, data, count);
    FINISH(r);
}

#define PWRITE(name, offset_t_) \
    ssize_t name(int fd, const void *data, size_t count, offset_t_ offset) { \
        REAL(ssize_t, #name, int, const void *, size_t, offset_t_); \
        char buffer[PATH_MAX]; \
        struct verdict v = judge(WRITES, "pwrite", control ? path_of(fd, buffer) : NULL, (long long)offset, (long long)count); \
        REFUSE(-1); \
        if (v.torn) { real(fd, data, count / 2, offset); die(1); } \
        ssize_t r = real(fd, data, count, offset); \
        FINISH(r); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define TRUNCATE(name, offset_t_) \
    int name(int fd, offset_t_ length) { \
        REAL(int, #name, int, offset_t_); \
        char buffer[PATH_MAX]; \
        struct verdict v = judge((long long)length > end_of(fd) ? WRITES : REMOVES, "ftruncate", control ? path_of(fd, buffer) : NULL, \
                                 (long long)length, 0); \
        REFUSE(-1); \
        int r = real(fd, length); \
        FINISH(r); \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define COPY(name, offset_t_) \
    ssize_t name(int out, int in, offset_t_ *offset, size_t count) { \
        REAL(ssize_t, #name, int, int, offset_t_ *, size_t); \
        char buffer[PATH_MAX]; \
        struct verdict v = judge(WRITES, "sendfile", control ? path_of(out, buffer) : NULL, 0, (long long)count); \
        REFUSE(-1); \
        if (v.torn) { real(out, in, offset, count > 2000 ? 1000 : count / 2); die(1); } \
        ssize_t r = real(out, in, offset, count); \
        FINISH(r); \
    }
COPY(sendfile, off_t)
COPY(sendfile64, off64_t)

/* Only opens that create, empty or may write a file are points. */
static struct verdict judge_open(int dir, const char *path, int flags) {
    struct verdict none = {0, 0, 0};
    char buffer[PATH_MAX];
    if (!control || !(flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)) || (flags & O_TMPFILE) == O_TMPFILE) return none;
    const char *full = path_at(dir, path, buffer);
    if (!full) return none;
    int is_there = syscall(SYS_faccessat, AT_FDCWD, full, F_OK) == 0;
    if (is_there && !(flags & O_TRUNC)) {
        struct verdict v = none; /* opening what is there changes nothing, but a read-only file system refuses it */
        char relative[512];
        if (control->mode == FAIL_FROM && control->fired && (control->kinds & SYNCS) && point_path(full, relative, sizeof relative)) v.fail = 1;
        return v;
    }
    return judge(is_there ? REMOVES : CREATES, is_there ? "truncate" : "create", full, 0, 0);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list list; va_start(list, flags); mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0; va_end(list); \
        struct verdict v = judge_open(AT_FDCWD, path, flags); \
        REFUSE(-1); \
        int r = real(path, flags, mode); \
        FINISH(r); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        REAL(int, #name, int, const char *, int, ...); \
        va_list list; va_start(list, flags); mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0; va_end(list); \
        struct verdict v = judge_open(dir, path, flags); \
        REFUSE(-1); \
        int r = real(dir, path, flags, mode); \
        FINISH(r); \
    }
OPENAT(openat)
OPENAT(openat64)

/* A rename is told with both names, since what was written under the old one is now under the new one. */
static struct verdict judge_rename(int dir, const char *from, int other, const char *to) {
    struct verdict none = {0, 0, 0};
    char first[PATH_MAX], second[PATH_MAX], relative[512];
    if (!control) return none;
    const char *source = path_at(dir, from, first), *target = path_at(other, to, second);
    if (source && point_path(source, relative, sizeof relative)) note("from", relative, 0, 0);
    return judge(REMOVES, "rename", target, 0, 0);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    struct verdict v = judge_rename(AT_FDCWD, from, AT_FDCWD, to);
    REFUSE(-1);
    int r = real(from, to);
    FINISH(r);
}

int renameat(int dir, const char *from, int other, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    struct verdict v = judge_rename(dir, from, other, to);
    REFUSE(-1);
    int r = real(dir, from, other, to);
    FINISH(r);
}

#define ON_PATH(name, call, kind) \
    int name(const char *path) { \
        REAL(int, #name, const char *); \
        char buffer[PATH_MAX]; \
        struct verdict v = judge(kind, call, control ? path_at(AT_FDCWD, path, buffer) : NULL, 0, 0); \
        REFUSE(-1); \
        int r = real(path); \
        FINISH(r); \
    }
ON_PATH(unlink, "unlink", REMOVES)
ON_PATH(rmdir, "rmdir", REMOVES)

int unlinkat(int dir, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    char buffer[PATH_MAX];
    struct verdict v = judge(REMOVES, flags & AT_REMOVEDIR ? "rmdir" : "unlink", control ? path_at(dir, path, buffer) : NULL, 0, 0);
    REFUSE(-1);
    int r = real(dir, path, flags);
    FINISH(r);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    char buffer[PATH_MAX];
    const char *full = control ? path_at(AT_FDCWD, path, buffer) : NULL;
    struct verdict v = {0, 0, 0};
    if (full && syscall(SYS_faccessat, AT_FDCWD, full, F_OK) != 0) v = judge(CREATES, "mkdir", full, 0, 0);
    REFUSE(-1);
    int r = real(path, mode);
    FINISH(r);
}

int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    char buffer[PATH_MAX];
    struct verdict v = judge(REMOVES, "link", control ? path_at(AT_FDCWD, to, buffer) : NULL, 0, 0);
    REFUSE(-1);
    int r = real(from, to);
    FINISH(r);
}

int linkat(int dir, const char *from, int other, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    char buffer[PATH_MAX];
    struct verdict v = judge(REMOVES, "link", control ? path_at(other, to, buffer) : NULL, 0, 0);
    REFUSE(-1);
    int r = real(dir, from, other, to, flags);
    FINISH(r);
}

int chmod(const char *path, mode_t mode) {
    REAL(int, "chmod", const char *, mode_t);
    char buffer[PATH_MAX];
    struct verdict v = judge(REMOVES, "chmod", control ? path_at(AT_FDCWD, path, buffer) : NULL, 0, 0);
    REFUSE(-1);
    int r = real(path, mode);
    FINISH(r);
}
