#!/bin/sh
# Two npm packages for the External Term Format exchange wrong numbers with OTP, without an error:
# - erlang_js 2.0.7 encodes the low 32 bits of larger integers, since JavaScript's bit operators have 32 bits: 2^32
#   arrives at OTP as 0, 2^32 + 5 as 5, 2^53 - 1 as 4294967295. A float without a fraction is an integer to it, so
#   1.0e15 arrives as 2764472320. It decodes an integer above 2^53 to a near one.
# - etf.js 1.0.1 has the bytes of NEW_FLOAT_EXT in the order of the machine, not in network order: 0.1 of OTP becomes
#   -1.54e-180, and 1.5 goes to OTP as 3.14e-319. It encodes integers from 2^31 on as floats, so 2^40 arrives as
#   1.42e-319. It decodes its own floats rightly, so a test of a round trip does not show it.
# Seen with Node.js 20.20, OTP 25, on x86_64 (little-endian). Needs erl, node, npm and the network.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts erlang_js@2.0.7 etf.js@1.0.1 >/dev/null

erl -noshell -eval '
  [io:format("~s~n", [base64:encode(term_to_binary(N))]) || N <- [9007199254740993, 0.1, 1.5]],
  halt(0).' >from_otp
cat >numbers.js <<'JS'
const fs = require('fs')
const { Erlang } = require('erlang_js')
const etf = require('etf.js')
const [big, tenth, half] = fs.readFileSync('from_otp', 'utf8').trim().split('\n').map((line) => Buffer.from(line, 'base64'))
const encoded = []
const js = (number) => Erlang.term_to_binary(number, (error, bytes) => encoded.push(['erlang_js', number, bytes]))
const own = []
for (const number of [2 ** 32, 2 ** 32 + 5, 2 ** 53 - 1, -(2 ** 40) - 1, 1.0e15, 1.5]) js(number)
for (const number of [1.5, 2 ** 31 - 1, 2 ** 40]) encoded.push(['etf.js', number, etf.pack(number)])
Erlang.binary_to_term(big, (error, number) => own.push(`9007199254740993 to erlang_js: ${number}`))
own.push(`0.1 to etf.js: ${etf.unpack(tenth)}`)
own.push(`1.5 of etf.js to etf.js: ${etf.unpack(Buffer.from(etf.pack(1.5)))}`)
setImmediate(() => {
  for (const line of own.sort()) console.log(line)
  fs.writeFileSync('to_otp', encoded.map(([name, number, bytes]) => `${name} ${number} ${Buffer.from(bytes).toString('base64')}\n`).join(''))
})
JS
seen=$(node numbers.js; erl -noshell -eval '
  {ok, Lines} = file:read_file("to_otp"),
  [begin
     [Package, Number, Bytes] = string:lexemes(Line, " "),
     io:format("~s of ~s to OTP: ~0p~n", [Number, Package, binary_to_term(base64:decode(Bytes))])
   end || Line <- string:lexemes(Lines, "\n")],
  halt(0).')
node --version
echo "$seen"
expected="0.1 to etf.js: -1.5423487136675799e-180
1.5 of etf.js to etf.js: 1.5
9007199254740993 to erlang_js: 9007199254740992
4294967296 of erlang_js to OTP: ${EXPECTED:-0}
4294967301 of erlang_js to OTP: 5
9007199254740991 of erlang_js to OTP: 4294967295
-1099511627777 of erlang_js to OTP: -1
1000000000000000 of erlang_js to OTP: 2764472320
1.5 of erlang_js to OTP: 1.5
1.5 of etf.js to OTP: 3.13984e-319
2147483647 of etf.js to OTP: 2147483647
1099511627776 of etf.js to OTP: 1.41985e-319"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
