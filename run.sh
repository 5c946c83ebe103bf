export PATH=/work/main/target/release:$PATH
strace -ff -o /tmp/st/trace fdaccept --port-file /tmp/st/port 127.0.0.1:0 -- fdpool 1 -- cat 2>/tmp/st/log & p=$!
while ! [ -s /tmp/st/port ]; do sleep 0.05; done
port=$(cat /tmp/st/port)
timeout 60 python3 - $port <<'P'
import socket,sys
for i in range(50):
    s=socket.create_connection(("127.0.0.1",int(sys.argv[1]))); s.sendall(b"x\n"); s.shutdown(1)
    while s.recv(100): pass
P
kill -TERM $p; wait $p
