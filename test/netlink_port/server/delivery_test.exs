defmodule NetlinkPort.DeliveryTest do
  # The delivery of one socket, without a socket: the modes of `active`, who is served when, and the grants to the
  # helper.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Helper.Protocol
  alias NetlinkPort.Server.Delivery

  @window 10_000

  defp new(mode, window \\ @window), do: Delivery.new(mode, window)

  defp data(name, size \\ 4), do: {:data, String.pad_trailing("#{name}", size), nil}
  defp error(number \\ 1), do: {:error, Error.new(:send, number)}

  # Lets items arrive. Returns all effects and the state.
  defp arrive(state, items) do
    Enum.flat_map_reduce(items, state, fn item, state -> Delivery.arrive(state, item) end)
  end

  defp deliveries(items), do: Enum.map(items, &{:deliver, &1})

  defp wait(state, name), do: Delivery.wait(state, name, name, name)

  # All items that are kept, as recv would take them.
  defp demand_all(state) do
    case Delivery.demand(state) do
      {:item, item, state} -> [item | demand_all(state)]
      :empty -> []
    end
  end

  describe "to an owner on another node" do
    test "a datagram counts as taken only when the relay has sent it" do
      state = Delivery.new(true, 1_000, :infinity, true)
      items = [data(1, 400), data(2, 400)]
      {effects, state} = arrive(state, items)
      assert effects == deliveries(items)
      assert {nil, state} = Delivery.grant(state)
      state = Delivery.relayed(state, Protocol.charge(400))
      assert {1_700, state} = Delivery.grant(state)
      assert {nil, _state} = Delivery.grant(state)
    end

    test "a datagram that answers a waiting caller counts as taken at once" do
      state = wait(Delivery.new(false, 1_000, :infinity, true), :someone)
      {[{:answer, :someone, _item}], state} = arrive(state, [data(1, 400)])
      assert {1_700, _state} = Delivery.grant(state)
    end
  end

  describe "the error of a receive" do
    defp failed_receive, do: {:error, Error.new(:recv, 5)}

    test "costs as an empty datagram does, delivered or received, and that of a send costs nothing" do
      for relayed? <- [false, true] do
        state = Delivery.new(true, 1_000, :infinity, relayed?)
        {_delivered, state} = arrive(state, [error(), failed_receive(), failed_receive()])
        assert {1_600, _state} = Delivery.grant(state)
      end

      {[], state} =
        arrive(Delivery.new(false, 1_000), [error(), failed_receive(), failed_receive()])

      assert {nil, state} = Delivery.grant(state)
      assert {:item, {:error, %{stage: :send}}, state} = Delivery.demand(state)
      assert {:item, {:error, %{stage: :recv}}, state} = Delivery.demand(state)
      assert {:item, {:error, %{stage: :recv}}, state} = Delivery.demand(state)
      assert {1_600, _state} = Delivery.grant(state)
    end

    test "that is not kept counts as taken" do
      {[], state} = arrive(Delivery.new(false, 1_000), List.duplicate(failed_receive(), 64))
      assert {nil, state} = Delivery.grant(state)
      {[], state} = arrive(state, [failed_receive(), failed_receive()])
      assert {1_600, _state} = Delivery.grant(state)
    end
  end

  describe "active: true" do
    test "delivers everything at once, in order" do
      items = [data(1), {:overrun, 3}, error(), data(2)]
      {effects, state} = arrive(new(true), items)
      assert effects == deliveries(items)
      assert state.mode == true
      assert Delivery.kept(state) == 0
    end

    test "refuses a demand" do
      assert Delivery.demand(new(true)) == :active
    end
  end

  describe "active: :once" do
    test "delivers one datagram and becomes passive, without a message" do
      {effects, state} = arrive(new(:once), [data(1), data(2)])
      assert effects == [{:deliver, data(1)}]
      assert state.mode == false
      assert demand_all(state) == [data(2)]
    end

    test "is not used up by errors and overruns" do
      items = [error(), {:overrun, 1}, error(), data(1), error(), data(2)]
      {effects, state} = arrive(new(:once), items)
      assert effects == deliveries(Enum.take(items, 4))
      assert state.mode == false
      assert demand_all(state) == Enum.drop(items, 4)
    end

    test "refuses a demand" do
      assert Delivery.demand(new(:once)) == :active
    end
  end

  describe "active: a count" do
    test "delivers that many datagrams, then a message that the socket is passive" do
      {effects, state} = arrive(new(3), for(n <- 1..5, do: data(n)))
      assert effects == deliveries([data(1), data(2), data(3)]) ++ [:passive]
      assert state.mode == false
      assert demand_all(state) == [data(4), data(5)]
    end

    test "lowers the count in the mode with each datagram" do
      {_effects, state} = arrive(new(3), [data(1)])
      assert state.mode == 2
      {_effects, state} = arrive(state, [data(2)])
      assert state.mode == 1
    end

    test "is not used up by errors and overruns" do
      items = [error(), data(1), {:overrun, 9}, error(), data(2)]
      {effects, state} = arrive(new(2), items)
      assert effects == deliveries(items) ++ [:passive]
      assert state.mode == false
    end

    test "refuses a demand" do
      assert Delivery.demand(new(1)) == :active
    end
  end

  describe "active: false" do
    test "keeps everything, in order" do
      items = [data(1), {:overrun, 3}, error(), data(2)]
      {effects, state} = arrive(new(false), items)
      assert effects == []
      assert Delivery.kept(state) == 4
      assert demand_all(state) == items
    end

    test "is empty when nothing has come" do
      assert Delivery.demand(new(false)) == :empty
    end
  end

  describe "set_active" do
    test "delivers kept items before new ones" do
      items = [data(1), error(), data(2), {:overrun, 7}, data(3)]
      {[], state} = arrive(new(false), items)
      assert {:ok, effects, state} = Delivery.set_active(state, [true])
      assert effects == deliveries(items)
      assert Delivery.kept(state) == 0
      assert {[{:deliver, item}], _state} = Delivery.arrive(state, data(4))
      assert item == data(4)
    end

    test ":once delivers the first kept datagram, and the errors before it" do
      items = [error(), {:overrun, 7}, data(1), error(2), data(2)]
      {[], state} = arrive(new(false), items)
      assert {:ok, effects, state} = Delivery.set_active(state, [:once])
      assert effects == deliveries(Enum.take(items, 3))
      assert state.mode == false
      assert demand_all(state) == Enum.drop(items, 3)
    end

    test ":once delivers kept errors, and waits for a datagram" do
      {[], state} = arrive(new(false), [error()])
      assert {:ok, effects, state} = Delivery.set_active(state, [:once])
      assert effects == deliveries([error()])
      assert state.mode == :once
    end

    test "a count delivers that many kept datagrams" do
      {[], state} = arrive(new(false), for(n <- 1..3, do: data(n)))
      assert {:ok, effects, state} = Delivery.set_active(state, [2])
      assert effects == deliveries([data(1), data(2)]) ++ [:passive]
      assert state.mode == false
      assert demand_all(state) == [data(3)]
    end

    test "a count above the number of kept datagrams goes on with the rest" do
      {[], state} = arrive(new(false), [data(1), data(2)])
      assert {:ok, effects, state} = Delivery.set_active(state, [5])
      assert effects == deliveries([data(1), data(2)])
      assert state.mode == 3
    end

    test "a count equal to the number of kept datagrams ends with the last of them" do
      {[], state} = arrive(new(false), [data(1), data(2)])
      assert {:ok, effects, state} = Delivery.set_active(state, [2])
      assert effects == deliveries([data(1), data(2)]) ++ [:passive]
      assert {state.mode, Delivery.kept(state)} == {false, 0}
    end

    test "false stops deliveries, without a message" do
      for mode <- [true, :once, 3, false] do
        assert {:ok, [], state} = Delivery.set_active(new(mode), [false])
        assert {[], state} = Delivery.arrive(state, data(1))
        assert demand_all(state) == [data(1)]
      end
    end

    test "adds a count to the current count" do
      assert {:ok, [], %{mode: 8}} = Delivery.set_active(new(5), [3])
      assert {:ok, [], %{mode: 3}} = Delivery.set_active(new(5), [-2])
      assert {:ok, [], %{mode: 5}} = Delivery.set_active(new(4), [1])
    end

    test "a count replaces any other mode" do
      for mode <- [true, false, :once] do
        assert {:ok, [], %{mode: 3}} = Delivery.set_active(new(mode), [3])
      end
    end

    test "a count of 0 or less makes the socket passive, with a message" do
      for {mode, change} <- [{5, -5}, {5, -6}, {1, -32_768}, {false, 0}, {true, -1}, {:once, 0}] do
        assert {:ok, [:passive], %{mode: false}} = Delivery.set_active(new(mode), [change])
      end
    end

    test "adding 0 to a count changes nothing" do
      assert {:ok, [], %{mode: 5}} = Delivery.set_active(new(5), [0])
    end

    test "refuses a sum above 32767" do
      assert {:ok, [], %{mode: 32_767}} = Delivery.set_active(new(false), [32_767])
      assert {:ok, [], %{mode: 32_767}} = Delivery.set_active(new(5), [32_762])
      assert Delivery.set_active(new(5), [32_763]) == :einval
      assert Delivery.set_active(new(1), [32_767]) == :einval
      assert Delivery.set_active(new(false), [32_768]) == :einval
      assert Delivery.set_active(new(false), [true, 5, 32_767]) == :einval
    end

    test "several changes in one call are one change: nothing is delivered between them" do
      {[], state} = Delivery.arrive(new(false), data("a"))
      {[], state} = Delivery.arrive(state, data("b"))

      assert {:ok, [{:deliver, _a}, {:deliver, _b}], %{mode: 1}} =
               Delivery.set_active(state, [1, 2])

      assert {:ok, [], %{mode: false}} = Delivery.set_active(state, [true, false])

      assert {:ok, [:passive, {:deliver, _a}, :passive], _state} =
               Delivery.set_active(state, [0, 1])
    end
  end

  describe "waiting callers" do
    defp waiting(state, names), do: Enum.reduce(names, state, &wait(&2, &1))

    test "are served in the order they came, one item each" do
      state = waiting(new(false), [:a, :b, :c])
      assert Delivery.waiters(state) == [:a, :b, :c]
      {effects, state} = arrive(state, [data(1), data(2)])
      assert effects == [{:answer, :a, data(1)}, {:answer, :b, data(2)}]
      assert Delivery.waiters(state) == [:c]
      assert Delivery.kept(state) == 0
    end

    test "are answered by errors and overruns, too" do
      state = waiting(new(false), [:a, :b])
      {effects, _state} = arrive(state, [error(), {:overrun, 2}])
      assert effects == [{:answer, :a, error()}, {:answer, :b, {:overrun, 2}}]
    end

    test "get one item each; later items are kept" do
      {effects, state} = arrive(waiting(new(false), [:a]), [data(1), data(2)])
      assert effects == [{:answer, :a, data(1)}]
      assert demand_all(state) == [data(2)]
    end

    test "can be removed; the others keep their order" do
      state = waiting(new(false), [:a, :b, :c, :d])
      assert {[:b], state} = Delivery.withdraw(state, :b)
      assert {[:d], state} = Delivery.withdraw(state, :d)
      assert Delivery.waiters(state) == [:a, :c]
      assert {[], state} = Delivery.withdraw(state, :b)
      {effects, _state} = arrive(state, [data(1), data(2), data(3)])
      assert effects == [{:answer, :a, data(1)}, {:answer, :c, data(2)}]
    end

    test "can be removed by their process, and all together" do
      state = Enum.reduce(1..6, new(false), &Delivery.wait(&2, &1, rem(&1, 2), &1))
      assert Delivery.waits?(state, 0)
      assert {[2, 4, 6], state} = Delivery.withdraw_of(state, 0)
      refute Delivery.waits?(state, 0)
      assert {[], state} = Delivery.withdraw_of(state, 0)
      assert {[3], state} = Delivery.withdraw(state, 3)
      assert Delivery.waits?(state, 1)
      assert {[1, 5], state} = Delivery.withdraw_all(state)
      refute Delivery.waits?(state, 1)
      assert {[{:answer, 7, _item}], _state} = arrive(wait(state, 7), [data(1)])
    end

    test "are passed over while they are stale" do
      state = waiting(new(false), 1..5)
      assert {[1, 2], state} = Delivery.skip(state, &(&1 in [1, 2, 4]))
      assert {[3], state} = Delivery.withdraw(state, 3)
      assert {[4], state} = Delivery.skip(state, &(&1 in [1, 2, 4]))
      assert {[5], state} = Delivery.skip(state, fn _waiter -> true end)
      assert {[], _state} = Delivery.skip(state, fn _waiter -> true end)
    end

    test "are not served while the socket is active" do
      {:ok, [], state} = new(false) |> waiting([:a]) |> Delivery.set_active([1])
      {effects, _state} = arrive(state, [data(1), data(2)])
      assert effects == [{:deliver, data(1)}, :passive, {:answer, :a, data(2)}]
    end
  end

  describe "kept errors" do
    test "are the oldest 64" do
      errors = for n <- 1..70, do: error(n)
      {[], state} = arrive(new(false), errors)
      assert demand_all(state) == Enum.take(errors, 64)
    end

    test "make room as they are taken" do
      {[], state} = arrive(new(false), for(n <- 1..64, do: error(n)))
      {:item, _oldest, state} = Delivery.demand(state)
      {[], state} = arrive(state, [error(65), error(66)])
      assert demand_all(state) == for(n <- 2..65, do: error(n))
    end

    test "make room as they are delivered" do
      {[], state} = arrive(new(false), for(n <- 1..64, do: error(n)))
      {:ok, effects, state} = Delivery.set_active(state, [true])
      assert length(effects) == 64
      {:ok, [], state} = Delivery.set_active(state, [false])
      {[], state} = arrive(state, for(n <- 1..70, do: error(n)))
      assert Delivery.kept(state) == 64
    end

    test "do not displace datagrams" do
      items = for n <- 1..200, do: if(rem(n, 2) == 0, do: data(n), else: error(n))
      {[], state} = arrive(new(false), items)
      kept = demand_all(state)
      assert Enum.filter(kept, &match?({:data, _, _}, &1)) == for(n <- 1..100, do: data(2 * n))
      assert Enum.count(kept, &match?({:error, _}, &1)) == 64
    end
  end

  describe "grants" do
    # A datagram that costs this much.
    defp costing(cost), do: data("", cost - 300)

    test "charge a datagram its length and 300 bytes" do
      assert Protocol.charge(0) == 300
      assert Protocol.charge(1_000) == 1_300
    end

    test "come when half of the window has been taken, and are cumulative" do
      state = new(true)
      assert {nil, state} = Delivery.grant(state)
      {_effects, state} = arrive(state, [costing(4_999)])
      assert {nil, state} = Delivery.grant(state)
      {_effects, state} = arrive(state, [costing(300)])
      assert {15_299, state} = Delivery.grant(state)
      assert {nil, state} = Delivery.grant(state)
      {_effects, state} = arrive(state, [costing(4_999)])
      assert {nil, state} = Delivery.grant(state)
      {_effects, state} = arrive(state, [costing(301)])
      assert {20_599, _state} = Delivery.grant(state)
    end

    test "come at exactly half of the window" do
      {_effects, state} = arrive(new(true), [costing(5_000)])
      assert {15_000, _state} = Delivery.grant(state)
    end

    test "do not count kept datagrams as taken" do
      {[], state} = arrive(new(false), [costing(5_000), costing(5_000)])
      assert {nil, state} = Delivery.grant(state)
      {:item, _first, state} = Delivery.demand(state)
      assert {15_000, state} = Delivery.grant(state)
      {:item, _second, state} = Delivery.demand(state)
      assert {20_000, _state} = Delivery.grant(state)
    end

    test "count each datagram once, however it is taken" do
      item = costing(5_000)
      {[{:answer, :a, ^item}], state} = arrive(wait(new(false), :a), [item])
      assert {15_000, _state} = Delivery.grant(state)

      for mode <- [:once, 1, 2] do
        {_effects, state} = arrive(new(mode), [item])
        assert {15_000, _state} = Delivery.grant(state)
      end

      for mode <- [true, :once, 1, 2] do
        {[], state} = arrive(new(false), [item])
        {:ok, _effects, state} = Delivery.set_active(state, [mode])
        assert {15_000, _state} = Delivery.grant(state)
      end
    end

    test "take one credit for each message to the owner; without credit all items are kept, in order" do
      state = Delivery.new(true, 20_000, 3)

      items = [
        data("a"),
        error(1),
        {:overrun, 2},
        data("b"),
        {:overrun, 3},
        {:overrun, 4},
        data("c")
      ]

      {effects, state} = arrive(state, items)
      assert effects == for(item <- Enum.take(items, 3), do: {:deliver, item})
      assert Delivery.kept(state) == 3
      assert {[{:deliver, b}], state} = Delivery.credit(state, 1)
      assert b == data("b")
      # A gap that was reported in two parts is one gap.
      assert {[{:deliver, {:overrun, 7}}, {:deliver, _c}], state} = Delivery.credit(state, 5)
      assert state.credit == 3
    end

    test "charge nothing for errors and overruns" do
      items = for n <- 1..1_000, do: if(rem(n, 2) == 0, do: error(n), else: {:overrun, n})
      {_effects, state} = arrive(new(true, 1), items)
      assert {nil, _state} = Delivery.grant(state)
    end

    test "let one datagram through at a time with a window of one byte" do
      {_effects, state} = arrive(new(true, 1), [costing(300)])
      assert {301, state} = Delivery.grant(state)
      assert {nil, _state} = Delivery.grant(state)
    end
  end

  # PropEr, if it is installed (Debian: erlang-proper).
  if Code.ensure_loaded?(:proper) do
    describe "properties" do
      # Operations on a socket: items arrive, a caller takes one, waits for one or gives up, and the mode changes.
      # Each item and each waiter has its own number.
      defp operations do
        count = :proper_types.integer(-4, 6)
        modes = Enum.map([true, false, :once], &:proper_types.exactly/1)

        :proper_types.list(
          :proper_types.weighted_union([
            {8, :proper_types.tuple([:arrive, kind(), :proper_types.integer(0, 4_000)])},
            {3, :demand},
            {1, :withdraw},
            {2, :proper_types.tuple([:credit, :proper_types.integer(0, 3)])},
            {3, :proper_types.tuple([:set_active, :proper_types.oneof([count | modes])])}
          ])
        )
      end

      defp kind, do: :proper_types.weighted_union([{6, :data}, {1, :error}, {1, :overrun}])

      defp item(:data, number, size), do: data("#{number}.", size)
      defp item(:error, number, _size), do: error(number)
      defp item(:overrun, number, _size), do: {:overrun, number}

      # Runs operations. `out` has everything that was sent or returned, newest first.
      defp run(operations, mode) do
        start = %{
          state: new(mode),
          arrived: [],
          out: [],
          waiting: [],
          answered: [],
          in_credit?: true
        }

        operations
        |> Enum.with_index(1)
        |> Enum.reduce(start, fn {operation, number}, run -> step(operation, number, run) end)
      end

      defp step({:arrive, kind, size}, number, run) do
        item = item(kind, number, size)
        {effects, state} = Delivery.arrive(run.state, item)
        left(%{run | state: state, arrived: [item | run.arrived]}, effects)
      end

      # As in the server: a caller that finds nothing waits.
      defp step(:demand, number, run) do
        case Delivery.demand(run.state) do
          {:item, item, state} ->
            %{run | state: state, out: [item | run.out]}

          :empty ->
            waiting = run.waiting ++ [number]
            %{run | state: wait(run.state, number), waiting: waiting}

          :active ->
            run
        end
      end

      defp step(:withdraw, number, run) do
        gone = &(rem(&1 + number, 3) == 0)
        {expected, waiting} = Enum.split_with(run.waiting, gone)
        {withdrawn, state} = Enum.flat_map_reduce(expected, run.state, &Delivery.withdraw(&2, &1))
        ^withdrawn = expected
        %{run | state: state, waiting: waiting}
      end

      defp step({:credit, credit}, _number, run) do
        {effects, state} = Delivery.credit(run.state, credit)
        sent = Enum.count(effects, &match?({:deliver, _item}, &1))
        in_credit? = run.state.mode != true or sent <= credit
        left(%{run | state: state, in_credit?: run.in_credit? and in_credit?}, effects)
      end

      # As in the server: no caller waits on an active socket.
      defp step({:set_active, change}, _number, run) do
        {:ok, effects, state} = Delivery.set_active(run.state, [change])
        run = left(%{run | state: state}, effects)

        if state.mode == false do
          run
        else
          {_waiters, state} = Delivery.withdraw_all(state)
          %{run | state: state, waiting: []}
        end
      end

      defp left(run, effects) do
        Enum.reduce(effects, run, fn
          {:deliver, item}, run ->
            %{run | out: [item | run.out]}

          {:answer, waiter, item}, %{waiting: [first | waiting]} = run ->
            answered = [waiter == first | run.answered]
            %{run | out: [item | run.out], waiting: waiting, answered: answered}

          :passive, run ->
            run
        end)
      end

      test "every item leaves exactly once, in order, after any operations" do
        mode = :proper_types.oneof(Enum.map([true, false, :once, 2], &:proper_types.exactly/1))

        check(:proper_types.tuple([mode, operations()]), 3_000, fn {mode, operations} ->
          run = run(operations, mode)
          {:ok, [], state} = Delivery.set_active(run.state, [false])
          left = Enum.reverse(run.out) ++ demand_all(state)
          run.in_credit? and merged(left) == merged(Enum.reverse(run.arrived))
        end)
      end

      # A gap may be reported in one part or in several.
      defp merged([{:overrun, one}, {:overrun, other} | rest]) do
        merged([{:overrun, one + other} | rest])
      end

      defp merged([item | rest]), do: [item | merged(rest)]
      defp merged([]), do: []

      test "waiting callers are served in order, and never wait while items are kept" do
        check(operations(), 3_000, fn operations ->
          run = run(operations, false)

          Enum.all?(run.answered) and Delivery.waiters(run.state) == run.waiting and
            (run.waiting == [] or Delivery.kept(run.state) == 0)
        end)
      end

      # The helper as in src/sockets.rs: it sends a datagram of any size while less was charged than granted. The
      # server asks for a grant after each operation.
      test "kept items charge less than the window plus one datagram, and the helper may always send again" do
        window = :proper_types.integer(1, 20_000)

        check(:proper_types.tuple([window, operations()]), 3_000, fn {window, operations} ->
          start = %{state: new(false, window), charged: 0, granted: window, fine?: true}

          ended =
            operations
            |> Enum.with_index(1)
            |> Enum.reduce(start, fn {operation, number}, helper ->
              helper = operation |> admitted(helper, number) |> granted()
              %{helper | fine?: helper.fine? and kept_cost(helper.state) < window + 4_300}
            end)

          # Once everything is taken, the helper may send again.
          {_effects, state} = Delivery.credit(ended.state, :infinity)
          {:ok, _effects, state} = Delivery.set_active(state, [true])
          empty = granted(%{ended | state: state})
          ended.fine? and empty.charged < empty.granted
        end)
      end

      defp admitted({:arrive, :data, size}, helper, number) do
        if helper.charged < helper.granted do
          {:data, datagram, nil} = item = item(:data, number, size)
          {_effects, state} = Delivery.arrive(helper.state, item)
          charged = helper.charged + Protocol.charge(byte_size(datagram))
          %{helper | state: state, charged: charged}
        else
          helper
        end
      end

      defp admitted(operation, helper, number) do
        run = %{run([], true) | state: helper.state, waiting: Delivery.waiters(helper.state)}
        %{helper | state: step(operation, number, run).state}
      end

      # Grants only rise.
      defp granted(helper) do
        case Delivery.grant(helper.state) do
          {nil, state} -> %{helper | state: state}
          {due, state} when due > helper.granted -> %{helper | state: state, granted: due}
        end
      end

      defp kept_cost(state) do
        for(
          {:data, datagram, _} <- :queue.to_list(state.kept),
          do: Protocol.charge(byte_size(datagram))
        )
        |> Enum.sum()
      end

      # Fails with the counterexample that PropEr has shrunk.
      defp check(type, count, property) do
        options = [:quiet, :long_result, numtests: count]
        assert :proper.quickcheck(:proper.forall(type, property), options) == true
      end
    end
  end
end
