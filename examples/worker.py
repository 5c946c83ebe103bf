#!/usr/bin/env python3
"""The smallest worker: takes one connection after another and echoes what it says.

    worker.py PATH          for  fdaccept --bind PATH ADDRESS
    worker.py --bind PATH   for  fdaccept --connect PATH ADDRESS

PATH may be @name, in the abstract namespace. fdtools(7) has what is left out here: who may be on
the other side of an @name, and what the message says of the client.
"""
import os, select, signal, socket, sys


def echo(connection):
    client = socket.socket(fileno=connection)
    try:
        while data := client.recv(65536):
            client.sendall(data)
    finally:
        client.detach()


name = sys.argv[-1]
address = "\0" + name[1:] if name.startswith("@") else name
if "--bind" in sys.argv[1:-1]:  # every message that is sent to this name is a connection
    queue = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    os.umask(0o177)
    queue.bind(address)
else:  # fdaccept hands out the queue, which all its consumers share
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.connect(address)
    queue = socket.socket(fileno=socket.recv_fds(door, 4096, 1)[1][0])

# On TERM or INT the connection in hand is served, and no other one taken: /dev/null in the place
# of the queue makes the next receive fail, and the wake-up a wait for it end.
null = os.open(os.devnull, os.O_RDONLY)
wakeup, signalled = os.pipe()
os.set_blocking(signalled, False)
signal.set_wakeup_fd(signalled)
for number in signal.SIGTERM, signal.SIGINT:
    signal.signal(number, lambda *_: os.dup2(null, queue.fileno(), inheritable=False))

end = select.poll()
end.register(queue, select.POLLRDHUP)
while True:
    select.select([queue, wakeup], [], [])
    try:
        payload, descriptors, flags, _ = socket.recv_fds(queue, 4096, 1)
    except ConnectionResetError:
        continue  # not the end
    except OSError:
        break  # told to stop
    if descriptors:
        connection = descriptors[0]
        try:
            if not flags & socket.MSG_CTRUNC:  # one descriptor is a connection, more are not
                echo(connection)
        except OSError:
            pass  # the client has gone, which is no reason to end
        os.close(connection)
    elif not payload and end.poll(0):
        break  # an empty message is the end only if the other side has hung up
if "--bind" in sys.argv[1:-1] and not name.startswith("@"):
    os.unlink(name)
