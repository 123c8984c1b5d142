#!/bin/sh
# The fate of a descriptor that OTP's `socket` adopts, which is how a NIF hands its netlink sockets to the VM.
#
#   socket:open(Fd)                     duplicates the descriptor
#   socket:close/1 of that socket       closes the duplicate; Fd stays open, bound, and in the kernel's list
#   socket:open(Fd, #{dup => false})    does not duplicate it, and then close/1 closes nothing
#   a datagram received by a read of    up to OTP 27 is a part of a binary of 65536, and keeps all of that as long
#   65536 bytes                         as it is kept itself; on OTP 29 it is a binary of its own
#
# So code that adopts a descriptor and closes the socket alone leaks a descriptor each time. No function of OTP
# closes a descriptor that OTP has not opened.
#
# Seen on OTP 25.2.3 (Debian 12), 27.3.4.1 (Debian 13) and 29.1.2 (Debian sid), Linux 6.18. Needs erl and perl.
# On another OTP: ERL=/path/to/erl.
set -eu

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

cat >"$dir/adopt.erl" <<'ERL'
-module(adopt).
-export([main/0]).

version() ->
    Release = erlang:system_info(otp_release),
    File = filename:join([code:root_dir(), "releases", Release, "OTP_VERSION"]),
    case file:read_file(File) of
        {ok, Version} -> string:trim(Version);
        _ -> Release
    end.

open(Fd) -> element(1, file:read_link("/proc/self/fd/" ++ integer_to_list(Fd))) =:= ok.

count() -> {ok, Fds} = file:list_dir("/proc/self/fd"), length(Fds).

%% Sockets that the kernel lists, of this process, by their inodes.
listed(Fds) ->
    {ok, Text} = file:read_file("/proc/net/netlink"),
    Inodes = [lists:last(string:lexemes(L, " ")) || L <- string:lexemes(Text, "\n")],
    length([Fd || Fd <- Fds,
                  {ok, "socket:[" ++ Rest} <- [file:read_link("/proc/self/fd/" ++ integer_to_list(Fd))],
                  lists:member(list_to_binary(string:trim(Rest, trailing, "]")), Inodes)]).

adopt(Fd, How) ->
    {ok, Socket} = case How of
                       default -> socket:open(Fd);
                       _ -> socket:open(Fd, #{dup => false})
                   end,
    {ok, Own} = socket:getopt(Socket, otp, fd),
    ok = socket:close(Socket),
    Own =:= Fd.

main() ->
    io:format("OTP ~s~n", [version()]),
    Fds = [list_to_integer(F) || F <- string:lexemes(os:getenv("FDS"), " ")],
    {Half, Rest} = lists:split(length(Fds) div 2, Fds),
    Before = count(),
    Said =
        [{"socket:open(Fd) uses Fd itself", lists:usort([adopt(Fd, default) || Fd <- Half])},
         {"with dup => false it does", lists:usort([adopt(Fd, same) || Fd <- Rest])},
         {"descriptors still open after close/1", length([Fd || Fd <- Fds, open(Fd)])},
         {"sockets still in the kernel's list", listed(Fds)},
         {"descriptors fewer than before", Before - count()},
         {"a datagram keeps", kept(hd(Fds))}],
    [io:format("~s: ~p~n", [What, Value]) || {What, Value} <- Said],
    Keeps = case list_to_integer(erlang:system_info(otp_release)) of
                Release when Release =< 27 -> the_read;
                Release when Release >= 29 -> itself;
                _28_not_looked_at -> element(2, lists:last(Said))
            end,
    Expected = [[false], [true], length(Fds), length(Fds), 0, Keeps],
    case [Value || {_What, Value} <- Said] of
        Expected -> io:format("as before~n"), halt(0);
        Other -> io:format("changed: ~p, not ~p~n", [Other, Expected]), halt(1)
    end.

%% RTM_GETLINK of interface 1.
kept(Fd) ->
    {ok, Socket} = socket:open(Fd),
    ok = socket:send(Socket, <<32:32/native, 18:16/native, 1:16/native, 1:32/native, 0:32, 0:32, 1:32/native, 0:64>>),
    {ok, Datagram} = recv(Socket),
    ok = socket:close(Socket),
    Size = byte_size(Datagram),
    case binary:referenced_byte_size(Datagram) of
        Size when Size < 65536 -> itself;
        65536 -> the_read;
        Other -> Other
    end.

recv(Socket) ->
    case socket:recvmsg(Socket, 65536, 0) of
        {ok, #{iov := [Datagram]}} -> {ok, Datagram};
        Failed -> Failed
    end.
ERL

# Descriptors that OTP has not opened, like those of a NIF: bound sockets of NETLINK_ROUTE, which erl inherits.
cat >"$dir/run.pl" <<'PERL'
use strict;
$^F = 1000;
my @sockets;
for (1 .. 100) {
  socket(my $socket, 16, 3, 0) or die "socket: $!";
  bind($socket, pack("S S L L", 16, 0, 0, 0)) or die "bind: $!";
  push @sockets, $socket;
}
$ENV{FDS} = join " ", map { fileno $_ } @sockets;
exec @ARGV or die "exec: $!";
PERL

ERL=${ERL:-erl}
"${ERL}c" -o "$dir" "$dir/adopt.erl"
perl "$dir/run.pl" "$ERL" -noshell -pa "$dir" -s adopt main
