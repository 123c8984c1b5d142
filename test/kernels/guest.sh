#!/bin/sh
# guest.sh: process 1 of the machine that run.sh boots. The output of each step goes to the second serial port,
# between the lines `== NAME` and `== NAME status STATUS`, which run.sh reads. The kernel's messages go to the
# first.
set -u

# Arguments of the kernel are in the environment of this script: SOAK_SECONDS, KERNELS_STEPS and KERNELS_FILES, and for
# user-mode Linux MODULES, the folder of its modules on the machine.
# The machine is the suite's own: it may simulate radios.
export NETLINK_PORT_TEST_OWN_MACHINE=1 HOME=/root LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin MIX_ENV=test
# Idle schedulers do not spin: each spin is emulated, too.
export ERL_FLAGS="+sbwt none +sbwtdcpu none +sbwtdio none"
cd "$(dirname "$0")/../.." || exit
mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -z "${MODULES:-}" ] || { mkdir -p /usr/lib/modules; mount -t hostfs -o "$MODULES" none /usr/lib/modules; }
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
hostname kernels
ip link set lo up
out=/dev/ttyS1
stty -F "$out" raw

step() { # NAME COMMAND...
  name=$1
  shift
  echo "== $name" >"$out"
  "$@" >"$out" 2>&1 </dev/null
  echo "
== $name status $?" >"$out"
}

facts() {
  uname -rv
  modprobe nf_conntrack
  for sysctl in net/core/rmem_max net/core/wmem_max net/core/rmem_default net/core/optmem_max \
    net/netfilter/nf_conntrack_events kernel/unprivileged_userns_clone user/max_user_namespaces fs/pipe-user-pages-soft; do
    echo "$sysctl: $(cat "/proc/sys/$sysctl" 2>&1)"
  done
  target/kernel-facts
}

rust() {
  for attempt in target/rust-tests; do "$attempt" --test-threads 2 --color never; done
}

# The machine has neither cargo nor tshark.
suite() { # ARGUMENT...: those of mix test
  NETLINK_PORT_TEST_WITHOUT="cargo tshark" mix test --no-compile --no-color "$@"
}

for each in $KERNELS_STEPS; do
  case $each in
    facts) step facts facts ;;
    doctor) step doctor env NETLINK_PORT_EXECUTABLE="$PWD/priv/netlink_port" mix netlink_port.doctor ;;
    rust) step rust rust ;;
    suite) step suite suite ${KERNELS_FILES:-} ;;
    # suite-PART/PARTS
    suite-*)
      part=${each#suite-}
      export MIX_TEST_PARTITION="${part%/*}"
      step "$each" suite --partitions "${part#*/}"
      ;;
    soak) step soak env SOAK_SECONDS="${SOAK_SECONDS:-60}" mix run --no-compile test/soak/soak.exs ;;
  esac
done
echo "== end" >"$out"
sync
# qemu ends when the machine is reset. User-mode Linux would boot again.
if [ -n "${MODULES:-}" ]; then echo o; else echo b; fi >/proc/sysrq-trigger
sleep 60
