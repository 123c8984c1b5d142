%% The library from Erlang, on real namespaces. The code of docs/erlang.md is taken from here, which
%% test/netlink_port/erlang_test.exs checks. Without root the generators make no tests.
-module(netlink_port_tests).

-include_lib("eunit/include/eunit.hrl").

-export([init/1, count/2]).
-behaviour(supervisor).

-define(RTNLGRP_LINK, 1).
-define(RTM_GETLINK, 18).

%% The supervisor of an application.

init([]) ->
    Netlink = #{
        id => netlink,
        start => {'Elixir.NetlinkPort', start_link, [[{name, my_netlink}]]}
    },
    {ok, {#{strategy => one_for_one}, [Netlink]}}.

%% Tests

events_come_as_messages_test_() ->
    in_namespace(fun(Name) ->
        {ok, Socket} = 'Elixir.NetlinkPort':open(my_netlink, route, [
            {netns, {name, Name}},
            {groups, [?RTNLGRP_LINK]}
        ]),
        "" = ip(["-n ", Name, " link add br0 type bridge"]),
        receive
            {netlink, Socket, Datagram} ->
                {ok, [Message | _]} = 'Elixir.NetlinkPort.Message':decode(Datagram),
                ?assertMatch(#{type := 16, payload := _}, Message)
        after 5000 ->
            error(no_event)
        end,
        ok = 'Elixir.NetlinkPort':close(Socket)
    end).

requests_are_answered_test_() ->
    in_namespace(fun(Name) ->
        Options = [{netns, {name, Name}}, {active, false}],
        {ok, Socket} = 'Elixir.NetlinkPort':open(my_netlink, route, Options),
        {ok, Links} = 'Elixir.NetlinkPort':dump(Socket, ?RTM_GETLINK, <<0:128>>),
        [#{payload := <<_:4/binary, Index:32/native, _:8/binary, Attributes/binary>>} | _] = Links,
        {ok, Attrs} = 'Elixir.NetlinkPort.Attr':decode(Attributes),
        ?assertEqual({1, {ok, <<"lo">>}}, {Index, 'Elixir.NetlinkPort.Attr':string(Attrs, 3)}),
        ok = 'Elixir.NetlinkPort':close(Socket)
    end).

a_passive_socket_is_read_test_() ->
    in_namespace(fun(Name) ->
        Options = [{netns, {name, Name}}, {active, false}],
        {ok, Socket} = 'Elixir.NetlinkPort':open(my_netlink, route, Options),
        Request = #{
            '__struct__' => 'Elixir.NetlinkPort.Message',
            type => ?RTM_GETLINK,
            flags => 'Elixir.NetlinkPort.Message':flags([request]),
            seq => 1,
            pid => 0,
            payload => <<0:32, 1:32/native, 0:64>>
        },
        ok = 'Elixir.NetlinkPort':send(Socket, 'Elixir.NetlinkPort.Message':encode(Request)),
        {ok, Datagram} = 'Elixir.NetlinkPort':recv(Socket, 5000),
        ?assertMatch({ok, [#{seq := 1}]}, 'Elixir.NetlinkPort.Message':decode(Datagram)),
        {error, Late} = 'Elixir.NetlinkPort':recv(Socket, 10),
        ?assertMatch(#{stage := recv, reason := etimedout}, Late),
        ok = 'Elixir.NetlinkPort':close(Socket)
    end).

errors_are_maps_test_() ->
    in_namespace(fun(_Name) ->
        Options = [{netns, {name, <<"no-such-namespace">>}}],
        {error, Error} = 'Elixir.NetlinkPort':open(my_netlink, route, Options),
        #{stage := open, errno := 2, reason := enoent} = Error,
        Sentence = 'Elixir.Exception':message(Error),
        ?assertMatch(<<"open of /run/netns/no-such-namespace: ENOENT: ", _/binary>>, Sentence)
    end).

wrong_arguments_are_exceptions_test_() ->
    in_namespace(fun(_Name) ->
        try 'Elixir.NetlinkPort':open(my_netlink, route, [{no_such_option, 1}]) of
            _ -> error(taken)
        catch
            error:#{'__struct__' := 'Elixir.ArgumentError'} = Wrong ->
                ?assertMatch({_, _}, binary:match('Elixir.Exception':message(Wrong), <<"no_such_option">>))
        end
    end).

the_end_of_the_helper_is_reported_test_() ->
    in_namespace(fun(Name) ->
        {ok, Socket} = 'Elixir.NetlinkPort':open(my_netlink, route, [{netns, {name, Name}}]),
        {ok, #{os_pid := OsPid}} = 'Elixir.NetlinkPort':info(my_netlink),
        "" = os:cmd("kill -KILL " ++ integer_to_list(OsPid)),
        receive
            {netlink_closed, Socket, Reason} -> ?assertEqual({helper_exit, 137}, Reason)
        after 5000 ->
            error(not_told)
        end
    end).

a_monitor_gives_a_snapshot_and_changes_test_() ->
    in_namespace(fun(Name) ->
        {ok, Monitor} = 'Elixir.NetlinkPort.Monitor':start_link([
            {server, my_netlink},
            {netns, {name, Name}},
            {groups, [?RTNLGRP_LINK]},
            {dump, [{?RTM_GETLINK, <<0:128>>}]}
        ]),
        {ok, Monitor} = 'Elixir.NetlinkPort.Monitor':subscribe(Monitor),
        ?assertEqual(1, count(Monitor, 0)),
        unlink(Monitor),
        ok = gen_server:stop(Monitor)
    end).

%% The number of messages of the snapshot.
count(Monitor, Count) ->
    receive
        {netlink_resync, Monitor, _Reason} -> count(Monitor, 0);
        {netlink_snapshot, Monitor, 'begin'} -> count(Monitor, 0);
        {netlink_snapshot, Monitor, 'end'} -> Count;
        {netlink_snapshot, Monitor, Messages} -> count(Monitor, Count + length(Messages))
    after 5000 ->
        error(no_snapshot)
    end.

%% A server under a supervisor, and a namespace, which is deleted when the test ends.

in_namespace(Test) ->
    case os:cmd("id -u") of
        "0\n" -> {setup, fun start/0, fun stop/1, fun({_, Name}) -> ?_test(Test(Name)) end};
        _ -> []
    end.

start() ->
    {ok, Supervisor} = supervisor:start_link(?MODULE, []),
    unlink(Supervisor),
    Unique = erlang:unique_integer([positive]),
    Name = iolist_to_binary(["nlp-", os:getpid(), $-, integer_to_list(Unique), "-erl"]),
    "" = ip(["netns add ", Name]),
    {Supervisor, Name}.

stop({Supervisor, Name}) ->
    Ref = monitor(process, Supervisor),
    exit(Supervisor, shutdown),
    receive
        {'DOWN', Ref, process, Supervisor, _} -> ok
    end,
    ip(["netns del ", Name]).

ip(Arguments) -> os:cmd(binary_to_list(iolist_to_binary(["ip " | Arguments]))).
