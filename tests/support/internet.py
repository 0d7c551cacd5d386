"""An Internet of one namespace: servers that speak what they are asked in, and how a host fares with them.

A way is written `KIND/PORT/ADDRESS`: `tcp` and `udp` are echoed; `quic` is a handshake and a stream (RFC 9000); `dns`,
`dnstcp`, `dot` and `doh` ask a resolver for a name of TikTok's (RFC 1035, 7766, 7858, 8484).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import trustme

#: What has a server send datagrams, one after the other, to whoever sent it, for so many seconds.
POUR, POURING = b"pour", 8.0
#: Seconds that a server has to answer.
PATIENCE = 3.0
#: What is asked, and of kdig how.
NAME, HOW = "www.tiktok.com", {"dns": "+notcp", "dnstcp": "+tcp", "dot": "+tls", "doh": "+https"}
#: What is spoken inside QUIC here.
PROTOCOL = ["echo"]


def family(address: str) -> socket.AddressFamily:
    """Give the family of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def certificate(directory: Path) -> tuple[Path, Path]:
    """Write a certificate that nobody need believe; give its file and its key's."""
    issued = trustme.CA().issue_cert("server.example")
    files = directory / "server.crt", directory / "server.key"
    files[0].write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(files[1])
    return files


def unbound(directory: Path, addresses: Iterable[str], records: Iterable[str]) -> list[str]:
    """Write the configuration of a resolver that speaks all that it can; give the command that runs it."""
    pem, key = certificate(directory)
    lines = ['chroot: ""', 'username: ""', f'pidfile: "{directory}/unbound.pid"', "use-syslog: no", "num-threads: 1"]
    lines += ["access-control: 0.0.0.0/0 allow", "access-control: ::/0 allow", 'module-config: "iterator"']
    lines += [f'tls-service-pem: "{pem}"', f'tls-service-key: "{key}"', "tls-port: 853", "https-port: 443"]
    lines += [f"interface: {address}@{port}" for address in addresses for port in (53, 853, 443)]
    lines += [f'local-zone: "{NAME}." static', *(f'local-data: "{NAME}. {record}"' for record in records)]
    file = directory / "unbound.conf"
    file.write_text("server:\n" + "".join(f"  {line}\n" for line in lines))
    return ["unbound", "-d", "-c", str(file)]


def serve(ways: list[str]) -> None:
    """Answer what comes these ways, until it is killed."""
    poller = select.poll()
    sockets: dict[int, socket.socket] = {}
    for way in ways:
        kind, port, address = way.split("/")
        one = socket.socket(family(address), socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, int(port)))
        if kind == "tcp":
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


async def serve_quic(ways: list[str], directory: Path) -> None:
    """Echo the first that comes on a stream, on all of these, until it is killed."""
    from aioquic.asyncio.server import serve as listen
    from aioquic.quic.configuration import QuicConfiguration

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.write_eof()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(echo(reader, writer)))

    tasks: list[asyncio.Future[None]] = []
    configuration = QuicConfiguration(is_client=False, alpn_protocols=PROTOCOL)
    configuration.load_cert_chain(*certificate(directory))
    for way in ways:
        _, port, address = way.split("/")
        await listen(address, int(port), configuration=configuration, stream_handler=handle)
    await asyncio.Event().wait()


async def reach_quic(address: str, port: int) -> str:
    """Shake hands and have something echoed."""
    from aioquic.asyncio.client import connect
    from aioquic.quic.configuration import QuicConfiguration

    configuration = QuicConfiguration(alpn_protocols=PROTOCOL, verify_mode=ssl.CERT_NONE, idle_timeout=PATIENCE)
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(PATIENCE), connect(address, port, configuration=configuration) as client:
            reader, writer = await client.create_stream()
            writer.write(b"x")
            writer.write_eof()
            if await reader.read(100) == b"x":
                return "answers"
    return "refused"


def reach(way: str) -> str:
    """Say whether a server answers: `answers`, `refused`, or `silent`."""
    kind, port, address = way.split("/")
    if kind == "quic":
        return asyncio.run(reach_quic(address, int(port)))
    if kind in HOW:
        words = ["kdig", f"@{address}", "-p", port, HOW[kind], "+retry=0", f"+timeout={PATIENCE:.0f}", "+short", NAME]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        return "answers" if done.stdout.strip()[:1].isdigit() else "refused"
    with socket.socket(family(address), socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as one:
        one.settimeout(PATIENCE)
        try:
            one.connect((address, int(port)))
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
    with socket.socket(family(address), socket.SOCK_DGRAM) as one:
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
    elif sys.argv[1] == "quic":
        asyncio.run(serve_quic(sys.argv[3:], Path(sys.argv[2])))
    elif sys.argv[1] in ("stay", "pour"):
        (stay if sys.argv[1] == "stay" else pour)(sys.argv[2], int(sys.argv[3]))
    else:
        with ThreadPoolExecutor(8) as pool:
            for outcome in pool.map(reach, sys.argv[2:]):
                print(outcome, flush=True)
