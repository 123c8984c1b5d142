defmodule NetlinkPort.Places do
  @moduledoc false
  # Small VMs in the places where people run this library, such as a container: the library's sentences have to be
  # true in each. A VM runs one function of the test's code and returns its result.
  #
  # Everything that they need is in one folder that any user can enter: the code, the helper as it is built, and the
  # helper as `mix netlink_port.install` installs it.

  import NetlinkPort.Case

  # A user and a group of their own. The group may run the installed helper.
  @uid "23457"
  @gid 23_456
  @capabilities "cap_sys_admin,cap_net_admin+ep"

  @enforce_keys [:folder, :built, :installed]
  defstruct @enforce_keys

  @typedoc "`built` and `installed` are paths of helpers. The installed one has file capabilities."
  @type t :: %__MODULE__{folder: Path.t(), built: Path.t(), installed: Path.t()}

  @places [
    :root,
    :user,
    :user_namespace,
    :hidepid1,
    :hidepid2,
    :foreign_proc,
    :pid_namespace,
    :unbounded_root,
    :unbounded_user,
    :no_new_privs,
    :nosuid
  ]

  @doc """
  The places:

    * `:root`, and `:user`, an ordinary one, who may run the installed helper;
    * `:user_namespace`: that user inside `unshare -Ur`;
    * `:hidepid1` and `:hidepid2`: that user with a /proc that hides others' processes;
    * `:foreign_proc`: root in a pid namespace of its own, with the /proc of the one outside;
    * `:pid_namespace`: root in a pid namespace of its own, with its own /proc;
    * `:unbounded_root` and `:unbounded_user`: no CAP_SYS_ADMIN in the bounding set, as in a container;
    * `:no_new_privs`: that user under no_new_privs;
    * `:nosuid`: that user, with the folder of the helpers mounted nosuid.
  """
  def places, do: @places

  @doc "Makes the folder, which is deleted when the test ends."
  def setup! do
    folder = tmp_path!("places")
    File.mkdir!(folder)
    File.chmod!(folder, 0o755)
    # Named like that of a build, so that the VM knows the application by its folder.
    library = Path.join(folder, "netlink_port")
    File.mkdir_p!(Path.join(library, "priv"))
    File.cp_r!(Application.app_dir(:netlink_port, "ebin"), Path.join(library, "ebin"))
    built = Path.join(library, "priv/netlink_port")
    installed = Path.join(folder, "installed")
    for path <- [built, installed], do: File.cp!(helper(), path)
    File.chmod!(built, 0o755)
    install!(installed)
    %__MODULE__{folder: folder, built: built, installed: installed}
  end

  @doc "Gives a file the owner, mode and capabilities that `mix netlink_port.install` would."
  def install!(path, capabilities \\ @capabilities) do
    for command <- [
          ["chown", "0:#{@gid}", path],
          ["chmod", "0750", path],
          ["setcap", capabilities, path]
        ],
        do: {_output, 0} = System.cmd(hd(command), tl(command), stderr_to_stdout: true)

    path
  end

  @doc "The helper that a user of this library has in a place."
  def helper(places, place) when place in [:root, :foreign_proc, :unbounded_root],
    do: places.built

  def helper(places, _ordinary_user), do: places.installed

  @doc "Whether an ordinary user runs there, with the installed helper."
  def ordinary?(place), do: place not in [:root, :foreign_proc, :unbounded_root]

  @doc """
  Calls a function in a place, whose first argument is `places`. Returns its result, and what else was printed.
  A `prefix` is a command that runs another one there.
  """
  def call(places, place, module, function, arguments \\ [], prefix \\ []) do
    {output, status} = run(places, place, module, function, arguments, prefix)

    with 0 <- status,
         [line, result] <- Regex.run(~r/^result ([\w+\/=]+)\n/m, output) do
      {result |> Base.decode64!() |> :erlang.binary_to_term(), String.replace(output, line, "")}
    else
      _failed -> raise "#{place}: status #{status}: #{output}"
    end
  end

  @doc "Like `call/6`, for a function that ends its VM. Returns the output and the exit status."
  def run(places, place, module, function, arguments \\ [], prefix \\ []) do
    term = {module, function, [places | arguments]}

    code =
      "{m, f, a} = :erlang.binary_to_term(Base.decode64!(#{inspect(encode(term))})); " <>
        "IO.puts(\"result \" <> Base.encode64(:erlang.term_to_binary(apply(m, f, a))))"

    elixir = [
      System.find_executable("elixir"),
      "-pa",
      Path.join(places.folder, "netlink_port/ebin"),
      "-e",
      code
    ]

    [program | arguments] = command(place, places, prefix ++ elixir)
    env = [{"HOME", "/tmp"}, {"LC_ALL", "C.UTF-8"}, {"NETLINK_PORT_EXECUTABLE", nil}]
    System.cmd(program, arguments, cd: "/", env: env, stderr_to_stdout: true)
  end

  defp encode(term), do: Base.encode64(:erlang.term_to_binary(term))

  @user ["setpriv", "--reuid", @uid, "--regid", @uid, "--groups", "#{@gid}"]

  @doc "The command line that runs a command in a place."
  def command(:root, _places, command), do: command
  def command(:user, _places, command), do: @user ++ command
  def command(:user_namespace, _places, command), do: @user ++ ["unshare", "-Ur"] ++ command
  def command(:hidepid1, _places, command), do: mounted(hidepid(1), @user ++ command)
  def command(:hidepid2, _places, command), do: mounted(hidepid(2), @user ++ command)
  def command(:foreign_proc, _places, command), do: ["unshare", "-pf", "--kill-child" | command]

  def command(:pid_namespace, _places, command),
    do: ["unshare", "-pf", "--mount-proc", "--kill-child" | command]

  def command(:unbounded_root, _places, command),
    do: ["setpriv", "--bounding-set", "-sys_admin" | command]

  def command(:unbounded_user, _places, command),
    do: @user ++ ["--bounding-set", "-sys_admin" | command]

  def command(:no_new_privs, _places, command), do: @user ++ ["--no-new-privs" | command]

  def command(:nosuid, %{folder: folder}, command) do
    mounted(
      "mount --bind #{folder} #{folder} && mount -o remount,bind,nosuid #{folder}",
      @user ++ command
    )
  end

  defp hidepid(number), do: "mount -t proc -o hidepid=#{number} proc /proc"

  # In a mount namespace of its own.
  defp mounted(mount, command) do
    ["unshare", "-m", "--propagation", "private", "sh", "-c", "#{mount} && exec \"$@\"", "sh"] ++
      command
  end
end
