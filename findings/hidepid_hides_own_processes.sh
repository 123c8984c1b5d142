#!/bin/sh
# A /proc that is mounted with hidepid=2 hides processes of the user who looks, too. proc(5) says that the directories
# of other users become invisible. The kernel does not compare users alone: it asks whether the reader might trace the
# process (ptrace(2), PTRACE_MODE_READ_FSCREDS). So to an ordinary user these of his own are not in /proc, without root:
#   a program with file capabilities (ping, dumpcap), or with ambient ones (AmbientCapabilities= of a service)
#   a process that has called prctl(PR_SET_DUMPABLE, 0), such as ssh-agent
#   seen from a user namespace of his own (unshare -r): each process outside of it
# while a process in such a user namespace is visible from outside. ps(1), pgrep(1) and /proc/PID know nothing of the
# hidden ones, and kill(2) works on them. So a supervisor that looks for its helper in /proc takes a
# helper with CAP_NET_ADMIN for dead.
# Seen on Linux 6.18. Needs root (for a mount namespace and to set capabilities), setpriv(1), setcap(8), ps(1), pgrep(1)
# and python3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cp /bin/sleep "$folder/capable"
setcap cap_net_admin+ep "$folder/capable"
uname -sr

cat >"$folder/look.sh" <<'IN'
# In a pid namespace of its own, whose end ends all of this.
set -eu
mount -t proc -o hidepid=2 proc /proc
user='setpriv --reuid 4242 --regid 4242 --clear-groups'
python=$(command -v /usr/bin/python3 || command -v python3)
$user sleep 1001 & plain=$!
$user "$1/capable" 1002 & file=$!
$user --inh-caps +net_admin --ambient-caps +net_admin sleep 1003 & ambient=$!
mkfifo -m 666 "$1/ready"
$user "$python" -c 'import ctypes, sys, time; ctypes.CDLL(None).prctl(4, 0); open(sys.argv[1], "w").close(); time.sleep(1004)' "$1/ready" & dumpable=$!
read -r line <"$1/ready" || true
$user unshare --user --map-root-user sleep 1005 & inside=$!
# Each has become what it is when its name is there. Root sees all.
for pid in $plain $ambient $inside; do
  until [ "$(cat /proc/$pid/comm)" = sleep ]; do :; done
done
until [ "$(cat /proc/$file/comm)" = capable ]; do :; done
for which in "plain $plain" "file $file" "ambient $ambient" "dumpable $dumpable" "inside $inside"; do
  set -- "$@" "$which"
done
folder=$1
shift
for which in "$@"; do
  name=${which% *} pid=${which#* }
  $user sh -c '
    if ps -p "$2" >/dev/null && [ -d "/proc/$2" ]; then seen=visible; else seen=hidden; fi
    kill -0 "$2" && echo "$1: $seen, kill works"' - "$name" "$pid"
done
echo "pgrep: $($user pgrep -c 'sleep|capable|python')"
$user unshare --user --map-root-user sh -c "if [ -d /proc/$plain ]; then echo seen; else echo hidden; fi; kill -0 $plain && echo 'kill works'" |
  sed 's/^/plain, from a user namespace: /'
IN
seen=$(unshare --mount --pid --fork sh "$folder/look.sh" "$folder")
echo "$seen"
expected="plain: visible, kill works
file: ${EXPECTED:-hidden}, kill works
ambient: hidden, kill works
dumpable: hidden, kill works
inside: visible, kill works
pgrep: 2
plain, from a user namespace: hidden
plain, from a user namespace: kill works"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
