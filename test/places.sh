# places.sh: what the scripts share that run the suite, or a part of it, in other places. They source this file.

# Fails if another `make NAME` holds FILE. The lock ends with this process, and with its children, unless they close
# descriptor 9.
alone() { # NAME FILE
  mkdir -p "$(dirname "$2")"
  exec 9>"$2"
  flock -n 9 || { echo "another make $1 runs in $(dirname "$2")" >&2; exit 1; }
}

show() { # LINE: over the last, on a terminal.
  if [ -t 1 ]; then printf '\r\033[K%s' "$1"; fi
}

# The checksum of these files of the working tree, or of all: those that git knows or would add.
tree() { # PATH...
  git ls-files -co --exclude-standard -z -- "$@" | sort -z | xargs -0 sha256sum 2>/dev/null | sha256sum | cut -d' ' -f1
}

# Adds up lines such as "57 doctests, 1 test, 0 failures".
sum() {
  awk '
    { while (match($0, /[0-9]+ [a-z]+/)) {
        split(substr($0, RSTART, RLENGTH), part, " "); $0 = substr($0, RSTART + RLENGTH)
        word = part[2]; if (word ~ /(test|failure)$/) word = word "s"
        if (!(word in n)) order[++words] = word
        n[word] += part[1] } }
    END { for (i = 1; i <= words; i++) {
        word = order[i]; count = n[word]; if (count == 1) sub(/s$/, "", word)
        printf "%s%d %s", (i == 1 ? "" : ", "), count, word } }'
}
