#!/bin/sh
# `setpriv --ambient-caps +net_admin program` starts the program without the capability, and without an error.
# setpriv(1) says that an ambient capability has to be inheritable first, as the kernel does: prctl(2)
# PR_CAP_AMBIENT_RAISE is EPERM. setpriv does not report this one. It does report an inheritable capability that the
# kernel refuses, and so does capsh(1) with --addamb. So a helper that is started as another user has nothing, and the
# first EPERM is its own, far from the cause. --inh-caps with the same list, on either side of --ambient-caps, is what
# is missing.
# Seen with setpriv of util-linux 2.38.1, libcap-ng 0.8.3 and capsh of libcap 2.66 on Linux 6.18. Needs root, setpriv(1)
# and capsh(1).
set -eu
setpriv --version
uname -sr

# The ambient set of a program that runs as another user, bit 12 is CAP_NET_ADMIN, and the exit status.
ambient() {
  name=$1
  shift
  "$@" >"$folder/out" 2>"$folder/errors" && status=0 || status=$?
  echo "$name: $(sed 's/.*\t0*\([0-9a-f][0-9a-f]*\)$/ambient set \1, /' "$folder/out" | tr -d '\n')status $status, $([ -s "$folder/errors" ] && echo 'an error' || echo 'no error')"
}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
user='setpriv --reuid 4242 --regid 4242 --clear-groups'
show='grep CapAmb /proc/self/status'
seen=$(
  ambient 'ambient' $user --ambient-caps +net_admin $show
  ambient 'ambient, as root' setpriv --ambient-caps +net_admin $show
  ambient 'inheritable, ambient' $user --inh-caps +net_admin --ambient-caps +net_admin $show
  ambient 'ambient, inheritable' $user --ambient-caps +net_admin --inh-caps +net_admin $show
  ambient 'inheritable, outside of the bounding set' setpriv --bounding-set -net_admin --inh-caps +net_admin $show
  ambient 'capsh' capsh --addamb=cap_net_admin -- -c "$show"
)
echo "$seen"
expected="ambient: ambient set ${EXPECTED:-0}, status 0, no error
ambient, as root: ambient set 0, status 0, no error
inheritable, ambient: ambient set 1000, status 0, no error
ambient, inheritable: ambient set 1000, status 0, no error
inheritable, outside of the bounding set: status 127, an error
capsh: status 1, an error"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
