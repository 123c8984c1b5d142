#!/bin/sh
# docs.sh: makes the documentation in doc/ by ExDoc, in the chroot of trixie: Debian 13 has ExDoc. Fails on a
# warning. Root only.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
[ "$(id -u)" = 0 ] || { echo "make docs takes ExDoc from a chroot: run it as root" >&2; exit 1; }
root=$("$here/chroot.sh" trixie)
# The lock is that of make matrix, which uses the same copy.
. "$top/test/places.sh"
alone "docs or make matrix" "$(dirname "$root")/run"
work=$("$here/copy.sh" trixie)
version=$(sed -n 's/.*@version "\(.*\)"/\1/p' "$top/mix.exs")

# Compiles the modules alone, without the helper.
"$here/enter.sh" trixie env -i HOME=/root LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -euc '
  command -v ex_doc >/dev/null || {
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq elixir elixir-ex-doc >/dev/null
  } </dev/null
  cd "$0"
  MIX_ENV=docs mix do compile.elixir --force --warnings-as-errors + compile.app
  rm -rf doc
  ex_doc NetlinkPort "$1" _build/docs/lib/netlink_port/ebin --config docs/ex_doc.exs >doc.log 2>&1 || {
    cat doc.log
    exit 1
  }
  cat doc.log
  if grep -q "warning:" doc.log; then exit 1; fi
  # The files that pages refer to.
  mkdir -p doc/docs
  cp docs/*.svg docs/*.txt doc/docs
  cp docs/*.svg docs/*.txt LICENSE doc' "$work" "$version" || {
  echo "make docs: failed, as it says above" >&2
  exit 1
}
rm -rf "$top/doc"
cp -r "$root$work/doc" "$top/doc"
echo "doc/index.html"
