#!/bin/sh
# Adds the inputs that fuzzing has found to the corpora, and removes inputs that add no coverage. The seeds of
# seed.sh stay.
set -eu
cd "$(dirname "$0")"
for target in frame term command; do
  all=target/all/$target
  rm -rf "$all"
  ./corpus.sh unpack "$target" "$all"
  mkdir -p "target/found/$target"
  cp -n "target/found/$target"/* "$all/" 2>/dev/null || true
  cargo +nightly fuzz cmin "$target" "$all" -- -max_len=4096
  ./corpus.sh pack "$target" "$all"
done
./seed.sh
