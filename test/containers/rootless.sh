#!/bin/sh
# rootless.sh FOLDER RUNTIME ARGUMENT...: runs look.exs in a container of an ordinary user. The user and its
# subordinate ids exist in this mount namespace alone, in which run.sh starts this script.
set -eu
dir=$1 runtime=$2
shift 2
user=60500
home=$dir/rootless
mkdir -p "$home/etc" "$home/run"
for file in passwd group; do cp "/etc/$file" "$home/etc/"; done
echo "rootless:x:$user:$user::$home:/bin/sh" >>"$home/etc/passwd"
echo "rootless:x:$user:" >>"$home/etc/group"
echo "rootless:600000:65536" >"$home/etc/subuid"
cp "$home/etc/subuid" "$home/etc/subgid"
for file in passwd group subuid subgid; do mount --bind "$home/etc/$file" "/etc/$file"; done
chown "$user:$user" "$home" "$home/run"
chmod 700 "$home/run"
# Other users may not be able to enter the folders above.
mount --bind "$home" /mnt
cp "$runtime" /mnt/runtime.sh
cp "$dir/sample.tar" /mnt/run/sample.tar
chown "$user" /mnt/run/sample.tar
cd /mnt
set -- setpriv --reuid "$user" --regid "$user" --init-groups --reset-env env HOME=/mnt XDG_RUNTIME_DIR=/mnt/run \
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -euc '
  podman() { command podman --runtime /mnt/runtime.sh --cgroup-manager cgroupfs "$@"; }
  podman image exists localhost/netlink_port/sample || podman load --quiet --input /mnt/run/sample.tar >/dev/null
  podman run --rm --network none "$@" localhost/netlink_port/sample \
    /app/bin/sample eval '"'"'Code.eval_file("/app/look.exs")'"'"' && status=0 || status=$?
  # Ends the process of podman that keeps the namespaces of a user for the next call: it would keep these mounts, too.
  podman system migrate
  exit "$status"' rootless "$@"
exec "$@"
