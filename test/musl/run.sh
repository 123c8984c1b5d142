#!/bin/sh
# run.sh [FILE...]: runs the Rust tests and the ExUnit suite, or these files of it, with a helper that is built
# against musl, the C library of Alpine. musl makes other system calls than glibc. `make musl` calls it. Root, for
# namespaces. test/steps.sh says which steps run again. Logs: target/musl/musl.STEP.log.
#
# The helper is static. Tests that need a dynamic one are left out, and so are those that build it
# for other machines.
set -eu

cd "$(dirname "$0")/../.."
. test/steps.sh
triple=$(uname -m)-unknown-linux-musl
test/architectures/std.sh "$triple"
begin musl target/musl
place musl

programs="target/release/examples/inject target/release/examples/attacker target/release/examples/decoder"
trap 'rm -f $programs' EXIT
# inject knows the calls of the C library that it is built with, so that it has to be musl's, too. test_helper.exs
# builds no programs when NETLINK_PORT_TEST_WITHOUT is set.
step build sh -euc '
  cargo build --release --locked --target "$0" --target-dir target/musl --bins --example inject --example attacker --example decoder
  cargo build --release --locked --examples
  for program; do
    rm -f "$program"
    cp "target/musl/$0/${program#target/}" "$program"
  done' "$triple" $programs

versions=$(elixir -e 'IO.puts(["Elixir ", System.version(), ", OTP ", System.otp_release()])')
if [ -z "$failed" ]; then
  since "$versions"
  step rust cargo test --bins --release --locked --target "$triple" --target-dir target/musl
  # Each build of the suite is for musl, also those that tests make: they run `mix run`.
  export CARGO_BUILD_TARGET="$triple" CARGO_TARGET_DIR="$PWD/target/musl" NETLINK_PORT_TEST_WITHOUT="dynamic cargo"
  for file; do step "$file" mix test "$file"; done
  [ $# != 0 ] || for part in 1 2 3 4; do
    step "suite-$part/4" env MIX_TEST_PARTITION="$part" mix test --partitions 4
  done
fi
verdict "$versions"
