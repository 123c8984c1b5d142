#!/bin/sh
# port_programs_have_sessions.sh: the nice value of a VM says nothing about the programs behind its ports.
#
# OTP starts each program of open_port/2 in a session of its own: its forker, erl_child_setup, calls setsid(2) in the
# child. Where the kernel groups processes by session (CONFIG_SCHED_AUTOGROUP, /proc/sys/kernel/sched_autogroup_enabled,
# sched(7)), processor time is shared between the groups first, and a nice value counts only within its group. The
# program inherits the nice value of the VM, and its group does not: that is 0. So `nice -n -20 erl` raises neither
# against other sessions, and a VM whose own group was raised by /proc/self/autogroup leaves its port programs behind.
# What holds is one write for each: echo -20 >/proc/PID/autogroup.
#
# Seen with Erlang/OTP 25 (erts 13.1.5) on Linux 6.18, as root.
set -eu

command -v erl >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends erlang-base >/dev/null; }
[ "$(cat /proc/sys/kernel/sched_autogroup_enabled 2>/dev/null)" = 1 ] || { echo "skipped: no autogroups here"; exit 0; }
[ "$(id -u)" = 0 ] || { echo "skipped: raising a priority takes root"; exit 0; }
uname -r
dpkg-query -W erlang-base 2>/dev/null || true

seen=$(setsid --wait sh -c 'echo -20 >/proc/self/autogroup; exec nice -n -20 erl -noshell -eval "
  Read = fun(Pid, Name) -> {ok, Text} = file:read_file(\"/proc/\" ++ Pid ++ \"/\" ++ Name), binary_to_list(Text) end,
  %% Fields 6 and 19 of proc(5), counted from the state.
  Field = fun(Pid, N) -> [_, Rest] = string:split(Read(Pid, \"stat\"), \") \", trailing), lists:nth(N - 2, string:lexemes(Rest, \" \")) end,
  Group = fun(Pid) -> lists:last(string:lexemes(Read(Pid, \"autogroup\"), \" \n\")) end,
  Port = open_port({spawn_executable, \"/bin/sleep\"}, [{args, [\"10\"]}]),
  {os_pid, Number} = erlang:port_info(Port, os_pid),
  Program = integer_to_list(Number),
  %% The program has not been started before its name is there.
  Wait = fun W() -> case Read(Program, \"comm\") of \"sleep\n\" -> ok; _ -> W() end end,
  Wait(),
  Vm = os:getpid(),
  io:format(\"own session: ~w~n\", [Field(Program, 6) =:= Program andalso Field(Vm, 6) =/= Program]),
  io:format(\"nice of the VM ~s, of the program ~s~n\", [Field(Vm, 19), Field(Program, 19)]),
  io:format(\"nice of the group of the VM ~s, of the program ~s~n\", [Group(Vm), Group(Program)]),
  halt()."')
echo "$seen"
expected='own session: true
nice of the VM -20, of the program -20
nice of the group of the VM -20, of the program 0'
[ "$seen" = "$expected" ] || { echo "expected:" >&2; echo "$expected" >&2; exit 1; }
