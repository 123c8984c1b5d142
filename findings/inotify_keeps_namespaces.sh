#!/bin/sh
# A watch keeps a network namespace. inotify(7) tells what happens to a file, so a watch of /proc/PID/ns/net looks like
# the way to hear of the namespace's end (IN_DELETE_SELF). But the watch holds the file of nsfs, and this the namespace:
# when its last process has ended, it stays, with its devices, ports and addresses, until the watch is removed. No event
# ever comes. fanotify(7) marks of such a file do the same. None of the ways in which a namespace is looked for has it:
# no process, no descriptor of it, no mount; /proc/PID/fd shows anon_inode:inotify, and lsns(8) and ip-netns(8) nothing.
# RTM_DELNSID tells of the end, to a member of RTNLGRP_NSID in a namespace that has a number for it.
# Seen on Linux 6.18. Needs root (for namespaces), python3, ip(8), unshare(1) and lsns(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uname -sr

cat >"$folder/keep.py" <<'PYTHON'
import ctypes
import os
import select
import socket
import struct
import subprocess

libc = ctypes.CDLL(None, use_errno=True)
RTM_DELLINK, RTMGRP_LINK, FAN_MARK_ADD, AT_FDCWD = 17, 1, 1, -100


def inotify(path):
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(descriptor, path.encode(), 0xfff) > 0
    return descriptor


def fanotify(path):
    descriptor = libc.fanotify_init(0, os.O_RDONLY)
    assert libc.fanotify_mark(descriptor, FAN_MARK_ADD, ctypes.c_uint64(0x20), AT_FDCWD, path.encode()) == 0
    return descriptor


def nothing(_path):
    return os.open("/dev/null", os.O_RDONLY)


def ended(links, seconds):
    """Whether the end of va is told: it goes when the namespace of its other end does."""
    while select.select([links], [], [], seconds)[0]:
        data = links.recv(65536)
        if struct.unpack_from("=IH", data)[1] == RTM_DELLINK:
            return True
    return False


def look(name, watch):
    program = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE)
    program.stdout.readline()
    path = f"/proc/{program.pid}/ns/net"
    inode = str(os.stat(path).st_ino)
    subprocess.run(f"ip link add va type veth peer name vb netns {program.pid}", shell=True, check=True)
    descriptor = watch(path)
    program.kill()
    program.wait()
    links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    links.bind((0, RTMGRP_LINK))
    # Without a watch it ends in less than a second as a rule.
    gone = not os.path.exists("/sys/class/net/va") or ended(links, 60 if watch is nothing else 3)
    events = len(os.read(descriptor, 65536)) if watch is not nothing and select.select([descriptor], [], [], 0)[0] else 0
    listed = inode in subprocess.run(["lsns", "--type", "net", "--output", "NS"], capture_output=True, text=True).stdout
    state = "ended" if gone else f"stays, lsns {'has' if listed else 'does not have'} it, {events} bytes of events"
    os.close(descriptor)
    if not gone:
        state += ", ends with the watch" if ended(links, 60) else ", stays without the watch"
    print(f"{name}: {state}")


subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
look("no watch", nothing)
look("inotify", inotify)
look("fanotify", fanotify)
PYTHON
seen=$(unshare --net --mount python3 "$folder/keep.py")
echo "$seen"
expected="no watch: ended
inotify: ${EXPECTED:-stays}, lsns does not have it, 0 bytes of events, ends with the watch
fanotify: stays, lsns does not have it, 0 bytes of events, ends with the watch"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
