defmodule NetlinkPort.LateAnswersTest do
  use ExUnit.Case, async: true

  doctest NetlinkPort.Server.LateAnswers

  alias NetlinkPort.Message
  alias NetlinkPort.Server.LateAnswers

  @answer %Message{type: 16, seq: 7, payload: "a"}
  @event %Message{type: 16, seq: 0, payload: "e"}
  @ack %Message{type: 2, seq: 7, payload: <<0::160>>}

  defp encode(messages), do: messages |> Message.encode() |> IO.iodata_to_binary()

  test "a datagram is dropped if all its messages are late answers" do
    for messages <- [[@answer], [@answer, @ack], [@ack]] do
      assert LateAnswers.only?(%{7 => :answers}, encode(messages), nil)
      refute LateAnswers.only?(%{8 => :answers}, encode(messages), nil)
      refute LateAnswers.only?(%{}, encode(messages), nil)
    end

    for kept <- [encode([@answer, @event]), encode([@event]), encode([@answer]) <> "tail", ""] do
      refute LateAnswers.only?(%{7 => :answers}, kept, nil)
    end
  end

  test "the event of a late request is not dropped" do
    refute LateAnswers.only?(%{7 => :changes}, encode([@answer]), nil)
    refute LateAnswers.only?(%{7 => :answers}, encode([@answer]), %{group: 1})
    assert LateAnswers.only?(%{7 => :changes}, encode([@ack]), nil)
    assert LateAnswers.only?(%{7 => :echoes}, encode([@answer]), %{group: 1})
  end

  test "the sequence numbers of earlier owners are bounded; those of the last owner are kept" do
    numbers = fn first -> Map.new(first..(first + 2_999), &{&1, :answers}) end
    assert map_size(LateAnswers.merge(%{1 => :answers}, numbers.(2))) == 3_001
    assert LateAnswers.merge(numbers.(1), numbers.(5_000)) == numbers.(5_000)
  end
end
