#!/bin/sh
# A mount of binfmt_misc in a user namespace takes the handlers of the host away from it, for good. Since Linux 6.7 a
# user namespace can have handlers of its own; as long as it has none mounted, those of the nearest user namespace above
# it apply, so a container runs programs for other machines by the host's qemu-user. The first mount gives the user
# namespace an empty instance, without an error:
# - programs that ran before are ENOEXEC, and the mount shows `register` and `status` alone;
# - umount(2) does not bring the handlers back;
# - handlers that are registered there work as long as the instance is mounted, and end with umount(2).
# The user namespace above, and a new one beside it, keep their handlers.
# Seen on Linux 6.18. Needs python3 and unshare(1), but not root.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cat >"$folder/try.py" <<'PYTHON'
import os, subprocess, sys


def expect(what, expected):
    """What execve(2) of a file does whose first bytes a handler of the outer user namespace knows."""
    try:
        seen = subprocess.run([folder + "/program"], capture_output=True, text=True).stdout.split("/")[-1].strip()
    except OSError as error:
        seen = error.strerror
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


def register(name):
    with open(mounted + "/register", "w") as file:
        file.write(f":{name}:M::HELLO::/bin/echo:")


place, folder = sys.argv[1:]
mounted = folder + "/mount"
mount = ["mount", "-t", "binfmt_misc", "none", mounted]
if place == "outer":
    subprocess.run(mount, check=True)
    expect("a user namespace without a handler", "Exec format error")
    register("outer")
    expect("a user namespace with a handler", "program")
    nested = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, __file__]
    subprocess.run(nested + ["inner", folder], check=True)
    subprocess.run(nested + ["new", folder], check=True)
    expect("the outer one, later", "program")
elif place == "new":
    expect("a new one in it", "program")
else:
    expect("one in it", "program")
    subprocess.run(mount, check=True)
    expect("with a mount of its own", os.environ.get("EXPECTED", "Exec format error"))
    print("files:", sorted(os.listdir(mounted)))
    assert sorted(os.listdir(mounted)) == ["register", "status"]
    subprocess.run(["umount", mounted], check=True)
    expect("after umount", "Exec format error")
    subprocess.run(mount, check=True)
    register("inner")
    expect("with a handler of its own", "program")
    subprocess.run(["umount", mounted], check=True)
    expect("after umount", "Exec format error")
PYTHON
mkdir "$folder/mount"
printf 'HELLO\n' >"$folder/program"
chmod 755 "$folder/program"
uname -sr
timeout 50 unshare --user --map-root-user --mount python3 "$folder/try.py" outer "$folder"
