#!/bin/sh
# Puts the seeds into the corpora: the vectors of docs/vectors.txt, and for each limit of the decoder an input at
# the limit and an input beyond it.
set -eu
cd "$(dirname "$0")"
for target in frame term command; do
  rm -rf "target/seeds/$target"
  ./corpus.sh unpack "$target" "target/seeds/$target"
done

bytes() {
  for byte in $(printf %s "$1" | sed 's/../& /g'); do
    printf '%b' "\\0$(printf %o "0x$byte")"
  done
}

grep -v '^#' ../docs/vectors.txt | while IFS=: read -r name hex; do
  hex=${hex# }
  file=seed-$(printf %s "$name" | tr ' ' -)
  bytes "$hex" | tee "target/seeds/term/$file" >"target/seeds/command/$file"
  # A script of one chunk (src/testing/properties.rs): the length of the chunk less one, the header, the frame.
  length=$((${#hex} / 2))
  bytes "$(printf '%02x%08x' $((length + 3)) $length)$hex" >"target/seeds/frame/$file"
done

# Frames: of 4 GiB; one byte longer than the limit; within the limit, but cut; empty frames; a frame that makes the
# buffer grow, and one behind it that lets it shrink; a frame in chunks of one byte.
bytes 03ffffffff >target/seeds/frame/seed-4-gib
bytes 0300000201 >target/seeds/frame/seed-too-long
bytes 0a0000020083680277 >target/seeds/frame/seed-cut
bytes 07000000000000000003000000000000 >target/seeds/frame/seed-empty
long=$(printf '%0400d' 0)
bytes "03000000c8c7${long}0400000001830a00000001830000000183" >target/seeds/frame/seed-long
bytes 000000000000000200830068 >target/seeds/frame/seed-bytes

# Terms: a name, hexadecimal digits.
while read -r name hex; do
  bytes "83$hex" | tee "target/seeds/term/seed-$name" >"target/seeds/command/seed-$name"
done <<EOF
depth-8 68016801680168016801680168016a
depth-9 680168016801680168016801680168016a
depth-8-of-lists 6c000000016c000000016c000000016c000000016c000000016c000000016c000000016a6a6a6a6a6a6a6a
depth-9-of-lists 6c000000016c000000016c000000016c000000016c000000016c000000016c000000016c000000016a6a6a6a6a6a6a6a6a
integer-64-bits 6e0800ffffffffffffffff
integer-64-bits-negative 6e0801ffffffffffffffff
integer-72-bits 6e0900ffffffffffffffffff
integer-of-no-bytes 6e0000
integer-of-zeros 6e08000000000000000000
integer-sign-2 6e010205
integer-sign-255 6e01ff05
large-big 6f000000010005
atom-latin1 7702e4e4
atom-surrogate 7703eda080
atom-old 640003c3a461
atom-cut 7705666f7572
string 6b0003010203
improper 6c0000000161016102
list-of-none 6c000000006a
trailing 6a6a
compressed 500000000278da4bcc05000082006f
binary-of-4-gib 6dffffffff00
list-of-4-gib 6cffffffff6a
send-cut 68046101620000000062000000076d00000004000102
send-shorter 68046101620000000062000000076d00000003000102ff
send-reference-negative 680461016280000000627fffffff6d0000000100
ask-cut 68046104620000000962000000076d00000004000102
send-handle-negative 68046101620000000162800000006d0000000100
EOF

for target in frame term command; do
  ./corpus.sh pack "$target" "target/seeds/$target"
done
