defmodule NetlinkPort.Capability do
  @moduledoc false
  # Sets of capabilities as the kernel writes them: a number with a bit for each. capabilities(7).

  import Bitwise, only: [&&&: 2, <<<: 2]

  # include/uapi/linux/capability.h
  @names ~w(chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap
            linux_immutable net_bind_service net_broadcast net_admin net_raw ipc_lock
            ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot
            sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write
            audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend
            audit_read perfmon bpf checkpoint_restore)a

  @typedoc "A set of capabilities: bit N stands for capability number N."
  @type set :: non_neg_integer()

  @doc "The names of the capabilities in a set."
  @spec names(set()) :: [atom()]
  def names(set), do: for(name <- @names, in?(set, name), do: name)

  @doc "Whether a set holds a capability."
  @spec in?(set(), atom()) :: boolean()
  def in?(set, name) do
    number = Enum.find_index(@names, &(&1 == name))
    (set &&& 1 <<< number) != 0
  end

  @doc "The capability of a name such as `sys_admin`; `nil` for an unknown name."
  @spec named(String.t()) :: atom() | nil
  def named(name), do: Enum.find(@names, &(Atom.to_string(&1) == name))

  @doc "The name as the manual pages write it: `CAP_SYS_ADMIN` for `:sys_admin`."
  @spec shown(atom()) :: String.t()
  def shown(name), do: "CAP_" <> (name |> Atom.to_string() |> String.upcase())
end
