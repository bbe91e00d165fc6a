/* Faults at the boundaries of the disk, for the kill harness (tests/faults/). Put into a process tree with LD_PRELOAD.
 *
 * Every call that changes what is below one folder (create, write, truncate, sync, rename, link, unlink, mkdir, rmdir) is a boundary.
 * Boundaries are counted over all processes of the tree in a shared file; at the chosen one a fault happens:
 *
 *   KILL_TREE   the agent and the caller get SIGKILL before the call (the agent's children die with it): a power cut
 *   KILL_SELF   the caller alone gets SIGKILL before the call
 *   TORN        half of the bytes are written, then as KILL_TREE; where nothing is written, as KILL_TREE
 *   FULL        this and every later call that needs room fails with ENOSPC, until the harness ends it
 *   READ_ONLY   this and every later changing call fails with EROFS, until the harness ends it
 *
 * The shared file is `struct control`; the log gets one line a boundary: number, pid, call, bytes, path.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum fault { NONE, KILL_TREE, KILL_SELF, TORN, FULL, READ_ONLY };

struct control {
    _Atomic uint32_t counter; /* boundaries so far */
    uint32_t at;              /* the boundary at which the fault happens; 0: never */
    _Atomic uint32_t fault;   /* enum fault; the harness sets NONE to end FULL or READ_ONLY */
    _Atomic uint32_t agent;   /* process id of the agent: the first process of the tree */
    _Atomic uint32_t struck;  /* the fault has happened */
};

static struct control *control;
static const char *folder;
static size_t folder_length;
static int log_fd = -1;
static __thread int inside;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *control_path = getenv("COVEY_FAULT_CONTROL"), *log_path = getenv("COVEY_FAULT_LOG");
    folder = getenv("COVEY_FAULT_FOLDER");
    if (!control_path || !folder) return;
    folder_length = strlen(folder);
    int fd = syscall(SYS_openat, AT_FDCWD, control_path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *memory = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (memory == MAP_FAILED) return;
    control = memory;
    uint32_t nobody = 0;
    atomic_compare_exchange_strong(&control->agent, &nobody, (uint32_t)getpid());
    if (log_path) {
        int opened = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (opened >= 0) { log_fd = fcntl(opened, F_DUPFD_CLOEXEC, 900); syscall(SYS_close, opened); }
    }
}

static int is_below(const char *path) {
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || path[folder_length] == 0);
}

/* The absolute path of `path` as seen from `dirfd`; NULL if it is not below the folder. */
static const char *locate(int dirfd, const char *path, char *buffer) {
    if (!control || inside || !path) return NULL;
    if (path[0] == '/') { snprintf(buffer, PATH_MAX, "%s", path); return is_below(buffer) ? buffer : NULL; }
    char link[64], base[PATH_MAX];
    if (dirfd == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd"); else snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
    if (length <= 0) return NULL;
    base[length] = 0;
    if (snprintf(buffer, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return NULL;
    return is_below(buffer) ? buffer : NULL;
}

static const char *locate_fd(int fd, char *buffer) {
    if (!control || inside || fd < 0 || fd == log_fd) return NULL;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
    if (length <= 0) return NULL;
    buffer[length] = 0;
    return buffer[0] == '/' && is_below(buffer) ? buffer : NULL;
}

static void die_all(void) {
    syscall(SYS_kill, atomic_load(&control->agent), SIGKILL);
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts one boundary and strikes; returns the errno with which the call must fail, 0 if it goes on, -1 if it is to be torn. */
static int boundary(const char *call, size_t bytes, const char *path, int needs_room, int is_write) {
    inside = 1;
    uint32_t number = atomic_fetch_add(&control->counter, 1) + 1;
    if (log_fd >= 0) {
        char line[PATH_MAX + 96];
        int length = snprintf(line, sizeof line, "%u %d %s %zu %s\n", number, (int)getpid(), call, bytes, path + folder_length);
        syscall(SYS_write, log_fd, line, length);
    }
    uint32_t fault = atomic_load(&control->fault);
    int result = 0;
    if (control->at && fault != NONE) {
        if (number == control->at) atomic_store(&control->struck, 1);
        if (number == control->at && (fault == KILL_TREE || (fault == TORN && !is_write))) die_all();
        if (number == control->at && fault == KILL_SELF) { syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause(); }
        if (number == control->at && fault == TORN) result = -1;
        if (number >= control->at && fault == FULL && needs_room) result = ENOSPC;
        if (number >= control->at && fault == READ_ONLY) result = EROFS;
    }
    inside = 0;
    return result;
}

#define STRIKE(call, bytes, path, needs_room, is_write, failure)                    \
    int verdict = boundary(call, bytes, path, needs_room, is_write);                \
    if (verdict > 0) { errno = verdict; return failure; }

ssize_t write(int fd, const void *data, size_t size) {
    char buffer[PATH_MAX];
    const char *path = locate_fd(fd, buffer);
    if (path) {
        STRIKE("write", size, path, 1, 1, -1)
        if (verdict < 0) { REAL(write)(fd, data, size / 2); die_all(); }
    }
    return REAL(write)(fd, data, size);
}

static ssize_t pwrite_any(int fd, const void *data, size_t size, off64_t offset) {
    char buffer[PATH_MAX];
    const char *path = locate_fd(fd, buffer);
    if (path) {
        STRIKE("pwrite", size, path, 1, 1, -1)
        if (verdict < 0) { syscall(SYS_pwrite64, fd, data, size / 2, offset); die_all(); }
    }
    return syscall(SYS_pwrite64, fd, data, size, offset);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite_any(fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return pwrite_any(fd, data, size, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char buffer[PATH_MAX];
    const char *path = locate_fd(fd, buffer);
    if (path) {
        STRIKE("writev", parts ? parts[0].iov_len : 0, path, 1, 1, -1)
        if (verdict < 0) { REAL(writev)(fd, parts, count > 1 ? count / 2 : 1); die_all(); }
    }
    return REAL(writev)(fd, parts, count);
}

static ssize_t send_any(int out, int in, off64_t *offset, size_t size) {
    char buffer[PATH_MAX];
    const char *path = locate_fd(out, buffer);
    if (path) {
        STRIKE("sendfile", size, path, 1, 1, -1)
        if (verdict < 0) { syscall(SYS_sendfile, out, in, offset, size / 2); die_all(); }
    }
    return syscall(SYS_sendfile, out, in, offset, size);
}
ssize_t sendfile(int out, int in, off_t *offset, size_t size) { return send_any(out, in, (off64_t *)offset, size); }
ssize_t sendfile64(int out, int in, off64_t *offset, size_t size) { return send_any(out, in, offset, size); }

static int truncate_any(int fd, off64_t length) {
    char buffer[PATH_MAX];
    const char *path = locate_fd(fd, buffer);
    if (path) { STRIKE("ftruncate", (size_t)length, path, 1, 0, -1) (void)verdict; }
    return syscall(SYS_ftruncate, fd, length);
}
int ftruncate(int fd, off_t length) { return truncate_any(fd, length); }
int ftruncate64(int fd, off64_t length) { return truncate_any(fd, length); }

int fsync(int fd) {
    char buffer[PATH_MAX];
    const char *path = locate_fd(fd, buffer);
    if (path) { STRIKE("fsync", 0, path, 0, 0, -1) (void)verdict; }
    return REAL(fsync)(fd);
}

int fdatasync(int fd) {
    char buffer[PATH_MAX];
    const char *path = locate_fd(fd, buffer);
    if (path) { STRIKE("fdatasync", 0, path, 0, 0, -1) (void)verdict; }
    return REAL(fdatasync)(fd);
}

/* Opening changes something only if it creates or cuts; without rights to write it is left alone. */
static int open_any(int dirfd, const char *name, int flags, mode_t mode) {
    char buffer[PATH_MAX];
    const char *path = (flags & (O_CREAT | O_TRUNC)) ? locate(dirfd, name, buffer) : NULL;
    if (path) {
        int exists = syscall(SYS_faccessat, dirfd, name, F_OK, 0) == 0;
        if (!exists || (flags & O_TRUNC)) { STRIKE(exists ? "open-truncate" : "create", 0, path, !exists, 0, -1) (void)verdict; }
    } else if ((flags & O_ACCMODE) != O_RDONLY && control && atomic_load(&control->fault) == READ_ONLY && control->struck) {
        path = locate(dirfd, name, buffer); /* a read-only file system refuses to open for writing, too */
        if (path) { errno = EROFS; return -1; }
    }
    return syscall(SYS_openat, dirfd, name, flags, mode);
}
#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
int open(const char *path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int dirfd, const char *path, int flags, ...) { MODE(flags) return open_any(dirfd, path, flags, mode); }
int openat64(int dirfd, const char *path, int flags, ...) { MODE(flags) return open_any(dirfd, path, flags | O_LARGEFILE, mode); }

static int rename_any(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char buffer[PATH_MAX];
    const char *path = locate(to_dir, to, buffer);
    if (path) { STRIKE("rename", 0, path, 1, 0, -1) (void)verdict; }
    return syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
}
int rename(const char *from, const char *to) { return rename_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_dir, const char *from, int to_dir, const char *to) { return rename_any(from_dir, from, to_dir, to, 0); }
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) { return rename_any(from_dir, from, to_dir, to, flags); }

static int unlink_any(int dirfd, const char *name, int flags) {
    char buffer[PATH_MAX];
    const char *path = locate(dirfd, name, buffer);
    if (path) { STRIKE(flags & AT_REMOVEDIR ? "rmdir" : "unlink", 0, path, 0, 0, -1) (void)verdict; }
    return syscall(SYS_unlinkat, dirfd, name, flags);
}
int unlink(const char *path) { return unlink_any(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlink_any(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int dirfd, const char *path, int flags) { return unlink_any(dirfd, path, flags); }

static int link_any(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    char buffer[PATH_MAX];
    const char *path = locate(to_dir, to, buffer);
    if (path) { STRIKE("link", 0, path, 1, 0, -1) (void)verdict; }
    return syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
}
int link(const char *from, const char *to) { return link_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) { return link_any(from_dir, from, to_dir, to, flags); }

static int mkdir_any(int dirfd, const char *name, mode_t mode) {
    char buffer[PATH_MAX];
    const char *path = locate(dirfd, name, buffer);
    if (path) { STRIKE("mkdir", 0, path, 1, 0, -1) (void)verdict; }
    return syscall(SYS_mkdirat, dirfd, name, mode);
}
int mkdir(const char *path, mode_t mode) { return mkdir_any(AT_FDCWD, path, mode); }
int mkdirat(int dirfd, const char *path, mode_t mode) { return mkdir_any(dirfd, path, mode); }

int symlink(const char *target, const char *name) {
    char buffer[PATH_MAX];
    const char *path = locate(AT_FDCWD, name, buffer);
    if (path) { STRIKE("symlink", 0, path, 1, 0, -1) (void)verdict; }
    return REAL(symlink)(target, name);
}
