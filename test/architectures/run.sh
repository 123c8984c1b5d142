#!/bin/sh
# run.sh [ARCH...]: the tests on other machines (aarch64 riscv64 armhf s390x). They are built with Debian's cross
# compilers, and run under Debian's kernel for that machine, in qemu-system without hardware virtualisation.
# `make architectures` calls it. Root only.
#
# The steps: the static executable of make dist says its version and talks with converse.sh; the Rust tests, also
# against musl if rustup has it; and the files of the ExUnit suite in FILES, with that executable and its filter. A
# step that has passed is not run again while nothing has changed, so that an interrupted run goes on. Everything is
# kept in $ARCHITECTURES_DIR (.architectures). ARCH.log there is the console of the machine.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
ARCHITECTURES_DIR=${ARCHITECTURES_DIR:-$top/.architectures}
export ARCHITECTURES_DIR MATRIX_DIR="${MATRIX_DIR:-$top/.matrix}"
dir=$ARCHITECTURES_DIR
[ $# -gt 0 ] || set -- aarch64 riscv64 armhf s390x
[ "$(id -u)" = 0 ] || { echo "make architectures makes file systems and machines: run it as root" >&2; exit 1; }
# Namespaces, delivery and protocol.
FILES=${FILES:-namespaces process_namespaces user_namespaces namespace_gone server/delivery helper/protocol wire
  common/options native}
for file in $FILES; do
  [ -e "$top/test/netlink_port/${file}_test.exs" ] || { echo "there is no test/netlink_port/${file}_test.exs" >&2; exit 64; }
done
# The most time for a machine, in seconds.
LIMIT=${LIMIT:-3600}

# A checksum of all files that are tested, without documents.
tree() { git -C "$top" ls-files -co --exclude-standard -- Cargo.toml Cargo.lock build.exs mix.exs src elixir test |
  (cd "$top" && xargs -d '\n' sha256sum 2>/dev/null) | sha256sum | cut -c1-16; }

steps() { # of the machine whose machine.sh was read
  echo "version converse rust ${musl:+musl}" | tr " " "\n" | grep .
  for file in $FILES; do echo "${file}_test.exs"; done
}

# Compiles the modules with the Elixir and OTP of that Debian. They are the same for all machines.
modules() { # SUITE
  (
    flock 9
    work=$("$top/test/matrix/copy.sh" "$1")
    "$top/test/matrix/enter.sh" "$1" env -i HOME=/root LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -euc '
      command -v mix >/dev/null || {
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq elixir erlang-nox >/dev/null
      } </dev/null
      mkdir -p /run/bin
      printf "#!/bin/sh\ncase \$1 in --version) echo cargo 1.85.0 ;; *) echo \"{\\\"executable\\\":\\\"/bin/true\\\"}\" ;; esac\n" >/run/bin/cargo
      chmod 755 /run/bin/cargo
      cd "$0"
      PATH=/run/bin:$PATH MIX_ENV=test mix compile' "$work" >"$dir/modules.log" 2>&1 || {
      tail -20 "$dir/modules.log" >&2
      exit 1
    }
    echo "$MATRIX_DIR/$1$work"
  ) 9>"$dir/modules.lock"
}

place() { # ARCH
  arch=$1
  . "$here/machine.sh"
  begin=$(date +%s)
  state=$dir/$arch.passed
  this=$(tree)
  [ "$(head -1 "$state" 2>/dev/null)" = "$this" ] || echo "$this" >"$state"
  last=$(cat "$dir/$arch.seconds" 2>/dev/null || echo "some 30 minutes, by guess")
  say() { echo "$arch: $*"; }

  work=$dir/$arch.work
  rm -rf "$work" && mkdir -p "$work/bin"
  for step in $(steps); do grep -q "^$step " "$state" || echo "$step"; done >"$work/steps"
  steps=$(wc -l <"$work/steps")
  [ "$steps" != 0 ] || { say "all passed before, and nothing has changed since"; return 0; }
  say "$steps steps to do; the last whole run took: $last"

  say "root and kernel"
  machine=$("$here/root.sh" "$arch")
  say "cross-building"
  "$here/build.sh" "$arch" "$work/bin" >"$dir/$arch.build.log" 2>&1 || { tail -30 "$dir/$arch.build.log"; return 1; }
  say "modules"
  modules=$(modules "$suite")
  mkdir -p "$work/src"
  cp -a "$modules/." "$work/src/"
  rm -rf "$work/src/target" "$work/src/_build/dev" "$work/src/doc"
  mkdir -p "$work/src/target/release/examples"
  cp "$work/bin/examples/"* "$work/src/target/release/examples/"
  cp -p "$work/bin/netlink_port" "$work/src/priv/netlink_port"
  cp -p "$work/bin/netlink_port" "$work/src/target/release/"
  rm -rf "$work/bin/examples"
  # The tests call it to build programs that are built already.
  printf '#!/bin/sh\nexit 0\n' >"$work/bin/cargo"
  chmod 755 "$work/bin/cargo"
  cp "$here/guest.sh" "$work/guest.sh"
  # The Rust tests are built here, and the modules in the chroot.
  printf '%s\n' "$top" "/suite$top" >"$work/top"
  install -m 0755 "$here/converse.sh" "$work/bin/"
  mkdir "$work/frames"
  (cd "$top" && MIX_ENV=dev mix run test/architectures/frames.exs "$order" "$work/frames") >"$dir/$arch.frames.log" 2>&1
  disk=$dir/$arch.work.ext4
  rm -f "$disk" && mke2fs -q -t ext4 -L work -d "$work" "$disk" 600M >/dev/null

  say "booting under ${qemu%% *} (TCG)"
  : >"$dir/$arch.log"
  set -- $qemu
  timeout "$LIMIT" nice -n 19 "$@" -accel tcg -smp 2 -m 2048 -nographic -no-reboot -nodefaults -serial stdio \
    -kernel "$machine/vmlinuz" -initrd "$machine/initrd.gz" \
    -append "console=$console panic=-1 quiet" \
    -drive "if=none,id=root,format=raw,snapshot=on,file=$machine/root.ext4" -device "$blk,drive=root" \
    -drive "if=none,id=work,format=raw,file=$disk" -device "$blk,drive=work" \
    </dev/null 2>&1 8>&- | tee "$dir/$arch.log" | {
    sum=0 done=0
    return=$(printf '\r')
    while IFS= read -r line; do
      line=${line%"$return"}
      case $line in
        "@@ pass "*)
          set -- $line
          sum=$((sum + $4)) done=$((done + 1))
          echo "$3 $4" >>"$state.new"
          say "$3: $4 tests; $sum so far, $(($(date +%s) - begin)) s"
          ;;
        "@@ fail "*) say "${line#@@ }" ; echo "${line#@@ fail }" >>"$state.bad" ;;
        "@@ "*) say "${line#@@ }" ;;
      esac
    done
  }
}

mkdir -p "$dir"
exec 8>"$dir/run"
flock -n 8 || { echo "another make architectures runs in $dir" >&2; exit 1; }
failed=
for place in "$@"; do
  rm -f "$dir/$place.passed.new" "$dir/$place.passed.bad"
  start=$(date +%s)
  ok=yes
  (place "$place") || ok=no
  state=$dir/$place.passed
  # A file with several modules has passed if all modules have.
  if [ -e "$state.new" ]; then
    awk 'NR == FNR { bad[$1]; next } !($1 in bad) { sum[$1] += $2 } END { for (f in sum) print f, sum[f] }' \
      "$state.bad" "$state.new" 2>/dev/null >>"$state" || awk '{ s[$1] += $2 } END { for (f in s) print f, s[f] }' "$state.new" >>"$state"
  fi
  missing=
  for step in $(arch=$place; . "$here/machine.sh"; steps); do
    grep -q "^$step " "$state" || missing="$missing $step"
  done
  if [ -z "$missing" ] && [ "$ok" = yes ]; then
    echo "$(($(date +%s) - start)) s" >"$dir/$place.seconds"
    echo "$place: PASS: $(awk 'NR > 1 { s += $2 } END { print s }' "$state") tests"
  else
    echo "$place: FAIL:$missing: $dir/$place.log"
    failed="$failed $place"
  fi
done
[ -z "$failed" ]
