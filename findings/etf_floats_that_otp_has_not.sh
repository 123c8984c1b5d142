#!/bin/sh
# Infinity and NaN are floats of Python and of IEEE 754, and not of Erlang. erl_ext_dist describes NEW_FLOAT_EXT as
# eight bytes of IEEE format, and excludes none. Five packages for Python write them as they are, without an error, and
# read them back, so a test of a round trip passes. binary_to_term/1 is badarg for the whole message, without a word on
# which part it is about. So one quotient or average in a report of a port program ends its server, or loses the report.
#   erlang-py, elixir-py, erlastic, bert, erlpack     written
#   erpy                                              PyCodecError: not finite
# Seen with OTP 25, erlang-py 2.0.7, elixir-py 1.0.0, erlastic 2.0.0, bert 2.2.0, erlpack 1.0.1 and erpy 0.1.1. Needs
# erl, python3 and the network.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --no-deps \
  erlang-py==2.0.7 elixir-py==1.0.0 erlastic==2.0.0 bert==2.2.0 erlpack==1.0.1 six==1.17.0 erpy==0.1.1

venv/bin/python - <<'PYTHON'
import base64
import math

import bert
import elixir
import erlang
import erlastic
import erlpack
from term import codec

PACKAGES = {
    "erlang-py": (erlang.term_to_binary, erlang.binary_to_term),
    "elixir-py": (elixir.term_to_binary, elixir.binary_to_term),
    "erlastic": (erlastic.encode, erlastic.decode),
    "bert": (bert.encode, bert.decode),
    "erlpack": (erlpack.pack, erlpack.unpack),
    "erpy": (codec.term_to_binary, lambda data: codec.binary_to_term(data)[0]),
}
with open("messages", "w") as messages:
    for name, (encode, decode) in PACKAGES.items():
        for value in (1.5, math.inf, -math.inf, math.nan):
            try:
                data = bytes(encode([value]))
            except Exception as error:
                messages.write(f"{name} {value} {type(error).__name__}\n")
                continue
            back = decode(data)[0]
            same = back == value or (math.isnan(back) and math.isnan(value))
            messages.write(f"{name} {value} {'read_back' if same else 'changed'} {base64.b64encode(data).decode()}\n")
PYTHON

cat >read.erl <<'ERL'
-module(read).
-export([main/0]).

main() ->
    {ok, Lines} = file:read_file("messages"),
    [io:format("~s: ~s~n", [string:join([binary_to_list(W) || W <- lists:sublist(Words, 3)], " "), otp(lists:nthtail(3, Words))])
     || Line <- string:lexemes(Lines, "\n"), Words <- [string:lexemes(Line, " ")]],
    halt().

otp([]) -> "-";
otp([Message]) ->
    try io_lib:format("~0p", [binary_to_term(base64:decode(Message))]) catch error:Reason -> atom_to_list(Reason) end.
ERL
erlc read.erl
seen=$(erl -noshell -s read main </dev/null)
echo "$seen"
expected=$(
  for package in erlang-py elixir-py erlastic bert erlpack; do
    echo "$package 1.5 read_back: [1.5]"
    for value in inf -inf nan; do echo "$package $value read_back: ${EXPECTED:-badarg}"; done
  done
  echo 'erpy 1.5 read_back: [1.5]'
  for value in inf -inf nan; do echo "erpy $value PyCodecError: -"; done
)
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
