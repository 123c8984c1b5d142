#!/bin/sh
# Root's own changes of a file leave its set-user-ID bit and take its capabilities. CAP_FSETID, which keeps the bits
# when a file is modified, does nothing for capabilities: the kernel removes them (security.capability) for every user,
# and no call says so. chown(2) tells of its own part of this, the pages of the other calls do not:
#
#                                              set-user-ID   capabilities
#   write(2), also of the same bytes           stays         gone
#   open(2) with O_TRUNC, truncate(2) to the   stays         gone
#     size that it has, fallocate(2) inside
#   chown(2) to the owner that it has, or to   gone          gone
#     none (-1, -1)
#   chmod(2), utimensat(2), another xattr,     stays         stays
#     rename(2), link(2), open for writing
#
# So a helper that was set up with setcap(8) is without capabilities after `strip`, `cp` over it, or a deployment that
# writes the same bytes again, where a set-user-ID one works on. setcap has to be the last step.
# Seen on Linux 6.18, on ext4 and tmpfs. Needs root, python3 and strip(1).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uname -sr

cat >"$folder/change.py" <<'PYTHON'
import os
import subprocess

SIZE = os.path.getsize("/bin/true")
# Version 2, effective: cap_net_raw in permitted.
CAPABILITY = bytes([1, 0, 0, 2, 0, 0x20, 0, 0]) + bytes(12)


def opened(action, flags=os.O_RDWR):
    def act():
        descriptor = os.open("prog", flags)
        action(descriptor)
        os.close(descriptor)
    return act


def run(*command):
    return lambda: subprocess.run(command, check=True)


CHANGES = {
    "write of the same byte": opened(lambda fd: os.pwrite(fd, os.pread(fd, 1, 0), 0)),
    "O_TRUNC": opened(lambda fd: None, os.O_WRONLY | os.O_TRUNC),
    "truncate to its size": lambda: os.truncate("prog", SIZE),
    "fallocate inside": opened(lambda fd: os.posix_fallocate(fd, 0, SIZE)),
    "chown to its owner": lambda: os.chown("prog", 0, 0),
    "chown to none": lambda: os.chown("prog", -1, -1),
    "chmod": lambda: os.chmod("prog", 0o4755),
    "utimensat": lambda: os.utime("prog"),
    "setxattr": lambda: os.setxattr("prog", "trusted.other", b"1"),
    "rename": lambda: os.rename("prog", "other") or os.rename("other", "prog"),
    "link": lambda: os.link("prog", "other"),
    "open for writing": opened(lambda fd: None),
    "strip": run("strip", "prog"),
    "cp over it": run("cp", "/bin/true", "prog"),
}

for name, change in CHANGES.items():
    for file in ("prog", "other"):
        if os.path.exists(file):
            os.unlink(file)
    subprocess.run(["cp", "/bin/true", "prog"], check=True)
    os.chmod("prog", 0o4755)
    os.setxattr("prog", "security.capability", CAPABILITY)
    change()
    bit = "stays" if os.stat("prog").st_mode & 0o4000 else "gone"
    capabilities = "stay" if "security.capability" in os.listxattr("prog") else "gone"
    print(f"{name}: set-user-ID {bit}, capabilities {capabilities}")
PYTHON
cd "$folder"
seen=$(python3 change.py)
echo "$seen"
mkdir tmpfs
again=$(unshare --mount sh -c 'mount -t tmpfs tmpfs tmpfs && cd tmpfs && python3 ../change.py')
expected="write of the same byte: set-user-ID stays, capabilities ${EXPECTED:-gone}
O_TRUNC: set-user-ID stays, capabilities gone
truncate to its size: set-user-ID stays, capabilities gone
fallocate inside: set-user-ID stays, capabilities gone
chown to its owner: set-user-ID gone, capabilities gone
chown to none: set-user-ID gone, capabilities gone
chmod: set-user-ID stays, capabilities stay
utimensat: set-user-ID stays, capabilities stay
setxattr: set-user-ID stays, capabilities stay
rename: set-user-ID stays, capabilities stay
link: set-user-ID stays, capabilities stay
open for writing: set-user-ID stays, capabilities stay
strip: set-user-ID stays, capabilities gone
cp over it: set-user-ID stays, capabilities gone"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
[ "$again" = "$expected" ] || { echo "changed, on tmpfs: $again" >&2; exit 1; }
