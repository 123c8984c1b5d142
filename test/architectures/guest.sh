#!/bin/sh
# guest.sh: runs the tests in the machine. Lines that begin with @@ are for run.sh: "@@ step NAME", "@@ pass NAME
# TESTS" and "@@ fail NAME". /guest/steps has the steps to run, a line each.
cd /guest/src || exit 1
# Code that was built outside has its folder there compiled in.
while read -r top; do
  mkdir -p "$(dirname "$top")"
  ln -s /guest/src "$top"
done </guest/top
export PATH="/guest/bin:$PATH" MIX_ENV=test
echo "@@ machine $(uname -m), Linux $(uname -r)"

step() { # NAME COMMAND...
  name=$1
  shift
  grep -qx "$name" /guest/steps || return 0
  echo "@@ step $name"
  "$@" </dev/null >/tmp/log 2>&1 && status=0 || status=$?
  cat /tmp/log
  passed=$(sed -nE 's/^test result: ok\. ([0-9]+) passed.*/\1/p' /tmp/log)
  if [ "$status" = 0 ]; then echo "@@ pass $name ${passed:-1}"; else echo "@@ fail $name"; fi
}

suite() { # PREFIX FILE...: those of the files that are steps, under that name; `-` is none
  prefix=$1 files=
  shift
  for file; do files="$files test/netlink_port/$file"; done
  [ -n "$files" ] || return 0
  echo "@@ step ExUnit"
  mix run --no-compile test/architectures/suite.exs "$prefix" $files </dev/null
}

step version sh -c '/guest/bin/netlink_port --version | tee /dev/stderr | grep -q "^netlink_port [0-9]"'
step converse /guest/bin/converse.sh /guest/bin/netlink_port
step rust /guest/bin/rust_tests
suite - $(grep '\.exs$' /guest/steps | grep -v '^musl/')
musl=/guest/bin/musl
step musl-converse /guest/bin/converse.sh "$musl/netlink_port"
step musl-rust "$musl/rust_tests"
if [ -d "$musl" ]; then
  # Also the programs that know the calls of the helper's C library.
  cp "$musl/netlink_port" priv/
  cp "$musl/netlink_port" target/release/
  cp "$musl/inject" "$musl/attacker" "$musl/decoder" target/release/examples/
  suite musl $(sed -n 's|^musl/||p' /guest/steps)
fi
# Lists the programs that a filter has ended, with the numbers of the calls. Some tests provoke that.
dmesg | sed -nE 's/.*type=1326.*comm="([^"]*)".*syscall=([0-9]+).*/@@ sigsys \1 \2/p' | sort | uniq -c | sed 's/^ *\([0-9]*\) \(.*\)/\2 (\1 times)/'
