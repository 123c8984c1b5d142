#!/bin/sh
# run.sh [SUITE...]: runs the whole suite on each of these Debians (bookworm trixie sid): Elixir 1.14 on OTP 25,
# 1.18 on OTP 27, 1.20 on OTP 29. `make matrix` calls it, with the packages to install in PACKAGES. Root only, for
# chroots and namespaces. Prints versions, a line of counts, and PASS or FAIL for each. Fails if one has failed.
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
export MATRIX_DIR
PACKAGES=${PACKAGES:?the Debian packages to install; make matrix names them}
[ $# -gt 0 ] || set -- bookworm trixie sid
[ "$(id -u)" = 0 ] || { echo "make matrix makes chroots and namespaces: run it as root" >&2; exit 1; }

CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}
RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}

suite() { # SUITE
  root=$("$here/chroot.sh" "$1") && work=$("$here/copy.sh" "$1") && "$here/vendor.sh" "$root" || return 1
  share='' packages=$PACKAGES
  if [ "$1" != bookworm ]; then packages="$packages cargo"; else
    [ -d "$RUSTUP_HOME/toolchains" ] || {
      echo "bookworm's Rust is 1.63, and needs 1.85: install Rust by rustup, https://rustup.rs" >&2
      return 1
    }
    share="$RUSTUP_HOME $CARGO_HOME/bin"
  fi
  rm -rf "$root/var/log/matrix"
  status=0
  SHARE=$share "$here/enter.sh" "$1" env -i HOME=/root LC_ALL=C.UTF-8 PACKAGES="$packages" LOGS="$MATRIX_DIR/$1" \
    RUSTUP_HOME="$RUSTUP_HOME" PATH="$CARGO_HOME/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    sh "$work/test/matrix/suite.sh" "$1" "$work" || status=$?
  for log in "$root"/var/log/matrix/*.log; do [ ! -e "$log" ] || cp "$log" "$MATRIX_DIR/$1.${log##*/}"; done
  return "$status"
}

mkdir -p "$MATRIX_DIR"
failed=
for suite in "$@"; do
  # A second run in the same chroot waits.
  if ( flock 9 && suite "$suite" ) 9>"$MATRIX_DIR/$suite.run"; then echo "$suite: PASS"; else
    echo "$suite: FAIL"
    failed="$failed $suite"
  fi
done
[ -z "$failed" ]
