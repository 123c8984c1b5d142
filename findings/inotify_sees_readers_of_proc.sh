#!/bin/sh
# inotify(7) says that /proc and /sys are not monitorable. A watch there succeeds, and tells a half:
#   told      what programs do with the file by the same mount: open(2), read(2), write(2), close(2). A write of
#             ip_forward is IN_MODIFY, and each `ps` is IN_ACCESS of stat in a directory /proc/PID
#   not told  what the kernel changes: conf/all/forwarding, which a write of ip_forward changes; the MTU that ip(8)
#             sets; a new process, a new device, and the end of either, also if its own file is watched
#   not told  a write through another mount of /proc, as in another pid namespace, although it is the same setting
# So a program that waits for a change of a setting passes a test that writes the file, and misses all others. rtnetlink
# tells of these: RTNLGRP_IPV4_NETCONF of forwarding, RTNLGRP_LINK of devices.
# Seen on Linux 6.18. Needs root (for namespaces), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/proc"
uname -sr

cat >"$folder/watch.py" <<'PYTHON'
import ctypes
import os
import select
import struct
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
NAMES = {0x1: "ACCESS", 0x2: "MODIFY", 0x4: "ATTRIB", 0x8: "CLOSE", 0x10: "CLOSE", 0x20: "OPEN", 0x100: "CREATE",
         0x200: "DELETE", 0x400: "DELETE_SELF"}
IPV4 = "/proc/sys/net/ipv4/"
other_mount = sys.argv[1]


def told(paths, action):
    watches = {}
    inotify = libc.inotify_init1(os.O_NONBLOCK)
    for path in paths:
        watch = libc.inotify_add_watch(inotify, path.encode(), 0xfff)
        if watch < 0:
            raise OSError(ctypes.get_errno(), path)
        watches[watch] = os.path.basename(path)
    action()
    events = []
    # Events are in the queue when the call that makes them returns.
    while select.select([inotify], [], [], 0)[0]:
        data = os.read(inotify, 65536)
        while data:
            watch, mask, _cookie, size = struct.unpack_from("iIII", data)
            name = data[16:16 + size].rstrip(b"\0").decode()
            events.append(" ".join(filter(None, [watches[watch], name, NAMES.get(mask & 0xfff)])))
            data = data[16 + size:]
    os.close(inotify)
    return ", ".join(events) or "nothing"


def write(path, text):
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, text)
    os.close(descriptor)


def read(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, 100)
    os.close(descriptor)


def run(command):
    subprocess.run(command, shell=True, check=True)


run(f"mount -t sysfs sysfs /sys && mount -t proc proc {other_mount} && ip link add va type bridge")
print("a write of ip_forward:", told([IPV4 + "ip_forward"], lambda: write(IPV4 + "ip_forward", b"0")))
print("to conf/all/forwarding:", told([IPV4 + "conf/all/forwarding"], lambda: write(IPV4 + "ip_forward", b"1")))
with open(IPV4 + "conf/all/forwarding") as setting:
    assert setting.read() == "1\n"
print("a write by another mount:", told([IPV4 + "ip_forward"], lambda: write(other_mount + "/sys/net/ipv4/ip_forward", b"0")))
print("who reads:", told(["/proc/1"], lambda: read("/proc/1/stat")))
print("a process comes and goes:", told(["/proc"], lambda: run("true")))
sleep = subprocess.Popen(["sleep", "100"])
print("a watched one goes:", told([f"/proc/{sleep.pid}", f"/proc/{sleep.pid}/stat"], lambda: sleep.kill() or sleep.wait()))
print("ip sets an MTU:", told(["/sys/class/net/va/mtu"], lambda: run("ip link set va mtu 1400")))
print("a device comes:", told(["/sys/class/net", "/sys/devices/virtual/net"], lambda: run("ip link add vb type bridge")))
print("it goes:", told(["/sys/class/net", "/sys/devices/virtual/net/vb", "/sys/class/net/vb/mtu"], lambda: run("ip link del vb")))
PYTHON
seen=$(unshare --net --mount python3 "$folder/watch.py" "$folder/proc")
echo "$seen"
expected="a write of ip_forward: ip_forward OPEN, ip_forward MODIFY, ip_forward CLOSE
to conf/all/forwarding: ${EXPECTED:-nothing}
a write by another mount: nothing
who reads: 1 stat OPEN, 1 stat ACCESS, 1 stat CLOSE
a process comes and goes: nothing
a watched one goes: nothing
ip sets an MTU: nothing
a device comes: nothing
it goes: nothing"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
