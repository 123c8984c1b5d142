defmodule Soak.Storm do
  @moduledoc false
  # Endless events in one namespace: routes that come and go, with numbers, so that an owner knows which one comes
  # next.

  use GenServer

  alias NetlinkPort.{Pace, Rtnl}
  alias Soak.{Ledger, World}

  # Routes of a batch. Batch `b` adds routes b*@size + 0.. and removes them again.
  @size 400
  @numbers 0x1000000
  # The longest rest between two batches, in ms.
  @longest_calm 4_000

  @doc "RTNLGRP_IPV4_ROUTE."
  def group, do: 7

  def start_link(index), do: GenServer.start_link(__MODULE__, index)

  @doc "Runs `fun` between two batches, with the number of events so far."
  def still(storm, fun) do
    {:ok, sent} = GenServer.call(storm, :hold, :infinity)
    result = fun.(sent)
    send(storm, {:go_on, self()})
    result
  end

  @doc "Makes no more batches until `go_on/1`."
  def pause(storm), do: GenServer.call(storm, :pause, Pace.within(60_000))
  def go_on(storm), do: GenServer.call(storm, :go_on, Pace.within(60_000))

  @doc "The number of an event, modulo the numbers that fit into an address."
  def number(datagram) do
    [{type, _sequence, payload}] = Rtnl.messages(datagram)
    {10, a, b, c} = Rtnl.destination(payload)
    route = 65_536 * a + 256 * b + c
    {batch, place} = {div(route, @size), rem(route, @size)}
    # RTM_NEWROUTE, RTM_DELROUTE.
    2 * batch * @size + place + if(type == 25, do: @size, else: 0)
  end

  @impl true
  def init(index) do
    path = Path.join(System.tmp_dir!(), World.name(index) <> ".storm")
    {:ok, %{index: index, path: path, batch: 0, paused?: false}, 0}
  end

  @impl true
  def handle_call(:hold, {holder, _tag} = from, state) do
    monitor = Process.monitor(holder)
    GenServer.reply(from, {:ok, 2 * state.batch * @size})

    receive do
      {:go_on, ^holder} -> Process.demonitor(monitor, [:flush])
      {:DOWN, ^monitor, :process, ^holder, _reason} -> :ok
    end

    {:noreply, state, 0}
  end

  def handle_call(:pause, _from, state), do: {:reply, :ok, %{state | paused?: true}}
  def handle_call(:go_on, _from, state), do: {:reply, :ok, %{state | paused?: false}, 0}

  @impl true
  def handle_info(:timeout, %{paused?: true} = state), do: {:noreply, state}

  def handle_info(:timeout, state) do
    routes = for n <- 0..(@size - 1), do: "#{destination(state.batch * @size + n)}/32 dev lo\n"

    File.write!(
      state.path,
      for(verb <- ["add", "del"], route <- routes, do: ["route #{verb} ", route])
    )

    World.ip(["-n", World.name(state.index), "-batch", state.path])
    File.rm!(state.path)
    Ledger.count(:events_sent, 2 * @size)
    true = (state.batch + 1) * @size < @numbers
    {:noreply, %{state | batch: state.batch + 1}, :rand.uniform(@longest_calm)}
  end

  # A holder that sends :go_on too late.
  def handle_info({:go_on, _holder}, state), do: {:noreply, state, 0}

  defp destination(n), do: "10.#{div(n, 65_536)}.#{rem(div(n, 256), 256)}.#{rem(n, 256)}"
end
