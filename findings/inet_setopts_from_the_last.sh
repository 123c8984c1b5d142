#!/bin/sh
# Seen on OTP 25.2: `inet:setopts/2` applies a list of options from the last to the first. So if an option is given
# twice, the first counts, and `[{active, 1}, {active, -1}]` sends `udp_passive` before the count. A list whose counts
# add up to more than 32767 is `{error, einval}`, but the options before the error have been applied:
# `inet:getopts/2` then shows `{active, N}`.
#
# Needs erl alone, and sockets of the loopback.
set -eu

erl -noshell -eval '
  Expect = fun(What, Seen, Seen) -> io:format("as seen: ~s: ~0p~n", [What, Seen]);
              (What, Seen, Expected) -> io:format("changed: ~s: expected ~0p, got ~0p~n", [What, Expected, Seen]), halt(1)
           end,
  {ok, S} = gen_udp:open(0, [{ip, {127,0,0,1}}, {active, false}]),
  Active = fun() -> {ok, [{active, A}]} = inet:getopts(S, [active]), A end,
  First = list_to_atom(case os:getenv("EXPECTED") of false -> "true"; E -> E end),
  ok = inet:setopts(S, [{active, true}, {active, false}]),
  Expect("true, then false", Active(), First),
  ok = inet:setopts(S, [{active, false}, {active, true}]),
  Expect("false, then true", Active(), false),
  ok = inet:setopts(S, [{active, 1}, {active, -1}]),
  receive {udp_passive, S} -> ok after 1000 -> halt(1) end,
  Expect("1, then -1", Active(), 1),
  ok = inet:setopts(S, [{active, false}]),
  Expect("32767, then 1", inet:setopts(S, [{active, 32767}, {active, 1}]), {error, einval}),
  Expect("and what is left", Active(), 1),
  io:format("OTP ~s~n", [erlang:system_info(otp_release)]),
  halt(0).'
