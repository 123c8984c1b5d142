#!/bin/sh
# What open_port/2 of Erlang makes of a command, a folder and a variable, without an error that says so:
# - {spawn, Command} is `sh -c "exec Command"`. So "echo a; echo b" runs echo alone, and "A=1 env" and "cd /tmp && ls"
#   are exit status 127: exec(1p) takes the first word as the program. A pipe works, since its parts are subshells.
# - a relative path in {spawn_executable, Path} with {cd, Folder} has to exist twice: open_port/2 looks for it in the
#   working directory of the VM (enoent), and execve(2) in Folder (exit status 2). The program in Folder is started.
# - {env, [{"NAME", ""}]} removes the variable, which only false is said to do. os:putenv("NAME", "") sets it to the
#   empty string.
# Seen with Erlang/OTP 25.2.3 of Debian 12 (erts 13.1.5), /bin/sh is dash 0.5.12. Needs erl.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.escript" <<'ERLANG'
#!/usr/bin/env escript
run(Name, Options) ->
    try open_port(Name, [exit_status, stderr_to_stdout, binary | Options]) of
        Port -> wait(Port, <<>>)
    catch
        error:Reason -> Reason
    end.

wait(Port, Output) ->
    receive
        {Port, {data, Data}} -> wait(Port, <<Output/binary, Data/binary>>);
        {Port, {exit_status, Status}} -> {Status, Output}
    after 10000 -> timeout
    end.

program(Path, Text) ->
    ok = file:write_file(Path, ["#!/bin/sh\necho ", Text, "\n"]),
    ok = file:change_mode(Path, 8#755).

main([]) ->
    io:format(standard_error, "erts ~s~n", [erlang:system_info(version)]),
    Commands = ["echo a; echo b", "A=1 env", "cd /tmp && ls", "echo a | cat; echo b"],
    [io:format("~s: ~p~n", [Command, run({spawn, Command}, [])]) || Command <- Commands],
    [ok = file:make_dir(Name) || Name <- ["vm", "there"]],
    Start = fun() -> run({spawn_executable, "./program"}, [{cd, "../there"}]) end,
    ok = file:set_cwd("vm"),
    program("../there/program", "there"),
    io:format("program in Folder: ~p~n", [Start()]),
    program("program", "vm"),
    io:format("in both: ~p~n", [Start()]),
    ok = file:delete("../there/program"),
    io:format("in the VM's working directory: ~p~n", [Start()]),
    os:putenv("FIRST", ""),
    Show = "echo ${FIRST-unset}, ${SECOND-unset}",
    io:format("variables: ~p~n", [run({spawn_executable, "/bin/sh"}, [{args, ["-c", Show]}, {env, [{"SECOND", ""}]}])]).
ERLANG
cat >"$folder/expected" <<EXPECTED
echo a; echo b: {0,<<"${EXPECTED:-a}\\n">>}
A=1 env: {127,<<"sh: 1: exec: A=1: not found\\n">>}
cd /tmp && ls: {127,<<"sh: 1: exec: cd: not found\\n">>}
echo a | cat; echo b: {0,<<"a\\nb\\n">>}
program in Folder: enoent
in both: {0,<<"there\\n">>}
in the VM's working directory: {2,<<>>}
variables: {0,<<", unset\\n">>}
EXPECTED
cd "$folder"
timeout 50 escript look.escript >seen
cat seen
diff expected seen
