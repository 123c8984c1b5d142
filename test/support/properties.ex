defmodule NetlinkPort.Properties do
  @moduledoc false
  # PropEr, if it is installed (Debian: erlang-proper). Its macros are for Erlang, so that this module calls the
  # functions behind them.

  @doc "Whether PropEr is installed."
  def available?, do: Code.ensure_loaded?(:proper)

  @doc "Checks a property of values of a type, `count` times."
  def check(type, count, property) do
    options = [:quiet, :long_result, numtests: count]
    # By apply/3, so that this module compiles without PropEr.
    forall = apply(:proper, :forall, [type, property])
    apply(:proper, :quickcheck, [forall, options])
  end
end
