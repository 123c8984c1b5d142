#!/bin/sh
# Erlang starts the programs of open_port/2 and os:cmd/1 with two signals ignored: SIGPIPE and SIGFPE. They are the
# dispositions of the VM, which ignored signals keep through fork(2) and execve(2), and erl_child_setup resets neither.
# - raise(SIGFPE) does nothing: a program that reports an arithmetic error by it goes on. A division by zero ends it.
# - bash leaves a signal that was ignored when it started ignored (POSIX, trap): a `trap` for SIGPIPE or SIGFPE is
#   accepted without an error, and never runs.
# - `yes | head -n 1`, silent in a terminal, says "Broken pipe" on standard error.
# Seen with Erlang/OTP 25 (erts 13.1.5), bash 5.2 and glibc 2.36. Needs erl, gcc and bash.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export LC_ALL=C
cat >raise.c <<'C'
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **arguments) {
  volatile int zero = 0;
  if (strcmp(arguments[1], "divide") == 0) return count / zero;
  raise(SIGFPE);
  puts("went on");
  return 0;
}
C
gcc -o raise raise.c
cat >traps.bash <<'BASH'
trap 'echo trapped' FPE PIPE
kill -FPE $$
kill -PIPE $$
echo end
BASH
seen=$(erl -noshell -eval '
  Run = fun(Command) -> string:trim(os:cmd(Command)) end,
  Ignored = list_to_integer(lists:last(string:lexemes(Run("grep SigIgn /proc/self/status"), "\t")), 16),
  io:format("ignored: ~w~n", [[Signal || Signal <- [8, 13], Ignored band (1 bsl (Signal - 1)) =/= 0]]),
  io:format("raise: ~s~n", [Run("./raise signal; echo $?")]),
  io:format("divide: ~s~n", [lists:last(string:lexemes(Run("./raise divide; echo $?"), "\n"))]),
  io:format("traps: ~s~n", [Run("bash traps.bash")]),
  io:format("yes: ~s~n", [Run("yes 2>said | head -n 1 >shown; cat said")]),
  io:format(standard_error, "OTP ~s~n", [erlang:system_info(otp_release)]),
  halt(0).')
echo "$seen"
expected="ignored: ${EXPECTED:-[8,13]}
raise: went on
0
divide: 136
traps: end
yes: yes: standard output: Broken pipe"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
