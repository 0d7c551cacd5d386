"""Asks questions as a client would, from any loopback address."""

from __future__ import annotations

import socket
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

CORPORATE, PERSONAL, GUEST, STRANGER = "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.9"
PATIENCE = 5.0


def message(name: str, qtype: str = "A", **options: Any) -> dns.message.QueryMessage:
    """Make a question; EDNS is on unless `use_edns=False`."""
    options.setdefault("use_edns", 0)
    return dns.message.make_query(name, qtype, **options)


def ask(
    server: Any,
    name: str,
    qtype: str = "A",
    *,
    client: str = CORPORATE,
    tcp: bool = False,
    flags: int | None = None,
    timeout: float = PATIENCE,
    **options: Any,
) -> dns.message.Message:
    """Ask a server (anything with a `port`) and give its answer."""
    query = message(name, qtype, **options)
    if flags is not None:
        query.flags = dns.flags.Flag(flags)
    send = dns.query.tcp if tcp else dns.query.udp
    return send(query, "127.0.0.1", timeout=timeout, port=server.port, source=client)


def rcode(answer: dns.message.Message) -> str:
    """Name the response code."""
    return dns.rcode.to_text(answer.rcode())


def ede(answer: dns.message.Message) -> list[tuple[int, str]]:
    """Give the Extended DNS Errors: code and text."""
    found = [option for option in answer.options if isinstance(option, dns.edns.EDEOption)]
    return [(int(option.code), option.text or "") for option in found]


def addresses(answer: dns.message.Message) -> list[str]:
    """Give the addresses in the answer section."""
    kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
    return [record.address for rrset in answer.answer if rrset.rdtype in kinds for record in rrset]


def raw(server: Any, packet: bytes, *, client: str = CORPORATE, timeout: float = 1.0) -> bytes | None:
    """Send octets, give what comes back; none when nothing does."""
    with socket.socket(type=socket.SOCK_DGRAM) as connection:
        connection.bind((client, 0))
        connection.settimeout(timeout)
        connection.sendto(packet, ("127.0.0.1", server.port))
        try:
            return connection.recv(65535)
        except TimeoutError:
            return None
