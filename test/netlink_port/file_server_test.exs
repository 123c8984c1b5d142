defmodule NetlinkPort.FileServerTest do
  # OTP's file server is one process of a VM. While it waits for a file system that does not answer, no call of this
  # library may wait for it, and no server. Each test has a VM of its own, whose file server is suspended.
  use NetlinkPort.Case, async: true

  import NetlinkPort.Nodes

  alias NetlinkPort.HeldFileServer

  setup do
    {peer, _node} = peer!(:no_node)
    %{peer: peer, opts: [executable: helper()]}
  end

  defp held(%{peer: peer}, function, arguments),
    do: :peer.call(peer, HeldFileServer, function, arguments, within(15_000))

  @timed_out {:recv, :etimedout}

  test "a recv/2 that times out, and one of a closed socket, do not wait for the file server",
       c do
    assert held(c, :recv, [c.opts]) == [@timed_out, {:info, :ebadf}]
  end

  test "a thousand recv/2 that time out at once do not look at the machine", c do
    assert held(c, :recvs, [c.opts, 1_000]) == {%{@timed_out => 1_000}, false}
  end

  test "failed opens do not wait for the file server, nor does their server", c do
    assert held(c, :opens, [c.opts]) == {List.duplicate({:open, :enoent}, 3), true, false}
  end

  test "a failed send/3 does not keep its server waiting for the file server", c do
    switch = tmp_path!("switch")

    script =
      script!("exec #{fixture!("inject")} sendto ENOBUFS file:#{switch} #{helper()} \"$@\"")

    assert held(c, :failed_send, [[executable: script], switch]) ==
             {{:send, :enobufs}, true, false}
  end

  test "starts that succeed and that fail do not wait for the file server", c do
    relative = Path.relative_to(helper(), File.cwd!())
    silent = script!("exec sleep 60")
    failing = script!("exit 3")

    assert held(c, :starts, [[helper(), relative, silent, failing, "/nlp/none", "/"]]) == [
             :ok,
             :ok,
             {:thread, :etimedout},
             {:thread, :eproto},
             {:thread, :enoent},
             {:thread, :eacces}
           ]
  end

  test "the server kills a helper that is stuck, and tells owners, while the file server is held",
       c do
    assert held(c, :stuck, [c.opts]) == {{:thread, :etimedout}, :stuck}
  end

  test "the helper of a server that is killed ends while the file server is held", c do
    {os_pid, reason} = held(c, :killed, [c.opts])
    assert reason == :killed
    eventually!(fn -> not running?(os_pid) end)
  end

  describe "the sentence about a missing capability" do
    @describetag :root

    setup do
      script = script!("exec setpriv --securebits +noroot #{helper()} \"$@\"")
      %{netns: netns!(), without: [executable: script]}
    end

    test "is made in full while the file server is held: of an open, a request and a batch, also by a connection",
         c do
      refused = held(c, :refused, [c.without, c.netns])
      assert refused == [{:sys_admin, true} | List.duplicate({:net_admin, true}, 4)]
    end

    test "is made without the mount of the helper's file if the look at it does not end", c do
      refused = held(c, :refused_without_a_look, [c.without, c.netns])
      assert length(refused) == 5

      for sentence <- refused,
          do: assert(sentence =~ ~r/lacks CAP_\w+; start it as root, or inst/)
    end
  end
end
