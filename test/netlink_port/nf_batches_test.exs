defmodule NetlinkPort.NfBatchesTest do
  # Batches of nfnetlink, against the real kernel: messages that the kernel would ignore silently, batches that are
  # carried out entirely or not at all, and messages that the kernel does not look at.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Connection}

  @moduletag root: true, nftables: true

  @minute within(60_000)
  @nfgenmsg <<0::32>>
  @newtable 0xA00
  @gettable 0xA01
  @newchain 0xA03
  @getgen 0xA10

  setup do
    netns = netns!()
    server = start_server!()
    opts = [server: server, protocol: :netfilter, netns: {:name, netns}]
    connection = start_supervised!({Connection, opts})
    {:ok, socket} = NetlinkPort.open(server, :netfilter, netns: {:name, netns}, active: false)
    {:ok, active} = NetlinkPort.open(server, :netfilter, netns: {:name, netns})
    passive = {:passive, &NetlinkPort.batch(socket, &1, timeout: @minute)}
    active = {:active, &NetlinkPort.batch(active, &1, timeout: @minute)}
    shared = {:connection, &Connection.batch(connection, &1, timeout: @minute)}
    %{server: server, netns: netns, socket: socket, ways: [passive, active, shared]}
  end

  defp first(generation \\ nil) do
    genid = if generation, do: Attr.encode([{1, <<generation::32>>}]), else: []
    {16, [], [<<0, 0, 10::16>> | genid]}
  end

  defp last, do: {17, [], <<0, 0, 10::16>>}
  defp named(name), do: [<<2, 0, 0::16>> | Attr.encode([{1, name <> <<0>>}])]
  defp table(name), do: {@newtable, [:create, :excl], named(name)}

  # In a table that does not exist.
  defp chain do
    {@newchain, [:create],
     [<<2, 0, 0::16>> | Attr.encode([{1, "nowhere" <> <<0>>}, {3, "c" <> <<0>>}])]}
  end

  defp tables(socket) do
    {:ok, tables} = NetlinkPort.dump(socket, @gettable, @nfgenmsg)

    for %{payload: <<_nfgenmsg::32, attrs::binary>>} <- tables do
      {:ok, attrs} = Attr.decode(attrs)
      {:ok, name} = Attr.string(attrs, 1)
      name
    end
  end

  test "the begin or the end of a batch as a request or a dump raises, and names batch/3",
       %{socket: socket} do
    for ask <- [&NetlinkPort.request/4, &NetlinkPort.dump/4],
        type <- [16, 17],
        payload <- ["", <<0, 0, 10::16>>] do
      assert_raise ArgumentError, ~r/call batch\/3/, fn ->
        ask.(socket, type, payload, timeout: @minute)
      end
    end
  end

  test "a batch that the kernel would silently drop raises, and says what to do",
       context do
    get = {@gettable, [], named("a")}
    short = {@newtable, [:create], <<2>>}

    for {_way, batch} <- context.ways,
        {requests, sentence} <- [
          {[first(), table("a")], ~r/BATCH_END \(17\) as the last message.*throws them away/},
          {[first()], ~r/BATCH_END \(17\) as the last/},
          {[first(), table("a"), last(), first(), table("b"), last()], ~r/drops what is behind/},
          {[first(), table("a"), last(), table("b"), last()], ~r/drops what is behind/},
          {[first(), table("a"), first(), table("b"), last()], ~r/expected one batch/},
          {[first(), table("a"), last(), table("b")], ~r/BATCH_END \(17\) as the last/},
          {[table("a"), last()], ~r/BATCH_BEGIN \(16\) as the first/},
          {[table("a"), first(), table("b"), last()], ~r/BATCH_BEGIN \(16\) as the first/},
          {[last()], ~r/BATCH_BEGIN \(16\) as the first/},
          {[get, last()], ~r/BATCH_BEGIN \(16\) as the first/},
          {[first(), short, last()], ~r/struct nfgenmsg, 4 bytes; that at index 1 has 1/},
          {[{16, [], ""}, table("a"), last()], ~r/index 0 has 0/},
          {[first(), table("a"), {17, [], ""}], ~r/index 2 has 0/}
        ] do
      assert_raise ArgumentError, sentence, fn -> batch.(requests) end
    end

    assert tables(context.socket) == []
  end

  test "a batch is all or nothing: the refused message has its error, and all others are ECANCELED",
       context do
    for {way, batch} <- context.ways do
      name = &"#{way}-#{&1}"
      requests = [first(), table(name.(1)), chain(), table(name.(2)), last()]
      assert {:ok, outcomes} = batch.(requests)
      assert [begin, one, {:error, refused}, two, finish] = outcomes
      assert {refused.stage, refused.reason} == {:request, :enoent}

      for {:error, undone} <- [begin, one, two, finish] do
        assert {undone.stage, undone.reason} == {:request, :ecanceled}

        assert Exception.message(undone) =~
                 "all or nothing, and its message at index 2 was refused"
      end

      assert tables(context.socket) == []
      # Messages that are no changes of nf_tables.
      for strange <- [{@gettable, [], named("a")}, {0x101, [], @nfgenmsg}, {1, [], @nfgenmsg}] do
        assert {:ok, outcomes} = batch.([first(), strange, table(name.(3)), last()])

        if linux?(6, 1) do
          assert [_, {:error, %{reason: :einval}}, {:error, %{reason: :ecanceled}}, _] = outcomes
        else
          # Linux 5.10 skips it, and carries out the rest.
          assert outcomes == [ok: [], ok: [], ok: [], ok: []]
          delete = {0xA02, [], named(name.(3))}
          assert {:ok, [_, ok: [], ok: []]} = batch.([first(), delete, last()])
        end
      end

      assert tables(context.socket) == []
      assert {:ok, [ok: [], ok: [], ok: []]} = batch.([first(), table(name.(4)), last()])
      assert {:ok, [ok: [], ok: []]} = batch.([first(), last()])
      assert tables(context.socket) == [name.(4)]
      assert {:ok, [_, ok: [], ok: []]} = batch.([first(), {0xA02, [], named(name.(4))}, last()])
    end
  end

  test "a batch for another generation of the rules is ERESTART", context do
    for {_way, batch} <- context.ways do
      assert {:ok, [{:error, error}, {:error, undone}, _]} =
               batch.([first(77), table("a"), last()])

      assert {error.stage, error.errno, error.reason} == {:request, 85, :erestart}
      assert Exception.message(error) =~ "NFTA_BATCH_GENID"
      assert undone.reason == :ecanceled
    end
  end

  test "requests of a batch that is not of nf_tables have an outcome each", context do
    for {_way, batch} <- context.ways do
      gen = {@getgen, [], @nfgenmsg}
      assert {:ok, [{:ok, [_gen]}, {:ok, [_again]}]} = batch.([gen, gen])
      assert {:ok, [{:ok, [_gen]}]} = batch.([gen])
      get = {@gettable, [], named("none")}

      assert {:ok, [{:error, %{reason: :enoent}}, {:ok, [_gen]}, {:error, %{reason: :enoent}}]} =
               batch.([get, gen, get])

      assert {:ok, [{:error, %{reason: :einval}}, {:ok, [_gen]}]} =
               batch.([{@gettable, [], ""}, gen])
    end
  end

  test "without CAP_NET_ADMIN every message of a batch is EPERM, although the kernel looks only at the first",
       context do
    set = ~w(--bounding-set -net_admin --inh-caps -net_admin)
    path = script!("exec setpriv #{Enum.join(set, " ")} #{helper()}")
    server = start_server!(executable: path)
    opts = [server: server, protocol: :netfilter]
    connection = start_supervised!(Supervisor.child_spec({Connection, opts}, id: :poor))
    gen = {@getgen, [], @nfgenmsg}

    for active <- [true, false] do
      {:ok, socket} = NetlinkPort.open(server, :netfilter, active: active)

      for batch <- [&NetlinkPort.batch(socket, &1, &2), &Connection.batch(connection, &1, &2)],
          requests <- [[gen, gen], [gen, gen, gen], [first(), table("a"), last()]] do
        assert {:ok, [{:error, first} | others]} = batch.(requests, timeout: @minute)
        assert {first.stage, first.reason} == {:request, :eperm}
        for {:error, error} <- others, do: assert(error.reason in [:eperm, :ecanceled])
        assert length(others) == length(requests) - 1
      end

      assert {:error, %{reason: :eperm}} = NetlinkPort.request(socket, @getgen, @nfgenmsg)
    end

    assert tables(context.socket) == []
  end
end
