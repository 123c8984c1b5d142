#!/bin/bash
# run.sh: checks the release of the sample in containers of podman and runc: rootful, rootless, and with the
# capabilities that Docker gives (runtime.sh). Each line is a check. `make containers` calls it. Root only. The
# image is made here, of the packages of this machine's Debian, without a registry.
#
# Images and layers are in $CONTAINERS_DIR (.containers), apart from podman's usual storage. Each container has the
# loopback alone for a network. A check that has passed with this tree is not run again, so that an interrupted run goes
# on; FORCE=1 runs all again.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
dir=${CONTAINERS_DIR:-$top/.containers}
[ "$(id -u)" = 0 ] || { echo "make containers makes an image and namespaces: run it as root" >&2; exit 1; }
# The release has the ERTS of this machine, which needs its C library.
suite=$(. /etc/os-release && [ "$ID" = debian ] && echo "${VERSION_CODENAME:-}")
[ -n "$suite" ] || { echo "make containers makes an image of this machine's Debian suite: run it on Debian" >&2; exit 1; }
. "$top/test/places.sh"
alone containers "$dir/lock"
began=$(date +%s)

name=nlc-$$
image=localhost/netlink_port/sample
output=$dir/output
# Jobs have process groups of their own, so that a trap can end them at once and as a whole.
set -m
job=
run() { # COMMAND...: its output goes to a file.
  local status=0
  "$@" >"$output" 2>&1 9>&- &
  job=$!
  wait "$job" || status=$?
  job=
  return "$status"
}
# No command of podman takes longer than 10 minutes.
bounded() { timeout --foreground --kill-after 10 600 "$@"; }
# All that the command has started ends with it.
apart=(unshare --mount --pid --fork --kill-child --mount-proc)
runtime=runtime
podman_() {
  bounded podman --root "$dir/storage" --runroot "$dir/run" --cgroup-manager cgroupfs --runtime "$here/$runtime.sh" "$@"
}
within() { # SECONDS COMMAND...: until it succeeds.
  local end=$(($(date +%s) + $1))
  shift
  until "$@"; do [ "$(date +%s)" -lt $end ] || return 1; sleep 0.1; done
}
gone() { ! kill -0 -- "-$job"; }
remove_all() { podman_ rm --force --all --time 0 >/dev/null 2>&1 9>&-; }
end() {
  trap '' INT TERM HUP
  # bash would tell of the end of the job.
  exec 2>/dev/null
  if [ -n "$job" ]; then
    kill -- "-$job"
    # unshare(1) waits for its command, whose process 1 can ignore the signal.
    within 5 gone
    kill -KILL -- "-$job"
    wait "$job"
  fi
  remove_all
  for netns in "$name-blue" "$name-late"; do ip netns del "$netns" 2>/dev/null; done
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

## The image

key="$suite $(cd "$top" && tree src elixir build.exs mix.exs Cargo.lock examples/sample test/containers/look.exs test/containers/Containerfile)"
base=$dir/base-$suite.tar
make_image() {
  [ -e "$base" ] || {
    mmdebstrap --mode=root --variant=minbase --include=libncursesw6,libssl3,libstdc++6,iproute2,libcap2-bin,procps \
      "$suite" "$base.new.tar" http://deb.debian.org/debian && mv "$base.new.tar" "$base"
  } &&
    (cd "$top/examples/sample" && export MIX_ENV=prod && mix deps.get && "${apart[@]}" mix release --overwrite --path "$dir/context/release") &&
    cp "$here/look.exs" "$here/Containerfile" "$dir/context/" &&
    podman_ import "$base" localhost/netlink_port/base &&
    podman_ build --network none --quiet --tag "$image" "$dir/context" &&
    rm -f "$dir/sample.tar" && podman_ save --quiet --output "$dir/sample.tar" "$image"
}
remove_all
if [ "$(cat "$dir/image" 2>/dev/null)" != "$key" ]; then
  echo "containers: making the image, of Debian $suite"
  rm -f "$dir/image"
  run make_image || { tail -20 "$output"; exit 1; }
  echo "$key" >"$dir/image"
fi

## What is checked

# The first line of `passed` is the tree and the engine. The others are the checks that have passed.
mark="$key $(cd "$top" && tree test/containers) $(podman --version) $(runc --version | head -1)"
[ "${FORCE:-}" != 1 ] && [ "$(head -1 "$dir/passed" 2>/dev/null)" = "$mark" ] || echo "$mark" >"$dir/passed"
passed() { tail -n +2 "$dir/passed" | grep -qxF -- "$1"; }

total=0 number=0 failed=0 counting=yes
check() { # WHAT PATTERN... -- COMMAND...: each pattern, a whole line of extended regular expression, is in its output.
  local what=$1 patterns=() missing='' pattern start
  shift
  while [ "$1" != -- ]; do patterns+=("$1"); shift; done
  shift
  if [ -n "$counting" ]; then total=$((total + 1)); return; fi
  number=$((number + 1))
  ! passed "$what" || return
  [ ! -t 1 ] || printf '     %s of %s: %s' "$number" "$total" "$what"
  start=$(date +%s)
  run "$@"
  for pattern in "${patterns[@]}"; do grep -qxE -- "$pattern" "$output" || missing+="    no line: $pattern"$'\n'; done
  [ ! -t 1 ] || printf '\r\033[K'
  if [ -z "$missing" ]; then
    echo "$what" >>"$dir/passed"
    echo "ok   $number of $total, $(($(date +%s) - start)) s: $what"
  else
    failed=$((failed + 1))
    printf 'FAIL %s of %s: %s\n%s%s\n' "$number" "$total" "$what" "$missing" "$(sed 's/^/    /' "$output")"
  fi
}
look_='Code.eval_file("/app/look.exs")'
look() { podman_ run --rm --network none "$@" "$image" /app/bin/sample eval "$look_"; }

none='vm: no capabilities'
some='vm: capabilities 0.*'
helper='helper: seccomp 2, 0000000000201000'
bare='helper: seccomp 2, 0000000000000000'
opened="$name-blue: opened, verified: true, links: lo"
netns=(--volume /run/netns:/run/netns:ro,rslave)
add=(--cap-add SYS_ADMIN --cap-add NET_ADMIN)
trace=(--cap-add SYS_PTRACE)
app=(--user app --env NETLINK_PORT_EXECUTABLE=/opt/netlink/netlink_port)
blue=(--env "LOOK=host $name-blue")
ip netns add "$name-blue"

## A container with another one's namespaces

# As docs/deployment.md prints it.
by_setpriv() {
  podman_ run --rm --network none --user root "${add[@]}" --cap-add SETPCAP "${netns[@]}" "$image" \
    setpriv --reuid app --regid app --init-groups --inh-caps=-all --ambient-caps=-all --reset-env \
    env LC_ALL=C.UTF-8 RELEASE_TMP=/tmp RELEASE_DISTRIBUTION=none NETLINK_PORT_EXECUTABLE=/opt/netlink/netlink_port \
    "LOOK=$name-blue" /app/bin/sample eval "$look_"
}
# A namespace that is made once the container runs.
later() { # PROPAGATION
  podman_ run --detach --network none --name later "${add[@]}" --volume "/run/netns:/run/netns:$1" --env "LOOK=$name-late" "$image" \
    sh -c "until [ -e /run/netns/$name-late ]; do sleep 0.1; done; sleep 1; exec /app/bin/sample eval '$look_'"
  ip netns add "$name-late"
  podman_ wait later
  podman_ logs later
  podman_ rm --force later
  ip netns del "$name-late"
}
# Another container. Its process 1, root, has capabilities that the helper has given up.
target() {
  podman_ container exists target || podman_ run --detach --network none --name target "$image" sleep 3600
  pid=$(podman_ inspect --format '{{.State.Pid}}' target)
}
look_at_target() { # PATH ARGUMENT...: PATH has PID for the process id of that container, outside.
  target
  look "${@:2}" --env "LOOK=${1/PID/$pid}"
}
of_target() { look_at_target pid:1 --pid container:target "$@"; }

## The release as process 1 of a container

start() { # NAME ARGUMENT...
  podman_ run --detach --network none --name "$1" "${add[@]}" "${netns[@]}" --env "SAMPLE_NETNS=$name-blue" "${@:2}" "$image" &&
    within 60 says "$1" 'watching the links'
}
logs() { podman_ logs "$1" 2>&1; }
says() { logs "$1" | grep -q "$2"; }
process_1() { podman_ container exists process-1 || start process-1; }
starts() { logs process-1 | grep -c 'watching the links'; }
restarted() { [ "$(starts)" -ge 2 ]; }
new_link() { # NAME LINK
  ip -n "$name-blue" link add "$2" type bridge
  within 20 says "$1" "new link $2"
}
tells() {
  process_1
  new_link process-1 br1
  echo "process 1: $(podman_ exec process-1 cat /proc/1/comm)"
  logs process-1
}
replaces() {
  process_1
  podman_ exec process-1 sh -c 'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" != netlink_port ] || kill -9 ${p#/proc/}; done'
  within 20 restarted
  new_link process-1 br2
  echo "zombies: $(podman_ exec process-1 sh -c 'cat /proc/[0-9]*/status' | grep -c '^State:.Z'), starts: $(starts)"
  logs process-1
}
pauses() { # LINES: of ip(8), meanwhile
  process_1
  podman_ pause process-1
  ip -n "$name-blue" -batch - <<<"$1"
  podman_ unpause process-1
  within 20 says process-1 "$2"
  logs process-1
}
ends() {
  process_1
  local pid children before code left=0
  pid=$(podman_ inspect --format '{{.State.Pid}}' process-1)
  children=$(pgrep -P "$pid,$(pgrep -P "$pid" | paste -sd,)" -d ' ')
  before=$(date +%s)
  podman_ kill --signal TERM process-1
  code=$(podman_ wait process-1)
  for child in $children; do [ ! -e "/proc/$child" ] || left=$((left + 1)); done
  echo "code: $code, left: $left"
  [ $(($(date +%s) - before)) -ge 10 ] || echo "in time"
  podman_ rm --force process-1
}
limited() {
  start limited --memory 128m --pids-limit 64
  new_link limited br4
  logs limited
  podman_ rm --force --time 0 limited
}

## Images, and containers of an ordinary user

stages() {
  mkdir -p "$dir/stages"
  cat >"$dir/stages/Containerfile" <<END
FROM $image AS first
FROM localhost/netlink_port/base
COPY --from=first /opt/netlink/netlink_port /copied
RUN cp /copied /cp; cp -a /copied /cp-a; tar -C / -c copied | tar -x -C /tmp; true
END
  podman_ build --network none --quiet --tag localhost/netlink_port/stages "$dir/stages"
  podman_ run --rm --network none localhost/netlink_port/stages \
    sh -c 'for f in /copied /cp /cp-a /tmp/copied; do echo "$f: $(getcap $f | sed "s/.* //")"; done'
}
rootless() { bounded "${apart[@]}" "$here/rootless.sh" "$dir" "$here/$runtime.sh" "$image" "$@"; }

checks() {
  for runtime in runtime docker-like; do
    case $runtime in runtime) engine=podman ;; *) engine="as Docker" ;; esac
    check "$engine, root, default profile: the own namespace alone" \
      "$some" "$bare" 'host: opened, .*' "$name-blue: setns eperm: .*CAP_SYS_ADMIN.*" -- look "${netns[@]}" "${blue[@]}"
    check "$engine, a user, default profile: the own namespace alone" \
      "$none" "$bare" 'host: opened, .*' "$name-blue: setns eperm: .*CAP_SYS_ADMIN.*" -- look --user app "${netns[@]}" "${blue[@]}"
    check "$engine, a user, default profile: a helper with file capabilities is not run" \
      "$none" 'start: .*EPERM.*bounding set.*' -- look "${app[@]}"
    check "$engine, root, SYS_ADMIN and NET_ADMIN" \
      "$some" "$helper" 'host: opened, verified: true, .*' "$opened" -- look "${add[@]}" "${netns[@]}" "${blue[@]}"
    case $runtime in
      runtime) vm=$some why="podman gives --cap-add of a user to the VM" ;;
      *) vm=$none why="the VM has none" ;;
    esac
    check "$engine, a user, both added, file capabilities: $why" \
      "$vm" "$helper" "$opened" -- look "${add[@]}" "${app[@]}" "${netns[@]}" "${blue[@]}"
    case $runtime in
      runtime) what="by the ambient set alone" vm=$some its=$helper seen=$opened ;;
      *) what="file capabilities do not count" vm=$none its=$bare seen="$name-blue: setns eperm: .*" ;;
    esac
    check "$engine, no-new-privileges, a user: $what" \
      "$vm" "$its" "$seen" -- look "${add[@]}" "${app[@]}" "${netns[@]}" "${blue[@]}" --security-opt no-new-privileges
    check "$engine, no-new-privileges, root" \
      "$some" "$helper" "$opened" -- look "${add[@]}" "${netns[@]}" "${blue[@]}" --security-opt no-new-privileges
  done
  runtime=runtime
  check "podman, a user by setpriv(1) from root: the VM has none" "$none" "$helper" "$opened" -- by_setpriv
  check "read-only, all capabilities dropped" "$none" "$bare" 'host: opened, .*' -- look --read-only --cap-drop all --user app
  check "read-only, all dropped but the two" \
    "$some" "$helper" "$opened" -- look --read-only --cap-drop all "${add[@]}" "${netns[@]}" "${blue[@]}"

  check "/run/netns mounted private, a namespace that is made later" "$name-late: setns einval: .*" -- later private
  for propagation in rslave rshared; do
    check "/run/netns mounted $propagation, a namespace that is made later" \
      "$name-late: opened, verified: true, links: lo" -- later "$propagation"
  done

  check "pid namespace of another container: its process 1 takes SYS_PTRACE" \
    "$helper" 'pid:1: open eacces: .*CAP_SYS_PTRACE.*' -- of_target "${add[@]}"
  check "pid namespace of another container, with SYS_PTRACE" \
    "$helper" 'pid:1: opened, verified: true, links: lo' -- of_target "${add[@]}" "${trace[@]}"
  check "pid namespace of the host, with SYS_PTRACE" \
    "$helper" 'pid:[0-9]+: opened, verified: true, links: lo' -- look_at_target pid:PID "${add[@]}" "${trace[@]}" --pid host
  check "a pid namespace of its own: that number is nobody there" \
    "$helper" 'pid:[0-9]+: open esrch: .*' -- look_at_target pid:PID "${add[@]}" "${trace[@]}"
  check "the host's /proc, with SYS_PTRACE: its paths open without a pid namespace" \
    "$helper" '/host/proc/[0-9]+/ns/net: opened, verified: true, links: lo' \
    -- look_at_target /host/proc/PID/ns/net "${add[@]}" "${trace[@]}" --volume /proc:/host/proc:ro

  check "as process 1: events come" \
    'process 1: beam.smp' 'watching the links of .*, verified: true' 'new link br1' -- tells
  check "as process 1: a killed helper is replaced, and reaped" 'zombies: 0, starts: 2' 'new link br2' -- replaces
  check "pause and unpause: what came meanwhile is told then" \
    'new link br3' -- pauses 'link add br3 type bridge' 'new link br3'
  check "pause and unpause: an overrun tells how many were dropped" \
    'missed [1-9][0-9]* datagrams' -- pauses "$(seq -f 'link set lo mtu %.0f' 1001 9000)" 'missed'
  check "SIGTERM: an orderly end, nothing is left" 'code: 0, left: 0' 'in time' -- ends
  check "memory: 128m, pids-limit: 64" 'watching the links of .*' 'new link br4' -- limited

  check "file capabilities: kept by COPY --from and cp -a, lost by cp and tar" '/copied: cap_net_admin,cap_sys_admin=ep' \
    '/cp: ' '/cp-a: cap_net_admin,cap_sys_admin=ep' '/tmp/copied: ' -- stages
  check "rootless, default profile: the own namespace" "$some" "$bare" 'host: opened, .*' -- rootless look
  check "rootless, both added: the host's namespaces are closed" \
    "$some" "$helper" 'host: opened, verified: true, .*' "$name-blue: setns eperm: .*" -- rootless look "${add[@]}" "${netns[@]}" "${blue[@]}"
  check "rootless, both added: a namespace that is made inside" \
    "$some" "$helper" 'inside: opened, verified: true, links: lo' -- rootless inside "${add[@]}" --env LOOK=inside
  runtime=docker-like
  check "rootless, a user: file capabilities are kept by podman save and load" \
    "$none" "$helper" 'host: opened, verified: true, .*' -- rootless look "${add[@]}" "${app[@]}"
  runtime=runtime
  check "rootless, from outside, as its user: with user_namespaces: true" \
    "$none" "$bare" 'pid:[0-9]+: opened, verified: true, links: lo' -- rootless outside
}

checks
counting=
echo "containers: $(podman --version), $(runc --version | head -1), Debian $suite; of $total checks" \
  "$(($(wc -l <"$dir/passed") - 1)) have passed already; the last whole run took: $(cat "$dir/seconds" 2>/dev/null || echo "some 5 minutes, by guess")"
whole=$(($(wc -l <"$dir/passed") == 1))
checks
took="$(($(date +%s) - began)) s"
[ "$whole" = 0 ] || echo "$took" >"$dir/seconds"
echo "containers: of $total checks $(($(wc -l <"$dir/passed") - 1)) have passed, $failed failed; $took"
[ "$failed" = 0 ]
