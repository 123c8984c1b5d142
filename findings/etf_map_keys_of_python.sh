#!/bin/sh
# A map of Erlang loses entries in Python, without an error: the keys 1, 1.0 and true are three keys in Erlang, and one
# key in a dict, since 1 == 1.0 == True. Decoders put one pair after another into a dict, which keeps the key that came
# first and the value that came last. So #{1 => one, 1.0 => float, true => atom} becomes a dict of one pair, whose key
# and value were never a pair, and goes back to OTP as #{1 => atom}. The same holds for 0, 0.0 and false, and for tuples
# of such keys. In elixir-py, whose byte strings are the lists of OTP as well as its binaries, [1] and <<1>> are one key,
# too.
# Seen with OTP 25, erlang-py 2.0.7 and elixir-py 1.0.0. Needs erl, python3 and the network.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --no-deps erlang-py==2.0.7 elixir-py==1.0.0

cat >terms.erl <<'ERL'
-module(terms).
-export([out/0, back/0]).

out() ->
    Terms = [#{1 => one, 1.0 => float, true => atom}, #{0 => zero, 0.0 => float, false => atom},
             #{{1} => one, {1.0} => float}, #{[1] => list, <<1>> => binary}],
    file:write_file("terms", [[base64:encode(term_to_binary(T)), "\n"] || T <- Terms]),
    halt(0).

back() ->
    {ok, Lines} = file:read_file("back"),
    [begin
         [Package, Size, Bytes] = string:lexemes(Line, " "),
         io:format("~s: a dict of ~s, and back: ~0p~n", [Package, Size, binary_to_term(base64:decode(Bytes))])
     end || Line <- string:lexemes(Lines, "\n")],
    halt(0).
ERL
erlc terms.erl
erl -noshell -s terms out
venv/bin/python - <<'PYTHON'
import base64
import elixir
import erlang

with open("back", "w") as back:
    for line in open("terms"):
        for package in (erlang, elixir):
            term = package.binary_to_term(base64.b64decode(line))
            back.write(f"{package.__name__} {len(term)} {base64.b64encode(package.term_to_binary(term)).decode()}\n")
PYTHON
seen=$(erl -noshell -s terms back)
echo "$seen"
expected="erlang: a dict of ${EXPECTED:-1}, and back: #{1 => atom}
elixir: a dict of 1, and back: #{1 => atom}
erlang: a dict of 1, and back: #{0 => atom}
elixir: a dict of 1, and back: #{0 => atom}
erlang: a dict of 1, and back: #{{1} => float}
elixir: a dict of 1, and back: #{{1} => float}
erlang: a dict of 2, and back: #{[1] => list,<<1>> => binary}
elixir: a dict of 1, and back: #{<<1>> => binary}"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
