#!/usr/bin/env python3
"""A worker: takes one connection after another and echoes what it says.

    worker.py               for  fdpool 4 --worker -- worker.py: the queue is standard input
    worker.py PATH          for  fdaccept --bind PATH ADDRESS
    worker.py --bind PATH   for  fdaccept --connect PATH ADDRESS

PATH may be @name, in the abstract namespace. fdtools(7) has what is left out here: who may be on
the other side of an @name, and what the message says of the client.
"""
import array, errno, fcntl, os, select, signal, socket, stat, struct, sys, termios, threading, time

# With fdpool --watchdog the worker says again and again that it is alive, where it waits. A thread that
# does nothing else would go on while the worker hangs.
pause = int(os.environ.get("WATCHDOG_USEC", 0)) / 2e6
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if pause else None
if manager:  # the pool may be stopped, and take nothing
    manager.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 100_000))
due = 0


def address(name):
    return "\0" + name[1:] if name.startswith("@") else name


def wait(descriptor):
    """With a watchdog: waits until there is something to read."""
    global due
    readable = select.poll()
    readable.register(descriptor, select.POLLIN)
    while pause:
        if time.monotonic() >= due:
            due = time.monotonic() + pause
            try:
                manager.sendto(b"WATCHDOG=1", address(os.environ["NOTIFY_SOCKET"]))
            except OSError:
                due -= pause * 0.9  # there was no room
        if readable.poll(max(due - time.monotonic(), 0) * 1000 + 1):
            break


def echo(client):
    os.set_blocking(client, True)
    wait(client)
    while data := os.read(client, 65536):
        while data:
            data = data[os.write(client, data):]
        wait(client)


def receive(flags):
    # Not socket.recv_fds, which ignores its flags (Python 3.11).
    payload, control, flags, _ = queue.recvmsg(4096, socket.CMSG_SPACE(253 * 4) + 32, flags)
    descriptors = array.array("i")
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data)
    return payload, descriptors, flags


def finish(connection, seconds):
    """Waits until the client ends, and drops what it sends. A close before that could lose the end of the answer."""
    end = time.monotonic() + seconds
    client = socket.socket(fileno=connection)
    try:
        client.shutdown(socket.SHUT_WR)
        readable = select.poll()
        readable.register(client, select.POLLIN)
        while (left := end - time.monotonic()) > 0 and readable.poll(left * 1000):
            if not client.recv(65536):
                break
    finally:
        client.detach()  # close() closes it


def is_pipe(descriptor):
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def other_side_is_gone(queue):
    ready = select.poll()
    ready.register(queue, select.POLLRDHUP)
    return bool(ready.poll(0))


def nothing_waits(queue):
    return fcntl.ioctl(queue, termios.FIONREAD, bytes(4)) == bytes(4)


def close(descriptor):
    try:  # closing a stranger's socket could block
        with socket.socket(fileno=descriptor) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
    except OSError:
        os.close(descriptor)  # not a socket


name = sys.argv[-1]
if len(sys.argv) == 1:  # fdpool has fetched the queue
    queue = socket.socket(fileno=0)
elif sys.argv[1] == "--bind":  # every message that is sent to this name is a connection
    queue = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    os.umask(0o177)
    queue.bind(address(name))
else:  # fdaccept hands out the queue, which all its consumers share
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.connect(address(name))
    queue = socket.socket(fileno=socket.recv_fds(door, 4096, 1)[1][0])

# On TERM, INT or HUP the worker serves the connection in hand and takes no other. A flag that it looks at
# between two connections would miss a signal that comes after the look and before the wait. So a thread
# waits for the signal, puts /dev/null in the place of the queue, and then interrupts the main thread. A
# receive that has not begun fails. A waiting receive is interrupted, begins again, and fails. A receive
# that has its connection returns it.
# HUP is how the kernel ends a process that is stopped when its pool is killed.
stop = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, stop)
signal.signal(signal.SIGUSR1, lambda *_: None)
null = os.open(os.devnull, os.O_RDONLY)
main = threading.get_ident()


def break_off():
    signal.sigwait(stop)
    os.dup2(null, queue.fileno(), inheritable=False)
    signal.pthread_kill(main, signal.SIGUSR1)


threading.Thread(target=break_off, daemon=True).start()

readable = select.poll()
readable.register(queue, select.POLLIN)
# Who has waited must not wait again, in the receive: another worker may be faster.
flags = socket.MSG_CMSG_CLOEXEC | (socket.MSG_DONTWAIT if pause else 0)
while True:
    wait(queue)
    for spare in os.dup(null), os.dup(null):
        os.close(spare)  # two numbers are free, for a connection and its lease
    try:
        payload, descriptors, lost = receive(flags)
    except ConnectionResetError:
        continue  # not the end
    except BlockingIOError:
        if not pause:
            readable.poll()  # somebody else has made the queue non-blocking
        continue
    except OSError as error:
        if error.errno == errno.ENOTSOCK:
            break  # told to stop
        raise
    if lost & socket.MSG_CTRUNC:
        pass  # it has lost a descriptor
    elif len(descriptors) == 1 or (
        # A pipe beside it is its lease, which is kept open while it is served.
        len(descriptors) == 2 and payload.startswith(b"FDTOOLS=1\n") and is_pipe(descriptors[1])
    ):
        try:
            echo(descriptors[0])
            finish(descriptors[0], 5)
        except OSError:
            pass  # the client has gone, which is no reason to end
    elif not descriptors and not payload and other_side_is_gone(queue) and nothing_waits(queue):
        break
    for descriptor in descriptors:
        close(descriptor)
if sys.argv[1:2] == ["--bind"] and not name.startswith("@"):
    os.unlink(name)
