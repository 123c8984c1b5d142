#!/bin/sh
# suite.sh SUITE FOLDER: runs every step of a suite, in its chroot, for run.sh. The other steps run even if one
# fails. Logs are in /var/log/matrix. The end of the log of a step that fails is shown.
set -u

suite=$1
cd "$2" || exit 1
logs=/var/log/matrix
rm -rf "$logs"
mkdir -p "$logs"
start=$(date +%s)
failed=

step() { # NAME COMMAND...: passes when the command does and has not printed a warning.
  name=$1 log=$logs/$1.log
  shift
  "$@" >"$log" 2>&1 </dev/null && status=0 || status=$?
  warnings=$(grep -nE '^ *(└─ )?warning\b' "$log" | head -5)
  if [ "$status" != 0 ] || [ -n "$warnings" ]; then
    failed="$failed $name"
    tail -40 "$log" | sed "s/^/  /"
    echo "$suite: $name failed, status $status: $LOGS.$name.log, its end is above${warnings:+; warnings:
$warnings}"
  fi
}

install() {
  for package in $PACKAGES; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok' || missing="${missing:-} $package"
  done
  [ -n "${missing:-}" ] || return 0
  # Namespaces that an interrupted run may have left.
  dpkg --configure -a || return 1
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing && apt-get clean
}

step install install
[ -z "$failed" ] || exit 1
elixir -e 'IO.puts(["Elixir ", System.version(), ", OTP ", System.otp_release()])' >$logs/versions.log 2>&1
echo "$suite: $(cat $logs/versions.log), $(cargo --version 2>&1)"
MIX_ENV=dev step compile-dev mix compile --force --warnings-as-errors
MIX_ENV=test step compile-test mix compile --force --warnings-as-errors
MIX_ENV=test step scripts mix run --no-start test/matrix/scripts.exs
# Formatters differ by version: that of the oldest decides.
[ "$suite" != bookworm ] || step format mix format --check-formatted
step cargo-test cargo test --release --locked
step mix-test mix test --warnings-as-errors

count=$(grep -hE '^([0-9]+ .*failures?|Result: )' $logs/mix-test.log | tail -1)
rust=$(grep -hE '^test result: ' $logs/cargo-test.log | head -1)
echo "$suite: ExUnit: ${count:-no test}; Rust: ${rust#test result: }; $(($(date +%s) - start)) s"
[ -z "$failed" ] || echo "$suite: failed:$failed"
[ -z "$failed" ]
