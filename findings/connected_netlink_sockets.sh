#!/bin/sh
# connect(2) of a netlink socket is more, and less, than a default address. connect(2) says of datagram sockets: "the
# only address from which datagrams are received". Seen on Linux 6.18:
# - a unicast of another process is refused, at the sender, with ECONNREFUSED: as if there were no such socket;
# - multicasts arrive, whoever sends them, and so do events of the kernel;
# - so a socket connected to a process cannot ask the kernel: sendto(2) to port id 0 succeeds, the request is carried
#   out, and its answer and ack are dropped without an error, nor are they counted among the drops;
# - a socket connected to port id 0 is one that no process but the kernel can send unicasts to;
# - getpeername(2) of a socket that was never connected is no ENOTCONN: it is the kernel's address, as after a connect
#   to it. What tells them apart is netlink_diag alone, by its state.
# Needs root (to use groups, in a network namespace), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/connect.py" <<'PYTHON'
import errno, os, socket, struct, subprocess

ROUTE, USERSOCK, SOCK_DIAG = 0, 2, 4
SOL_NETLINK, ADD_MEMBERSHIP, DROP_MEMBERSHIP = 270, 1, 2
GROUP = 3


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def opened(protocol):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    sock.bind((0, 0))
    return sock


def sent(sock, data, port, groups=0):
    try:
        sock.sendto(data, (port, groups))
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]


def received(sock):
    """The payloads of user messages, or the types of netlink messages."""
    seen = []
    while True:
        try:
            data = sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return seen
        seen.append(data.decode() if data.isalpha() else struct.unpack_from("=H", data, 4)[0])


def port(sock):
    return sock.getsockname()[0]


def drops(sock):
    return next(line.split()[8] for line in open("/proc/net/netlink") if line.split()[1:3] == ["0", str(port(sock))])


def connected(sock):
    """The state in netlink_diag (struct netlink_diag_msg)."""
    diag = opened(SOCK_DIAG)
    diag.send(struct.pack("=IHHII BBHIIII", 36, 20, 0x301, 1, 0, socket.AF_NETLINK, 255, 0, 0, 0, 0, 0))
    while True:
        data = diag.recv(65536)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            assert kind != 3, "the socket is not listed"
            _family, _type, protocol, state, number = struct.unpack_from("=BBBBI", data, 16)
            if (protocol, number) == (sock.proto, port(sock)):
                return state == 1
            data = data[length + 3 & ~3 :]


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


sock, peer, other = opened(USERSOCK), opened(USERSOCK), opened(USERSOCK)
sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, GROUP)
sock.connect((port(peer), 0))
expect("a unicast of the peer", sent(peer, b"peer", port(sock)), "ok")
expect("a unicast of another socket", sent(other, b"other", port(sock)), os.environ.get("EXPECTED", "ECONNREFUSED"))
other.sendto(b"multicast", (port(peer), 1 << GROUP - 1))
expect("received, after a multicast of another socket", received(sock), ["peer", "multicast"])

bridge = bytes(16) + attribute(3, b"b0\0") + attribute(18, attribute(1, b"bridge\0"))
ask = struct.pack("=IHHII", 16 + len(bridge), 16, 0x605, 1, 0) + bridge
sock, peer = opened(ROUTE), opened(ROUTE)
sock.connect((port(peer), 0))
expect("connected to a process, a request to the kernel", sent(sock, ask, 0), "ok")
expect("the bridge is there", subprocess.run(["ip", "link", "show", "b0"], stdout=subprocess.DEVNULL).returncode, 0)
expect("received", received(sock), [])
expect("drops", drops(sock), "0")
sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, 1)
subprocess.run(["ip", "link", "add", "b1", "type", "bridge"], check=True)
expect("received, after an event of the kernel (RTM_NEWLINK)", received(sock), [16])
sock.connect((0, 0))
sock.setsockopt(SOL_NETLINK, DROP_MEMBERSHIP, 1)
expect("connected to the kernel, the same request: EEXIST in", [sent(sock, ask, 0), received(sock)], ["ok", [2]])
expect("a unicast of a process", sent(peer, b"peer", port(sock)), "ECONNREFUSED")
fresh = opened(ROUTE)
expect("getpeername, connected to the kernel, and never", [sock.getpeername(), fresh.getpeername()], [(0, 0)] * 2)
expect("connected in netlink_diag", [connected(sock), connected(fresh)], [True, False])
expect("a unicast of a process to the latter", sent(peer, b"peer", port(fresh)), "ok")
PYTHON
uname -sr
timeout 30 unshare --net python3 "$folder/connect.py"
