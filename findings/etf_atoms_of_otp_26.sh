#!/bin/sh
# term_to_binary/1 encodes atoms in another way from OTP 26 on: SMALL_ATOM_UTF8_EXT in place of ATOM_EXT with Latin-1
# (the option {minor_version, 2}, which is the default now, in place of 1). The atom is the same for OTP. For decoders
# in Python and JavaScript it is another value, so a program breaks when the VM at the other end is updated:
# - erlang-py and elixir-py: the atom ok is OtpErlangAtom(b'ok') up to OTP 25, and OtpErlangAtom('ok') from OTP 26 on.
#   They are not equal, and are two keys of a dict. Which one a program has to compare with depends on the peer;
# - elixir-py knows true and false in the old form alone. In the new one they are atoms, and false is true for `if`;
# - earl-etf refuses the new form;
# - npm's etf.js reads both as UTF-8, erlang_js both as Latin-1, so each gets "é" right in one form, and wrong in the
#   other without an error.
# Seen with OTP 25 (which makes both forms), erlang-py 2.0.7, elixir-py 1.0.0, earl-etf 2.1.2, erlang_js 2.0.7 and etf.js
# 1.0.1. Needs erl, python3, node, npm and the network.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
pip="python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps"
$pip --target "$folder/python" erlang-py==2.0.7 elixir-py==1.0.0 earl-etf==2.1.2
export PYTHONPATH="$folder/python"
npm install --silent --no-audit --no-fund --ignore-scripts erlang_js@2.0.7 etf.js@1.0.1 >/dev/null
erl -noshell -eval '
  [io:format("~s~n", [base64:encode(term_to_binary(list_to_atom(Name), [{minor_version, Version}]))])
   || Name <- ["ok", "false", [233]], Version <- [1, 2]],
  halt().' >terms
cat >atoms.py <<'PYTHON'
import base64
import earl, elixir, erlang

terms = [base64.b64decode(line) for line in open("terms")]
print("tags:", ", ".join(str(term[1]) for term in terms))


def decoded(decode, term):
    try:
        return repr(decode(term))
    except Exception as error:
        return type(error).__name__


old, new = terms[:2]
for package, atom in (erlang, erlang.OtpErlangAtom), (elixir, elixir.Atom):
    decode = package.binary_to_term
    print(f"{package.__name__}, ok: {decode(old)!r}, {decode(new)!r}, equal: {decode(old) == decode(new)}")
    print(f"  == {atom('ok')!r}: {decode(old) == atom('ok')}, {decode(new) == atom('ok')}")
    print(f"  false: {decode(terms[2])!r}, {decode(terms[3])!r}, as a condition: {bool(decode(terms[2]))}, {bool(decode(terms[3]))}")
print(f"earl, ok: {decoded(earl.unpack, old)}, {decoded(earl.unpack, new)}")
PYTHON
cat >atoms.js <<'JS'
const fs = require('fs')
const { Erlang } = require('erlang_js')
const etf = require('etf.js')
const terms = fs.readFileSync('terms', 'utf8').trim().split('\n').slice(-2).map((line) => Buffer.from(line, 'base64'))
const escaped = (text) => JSON.stringify(text).replace(/[^ -~]/g, (char) => '\\u' + char.charCodeAt(0).toString(16).padStart(4, '0'))
const js = []
for (const term of terms) Erlang.binary_to_term(term, (error, atom) => js.push(error ? error.name : escaped(atom.value)))
setImmediate(() => {
  console.log(`erlang_js, é: ${js.join(', ')}`)
  console.log(`etf.js, é: ${terms.map((term) => escaped(etf.unpack(term))).join(', ')}`)
})
JS
node --version
python3 --version
seen=$(python3 atoms.py; node atoms.js)
echo "$seen"
expected="tags: 100, 119, 100, 119, 100, 119
erlang, ok: OtpErlangAtom(b'ok'), OtpErlangAtom('ok'), equal: ${EXPECTED:-False}
  == OtpErlangAtom('ok'): False, True
  false: False, False, as a condition: False, False
elixir, ok: Atom(b'ok'), Atom('ok'), equal: False
  == Atom('ok'): False, True
  false: False, Atom('false'), as a condition: False, True
earl, ok: 'ok', DecodeError
erlang_js, é: \"\\u00e9\", \"\\u00c3\\u00a9\"
etf.js, é: \"\\ufffd\", \"\\u00e9\""
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
