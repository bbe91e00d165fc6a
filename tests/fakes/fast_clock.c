/* A clock that runs faster, or stands, while a program lives: LD_PRELOAD this. FAST_CLOCK names a file of three int64 that a test writes at
 * once: the real monotonic time of the change (ns), what had been added by then (ns), and how many thousandths of real time pass as time
 * from then on (1000: as usual). All clocks move together, and whoever waits for a time waits as much less, so an unchanged program lives
 * a month in minutes. FAST_CLOCK_ONLY limits it to programs whose command line contains that text: children with deadlines of their own
 * live in real time.
 *
 * Waits that Python and OpenSSL use are covered: poll, select, nanosleep, semaphores with a deadline (which is what Python's locks are). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define SLICE (SECOND / 20) /* a wait looks again this often, so that a change of speed is noticed */
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const volatile int64_t *speed; /* since, added, thousandths */
static int (*real_clock)(clockid_t, struct timespec *);

static int is_meant(void)
{
    const char *only = getenv("FAST_CLOCK_ONLY");
    char line[4096] = "";
    int fd, length;
    if (!only)
        return 1;
    fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    length = fd < 0 ? 0 : read(fd, line, sizeof line - 1);
    if (fd >= 0)
        close(fd);
    for (int i = 0; i < length; i++)
        if (!line[i])
            line[i] = ' ';
    return strstr(line, only) != NULL;
}

static void start(void)
{
    const char *path = getenv("FAST_CLOCK");
    int fd;
    if (real_clock)
        return;
    real_clock = NEXT(clock_gettime);
    if (!path || !is_meant())
        return;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    void *page = mmap(NULL, 24, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED)
        speed = page;
}

static int64_t in_ns(const struct timespec *t) { return t->tv_sec * SECOND + t->tv_nsec; }

static struct timespec as_timespec(int64_t ns)
{
    struct timespec t = {ns / SECOND, ns % SECOND};
    return t;
}

static int64_t thousandths(void) { start(); return speed ? speed[2] : 1000; }

static int64_t added(void)
{
    struct timespec now;
    start();
    if (!speed)
        return 0;
    real_clock(CLOCK_MONOTONIC, &now);
    return speed[1] + (int64_t)((__int128)(in_ns(&now) - speed[0]) * (speed[2] - 1000) / 1000);
}

static int moves(clockid_t id)
{
    return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_MONOTONIC || id == CLOCK_MONOTONIC_COARSE ||
           id == CLOCK_MONOTONIC_RAW || id == CLOCK_BOOTTIME;
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    int result;
    start();
    result = real_clock(id, now);
    if (!result && speed && moves(id))
        *now = as_timespec(in_ns(now) + added());
    return result;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

/* How long to wait in real time, at most one slice, for `left` of the program's time. */
static int64_t slice(int64_t left)
{
    int64_t real = (int64_t)((__int128)left * 1000 / thousandths());
    return real < 0 ? 0 : real > SLICE ? SLICE : real;
}

static int64_t now_ns(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return in_ns(&now);
}

static int64_t real_ns(clockid_t id)
{
    struct timespec now;
    start();
    real_clock(id, &now);
    return in_ns(&now);
}

int nanosleep(const struct timespec *wanted, struct timespec *rest)
{
    int64_t until = now_ns(CLOCK_MONOTONIC) + in_ns(wanted), left;
    if (!speed)
        return NEXT(nanosleep)(wanted, rest);
    while ((left = until - now_ns(CLOCK_MONOTONIC)) > 0) {
        struct timespec step = as_timespec(slice(left));
        if (NEXT(nanosleep)(&step, NULL)) {
            if (rest)
                *rest = as_timespec(left);
            return -1;
        }
    }
    return 0;
}

int clock_nanosleep(clockid_t id, int flags, const struct timespec *wanted, struct timespec *rest)
{
    int64_t until = in_ns(wanted) + (flags & TIMER_ABSTIME ? 0 : now_ns(id)), left;
    if (!speed)
        return NEXT(clock_nanosleep)(id, flags, wanted, rest);
    while ((left = until - now_ns(id)) > 0) {
        struct timespec step = as_timespec(slice(left));
        if (NEXT(nanosleep)(&step, NULL))
            return EINTR;
    }
    return 0;
}

#define UNTIL_DEADLINE(id, deadline, call, timed_out)                                                                                      \
    do {                                                                                                                                   \
        start();                                                                                                                           \
        if (!speed) {                                                                                                                      \
            struct timespec step = *(deadline);                                                                                            \
            return call;                                                                                                                   \
        }                                                                                                                                  \
        for (;;) {                                                                                                                         \
            int64_t left = in_ns(deadline) - now_ns(id);                                                                                   \
            struct timespec step = as_timespec(real_ns(id) + slice(left));                                                                 \
            int result = call;                                                                                                             \
            if (!(timed_out) || left <= 0)                                                                                                 \
                return result;                                                                                                             \
        }                                                                                                                                  \
    } while (0)

int sem_timedwait(sem_t *restrict sem, const struct timespec *restrict deadline)
{
    UNTIL_DEADLINE(CLOCK_REALTIME, deadline, NEXT(sem_timedwait)(sem, &step), result && errno == ETIMEDOUT);
}

int sem_clockwait(sem_t *restrict sem, clockid_t id, const struct timespec *restrict deadline)
{
    UNTIL_DEADLINE(id, deadline, NEXT(sem_clockwait)(sem, id, &step), result && errno == ETIMEDOUT);
}

static int slice_ms(int timeout_ms)
{
    int64_t real;
    if (timeout_ms <= 0)
        return timeout_ms;
    real = (int64_t)timeout_ms * 1000 / thousandths();
    return real < 1 ? 1 : (int)real;
}

int poll(struct pollfd *fds, nfds_t count, int timeout_ms) { return NEXT(poll)(fds, count, slice_ms(timeout_ms)); }

int epoll_wait(int fd, struct epoll_event *events, int most, int timeout_ms)
{
    return NEXT(epoll_wait)(fd, events, most, slice_ms(timeout_ms));
}

int select(int count, fd_set *restrict in, fd_set *restrict out, fd_set *restrict err, struct timeval *restrict timeout)
{
    struct timeval shorter;
    if (!timeout)
        return NEXT(select)(count, in, out, err, NULL);
    int64_t real = (int64_t)((__int128)(timeout->tv_sec * 1000000LL + timeout->tv_usec) * 1000 / thousandths());
    shorter.tv_sec = real / 1000000;
    shorter.tv_usec = real % 1000000;
    return NEXT(select)(count, in, out, err, &shorter);
}
