#!/bin/sh
# file:change_mode/2 of OTP (File.chmod/2 of Elixir) removes the capabilities of a file, even if it sets the mode that the
# file has. chmod(2) leaves them. OTP calls chown(2) with -1 and -1 first, and the kernel removes security.capability in
# any chown(2). The same holds for file:write_file_info/2 with nothing but a mode, and for file:change_time/2. So a
# program that is given capabilities by setcap(8), and then its mode from Erlang, has none. No call reports an error.
# Seen with OTP 25.2.3 on Linux 6.18. Needs root (for setcap), erl, setcap(8) and getcap(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
expected="chmod(1): cap_net_admin=ep
change_mode: ok, ${EXPECTED:-none}
write_file_info of the mode: ok, none
change_time: ok, none"

# $1 is what is done to the file F.
after() {
  install -m 0755 /bin/true "$folder/f"
  setcap cap_net_admin+ep "$folder/f"
  (cd "$folder" && F=f erl -noshell -eval "
    F = \"f\",
    io:format(\"~p, \", [$1]),
    init:stop().")
  getcap "$folder/f" | sed 's/.* //' | grep . || echo none
}

install -m 0755 /bin/true "$folder/f"
setcap cap_net_admin+ep "$folder/f"
chmod 0700 "$folder/f"
seen="chmod(1): $(getcap "$folder/f" | sed 's/.* //')
change_mode: $(after 'file:change_mode(F, 8#755)')
write_file_info of the mode: $(after 'begin {ok, I} = file:read_file_info(F), file:write_file_info(F, setelement(8, erlang:make_tuple(14, undefined, [{1, file_info}]), element(8, I))) end')
change_time: $(after 'file:change_time(F, {{2026, 1, 1}, {0, 0, 0}})')"
echo "$seen"
[ "$seen" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
