#!/bin/sh
# run.sh [FILE...]: the Rust tests and the whole ExUnit suite (or these files of it) with a helper that was built against
# musl, the C library of Alpine: it makes other system calls than glibc's. `make musl` calls it. Root, for namespaces.
#
# The helper is static. Left out is what needs a dynamic one (LD_PRELOAD).
set -eu

cd "$(dirname "$0")/../.."
triple=$(uname -m)-unknown-linux-musl
[ -d "$(rustc --print target-libdir --target "$triple")" ] || rustup target add "$triple"
built=$PWD/target/musl/$triple/release

cross() { cargo "$@" --release --locked --quiet --target "$triple" --target-dir target/musl; }
echo "musl: Rust tests"
cross test --bins
cross build --bins --example inject --example attacker --example decoder
cargo build --release --locked --quiet --examples
# One of them names calls by the C library of what it runs; test_helper.exs, told to leave something out, builds none.
for example in inject attacker decoder; do
  rm -f "target/release/examples/$example"
  cp "$built/examples/$example" target/release/examples/
done
trap 'rm -f target/release/examples/inject target/release/examples/attacker target/release/examples/decoder' EXIT
echo "musl: the ExUnit suite"
NETLINK_PORT_TEST_WITHOUT=preload NETLINK_PORT_EXECUTABLE=$built/netlink_port mix test "$@"
