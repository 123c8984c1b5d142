#!/bin/sh
# vendor.sh ROOT: puts the crates of Cargo.lock into /crates of a chroot, with a configuration of Cargo that points
# there, so that builds in the chroot need no network.
set -eu

root=${1:?usage: vendor.sh ROOT}
top=$(cd "$(dirname "$0")/../.." && pwd)
crates=$root/crates

if ! cmp -s "$top/Cargo.lock" "$crates/Cargo.lock"; then
  rm -rf "$crates"
  mkdir -p "$crates" "$root/root/.cargo"
  (cd "$top" && cargo vendor --locked --quiet "$crates/vendor") >"$crates/log" 2>&1 || {
    cat "$crates/log" >&2
    exit 1
  }
  printf '%s\n' '[source.crates-io]' 'replace-with = "vendored"' '[source.vendored]' 'directory = "/crates/vendor"' \
    >"$root/root/.cargo/config.toml"
  cp "$top/Cargo.lock" "$crates/Cargo.lock"
fi
