#!/bin/sh
# A program that open_port/2 of Erlang cannot start is a port like any other, and has an exit status: the errno of the
# call that failed. open_port/2 looks for the file and its permission (enoent, eacces) and returns; erl_child_setup
# finds out the rest after that. So these are no exceptions, and read as exit statuses that the program might have:
#   2   a script whose interpreter does not exist; a folder {cd, Folder} that does not exist, with "spawn: Could not cd
#       to" on the standard error of the VM
#   7   arguments that are longer than execve(2) takes
#   8   a file of a format that the kernel does not know, such as a script without #!
#   13  a directory
# sh(1) has 126 and 127 for these, and runs a script without #! itself, so {spawn, Command} has other results.
# So a status of 2, 7, 8 or 13 of a port program, or of System.cmd/3 of Elixir, does not say that it has run.
# Seen with Erlang/OTP 25.2.3 of Debian 12 (erts 13.1.5) on Linux 6.18. Needs erl.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

printf '#!/no/such/interpreter\n' >script
printf 'echo the shell runs it\n' >plain
mkdir directory
chmod 755 script plain
cat >start.erl <<'ERL'
-module(start).
-export([main/0]).

main() ->
    io:format("OTP ~s, erts ~s~n", [erlang:system_info(otp_release), erlang:system_info(version)]),
    {ok, Folder} = file:get_cwd(),
    show("no file", {spawn_executable, Folder ++ "/none"}, []),
    show("no interpreter", {spawn_executable, Folder ++ "/script"}, []),
    show("no folder", {spawn_executable, "/bin/true"}, [{cd, "/no/such/folder"}]),
    show("long arguments", {spawn_executable, "/bin/true"}, [{args, [lists:duplicate(1 bsl 18, $a)]}]),
    show("no format", {spawn_executable, Folder ++ "/plain"}, []),
    show("no format, spawn", {spawn, Folder ++ "/plain"}, []),
    show("directory", {spawn_executable, Folder ++ "/directory"}, []),
    halt().

show(Name, Command, Options) ->
    Result = try open_port(Command, [exit_status | Options]) of
                 Port -> receive {Port, First} -> First end
             catch error:Reason -> {error, Reason}
             end,
    io:format("~s: ~0p~n", [Name, Result]).
ERL
erlc start.erl
erl -noshell -s start main </dev/null 2>errors | tee all
seen=$(tail -n +2 all; tr -d '\r' <errors)
expected="no file: {error,enoent}
no interpreter: {exit_status,${EXPECTED:-2}}
no folder: {exit_status,2}
long arguments: {exit_status,7}
no format: {exit_status,8}
no format, spawn: {data,\"the shell runs it\n\"}
directory: {exit_status,13}
spawn: Could not cd to /no/such/folder"
[ "$seen" = "$expected" ] || { echo "changed: $seen" >&2; echo "expected: $expected" >&2; exit 1; }
