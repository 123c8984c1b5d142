#!/bin/sh
# musl.sh ARCH FOLDER: builds for another machine what the tests with musl need, all of it static: the helper, the Rust
# tests, and the programs of test/fixtures/ that know the calls of their C library.
#
# Rust's standard library and musl come from rustup. Where rustup does not have them for the machine, that library is
# built from its source (rust-src), and musl is Debian's, which is kept in $ARCHITECTURES_DIR (.architectures).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
. "$here/machine.sh"
out=$2
triple=$musl
upper=$(echo "$triple" | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${upper}_LINKER=$gcc-gcc"
cd "$top"
std=
if ! "$here/std.sh" "$triple"; then
  command -v rustup >/dev/null || exit 1
  rustup component add rust-src
  sysroot=${ARCHITECTURES_DIR:-$top/.architectures}/$arch.musl
  # rustc links a static musl by the files of this folder, crtbegin.o and the like included.
  files=$sysroot/lib/rustlib/$triple/lib/self-contained
  if [ ! -e "$sysroot/ready" ]; then
    rm -rf --one-file-system "$sysroot"
    mkdir -p "$files"
    nice -n 19 mmdebstrap --mode=root --variant=extract --architectures="$debian" --components=main \
      --aptopt='APT::Install-Recommends "false"' --include=musl-dev trixie "$sysroot/root" http://deb.debian.org/debian
    for file in crt1.o rcrt1.o Scrt1.o crti.o crtn.o libc.a; do cp "$sysroot/root/usr/lib/"*-linux-musl*/"$file" "$files/"; done
    rm -rf --one-file-system "$sysroot/root"
    for file in crtbegin.o crtbeginS.o crtend.o crtendS.o; do cp "$("$gcc-gcc" -print-file-name="$file")" "$files/"; done
    # The compiler's unwinder takes the place of LLVM's. It asks glibc where the frames of a function are. Without an
    # answer a test that fails ends the program, which is a failure, too.
    cp "$("$gcc-gcc" -print-file-name=libgcc_eh.a)" "$files/libunwind.a"
    echo 'int _dl_find_object(void *address, void *result) { return -1; }' | "$gcc-gcc" -c -x c - -o "$files/find.o"
    "$gcc-ar" r "$files/libunwind.a" "$files/find.o"
    touch "$sysroot/ready"
  fi
  # Cargo takes the option, which is for Rust's developers, with this variable alone. Static is not the default on all of
  # these machines. With these settings one build of the standard library does for the helper and the tests.
  export RUSTC_BOOTSTRAP=1 CARGO_PROFILE_RELEASE_PANIC=unwind CARGO_PROFILE_RELEASE_LTO=off
  CARGO_ENCODED_RUSTFLAGS=$(printf '%s\037' "--sysroot=$sysroot")-Ctarget-feature=+crt-static
  export CARGO_ENCODED_RUSTFLAGS
  std=-Zbuild-std=std,test
fi
cross() { nice -n 19 cargo "$@" $std --release --locked --target "$triple" --target-dir target/cross; }
mkdir -p "$out"
tests=$(cross test --no-run --bins --message-format json-render-diagnostics | sed -nE 's/.*"executable":"([^"]+netlink_port-[^"]+)".*/\1/p' | tail -1)
cp "$tests" "$out/rust_tests"
cross build --bins --example inject --example attacker --example decoder
built=target/cross/$triple/release
cp "$built/netlink_port" "$built/examples/inject" "$built/examples/attacker" "$built/examples/decoder" "$out/"
