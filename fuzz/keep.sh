#!/bin/sh
# Takes into the corpora what fuzzing has found, and drops what covers nothing of its own, but for
# the seeds.
set -eu
cd "$(dirname "$0")"
for target in frame term command; do
  mkdir -p "target/found/$target"
  cp -n "target/found/$target"/* "corpus/$target/" 2>/dev/null || true
  cargo +nightly fuzz cmin "$target" "corpus/$target" -- -max_len=4096
done
./seed.sh
