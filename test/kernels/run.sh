#!/bin/bash
# run.sh [SUITE...]: boots the kernel of each Debian suite (bullseye-security bookworm trixie trixie-backports)
# under qemu, with Debian 12 and the built working tree, and runs the steps of guest.sh: facts, the doctor, the Rust
# tests, the ExUnit suite, a short soak. `make kernels` calls it, with the packages to install in PACKAGES. Root
# only, for the chroot.
#
# UML=1 boots the user-mode Linux of each suite instead (bullseye bookworm trixie sid): a kernel that is a program of
# this machine, with one processor. It needs neither emulation nor KVM, and is several times as fast as qemu without
# KVM. Debian builds it with other options than its kernels (docs/kernels.md).
#
# qemu emulates (TCG), some 10 to 20 times slower than the machine. KVM=1 uses /dev/kvm, where that works. A step that
# has passed on a kernel with this tree is not run again, so that an interrupted run goes on; FORCE=1 runs all again.
# Chroot, kernels, images and logs are kept in KERNELS_DIR (.kernels). KERNELS_MINUTES (60) bounds the time of each
# boot. KERNELS_CPUS (2) is the number of its processors: with 1, emulation costs less on a busy machine.
set -u

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
export KERNELS_DIR=${KERNELS_DIR:-$top/.kernels}
minutes=${KERNELS_MINUTES:-60}
uml=${UML:-}
if [ $# = 0 ]; then
  if [ "$uml" = 1 ]; then set -- bullseye bookworm trixie sid; else
    set -- bullseye-security bookworm trixie trixie-backports
  fi
fi
[ "$(id -u)" = 0 ] || { echo "make kernels makes a chroot: run it as root" >&2; exit 1; }
. "$top/test/places.sh"
alone kernels "$KERNELS_DIR/run"

accelerator="tcg,thread=multi" cpu=max
[ "${KVM:-}" != 1 ] || accelerator=kvm cpu=host
if [ "$uml" = 1 ]; then
  accelerator="user-mode Linux"
  [ "$(df -k --output=avail /dev/shm | tail -1)" -ge $((4 << 20)) ] || {
    echo "user-mode Linux has its memory in /dev/shm, which needs 4 GiB free" >&2
    exit 1
  }
fi

# The suite runs in parts, each in a VM of its own. User-mode Linux needs it since 6.12: it maps each page of a process
# by itself, and a VM that runs the whole suite has more pages than vm.max_map_count allows.
parts=8
steps() {
  for step in ${KERNELS_STEPS:-facts doctor rust suite soak}; do
    if [ "$step" = suite ] && [ -z "${KERNELS_FILES:-}" ]; then
      for part in $(seq "$parts"); do echo "suite-$part/$parts"; done
    else
      echo "$step"
    fi
  done
}

# The steps that have not passed.
rest() {
  for step in $(steps); do grep -q "^$step " "$passed" || echo "$step"; done
}

# The step that runs, by the log, and how many tests have passed in this boot, of Rust and of ExUnit.
progress() { # LOG
  tr -d '\r' <"$1" | awk '
    /^== end/ { step = "end" }
    /^== / && NF == 2 { step = $2 }
    step ~ /^suite/ && /^[.*]+/ { match($0, /^[.*]+/); tests += RLENGTH }
    step == "rust" && /^test .* ok$/ { tests++ }
    BEGIN { step = "booting" }
    END { printf "%s %d", step, tests }'
}

# For each step that has ended: its name, its exit status, and the line that sums up its tests.
results() { # LOG
  tr -d '\r' <"$1" | awk '
    /^== / && NF == 2 { line = "" }
    /^[0-9]+ .*tests?, |^Result: |^test result: / { line = $0 }
    /^== [^ ]+ status / { print $2, $4, line }'
}

# Adds to `passed` the steps of LOG that have passed, and the seconds of the boot.
record() { # LOG
  results "$1" | sed -n 's/^\([^ ]*\) 0 */\1 /p' >>"$passed"
  echo "boot $(($(date +%s) - start))" >>"$passed"
}

# Both functions start a machine in the background: its kernel's messages go to LOG.console, the output of guest.sh to
# LOG, and what the program itself says to LOG.machine. They set `machine` to its process id.

# no_timer_check: on a busy machine the emulated timer can be too slow for the kernel's check of it, which panics.
start_qemu() { # KERNEL LOG
  qemu-system-x86_64 -accel "$accelerator" -cpu "$cpu" -smp "${KERNELS_CPUS:-2}" -m 4096 -nographic -no-reboot -nodefaults -snapshot \
    -kernel "$1/vmlinuz" -initrd "$1/initrd" \
    -append "console=ttyS0 panic=-1 quiet loglevel=4 no_timer_check guest=$guest $settings" \
    -drive "file=$image,format=raw,if=virtio" -drive "file=$1/modules.img,format=raw,if=virtio" \
    -chardev "file,id=console,path=$2.console" -serial chardev:console \
    -chardev "file,id=log,path=$2" -serial chardev:log </dev/null >"$2.machine" 2>&1 9>&- &
  machine=$!
}

# The program runs in a chroot with its own C library, and in a mount namespace, which ends with it. Its memory is a
# file in /dev/shm, and what the guest writes to its disk is one in $KERNELS_DIR. The second serial port is descriptor 3.
start_uml() { # KERNEL LOG
  rm -f "$KERNELS_DIR/uml.cow"
  HERE=$1/root DIR=$KERNELS_DIR unshare --mount sh -euc '
    mount --rbind /dev "$HERE/dev"
    mount -t proc proc "$HERE/proc"
    mount --bind "$DIR" "$HERE/kernels"
    export HOME=/root TMPDIR=/dev/shm
    exec chroot "$HERE" /usr/bin/linux.uml "$@"
  ' sh mem=4096M "umid=kernels-$$" uml_dir=/tmp/ "ubd0=/kernels/uml.cow,/kernels/${image##*/}" root=/dev/ubda rw \
    con=null con0=null,fd:1 console=tty0 ssl=null ssl1=null,fd:3 panic=-1 quiet loglevel=4 \
    "init=$guest" MODULES=/usr/lib/uml/modules "$settings" </dev/null >"$2.console" 2>"$2.machine" 3>>"$2" 9>&- &
  machine=$!
}

boot() { # KERNEL LOG: 0 when everything has been run.
  rm -f "$2" "$2.console"
  : >"$2"
  settings="${SOAK_SECONDS:+SOAK_SECONDS=$SOAK_SECONDS} \"KERNELS_STEPS=$(echo $(rest))\" ${KERNELS_FILES:+\"KERNELS_FILES=$KERNELS_FILES\"}"
  start=$(date +%s) said=$start
  if [ "$uml" = 1 ]; then start_uml "$@"; else start_qemu "$@"; fi
  # Some kernels abort when they power off, which bash would report.
  disown
  trap 'kill "$machine" 2>/dev/null; record "$2"; exit 143' TERM INT HUP
  while kill -0 "$machine" 2>/dev/null; do
    sleep 2
    now=$(date +%s)
    set -- "$1" "$2" $(progress "$2")
    line="$name: $3, $4 tests passed, $((now - start)) s (last run: ${last:-none}${last:+ s})"
    show "$line"
    if [ ! -t 1 ] && [ $((now - said)) -ge 60 ]; then echo "$line"; said=$now; fi
    [ $((now - start)) -lt $((minutes * 60)) ] || { kill "$machine"; echo "$name: not done after $minutes minutes; the next run goes on with the steps that have not passed" >>"$2"; }
  done
  trap - TERM INT HUP
  record "$2"
  show ""
  grep -q '^== end' "$2"
}

# The result of one kernel in a line. Fails if a step has failed or has not run.
verdict() { # LOG BOOTED
  failed=$(results "$1" | awk '$2 != 0 { printf " %s", $1 }')
  [ "$2" = 0 ] || failed="$failed $(progress "$1" | cut -d' ' -f1)-unfinished"
  suite=$({ sed -n 's/^suite[^ ]* //p' "$passed"; results "$1" | sed -n 's/^suite[^ ]* [1-9][0-9]* //p'; } | grep . | sum)
  rust=$({ cat "$passed"; results "$1"; } | sed -n 's/.*test result: [^.]*\. \([^;]*; [^;]*\);.*/\1/p' | tail -1)
  took=$(awk '$1 == "boot" { seconds += $2 } END { print seconds }' "$passed")
  result=PASS
  [ -z "$failed" ] || result="FAIL:$failed"
  echo "$name: $version: $result; ExUnit: ${suite:-none}; Rust: ${rust:-none}; $took s, $accelerator"
  [ -z "$failed" ]
}

image=$("$here/root.sh") || exit 1
guest=/suite$top/test/kernels/guest.sh
all=
for name in "$@"; do
  [ "$uml" != 1 ] || name=uml-$name
  log=$KERNELS_DIR/$name.log
  kernel=$("$here/$([ "$uml" = 1 ] && echo uml.sh || echo kernel.sh)" "${name#uml-}") || { echo "$name: FAIL: its kernel cannot be had"; all="$all $name"; continue; }
  version=$(cat "$kernel/version")
  # The kernel and the tree, then the steps that have passed, each with its tests.
  passed=$KERNELS_DIR/$name${KERNELS_FILES:+.files}.passed mark="$version $(cat "$image.tree") ${KERNELS_FILES:-}"
  [ "${FORCE:-}" != 1 ] && [ "$(head -1 "$passed" 2>/dev/null)" = "$mark" ] || echo "$mark" >"$passed"
  last=$(cat "$KERNELS_DIR/$name.took" 2>/dev/null)
  status=0 booted=/dev/null
  [ -z "$(rest)" ] || { booted=$log; boot "$kernel" "$log" || status=$?; }
  verdict "$booted" "$status" >"$log.line"
  [ -n "${KERNELS_STEPS:-}${KERNELS_FILES:-}" ] || echo "$took" >"$KERNELS_DIR/$name.took"
  if [ -n "$failed" ]; then
    all="$all $name"
    awk '/^  +[0-9]+\) / { on = 1 } /^Finished|^Result/ { on = 0 } on' "$log" | tr -d '\r' | head -150
    tail -40 "$log"
    echo "$name: everything that was said is in $log, and what the kernel said in $log.console"
  fi
  cat "$log.line"
done
[ -z "$all" ]
