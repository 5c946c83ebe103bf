/* A worker: takes one connection after another and echoes what it says.
 *
 *     cc -o worker worker.c && fdaccept 8888 | fdpool 4 --worker ./worker
 *
 * fdtools(7) has the rules that it keeps. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { QUEUE = STDIN_FILENO, MOST = 253 };

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000LL + time.tv_nsec / 1000000;
}

/* With fdpool --watchdog the worker says again and again that it is alive, where it waits. A thread that
 * does nothing else would go on while the worker hangs. Returns how many milliseconds to wait until the
 * next time; -1 without a watchdog. */
static int say_alive(void)
{
    static int manager = -1;
    static long long due;
    const char *time = getenv("WATCHDOG_USEC"), *name = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};

    if (!time || !name || strlen(name) >= sizeof to.sun_path)
        return -1;
    long long pause = atoll(time) / 2000;
    pause = pause < 1 ? 1 : pause > 1000000000 ? 1000000000 : pause;
    long long time_now = now();
    if (time_now >= due) {
        memcpy(to.sun_path, name, strlen(name));
        if (*name == '@')
            to.sun_path[0] = '\0';
        socklen_t length = offsetof(struct sockaddr_un, sun_path) + strlen(name);
        if (manager < 0) {
            struct timeval most = {0, 100000}; /* the pool may be stopped, and take nothing */
            manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
            setsockopt(manager, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most);
        }
        int is_said = sendto(manager, "WATCHDOG=1", 10, MSG_NOSIGNAL,
                             (struct sockaddr *)&to, length) > 0;
        due = time_now + (is_said ? pause : pause / 10 + 1); /* there may be room then */
    }
    return due - time_now;
}

static void echo(int client)
{
    char data[65536];
    ssize_t length;
    struct pollfd ready = {client, POLLIN, 0};

    fcntl(client, F_SETFL, fcntl(client, F_GETFL) & ~O_NONBLOCK);
    for (;;) {
        while (poll(&ready, 1, say_alive()) <= 0)
            ; /* it is time again, or a signal came */
        if ((length = read(client, data, sizeof data)) <= 0)
            return;
        for (ssize_t sent, at = 0; at < length; at += sent)
            if ((sent = write(client, data + at, length - at)) < 0)
                return; /* the client has gone */
    }
}

static int is_pipe(int descriptor)
{
    struct stat status;
    return fstat(descriptor, &status) == 0 && S_ISFIFO(status.st_mode);
}

int main(void)
{
    /* TERM, INT and HUP are read from a descriptor, so that they come between two connections. */
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    sigaddset(&stop, SIGHUP);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    signal(SIGPIPE, SIG_IGN);
    int told = signalfd(-1, &stop, SFD_CLOEXEC);
    if (told < 0)
        err(1, "cannot make a descriptor of signals");

    for (;;) {
        struct pollfd ready[] = {{told, POLLIN, 0}, {QUEUE, POLLIN | POLLRDHUP, 0}};
        if (poll(ready, 2, say_alive()) < 0 && errno != EINTR)
            err(1, "cannot wait");
        if (ready[0].revents)
            return 0;

        /* The kernel drops what finds no free number: there must be two. */
        int spare = dup(QUEUE), second = dup(QUEUE);
        if (spare < 0 || second < 0)
            err(1, "no free descriptors");
        close(spare);
        close(second);

        char payload[4096];
        _Alignas(struct cmsghdr)
        char control[CMSG_SPACE(MOST * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
        struct iovec iov = {payload, sizeof payload};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1,
            .msg_control = control, .msg_controllen = sizeof control};
        ssize_t length = recvmsg(QUEUE, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (length < 0) {
            if (errno == EAGAIN || errno == EINTR || errno == ECONNRESET)
                continue; /* another worker was faster, or no end */
            err(1, "cannot receive a connection");
        }

        int descriptors[MOST], count = 0, waiting = 0;
        struct cmsghdr *part = CMSG_FIRSTHDR(&message);
        for (; part; part = CMSG_NXTHDR(&message, part))
            if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
                count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                memcpy(descriptors, CMSG_DATA(part), count * sizeof(int));
            }
        int is_payload = length >= 10 && memcmp(payload, "FDTOOLS=1\n", 10) == 0;
        if (message.msg_flags & MSG_CTRUNC)
            ; /* not a connection */
        else if (count == 1 || (count == 2 && is_payload && is_pipe(descriptors[1])))
            echo(descriptors[0]);
        else if (count == 0 && length == 0 && ready[1].revents & (POLLHUP | POLLRDHUP)
                 && ioctl(QUEUE, FIONREAD, &waiting) == 0 && waiting == 0)
            return 0;
        for (int i = 0; i < count; i++) {
            struct linger off = {0, 0}; /* of a stranger's socket, whose closing could block */
            setsockopt(descriptors[i], SOL_SOCKET, SO_LINGER, &off, sizeof off);
            close(descriptors[i]);
        }
    }
}
