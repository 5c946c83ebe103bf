#!/usr/bin/env python3
"""The smallest worker: takes one connection after another and echoes what it says.

    worker.py               for  fdpool 4 --worker -- worker.py: the queue is standard input
    worker.py PATH          for  fdaccept --bind PATH ADDRESS
    worker.py --bind PATH   for  fdaccept --connect PATH ADDRESS

PATH may be @name, in the abstract namespace. fdtools(7) has what is left out here: who may be on
the other side of an @name, and what the message says of the client.
"""
import os, select, signal, socket, stat, sys, threading


def echo(connection):
    client = socket.socket(fileno=connection)
    try:
        while data := client.recv(65536):
            client.sendall(data)
    finally:
        client.detach()


def is_pipe(descriptor):
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


name = sys.argv[-1]
address = "\0" + name[1:] if name.startswith("@") else name
if len(sys.argv) == 1:  # fdpool has fetched the queue
    queue = socket.socket(fileno=0)
elif sys.argv[1] == "--bind":  # every message that is sent to this name is a connection
    queue = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    os.umask(0o177)
    queue.bind(address)
else:  # fdaccept hands out the queue, which all its consumers share
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.connect(address)
    queue = socket.socket(fileno=socket.recv_fds(door, 4096, 1)[1][0])

# On TERM, INT or HUP the connection in hand is served, and no other one is taken. A flag that is looked
# at between two connections would be missed if the signal came after the look and before the wait.
# So a thread waits for the signal, puts /dev/null in the place of the queue, and then interrupts
# whatever the main thread does. A receive that has not begun fails; one that waits is interrupted,
# begins again, and fails; one that has its connection returns it, and nothing happens to that.
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

end = select.poll()
end.register(queue, select.POLLRDHUP)
while True:
    try:
        payload, descriptors, flags, _ = socket.recv_fds(queue, 4096, 2)
    except ConnectionResetError:
        continue  # not the end
    except OSError:
        break  # told to stop
    if descriptors:
        try:
            # A pipe beside it is its lease, which is kept open while it is served.
            lease = descriptors[1:]
            if not flags & socket.MSG_CTRUNC and all(map(is_pipe, lease)):
                echo(descriptors[0])
        except OSError:
            pass  # the client has gone, which is no reason to end
        for descriptor in descriptors:
            os.close(descriptor)
    elif not payload and end.poll(0):
        break  # an empty message is the end only if the other side has hung up
if sys.argv[1:2] == ["--bind"] and not name.startswith("@"):
    os.unlink(name)
