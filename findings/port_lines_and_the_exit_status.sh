#!/bin/sh
# Two things that the option {line, L} of open_port/2 does on Linux, and its documentation does not tell:
# - with exit_status, the last line of a program that does not end it (printf, a program that is killed) comes after the
#   exit status, as {noeol, Line}. {exit_status, S} is the last message of a port without {line, L}, so a receive loop
#   that returns at it loses this line, and leaves it in the mailbox. With eof and without exit_status it comes first;
# - a carriage return in front of the newline is gone, although lines are "delimited by the OS-dependent newline
#   sequence", which is one byte on Linux. Of several the last one is gone. So lines that are put together again are not
#   what the program wrote.
# Seen with Erlang/OTP 25.2.3 of Debian 12 (erts 13.1.5). Needs erl.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat >lines.erl <<'ERL'
-module(lines).
-export([main/0]).

main() ->
    process_flag(trap_exit, true),
    io:format("OTP ~s, erts ~s~n", [erlang:system_info(otp_release), erlang:system_info(version)]),
    show("exit_status", "printf 'one\\ntwo'; exit 3", [{line, 80}, exit_status]),
    show("exit_status, a second later", "printf 'one\\ntwo'; exec >&-; sleep 1; exit 3", [{line, 80}, exit_status]),
    show("exit_status, no {line, L}", "printf 'one\\ntwo'; exit 3", [exit_status]),
    show("eof", "printf 'one\\ntwo'; exit 3", [{line, 80}, eof]),
    show("carriage returns", "printf 'a\\r\\nb\\r\\r\\n\\rc\\rd\\n'", [{line, 80}, eof]),
    show("in two writes", "printf 'a\\r'; sleep 1; printf '\\n'", [{line, 80}, eof]),
    halt().

show(Name, Command, Options) ->
    Port = open_port({spawn_executable, "/bin/sh"}, [{args, ["-c", Command]}, in | Options]),
    io:format("~s: ~0p~n", [Name, messages(Port, lists:member(eof, Options))]).

messages(Port, Eof) ->
    receive
        {Port, eof} -> [eof];
        {Port, Message} -> [Message | messages(Port, Eof)];
        {'EXIT', Port, Reason} -> [{'EXIT', Reason}]
    end.
ERL
erlc lines.erl
erl -noshell -s lines main </dev/null | tee all
seen=$(tail -n +2 all)
expected="exit_status: [${EXPECTED:-"{data,{eol,\"one\"}},{exit_status,3},{data,{noeol,\"two\"}}"},{'EXIT',normal}]
exit_status, a second later: [{data,{eol,\"one\"}},{exit_status,3},{data,{noeol,\"two\"}},{'EXIT',normal}]
exit_status, no {line, L}: [{data,\"one\\ntwo\"},{exit_status,3},{'EXIT',normal}]
eof: [{data,{eol,\"one\"}},{data,{noeol,\"two\"}},eof]
carriage returns: [{data,{eol,\"a\"}},{data,{eol,\"b\\r\"}},{data,{eol,\"\\rc\\rd\"}},eof]
in two writes: [{data,{eol,\"a\"}},eof]"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
