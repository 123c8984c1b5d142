defmodule NetlinkPort.Helper.Executable do
  @moduledoc false
  # Which executable the helper is, and the environment that it is started with.

  alias NetlinkPort.FileName

  @doc """
  The executable of a server without the option `:executable`, see `NetlinkPort.start_link/1`. The path in the
  configuration is not checked here. `nil` if none is named and none is built.
  """
  @spec path() :: Path.t() | nil
  def path do
    variable() || configured() || built()
  end

  @doc "What NETLINK_PORT_EXECUTABLE names; `nil` where it is not set, or empty."
  @spec variable() :: Path.t() | nil
  def variable do
    case :os.getenv(~c"NETLINK_PORT_EXECUTABLE", []) do
      [] -> nil
      # System.get_env/1 would encode twice what is beyond ASCII, under LC_ALL=C.
      value -> FileName.bytes(value)
    end
  end

  @doc """
  Where the build puts it, whatever servers are told to take. `nil` where this code is in no folder of an
  application: in an escript, or anywhere else.
  """
  @spec built() :: Path.t() | nil
  def built do
    with folder when is_list(folder) <- :code.lib_dir(:netlink_port),
         library = FileName.bytes(folder),
         true <- File.dir?(library) do
      library |> Path.join("priv/netlink_port") |> Path.expand()
    else
      _none -> nil
    end
  end

  @doc "The path in the configuration, `config :netlink_port, executable:`."
  @spec configured() :: term()
  def configured, do: Application.get_env(:netlink_port, :executable)

  # What makes another program of it: libraries, audit modules and tunables of the C library (those that
  # ld.so(8) itself takes from programs with more privileges than their caller), and of sanitizers and of Rust.
  # The filter of system calls is for the program as it was built.
  @foreign ~r/^(LD_|GLIBC_|MALLOC_|RUST_|[A-Z]+SAN_OPTIONS$|GCONV_PATH$|LOCPATH$|NLSPATH$|GETCONF_DIR$|LLVM_PROFILE_FILE$)/

  @doc """
  What is taken out of the environment that a helper inherits, as `open_port/2` takes it. Who wants
  one of these names a script as the executable, which sets it.
  """
  @spec environment() :: [{charlist(), false}]
  def environment do
    for {name, _value} <- :os.env(), List.to_string(name) =~ @foreign, do: {name, false}
  end
end
