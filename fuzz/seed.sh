#!/bin/sh
# Puts the vectors of docs/vectors.txt into the corpora: what fuzzing starts from.
set -eu
cd "$(dirname "$0")"
mkdir -p corpus/frame corpus/term corpus/command

bytes() {
  for byte in $(printf %s "$1" | sed 's/../& /g'); do
    printf '%b' "\\0$(printf %o "0x$byte")"
  done
}

grep -v '^#' ../docs/vectors.txt | while IFS=: read -r name hex; do
  hex=${hex# }
  file=seed-$(printf %s "$name" | tr ' ' -)
  bytes "$hex" | tee "corpus/term/$file" >"corpus/command/$file"
  # One chunk of a script (src/checks.rs): how long it is but one, the header, the frame.
  length=$((${#hex} / 2))
  bytes "$(printf '%02x%08x' $((length + 3)) $length)$hex" >"corpus/frame/$file"
done

# Of 4 GiB; one beyond the check's limit; at it, but cut; empty ones; one that makes the buffer grow
# and one behind it that lets it shrink; byte by byte.
bytes 03ffffffff >corpus/frame/seed-4-gib
bytes 0300000201 >corpus/frame/seed-too-long
bytes 0a0000020083680277 >corpus/frame/seed-cut
bytes 07000000000000000003000000000000 >corpus/frame/seed-empty
long=$(printf '%0400d' 0)
bytes "03000000c8c7${long}0400000001830a00000001830000000183" >corpus/frame/seed-long
bytes 000000000000000200830068 >corpus/frame/seed-bytes
