#!/bin/bash
# run.sh: checks the release of the sample in containers of podman and runc: rootful, rootless, and with the
# capabilities that Docker gives (runtime.sh). Each line is a check. `make containers` calls it. Root only. The
# image is made here, of Debian's packages, without a registry.
#
# Images and layers are in $CONTAINERS_DIR (.containers), apart from podman's usual storage. Each container has the
# loopback alone for a network.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
dir=${CONTAINERS_DIR:-$top/.containers}
[ "$(id -u)" = 0 ] || { echo "make containers makes an image and namespaces: run it as root" >&2; exit 1; }
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
began=$(date +%s)
last=$(cat "$dir/seconds" 2>/dev/null || echo "some 5 minutes, by guess")
echo "containers: $(podman --version), $(runc --version | head -1); the last whole run took: $last"

name=nlc-$$
image=localhost/netlink_port/sample
: >"$dir/passed"
: >"$dir/failed"
podman_() { podman --root "$dir/storage" --runroot "$dir/run" --cgroup-manager cgroupfs --runtime "$here/$runtime.sh" "$@"; }
runtime=runtime
end() {
  podman_ rm -fa >/dev/null 2>&1
  for netns in "$name-blue" "$name-late"; do ip netns del "$netns" 2>/dev/null; done
}
trap end EXIT
trap 'exit 1' INT TERM

## The image

key=$(cd "$top" && git ls-files -co --exclude-standard -- src elixir build.exs mix.exs Cargo.lock examples/sample test/containers |
  xargs -d '\n' sha256sum | sha256sum | cut -c1-16)
if [ "$(cat "$dir/image" 2>/dev/null)" != "$key" ]; then
  echo "containers: making the image"
  [ -e "$dir/base.tar" ] || {
    mmdebstrap --mode=root --variant=minbase --include=libncursesw6,libssl3,libstdc++6,iproute2,libcap2-bin,procps \
      bookworm "$dir/base.new.tar" http://deb.debian.org/debian >"$dir/base.log" 2>&1 || { tail "$dir/base.log"; exit 1; }
    mv "$dir/base.new.tar" "$dir/base.tar"
  }
  (cd "$top/examples/sample" && export MIX_ENV=prod && mix deps.get && mix release --overwrite --path "$dir/context/release") \
    >"$dir/release.log" 2>&1 || { tail -20 "$dir/release.log"; exit 1; }
  cp "$here/look.exs" "$here/Containerfile" "$dir/context/"
  podman_ import "$dir/base.tar" localhost/netlink_port/base >/dev/null 2>"$dir/podman.log" &&
    podman_ build --network none --quiet --tag "$image" "$dir/context" >>"$dir/podman.log" 2>&1 || {
    tail -20 "$dir/podman.log"
    exit 1
  }
  echo "$key" >"$dir/image"
fi

## What is checked

# Runs at the end of a pipe, in a subshell, so that it counts passed and failed checks in files.
expect() { # WHAT PATTERN... <<<OUTPUT: each pattern, a whole line of extended regular expression, is in the output.
  local what=$1 output missing='' pattern
  shift
  output=$(cat)
  for pattern; do grep -qxE "$pattern" <<<"$output" || missing+="    no line: $pattern"$'\n'; done
  if [ -z "$missing" ]; then
    echo "ok   $what" | tee -a "$dir/passed"
  else
    echo "$what" >>"$dir/failed"
    printf 'FAIL %s\n%s%s\n' "$what" "$missing" "$(sed 's/^/    /' <<<"$output")"
  fi
}
look() { podman_ run --rm --network none "$@" "$image" /app/bin/sample eval 'Code.eval_file("/app/look.exs")' 2>&1; }
within() { # SECONDS COMMAND...: until it succeeds.
  local end=$(($(date +%s) + $1))
  shift
  until "$@"; do [ "$(date +%s)" -lt $end ] || return 1; sleep 0.1; done
}

none='vm: no capabilities'
some='vm: capabilities 0.*'
helper='helper: seccomp 2, 0000000000201000'
bare='helper: seccomp 2, 0000000000000000'
opened="$name-blue: opened, verified: true, links: lo"
netns=(--volume /run/netns:/run/netns:ro,rslave)
add=(--cap-add SYS_ADMIN --cap-add NET_ADMIN)
app=(--user app --env NETLINK_PORT_EXECUTABLE=/opt/netlink/netlink_port)
blue=(--env "LOOK=host $name-blue")
ip netns add "$name-blue"

for runtime in runtime docker-like; do
  case $runtime in runtime) engine=podman ;; *) engine="as Docker" ;; esac
  look "${netns[@]}" "${blue[@]}" |
    expect "$engine, root, default profile: the own namespace alone" "$some" "$bare" 'host: opened, .*' "$name-blue: setns eperm: .*CAP_SYS_ADMIN.*"
  look --user app "${netns[@]}" "${blue[@]}" |
    expect "$engine, a user, default profile: the own namespace alone" "$none" "$bare" 'host: opened, .*' "$name-blue: setns eperm: .*CAP_SYS_ADMIN.*"
  look "${app[@]}" |
    expect "$engine, a user, default profile: a helper with file capabilities is not run" "$none" 'start: .*EPERM.*bounding set.*'
  look "${add[@]}" "${netns[@]}" "${blue[@]}" |
    expect "$engine, root, SYS_ADMIN and NET_ADMIN" "$some" "$helper" 'host: opened, verified: true, .*' "$opened"
  case $runtime in
    runtime) vm=$some why="podman gives --cap-add of a user to the VM" ;;
    *) vm=$none why="the VM has none" ;;
  esac
  look "${add[@]}" "${app[@]}" "${netns[@]}" "${blue[@]}" |
    expect "$engine, a user, both added, file capabilities: $why" "$vm" "$helper" "$opened"
  look "${add[@]}" "${app[@]}" "${netns[@]}" "${blue[@]}" --security-opt no-new-privileges |
    case $runtime in
      runtime) expect "$engine, no-new-privileges, a user: by the ambient set alone" "$some" "$helper" "$opened" ;;
      *) expect "$engine, no-new-privileges, a user: file capabilities do not count" "$none" "$bare" "$name-blue: setns eperm: .*" ;;
    esac
  look "${add[@]}" "${netns[@]}" "${blue[@]}" --security-opt no-new-privileges |
    expect "$engine, no-new-privileges, root" "$some" "$helper" "$opened"
done
runtime=runtime

podman_ run --rm --network none "${add[@]}" "${app[@]}" --user root "${netns[@]}" "${blue[@]}" --cap-add SETPCAP "$image" \
  setpriv --reuid app --regid app --init-groups --inh-caps=-all --ambient-caps=-all --reset-env env LC_ALL=C.UTF-8 \
  RELEASE_TMP=/tmp RELEASE_DISTRIBUTION=none NETLINK_PORT_EXECUTABLE=/opt/netlink/netlink_port "LOOK=$name-blue" \
  /app/bin/sample eval 'Code.eval_file("/app/look.exs")' 2>&1 |
  expect "podman, a user by setpriv(1) from root: the VM has none" "$none" "$helper" "$opened"

look --read-only --cap-drop all --user app |
  expect "read-only, all capabilities dropped" "$none" "$bare" 'host: opened, .*'
look --read-only --cap-drop all "${add[@]}" "${netns[@]}" "${blue[@]}" |
  expect "read-only, all dropped but the two" "$some" "$helper" "$opened"

## Mounts: a namespace that is made once the container runs

for propagation in private rslave rshared; do
  id=$(podman_ run --detach --network none "${add[@]}" --volume "/run/netns:/run/netns:$propagation" --env "LOOK=$name-late" "$image" \
    sh -c 'until [ -e /run/netns/'"$name"'-late ]; do sleep 0.1; done; sleep 1; exec /app/bin/sample eval '"'"'Code.eval_file("/app/look.exs")'"'")
  ip netns add "$name-late"
  podman_ wait "$id" >/dev/null
  case $propagation in
    private) seen="$name-late: setns einval: .*" ;;
    *) seen="$name-late: opened, verified: true, links: lo" ;;
  esac
  podman_ logs "$id" 2>&1 | expect "/run/netns mounted $propagation, a namespace that is made later" "$seen"
  ip netns del "$name-late"
  podman_ rm -f "$id" >/dev/null
done

## Process ids

target=$(podman_ run --detach --network none "$image" sleep 600)
pid=$(podman_ inspect --format '{{.State.Pid}}' "$target")
# Root of a default container has capabilities that the helper has given up.
look "${add[@]}" --pid "container:$target" --env LOOK=pid:1 |
  expect "pid namespace of another container: its process 1 takes SYS_PTRACE" "$helper" 'pid:1: open eacces: .*CAP_SYS_PTRACE.*'
add+=(--cap-add SYS_PTRACE)
look "${add[@]}" --pid "container:$target" --env LOOK=pid:1 |
  expect "pid namespace of another container, with SYS_PTRACE" "$helper" 'pid:1: opened, verified: true, links: lo'
look "${add[@]}" --pid host --env "LOOK=pid:$pid" |
  expect "pid namespace of the host, with SYS_PTRACE" "$helper" "pid:$pid: opened, verified: true, links: lo"
look "${add[@]}" --env "LOOK=pid:$pid" |
  expect "a pid namespace of its own: that number is nobody there" "$helper" "pid:$pid: open esrch: .*"
podman_ rm -f -t 0 "$target" >/dev/null

## The release as process 1

start() { podman_ run --detach --network none "${add[@]}" "${netns[@]}" --env "SAMPLE_NETNS=$name-blue" "$@" "$image"; }
logs() { podman_ logs "$1" 2>&1; }
restarted() { [ "$(logs "$1" | grep -c 'watching the links')" -ge 2 ]; }
says() { logs "$1" | grep -q "$2"; }
add_link() { ip -n "$name-blue" link add "$1" type bridge; }

id=$(start)
within 60 says "$id" 'watching the links'
add_link br1
within 20 says "$id" 'new link br1'
{ echo "process 1: $(podman_ exec "$id" cat /proc/1/comm)"; logs "$id"; } | expect "as process 1: events come" 'process 1: beam.smp' 'watching the links of .*, verified: true' 'new link br1'

podman_ exec "$id" sh -c 'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" != netlink_port ] || kill -9 ${p#/proc/}; done' 2>/dev/null
within 20 restarted "$id"
add_link br2
within 20 says "$id" 'new link br2'
zombies=$(podman_ exec "$id" sh -c 'cat /proc/[0-9]*/status' 2>/dev/null | grep -c '^State:.Z')
{ echo "zombies: $zombies, starts: $(logs "$id" | grep -c 'watching the links')"; logs "$id"; } |
  expect "as process 1: a killed helper is replaced, and reaped" 'zombies: 0, starts: 2' 'new link br2'

podman_ pause "$id" >/dev/null
add_link br3
podman_ unpause "$id" >/dev/null
within 20 says "$id" 'new link br3'
logs "$id" | expect "pause and unpause: what came meanwhile is told then" 'new link br3'

pid=$(podman_ inspect --format '{{.State.Pid}}' "$id")
children=$(pgrep -P "$pid,$(pgrep -P "$pid" | paste -sd,)" -d ' ')
before=$(date +%s)
podman_ kill --signal TERM "$id" >/dev/null
code=$(podman_ wait "$id")
left=0
for child in $children; do [ ! -e "/proc/$child" ] || left=$((left + 1)); done
{ echo "code: $code, left: $left"; [ $(($(date +%s) - before)) -lt 10 ] && echo "in time"; } |
  expect "SIGTERM: an orderly end, nothing is left" 'code: 0, left: 0' 'in time'
podman_ rm -f "$id" >/dev/null

## Limits

id=$(start --memory 128m --pids-limit 64)
within 60 says "$id" 'watching the links'
add_link br4
within 20 says "$id" 'new link br4'
logs "$id" | expect "memory: 128m, pids-limit: 64" 'watching the links of .*' 'new link br4'
podman_ rm -f -t 0 "$id" >/dev/null

## Images: what keeps file capabilities

mkdir -p "$dir/stages"
printf 'FROM %s AS first\nFROM localhost/netlink_port/base\nCOPY --from=first /opt/netlink/netlink_port /copied\nRUN cp /copied /cp; cp -a /copied /cp-a; tar -C / -c copied | tar -x -C /tmp; true\n' "$image" >"$dir/stages/Containerfile"
podman_ build --network none --quiet --tag localhost/netlink_port/stages "$dir/stages" >"$dir/stages.log" 2>&1 || tail "$dir/stages.log"
podman_ run --rm --network none localhost/netlink_port/stages sh -c \
  'for f in /copied /cp /cp-a /tmp/copied; do echo "$f: $(getcap $f | sed "s/.* //")"; done' 2>&1 |
  expect "file capabilities: kept by COPY --from and cp -a, lost by cp and tar" '/copied: cap_net_admin,cap_sys_admin=ep' \
    '/cp: ' '/cp-a: cap_net_admin,cap_sys_admin=ep' '/tmp/copied: '
podman_ save --quiet --output "$dir/sample.tar" "$image" 2>/dev/null || { rm -f "$dir/sample.tar"; podman_ save --quiet --output "$dir/sample.tar" "$image"; }

## Rootless, by a user who is made for it in a mount namespace

rootless() { # ARGUMENTS of podman run: `look` of an ordinary user.
  unshare --mount "$here/rootless.sh" "$dir" "$here/runtime.sh" "$@" 2>&1
}
rootless --env LOOK=host |
  expect "rootless, default profile: the own namespace" "$some" "$bare" 'host: opened, .*'
rootless "${add[@]}" "${netns[@]}" --env "LOOK=host $name-blue" |
  expect "rootless, both added: what was made inside, and not the host's" "$some" "$helper" 'host: opened, verified: true, .*' "$name-blue: setns eperm: .*"

echo "$(($(date +%s) - began)) s" >"$dir/seconds"
echo "containers: $(wc -l <"$dir/passed") passed, $(wc -l <"$dir/failed") failed; $(cat "$dir/seconds")"
[ ! -s "$dir/failed" ]
