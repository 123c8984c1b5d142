#!/bin/sh
# The options `in` and `out` of open_port/2 make one pipe instead of two. The other stream of the program is that of the
# VM itself, and what tells the VM of the program's end is the pipe that `out` has not:
# - [in]: the program reads the standard input of the VM. A line that is meant for the VM, or for its shell, is taken;
# - [out]: the program writes to the standard output of the VM. Its end is not noticed: no {exit_status, S} comes, and
#   the port stays open, with the number of the dead process in port_info/1. The next port_command/2 is true. Then the
#   port ends with the reason epipe, and the exit status is never told.
# So a supervised writer (a logger, a `tee`) that dies is taken for alive until something is written to it, and
# exit_status is an option without effect. A port without `in` and `out` and a program with >/dev/null has the exit
# status.
# Seen with Erlang/OTP 25.2.3 of Debian 12 (erts 13.1.5). Needs erl.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat >ways.erl <<'ERL'
-module(ways).
-export([main/0]).

main() ->
    process_flag(trap_exit, true),
    io:format("OTP ~s, erts ~s~n", [erlang:system_info(otp_release), erlang:system_info(version)]),
    In = open("read -r line; echo \"it read: $line\"", [in]),
    io:format("in: ~0p~n", [messages(In, infinity)]),
    Out = open("echo 'in the output of the VM'; exit 3", [out]),
    {os_pid, Program} = erlang:port_info(Out, os_pid),
    until_gone("/proc/" ++ integer_to_list(Program)),
    io:format("out: ~0p, os_pid ~p~n", [messages(Out, 3000), erlang:port_info(Out, os_pid) =:= {os_pid, Program}]),
    io:format("out, port_command: ~p, ~0p~n", [port_command(Out, "line"), messages(Out, infinity)]),
    Both = open("exec >/dev/null; exit 3", []),
    io:format("both: ~0p~n", [messages(Both, infinity)]),
    halt().

open(Command, Ways) ->
    open_port({spawn_executable, "/bin/sh"}, [{args, ["-c", Command]}, exit_status | Ways]).

until_gone(Folder) ->
    case file:read_link_info(Folder) of
        {error, enoent} -> ok;
        {ok, _} -> timer:sleep(10), until_gone(Folder)
    end.

messages(Port, Milliseconds) ->
    receive
        {Port, Message} -> [Message | messages(Port, Milliseconds)];
        {'EXIT', Port, Reason} -> [{'EXIT', Reason}]
    after Milliseconds -> []
    end.
ERL
erlc ways.erl
echo 'a line for the VM' | erl -noinput -s ways main | tee all
seen=$(tail -n +2 all)
expected="in: [{data,\"it read: a line for the VM\n\"},{exit_status,0},{'EXIT',normal}]
in the output of the VM
out: [${EXPECTED:-}], os_pid true
out, port_command: true, [{'EXIT',epipe}]
both: [{exit_status,3},{'EXIT',normal}]"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
