# steps.sh: the steps of `make matrix`, `make musl` and `make dist`, whose scripts source this file at the top of the
# repository. While a step runs, a line says the place, the step, the tests so far in this place, the seconds of the
# step, and those of its last run.
#
# A step that has passed is not run again while nothing has changed, so that an interrupted run goes on. FORCE=1 runs
# all again. MINUTES (60) bounds the time of each place. The functions for scripts:
#
#   begin NAME FOLDER      fails if another `make NAME` runs in FOLDER, where everything is kept
#   place NAME             begins a place, such as a chroot or a machine
#   since WORDS [ROOT...]  from here on, a step is skipped if it has passed with this tree, kernel and Rust, these words,
#                          and the packages of this machine and of these roots. The steps before always run
#   step NAME COMMAND...   runs a step. Adds it to `failed` if it fails, or prints a warning while `no_warnings` is set
#   verdict [WORDS]        says the result of the place. Fails if a step has failed
#
# FOLDER has PLACE.STEP.log, and PLACE.took, the seconds of steps that have passed, the newest last. PLACE.passed is a
# checksum of what `since` names, then the steps that have passed with it.

. test/places.sh
minutes=${MINUTES:-60}
running=

# timeout(1) passes the signal on to the processes of the step.
stop() {
  trap '' INT TERM HUP
  show ""
  if [ -n "$running" ]; then
    kill "$running" 2>/dev/null || true
    wait "$running" 2>/dev/null || true
    echo "$place: $name: interrupted; the next run begins with it"
  fi
  exit 143
}
trap stop INT TERM HUP

begin() {
  folder=$2
  alone "$1" "$folder/run"
}

place() {
  place=$1 start=$(date +%s) passed=/dev/null steps= failed= took=0
}

since() {
  words=$1
  shift
  git ls-files --error-unmatch mix.exs >/dev/null || { echo "$place: git does not know this tree: all steps run" >&2; return 0; }
  passed=$folder/$place.passed
  key=$({
    echo "$words"
    uname -r
    rustc --version --verbose
    tree
    for root in "" "$@"; do cat "$root/var/lib/dpkg/status"; done
  } 2>/dev/null | sha256sum)
  [ "${FORCE:-}" != 1 ] && [ "$(head -1 "$passed" 2>/dev/null)" = "$key" ] || echo "$key" >"$passed"
  before=$(sed '1d; s/ .*//' "$passed")
  [ -z "$before" ] || echo "$place: passed before, and nothing has changed (FORCE=1 runs all):" $before
}

step() {
  name=$1 log=$(log "$1") begin=$(date +%s) said=0 warnings=
  shift
  seconds=$(seconds "$passed")
  if [ -n "$seconds" ]; then took=$((took + seconds)) steps="$steps $name"; return; fi
  last=$(seconds "$folder/$place.took")
  left=$((start + minutes * 60 - begin))
  [ "$left" -gt 0 ] || {
    failed="$failed $name"
    echo "$place: $name: not run: the $minutes minutes of $place are over"
    return
  }
  steps="$steps $name"
  : >"$log"
  timeout -k 30 "$left" "$@" >"$log" 2>&1 </dev/null 9>&- &
  running=$!
  while kill -0 "$running" 2>/dev/null; do
    now=$(date +%s)
    line="$place: $name$(progress), $((now - begin)) s${last:+ (last run: $last s)}"
    show "$line"
    if [ ! -t 1 ] && [ $((now - said)) -ge 60 ]; then echo "$line"; said=$now; fi
    sleep 1
  done || true # Ctrl-C ends the programs above as well. `stop` runs after that.
  wait "$running" && status=0 || status=$?
  running=
  show ""
  seconds=$(($(date +%s) - begin))
  took=$((took + seconds))
  [ -z "${no_warnings:-}" ] || warnings=$(grep -naE '^ *(└─ )?warning\b' "$log" | head -5)
  if [ "$status$warnings" = 0 ]; then
    echo "$name $seconds" | tee -a "$passed" >>"$folder/$place.took"
    return
  fi
  failed="$failed $name"
  [ "$seconds" -lt "$left" ] || status="$status: the $minutes minutes of $place are over"
  tail -40 "$log" | sed -e 's/^/  /' -e '$a\'
  echo "$place: $name failed, status $status: $log, its end is above${warnings:+; warnings:
$warnings}"
}

verdict() {
  exunit=$(logs | grep -aE '^([0-9]+ .*failures?|Result: )' | sum)
  rust=$(logs | sed -n 's/^test result: \(.*\); [0-9]* ignored.*/\1/p' | sum)
  [ -z "$failed" ] && result=PASS || result="FAIL:$failed"
  echo "$place: ${1:+$1: }$result${exunit:+; ExUnit: $exunit}${rust:+; Rust: $rust}; $took s"
  [ -z "$failed" ]
}

# The functions below are for those above.

log() { # STEP
  echo "$folder/$place.$(echo "$1" | tr / -).log"
}

logs() { # of the steps so far
  for each in $steps; do cat "$(log "$each")" || true; done
}

seconds() { # FILE: those of the step in its newest line
  awk -v name="$name" '$1 == name { seconds = $2 } END { print seconds }' "$1" 2>/dev/null || true
}

progress() {
  logs | awk '
    /^test .* \.\.\. / { n++ } /^[.*]+/ { match($0, /^[.*]+/); n += RLENGTH }
    END { if (n) printf ", %d test%s so far", n, (n == 1 ? "" : "s") }'
}
