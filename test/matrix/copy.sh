#!/bin/sh
# copy.sh SUITE: copies the working tree, all files that git tracks or would add, into the chroot of SUITE, and
# prints its folder in there. The copy is made anew, so that deleted files do not stay; _build and target are kept. A
# file that has changed gets the present time: its own may be older than the last build, which took an earlier copy.
# Each clone has its own copy, by its path on this machine: builds of another clone would have wrong time stamps.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
root=$("$here/chroot.sh" "${1:?usage: copy.sh SUITE}")
work=$root/suite$top

rm -rf --one-file-system "$work.new"
mkdir -p "$work.new"
cd "$top"
git ls-files -co --exclude-standard | while IFS= read -r file; do
  if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\n' "$file"; fi
done | tar -c -T - | tar -x --no-same-owner -C "$work.new"
[ -e "$work.new/mix.exs" ] || { echo "copy.sh: git lists no files of $top" >&2; exit 1; }
(cd "$work.new" && find . -type f) | while IFS= read -r file; do
  if cmp -s "$work/$file" "$work.new/$file"; then touch -r "$work/$file" "$work.new/$file"; else touch "$work.new/$file"; fi
done
for built in _build target; do
  [ ! -e "$work/$built" ] || mv "$work/$built" "$work.new/"
done
rm -rf --one-file-system "$work"
mv "$work.new" "$work"
echo "/suite$top"
