#!/bin/sh
# build.sh [--executable] ARCH...: builds for each machine (x86_64 aarch64 armhf riscv64) a static executable,
# dist/netlink_port-VERSION-ARCH-linux, with its checksum and an SBOM. Each executable is started once, by qemu-user
# if it is for another machine. With --executable there is neither SBOM nor start. `make dist` calls it.
#
# The same Rust and C library make the same bytes, whatever the folder. The target directory is separate, so that the
# ordinary build is not changed. The SBOM lists the parts of the executable, without time, serial number and folder.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cyclonedx=0.5.9
cd "$top"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
mkdir -p dist
only=
if [ "$1" = --executable ]; then only=yes; shift; fi
[ -n "$only" ] || target/tools/bin/cargo-cyclonedx cyclonedx --version 2>/dev/null | grep -q " $cyclonedx\$" ||
  cargo install --locked --force --quiet --root target/tools cargo-cyclonedx --version "$cyclonedx"

for arch; do
  if [ "$arch" = x86_64 ]; then triple=x86_64-unknown-linux-gnu gcc=x86_64-linux-gnu emulator=''; else
    . "$top/test/architectures/machine.sh"
    emulator=qemu-$user-static
  fi
  [ "$(uname -m)" != "$arch" ] || emulator=''
  name=netlink_port-$version-$arch-linux
  upper=$(echo "$triple" | tr 'a-z-' 'A-Z_')
  "$top/test/architectures/std.sh" "$triple"
  # Separated by a byte that no folder has in its name. Cargo uses these and ignores RUSTFLAGS.
  flags=$(printf '%s\037' -Ctarget-feature=+crt-static "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo")
  flags=$flags--remap-path-prefix=$top=/netlink_port
  env "CARGO_TARGET_${upper}_LINKER=$gcc-gcc" CARGO_ENCODED_RUSTFLAGS="$flags" \
    cargo build --release --locked --quiet --bin netlink_port --target "$triple" --target-dir target/dist
  install -m 0755 "target/dist/$triple/release/netlink_port" "dist/$name"
  (cd dist && sha256sum "$name" >"$name.sha256")
  if readelf --program-headers "dist/$name" | grep -q INTERP; then echo "dist/$name is not static" >&2; exit 1; fi
  [ -z "$only" ] || continue
  SOURCE_DATE_EPOCH=0 target/tools/bin/cargo-cyclonedx cyclonedx --quiet --describe binaries --format json \
    --spec-version 1.5 --target "$triple" --no-build-deps
  sed -e 's|path+file://[^#"]*#|path+file:///netlink_port#|' -e 's|?download_url=file:[^"]*||' netlink_port_bin.cdx.json \
    >"dist/$name.cdx.json"
  rm netlink_port_bin.cdx.json
  says=$($emulator "dist/$name" --version)
  [ "$says" = "netlink_port $version" ] || { echo "dist/$name says: $says" >&2; exit 1; }
  echo "dist/$name: $says${emulator:+ (by $emulator)}"
done
