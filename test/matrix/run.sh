#!/bin/sh
# run.sh [SUITE...]: runs the whole suite on each of these Debians (bookworm trixie sid): Elixir 1.14 on OTP 25,
# 1.18 on OTP 27, 1.20 on OTP 29. `make matrix` calls it, with the packages to install in PACKAGES. Root only, for
# chroots and namespaces. Prints for each suite its versions, PASS or FAIL, and how many tests ran. Fails if one has
# failed. test/steps.sh says which steps run again.
#
# Each suite has a copy of the working tree in its chroot (copy.sh). Its builds are kept for the next run. Logs:
# $MATRIX_DIR/SUITE.STEP.log.
#
# Rust is Debian's if that is new enough (1.85 or later, as in trixie), and this machine's in bookworm. This machine's
# cargo puts the crates into the chroots, so that only the installation of packages needs the network.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
MATRIX_DIR=${MATRIX_DIR:-$top/.matrix}
PACKAGES=${PACKAGES:?the Debian packages to install; make matrix names them}
[ $# -gt 0 ] || set -- bookworm trixie sid
[ "$(id -u)" = 0 ] || { echo "make matrix makes chroots and namespaces: run it as root" >&2; exit 1; }
CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}
RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
case " $* " in *" bookworm "*) [ -d "$RUSTUP_HOME/toolchains" ] || {
  echo "bookworm's Rust is 1.63, and needs 1.85: install Rust by rustup, https://rustup.rs" >&2
  exit 1
} ;; esac

cd "$top"
. test/steps.sh
begin matrix "$MATRIX_DIR"
MATRIX_DIR=$(cd "$MATRIX_DIR" && pwd)
export MATRIX_DIR
no_warnings=yes parts=4

suite() { # SUITE
  root=$MATRIX_DIR/$1 share='' packages=$PACKAGES
  if [ "$1" = bookworm ]; then share="$RUSTUP_HOME $CARGO_HOME/bin"; else packages="$packages cargo"; fi
  step copy sh -euc '"$0/copy.sh" "$1"; "$0/vendor.sh" "$2"' "$here" "$1" "$root"
  [ -z "$failed" ] || return 0
  set -- env "SHARE=$share" "$here/enter.sh" "$1" env -i -C "/suite$top" HOME=/root LC_ALL=C.UTF-8 \
    RUSTUP_HOME="$RUSTUP_HOME" PATH="$CARGO_HOME/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
  # An interrupted run may have left packages that are not configured.
  step install "$@" DEBIAN_FRONTEND=noninteractive sh -euc '
    dpkg --configure -a
    missing=
    for package; do
      dpkg-query -W -f="\${Status}" "$package" 2>/dev/null | grep -q "^install ok" || missing="$missing $package"
    done
    [ -n "$missing" ] || exit 0
    apt-get update -qq
    apt-get install -y -qq $missing
    apt-get clean' sh $packages
  [ -z "$failed" ] || return 0
  versions=$("$@" sh -euc 'elixir -e "IO.write([\"Elixir \", System.version(), \", OTP \", System.otp_release(), \", \"])"
    cargo --version' </dev/null) || true
  since "$versions" "$root"
  # Of modules that an interrupted compilation has left, the compiler would warn.
  for env in dev test; do
    step "compile-$env" "$@" MIX_ENV="$env" sh -c 'rm -rf "_build/$MIX_ENV" && exec mix compile --warnings-as-errors'
  done
  step scripts "$@" MIX_ENV=test mix run --no-start test/matrix/scripts.exs
  # Formatters differ by version: that of the oldest decides.
  [ "$suite" != bookworm ] || step format "$@" mix format --check-formatted
  step cargo-test "$@" cargo test --release --locked
  for part in $(seq "$parts"); do
    step "mix-test-$part/$parts" "$@" MIX_TEST_PARTITION="$part" mix test --warnings-as-errors --partitions "$parts"
  done
}

all=
for suite in "$@"; do
  place "$suite"
  versions=
  suite "$suite"
  verdict "$versions" || all="$all $suite"
done
[ -z "$all" ]
