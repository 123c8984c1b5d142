#!/bin/sh
# Each target has one corpus, the file corpus/TARGET. Each line is an input: its name, and its bytes in hexadecimal
# digits. Lines are sorted by name. libFuzzer reads and writes folders with one file for each input.
#
#   corpus.sh unpack TARGET FOLDER   writes the inputs of a corpus into a folder
#   corpus.sh pack TARGET FOLDER     writes a corpus from the files of a folder
set -eu
corpus="$(dirname "$0")/corpus/$2" folder=$3
case $1 in
unpack)
  mkdir -p "$folder"
  perl -e '
    my $folder = shift;
    while (<>) {
      my ($name, $bytes) = /^([\w-]+): ((?:[0-9a-f]{2})*)$/ or die "line $. is no input: $_";
      open(my $file, ">:raw", "$folder/$name") or die "$folder/$name: $!";
      print $file pack("H*", $bytes);
      close($file) or die "$folder/$name: $!";
    }' "$folder" "$corpus"
  ;;
pack)
  perl -e '
    local $/;
    for my $path (sort @ARGV) {
      open(my $file, "<:raw", $path) or die "$path: $!";
      print $path =~ s{.*/}{}r, ": ", unpack("H*", <$file> // ""), "\n";
    }' "$folder"/* >"$corpus.tmp"
  mv "$corpus.tmp" "$corpus"
  ;;
*)
  echo "expected unpack or pack, got: $1" >&2
  exit 2
  ;;
esac
