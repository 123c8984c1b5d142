#!/bin/sh
# A thread that enters a network namespace by itself (setns(2), unshare(2)), as those of a NIF, of Go or of a helper
# with workers do, finds two namespaces in its files:
#   the thread's        sockets, and so the links of rtnetlink; /proc/sys/net; /proc/thread-self/net and ns
#   the first thread's  /proc/net, which is /proc/self/net; /proc/self/ns; /proc/PID/net and ns for all others
#   of the mount        /sys/class/net: of the process that has mounted /sys
# So the thread writes ip_forward of the new namespace, and reads routes, sockets and statistics of the old one, both
# below /proc. A child of the thread has the new namespace in all of /proc, and still not in /sys.
# Seen on Linux 6.18. Needs root (for network namespaces), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.py" <<'PYTHON'
import ctypes, os, socket, subprocess, sys, threading

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def run(command):
    subprocess.run(command.split(), check=True)


def which(names):
    return "old" if "va" in names else "new" if "vx" in names else "neither"


def look():
    """Of which namespace the links are that a file or a call shows."""
    return {
        "if_nameindex": which([name for _index, name in socket.if_nameindex()]),
        "/proc/net": which(open("/proc/net/dev").read()),
        "/proc/thread-self/net": which(open("/proc/thread-self/net/dev").read()),
        "/proc/sys/net": which(os.listdir("/proc/sys/net/ipv4/conf")),
        "/sys/class/net": which(os.listdir("/sys/class/net")),
        "/proc/self/ns": "old" if os.stat("/proc/self/ns/net").st_ino == old else "new",
    }


def expect(what, seen, expected):
    for name in expected:
        print(f"{what}: {name}: {seen[name]}")
        if seen[name] != expected[name]:
            failed.append(name)
            print(f"the behaviour has changed, expected {expected[name]}", file=sys.stderr)


def thread():
    libc.unshare(CLONE_NEWNET)
    run("ip link add vx type veth peer name vy")
    expect("thread", look(), {
        "if_nameindex": "new", "/proc/net": os.environ.get("EXPECTED", "old"), "/proc/thread-self/net": "new",
        "/proc/sys/net": "new", "/sys/class/net": "old", "/proc/self/ns": "old"})
    seen = subprocess.run([sys.executable, __file__, str(old)], capture_output=True, text=True, check=True).stdout
    expect("its child", eval(seen), {
        "if_nameindex": "new", "/proc/net": "new", "/proc/thread-self/net": "new",
        "/proc/sys/net": "new", "/sys/class/net": "old", "/proc/self/ns": "new"})


failed = []
if len(sys.argv) > 1:
    old = int(sys.argv[1])
    print(look())
else:
    old = os.stat("/proc/self/ns/net").st_ino
    run("ip link add va type veth peer name vb")
    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()
    sys.exit(bool(failed))
PYTHON
uname -sr
timeout 50 unshare --net --mount sh -c 'mount -t sysfs none /sys && exec python3 "$1"' sh "$folder/look.py"
