#!/usr/bin/env python3
"""A worker that loads its modules once, and forks for each connection.

    forking.py N    for  fdpool --worker 1 -- forking.py N: the queue is standard input

At most N connections are served at once; more stay in the queue. Each has a process of its own, with the
client as standard input and output. fdtools(7) has what is left out here: what the message says of the
client.
"""
import array, os, select, signal, socket, stat, struct, sys, time


def serve():
    """Replace this. What it needs is imported above, before the first client."""
    print("who are you?", flush=True)
    name = open(0, errors="replace").readline().rstrip()
    print(f"hello {name}, process {os.getpid()} of worker {os.getppid()} serves you")


def finish(connection, seconds):
    """Waits until the client ends, and drops what it sends. A close before that could lose the end of the answer."""
    end = time.monotonic() + seconds
    try:
        client = socket.socket(fileno=connection)
        client.shutdown(socket.SHUT_WR)
        readable = select.poll()
        readable.register(client, select.POLLIN)
        while (left := end - time.monotonic()) > 0 and readable.poll(left * 1000):
            if not client.recv(65536):
                break
    except OSError:
        pass  # the client has gone


def start(connection):
    """Serves a connection in a child, which also has the lease of the connection until it ends."""
    while True:
        try:
            pid = os.fork()
            break
        except OSError:
            time.sleep(0.25)  # processes are short, and the connection is in hand
    if pid:
        return
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in CAUGHT:
            signal.signal(number, signal.SIG_DFL)
        os.set_blocking(connection, True)
        os.dup2(connection, 0)  # closes the queue here
        os.dup2(connection, 1)
        os.close(connection)
        serve()
        sys.stdout.flush()
        finish(1, 5)  # serve() may have closed 0
        status = 0
    except ConnectionError:
        pass  # the client has gone
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def say_alive():
    """For fdpool --watchdog, if it is time. Returns how many milliseconds to wait until the next time."""
    global due
    if pause and time.monotonic() >= due:
        name = os.environ["NOTIFY_SOCKET"]
        due = time.monotonic() + pause
        try:
            manager.sendto(b"WATCHDOG=1", "\0" + name[1:] if name[0] == "@" else name)
        except OSError:
            due -= pause * 0.9  # there was no room
    return max(due - time.monotonic(), 0) * 1000 + 1 if pause else None


def receive():
    # Not socket.recv_fds, which ignores its flags (Python 3.11).
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    payload, control, flags, _ = queue.recvmsg(4096, socket.CMSG_SPACE(2 * 4), flags)
    descriptors = array.array("i")
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data)
    return payload, descriptors, flags


def is_pipe(descriptor):
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


room = int(sys.argv[1])
queue = socket.socket(fileno=0)
pause = int(os.environ.get("WATCHDOG_USEC", 0)) / 2e6
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if pause else None
if manager:  # the pool may be stopped, and take nothing
    manager.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 100_000))
due = 0

# Each signal is a byte in a pipe, and one poll watches the pipe and the queue: no signal is missed
# between a look and a wait. HUP is how the kernel ends a process that is stopped when its pool is killed.
STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
CAUGHT = {*STOP, signal.SIGCHLD}
signals, wakeup = os.pipe()
os.set_blocking(wakeup, False)
signal.set_wakeup_fd(wakeup)
for number in CAUGHT:
    signal.signal(number, lambda *_: None)

end = select.poll()
end.register(queue, select.POLLRDHUP)
children = 0
stopping = False
while children or not stopping:
    events = select.poll()
    events.register(signals, select.POLLIN)
    if children < room and not stopping:
        events.register(queue, select.POLLIN)
    ready = events.poll(say_alive())
    if signals in dict(ready):
        if not STOP.isdisjoint(os.read(signals, 4096)):
            stopping = True
            queue.close()  # what waits there is for others
        while children and os.waitpid(-1, os.WNOHANG)[0]:
            children -= 1
        continue
    try:
        payload, descriptors, flags = receive()
    except (BlockingIOError, ConnectionResetError):
        continue  # another worker was faster; the end is neither
    if descriptors:
        # A pipe beside the connection is its lease.
        if not flags & socket.MSG_CTRUNC and all(map(is_pipe, descriptors[1:])):
            start(descriptors[0])
            children += 1
        for descriptor in descriptors:
            os.close(descriptor)
    elif not payload and end.poll(0):
        stopping = True  # an empty message is the end only if the other side has hung up
