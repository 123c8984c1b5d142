defmodule NetlinkPort.Request.Family do
  @moduledoc false
  # Facts about the kernel's families that their messages do not show, as tables. docs/concepts.md, "What ends an
  # answer", names the kernel's source for each.

  import Bitwise

  alias NetlinkPort.{Arguments, Error, Message}
  alias NetlinkPort.Server.LateAnswers

  @route 0
  @sock_diag 4
  @xfrm 6
  @audit 9
  @fib_lookup 10
  @connector 11
  @netfilter 12
  @kobject_uevent 15
  @generic 16
  @rdma 20
  @crypto 21

  @ack 0x4
  @echo 0x8
  @dump 0x300
  # NLMSG_MIN_TYPE: types below it are control messages.
  @min_type 16

  # AUDIT_GET, AUDIT_SIGNAL_INFO, AUDIT_LIST_RULES, AUDIT_TTY_GET, AUDIT_GET_FEATURE
  @audit_queries [1000, 1010, 1013, 1016, 1019]
  # AUDIT_USER, and, beside it, AUDIT_FIRST_USER_MSG to AUDIT_LAST_USER_MSG2
  @audit_user 1005
  # XFRM_MSG_GETSA, GETPOLICY, ALLOCSPI, GETAE, GETSADINFO, GETSPDINFO, GETDEFAULT
  @xfrm_queries [0x12, 0x15, 0x16, 0x1F, 0x23, 0x25, 0x28]
  # RTM_SETDCB is answered like RTM_GETDCB.
  @setdcb 79
  # IPCTNL_MSG_EXP_GET
  @exp_get 0x201
  # NFNL_SUBSYS_NFTABLES, and its messages that make, change or delete something, or begin and end a batch.
  @nf_tables 10
  @nf_tables_changes [0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 18, 20, 22, 24] ++ Enum.to_list(26..32)
  @batch_limits [16, 17]
  # The messages of nfnetlink, by subsystem, that NLM_F_DUMP makes a dump: GETs of CTNETLINK (1), CTNETLINK_EXP (2),
  # ACCT (7), CTNETLINK_TIMEOUT (8), CTHELPER (9) and HOOK (12).
  @netfilter_dumps %{
    1 => [1, 3, 4, 6, 7],
    2 => [1, 3],
    7 => [1, 2],
    8 => [1],
    9 => [1],
    12 => [0]
  }
  # IPSET_CMD_LIST and SAVE, which are dumps without NLM_F_DUMP.
  @ipset_dumps [0x607, 0x608]
  # XFRM_MSG_GETSA, GETPOLICY
  @xfrm_dumps [0x12, 0x15]
  # SOCK_DESTROY
  @sock_destroy 21
  # CRYPTO_MSG_GETALG
  @getalg 0x13
  # NFNL_SUBSYS_CTNETLINK, CTNETLINK_EXP, ACCT, CTNETLINK_TIMEOUT, CTHELPER
  @flagged_alone [1, 2, 7, 8, 9]

  @doc "Whether an ack, when it is asked for and there is no NLMSG_DONE, comes last."
  @spec acks?(NetlinkPort.protocol(), 0..0xFFFF) :: boolean()
  def acks?(protocol, type) do
    case Arguments.protocol!(protocol) do
      # The ack of a query comes before its answer, which a kernel thread sends.
      @audit -> type not in @audit_queries
      @fib_lookup -> false
      @connector -> false
      _other -> true
    end
  end

  @doc "Whether a message is the whole answer although it has NLM_F_MULTI."
  @spec alone?(NetlinkPort.protocol(), 0..0xFFFF, 0..0xFFFF) :: boolean()
  def alone?(protocol, type, flags) do
    Arguments.protocol!(protocol) == @netfilter and (flags &&& @dump) == 0 and
      Enum.member?(@flagged_alone, type >>> 8)
  end

  @doc """
  Whether the kernel answers such a message with a dump. A socket has one dump at a time, and the kernel refuses the
  next with EBUSY. The bits of NLM_F_DUMP are those of NLM_F_REPLACE and NLM_F_EXCL in a command.

      iex> import NetlinkPort.Request.Family, only: [dump?: 3]
      iex> {dump?(:route, 18, 0x300), dump?(:route, 16, 0x300), dump?(:netfilter, 0x607, 0)}
      {true, false, true}
  """
  @spec dump?(NetlinkPort.protocol(), 0..0xFFFF, 0..0xFFFF) :: boolean()
  def dump?(protocol, type, flags) do
    number = Arguments.protocol!(protocol)

    cond do
      number == @netfilter and type in @ipset_dumps -> true
      type < @min_type or (flags &&& @dump) == 0 -> false
      number in [@route, @netfilter, @xfrm, @sock_diag, @crypto] -> dumps?(number, type)
      true -> (flags &&& @dump) == @dump
    end
  end

  # These look for any bit of NLM_F_DUMP.
  defp dumps?(@route, type), do: (type &&& 3) == 2
  defp dumps?(@xfrm, type), do: type in @xfrm_dumps
  defp dumps?(@sock_diag, type), do: type != @sock_destroy
  defp dumps?(@crypto, type), do: type == @getalg

  defp dumps?(@netfilter, type) do
    case type >>> 8 do
      @nf_tables -> nf_tables(type &&& 0xFF) == :answers
      subsystem -> Enum.member?(Map.get(@netfilter_dumps, subsystem, []), type &&& 0xFF)
    end
  end

  @doc """
  Whether a dump that has nothing is an ack alone. CTA_EXPECT_MASTER may name an entry that can have no expectations:
  the kernel then begins no dump.
  """
  @spec empty?(NetlinkPort.protocol(), 0..0xFFFF) :: boolean()
  def empty?(protocol, type), do: Arguments.protocol!(protocol) == @netfilter and type == @exp_get

  @doc """
  The capability whose lack the kernel answers with EPERM.

      iex> import NetlinkPort.Request.Family, only: [capability: 2]
      iex> {capability(:route, 16), capability(:audit, 1000), capability(:audit, 1112)}
      {:net_admin, :audit_control, :audit_write}
  """
  @spec capability(NetlinkPort.protocol(), 0..0xFFFF) :: atom()
  def capability(protocol, type) do
    case Arguments.protocol!(protocol) do
      @audit when type == @audit_user or type in 1100..1199 or type in 2100..2999 -> :audit_write
      @audit -> :audit_control
      @kobject_uevent -> :sys_admin
      _other -> :net_admin
    end
  end

  @doc "Whether a message begins or ends a batch of nf_tables."
  @spec batch_limit?(NetlinkPort.protocol(), 0..0xFFFF) :: boolean()
  def batch_limit?(protocol, type) do
    type in @batch_limits and Arguments.protocol!(protocol) == @netfilter
  end

  @doc "Whether the kernel may answer only the first message of a datagram of several requests."
  @spec first_only?(NetlinkPort.protocol()) :: boolean()
  def first_only?(protocol), do: Arguments.protocol!(protocol) == @netfilter

  @doc "Whether the kernel reads all messages of a datagram, each on its own (`netlink_rcv_skb`), and for any sender."
  @spec reads_all?(NetlinkPort.protocol()) :: boolean()
  def reads_all?(protocol),
    do: Arguments.protocol!(protocol) in [@route, @sock_diag, @xfrm, @generic]

  @doc "Returns what a message with the number of such a request may be."
  @spec class(NetlinkPort.protocol(), 0..0xFFFF, 0..0xFFFF) :: LateAnswers.class()
  def class(protocol, type, flags) do
    case {Arguments.protocol!(protocol), type} do
      {@xfrm, type} -> if type in @xfrm_queries, do: :answers, else: :changes
      {_protocol, _type} when (flags &&& @echo) != 0 -> :echoes
      {@route, type} when type >= @min_type and type != @setdcb -> route(type)
      {@netfilter, type} when type in @batch_limits -> :changes
      {@netfilter, type} when type >>> 8 == @nf_tables -> nf_tables(type &&& 0xFF)
      _other -> :answers
    end
  end

  # The two lowest bits of rtnetlink's types: NEW, DEL, GET, SET.
  defp route(type) when (type &&& 3) == 2, do: :answers
  defp route(_type), do: :changes

  defp nf_tables(message) when message in @nf_tables_changes, do: :changes
  defp nf_tables(_message), do: :answers

  @doc """
  Returns why the kernel silently ignores a message, or `nil`. When an ack is asked for, the kernel acks the message as
  if it had been carried out.

      iex> NetlinkPort.Request.Family.ignored(:netfilter, 0xA01, 2, true)
      "the kernel ignores it: its payload has 2 bytes, and struct nfgenmsg, which it begins with, has 4"
      iex> NetlinkPort.Request.Family.ignored(:netfilter, 0xA01, 4, true)
      nil
  """
  @spec ignored(NetlinkPort.protocol(), 0..0xFFFF, non_neg_integer(), boolean()) ::
          String.t() | nil
  def ignored(protocol, type, size, ack?) do
    number = Arguments.protocol!(protocol)

    cond do
      number == @connector -> silent(protocol)
      type < @min_type and number != @fib_lookup -> skipped(number, ack?)
      true -> short(least(number), size)
    end
  end

  @doc "Returns the error of a message that the kernel silently ignores, or `nil`."
  @spec ignored_error(NetlinkPort.protocol(), Message.t()) :: Error.t() | nil
  def ignored_error(protocol, %Message{type: type, payload: payload, flags: flags}) do
    why = ignored(protocol, type, IO.iodata_length(payload), (flags &&& @ack) != 0)
    if why, do: Error.new(:request, :einval, hint: why)
  end

  @doc "Returns why no message of a family is ever answered, or `nil`."
  @spec silent(NetlinkPort.protocol()) :: String.t() | nil
  def silent(protocol) do
    if Arguments.protocol!(protocol) == @connector,
      do:
        "the connector acks nothing, and what it sends does not have the number of a request; " <>
          "send it with send/3, and read what comes with recv/2"
  end

  @skipping [@route, @sock_diag, @xfrm, @netfilter, @kobject_uevent, @generic, @rdma, @crypto]

  defp skipped(number, false) when number in @skipping do
    "the kernel skips types below 16, control messages, and acks them only where it is asked to"
  end

  defp skipped(_number, _ack?), do: nil

  defp least(@route), do: {1, "struct rtgenmsg"}
  defp least(@netfilter), do: {4, "struct nfgenmsg"}
  defp least(@fib_lookup), do: {20, "struct fib_result_nl"}
  defp least(_other), do: {0, ""}

  defp short({least, _name}, size) when size >= least, do: nil

  defp short({least, name}, size) do
    "the kernel ignores it: its payload has #{size} bytes, and #{name}, which it begins with, " <>
      "has #{least}"
  end
end
