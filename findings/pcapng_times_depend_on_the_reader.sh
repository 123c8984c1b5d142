#!/bin/sh
# The time of a packet in a pcapng file depends on the library that reads it, without an error. In the format each
# interface has a resolution (if_tsresol) and an offset (if_tsoffset) of its own, and each section begins interfaces
# anew; two files put together by cat(1) are a valid file. TShark and libpcap (tcpdump) do all of it. Others, for a
# packet of 2023-11-14 22:13:20.5:
#                                         scapy               python-pcapng     dpkt
#   if_tsoffset                           ignored             ignored           right
#   second interface, in ns               right               right             that of the first, year 55840
#   second section, in ns                 year 55840          right             year 55840
#   second section, after one with an     (ignored in both)   (ignored in both) the offset of the first added
#     offset
#   second section, in big-endian         of the first        right             not read at all
#   Simple Packet Block, without a time   the time of reading None              not read at all
# libpcap takes no section of the other byte order, and gives the Simple Packet Block the time 0.
# So captures of two machines, or of two interfaces of one, are put in order by times of different meaning.
# Seen with scapy 2.6.1, python-pcapng 2.1.1, dpkt 1.9.8, TShark 4.0.17 and tcpdump 4.99.3. Needs python3, tshark,
# tcpdump and the network for pip.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check scapy==2.6.1 python-pcapng==2.1.1 dpkt==1.9.8

cat >make.py <<'PYTHON'
import struct

T = 1700000000
FRAME = bytes.fromhex("ffffffffffff02000000000188b5") + b"payload."


def option(order, code, value):
    return struct.pack(order + "HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def block(order, kind, body):
    size = len(body) + 12
    return struct.pack(order + "II", kind, size) + body + struct.pack(order + "I", size)


def section(order="<"):
    return block(order, 0x0a0d0d0a, struct.pack(order + "IHHq", 0x1a2b3c4d, 1, 0, -1))


def interface(order="<", resolution=None, offset=None):
    options = b""
    if resolution is not None:
        options += option(order, 9, bytes([resolution]))
    if offset is not None:
        options += option(order, 14, struct.pack(order + "q", offset))
    return block(order, 1, struct.pack(order + "HHI", 1, 0, 65535) + options + (option(order, 0, b"") if options else b""))


def packet(time, number=0, order="<"):
    body = struct.pack(order + "IIIII", number, time >> 32, time & 0xffffffff, len(FRAME), len(FRAME)) + FRAME
    return block(order, 6, body + b"\0" * (-len(FRAME) % 4))


simple = block("<", 3, struct.pack("<I", len(FRAME)) + FRAME + b"\0" * (-len(FRAME) % 4))
micro, nano = T * 10**6 + 500000, T * 10**9 + 500000000
FILES = {
    "plain": [section(), interface(), packet(micro)],
    "offset": [section(), interface(offset=T), packet(500000)],
    "interfaces": [section(), interface(), interface(resolution=9), packet(micro), packet(nano, 1)],
    "sections": [section(), interface(), packet(micro), section(), interface(resolution=9), packet(nano)],
    "offset_first": [section(), interface(offset=3600), packet(micro - 3600 * 10**6), section(), interface(), packet(micro)],
    "order": [section(), interface(resolution=9), packet(nano), section(">"), interface(">"), packet(micro, 0, ">")],
    "simple": [section(), interface(), simple],
}
for name, blocks in FILES.items():
    with open(name + ".pcapng", "wb") as file:
        file.write(b"".join(blocks))
PYTHON
python3 make.py

cat >read.py <<'PYTHON'
import logging
import sys
import time

logging.disable(logging.CRITICAL)
import dpkt
from pcapng import FileScanner
from scapy.all import PcapNgReader

path = sys.argv[1]


def show(times):
    return " ".join("now" if t and abs(float(t) - time.time()) < 3600 else "none" if t is None else f"{float(t):.1f}" for t in times) or "-"


print("  scapy         " + show(packet.time for packet in PcapNgReader(path)))
with open(path, "rb") as file:
    blocks = [block for block in FileScanner(file) if hasattr(block, "packet_data")]
    print("  python-pcapng " + show(getattr(block, "timestamp", None) for block in blocks))
with open(path, "rb") as file:
    print("  dpkt          " + show(t for t, _data in dpkt.pcapng.Reader(file)))
PYTHON
for name in plain offset interfaces sections offset_first order simple; do
  echo "$name"
  echo "  tshark        $(tshark -r $name.pcapng -T fields -e frame.time_epoch 2>/dev/null | cut -c 1-12 | sed 's/^$/none/' | paste -sd ' ')"
  echo "  tcpdump       $(tcpdump -tt -r $name.pcapng 2>/dev/null | grep '^[0-9]' | cut -d ' ' -f 1 | sed 's/\(\..\).*/\1/' | paste -sd ' ')"
  venv/bin/python read.py $name.pcapng
done >seen
cat seen
cat >expected <<EXPECTED
plain
  tshark        1700000000.5
  tcpdump       1700000000.5
  scapy         1700000000.5
  python-pcapng 1700000000.5
  dpkt          1700000000.5
offset
  tshark        1700000000.5
  tcpdump       1700000000.5
  scapy         ${EXPECTED:-0.5}
  python-pcapng 0.5
  dpkt          1700000000.5
interfaces
  tshark        1700000000.5 1700000000.5
  tcpdump       1700000000.5 1700000000.5
  scapy         1700000000.5 1700000000.5
  python-pcapng 1700000000.5 1700000000.5
  dpkt          1700000000.5 1700000000500.0
sections
  tshark        1700000000.5 1700000000.5
  tcpdump       1700000000.5 1700000000.5
  scapy         1700000000.5 1700000000500.0
  python-pcapng 1700000000.5 1700000000.5
  dpkt          1700000000.5 1700000000500.0
offset_first
  tshark        1700000000.5 1700000000.5
  tcpdump       1700000000.5 1700000000.5
  scapy         1699996400.5 1700000000.5
  python-pcapng 1699996400.5 1700000000.5
  dpkt          1700000000.5 1700003600.5
order
  tshark        1700000000.5 1700000000.5
  tcpdump       1700000000.5
  scapy         1700000000.5 1700000.0
  python-pcapng 1700000000.5 1700000000.5
  dpkt          1700000000.5
simple
  tshark        none
  tcpdump       0.0
  scapy         now
  python-pcapng none
  dpkt          -
EXPECTED
diff expected seen >&2 || { echo "changed" >&2; exit 1; }
