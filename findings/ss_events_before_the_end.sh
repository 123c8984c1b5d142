#!/bin/sh
# ss(8) -E "displays sockets as they are destroyed", by the multicast groups of NETLINK_SOCK_DIAG. What that means:
# - a TCP connection is told when its socket in the kernel is replaced by a small one for the rest of its life. So it
#   is told while `ss -a` still lists it as FIN-WAIT-2, and its peer has not even closed;
# - listeners, bound sockets, and sockets that never had an address are told in the same way;
# - each has the state UNCONN, since that was set before: the event does not show what has ended. UDP sockets have a
#   send queue of -1 bytes.
# Seen with ss of iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace), python3, ip(8) and ss(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/close.py" <<'PYTHON'
import os, re, socket, subprocess, sys, time

told = subprocess.Popen(["stdbuf", "-oL", "ss", "-HEntu"], stdout=subprocess.PIPE, text=True)
while not [line for line in open("/proc/net/netlink") if line.split()[1] == "4" and line.split()[3].strip("0")]:
    time.sleep(0.01)


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    if seen != expected:
        told.kill()
        sys.exit(f"the behaviour has changed, expected {expected}")


def ended(what, expected):
    expect(what, re.sub(" +", " ", told.stdout.readline().strip()), expected)


socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
ended("a socket that was not bound", "tcp UNCONN 0 0 0.0.0.0:* 0.0.0.0:*")
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
ended("the same of UDP", "udp UNCONN 0 -1 0.0.0.0:* 0.0.0.0:*")
listener = socket.create_server(("127.0.0.1", 5001))
client = socket.create_connection(("127.0.0.1", 5001), source_address=("127.0.0.1", 5002))
server, _address = listener.accept()
client.close()
ended("a client", "tcp UNCONN 0 0 127.0.0.1:5002 127.0.0.1:5001")
listed = subprocess.run(["ss", "-Hnta", "sport = 5002"], capture_output=True, text=True).stdout.split()
expect("which is listed still", listed[:1], [os.environ.get("EXPECTED", "FIN-WAIT-2")])
server.close()
ended("the server's end, with the client's FIN in its queue", "tcp UNCONN 1 0 127.0.0.1:5001 127.0.0.1:5002")
listener.close()
ended("the listener", "tcp UNCONN 0 0 127.0.0.1:5001 0.0.0.0:*")
told.kill()
PYTHON
ss -V
uname -sr
unshare -n sh -c 'ip link set lo up && exec timeout 60 python3 "$1"' sh "$folder/close.py"
