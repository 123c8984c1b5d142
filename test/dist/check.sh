#!/bin/sh
# check.sh EXECUTABLE [CHROOT]...: shows that the executable runs in a root that contains only itself and /proc, and
# in each CHROOT. It says its version, and a VM outside talks with it over its pipes. Root only.
#
# All mounts are in a namespace that ends with the run. Nothing is written into a CHROOT.
set -eu

executable=$(realpath "$1")
shift
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
stranger=
trap '[ -z "$stranger" ] || kill "$stranger"; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# A process in a new network namespace, which has a bridge.
unshare --net sleep 600 &
stranger=$!
while [ "$(cat "/proc/$stranger/comm")" != sleep ]; do kill -0 "$stranger"; sleep 0.1; done
nsenter --net --target "$stranger" ip link add dist0 type bridge

# inside CHROOT EXECUTABLE ARGUMENTS...
cat >"$work/inside" <<'INSIDE'
#!/bin/sh
set -eu
root=$1 executable=$2
shift 2
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/mnt"
cp "$executable" "$root/mnt/netlink_port"
exec chroot "$root" /mnt/netlink_port "$@"
INSIDE
chmod 755 "$work/inside"

mkdir -p "$work/empty/proc" "$work/empty/mnt"
for root in "$work/empty" "$@"; do
  name=$(basename "$root")
  printf '#!/bin/sh\nexec unshare --mount "%s" "%s" "%s" "$@"\n' "$work/inside" "$root" "$executable" >"$work/$name.sh"
  chmod 755 "$work/$name.sh"
  version=$("$work/$name.sh" --version)
  echo "$name: $version"
  mix run "$here/converse.exs" "$work/$name.sh" "$stranger" dist0
done

# Without /proc the executable says so, and ends.
mkdir "$work/bare"
cp "$executable" "$work/bare/netlink_port"
without=$({ sleep 5 | chroot "$work/bare" /netlink_port 2>&1 >/dev/null; } | cat) || true
case $without in
  *"/proc/self/ns/net"*) echo "without /proc: $without" ;;
  *) echo "without /proc it says: $without" >&2; exit 1 ;;
esac
