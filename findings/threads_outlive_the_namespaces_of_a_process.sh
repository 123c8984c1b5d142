#!/bin/sh
# A process whose first thread has ended (pthread_exit(3) in main) goes on in its other threads, in the same namespaces.
# But /proc/PID/ns, setns(2) by a pidfd, and the process ids in rtnetlink (IFLA_NET_NS_PID, NETNSA_PID) mean the first
# thread alone, which has no namespaces any more. So for a process that works,
# - /proc/PID/ns/net is ENOENT, and so is nsenter(1) -t PID; ps(1) shows a zombie;
# - setns(2) by its pidfd, and `ip link set netns PID`, are ESRCH: as if the process were gone;
# - lsns(8) and ip-netns(8) `identify` and `pids` do not have it; lsns does not even list the namespace.
# The number of a thread that is left, from /proc/PID/task, works for nsenter, ip-link(8) and `identify`. pidfd_open(2)
# takes it only with PIDFD_THREAD (Linux 6.9).
# Seen on Linux 6.18 with iproute2 6.1.0 and util-linux 2.38.1. Needs root, gcc, python3, ip(8), lsns(8), nsenter(1).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/leave.c" <<'C'
#include <pthread.h>
#include <unistd.h>

static void *stay(void *none) {
  sleep(50);
  return none;
}

int main(void) {
  pthread_t thread;
  pthread_create(&thread, 0, stay, 0);
  pthread_exit(0);
}
C
gcc -o "$folder/leave" "$folder/leave.c" -pthread

cat >"$folder/look.py" <<'PYTHON'
import ctypes, errno, os, subprocess, sys

CLONE_NEWNET, PIDFD_THREAD, PIDFD_OPEN = 0x40000000, os.O_EXCL, 434
libc = ctypes.CDLL(None, use_errno=True)


def called(result):
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]


def said(*command):
    """The last line of the output, or "done"."""
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return ran.stdout.strip().replace(str(process.pid), "PID").replace(thread, "THREAD").split("\n")[-1] or "done"


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


def entered(number, flags):
    """By setns(2) with a pidfd."""
    fd = libc.syscall(PIDFD_OPEN, number, flags)
    if fd < 0:
        return "pidfd_open: " + called(fd)
    result = called(libc.setns(fd, CLONE_NEWNET))
    libc.setns(own, CLONE_NEWNET)
    return result


own = os.open("/proc/self/ns/net", os.O_RDONLY)
process = subprocess.Popen(["unshare", "--net", sys.argv[1]])
try:
    number = str(process.pid)
    while "State:\tZ" not in open(f"/proc/{number}/status").read():
        pass
    thread, = [name for name in os.listdir(f"/proc/{number}/task") if name != number]
    inode = str(os.stat(f"/proc/{thread}/ns/net").st_ino)
    expect("the namespace of the thread is a new one", inode != str(os.fstat(own).st_ino), True)
    os.kill(process.pid, 0)
    expect("nsenter -t PID -n", said("nsenter", "-t", number, "-n", "true"),
           os.environ.get("EXPECTED", "nsenter: cannot open /proc/PID/ns/net: No such file or directory"))
    expect("nsenter -t THREAD -n", said("nsenter", "-t", thread, "-n", "true"), "done")
    expect("setns(2) by the pidfd", entered(process.pid, 0), "ESRCH")
    expect("setns(2) by a pidfd of THREAD", entered(int(thread), 0), "pidfd_open: ENOENT")
    expect("the same with PIDFD_THREAD", entered(int(thread), PIDFD_THREAD), "done")
    said("ip", "link", "add", "va", "type", "veth", "peer", "name", "vb")
    expect("ip link set va netns PID", said("ip", "link", "set", "va", "netns", number), "RTNETLINK answers: No such process")
    expect("ip link set va netns THREAD", said("ip", "link", "set", "va", "netns", thread), "done")
    expect("lsns lists the namespace", inode in subprocess.run(["lsns", "-t", "net"], capture_output=True, text=True).stdout, False)
    said("ip", "netns", "attach", "here", thread)
    expect("ip netns identify PID", said("ip", "netns", "identify", number), "Cannot open network namespace: No such file or directory")
    expect("ip netns identify THREAD", said("ip", "netns", "identify", thread), "here")
    expect("ip netns pids", said("ip", "netns", "pids", "here"), "done")
finally:
    process.kill()
PYTHON
uname -sr
ip -V
unshare --net --mount sh -c 'mount -t tmpfs none /run && exec timeout 45 python3 "$1/look.py" "$1/leave"' sh "$folder"
