#!/bin/sh
# Erlang's port programs are no children of the VM: erl_child_setup, which the VM starts once, forks them. So what is
# set for a running VM, by its process id, does not reach the programs that it starts afterwards:
#   renice, chrt, taskset -a     nice value, policy, processors
#   prlimit(1)                   limits of resources
#   choom(1), oom_score_adj      the VM is killed last, its programs are killed as before
# They have what the VM had when it started. The same for the process id of erl_child_setup reaches them.
# What erl_child_setup is told for each program - arguments, folder, environment - is up to date: os:putenv/2 works.
# Seen with Erlang/OTP 25.2.3 of Debian 12 (erts 13.1.5) on Linux 6.18. Needs root, erl, util-linux and two processors.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uname -sr
erl -noshell -eval 'io:format("OTP ~s, erts ~s~n", [erlang:system_info(otp_release), erlang:system_info(version)]), halt().'

# /proc of the VM, and of a program that it starts when a line comes.
cat >heirs.erl <<'ERL'
-module(heirs).
-export([main/0]).

main() ->
    true = os:putenv("SET", "later"),
    file:write_file("ready", os:getpid()),
    "go\n" = io:get_line(""),
    io:format("~s", [os:cmd("sh show vm " ++ os:getpid() ++ "; sh show program $$; echo \"program, os:putenv: $SET\"")]),
    "go\n" = io:get_line(""),
    io:format("~s", [os:cmd("sh show later $$")]),
    halt().
ERL
erlc heirs.erl

cat >show <<'SHOW'
set -- "$1" "/proc/$2"
# Fields 19 and 41 of proc(5), counted from the state.
nice=$(sed 's/.*) //' "$2/stat" | cut -d ' ' -f 17)
policy=$(sed 's/.*) //' "$2/stat" | cut -d ' ' -f 39)
files=$(awk '/^Max open files/ {print $4}' "$2/limits")
cpus=$(awk '/^Cpus_allowed_list/ {print $2}' "$2/status")
echo "$1: nice $nice, files $files, processors $cpus, oom_score_adj $(cat "$2/oom_score_adj"), policy $policy"
SHOW

set_all() {
  renice -n 7 -p "$1" >/dev/null
  prlimit --pid "$1" --nofile=500:600
  taskset -a -p -c 1 "$1" >/dev/null
  choom -p "$1" -n 77 >/dev/null
  chrt --batch --all-tasks -p 0 "$1"
}

mkfifo go
renice -n 3 -p $$ >/dev/null
prlimit --nofile=1000:2000 taskset -c 0-1 choom -n 10 -- erl -noshell -s heirs main <go >seen &
exec 3>go
until [ -s ready ]; do sleep 0.1; done
vm=$(cat ready)
set_all "$vm"
echo go >&3
until grep -q putenv seen; do sleep 0.1; done
for forker in $(cat "/proc/$vm/task/$vm/children" "/proc/$vm/task/"*/children | tr ' ' '\n' | sort -u); do
  [ "$(cat "/proc/$forker/comm")" = erl_child_setup ] && set_all "$forker"
done
echo go >&3
exec 3>&-
wait
cat seen
expected="vm: nice 7, files 500, processors 1, oom_score_adj 77, policy 3
program: nice ${EXPECTED:-3}, files 1000, processors 0-1, oom_score_adj 10, policy 0
program, os:putenv: later
later: nice 7, files 500, processors 1, oom_score_adj 77, policy 3"
[ "$(cat seen)" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
