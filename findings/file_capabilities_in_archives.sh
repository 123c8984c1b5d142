#!/bin/sh
# Which copies and archives keep file capabilities (setcap(8)), and which lose them without a word, is not what the
# options say:
#   keep   bsdtar, without an option; cp -a, --preserve=all and --preserve=xattr; shutil.copy2 and copytree of Python
#   lose   tar --xattrs at both ends. It puts them into the archive, and takes only user.* out of it again; the
#          extraction needs --xattrs-include='*' too, the creation does not
#          bsdtar reads them from that archive without an option; BusyBox's tar and Python's tarfile do not
#          cp -a of BusyBox, which has no option for them, and cp -p, install, cpio and zip
# Whoever lists the extracted file sees its mode, with its set-user-ID bit, and no capability: getcap(8) tells.
# Seen with tar 1.34, libarchive 3.6.2, coreutils 9.1, cpio 2.13, zip 3.0 and BusyBox 1.35.0 of Debian 12, and Python
# 3.11. Needs root, these tools and setcap(8).
set -eu
missing=
for tool in bsdtar:libarchive-tools cpio:cpio zip:zip unzip:unzip busybox:busybox setcap:libcap2-bin python3:python3; do
  command -v "${tool%:*}" >/dev/null || missing="$missing ${tool#*:}"
done
if [ -n "$missing" ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
dpkg-query -W -f='${Package} ${Version}\n' tar libarchive-tools coreutils cpio zip libcap2-bin

mkdir source
cp /bin/true source/prog
chmod 4755 source/prog
setcap cap_net_raw+ep source/prog
tar -c --xattrs -f xattrs.tar source
bsdtar -cf bsd.tar source
(cd source && echo prog | cpio --quiet -o >../prog.cpio && zip -q ../prog.zip prog)

# A way, and what is left of the capability in out/.
way() {
  name=$1
  shift
  mkdir out
  "$@" 2>errors || { cat errors >&2; exit 1; }
  file=$(find out -name prog)
  bit=$([ -u "$file" ] && echo 'set-user-ID, ' || echo)
  echo "$name: $bit$(getcap "$file" | grep -q cap_net_raw=ep && echo capability || echo 'no capability')"
  rm -rf out
}
{
  way 'cp -a' cp -a source out
  way 'cp --preserve=xattr' cp -R --preserve=xattr source out
  way 'cp -p' cp -p source/prog out
  way 'busybox cp -a' busybox cp -a source out
  way 'install' install -m 4755 source/prog out
  way 'copytree' python3 -c 'import shutil; shutil.copytree("source", "out/source")'
  way 'tar --xattrs, tar --xattrs' tar -x --xattrs -f xattrs.tar -C out
  way 'tar --xattrs, tar --xattrs-include' tar -x --xattrs-include='*' -f xattrs.tar -C out
  way 'tar --xattrs, bsdtar' bsdtar -xf xattrs.tar -C out
  way 'tar --xattrs, busybox tar' busybox tar -xf xattrs.tar -C out
  way 'tar --xattrs, tarfile' python3 -W ignore -c 'import tarfile; tarfile.open("xattrs.tar").extractall("out")'
  way 'bsdtar, bsdtar' bsdtar -xf bsd.tar -C out
  way 'cpio' sh -c 'cd out && cpio --quiet -i <../prog.cpio'
  way 'zip' unzip -q -K prog.zip -d out
} >seen
cat seen
cat >expected <<EXPECTED
cp -a: set-user-ID, capability
cp --preserve=xattr: capability
cp -p: set-user-ID, no capability
busybox cp -a: set-user-ID, no capability
install: set-user-ID, no capability
copytree: set-user-ID, capability
tar --xattrs, tar --xattrs: set-user-ID, ${EXPECTED:-no capability}
tar --xattrs, tar --xattrs-include: set-user-ID, capability
tar --xattrs, bsdtar: set-user-ID, capability
tar --xattrs, busybox tar: set-user-ID, no capability
tar --xattrs, tarfile: set-user-ID, no capability
bsdtar, bsdtar: set-user-ID, capability
cpio: set-user-ID, no capability
zip: set-user-ID, no capability
EXPECTED
diff expected seen >&2 || { echo "changed" >&2; exit 1; }
