/* A wall clock that a test moves while a program runs: LD_PRELOAD this, WRONG_CLOCK names a file with an offset in seconds ("+86400"), or
 * an absolute time ("@0" is 1970) at which the clock stands still. Monotonic clocks and sleeping are left alone, as on a real machine
 * whose clock is set. (libfaketime moves them as well in some calls, which a program notices as sleeps that fail.) */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static int real_clock(clockid_t id, struct timespec *now)
{
    static int (*next)(clockid_t, struct timespec *);
    if (!next)
        next = dlsym(RTLD_NEXT, "clock_gettime");
    return next(id, now);
}

static void move(struct timespec *now)
{
    const char *path = getenv("WRONG_CLOCK");
    FILE *file = path ? fopen(path, "re") : NULL;
    char text[64] = "";
    if (!file)
        return;
    if (fgets(text, sizeof text, file)) {
        if (text[0] == '@') {
            now->tv_sec = atoll(text + 1);
            now->tv_nsec = 0;
        } else {
            now->tv_sec += atoll(text);
        }
    }
    fclose(file);
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    int result = real_clock(id, now);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        move(now);
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
