defmodule NetlinkPort.Properties do
  @moduledoc false
  # PropEr, where it is installed (Debian: erlang-proper). Its macros are for Erlang; the functions
  # behind them do.

  @doc "Whether it is there."
  def available?, do: Code.ensure_loaded?(:proper)

  @doc "Checks a property of values of a type, `count` times."
  def check(type, count, property) do
    options = [:quiet, :long_result, numtests: count]
    # Called by name: without it this module has to compile as well.
    forall = apply(:proper, :forall, [type, property])
    apply(:proper, :quickcheck, [forall, options])
  end
end
