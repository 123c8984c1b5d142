#!/bin/sh
# A record lock (fcntl(2)) on a file of a shared volume, held by a process outside of the pid namespace, has no owner:
# - F_GETLK says that the file is locked, with l_pid 0. fcntl(2) knows a process id and -1. A program that prints the
#   owner prints "process 0", and one that signals it with kill(2) signals its own process group: 0 means that;
# - /proc/locks and lslocks(8) show no lock on the file, as of a flock(2), which is refused all the same;
# - an open file description lock (F_OFD_SETLK) is the exception: its owner is -1 everywhere, and every /proc/locks
#   shows it.
# Seen on Linux 6.18. Needs root (for a pid namespace), python3 and util-linux.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uname -sr

cat >locks.py <<'PYTHON'
import fcntl
import os
import struct
import subprocess
import sys

F_OFD_SETLK, FLOCK = 37, "hhlli4x"


def look():
    """As another process, in this pid namespace or another."""
    mine = {str(os.stat(name).st_ino): name for name in ("record", "whole", "description")}
    for name in ("record", "description"):
        with open(name, "r+") as file:
            asked = struct.pack(FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
            kind, _whence, _start, _length, owner = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
        owner = "the holder" if str(owner) == sys.argv[2] else owner
        print(f"{name}: {'locked' if kind == fcntl.F_WRLCK else 'free'}, l_pid {owner}")
    with open("whole") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print("whole: free")
        except BlockingIOError:
            print("whole: locked")
    with open("/proc/locks") as locks:
        inodes = [line.split()[-3].split(":")[2] for line in locks]
    print("/proc/locks:", " ".join(sorted(mine[inode] for inode in inodes if inode in mine)))
    listed = subprocess.run(["lslocks", "--noheadings", "--output", "PID,INODE"], capture_output=True, text=True, check=True)
    print("lslocks, of the holder:", sum(line.split()[0] == sys.argv[2] for line in listed.stdout.splitlines()))


def hold():
    with open("record", "w") as record, open("whole", "w") as whole, open("description", "w") as description:
        fcntl.lockf(record, fcntl.LOCK_EX)
        fcntl.flock(whole, fcntl.LOCK_EX)
        fcntl.fcntl(description, F_OFD_SETLK, struct.pack(FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0))
        for where in ([], ["unshare", "--pid", "--fork", "--mount-proc"]):
            print("another pid namespace" if where else "the same pid namespace", flush=True)
            subprocess.run([*where, sys.executable, "locks.py", "look", str(os.getpid())], check=True)


{"look": look, "hold": hold}[sys.argv[1]]()
PYTHON
seen=$(python3 locks.py hold)
echo "$seen"
expected="the same pid namespace
record: locked, l_pid the holder
description: locked, l_pid -1
whole: locked
/proc/locks: description record whole
lslocks, of the holder: 2
another pid namespace
record: locked, l_pid ${EXPECTED:-0}
description: locked, l_pid -1
whole: locked
/proc/locks: description
lslocks, of the holder: 0"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
