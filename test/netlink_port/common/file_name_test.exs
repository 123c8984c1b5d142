defmodule NetlinkPort.FileNameTest do
  # Folders with letters beyond ASCII under LC_ALL=C, as systemd and cron start a VM, and code that is in no folder of
  # an application, as in an escript. Each in another VM.
  use NetlinkPort.Case, async: true

  # A folder like that of a release or a build, below a name of two bytes in UTF-8.
  defp folder!(name \\ "netlink_port") do
    folder = tmp_path!("ünïcode")
    library = Path.join(folder, name)
    File.mkdir_p!(Path.join(library, "priv"))
    File.cp_r!(Application.app_dir(:netlink_port, "ebin"), Path.join(library, "ebin"))
    File.cp!(helper(), Path.join(library, "priv/netlink_port"))
    library
  end

  defp vm(library, code, environment \\ [], opts \\ []) do
    code = "Process.flag(:trap_exit, true)\n" <> code
    elixir = ["-pa", Path.join(library, "ebin"), "-e", code]
    environment = [{"LC_ALL", "C"}, {"NETLINK_PORT_EXECUTABLE", nil} | environment]
    opts = [env: environment, stderr_to_stdout: true] ++ opts
    {output, status} = System.cmd("elixir", elixir, opts)
    assert {output, status} == {output, 0}
    # Without Elixir's own warning about latin1 names.
    output
  end

  test "an expanded path is that of Path.expand/1" do
    names = ["", ".", "..", "a", ".a", "..a", "a.", "a..", "...", "~", "ü"]

    for root <- ["/", ""], first <- names, second <- names, end_ <- ["", "/", "/b"] do
      path = root <> first <> "/" <> second <> end_
      assert {path, NetlinkPort.FileName.expand(path)} == {path, Path.expand(path)}
    end
  end

  describe "a path as a charlist or chardata" do
    @describetag :root

    test "is accepted wherever a path is" do
      netns = netns!()
      path = netns_path(netns)
      inode = inode(path)

      for form <- [&to_charlist/1, &["", [&1]]] do
        server = start_server!(executable: form.(helper()))
        assert {:ok, socket} = NetlinkPort.open(server, :route, netns: {:path, form.(path)})
        assert {:ok, %{inode: ^inode, netns: {:path, ^path}}} = NetlinkPort.info(socket)
        assert {:ok, handle} = NetlinkPort.Native.open_in_netns(server, form.(path), 0)
        assert NetlinkPort.Native.close_fd(server, handle) == :ok
        file = tmp_path!("capture")
        assert {:ok, capture} = NetlinkPort.capture(server, form.(file))
        assert {:ok, _counts} = NetlinkPort.stop_capture(capture)
        assert {:ok, _counts} = NetlinkPort.Sandbox.replay(form.(file), to: self())

        assert {:error, %{subject: "/nowhere"}} =
                 NetlinkPort.Sandbox.replay(form.("/nowhere"), to: self())

        assert {:error, error} =
                 NetlinkPort.open(server, :route, netns: {:path, form.("/nowhere")})

        assert Exception.message(error) =~ "open of /nowhere: ENOENT"
      end

      server = start_server!()

      for wrong <- [[:nowhere], [0x110000]] do
        assert_raise ArgumentError, fn ->
          NetlinkPort.open(server, :route, netns: {:path, wrong})
        end

        assert_raise ArgumentError, fn -> NetlinkPort.capture(server, wrong) end
        assert_raise ArgumentError, fn -> NetlinkPort.start_link(name: nil, executable: wrong) end
      end
    end
  end

  # Executables are compared as bytes, since output under LC_ALL=C is escaped.
  @start """
  {:ok, server} = NetlinkPort.start_link(name: nil)
  {:ok, info} = NetlinkPort.info(server)
  IO.puts("executable " <> Base.encode16(info.executable))
  """

  defp executable!(output) do
    assert [_, bytes] = Regex.run(~r/^executable (\w+)$/m, output), output
    Base.decode16!(bytes)
  end

  test "the helper in the application's folder is found in every locale" do
    library = folder!()

    for locale <- ["C", "C.UTF-8", "POSIX"] do
      output = vm(library, @start, [{"LC_ALL", locale}])
      assert {locale, executable!(output)} == {locale, Path.join(library, "priv/netlink_port")}
    end
  end

  test "an executable from the environment variable or a relative path is found in every locale" do
    library = folder!()
    path = Path.join(library, "priv/netlink_port")
    ebin = Path.dirname(Application.app_dir(:netlink_port, "ebin"))
    output = vm(ebin, @start, [{"NETLINK_PORT_EXECUTABLE", path}])
    assert executable!(output) == path
    code = String.replace(@start, "name: nil", ~s(name: nil, executable: "priv/netlink_port"))
    assert executable!(vm(ebin, code, [], cd: library)) == path
  end

  # open_port/2 of OTP is ENOENT then, also for an absolute path.
  test "a VM whose working directory was deleted: servers go on, and a start names the cause" do
    folder = tmp_path!("deleted")

    output =
      vm(folder!(), """
      {:ok, server} = NetlinkPort.start_link(name: nil)
      File.mkdir_p!("#{folder}")
      File.cd!("#{folder}")
      File.rmdir!("#{folder}")
      {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:path, "/proc/self/ns/net"})
      {:error, error} = NetlinkPort.open(server, :route, netns: {:path, "blue"})
      IO.puts(Exception.message(error))
      for opts <- [[], [executable: "#{helper()}"], [executable: "relative"]] do
        {:error, error} = NetlinkPort.start_link([name: nil] ++ opts)
        IO.puts(Exception.message(error))
      end
      [_ | _] = NetlinkPort.Doctor.report()
      File.cd!("/")
      {:ok, _server} = NetlinkPort.start_link(name: nil)
      """)

    assert output =~
             "open of blue: ENOENT: the path is relative, and the VM's working directory cannot be told"

    starts =
      Regex.scan(
        ~r/^helper .*: ENOENT: the VM's working directory is not there any more/m,
        output
      )

    assert length(starts) == 3
    refute output =~ "mix compile"
  end

  @tag :userns
  test "a sandbox without a working directory names it; with one again, it starts" do
    folder = tmp_path!("deleted")

    output =
      vm(folder!(), """
      {:ok, sandbox} = NetlinkPort.Sandbox.start_link()
      :ok = GenServer.stop(sandbox)
      :persistent_term.erase(NetlinkPort.Sandbox.Refusal)
      File.mkdir_p!("#{folder}")
      File.cd!("#{folder}")
      File.rmdir!("#{folder}")
      {:error, line} = NetlinkPort.Sandbox.start_link()
      IO.puts(line)
      File.cd!("/")
      {:ok, _sandbox} = NetlinkPort.Sandbox.start_link()
      File.mkdir_p!("#{folder}")
      File.cd!("#{folder}")
      File.rmdir!("#{folder}")
      {:error, line} = NetlinkPort.Sandbox.start_link(path: true)
      IO.puts(line)
      """)

    why = "the VM's working directory is not there any more"
    assert output =~ "no network namespaces for NetlinkPort.Sandbox: #{why}"
    assert output =~ ~r/^#{why}/m
    refute output =~ ~r/unshare|util-linux|tmpfs/
  end

  test "the doctor finds and shows an executable with non-ASCII letters" do
    library = folder!()

    output =
      vm(library, ~s([{_, [{:ok, line, nil} | _]} | _] = NetlinkPort.Doctor.report(netns: []\)
      IO.puts("executable " <> Base.encode16(line\)\)))

    assert executable!(output) ==
             Path.join(library, "priv/netlink_port") <>
               ", version " <> NetlinkPort.Helper.Execve.version()
  end

  test "an argument of the command line is decoded once" do
    code = """
    for path <- ["/tmp/ü", "/tmp/plain", <<"/tmp/", 195, 131, 194, 188>>],
        do: IO.puts("executable " <> Base.encode16(NetlinkPort.FileName.argument(path)))
    """

    lines = Regex.scan(~r/^executable (\w+)$/m, vm(folder!(), code))

    assert Enum.map(lines, fn [_, bytes] -> Base.decode16!(bytes) end) == [
             "/tmp/ü",
             "/tmp/plain",
             "/tmp/ü"
           ]

    assert NetlinkPort.FileName.argument(<<195, 131, 194, 188>>) == <<195, 131, 194, 188>>
  end

  describe "code outside an application's folder" do
    test "is an error that names executable:, and starts with that option" do
      library = folder!("elsewhere")

      code = """
      {:error, %NetlinkPort.Error{stage: :thread, reason: :enoent} = error} = NetlinkPort.start_link()
      IO.puts(Exception.message(error))
      {:ok, _server} = NetlinkPort.start_link(name: nil, executable: #{inspect(helper())})
      """

      assert vm(library, code, [{"LC_ALL", "C.UTF-8"}]) =~
               "helper: ENOENT: this code lies in no folder of an application (an escript has none), and so there is " <>
                 "no priv/netlink_port: `executable:`, `config :netlink_port, executable:` or NETLINK_PORT_EXECUTABLE " <>
                 "has to name the helper"
    end

    test "is reported by the doctor" do
      output = vm(folder!("elsewhere"), "NetlinkPort.Doctor.run(netns: [])")

      assert output =~
               "there is no helper: this code lies in no folder of an application, as in an escript"

      assert output =~ "executable:"
      refute output =~ "bug"
    end

    test "in an escript starts with executable:" do
      path = tmp_path!("escript")
      ebin = Application.app_dir(:netlink_port, "ebin")
      elixir = Application.app_dir(:elixir, "ebin")
      logger = Application.app_dir(:logger, "ebin")

      files =
        for {app, folder} <- [netlink_port: ebin, elixir: elixir, logger: logger],
            file <- File.ls!(folder),
            do: {~c"#{app}/ebin/#{file}", File.read!(Path.join(folder, file))}

      main = """
      -module(main).
      -export([main/1]).
      main([]) ->
          process_flag(trap_exit, true),
          {ok, _} = application:ensure_all_started(elixir),
          {error, Error} = 'Elixir.NetlinkPort':start_link(),
          io:put_chars(['Elixir.Exception':message(Error), "\\n"]),
          {ok, _} = 'Elixir.NetlinkPort':start_link([{name, nil}, {executable, <<"#{helper()}">>}]),
          io:put_chars("started\\n").
      """

      source = tmp_path!("main")
      File.mkdir!(source)
      File.write!(Path.join(source, "main.erl"), main)
      {:ok, :main, beam} = :compile.file(to_charlist(Path.join(source, "main")), [:binary])

      :ok =
        :escript.create(to_charlist(path), [
          :shebang,
          {:emu_args, ~c"-escript main main"},
          {:archive, [{~c"main.beam", beam} | files], []}
        ])

      File.chmod!(path, 0o755)
      {output, 0} = System.cmd(path, [], stderr_to_stdout: true)

      assert output =~
               "helper: ENOENT: this code lies in no folder of an application (an escript has none)"

      assert output =~ "started\n"
    end
  end

  describe "on another system than Linux" do
    test "a start and the doctor say that the helper runs only on Linux" do
      assert {:error, error} = NetlinkPort.Helper.start(nil, [], {:unix, :darwin})
      assert {error.stage, error.reason} == {:thread, :eopnotsupp}

      assert Exception.message(error) ==
               "helper: EOPNOTSUPP: netlink(7) is Linux's: the library can be compiled on darwin, and the helper runs " <>
                 "on Linux alone"

      assert [{:fail, "the helper runs on Linux alone, and this is darwin", _}] =
               NetlinkPort.Doctor.Executable.checks(nil, {:unix, :darwin})
    end
  end
end
