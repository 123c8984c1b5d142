#!/bin/sh
# ss(8) -K "displays sockets that are successfully closed". What SOCK_DESTROY of NETLINK_SOCK_DIAG does to a server:
# - a UDP socket with a port of its own is listed as closed, and stays: its next recv(2) is ECONNABORTED, and from then
#   on it gets datagrams as before. A UDP client loses its peer and its port, and lives on as a socket that is not
#   bound;
# - a TCP listener leaves the list, and keeps its port: another bind(2) is EADDRINUSE, by a socket that `ss -a` does not
#   list. accept(2) is EINVAL, and listen(2) brings the same socket back;
# - connections end, at this end with ECONNABORTED once, at the other with ECONNRESET.
# So a UDP server cannot be stopped by it, and a TCP server's port is not free. The exit status of ss is 0 also if
# nothing has matched.
# Seen with iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace), python3, ip(8), ss(8), and
# CONFIG_INET_DIAG_DESTROY.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/kill.py" <<'PYTHON'
import errno, os, socket, subprocess


def run(command):
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().split("\n"), done.returncode


def ports(command):
    """The ports of the local addresses."""
    lines, status = run(command)
    assert status == 0
    return [line.split()[3].rpartition(":")[2] for line in lines if line]


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]


def bound(kind, port):
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", port))
    sock.settimeout(10)
    return sock


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


run("ip link set lo up")
server = bound(socket.SOCK_DGRAM, 4001)
expect("udp: ss -K lists", ports("ss -HanuK sport = :4001"), ["4001"])
expect("udp: ss lists", ports("ss -Hanu"), os.environ.get("EXPECTED", "4001").split())
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(("127.0.0.1", 4001))
client.send(b"a datagram")
expect("udp: the server receives", [outcome(server.recv, 100) for _ in range(2)], ["ECONNABORTED", b"a datagram"])
expect("udp client: ss -K lists", len(ports("ss -HanuK dport = :4001")), 1)
expect("udp client: its next read, peer and port", [outcome(client.recv, 100), outcome(client.getpeername), client.getsockname()[1]],
    ["ECONNABORTED", "ENOTCONN", 0])

listener = bound(socket.SOCK_STREAM, 4002)
listener.listen()
peer = socket.create_connection(("127.0.0.1", 4002), 10)
connection, _address = listener.accept()
connection.settimeout(10)
expect("tcp connection: ss -K lists", ports("ss -HntK state established sport = :4002 | sed 's/^/ESTAB /'"), ["4002"])
expect("tcp connection: this end, twice", [outcome(connection.recv, 100), outcome(connection.recv, 100)], ["ECONNABORTED", b""])
expect("tcp connection: the other end", outcome(peer.recv, 100), "ECONNRESET")
expect("tcp: ss -K lists", ports("ss -HlntK sport = :4002"), ["4002"])
expect("tcp: ss lists", ports("ss -Hant"), [])
expect("tcp: accept", outcome(listener.accept), "EINVAL")
expect("tcp: another bind", outcome(bound, socket.SOCK_STREAM, 4002), "EADDRINUSE")
listener.listen()
peer = socket.create_connection(("127.0.0.1", 4002), 10)
expect("tcp: after listen, accept", listener.accept()[1], peer.getsockname())
expect("no match: ss -K", run("ss -HanuK sport = :4999"), ([""], 0))
PYTHON
uname -sr
ip -V
timeout 50 unshare --net python3 "$folder/kill.py"
