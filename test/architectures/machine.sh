# machine.sh: the settings of each machine, by the name that make dist has for it. Scripts source this file. The
# name is in $arch or in the script's first argument, since dash passes no arguments to a sourced file. `musl` is
# empty where src/bpf.rs refuses musl.
arch=${arch:-${1:?ARCH is missing: aarch64, armhf, riscv64, s390x}}
suite=trixie musl= order=little
case $arch in
  aarch64)
    debian=arm64 kernel=linux-image-arm64 triple=aarch64-unknown-linux-gnu gcc=aarch64-linux-gnu
    qemu='qemu-system-aarch64 -M virt -cpu cortex-a57' blk=virtio-blk-pci console=ttyAMA0 package=qemu-system-arm user=aarch64
    musl=aarch64-unknown-linux-musl
    ;;
  armhf)
    debian=armhf kernel=linux-image-armmp-lpae triple=armv7-unknown-linux-gnueabihf gcc=arm-linux-gnueabihf
    qemu='qemu-system-arm -M virt -cpu cortex-a15' blk=virtio-blk-device console=ttyAMA0 package=qemu-system-arm user=arm
    ;;
  riscv64)
    debian=riscv64 kernel=linux-image-riscv64 triple=riscv64gc-unknown-linux-gnu gcc=riscv64-linux-gnu
    qemu='qemu-system-riscv64 -M virt' blk=virtio-blk-device console=ttyS0 package=qemu-system-riscv user=riscv64
    musl=riscv64gc-unknown-linux-musl
    ;;
  s390x)
    debian=s390x kernel=linux-image-s390x triple=s390x-unknown-linux-gnu gcc=s390x-linux-gnu
    qemu='qemu-system-s390x -M s390-ccw-virtio' blk=virtio-blk-ccw console=ttysclp0 package=qemu-system-s390x user=s390x
    # The mirrors lack some of the latest packages of trixie for s390x.
    suite=bookworm order=big
    ;;
  *) echo "no machine is named $arch: aarch64, armhf, riscv64, s390x" >&2; exit 64 ;;
esac
# Debian 12 has both in one package.
case $package:$(sed -n 's/^VERSION_ID="\(.*\)"/\1/p' /etc/os-release) in
  qemu-system-riscv:12 | qemu-system-s390x:12) package=qemu-system-misc ;;
esac
