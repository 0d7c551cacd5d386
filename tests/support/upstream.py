"""A scripted upstream: UDP and TCP on one port, records what it was asked, answers as the test says."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset


@dataclass(frozen=True)
class Asked:
    """One query that came."""

    id: int
    port: int
    name: str
    qtype: str
    wire: bytes
    tcp: bool
    at: float


Reply = bytes | None
#: Gives what to send for a query: octets, several of them, or nothing.
Script = Callable[[dns.message.Message, "Asked"], "Reply | list[bytes]"]


def answer(query: dns.message.Message, *records: str, authority: tuple[str, ...] = (), rcode: int = 0) -> bytes:
    """Build an answer from records in presentation form."""
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(dns.rcode.Rcode(rcode))
    for section, texts in ((response.answer, records), (response.authority, authority)):
        for text in texts:
            owner, ttl, _, kind, rdata = text.split(maxsplit=4)
            section.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, rdata))
    return response.to_wire(max_size=65535)


class Upstream:
    """Use it as a context; `script` may be changed at any time."""

    def __init__(self, script: Script | dict[str, list[str]] | None = None, host: str = "127.0.0.1", port: int = 0):
        """Answer by a script, or from records by name (all types; A and AAAA by their type)."""
        self.records: dict[str, list[str]] = script if isinstance(script, dict) else {}
        self.script: Script = script if callable(script) else self._from_records
        #: Addresses of ipv4only.arpa (RFC 7050), and how often it was asked for: it is not in `asked`.
        self.nat64: list[str] = []
        self.nat64_asked = 0
        self.asked: list[Asked] = []
        self.delay = 0.0
        self._is_stopping = False
        for _ in range(50):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._udp = socket.socket(family, socket.SOCK_DGRAM)
            self._udp.bind(socket.getaddrinfo(host, port)[0][4])
            self.port: int = self._udp.getsockname()[1]
            self._tcp = socket.socket(family)
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._tcp.bind(socket.getaddrinfo(host, self.port)[0][4])
                break
            except OSError:
                self._udp.close()
                self._tcp.close()
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._tcp.listen(128)
        self._udp.settimeout(0.1)
        self._tcp.settimeout(0.1)
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._serve_udp, self._serve_tcp)]

    def __enter__(self) -> Upstream:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._is_stopping = True
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()

    def names(self) -> list[str]:
        """Name what was asked, in order."""
        return [asked.name for asked in self.asked]

    def _from_records(self, query: dns.message.Message, asked: Asked) -> Reply:
        qtype = asked.qtype
        rows: list[str] = []
        name = asked.name
        for _ in range(32):
            own = [row for row in self.records.get(name, ()) if row.split()[3] in (qtype, "CNAME", "DNAME")]
            rows += own
            alias = [row for row in own if row.split()[3] == "CNAME" and qtype != "CNAME"]
            if not alias:
                break
            name = alias[0].split()[4].rstrip(".")
        if rows:
            return answer(query, *rows)
        known = any(key == name or key.endswith("." + name) for key in self.records)
        soa = (f"{name.split('.')[-1]}. 60 IN SOA ns.invalid. host.invalid. 1 2 3 4 30",)
        return answer(query, authority=soa, rcode=0 if known else 3)

    def _reply(self, wire: bytes, port: int, is_tcp: bool) -> list[bytes]:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text().rstrip(".")
        kind = dns.rdatatype.to_text(question.rdtype)
        if name == "ipv4only.arpa":
            self.nat64_asked += 1
            return [answer(query, *(f"{name}. 60 IN AAAA {address}" for address in self.nat64))]
        asked = Asked(query.id, port, name, kind, wire, is_tcp, time.monotonic())
        # Whether a server lives is asked by the root's name servers, at times that no test knows.
        if (name, kind) != ("", "NS"):
            self.asked.append(asked)
        if self.delay:
            time.sleep(self.delay)
        made: Any = self.script(query, asked)
        return [] if made is None else made if isinstance(made, list) else [made]

    def _serve_udp(self) -> None:
        while not self._is_stopping:
            try:
                wire, peer = self._udp.recvfrom(65535)
            except TimeoutError:
                continue
            for reply in self._reply(wire, peer[1], False):
                self._udp.sendto(reply, peer)

    def _serve_tcp(self) -> None:
        while not self._is_stopping:
            try:
                connection, peer = self._tcp.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(1)
                try:
                    (length,) = struct.unpack("!H", connection.recv(2))
                    wire = b""
                    while len(wire) < length:
                        wire += connection.recv(length - len(wire))
                    for reply in self._reply(wire, peer[1], True):
                        connection.sendall(struct.pack("!H", len(reply)) + reply)
                except (OSError, struct.error):
                    continue

    def send_from(self, host: str, packet: bytes, to_port: int) -> None:
        """Send octets from another address, as somebody who forges would."""
        with socket.socket(type=socket.SOCK_DGRAM) as forger:
            forger.bind((host, 0))
            forger.sendto(packet, ("127.0.0.1", to_port))

    def send(self, packet: bytes, to_port: int) -> None:
        """Send octets from the upstream's own address, at a time of the test's choosing."""
        self._udp.sendto(packet, ("127.0.0.1", to_port))
