#!/bin/sh
# Rust links musl statically by default on x86_64, aarch64, 32-bit ARM and others, and dynamically on riscv64, s390x and
# loongarch64: the cfg crt-static is missing there. With a cross compiler for glibc as the linker a build for riscv64
# succeeds all the same, and names glibc's dynamic linker (ld-linux-riscv64-lp64d.so.1), which no machine with musl has.
# -Ctarget-feature=+crt-static makes it static.
# Seen with rustc 1.95.0. Needs rustc; no target has to be installed.
set -eu
expected=${EXPECTED:-x86_64 aarch64 armv7 i686 powerpc64le}
rustc --version
static='' dynamic=''
for target in x86_64-unknown-linux-musl aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf i686-unknown-linux-musl \
  powerpc64le-unknown-linux-musl riscv64gc-unknown-linux-musl s390x-unknown-linux-musl loongarch64-unknown-linux-musl; do
  if rustc --print cfg --target "$target" | grep -q 'target_feature="crt-static"'; then
    static="$static ${target%%-*}"
  else
    dynamic="$dynamic ${target%%-*}"
    rustc --print cfg --target "$target" -Ctarget-feature=+crt-static | grep -q 'target_feature="crt-static"'
  fi
done
echo "static:$static; dynamic:$dynamic"
[ "$static" = " $expected" ] || { echo "the behaviour has changed, expected static: $expected" >&2; exit 1; }
