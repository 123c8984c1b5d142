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
# qemu emulates (TCG), some 10 to 20 times slower than the machine. KVM=1 uses /dev/kvm, where that works. A kernel
# that has passed with this tree is not run again, so that an interrupted run goes on; FORCE=1 runs it again.
# Chroot, kernels, images and logs are kept in KERNELS_DIR (.kernels). KERNELS_MINUTES (60) bounds the time of each
# kernel. KERNELS_CPUS (2) is the number of its processors: with 1, emulation costs less on a busy machine.
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
mkdir -p "$KERNELS_DIR"
exec 9>"$KERNELS_DIR/run"
flock -n 9 || { echo "another make kernels runs in $KERNELS_DIR" >&2; exit 1; }

accelerator="tcg,thread=multi" cpu=max
[ "${KVM:-}" != 1 ] || accelerator=kvm cpu=host
[ "$uml" != 1 ] || accelerator="user-mode Linux"

say() { # LINE: over the last, on a terminal.
  if [ -t 1 ]; then printf '\r\033[K%s' "$1"; fi
}

# The step that runs, by the log, and how many tests of ExUnit have passed.
progress() { # LOG
  tr -d '\r' <"$1" | awk '
    /^== end/ { step = "end" }
    /^== / && NF == 2 { step = $2; dots = 0 }
    step == "suite" && /^[.*]+/ { match($0, /^[.*]+/); dots += RLENGTH }
    BEGIN { step = "booting" }
    END { printf "%s %d", step, dots }'
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
  settings="${SOAK_SECONDS:+SOAK_SECONDS=$SOAK_SECONDS} ${KERNELS_STEPS:+\"KERNELS_STEPS=$KERNELS_STEPS\"} ${KERNELS_FILES:+\"KERNELS_FILES=$KERNELS_FILES\"}"
  if [ "$uml" = 1 ]; then start_uml "$@"; else start_qemu "$@"; fi
  trap 'kill "$machine" 2>/dev/null; exit 143' TERM INT HUP
  start=$(date +%s) said=$start
  while kill -0 "$machine" 2>/dev/null; do
    sleep 2
    now=$(date +%s)
    set -- "$1" "$2" $(progress "$2")
    line="$name: $3$([ "$3" != suite ] || echo ", $4 tests"), $((now - start)) s${last:+ (last run: $last s)}"
    say "$line"
    if [ ! -t 1 ] && [ $((now - said)) -ge 60 ]; then echo "$line"; said=$now; fi
    [ $((now - start)) -lt $((minutes * 60)) ] || { kill "$machine"; echo "$name: not done after $minutes minutes" >>"$2"; }
  done
  # Some kernels abort when they power off, which bash would report.
  wait "$machine" 2>/dev/null
  trap - TERM INT HUP
  took=$(($(date +%s) - start))
  say ""
  grep -q '^== end' "$2"
}

# The result of one kernel in a line. Fails if a step has failed.
verdict() { # LOG BOOTED
  suite=$(grep -aE '^[0-9]+ .*tests?, |^Result: ' "$1" | tail -1 | tr -d '\r')
  rust=$(grep -a '^test result: ' "$1" | tail -1 | tr -d '\r' | cut -d. -f2 | cut -d';' -f1,2)
  failed=$(sed -n 's/^== \([a-z]*\) status \([0-9]*\).*/\1 \2/p' "$1" | awk '$2 != 0 { printf " %s", $1 }')
  [ "$2" = 0 ] || failed="$failed $(progress "$1" | cut -d' ' -f1)-unfinished"
  echo "$name: $version: ${failed:+FAIL ($failed )}${failed:-PASS}; ExUnit: ${suite:-none}; Rust:${rust:- none}; $took s, $accelerator" | sed 's/FAIL (\(.*\) )\(.*\); ExUnit/FAIL:\1; ExUnit/'
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
  done=$KERNELS_DIR/$name.passed mark="$version $(cat "$image.tree") ${KERNELS_STEPS:-} ${KERNELS_FILES:-}"
  if [ "${FORCE:-}" != 1 ] && [ "$(cat "$done" 2>/dev/null)" = "$mark" ]; then
    cat "$done.line"
    continue
  fi
  last=$(cat "$KERNELS_DIR/$name.took" 2>/dev/null)
  boot "$kernel" "$log" && status=0 || status=$?
  if verdict "$log" "$status" >"$done.line"; then
    echo "$mark" >"$done"
    echo "$took" >"$KERNELS_DIR/$name.took"
  else
    all="$all $name"
    awk '/^  +[0-9]+\) / { on = 1 } /^Finished|^Result/ { on = 0 } on' "$log" | tr -d '\r' | head -150
    tail -5 "$log"
    echo "$name: everything that was said is in $log, and what the kernel said in $log.console"
  fi
  cat "$done.line"
done
[ -z "$all" ]
