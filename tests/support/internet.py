"""An Internet of one namespace: every address is a server that answers on every port that matters."""

from __future__ import annotations

import select
import socket
import sys
import time

#: What has a server send datagrams, one after the other, to whoever sent it, for so many seconds.
POUR, POURING = b"pour", 8.0
#: TCP and UDP: HTTPS and QUIC, DNS over TLS and QUIC, DNS.
PORTS = (443, 853, 53)


def serve(addresses: list[str]) -> None:
    """Answer what comes, on these addresses, until it is killed."""
    poller = select.poll()
    sockets: dict[int, socket.socket] = {}
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for port in PORTS:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                one = socket.socket(family, kind)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((address, port))
                if kind == socket.SOCK_STREAM:
                    one.listen(64)
                sockets[one.fileno()] = one
                poller.register(one, select.POLLIN)
    listening = set(sockets)
    print("ready", flush=True)
    pouring: list[tuple[socket.socket, tuple[str, int], float]] = []
    while True:
        pouring = [each for each in pouring if each[2] > time.monotonic()]
        for one, to, _ in pouring:
            one.sendto(b"x" * 100, to)
        for descriptor, _ in poller.poll(20 if pouring else None):
            one = sockets[descriptor]
            if one.type == socket.SOCK_DGRAM:
                data, peer = one.recvfrom(2048)
                one.sendto(data, peer)
                if data == POUR:
                    pouring.append((one, peer, time.monotonic() + POURING))
            elif descriptor in listening:
                new, _ = one.accept()
                sockets[new.fileno()] = new
                poller.register(new, select.POLLIN)
            else:
                try:
                    data = one.recv(2048)
                    if data:
                        one.sendall(data)
                except OSError:
                    data = b""
                if not data:
                    poller.unregister(descriptor)
                    sockets.pop(descriptor).close()


def reach(kind: str, address: str, port: int) -> str:
    """Say whether a server answers there: `answers`, `refused`, or `silent`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as one:
        one.settimeout(3)
        try:
            one.connect((address, port))
            one.send(b"x" * 40)
            return "answers" if one.recv(100) else "refused"
        except TimeoutError:
            return "silent"
        except OSError:
            return "refused"


def stay(address: str, port: int) -> None:
    """Keep a connection busy until it ends, and say when that was."""
    with socket.create_connection((address, port), timeout=3) as one:
        print("open", flush=True)
        try:
            while True:
                one.send(b"x")
                one.recv(100)
                time.sleep(0.02)
        except OSError:
            print(time.time(), flush=True)


def pour(address: str, port: int) -> None:
    """Have a server send and say nothing more; print when the last came."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(1.0)
        one.connect((address, port))
        one.send(POUR)
        one.recv(200)
        print("open", flush=True)
        last = time.time()
        try:
            while True:
                one.recv(200)
                last = time.time()
        except OSError:
            print(last, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2:])
    elif sys.argv[1] in ("stay", "pour"):
        (stay if sys.argv[1] == "stay" else pour)(sys.argv[2], int(sys.argv[3]))
    else:
        for wanted in sys.argv[2:]:
            kind, port, address = wanted.split("/")
            print(reach(kind, address, int(port)), flush=True)
