#!/usr/bin/env python3
"""The smallest worker: takes one connection after another and echoes what it says.

    worker.py PATH          for  fdaccept --bind PATH ADDRESS
    worker.py --bind PATH   for  fdaccept --connect PATH ADDRESS

PATH may be @name, in the abstract namespace. Such a name has no mode, so a worker among users
whom it does not trust also asks who is on the other side (SO_PEERCRED, SCM_CREDENTIALS). A PATH
that a killed worker left behind is to be removed before the next one can bind it.
"""
import errno, os, select, signal, socket, stat, sys, threading


def receive(queue):
    """The next message: its bytes, and its descriptor if that is one connection, or None."""
    payload, descriptors, flags, _ = socket.recv_fds(queue, 4096, 253)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # close-on-exec, which recv_fds leaves out
    if (len(descriptors) == 1 and not flags & socket.MSG_CTRUNC
            and stat.S_ISSOCK(os.fstat(descriptors[0]).st_mode)):
        return payload, descriptors[0]
    for descriptor in descriptors:
        os.close(descriptor)
    return payload, None


def serve(connection):
    with socket.socket(fileno=connection) as client:
        client.setblocking(True)
        while data := client.recv(65536):
            client.sendall(data)


def stop(*_):
    """Ends the worker on TERM or INT: the connection that it has is served, and no other taken.

    Python calls this between two of its steps, or breaks a blocking call off for it and then
    makes that call again. With /dev/null in the place of the queue the next receive fails.
    """
    os.dup2(null, queue.fileno(), inheritable=False)


def stop_what_blocks():
    """Closes the gap between Python's last look for signals and a receive that then blocks.

    This thread is woken by the signal itself. It puts the queue out of the way too, and then
    breaks off the receive in which the main thread may already be.
    """
    os.read(wakeup, 1)
    stop()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)


name = sys.argv[-1]
owns_name = sys.argv[1:-1] == ["--bind"]
address = "\0" + name[1:] if name.startswith("@") else name
if owns_name:
    # Every message that is sent to this name is a connection.
    queue = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    os.umask(0o177)
    queue.bind(address)
else:
    # fdaccept owns the name, and hands out the queue, which all its consumers share.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.connect(address)
        payload, descriptor = receive(door)
    if payload != b"FDTOOLS=1\n" or descriptor is None:
        sys.exit(f"{name} does not hand out a queue")
    queue = socket.socket(fileno=descriptor)

# Until here nothing was taken, and a signal may simply end it.
null = os.open(os.devnull, os.O_RDONLY)
wakeup, alarm = os.pipe()
os.set_blocking(alarm, False)
signal.set_wakeup_fd(alarm)
threading.Thread(target=stop_what_blocks, daemon=True).start()
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)

end = select.poll()
end.register(queue, select.POLLRDHUP)
while True:
    try:
        payload, connection = receive(queue)
    except ConnectionResetError:
        continue  # what was sent to the other side was not read there: not the end
    except OSError as error:
        if error.errno == errno.ENOTSOCK:
            break  # told to stop
        raise
    if connection is not None:
        try:
            serve(connection)
        except OSError:
            pass  # the client has gone, which is no reason to end
    elif not payload and end.poll(0):
        break  # an empty message is the end only if the other side has hung up
if owns_name and not name.startswith("@"):
    os.unlink(name)
