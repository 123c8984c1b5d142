#!/bin/sh
# run.sh [FILE...]: runs the Rust tests and the ExUnit suite, or these files of it, with a helper that is built
# against musl, the C library of Alpine. musl makes other system calls than glibc. `make musl` calls it. Root, for
# namespaces.
#
# The helper is static. Tests that need a dynamic one are left out, and so are those that build the usual helper again.
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
# inject knows the calls of the C library that it is built with, so that it has to be musl's, too. test_helper.exs
# builds no programs when NETLINK_PORT_TEST_WITHOUT is set.
for example in inject attacker decoder; do
  rm -f "target/release/examples/$example"
  cp "$built/examples/$example" target/release/examples/
done
# In the place of the usual helper, so that nothing but the helper is another. `mix compile` puts that back.
MIX_ENV=test mix compile
put() { cp "$1" priv/netlink_port.new && mv priv/netlink_port.new priv/netlink_port; }
usual=$(mktemp)
cp -p priv/netlink_port "$usual"
trap 'put "$usual"; rm -f "$usual" target/release/examples/inject target/release/examples/attacker target/release/examples/decoder' EXIT
put "$built/netlink_port"
echo "musl: the ExUnit suite"
NETLINK_PORT_TEST_WITHOUT="dynamic cargo" mix test --no-compile "$@"
