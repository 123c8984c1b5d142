#!/bin/sh
# What tools say of the sockets of a process in another network namespace, as one in a container, is that there are
# none:
# - psutil: Process(pid).net_connections() is an empty list, also of UNIX sockets. There is no exception;
# - lsof -i -a -p PID prints nothing. Without -i it lists them as "protocol: TCP", without an address or a state.
# Both look the inodes of the process's descriptors up in /proc/net, which is that of their own namespace, although
# /proc/PID/net of the same process has them. By nsenter(1) -t PID -n both are right. So an agent on the host that
# checks what a container listens on finds nothing to complain about.
# Seen with psutil 7.1.3 and lsof 4.95 on Linux 6.18. Needs root (for a network namespace), python3, lsof(8), nsenter(1)
# and the network for pip.
set -eu
folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || :; rm -rf "$folder"' EXIT
server=
pip="python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps"
$pip --target "$folder/python" psutil==7.1.3
export PYTHONPATH="$folder/python"
uname -sr
cat >"$folder/server.py" <<'PYTHON'
import socket, time

tcp = socket.create_server(("0.0.0.0", 4321))
unix = socket.socket(socket.AF_UNIX)
unix.bind("\0findings")
unix.listen()
print("ready", flush=True)
time.sleep(60)
PYTHON
cat >"$folder/look.py" <<'PYTHON'
import psutil, sys

process = psutil.Process(int(sys.argv[1]))
print(sorted(str(c.laddr.port if c.family != 1 else c.laddr) for c in process.net_connections("all")))
PYTHON
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
mkfifo "$folder/ready"
unshare --net python3 "$folder/server.py" >"$folder/ready" 2>"$folder/errors" </dev/null &
server=$!
read -r ready <"$folder/ready"
enter="nsenter -t $server -n"
both="['4321', '@findings']"
expect "psutil" "$(python3 "$folder/look.py" "$server")" "${EXPECTED:-[]}"
expect "psutil, in the namespace" "$($enter python3 "$folder/look.py" "$server")" "$both"
expect "lsof -i" "$(lsof -w -nP -a -i -p "$server" || :)" ""
expect "lsof" "$(lsof -w -nP -a -p "$server" | awk '$5 == "sock" { print $9, $10 }' | xargs)" "protocol: TCP protocol: UNIX-STREAM"
expect "lsof -i, in the namespace" "$($enter lsof -w -nP -a -i -p "$server" | awk 'NR == 2 { print $8, $9, $10 }')" "TCP *:4321 (LISTEN)"
