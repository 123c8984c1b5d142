#!/bin/sh
# A routing policy rule of priority 0 that is listed, deleted and added again as it was listed is no longer the first.
# The kernel leaves FRA_PRIORITY out of such a rule, and takes a rule without the attribute for one whose priority it may
# choose: one less than that of the second rule in the list, as a rule 32765. No call fails. This is so with
# - libnl: an object of a cache of rules, whose rtnl_rule_get_prio() is 0, given to rtnl_rule_add() as it is;
# - pyroute2: the priority of the listed rule is None, and rule("add", priority=None) is accepted.
# The rule of the table "local" has priority 0, too. It comes back behind the rule of the table "main", whose routes then
# hide the own addresses. A program that restores rules has to set the priority to 0 where it is absent: it is sent then.
# Seen with libnl 3.7.0 and pyroute2 0.9.5 on Linux 6.18. Needs root (for a network namespace), gcc, python3, ip(8) and
# the network for packages.
set -eu
packages='gcc libc6-dev libnl-3-dev libnl-route-3-dev'
for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || missing="${missing:-} $package"; done
if [ -n "${missing:-}" ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pip="python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps"
$pip --target "$folder/python" pyroute2==0.9.5
export PYTHONPATH="$folder/python"
dpkg-query -W -f='${Package} ${Version}\n' libnl-route-3-dev
uname -sr

cat >"$folder/again.c" <<'C'
#include <netlink/cache.h>
#include <netlink/netlink.h>
#include <netlink/route/rule.h>
#include <stdlib.h>

int main(int count, char **arguments) {
  struct nl_sock *socket = nl_socket_alloc();
  struct nl_cache *rules;
  if (nl_connect(socket, NETLINK_ROUTE) || rtnl_rule_alloc_cache(socket, AF_INET, &rules)) return 1;
  for (struct nl_object *object = nl_cache_get_first(rules); object; object = nl_cache_get_next(object)) {
    struct rtnl_rule *rule = (struct rtnl_rule *)object;
    if (rtnl_rule_get_table(rule) != (unsigned)atoi(arguments[1])) continue;
    if (count > 2) rtnl_rule_set_prio(rule, rtnl_rule_get_prio(rule));
    return rtnl_rule_delete(socket, rule, 0) || rtnl_rule_add(socket, rule, NLM_F_CREATE | NLM_F_EXCL);
  }
  return 1;
}
C
gcc -o "$folder/again" "$folder/again.c" -I/usr/include/libnl3 -lnl-3 -lnl-route-3
cat >"$folder/again.py" <<'PYTHON'
from pyroute2 import IPRoute

route = IPRoute()
rule = next(rule for rule in route.get_rules(family=2) if rule.get("table") == 10)
listed = {name: rule.get(name) for name in ("table", "fwmark", "priority")}
route.rule("del", **listed)
route.rule("add", **listed)
PYTHON
cat >"$folder/rules.sh" <<'SHELL'
again() { # TITLE COMMAND...
  title=$1
  shift
  ip rule add pref 0 fwmark 5 table 10
  "$@"
  echo "$title: from 0 to $(ip rule | sed -n 's/:.*lookup 10$//p')"
  ip rule del table 10
}
set -eu
cd "$1"
again libnl ./again 10
again "libnl, with the priority set" ./again 10 set
again pyroute2 python3 again.py
./again 255
ip rule | sed -n 's/.*lookup //p' | xargs echo the order after libnl:
SHELL
seen=$(unshare --net sh "$folder/rules.sh" "$folder")
echo "$seen"
expected="libnl: from 0 to ${EXPECTED:-32765}
libnl, with the priority set: from 0 to 0
pyroute2: from 0 to 32765
the order after libnl: main local default"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
