#!/bin/sh
# A namespace has a file handle (new in Linux 6.18): name_to_handle_at(2) of /proc/PID/ns/net gives 16 bytes,
# struct nsfs_file_handle of <linux/nsfs.h>, and open_by_handle_at(2) with FD_NSFS_ROOT as its directory opens the
# namespace by them. Neither /proc nor a mount of nsfs is asked. So
# - the handle does not keep the namespace, but finds it as long as anything keeps it: also one that a socket
#   alone keeps, which /proc, ip-netns(8) and lsns(8) do not have any more;
# - its first 8 bytes are SO_NETNS_COOKIE of any socket in it, which needs no capability, and are never used again. So
#   handles can be compared, where the inode number of a namespace can come back;
# - after the end it is ESTALE. So it is, too, for a process that may not enter the namespace: a missing CAP_SYS_ADMIN
#   is not EPERM, and looks like the end. A process always may open its own by it.
# Seen on Linux 6.18. On an older kernel, which has no such handles, the script is skipped. Needs root and python3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/handle.py" <<'PYTHON'
import ctypes, errno, os, socket, struct, sys, time

AT_EMPTY_PATH, CLONE_NEWNET, FD_NSFS_ROOT, FILEID_NSFS, SO_NETNS_COOKIE = 0x1000, 0x40000000, -10003, 0xF1, 71
libc = ctypes.CDLL(None, use_errno=True)


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128)]


def handle(fd):
    found, mount = Handle(bytes=128), ctypes.c_int()
    if libc.name_to_handle_at(fd, b"", ctypes.byref(found), ctypes.byref(mount), AT_EMPTY_PATH) < 0:
        print("skipped: this kernel has no handles of namespaces:", os.strerror(ctypes.get_errno()))
        sys.exit()
    return found.type, bytes(found.handle[:found.bytes])


def opened(kept):
    """The inode of the namespace, or the name of the error."""
    value = Handle(bytes=len(kept[1]), type=kept[0], handle=(ctypes.c_ubyte * 128)(*kept[1]))
    fd = libc.open_by_handle_at(FD_NSFS_ROOT, ctypes.byref(value), os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        return errno.errorcode[ctypes.get_errno()]
    inode = os.fstat(fd).st_ino
    os.close(fd)
    return inode


def without_rights(kept):
    """What a child sees that has given up its capabilities."""
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        os.write(ends[1], str(opened(kept)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(ends[0], 64).decode()


def in_proc(inode):
    """Whether a process, or a descriptor of one, has the namespace."""
    name = f"net:[{inode}]"
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            paths = [f"/proc/{number}/ns/net"] + [f"/proc/{number}/fd/{fd}" for fd in os.listdir(f"/proc/{number}/fd")]
        except OSError:
            continue
        for path in paths:
            try:
                if os.readlink(path) == name:
                    return True
            except OSError:
                pass
    return False


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


own = os.open("/proc/self/ns/net", os.O_RDONLY)
handle(own)
libc.unshare(CLONE_NEWNET)
new = os.open("/proc/self/ns/net", os.O_RDONLY)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
libc.setns(own, CLONE_NEWNET)
kept, inode = handle(new), os.fstat(new).st_ino
identity, kind, number = struct.unpack("=QII", kept[1])
cookie = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
expect("type", kept[0], FILEID_NSFS)
expect("id is the cookie; kind; inode", (identity == cookie, kind, number == inode), (True, CLONE_NEWNET, True))
expect("it opens the namespace", opened(kept) == inode, True)
os.close(new)
expect("kept by a socket alone: in /proc", in_proc(inode), False)
expect("it opens the namespace", opened(kept) == inode, not os.environ.get("EXPECTED"))
expect("without CAP_SYS_ADMIN", without_rights(kept), "ESTALE")
expect("without CAP_SYS_ADMIN, of the own namespace", without_rights(handle(own)), str(os.fstat(own).st_ino))
sock.close()
# The kernel ends a namespace a while after its last user.
until = time.monotonic() + 20
while opened(kept) == inode and time.monotonic() < until:
    pass
expect("after the end", opened(kept), "ESTALE")
PYTHON
uname -sr
timeout 50 python3 "$folder/handle.py"
