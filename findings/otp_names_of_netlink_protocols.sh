#!/bin/sh
# OTP's `socket` gives a netlink socket the name of an IP protocol, if /etc/protocols has one of that number:
# socket:info/1 and getopt(Socket, socket, protocol) say tcp for NETLINK_XFRM (6), igp for NETLINK_AUDIT (9), pup for
# NETLINK_NETFILTER (12). Numbers without a name stay numbers, such as NETLINK_GENERIC (16). An image without the
# package netbase has fewer names: it gives 12 where a machine with it gives pup. So code that compares the protocol
# with a number, or with a name, works on one of them. socket:open/3 takes the names too: socket:open(16, raw, tcp) is a socket
# of NETLINK_XFRM.
# Seen with Erlang/OTP 25.2.3 (erts 13.1.5) and netbase 6.4 of Debian 12. Needs root (for a mount namespace), and erl.
set -eu
[ -s /etc/protocols ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends netbase >/dev/null; }
look() {
  "$@" timeout 20 erl -noshell -eval '
    Look = fun(Protocol) ->
        {ok, Socket} = socket:open(16, raw, Protocol),
        {ok, Name} = socket:getopt(Socket, socket, protocol),
        #{protocol := Name} = socket:info(Socket),
        socket:close(Socket),
        Name
    end,
    io:format("~w", [[{Protocol, Look(Protocol)} || Protocol <- [0, 4, 6, 9, 12, 15, 16, tcp]]]),
    halt(0).'
}
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
erl -noshell -eval 'io:format("erts ~s~n", [erlang:system_info(version)]), halt(0).'
dpkg-query -W netbase
expect "with netbase" "$(look env)" \
  "${EXPECTED:-[{0,ip\},{4,ipencap\},{6,tcp\},{9,igp\},{12,pup\},{15,15\},{16,16\},{tcp,tcp\}]}"
expect "without" "$(look unshare --mount sh -c 'mount --bind /dev/null /etc/protocols && exec "$@"' sh)" \
  "[{0,ip},{4,4},{6,tcp},{9,9},{12,12},{15,15},{16,16},{tcp,tcp}]"
