#!/bin/sh
# rootless.sh FOLDER RUNTIME IMAGE WHAT ARGUMENT...: runs look.exs in a container of an ordinary user, or beside it. The
# user, its subordinate ids and all processes exist in the namespaces alone in which run.sh starts this script.
#
# WHAT is `look`; `inside`, which makes a namespace of that name in the container first; or `outside`, which opens the
# namespace of another container of this user. The other arguments are those of podman run.
set -eu
dir=$1 runtime=$2
shift 2
user=60500
home=$dir/rootless
# What tells podman of containers that run: none does.
rm -rf "$home/run"
mkdir -p "$home/etc" "$home/run" "$home/release"
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
mount --bind "$dir/context/release" /mnt/release
# Its name is a setting.
cp "$runtime" "/mnt/${runtime##*/}"
cp "$dir/context/look.exs" /mnt/
: >/mnt/sample.tar
mount --bind "$dir/sample.tar" /mnt/sample.tar
cd /mnt
exec setpriv --reuid "$user" --regid "$user" --init-groups --reset-env env HOME=/mnt XDG_RUNTIME_DIR=/mnt/run LC_ALL=C.UTF-8 \
  RUNTIME="/mnt/${runtime##*/}" KEY="$(cat "$dir/image")" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -euc '
  podman() { command podman --runtime "$RUNTIME" --cgroup-manager cgroupfs "$@"; }
  image=$1 what=$2
  shift 2
  podman rm --force --all --time 0 >/dev/null 2>&1 || true
  if [ "$(cat loaded 2>/dev/null)" != "$KEY" ]; then
    podman load --quiet --input sample.tar >/dev/null
    podman image prune --force >/dev/null
    echo "$KEY" >loaded
  fi
  set -- --rm --network none "$@" "$image"
  case $what in
    look) podman run "$@" /app/bin/sample eval "Code.eval_file(\"/app/look.exs\")" ;;
    inside)
      podman run "$@" sh -c "ip netns add inside && exec /app/bin/sample eval \"Code.eval_file(\\\"/app/look.exs\\\")\"" ;;
    outside)
      podman run --detach --name other "$@" sleep 600
      LOOK=pid:$(podman inspect --format "{{.State.Pid}}" other) LOOK_USER_NAMESPACES=true RELEASE_TMP=/mnt/run \
        RELEASE_DISTRIBUTION=none /mnt/release/bin/sample eval "Code.eval_file(\"/mnt/look.exs\")"
      podman rm --force --time 0 other ;;
  esac' rootless "$@"
