"""NAT64 prefixes by which upstream servers write IPv4 addresses, learned by asking for ipv4only.arpa (RFC 7050)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from dnslib import QTYPE, DNSError, DNSRecord

from blockd.endpoint import Endpoint
from blockd.resolver.datagram import Datagram

NAME = "ipv4only.arpa"
_QUERY = bytes.fromhex("0100 0001 0000 0000 0000 08697076346f6e6c79 0461727061 00 001c 0001")
#: The addresses that the name has, and no other name (RFC 7050 2.2).
WELL_KNOWN = frozenset({IPv4Address("192.0.0.170"), IPv4Address("192.0.0.171")})
#: The prefix lengths of RFC 6052 2.2.
LENGTHS = (96, 64, 56, 48, 40, 32)

#: Prefixes of one server, and of all together.
MAX_OF_A_SERVER, MAX_OF_ALL = 4, 16
#: Seconds for which a prefix is looked through that is told of no more: answers in the cache are as old.
KEEP_SECONDS = 86_400.0
#: Seconds until a server is asked again: after an answer, its TTL between these; after none.
MIN_INTERVAL, MAX_INTERVAL, RETRY_INTERVAL = 60.0, 3_600.0, 60.0
#: Seconds that an answer is waited for.
PATIENCE = 3.0


def ipv4_inside(address: IPv6Address, length: int) -> IPv4Address:
    """Give the IPv4 address behind a prefix of this length, without the octet at bits 64 to 71 (RFC 6052 2.3)."""
    packed = address.packed
    if length == 96:
        return IPv4Address(packed[12:])
    without_octet = packed[:8] + packed[9:]
    return IPv4Address(without_octet[length // 8 :][:4])


def prefixes_in(addresses: Iterable[IPv6Address]) -> list[IPv6Network]:
    """Find the prefixes by which these addresses of ipv4only.arpa were written (RFC 7050 3).

    Each has a well-known address at one of six places. One that has it at several tells nothing, unless another
    address confirms a prefix by the other well-known address.
    """
    found: dict[IPv6Network, set[IPv4Address]] = {}
    certain: set[IPv6Network] = set()
    for address in addresses:
        if address.packed[8]:
            continue
        places = {}
        for length in LENGTHS:
            if (inside := ipv4_inside(address, length)) in WELL_KNOWN:
                places[IPv6Network((address, length), strict=False)] = inside
        if len(places) == 1:
            certain |= places.keys()
        for prefix, inside in places.items():
            found.setdefault(prefix, set()).add(inside)
    return sorted(prefix for prefix, insides in found.items() if prefix in certain or insides == WELL_KNOWN)


def read_answer(reply: bytes) -> tuple[list[IPv6Network], float] | None:
    """Give the prefixes that an answer tells of, and its smallest TTL; none when it answers another question."""
    # What a server sends can break a parser in more ways than it documents.
    with suppress(DNSError, ValueError, struct.error, IndexError, TypeError, UnicodeError, RecursionError):
        record = DNSRecord.parse(reply)
        question = record.questions[0] if len(record.questions) == 1 else None
        if question is None or question.qtype != QTYPE.AAAA or str(question.qname).lower().rstrip(".") != NAME:
            return None
        if record.header.rcode != 0 or record.header.tc:
            return None
        rows = [row for row in record.rr if row.rtype == QTYPE.AAAA]
        addresses = [IPv6Address(bytes(row.rdata.data)) for row in rows]
        return prefixes_in(addresses), float(min((row.ttl for row in rows), default=0))
    return None


@dataclass
class _Server:
    """What one server told, and when it is asked again."""

    due: float = 0.0
    asked: Datagram | None = None
    deadline: float = 0.0
    #: When each prefix was last told of.
    seen: dict[IPv6Network, float] = field(default_factory=dict)


class Discovery:
    """Asks each server at the start and again as its answers end; looks never wait."""

    def __init__(self, found: Callable[[list[IPv6Network]], None]) -> None:
        """``found`` is called with all prefixes whenever they change."""
        self._found = found
        self._servers: dict[Endpoint, _Server] = {}
        self.prefixes: list[IPv6Network] = []

    def look(self, servers: Iterable[Endpoint], now: float) -> None:
        """Ask those of ``servers`` that are due, read what came; forget any other. ``now``: seconds."""
        wanted = list(servers)
        for server in self._servers.keys() - set(wanted):
            self._end(self._servers.pop(server))
        for server in wanted:
            self._look_at(server, self._servers.setdefault(server, _Server()), now)
        latest: dict[IPv6Network, float] = {}
        for state in self._servers.values():
            for prefix, seen in state.seen.items():
                latest[prefix] = max(seen, latest.get(prefix, seen))
        prefixes = sorted(sorted(latest, key=lambda prefix: -latest[prefix])[:MAX_OF_ALL])
        if prefixes != self.prefixes:
            self.prefixes = prefixes
            self._found(prefixes)

    def _look_at(self, server: Endpoint, state: _Server, now: float) -> None:
        for prefix in [prefix for prefix, seen in state.seen.items() if now - seen > KEEP_SECONDS]:
            del state.seen[prefix]
        try:
            if state.asked is not None:
                reply = state.asked.reply()
                if reply is not None:
                    self._end(state)
                    self._told(state, reply, now)
                elif now >= state.deadline:
                    self._end(state)
                    state.due = now + RETRY_INTERVAL
            elif now >= state.due:
                state.asked, state.deadline = Datagram(server, os.urandom(2) + _QUERY), now + PATIENCE
        except OSError:
            self._end(state)
            state.due = now + RETRY_INTERVAL

    @staticmethod
    def _end(state: _Server) -> None:
        if state.asked is not None:
            state.asked.close()
            state.asked = None

    @staticmethod
    def _told(state: _Server, reply: bytes, now: float) -> None:
        answer = read_answer(reply)
        if answer is None:
            state.due = now + RETRY_INTERVAL
            return
        prefixes, ttl = answer
        state.due = now + (min(max(ttl, MIN_INTERVAL), MAX_INTERVAL) if prefixes else MAX_INTERVAL)
        # The newest first, so that a server that changes its prefix is followed, within its bound.
        kept = [prefix for prefix in sorted(state.seen, key=lambda one: -state.seen[one]) if prefix not in prefixes]
        told = dict.fromkeys(prefixes[:MAX_OF_A_SERVER], now)
        state.seen = {**told, **{prefix: state.seen[prefix] for prefix in kept[: MAX_OF_A_SERVER - len(told)]}}
