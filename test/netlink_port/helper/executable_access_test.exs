defmodule NetlinkPort.AccessTest do
  # The sentences for a user who may not run an executable, checked as that user, with real files. The group exists on
  # every Debian and has no members.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Helper.ExecutableAccess

  @moduletag :root
  @group "games"
  @user ~w(--reuid 12345 --regid 12345)

  setup do
    path = tmp_path!("helper")
    File.write!(path, "")
    %{path: path, ebin: public_ebin!()}
  end

  defp owned!(path, owner, mode) do
    {_output, 0} = System.cmd("chown", [owner, path])
    {_output, 0} = System.cmd("chmod", [mode, path])
  end

  defp run_as(c, groups, code) do
    code = "alias NetlinkPort.Helper.ExecutableAccess; " <> code
    elixir = [System.find_executable("elixir"), "-pa", c.ebin, "-e", code]
    env = [{"HOME", System.tmp_dir!()}]
    {output, 0} = System.cmd("setpriv", @user ++ groups ++ elixir, env: env, cd: "/")
    output
  end

  # What was found and its remedy, as that user is told.
  defp refused(c, groups) do
    code =
      "ExecutableAccess.refused(#{inspect(c.path)}) |> Tuple.to_list() |> Enum.each(&IO.puts/1)"

    output = run_as(c, groups, code)
    [found, remedy] = String.split(output, "\n", trim: true)
    # The remedy opens nothing to all users.
    refute remedy =~ ~r/chmod (0?[0-7]{3}|o\+|a\+|\+)/
    {found, remedy}
  end

  defp gid do
    {line, 0} = System.cmd("getent", ["group", @group])
    line |> String.split(":") |> Enum.at(2)
  end

  # The same for a user who has a name.
  defp named(c) do
    code =
      "IO.puts(\"nobody\"); NetlinkPort.Helper.ExecutableAccess.refused(#{inspect(c.path)}) |> elem(1) |> IO.inspect()"

    elixir = [System.find_executable("elixir"), "-pa", c.ebin, "-e", code]
    nobody = ~w(--reuid nobody --regid nogroup --clear-groups)
    opts = [env: [{"HOME", System.tmp_dir!()}], cd: "/"]
    {output, 0} = System.cmd("setpriv", nobody ++ elixir, opts)
    output
  end

  @tag :init_user_namespace
  test "an installed helper: the sentence names the group and the user", c do
    owned!(c.path, "root:#{@group}", "0750")
    {found, remedy} = refused(c, ["--clear-groups"])
    assert found == "it is root:#{@group} 0750, and 12345 is not in that group"

    # usermod(8) knows no user without an entry in passwd(5).
    assert remedy =~
             "user 12345 has no entry in passwd(5), so that no entry of group(5) can name the user; " <>
               "SupplementaryGroups=#{@group} of a systemd unit, or setpriv --groups #{gid()}; or install it for"

    assert ["nobody", ~s("usermod -aG #{@group} nobody, and log in again) <> _] =
             String.split(named(c), "\n", trim: true)

    assert remedy =~ "mix netlink_port.install --to #{c.path} --group GROUP"
  end

  @tag :init_user_namespace
  test "an installed helper with a wrong mode: the advice is to install it again", c do
    owned!(c.path, "root:#{@group}", "0640")
    {found, remedy} = refused(c, ["--groups", gid()])
    assert found == "it is root:#{@group} 0640, so that its group may not run it"
    assert remedy == "install it again: mix netlink_port.install --to #{c.path} --group #{@group}"
  end

  @tag :init_user_namespace
  test "a file of root or of another user: the advice adds nobody to its group", c do
    for {owner, told} <- [{"root:root", "root:root"}, {"54321:54321", "54321:54321"}] do
      owned!(c.path, owner, "0750")
      {found, remedy} = refused(c, ["--clear-groups"])
      assert found == "it is #{told} 0750, and not for this user"
      assert remedy =~ "mix netlink_port.install --to /usr/local/lib --group GROUP"
      refute remedy =~ "usermod"
    end
  end

  @tag :init_user_namespace
  test "a file of the user itself: the advice is chmod u+x", c do
    owned!(c.path, "12345:12345", "0644")
    {found, remedy} = refused(c, ["--clear-groups"])
    assert found == "it is 12345:12345 0644, which does not let its owner run it"
    assert remedy == "chmod u+x #{c.path}"
  end

  @tag :init_user_namespace
  test "a closed folder is named, and the file is not blamed", c do
    owned!(c.path, "root:#{@group}", "0750")
    {found, remedy} = refused(c, ["--groups", gid()])
    assert found == "it is root:#{@group} 0750"
    assert remedy =~ "noexec"

    folder = tmp_path!("folder")
    File.mkdir!(folder)
    owned!(folder, "root:root", "0700")
    {found, remedy} = refused(%{c | path: Path.join(folder, "helper")}, ["--clear-groups"])
    assert found == "one of its folders is closed to this user"
    assert remedy =~ "let the user into its folders"
  end

  @tag :init_user_namespace
  test "outsider/2 names the user that is not in the group of the helper", c do
    gid = String.to_integer(gid())
    assert ExecutableAccess.outsider(gid, "nobody") == "nobody"
    assert ExecutableAccess.outsider(gid, @group) == nil
    assert ExecutableAccess.outsider(gid, nil) == nil
    code = "IO.inspect(ExecutableAccess.outsider(#{gid}, nil))"
    assert run_as(c, ["--clear-groups"], code) == ~s("12345"\n)
    assert run_as(c, ["--groups", gid()], code) == "nil\n"
  end
end
