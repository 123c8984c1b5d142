#!/bin/sh
# open_port_without_a_working_directory.sh: once the working directory of an Erlang VM has been deleted, open_port/2
# starts no program: it raises enoent, also for an absolute path, and also with the option {cd, Dir}. A library that
# restarts its port program then fails with an error that seems to be about the program's file. Ports that are open
# go on, and a new working directory (file:set_cwd/1) mends it.
#
# Seen with OTP 25.2.3 of Debian 12, on Linux 6.18.
set -eu

if ! command -v erl >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends erlang-base >/dev/null
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
uname -r
mkdir "$work/folder"

cat >"$work/expected" <<'EXPECTED'
before: started
deleted: enoent
deleted, with cd: enoent
open port: <<"still there">>
with another folder: started
EXPECTED

cat >"$work/look.escript" <<'ERLANG'
#!/usr/bin/env escript
main([Folder]) ->
    io:format(standard_error, "OTP ~s, erts ~s~n",
              [erlang:system_info(otp_release), erlang:system_info(version)]),
    Start = fun(Options) ->
        try open_port({spawn_executable, "/bin/true"}, Options) of
            Port when is_port(Port) -> started
        catch
            error:Reason -> Reason
        end
    end,
    ok = file:set_cwd(Folder),
    Cat = open_port({spawn_executable, "/bin/cat"}, [binary]),
    io:format("before: ~p~n", [Start([])]),
    ok = file:del_dir(Folder),
    io:format("deleted: ~p~n", [Start([])]),
    io:format("deleted, with cd: ~p~n", [Start([{cd, "/"}])]),
    port_command(Cat, <<"still there">>),
    receive {Cat, {data, Data}} -> io:format("open port: ~p~n", [Data]) after 10000 -> halt(1) end,
    ok = file:set_cwd("/"),
    io:format("with another folder: ~p~n", [Start([])]).
ERLANG

escript "$work/look.escript" "$work/folder" >"$work/seen"
cat "$work/seen"
diff "$work/expected" "$work/seen"
