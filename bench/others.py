"""The work of bench/others.exs by pyroute2: microseconds, a line each."""

import sys
import time

from pyroute2 import NetNS


def median(count, work):
    times = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[count // 2] * 1e6


def opened():
    NetNS(name, flags=0).close()


name = sys.argv[1]
with NetNS(name, flags=0) as netns:
    print("request %.1f" % median(300, lambda: netns.get_links(1)))
    print("dump %.1f" % median(3, lambda: netns.get_routes(family=2)))
print("open %.1f" % median(10, opened))
