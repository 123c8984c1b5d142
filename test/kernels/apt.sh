# apt.sh: read by kernel.sh and uml.sh. Sets up apt(8) for the suite in $suite, from the mirror in DEBIAN_MIRROR, with
# lists of its own in the folder $apt.
mirror=${DEBIAN_MIRROR:-http://deb.debian.org}
mkdir -p "$apt/lists/partial" "$apt/archives/partial"

case $suite in
  *-security) place=debian-security ;;
  *) place=debian ;;
esac
echo "deb $mirror/$place $suite main" >"$apt/sources.list"

with_apt() { # COMMAND ARGUMENT...
  command=$1
  shift
  "$command" -qq -o Dir::State::lists="$apt/lists" -o Dir::Cache::archives="$apt/archives" \
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Dir::Etc::SourceList="$apt/sources.list" \
    -o Dir::Etc::SourceParts=/dev/null -o Dir::State::status=/dev/null -o APT::Architecture=amd64 \
    -o APT::Architectures=amd64 -o Acquire::Languages=none -o Acquire::Check-Valid-Until=false \
    -o APT::Sandbox::User=root "$@"
}

# Without the network an earlier download is used: this prints its folder, and ends the script.
update() {
  with_apt apt-get update >"$apt/log" 2>&1 || {
    [ -e "$apt/current" ] || { cat "$apt/log" >&2; exit 1; }
    cat "$apt/current"
    exit
  }
}

# Unpacks packages into the new folder ROOT.
unpack() { # ROOT PACKAGE...
  root=$1
  shift
  mkdir -p "$root" "$apt/debs"
  rm -f "$apt"/debs/*
  (cd "$apt/debs" && with_apt apt-get download "$@") >>"$apt/log" 2>&1 || {
    cat "$apt/log" >&2
    exit 1
  }
  for deb in "$apt"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done
  rm -rf "$apt/debs"
}
