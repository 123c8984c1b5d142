#!/bin/sh
# The generic netlink family TASKSTATS takes a registration for the statistics of processes that end, and acks it, in
# any network namespace. But it sends them to the port id of the registration in the first network namespace. So a
# program in another one (`ip netns exec`, a service with PrivateNetwork=, a container with the host's user and pid namespaces)
# is acked, and hears nothing. A socket of the first namespace that has the same port id gets the statistics instead:
# port ids are process ids as a rule. In another user namespace the request is EPERM, in another pid namespace EINVAL.
# The family's other command, which asks about a process, works in each network namespace.
# Seen on Linux 6.18. Needs root in the first namespaces, CONFIG_TASKSTATS, and python3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/register.py" <<'PYTHON'
import ctypes, os, socket, struct, subprocess, sys

GET_PID, REGISTER = 1, 3  # TASKSTATS_CMD_ATTR_PID, TASKSTATS_CMD_ATTR_REGISTER_CPUMASK


def generic(port=0):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
    sock.bind((port, 0))
    return sock


sock = namesake = generic()
if "namesake" in sys.argv:
    ctypes.CDLL(None).unshare(0x40000000)  # CLONE_NEWNET
    sock = generic(namesake.getsockname()[0])


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def answer(family, command, body, flags=1):
    body = struct.pack("=BBH", command, 1, 0) + body
    sock.send(struct.pack("=IHHII", 16 + len(body), family, flags, 1, 0) + body)
    return sock.recv(65536)


def error(data):
    return -struct.unpack_from("=i", data, 16)[0] if struct.unpack_from("=H", data, 4)[0] == 2 else 0


family = answer(16, 3, attribute(2, b"TASKSTATS\0"))
if error(family):
    sys.exit("skipped: this kernel has no taskstats")
at, family_id = 20, None
while at < len(family):
    length, kind = struct.unpack_from("=HH", family, at)
    if kind == 1:
        family_id = struct.unpack_from("=H", family, at + 4)[0]
    at += (length + 3) & ~3
asked = error(answer(family_id, 1, attribute(GET_PID, struct.pack("=I", os.getpid()))))
registered = error(answer(family_id, 1, attribute(REGISTER, b"0-%d\0" % (os.cpu_count() - 1)), 5))
ended = 0
if not registered:
    # Several, since the sending follows the end that wait(2) reports. Those of other processes count as well.
    namesake.settimeout(0.5)
    for _ in range(4):
        subprocess.run(["true"], check=True)
        try:
            namesake.recv(65536)
            ended = 1
        except TimeoutError:
            pass
code = lambda number: os.strerror(number) if number else "done"
print(f"asks: {code(asked)}; registers: {code(registered)}; statistics: {'some' if ended else 'none'}")
PYTHON
uname -sr
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
[ "$(readlink /proc/self/ns/user)" = "user:[4026531837]" ] || { echo "skipped: this is not the first user namespace"; exit 0; }
look() { timeout 20 "$@" python3 "$folder/register.py" ${namesake:-}; }
expect "first namespaces" "$(look env)" "asks: done; registers: done; statistics: some"
expect "another network namespace" "$(look unshare --net)" \
  "${EXPECTED:-asks: done; registers: done; statistics: none}"
namesake=namesake
expect "another network namespace, and a namesake in the first" "$(look env)" \
  "asks: done; registers: done; statistics: some"
namesake=
expect "another pid namespace" "$(look unshare --pid --fork)" \
  "asks: done; registers: Invalid argument; statistics: none"
expect "another user namespace" "$(look unshare --user --map-root-user)" \
  "asks: Operation not permitted; registers: Operation not permitted; statistics: none"
