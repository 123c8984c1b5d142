#!/bin/sh
# prepare.sh ARCH: makes what run.sh boots: the Debian of root.sh, and $ARCHITECTURES_DIR/ARCH.work.ext4, a disk with
# the built tree and the steps to run, which are in ARCH.steps. Root only.
#
# A script of its own, and not a function of run.sh: in a function, or braces, on the left of || `set -e` does nothing.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
dir=${ARCHITECTURES_DIR:?}
. "$here/machine.sh"
say() { echo "$arch: $*"; }
fail() { # LOG
  tail -30 "$1" >&2
  exit 1
}
for program in "${qemu%% *}:$package" "$gcc-gcc:gcc-$gcc" mmdebstrap:mmdebstrap mke2fs:e2fsprogs cpio:cpio depmod:kmod; do
  command -v "${program%:*}" >/dev/null || {
    say "${program%:*} is missing, which is in Debian's package ${program#*:}: \`make architectures\` installs it" >&2
    exit 1
  }
done

say "root and kernel"
"$here/root.sh" "$arch" >/dev/null

work=$dir/$arch.work
rm -rf --one-file-system "$work"
mkdir -p "$work/bin" "$work/src" "$work/frames"
cp "$dir/$arch.steps" "$work/steps"
say "cross-building, log: $dir/$arch.build.log"
"$here/build.sh" "$arch" "$work/bin" >"$dir/$arch.build.log" 2>&1 || fail "$dir/$arch.build.log"
# Only if a step needs it: it can take long.
if grep -q '^musl' "$work/steps"; then
  "$here/musl.sh" "$arch" "$work/bin/musl" >>"$dir/$arch.build.log" 2>&1 || fail "$dir/$arch.build.log"
fi

# Compiles the modules with the Elixir and OTP of that Debian. They are the same for all machines.
say "modules, log: $dir/modules.log"
copy=$("$top/test/matrix/copy.sh" "$suite")
"$top/test/matrix/enter.sh" "$suite" env -i HOME=/root LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -euc '
  command -v mix >/dev/null || {
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq elixir erlang-nox >/dev/null
  } </dev/null
  mkdir -p /run/bin
  printf "#!/bin/sh\ncase \$1 in --version) echo cargo 1.85.0 ;; *) echo \"{\\\"executable\\\":\\\"/bin/true\\\"}\" ;; esac\n" >/run/bin/cargo
  chmod 755 /run/bin/cargo
  cd "$0"
  PATH=/run/bin:$PATH MIX_ENV=test mix compile' "$copy" >"$dir/modules.log" 2>&1 || fail "$dir/modules.log"
modules=$MATRIX_DIR/$suite$copy
[ -e "$modules/mix.exs" ] || { say "there is no tree in $modules" >&2; exit 1; }
cp -a "$modules/." "$work/src/"
rm -rf "$work/src/target" "$work/src/_build/dev" "$work/src/doc"
mkdir -p "$work/src/target/release/examples"
cp "$work/bin/examples/"* "$work/src/target/release/examples/"
cp -p "$work/bin/netlink_port" "$work/src/priv/netlink_port"
cp -p "$work/bin/netlink_port" "$work/src/target/release/"
rm -rf "$work/bin/examples"
# The tests call it to build programs that are built already.
printf '#!/bin/sh\nexit 0\n' >"$work/bin/cargo"
chmod 755 "$work/bin/cargo"
cp "$here/guest.sh" "$work/guest.sh"
# The Rust tests are built here, and the modules in the chroot.
printf '%s\n' "$top" "/suite$top" >"$work/top"
install -m 0755 "$here/converse.sh" "$work/bin/"
(cd "$top" && MIX_ENV=dev mix run test/architectures/frames.exs "$order" "$work/frames") >"$dir/$arch.frames.log" 2>&1 || fail "$dir/$arch.frames.log"
rm -f "$work.ext4"
mke2fs -q -t ext4 -L work -d "$work" "$work.ext4" 600M >/dev/null
