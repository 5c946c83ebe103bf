"""A worker under a watchdog: it does what its clients say, and echoes it."""
import os, select, socket, sys, time

pool = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
address = "\0" + os.environ["NOTIFY_SOCKET"][1:]
ready = select.poll()
ready.register(0, select.POLLIN)
queue = socket.socket(fileno=0)


def say(text=b"WATCHDOG=1"):
    pool.sendto(text, address)
    with open(os.environ["DIR"] + "/log", "a") as log:
        log.write(f"said {os.getpid()}\n")


def hang():
    time.sleep(10**6)


if "starts-when-told" in sys.argv:
    while not os.path.exists(os.environ["DIR"] + "/gate"):
        time.sleep(0.01)
    with open(os.environ["DIR"] + "/log", "a") as log:
        log.write(f"ready {os.getpid()}\n")
    os.write(3, b"\n")
if "gives-up-when-told" in sys.argv:
    if os.path.exists(os.environ["DIR"] + "/gate"):
        say(b"WATCHDOG=trigger")
        hang()
    os.write(3, b"\n")
if "mute" in sys.argv:
    hang()
while True:
    say()
    if not ready.poll(20):
        continue
    try:
        message, control, _, _ = queue.recvmsg(4096, 64, socket.MSG_DONTWAIT)
    except BlockingIOError:
        continue
    if not control:
        break
    client = socket.socket(fileno=int.from_bytes(control[0][2][:4], sys.byteorder))
    while word := client.recv(9999):
        if word == b"hang\n":
            hang()
        if word.startswith(b"say "):
            say(word[4:])
            client.sendall(b"said\n")
            hang()
        client.sendall(word)
        while not select.select([client], [], [], 0.02)[0]:
            say()
    client.close()
