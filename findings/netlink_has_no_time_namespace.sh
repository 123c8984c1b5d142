#!/bin/sh
# In a time namespace (unshare --time, CRIU) CLOCK_MONOTONIC, CLOCK_BOOTTIME and /proc/uptime are shifted, and the times
# in netlink messages are not. Seen on Linux 6.18:
# - cstamp and tstamp of an address (IFA_CACHEINFO), hundredths of a second since the boot, are those of the machine;
# - so are timestamp_ns and the process ids in the events of the proc connector (NETLINK_CONNECTOR): a listener in a pid
#   namespace is accepted, and gets numbers of the first one, which its own /proc does not have or has for others.
# So what a program compares with clock_gettime(2) is off by the offset: an address looks days old, or made in the
# future. time_namespaces(7) lists the calls that are shifted, and is silent about these. In another network namespace
# the connector is ECONNREFUSED.
# Needs root outside of containers, CONFIG_TIME_NS and CONFIG_PROC_EVENTS, python3, ip(8) and unshare(1).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/times.py" <<'PYTHON'
import os, socket, struct, subprocess, sys, time

ROUTE, CONNECTOR = 0, 11
RTM_NEWADDR, RTM_GETADDR, IFA_CACHEINFO, NLMSG_DONE = 20, 22, 6, 3
CN_IDX_PROC, PROC_CN_MCAST_LISTEN, PROC_EVENT_EXIT = 1, 1, 0x80000000
OFFSET = 1000000


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


def clock(seconds):
    """The clock that shows this time, give or take a minute."""
    own = time.clock_gettime(time.CLOCK_MONOTONIC)
    return "own" if abs(own - seconds) < 60 else "the machine's" if abs(own - OFFSET - seconds) < 60 else seconds


def attributes(data):
    while data:
        length, kind = struct.unpack_from("=HH", data)
        yield kind, data[4:length]
        data = data[length + 3 & ~3 :]


def address_was_made():
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, ROUTE)
    sock.send(struct.pack("=IHHIIBBBBI", 24, RTM_GETADDR, 0x301, 1, 0, socket.AF_INET, 0, 0, 0, 0))
    data = sock.recv(65536)
    while True:
        length, kind = struct.unpack_from("=IH", data)
        assert kind == RTM_NEWADDR
        _preferred, _valid, cstamp, _tstamp = struct.unpack("=IIII", dict(attributes(data[24:length]))[IFA_CACHEINFO])
        return cstamp / 100


def listener():
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, CONNECTOR)
    sock.settimeout(20)
    sock.bind((0, CN_IDX_PROC))
    sock.send(struct.pack("=IHHII IIIIHHI", 40, NLMSG_DONE, 0, 0, 0, CN_IDX_PROC, 1, 0, 0, 4, 0, PROC_CN_MCAST_LISTEN))
    return sock


def exit_of_a_child():
    """The process id and the time, in seconds, of the event of a child that ends with the code 77."""
    sock = listener()
    child = os.fork()
    if child == 0:
        os._exit(77)
    os.waitpid(child, 0)
    while True:
        # struct cn_msg, what, cpu, timestamp_ns, process_pid, process_tgid, exit_code
        what, _cpu, stamp, pid, _tgid, code = struct.unpack_from("=IIQiiI", sock.recv(4096) + bytes(64), 16 + 20)
        if (what, code) == (PROC_EVENT_EXIT, 77 << 8):
            return pid, child, stamp / 1e9


if sys.argv[1] == "inside":
    expect("an address in the dump was made at the time of the clock", clock(address_was_made()), os.environ.get("EXPECTED", "the machine's"))
    os._exit(0)
if sys.argv[1] == "connector":
    pid, child, stamp = exit_of_a_child()
    expect("the event has another number", pid != child, True)
    expect("the event has the time of the clock", clock(stamp), "the machine's")
    os._exit(0)
if sys.argv[1] == "connector, other network":
    try:
        listener()
    except ConnectionRefusedError as error:
        expect("in another network namespace", error.strerror, "Connection refused")
        os._exit(0)
PYTHON
uname -sr
shifted="--time --monotonic 1000000 --boottime 1000000 --fork"
timeout 40 unshare $shifted --net sh -c 'ip link set lo up && exec python3 "$0" inside' "$folder/times.py"
timeout 40 unshare $shifted --pid sh -c 'python3 "$0" connector' "$folder/times.py"
timeout 40 unshare --net python3 "$folder/times.py" "connector, other network"
