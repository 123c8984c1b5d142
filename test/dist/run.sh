#!/bin/sh
# run.sh ARCH...: makes the static executable of each machine (build.sh). With that for this machine a VM talks in an
# empty root and on Debian's releases (check.sh; root only). `make dist` calls it. test/steps.sh says what is shown and
# which steps run again: a build always does, and Cargo keeps what has not changed. Logs: dist/.steps/ARCH.STEP.log.
set -eu

cd "$(dirname "$0")/../.."
. test/steps.sh
begin dist dist/.steps
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)

machine() { # ARCH
  step build test/dist/build.sh "$1"
  [ -z "$failed" ] || return 0
  executable=dist/netlink_port-$version-$1-linux
  [ "$(uname -m)" = "$1" ] || return 0
  [ "$(id -u)" = 0 ] || { echo "not root: not shown to run in other roots" >&2; return 0; }
  step roots sh -euc 'for suite; do test/matrix/chroot.sh "$suite"; done' sh bookworm trixie sid
  [ -z "$failed" ] || return 0
  roots=$(grep ^/ "$(log roots)")
  since "$(cat "$executable.sha256")" $roots
  step compile mix compile
  step check test/dist/check.sh "$executable" $roots
  [ -n "$failed" ] || cat "$(log check)"
}

all=
for arch; do
  place "$arch"
  machine "$arch"
  verdict "$(sed -n '/^dist/p' "$(log build)")" || all="$all $arch"
done
[ -z "$all" ]
