#!/bin/sh
# converse.sh HELPER: talks with the helper in the machine, without a VM. Root opens a socket in a namespace, and an
# ordinary user one in a namespace of another user namespace, through a child of the helper. Each helper has to show
# a link there, and to end with status 0 when its input does. 159 would be SIGSYS, from its filter.
set -eu
work=$(mktemp -d)
cp "$1" "$work/netlink_port"
chmod 755 "$work" "$work/netlink_port"
sleeper=
trap '[ -z "$sleeper" ] || kill "$sleeper"; umount /run/held; ip netns del there; rm -r "$work"' EXIT

talk() { # FRAMES LINK COMMAND...
  frames=$1 link=$2
  shift 2
  rm -f "$work/in" "$work/status"
  mkfifo "$work/in"
  { "$@" <"$work/in" && echo 0 || echo $?; } 2>&1 | cat >"$work/out" &
  said=$!
  exec 3>"$work/in"
  cat "$frames" >&3
  left=600
  until grep -qa "$link" "$work/out" || [ "$left" = 0 ]; do sleep 0.5; left=$((left - 1)); done
  exec 3>&-
  wait "$said"
  status=$(tail -c 2 "$work/out" | tr -d '\n')
  if grep -qa "$link" "$work/out" && [ "$status" = 0 ]; then echo "$link: seen, ended with 0"; else
    echo "$link: not seen, or ended with another status than 0:"
    od -c "$work/out" | tail -20
    exit 1
  fi
}

ip netns add there
ip -n there link add there0 type bridge
talk /guest/frames/there there0 "$work/netlink_port"

setpriv --reuid 65534 --regid 65534 --clear-groups unshare -Urn sleep 600 &
sleeper=$!
until [ "$(cat "/proc/$sleeper/comm")" = sleep ]; do sleep 0.1; done
touch /run/held
mount --bind "/proc/$sleeper/ns/net" /run/held
nsenter --user --net --target "$sleeper" ip link add held0 type bridge
talk /guest/frames/held held0 setpriv --reuid 65534 --regid 65534 --clear-groups "$work/netlink_port" --user-namespaces
