#!/bin/sh
# ss(8) -f netlink names the wrong process for a socket that was bound in a pid namespace. The kernel makes the port id
# of a netlink socket from the process id that bind(2) sees, which is the number in the process's own pid namespace.
# ss takes the port id for a process id in its own /proc. Other sockets are looked up by inode (ss -p), netlink
# sockets are not, so -p changes nothing. A container's process 1 with the host's network is therefore listed as the
# host's process 1, and one whose number is not in use at the host as a bare number.
# Seen with ss of iproute2 6.1.0 on Linux 6.18. Needs root, python3, unshare(1) and ss(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
ss -V
uname -sr

cat >"$folder/hold.py" <<'PYTHON'
import os, socket, sys

sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
sock.bind((0, 0))
print(os.getpid(), sock.getsockname()[0], flush=True)
sys.stdin.read()
PYTHON
cat >"$folder/look.sh" <<'SHELL'
mkfifo "$1/in" "$1/out"
unshare --pid --fork --kill-child python3 "$1/hold.py" <"$1/in" >"$1/out" &
exec 3>"$1/in"
read -r own port <"$1/out"
echo "its process id: $own, its port id: $port"
ss -f netlink -p | sed -n 's/.*rtnl:\([^ ]*\/1\) .*/\1/p' >"$1/named"
exec 3>&-
wait
SHELL
unshare --net sh "$folder/look.sh" "$folder"
first=$(cat /proc/1/comm)
seen=$(cat "$folder/named")
echo "ss says: $seen"
[ "$seen" = "${EXPECTED:-$first/1}" ] || { echo "changed: expected $first/1, process 1 outside" >&2; exit 1; }
