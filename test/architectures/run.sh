#!/bin/bash
# run.sh [ARCH...]: the tests on other machines (aarch64 riscv64 armhf s390x). They are built with Debian's cross
# compilers, and run under Debian's kernel for that machine, in qemu-system without hardware virtualisation.
# `make architectures` calls it. Root only.
#
# The steps: the static executable of make dist says its version and talks with converse.sh; the Rust tests; the files
# of the ExUnit suite in FILES, with that executable and its filter; and once more with everything built against musl,
# except where machine.sh names no musl: converse.sh, the Rust tests, and the files on namespaces. A step that has
# passed is not run again while nothing has changed, so that an interrupted run goes on. Everything is kept in
# $ARCHITECTURES_DIR (.architectures). ARCH.log there is the console of the machine.
set -u

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
dir=${ARCHITECTURES_DIR:-$top/.architectures}
export ARCHITECTURES_DIR=$dir MATRIX_DIR="${MATRIX_DIR:-$top/.matrix}"
. "$top/test/places.sh"
[ $# -gt 0 ] || set -- aarch64 riscv64 armhf s390x
[ "$(id -u)" = 0 ] || { echo "make architectures makes file systems and machines: run it as root" >&2; exit 1; }
# Namespaces, delivery and protocol.
all="namespaces process_namespaces user_namespaces namespace_gone server/delivery helper/protocol wire
  common/options native"
FILES=${FILES:-$all}
for file in $FILES; do
  [ -e "$top/test/netlink_port/${file}_test.exs" ] || { echo "there is no test/netlink_port/${file}_test.exs" >&2; exit 64; }
done
# The most time for a machine, in seconds.
LIMIT=${LIMIT:-3600}

# The steps of the machine whose machine.sh was read.
steps() {
  printf '%s\n' version converse rust
  for file in $FILES; do echo "${file}_test.exs"; done
  [ -n "$musl" ] || return 0
  printf '%s\n' musl-converse musl-rust
  for file in $FILES; do
    case $file in namespaces | process_namespaces | user_namespaces) echo "musl/${file}_test.exs" ;; esac
  done
}

# The steps that have not passed.
rest() { for name in $(steps); do grep -q "^$name " "$state" || echo "$name"; done; }

say() { echo "$arch: $*" && said=$SECONDS; }

# Starts a program in a process group of its own, which stop() ends. If this shell is killed, the kernel ends it.
start() { setsid setpriv --pdeathsig TERM "$@" 9>&- & child=$!; }
child=

stop() {
  [ -z "$child" ] || kill -TERM "-$child" 2>/dev/null
}

# What has been done counts, also when the run is interrupted.
interrupted() {
  trap '' INT TERM HUP
  stop
  [ -z "$log" ] || hear
  [ -z "$child" ] || wait "$child" 2>/dev/null
  echo "seconds $((SECONDS - began))" >>"$state"
  say "interrupted; the next run goes on with the steps that have not passed"
  exit 143
}

dots() { # LINE: adds the tests that have passed, by the dots of ExUnit
  if [[ $1 =~ ^[.*]+ ]]; then dots=$((dots + ${#BASH_REMATCH})); fi
}

# Reads what the console of the machine has said since the last time. Its last line may be incomplete: it is kept in
# `partial`.
hear() {
  local line
  while IFS= read -r line <&7; do
    line=$partial${line%$'\r'} partial=
    case $line in
      "@@ pass "*)
        set -- $line
        sum=$((sum + $4)) dots=0
        echo "$3 $4" >>"$state"
        say "$3: $4 tests; $sum so far, $((SECONDS - began)) s"
        ;;
      "@@ step "*) step=${line#@@ step } dots=0; say "step $step" ;;
      "@@ "*) say "${line#@@ }" ;;
      *) dots "$line" ;;
    esac
  done
  partial=$partial$line
}

boot() {
  log=$dir/$arch.log
  : >"$log"
  exec 7<"$log"
  step=boot sum=0 dots=0 partial=
  local machine=$dir/$arch booted=$SECONDS
  say "booting under ${qemu%% *} (TCG)"
  start nice -n 19 $qemu -accel tcg -smp 2 -m 2048 -nographic -no-reboot -nodefaults -serial stdio \
    -kernel "$machine/vmlinuz" -initrd "$machine/initrd.gz" \
    -append "console=$console panic=-1 quiet" \
    -drive "if=none,id=root,format=raw,snapshot=on,file=$machine/root.ext4" -device "$blk,drive=root" \
    -drive "if=none,id=work,format=raw,file=$dir/$arch.work.ext4" -device "$blk,drive=work" \
    </dev/null >"$log" 2>&1
  while kill -0 "$child" 2>/dev/null; do
    sleep 2
    hear
    if [ $((SECONDS - said)) -ge 60 ]; then
      local before=$dots
      dots "$partial"
      say "$step: $((sum + dots)) tests so far, $((SECONDS - began)) s; the last whole run took: $last"
      dots=$before
    fi
    [ $((SECONDS - booted)) -lt "$LIMIT" ] || {
      say "not done after $LIMIT s; the next run goes on with the steps that have not passed"
      stop
      break
    }
  done
  wait "$child"
  child=
  hear
  grep -q '^@@ end' "$log" || tail -5 "$log"
  log=
}

alone architectures "$dir/run"
failed=
for arch; do
  . "$here/machine.sh"
  state=$dir/$arch.passed log= where=": $dir/$arch.log"
  # All that is tested, without documents.
  this=$(cd "$top" && tree Cargo.toml Cargo.lock build.exs mix.exs src elixir test)
  [ "$(head -1 "$state" 2>/dev/null)" = "$this" ] || echo "$this" >"$state"
  last=$(cat "$dir/$arch.seconds" 2>/dev/null || echo "some 30 minutes, by guess")
  rest >"$dir/$arch.steps"
  began=$SECONDS
  if [ -s "$dir/$arch.steps" ]; then
    say "$(wc -l <"$dir/$arch.steps") of $(steps | wc -l) steps to do; the last whole run took: $last"
    trap interrupted INT TERM HUP
    start "$here/prepare.sh" "$arch"
    if wait "$child"; then boot; else child= where=; say "not booted"; fi
    trap - INT TERM HUP
    echo "seconds $((SECONDS - began))" >>"$state"
    # A whole run may have been interrupted, and gone on.
    [ -n "$(rest)" ] || [ "$FILES" != "$all" ] ||
      awk '$1 == "seconds" { sum += $2 } END { print sum " s" }' "$state" >"$dir/$arch.seconds"
  else
    say "all passed before, and nothing has changed since"
  fi
  missing=$(rest | tr '\n' ' ')
  if [ -z "$missing" ]; then
    echo "$arch: PASS: $(for name in $(steps); do grep "^$name " "$state"; done | awk '{ sum += $2 } END { print sum }') tests"
  else
    echo "$arch: FAIL: ${missing% }$where"
    failed="$failed $arch"
  fi
done
[ -z "$failed" ]
