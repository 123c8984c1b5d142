defmodule NetlinkPort.OptionsTest do
  # Errors in arguments are raised in the caller, before anything is sent.
  use NetlinkPort.Case, async: true

  import Bitwise, only: [<<<: 2]

  alias NetlinkPort.{Arguments, Options}

  defp open!(opts, protocol \\ :route) do
    {:ok, options} = Options.open(protocol, opts)
    options
  end

  # Checks that an open with these options is refused, with a message that contains all of these words.
  defp refused(opts, words) do
    error = assert_raise ArgumentError, fn -> Options.open(:route, opts) end
    assert_words(error, words)
  end

  defp assert_words(error, words) do
    for word <- List.wrap(words) do
      assert error.message =~ word, "#{inspect(word)} is not in: #{error.message}"
    end
  end

  describe "open" do
    test "has defaults for everything" do
      assert open!([]) == %{
               kind: :socket,
               closed_message: true,
               protocol: :route,
               number: 0,
               netns: :host,
               target: :host,
               active: true,
               bind: 0,
               user_peers: false,
               owner: self(),
               window: 1_048_576,
               max_queue: :infinity,
               timeout: 15_000,
               options: [ext_ack: true]
             }
    end

    test "takes every option" do
      owner = idle_process()

      opts = [
        netns: {:pid, 1},
        active: :once,
        bind: 0xFFFFFFFF,
        user_peers: true,
        owner: owner,
        window: 1,
        max_queue: 1,
        timeout: :infinity
      ]

      fixed = %{kind: :socket, closed_message: true, protocol: 16, number: 16, target: {:pid, 1}}
      expected = opts |> Map.new() |> Map.merge(fixed)
      assert open!(opts, 16) == Map.put(expected, :options, ext_ack: true)
    end

    test "keeps the order of socket options, and joins groups last" do
      opts = [groups: [33, 1], sndbuf: 2, pktinfo: true, rcvbuf: 1, ext_ack: false, cap_ack: true]

      assert open!(opts).options == [
               sndbuf: 2,
               pktinfo: true,
               rcvbuf: 1,
               ext_ack: false,
               cap_ack: true,
               add_membership: 33,
               add_membership: 1
             ]
    end

    test "names the known options for an unknown one" do
      known =
        ~w(netns groups bind owner window max_queue user_peers timeout active pktinfo broadcast_error
                 no_enobufs listen_all_nsid ext_ack cap_ack get_strict_chk rcvbuf sndbuf filter)

      refused([blocking: true], [":blocking" | Enum.map(known, &":#{&1}")])
      # A name that the wire knows, but not as an option.
      refused([add_membership: 1], ":add_membership")
    end

    test "has the same socket options as the helper" do
      source = File.read!(Path.expand("../../../src/options.rs", __DIR__))
      of_helper = for [_, name] <- Regex.scan(~r/^    \("(\w+)", Name::/m, source), do: name
      error = assert_raise ArgumentError, fn -> Options.set(frobnicate: 1) end
      [_, known] = String.split(error.message, "expected one of", parts: 2)
      ours = for [_, name] <- Regex.scan(~r/:(\w+)/, known), do: name

      # Groups are no options of setopts/2, and the mode is the server's.
      assert Enum.sort(of_helper -- ~w(add_membership drop_membership memberships)) ==
               Enum.sort(ours -- ["active"])
    end

    test "takes an option only with its value, and says so of an atom alone, as in a proplist" do
      for opts <- [[:pktinfo], [:pktinfo, {:active, false}], [{:active, false}, :pktinfo]] do
        refused(opts, ["keyword list", "; an option is a pair, such as {:pktinfo, true}"])
      end

      for opts <- [[{:active, false} | :pktinfo], :pktinfo, ["pktinfo"], [{"pktinfo", true}]] do
        error = assert_raise ArgumentError, fn -> Options.open(:route, opts) end
        assert error.message == "expected a keyword list, got: #{inspect(opts)}"
      end
    end

    test "wants a keyword list" do
      for opts <- [:active, %{active: true}, [:active], [{"active", true}], [1 | 2], nil] do
        refused(opts, ["keyword list", inspect(opts)])
      end
    end

    test "wants true, false, :once or a count for active" do
      for count <- [1, 32_767], do: assert(open!(active: count).active == count)

      for wrong <- [0, -1, 32_768, 1.0, :twice, nil, "once"] do
        refused([active: wrong], ["active:", ":once", "32767", inspect(wrong)])
      end
    end

    test "wants a port id or false for bind" do
      for right <- [0, 0xFFFFFFFF, false], do: assert(open!(bind: right).bind == right)

      for wrong <- [-1, 0x100000000, true, nil, "1", 1.5] do
        refused([bind: wrong], ["bind", "32 bits", inspect(wrong)])
      end
    end

    test "wants group numbers from 1" do
      assert open!(groups: []).options == [ext_ack: true]
      assert [_, add_membership: 0xFFFFFFFF] = open!(groups: [0xFFFFFFFF]).options

      for wrong <- [0, -1, 0x100000000, :link, 1.0, nil] do
        refused([groups: [1, wrong]], ["multicast group", inspect(wrong)])
      end

      for wrong <- [1, :link, %{}, nil, [1 | 2]] do
        refused([groups: wrong], ["list", inspect(wrong)])
      end
    end

    test "takes no more groups than one command can carry" do
      assert length(open!(groups: Enum.to_list(1..4_096)).options) == 4_097
      refused([groups: Enum.to_list(1..4_097)], ["at most 4096"])
    end

    test "wants a pid for owner" do
      for wrong <- [:me, nil, 1], do: refused([owner: wrong], ["owner", "pid", inspect(wrong)])
    end

    test "wants a positive window" do
      for wrong <- [0, -1, 1.5, :infinity, nil] do
        refused([window: wrong], ["window", "positive", inspect(wrong)])
      end
    end

    test "wants a boolean for user_peers and every flag" do
      flags = ~w(user_peers pktinfo broadcast_error no_enobufs listen_all_nsid ext_ack cap_ack
                 get_strict_chk)a

      for flag <- flags, wrong <- [0, 1, nil, :yes, "true"] do
        refused([{flag, wrong}], ["#{flag}", "true or false", inspect(wrong)])
      end
    end

    test "wants bytes that fit an int for the buffers" do
      for name <- [:rcvbuf, :sndbuf] do
        for right <- [0, 0x7FFFFFFF], do: assert({name, right} in open!([{name, right}]).options)

        for wrong <- [-1, 0x80000000, 1.0, "1 MB", nil, true] do
          refused([{name, wrong}], ["#{name}", "bytes", inspect(wrong)])
        end
      end
    end

    test "wants ms or :infinity for timeout" do
      for right <- [0, 4_294_957_295, :infinity],
          do: assert(open!(timeout: right).timeout == right)

      # Timeouts that leave no room for the grace of callers, or that no timer takes, are cut.
      for long <- [4_294_957_296, 0xFFFFFFFF, 0x100000000, 1 <<< 70],
          do: assert(open!(timeout: long).timeout == 4_294_957_295)

      for wrong <- [-1, 1.5, nil, :never] do
        refused([timeout: wrong], ["timeout", ":infinity", inspect(wrong)])
      end
    end
  end

  describe "protocols" do
    test "have the numbers of include/uapi/linux/netlink.h" do
      numbers = [
        route: 0,
        unused: 1,
        usersock: 2,
        firewall: 3,
        sock_diag: 4,
        nflog: 5,
        xfrm: 6,
        selinux: 7,
        iscsi: 8,
        audit: 9,
        fib_lookup: 10,
        connector: 11,
        netfilter: 12,
        ip6_fw: 13,
        dnrtmsg: 14,
        kobject_uevent: 15,
        generic: 16,
        scsitransport: 18,
        ecryptfs: 19,
        rdma: 20,
        crypto: 21,
        smc: 22
      ]

      for {name, number} <- numbers do
        assert Arguments.protocol!(name) == number
        # The protocol keeps its name; its number is sent to the helper.
        assert %{protocol: ^name, number: ^number} = open!([], name)
      end
    end

    test "with an unknown name are refused, and the known names listed" do
      for wrong <- [:rtnetlink, "route", nil, 0.0, {:route}] do
        error = assert_raise ArgumentError, fn -> Options.open(wrong, []) end
        assert_words(error, ["netlink protocol", ":route", ":kobject_uevent", inspect(wrong)])
      end
    end
  end

  describe "namespaces" do
    test "are resolved to paths and processes" do
      assert Options.target(:host) == {:ok, :host}
      assert Options.target({:path, "/proc/1/ns/net"}) == {:ok, {:path, "/proc/1/ns/net"}}
      assert Options.target({:path, "relative"}) == {:ok, {:path, "relative"}}
      assert Options.target({:name, "blue"}) == {:ok, {:path, "/run/netns/blue"}}
      assert Options.target({:name, "..."}) == {:ok, {:path, "/run/netns/..."}}
      assert Options.target({:name, ".hidden"}) == {:ok, {:path, "/run/netns/.hidden"}}
      assert Options.target({:pid, 0x7FFFFFFF}) == {:ok, {:pid, 0x7FFFFFFF}}
    end

    test "may have no name that leads out of /run/netns" do
      names = [
        "../x",
        "a/b",
        "/",
        "/run/netns/blue",
        "blue/",
        "",
        ".",
        "..",
        "a\0",
        "\0",
        "../../proc/1/ns/net",
        "a\0/../x"
      ]

      for name <- names do
        refused([netns: {:name, name}], ["name", "/run/netns", inspect(name)])
      end
    end

    test "of a path with a NUL byte are EINVAL" do
      for path <- ["\0", "/run/netns/blue\0", "a\0b"] do
        assert {:error, %Error{stage: :open, reason: :einval, errno: 22} = error} =
                 Options.open(:route, netns: {:path, path})

        # The byte itself is not printed.
        refute Exception.message(error) =~ <<0>>
      end
    end

    test "of a path that is too long are ENAMETOOLONG" do
      assert {:ok, _options} =
               Options.open(:route, netns: {:path, "/" <> String.duplicate("a", 4_094)})

      # Relative to the root.
      assert {:error, %Error{reason: :enametoolong}} =
               Options.open(:route, netns: {:path, String.duplicate("a", 4_095)})

      for size <- [4_096, 100_000] do
        assert {:error, %Error{stage: :open, reason: :enametoolong, errno: 36}} =
                 Options.open(:route, netns: {:path, String.duplicate("a", size)})
      end

      # The name counts together with its folder.
      assert {:ok, _} = Options.target({:name, String.duplicate("a", 4_095 - 11)})

      assert {:error, %Error{reason: :enametoolong}} =
               Options.target({:name, String.duplicate("a", 4_096 - 11)})
    end

    test "of another form are refused, and the known forms listed" do
      for wrong <- [
            nil,
            "blue",
            :blue,
            "/run/netns/blue",
            {:path, :blue},
            {:path, [:blue]},
            {:name, :blue},
            {:name, nil},
            {:pid, 0},
            {:pid, -1},
            {:pid, 0x80000000},
            {:pid, "1"},
            {:pid, self()},
            {:fd, 3},
            {:path, "a", "b"}
          ] do
        forms = [":host", "{:path, path}", "{:name, name}", "{:pid, os_pid}", inspect(wrong)]
        refused([netns: wrong], ["netns" | forms])
      end
    end
  end

  describe "setopts" do
    test "keeps its options in their order" do
      opts = [rcvbuf: 1, active: -5, pktinfo: true, filter: nil, active: true, rcvbuf: 2]
      detached = [rcvbuf: 1, active: -5, pktinfo: true, filter: <<>>, active: true, rcvbuf: 2]
      assert Options.set(opts) == detached
    end

    test "takes negative counts" do
      for change <- [0, -32_768, 32_767] do
        assert Options.set(active: change) == [active: change]
      end

      for wrong <- [-32_769, 32_768, 1.0, :twice, nil] do
        error = assert_raise ArgumentError, fn -> Options.set(active: wrong) end
        assert_words(error, ["active:", "-32768..32767", inspect(wrong)])
      end
    end

    test "names the known options for an unknown one" do
      for name <- [:blocking, :netns, :groups, :bind, :owner, :window, :timeout, :user_peers] do
        error = assert_raise ArgumentError, fn -> Options.set([{name, 1}]) end
        assert_words(error, [inspect(name) | Enum.map(Options.names(), &inspect/1)])
      end
    end

    test "refuses the values that open refuses" do
      for {name, wrong} <- [pktinfo: 1, rcvbuf: -1, filter: [:ret], sndbuf: nil] do
        error = assert_raise ArgumentError, fn -> Options.set([{name, wrong}]) end
        assert_words(error, "#{name}")
      end

      # The compilers of newer Elixirs would recognise it.
      wrong = Process.get(:no_such_key, :active)
      assert_raise ArgumentError, ~r/keyword list/, fn -> Options.set(wrong) end
    end
  end

  describe "getopts" do
    test "takes names, in their order, and any number of them" do
      assert Options.get([]) == []
      names = Enum.reverse(Options.names())
      assert Options.get(names) == names
    end

    test "names the known options for an unknown one" do
      for wrong <- [:blocking, :netns, "active", 1, {:active, true}] do
        error = assert_raise ArgumentError, fn -> Options.get([:active, wrong]) end
        assert_words(error, [inspect(wrong) | Enum.map(Options.names(), &inspect/1)])
      end
    end

    test "wants a list" do
      for wrong <- [:active, nil, %{active: true}, [:active | :rcvbuf]] do
        error = assert_raise ArgumentError, fn -> Options.get(wrong) end
        assert_words(error, ["list", inspect(wrong)])
      end
    end
  end

  describe "filters" do
    test "are eight bytes an instruction, big-endian" do
      program = [{0x28, 0, 0, 4}, {0x15, 1, 2, 0x10001}, {6, 0, 0, 0xFFFFFFFF}]

      assert Options.set(filter: program) == [
               filter:
                 <<0, 0x28, 0, 0, 0, 0, 0, 4, 0, 0x15, 1, 2, 0, 1, 0, 1, 0, 6, 0, 0, 255, 255,
                   255, 255>>
             ]
    end

    test "are decoded as they were encoded" do
      programs = [
        [],
        [{0, 0, 0, 0}],
        [{0xFFFF, 0xFF, 0xFF, 0xFFFFFFFF}],
        for(n <- 0..255, do: {n * 257, n, 255 - n, n * 0x1010101})
      ]

      for program <- programs do
        [filter: encoded] = Options.set(filter: program)
        assert byte_size(encoded) == 8 * length(program)
        assert Options.read(:filter, encoded) == program
      end
    end

    test "are detached by nil" do
      assert Options.set(filter: nil) == [filter: <<>>]
    end

    test "with a malformed instruction are refused" do
      for wrong <- [
            {0x10000, 0, 0, 0},
            {0, 0x100, 0, 0},
            {0, 0, 0x100, 0},
            {0, 0, 0, 0x100000000},
            {-1, 0, 0, 0},
            {0, 0, 0, -1},
            {0, 0, 0},
            {:ret, 0, 0, 0},
            {6.0, 0, 0, 0},
            :ret
          ] do
        error = assert_raise ArgumentError, fn -> Options.set(filter: [{6, 0, 0, 1}, wrong]) end
        assert_words(error, ["filter", "{code, jt, jf, k}", inspect(wrong)])
      end

      for wrong <- [<<0, 6, 0, 0, 0, 0, 0, 0>>, :accept, %{}, [{6, 0, 0, 0} | 0]] do
        error = assert_raise ArgumentError, fn -> Options.set(filter: wrong) end
        assert_words(error, ["filter", "list", inspect(wrong)])
      end
    end
  end

  test "flags are read as booleans, sizes as numbers" do
    for flag <- Options.names() -- [:active, :rcvbuf, :sndbuf, :filter] do
      assert {flag, Options.read(flag, 0)} == {flag, false}
      assert {flag, Options.read(flag, 1)} == {flag, true}
    end

    assert Options.read(:rcvbuf, 1) == 1
    assert Options.read(:sndbuf, 0) == 0
  end

  test "start_link raises in the caller for unknown options" do
    for {opts, words} <- [
          {[path: "/bin/true"], [":path", ":executable", ":hello_timeout", ":ping_interval"]},
          {[executable: :netlink_port], ["executable", ":netlink_port"]},
          {[executable: [:netlink_port]], ["executable", "[:netlink_port]"]},
          {[call_timeout: 0.5], ["timeout", "0.5"]},
          {[hello_timeout: nil], ["timeout", "nil"]},
          {[ping_interval: -1], ["ping_interval", "-1"]},
          {[keep: [:net_broadcast | :audit_read]], ["keep:", ":dac_read_search"]},
          {[user_namespaces: 1], ["user_namespaces: true or false", "1"]},
          {[spin: -1], ["spin: microseconds", "-1"]},
          {[spin: :infinity], ["spin: microseconds", ":infinity"]},
          {:executable, ["keyword list"]}
        ] do
      error = assert_raise ArgumentError, fn -> NetlinkPort.start_link(opts) end
      assert_words(error, words)
    end
  end

  test "improper lists, and lists longer than a command, raise" do
    for groups <- [[1 | 2], List.duplicate(1, 4_097)] do
      assert_raise ArgumentError, ~r/groups: a list of at most 4096/, fn ->
        Options.open(:route, groups: groups)
      end
    end

    assert {:ok, _options} = Options.open(:route, groups: List.duplicate(1, 4_096))

    instructions = List.duplicate({6, 0, 0, 0}, 4_096)
    assert [filter: _] = Options.set(filter: instructions)
    assert_raise ArgumentError, fn -> Options.set(filter: [{6, 0, 0, 0} | instructions]) end
    assert_raise ArgumentError, fn -> Options.open(:route, window: 0x10000000000000000) end

    # If an option is given several times, the first counts.
    {:ok, %{options: options}} = Options.open(:route, List.duplicate({:pktinfo, true}, 6_000))
    assert options == [ext_ack: true, pktinfo: true]
    assert_raise ArgumentError, fn -> Options.set(filter: [{6, 0, 0, 0} | :rest]) end
    assert_raise ArgumentError, fn -> Options.get([:active | :rest]) end
  end
end
