#!/bin/sh
# What SIGTERM does to a program that unshare(1) runs with --fork. unshare blocks SIGTERM and SIGINT while it waits for the
# program. With --pid the program is process 1 of its pid namespace, and the kernel gives process 1 no signal that it
# has no handler for. So a supervisor, timeout(1) or Ctrl-C ends neither of the two, even if the whole process group gets the
# signal, and --kill-child, "kill when dying", has nothing to act on. SIGKILL of unshare ends both with --kill-child, and
# without it the program goes on without a parent.
#                                         SIGTERM to unshare   SIGTERM to the group   SIGKILL to unshare
#   unshare --fork                        both go on           both end               the program goes on
#   unshare --pid --fork                  both go on           both go on             the program goes on
#   unshare --pid --fork --kill-child     both go on           both go on             both end
# Seen with util-linux 2.38.1 of Debian 12 on Linux 6.18. Needs root (for namespaces) and python3.
set -eu
unshare --version
seen=$(python3 - <<'PYTHON'
import os
import signal
import subprocess
import time

def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

def within(seconds, condition):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()

def child(pid):
    return [int(word) for word in open(f"/proc/{pid}/task/{pid}/children").read().split()]

for launcher in (["unshare", "--fork"], ["unshare", "--pid", "--fork"], ["unshare", "--pid", "--fork", "--kill-child"]):
    for what in ("SIGTERM", "SIGTERM to the group", "SIGKILL"):
        run = subprocess.Popen([*launcher, "sleep", "60"], start_new_session=True)
        within(20, lambda: any(open(f"/proc/{pid}/comm").read() == "sleep\n" for pid in child(run.pid)))
        [program] = child(run.pid)
        number = getattr(signal, what.split()[0])
        (os.killpg if "group" in what else os.kill)(run.pid, number)
        ends = []
        for name, ended in (("unshare", lambda: run.poll() is not None), ("the program", lambda: not alive(program))):
            ends.append(f"{name} {'ends' if within(2, ended) else 'goes on'}")
        print(f"{' '.join(launcher)}, {what}: {', '.join(ends)}")
        for pid in (program, run.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        run.wait()
PYTHON
)
echo "$seen"
expected="unshare --fork, SIGTERM: unshare goes on, the program goes on
unshare --fork, SIGTERM to the group: unshare ends, the program ends
unshare --fork, SIGKILL: unshare ends, the program goes on
unshare --pid --fork, SIGTERM: unshare goes on, the program goes on
unshare --pid --fork, SIGTERM to the group: unshare goes on, the program ${EXPECTED:-goes on}
unshare --pid --fork, SIGKILL: unshare ends, the program goes on
unshare --pid --fork --kill-child, SIGTERM: unshare goes on, the program goes on
unshare --pid --fork --kill-child, SIGTERM to the group: unshare goes on, the program goes on
unshare --pid --fork --kill-child, SIGKILL: unshare ends, the program ends"
[ "$seen" = "$expected" ] || { echo "changed" >&2; exit 1; }
