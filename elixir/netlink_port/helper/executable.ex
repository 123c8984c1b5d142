defmodule NetlinkPort.Helper.Executable do
  @moduledoc false
  # Finds the helper's executable, and makes the environment that it is started with.

  alias NetlinkPort.{FileName, RawFile}

  @doc """
  The executable for a server without the option `:executable`, see `NetlinkPort.start_link/1`. A path in the
  configuration is not checked here. `nil` if none is named and none is built.
  """
  @spec path() :: Path.t() | nil
  def path do
    variable() || configured() || built()
  end

  @doc "The path in NETLINK_PORT_EXECUTABLE. `nil` if the variable is unset or empty."
  @spec variable() :: Path.t() | nil
  def variable do
    case :os.getenv(~c"NETLINK_PORT_EXECUTABLE", []) do
      [] -> nil
      # Under LC_ALL=C System.get_env/1 would encode bytes beyond ASCII twice.
      value -> FileName.bytes(value)
    end
  end

  @doc """
  The path at which the build puts the helper. It depends on no setting. `nil` if this code is not in the folder of an
  application, as in an escript.
  """
  @spec built() :: Path.t() | nil
  def built do
    with folder when is_list(folder) <- :code.lib_dir(:netlink_port),
         library = FileName.bytes(folder),
         true <- RawFile.dir?(library) do
      library |> Path.join("priv/netlink_port") |> FileName.expand()
    else
      _none -> nil
    end
  end

  @doc "The path in the configuration, `config :netlink_port, executable:`."
  @spec configured() :: term()
  def configured, do: Application.get_env(:netlink_port, :executable)

  # Danger: these variables load libraries and audit modules, or tune the C library, sanitizers or Rust's runtime. The
  # helper would then make system calls that its seccomp filter does not allow. Those of the C library are the ones
  # that ld.so(8) itself removes from set-user-ID programs.
  @prefixes [~c"LD_", ~c"GLIBC_", ~c"MALLOC_", ~c"RUST_"]
  @names [
    ~c"GCONV_PATH",
    ~c"LOCPATH",
    ~c"NLSPATH",
    ~c"GETCONF_DIR",
    ~c"LLVM_PROFILE_FILE"
  ]

  @doc """
  The variables to remove from the environment that a helper inherits, as `open_port/2` takes them. To run the helper
  with one of these, name a script as the executable, and set the variable in the script.
  """
  @spec environment() :: [{charlist(), false}]
  def environment do
    for {name, _value} <- :os.env(), foreign?(name), do: {name, false}
  end

  for prefix <- @prefixes, do: defp(foreign?(unquote(prefix) ++ _rest), do: true)

  # ASAN_OPTIONS, UBSAN_OPTIONS and the like end so.
  defp foreign?(name), do: name in @names or :lists.suffix(~c"SAN_OPTIONS", name)
end
