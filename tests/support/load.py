"""A steady load of one question from several sockets: ``python -m tests.support.load ADDRESS PORT SECONDS RATE NAME``.

Prints how many were sent and answered, and by which response codes. Nothing is asked twice: what is lost stays lost.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections import Counter

import dns.message

SOCKETS = 16
#: Octets of each socket's receive buffer: what was asked during a restart is answered at once, and must find room here.
BUFFER = 4 << 20
#: `SO_RCVBUFFORCE` of Linux, which Python does not name: as root, also above the system's limit.
RECEIVE_BUFFER_FORCE = 33
#: Seconds that the last answers have.
PATIENCE = 4.0


def run(host: str, port: int, seconds: float, rate: int, name: str) -> dict[str, object]:
    """Ask `rate` times a second; each query has an ID and a socket of its own."""
    wire = bytearray(dns.message.make_query(name, "A", use_edns=0).to_wire())
    selector = selectors.DefaultSelector()
    sockets = []
    for _ in range(SOCKETS):
        one = socket.socket(type=socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, RECEIVE_BUFFER_FORCE, BUFFER)
        one.connect((host, port))
        one.setblocking(False)
        selector.register(one, selectors.EVENT_READ)
        sockets.append(one)
    sent, codes, open_ids = 0, Counter[int](), set[tuple[int, int]]()
    longest = 0.0
    asked_at: dict[tuple[int, int], float] = {}
    started = time.monotonic()
    while True:
        now = time.monotonic()
        is_sending = now < started + seconds
        if not is_sending and (not open_ids or now > started + seconds + PATIENCE):
            break
        while is_sending and sent < (now - started) * rate:
            at = sent % SOCKETS
            number = sent // SOCKETS % 65536
            wire[:2] = number.to_bytes(2, "big")
            try:
                sockets[at].send(wire)
            except ConnectionRefusedError:
                sockets[at].send(wire)
            open_ids.add((sockets[at].fileno(), number))
            asked_at[sockets[at].fileno(), number] = now
            sent += 1
        for key, _ in selector.select(0.001):
            while True:
                try:
                    reply = key.fileobj.recv(4096)  # type: ignore[union-attr]
                except (BlockingIOError, ConnectionRefusedError):
                    break
                place = (key.fd, int.from_bytes(reply[:2], "big"))
                if place in open_ids:
                    open_ids.discard(place)
                    codes[reply[3] & 15] += 1
                    longest = max(longest, time.monotonic() - asked_at[place])
    for one in sockets:
        one.close()
    return {"sent": sent, "lost": len(open_ids), "codes": dict(codes), "longest": round(longest, 3)}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5])))
