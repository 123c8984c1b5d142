#!/bin/sh
# std.sh TRIPLE: installs Rust's standard library for a machine, if it is missing.
set -eu
[ ! -d "$(rustc --print target-libdir --target "$1")" ] || exit 0
command -v rustup >/dev/null || {
  echo "Rust's standard library for $1 is missing: install Rust by rustup, https://rustup.rs, or on Debian 13 its \
libstd-rust-dev for that machine" >&2
  exit 1
}
rustup target add "$1"
