#!/bin/sh
# What was seen on Linux 6.18: the process events of the connector (drivers/connector/cn_proc.c) answer
# PROC_CN_MCAST_LISTEN and its like with an event, PROC_EVENT_NONE. Its `ack` is one more than that of the
# request, as documented; its `seq` is not that of the request but the count of the processor's events, so
# that it cannot be matched by it. A request that it does not know is EINVAL in that event, as a positive
# number, and is told to every listener. NLM_F_ACK is ignored.
#
# Root in the first namespaces; python3.
set -eu

python3 - "${EXPECTED:-0x51ff}" <<'PYTHON'
import os, socket, struct, sys

SEQ, ACK, CN_PROC, DONE, NLM_F_ACK = 0x7F000001, int(sys.argv[1], 0), 1, 3, 4

def answer(operation):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 11) as connector:
        connector.settimeout(10)
        connector.bind((0, CN_PROC))
        request = struct.pack("=IIIIHHI", CN_PROC, CN_PROC, SEQ, 0x51FF, 4, 0, operation)
        header = struct.pack("=IHHII", 16 + len(request), DONE, NLM_F_ACK, SEQ, os.getpid())
        connector.send(header + request)
        while True:
            datagram = connector.recv(4096)
            seq, ack, _size, _flags = struct.unpack_from("=IIHH", datagram, 24)
            what, = struct.unpack_from("=I", datagram, 36)
            error, = struct.unpack_from("=I", datagram, 52)
            if what == 0 and ack == ACK + 1:
                return seq, error

for operation, errno in ((1, 0), (77, 22)):
    seq, error = answer(operation)
    print(f"as seen: operation {operation}: errno {error}, seq {'its own' if seq != SEQ else 'of the request'}")
    if seq == SEQ or error != errno:
        sys.exit("changed")
PYTHON
echo "kernel $(uname -r)"
