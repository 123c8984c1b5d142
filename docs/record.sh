#!/bin/sh
# Records `make demo` and writes docs/demo.svg, for `make recording`. Needs root, asciinema, python3 and npx.
#
# The demo takes four seconds: it is shown more slowly, a line at a time, so that it can be read. It begins with
# its last screen, which is also all that who prefers reduced motion sees.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

mix compile
asciinema rec --quiet --overwrite --cols 122 --rows 32 --command 'make --no-print-directory demo' "$folder/fast.cast" </dev/null

python3 - "$folder/fast.cast" >"$folder/slow.cast" <<'PYTHON'
import json
import sys

header, *events = [json.loads(line) for line in open(sys.argv[1])]
text = "".join(data for _, kind, data in events if kind == "o")
now = 0.0


def show(line, seconds):
    global now
    print(json.dumps([round(now, 3), "o", line]))
    now += seconds


print(json.dumps(header))
show("$ make demo\r\n", 0.8)
for line in text.splitlines(keepends=True):
    show(line, 1.3 if not line.strip() else 0.45 if "$ " in line else 0.13)
show("", 6)
show(" ", 0)
PYTHON

npx --yes svg-term-cli@2.1.1 --in "$folder/slow.cast" --out "$folder/demo.svg" --window --no-cursor
python3 - "$folder/demo.svg" >docs/demo.svg <<'PYTHON'
import re
import sys

svg = open(sys.argv[1]).read()
last = re.search(r"to\{transform:(translateX\([^)]*\))", svg).group(1)
seconds = float(re.search(r"animation-duration:([0-9.]+)s", svg).group(1))
svg = svg.replace("animation-duration:", f"animation-delay:-{seconds - 4:.1f}s;animation-duration:", 1)
still = f"@media (prefers-reduced-motion:reduce){{g[style]{{animation:none!important;transform:{last}}}}}"
print(svg.replace("<style>", f"<title>make demo</title><style>{still}", 1))
PYTHON
