#!/bin/sh
# What the death of a program by a signal looks like behind a launcher. unshare(1) --fork repeats the signal on itself,
# and for SIGKILL it fails in doing so: "sigprocmask unblock failed: Invalid argument", and exit status 1.
# So a program in namespaces that the kernel kills for want of memory, or that a supervisor kills, has the exit status
# 1, which is that of a program that ended by itself, and the sentence blames unshare.
#                                   SIGKILL    other signals
#   unshare --fork                  status 1   the signal
#   nsenter --pid, setsid --wait    the signal the signal
#   bwrap                           137        128 and the number
# Seen with util-linux 2.38.1 and bubblewrap 0.8.0 of Debian 12 on Linux 6.18. Needs root (for namespaces), python3 and
# bwrap(1).
set -eu
command -v bwrap >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends bubblewrap >/dev/null; }
unshare --version
bwrap --version
seen=$(python3 - <<'PYTHON'
import os
import signal
import subprocess

LAUNCHERS = [["unshare", "--fork"], ["nsenter", f"--target={os.getpid()}", "--pid"], ["setsid", "--wait"],
             ["bwrap", "--bind", "/", "/"]]
for launcher in LAUNCHERS:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
        result = subprocess.run([*launcher, "sh", "-c", f"ulimit -c 0; kill -{int(number)} $$; exec sleep 0"],
                                capture_output=True, text=True)
        ended = f"status {result.returncode}" if result.returncode >= 0 else signal.Signals(-result.returncode).name
        print(f"{launcher[0]}, {number.name}: {ended} {result.stderr.strip()}".rstrip())
PYTHON
)
echo "$seen"
expected="unshare, SIGKILL: ${EXPECTED:-status 1 unshare: sigprocmask unblock failed: Invalid argument}
unshare, SIGTERM: SIGTERM
unshare, SIGSEGV: SIGSEGV
nsenter, SIGKILL: SIGKILL
nsenter, SIGTERM: SIGTERM
nsenter, SIGSEGV: SIGSEGV
setsid, SIGKILL: SIGKILL
setsid, SIGTERM: SIGTERM
setsid, SIGSEGV: SIGSEGV
bwrap, SIGKILL: status 137
bwrap, SIGTERM: status 143
bwrap, SIGSEGV: status 139"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
