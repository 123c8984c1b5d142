defmodule NetlinkPort.Operations.Attach do
  @moduledoc false
  # Connects the Mix tasks to a running application, by Erlang distribution.

  # The longest atom, in characters.
  @longest 255

  @doc """
  Connects to a node. This VM becomes a hidden node that accepts no connections, and whose name the other node
  chooses. An error is a sentence.
  """
  @spec node(String.t(), String.t() | nil) :: {:ok, node()} | {:error, String.t()}
  def node(name, cookie) do
    with {:ok, node} <- named(name),
         {:ok, cookie} <- cookie(cookie),
         :ok <- start(name) do
      if cookie, do: Node.set_cookie(node, cookie)

      if Node.connect(node) == true,
        do: {:ok, node},
        else:
          {:error,
           "cannot reach #{name}: is it running, by that name, and is the cookie its own?"}
    end
  end

  defp named(name) do
    with true <- name =~ ~r/\A[^@]+@[^@]+\z/, {:ok, node} <- atom(name) do
      {:ok, node}
    else
      _no_name ->
        {:error,
         "expected --node NAME@HOST, of at most #{@longest} characters, got: #{inspect(name)}"}
    end
  end

  # The sentence does not repeat the cookie, which is a secret.
  defp cookie(nil), do: {:ok, nil}

  defp cookie(cookie) do
    with true <- cookie != "", {:ok, cookie} <- atom(cookie) do
      {:ok, cookie}
    else
      _no_cookie -> {:error, "expected --cookie COOKIE, of 1 to #{@longest} characters"}
    end
  end

  defp atom(text) do
    if String.valid?(text) and String.length(text) <= @longest,
      do: {:ok, String.to_atom(text)},
      else: :error
  end

  defp start(name) do
    [_name, host] = String.split(name, "@")
    names = if String.contains?(host, "."), do: :longnames, else: :shortnames
    options = %{name_domain: names, hidden: true, dist_listen: false}

    case if(Node.alive?(), do: {:ok, self()}, else: :net_kernel.start(:undefined, options)) do
      {:ok, _pid} -> :ok
      {:error, reason} -> {:error, "cannot start distribution: #{inspect(reason, limit: 5)}"}
    end
  end

  @doc "Calls a function of this library on a node. An error is a sentence."
  @spec call(node(), module(), atom(), [term()]) :: {:ok, term()} | {:error, String.t()}
  def call(node, module, function, arguments) do
    {:ok, :erpc.call(node, module, function, arguments, 60_000)}
  rescue
    error in ErlangError -> {:error, "#{node} cannot say: #{words(error)}"}
    error in UndefinedFunctionError -> {:error, "#{node} cannot say: #{Exception.message(error)}"}
  end

  defp words(%{original: {:exception, :undef, _stack}}),
    do: "it has no netlink_port, or an older one"

  defp words(%{original: {:erpc, reason}}), do: "#{reason}"
  defp words(error), do: error |> Exception.message() |> String.slice(0, 200)
end
