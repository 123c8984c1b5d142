#!/bin/sh
# socket:recv/2,3 of OTP does not tell the end of a connection of type seqpacket (unix(7)). When the other end has
# closed, each call is {ok, <<>>} at once, for ever, where a stream is {error, closed}. So a loop that ends at an error
# never ends, and takes a processor. {ok, <<>>} is an empty record as well, since these can be sent, and the two cannot
# be told apart by recv. socket:recvmsg/2 is the same, with empty flags. What tells the end is a send ({error, epipe}).
# A record that is longer than the Length of recv/2 is cut, and the rest is gone; recvmsg says so in its flags.
# Seen with Erlang/OTP 25.2.3 of Debian 12 (erts 13.1.5) on Linux 6.18. Needs erl.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat >records.erl <<'ERL'
-module(records).
-export([main/0]).

main() ->
    io:format("OTP ~s, erts ~s~n", [erlang:system_info(otp_release), erlang:system_info(version)]),
    [show(Type) || Type <- [stream, seqpacket]],
    halt().

show(Type) ->
    Address = #{family => local, path => atom_to_list(Type)},
    {ok, Listener} = socket:open(local, Type),
    ok = socket:bind(Listener, Address),
    ok = socket:listen(Listener),
    {ok, Client} = socket:open(local, Type),
    ok = socket:connect(Client, Address),
    {ok, Server} = socket:accept(Listener),
    ok = socket:send(Client, <<"record 1">>),
    io:format("~s, recv of 6: ~0p~n", [Type, socket:recv(Server, 6, 5000)]),
    ok = socket:send(Client, <<"record 2">>),
    {ok, #{flags := Flags, iov := Iov}} = socket:recvmsg(Server, 6, 0, [], 5000),
    io:format("~s, recvmsg of 6: ~0p ~0p~n", [Type, Iov, Flags]),
    Type =:= stream andalso socket:recv(Server, 0, 5000),
    ok = socket:send(Client, <<>>),
    io:format("~s, an empty record: ~0p~n", [Type, socket:recv(Server, 0, 500)]),
    ok = socket:close(Client),
    Ends = [socket:recv(Server, 0, 5000) || _ <- lists:seq(1, 1000)],
    io:format("~s, the other end closed, 1000 times: ~0p~n", [Type, lists:usort(Ends)]),
    Message = case socket:recvmsg(Server, 0, 0, [], 5000) of
                  {ok, #{flags := Empty, iov := Bytes}} -> {ok, Bytes, Empty};
                  Error -> Error
              end,
    io:format("~s, recvmsg: ~0p~n", [Type, Message]),
    io:format("~s, send: ~0p~n", [Type, socket:send(Server, <<"answer">>)]).
ERL
erlc records.erl
erl -noshell -s records main </dev/null | tee all
seen=$(tail -n +2 all)
expected="stream, recv of 6: {ok,<<\"record\">>}
stream, recvmsg of 6: [<<\" 1reco\">>] []
stream, an empty record: {error,timeout}
stream, the other end closed, 1000 times: [{error,closed}]
stream, recvmsg: {error,closed}
stream, send: {error,epipe}
seqpacket, recv of 6: {ok,<<\"record\">>}
seqpacket, recvmsg of 6: [<<\"record\">>] [trunc]
seqpacket, an empty record: {ok,<<>>}
seqpacket, the other end closed, 1000 times: [${EXPECTED:-{ok,<<>>\}}]
seqpacket, recvmsg: {ok,[<<>>],[]}
seqpacket, send: {error,epipe}"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
