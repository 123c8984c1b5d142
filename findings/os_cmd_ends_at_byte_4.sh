#!/bin/sh
# os:cmd/1 of Erlang ends at the first byte 4 (^D) of a command's output. The shell that runs the command writes ^D
# behind it as the mark of its end, since a program in the background may keep the output open; a ^D of the command is
# taken for it. So the rest of the output is lost without an error, and os:cmd/1 returns while the command runs on.
# Text has no such byte, but what a netlink program shows has: a message of 4 attributes, an External Term of a tuple of
# four elements, a port number. os:cmd(Command, #{max_size => N}) does the same. A port (exit_status) does not.
# Seen with Erlang/OTP 25.2.3 of Debian 12 (erts 13.1.5). Needs erl.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.escript" <<'ERLANG'
#!/usr/bin/env escript
main([]) ->
    io:format(standard_error, "erts ~s~n", [erlang:system_info(version)]),
    ok = file:write_file("term", term_to_binary({1, 2, 3, 4})),
    {ok, Term} = file:read_file("term"),
    io:format("the file: ~w~n", [Term]),
    io:format("cat: ~w~n", [os:cmd("cat term")]),
    io:format("with max_size: ~w~n", [os:cmd("cat term", #{max_size => 100})]),
    Port = open_port({spawn, "cat term"}, [binary, exit_status]),
    receive {Port, {data, Data}} -> io:format("by a port: ~w~n", [Data]) end,
    "" = os:cmd("mkfifo go done"),
    %% Until go is written, the command cannot end.
    io:format("before its end: ~p~n", [os:cmd("printf 'a\\004'; read go <go; echo ended >done")]),
    "" = os:cmd("echo >go"),
    io:format("later: ~p~n", [os:cmd("cat done")]).
ERLANG
cat >"$folder/expected" <<EXPECTED
the file: <<131,104,4,97,1,97,2,97,3,97,4>>
cat: [${EXPECTED:-131,104}]
with max_size: [131,104]
by a port: <<131,104,4,97,1,97,2,97,3,97,4>>
before its end: "a"
later: "ended\n"
EXPECTED
cd "$folder"
timeout 50 escript look.escript >seen
cat seen
diff expected seen
