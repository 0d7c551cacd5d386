"""A hidden primary for response policy zones: AXFR, IXFR and NOTIFY with TSIG; the daemon runs it as a process.

It reads commands from standard input, a line each, and says on standard output what became of them. It is a process of
its own: a zone of a million records takes seconds to write and megabytes to hold, and neither may be taken from the
answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tsig

from blockd.fastpath import end_with_parent
from blockd.lists.keys import read_key
from blockd.observe import log_format
from blockd.policy.compile import SNAPSHOT
from blockd.policy.inputs import read_inputs
from blockd.policy.zones import policy_zone
from blockd.settings.schema import TransferCatalog, TransferZone
from blockd.settings.source import Kept

#: Older states of a zone that are kept for IXFR.
KEPT = 4
#: Connections at once, in all and of one address.
CONNECTIONS, SHARE = 32, 8
#: Seconds for one message of a peer, in all, and for a peer to read one.
MESSAGE_SECONDS = 10.0
#: Datagrams of one address: a second, and at once.
DATAGRAM_RATE, DATAGRAM_BURST = 50.0, 200.0
#: Seconds between two lines to the daemon that say that this process lives, and count what was refused.
LIVES_SECONDS = 1.0
#: Octets of records in one message of a transfer, about: below the most that TCP can frame, signature included.
MESSAGE_OCTETS = 16_000
#: Seconds between NOTIFYs of one serial that nobody confirms; then the secondary's own refresh has to do.
NOTIFY_WAITS = (1.0, 2.0, 4.0, 8.0)
#: Seconds after which a serial is told again: BIND confirms one that comes while it waits for a primary that was not
#: there yet, and then does nothing about it for most of a minute.
NOTIFY_AGAIN = (0.0, 3.0, 15.0)
#: Seconds between two NOTIFYs of a zone that are passed on.
NOTIFY_PAUSE = 1.0
#: Refusals that are told of a generation: names of zones that are asked for are the peer's own words.
TOLD = 100
#: Of the SOA, seconds: how often secondaries look by themselves, and how long they enforce without us (RFC 1035).
REFRESH, RETRY, EXPIRE = 60, 15, 30 * 86_400

Peer = tuple[str, int]


@dataclass(frozen=True)
class Version:
    """A zone at one serial."""

    serial: int
    #: `owner TTL type data`, in order, relative to the zone.
    lines: tuple[str, ...]


@dataclass
class Zone:
    """A zone that is served, and whom it is for."""

    origin: dns.name.Name
    #: Empty for a catalog.
    group: str
    #: Where each is, and what it signs with.
    secondaries: list[tuple[Peer, dns.tsig.Key | None]]
    #: Those of them that are told of changes.
    told_to: list[tuple[Peer, dns.tsig.Key | None]]
    #: The newest first.
    versions: list[Version] = field(default_factory=list)
    #: The serial that secondaries were told of last.
    told: int = 0
    transfers: dict[str, int] = field(default_factory=lambda: {"AXFR": 0, "IXFR": 0, "refused": 0})

    def soa(self, serial: int) -> dns.rrset.RRset:
        """Give the SOA at a serial."""
        text = f"blockd.invalid. hostmaster.invalid. {serial} {REFRESH} {RETRY} {EXPIRE} {RETRY}"
        return dns.rrset.from_text(self.origin, REFRESH, dns.rdataclass.IN, dns.rdatatype.SOA, text)

    def admits(self, address: str, message: dns.message.Message) -> bool:
        """Say whether a peer may have it: it is listed, and signs with its key where it has one."""
        signed_by = message.keyname if message.had_tsig else None
        return any(host == address and (key is None or key.name == signed_by) for (host, _), key in self.secondaries)


def catalog_lines(members: list[str]) -> tuple[str, ...]:
    """Write the records of a catalog (RFC 9432 4): its version, and each member under a label that stays its own."""
    labels = [(hashlib.sha256(member.encode()).hexdigest()[:16], member) for member in members]
    return ('version 0 TXT "2"', *(f"{label}.zones 0 PTR {member}." for label, member in sorted(labels)))


@dataclass
class _Stream:
    """A connection of a listed peer."""

    address: str
    #: Whether its next message is waited for: then nothing is lost with it.
    is_reading: bool = True


class Primary:
    """Serves zones to their secondaries."""

    def __init__(self, say: Callable[[dict[str, Any]], None], state: Path) -> None:
        """`state` is a directory for what must outlive the process: serials that never go back, and older states."""
        self._say, self._state = say, state
        self._zones: dict[dns.name.Name, Zone] = {}
        #: Zones that lists are made of -> the address of their primary, and the key that it signs with.
        self._inbound: dict[dns.name.Name, set[tuple[str, dns.name.Name | None]]] = {}
        #: When a NOTIFY of each was last passed on.
        self._heard: dict[dns.name.Name, float] = {}
        #: Those of which one is passed on in a moment.
        self._waiting: set[dns.name.Name] = set()
        self._keys: dict[dns.name.Name, dns.tsig.Key] = {}
        self._lock = threading.Lock()
        #: Addresses of secondaries, and of primaries of lists: nobody else is read or answered.
        self._peers: frozenset[str] = frozenset()
        #: Open connections, the oldest first.
        self._open: dict[socket.socket, _Stream] = {}
        #: Listed address -> datagrams that it may still send, and since when.
        self._allowances: dict[str, tuple[float, float]] = {}
        #: Reason -> connections, transfers and messages that were refused.
        self.refused: Counter[str] = Counter()
        #: Where it listens: what it sends comes from there, as secondaries expect it.
        self._listens: list[str] = []
        #: Refused transfers that were told: zone, address and reason.
        self._told: set[tuple[str, str, str]] = set()

    # Commands

    def take(self, command: dict[str, Any]) -> None:
        """Take a generation in: write its zones anew, and tell their secondaries."""
        generation = Path(command["generation"])
        inputs = read_inputs(Path(command["config"]), Kept(generation))
        settings = inputs.settings.transfer
        keys = {name: read_key(name, key.algorithm, inputs.relative(key.file)) for name, key in settings.keys.items()}
        zones: dict[dns.name.Name, Zone] = {}
        for group, wanted in settings.zones.items():
            written = policy_zone(inputs, generation / SNAPSHOT, group, wanted.zone)
            zone = self._zone(wanted, group, keys, tuple(written.lines))
            zones[zone.origin] = zone
            self._say(
                {
                    "zone": wanted.zone,
                    "group": group,
                    "serial": zone.versions[0].serial,
                    "records": len(written.lines),
                    "not_expressed": dict(written.not_expressed),
                }
            )
        if settings.catalog is not None:
            members = [wanted.zone for wanted in settings.zones.values()]
            zone = self._zone(settings.catalog, "", keys, catalog_lines(members))
            zones[zone.origin] = zone
        self._say({"taken": [_text(zone.origin) for zone in zones.values()]})
        with self._lock:
            self._zones = zones
            self._keys = {key.name: key for key in keys.values()}
            self._told.clear()
            self._inbound = {}
            for name, host, key in command["inbound"]:
                signed_by = None if key is None else dns.name.from_text(key)
                self._inbound.setdefault(dns.name.from_text(name), set()).add((host, signed_by))
            listed = {host for zone in zones.values() for (host, _), _ in zone.secondaries}
            self._peers = frozenset(listed | {host for peers in self._inbound.values() for host, _ in peers})
            self._allowances.clear()
        for zone in [zone for zone in zones.values() if zone.told != zone.versions[0].serial]:
            zone.told = zone.versions[0].serial
            for peer, key in zone.told_to:
                threading.Thread(target=self._notify, args=(zone, peer, key), daemon=True).start()

    def _zone(
        self, wanted: TransferZone | TransferCatalog, group: str, keys: dict[str, dns.tsig.Key], lines: tuple[str, ...]
    ) -> Zone:
        """Give a zone that has these records now, under a new serial if it had others."""
        origin = dns.name.from_text(wanted.zone)
        before = self._zones.get(origin)
        peers, told = [], []
        for each in wanted.secondaries:
            key = None if each.key is None else keys[each.key]
            own = [((str(host), port), key) for host, port in each.address]
            peers += own
            told += own[:1] if each.notify else []
        zone = Zone(origin, group, peers, told, before.versions if before else self._kept(wanted.zone))
        if before is not None:
            zone.transfers, zone.told = before.transfers, before.told
        if not zone.versions or zone.versions[0].lines != lines:
            last = zone.versions[0].serial if zone.versions else 0
            # By the clock, so that a state directory that was lost takes no serial back; 32 bits are full in 2106.
            serial = max(last + 1, int(time.time()))
            zone.versions = [Version(serial, lines), *zone.versions[: KEPT - 1]]
            self._keep(wanted.zone, zone.versions)
        return zone

    def _kept(self, name: str) -> list[Version]:
        found: list[Version] = []
        for file in sorted((self._state / name).glob("*.zone"), reverse=True):
            # A file that cannot be read costs the step from that version; a secondary that has it gets the whole zone.
            with suppress(OSError, ValueError):
                found.append(Version(int(file.stem), tuple(file.read_text().splitlines())))
        return found[:KEPT]

    def _keep(self, name: str, versions: list[Version]) -> None:
        directory = self._state / name
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        file = directory / f"{versions[0].serial:010}.zone"
        with file.with_suffix(".new").open("w") as out:
            out.writelines(f"{line}\n" for line in versions[0].lines)
            out.flush()
            os.fsync(out.fileno())
        file.with_suffix(".new").replace(file)
        for old in sorted(directory.glob("*.zone"), reverse=True)[KEPT:]:
            old.unlink()

    def _notify(self, zone: Zone, peer: Peer, key: dns.tsig.Key | None) -> None:
        """Tell a secondary of a new serial, and tell it again, as long as there is no newer one (RFC 1996)."""
        serial = zone.versions[0].serial

        def is_newest() -> bool:
            current = self._zones.get(zone.origin)
            return current is not None and current.versions[0].serial == serial

        for pause in NOTIFY_AGAIN:
            time.sleep(pause)
            problem: str | None = None
            for wait in NOTIFY_WAITS:
                if not is_newest():
                    return
                began = time.monotonic()
                problem = self._tell(zone, serial, peer, key, wait)
                if problem is None:
                    break
                # A port that nobody listens on answers at once.
                time.sleep(max(0.0, wait - (time.monotonic() - began)))
            if problem is not None:
                where = f"{peer[0]}:{peer[1]}"
                self._say({"zone": _text(zone.origin), "unconfirmed": where, "why": problem})
                return

    def _tell(self, zone: Zone, serial: int, peer: Peer, key: dns.tsig.Key | None, wait: float) -> str | None:
        """Send a NOTIFY; give why it is not confirmed, if it is not."""
        notify = dns.message.make_query(zone.origin, dns.rdatatype.SOA)
        notify.set_opcode(dns.opcode.NOTIFY)
        notify.flags = (notify.flags | dns.flags.AA) & ~dns.flags.RD
        notify.answer.append(zone.soa(serial))
        if key is not None:
            notify.use_tsig(key)
        try:
            reply = dns.query.udp(notify, peer[0], wait, peer[1], self._source(peer), ignore_unexpected=True)
        except dns.exception.Timeout:
            return "no answer"
        except (OSError, dns.exception.DNSException) as error:
            return str(error) or type(error).__name__
        return None if reply.rcode() == dns.rcode.NOERROR else f"it answers {dns.rcode.to_text(reply.rcode())}"

    def _source(self, peer: Peer) -> str | None:
        """Give the address of ours to tell a secondary from: the one on the way to it, else one that it may know."""
        family = socket.AF_INET6 if ip_address(peer[0]).version == 6 else socket.AF_INET
        ours = [host for host in self._listens if ip_address(host).version == ip_address(peer[0]).version]
        with socket.socket(family, socket.SOCK_DGRAM) as way, suppress(OSError):
            way.connect(peer)
            if (host := way.getsockname()[0]) in ours or any(ip_address(one).is_unspecified for one in ours):
                return str(host)
        is_near = ip_address(peer[0]).is_loopback
        return next((host for host in ours if ip_address(host).is_loopback == is_near), None)

    # Questions

    def listen(self, host: str, port: int) -> None:
        """Serve an address over UDP and TCP. OSError when it cannot be opened."""
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        streams = socket.socket(family, socket.SOCK_STREAM)
        streams.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for one in (datagrams, streams):
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((host, port))
        streams.listen(CONNECTIONS)
        self._listens.append(host)
        threading.Thread(target=self._serve_datagrams, args=(datagrams,), daemon=True).start()
        threading.Thread(target=self._serve_streams, args=(streams,), daemon=True).start()

    def _may_send(self, address: str) -> bool:
        """Say whether a datagram is read: of a listed address, and not of too many."""
        if address not in self._peers:
            self._turn_away("stranger")
            return False
        now = time.monotonic()
        left, since = self._allowances.get(address, (DATAGRAM_BURST, now))
        left = min(DATAGRAM_BURST, left + (now - since) * DATAGRAM_RATE)
        self._allowances[address] = (max(0.0, left - 1), now)
        if left < 1:
            self._turn_away("rate")
        return left >= 1

    def _turn_away(self, reason: str) -> None:
        with self._lock:
            self.refused[reason] += 1

    def _serve_datagrams(self, datagrams: socket.socket) -> None:
        while True:
            try:
                wire, peer = datagrams.recvfrom(65_535)
            except OSError:
                # Such as a port that somebody's answer did not reach.
                continue
            # Whoever is not listed is neither read nor answered, or a forged address would be sent our answers.
            if not self._may_send(peer[0]):
                continue
            for reply in self._answers(wire, peer[0], is_stream=False):
                with suppress(OSError):
                    datagrams.sendto(reply, peer)

    def _serve_streams(self, streams: socket.socket) -> None:
        while True:
            try:
                connection, peer = streams.accept()
            except OSError:
                # No descriptor left: others are given back soon.
                time.sleep(0.1)
                continue
            stream = self._admit(connection, peer[0])
            if stream is None:
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve_stream, args=(connection, stream), daemon=True).start()
            except RuntimeError:
                self._leave(connection)
                connection.close()

    def _admit(self, connection: socket.socket, address: str) -> _Stream | None:
        """Count a connection in, if its address is listed; where there is no room, the oldest idle one is closed."""
        if address not in self._peers:
            self._refuse("stranger", "", address, "it is not listed as a secondary or primary")
            return None
        with self._lock:
            own = [one for one, stream in self._open.items() if stream.address == address]
            crowd = own if len(own) >= SHARE else list(self._open) if len(self._open) >= CONNECTIONS else []
            oldest = next((one for one in crowd if self._open[one].is_reading), None)
            if oldest is not None:
                del self._open[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            stream = None
            if oldest is not None or not crowd:
                stream = self._open[connection] = _Stream(address)
        if crowd:
            many = f"it has {SHARE} connections" if crowd is own else f"there are {CONNECTIONS} connections"
            closed = "this one was closed" if stream is None else "the oldest idle one was closed"
            self._refuse("share" if crowd is own else "busy", "", address, f"{many} already, and {closed}")
        return stream

    def _leave(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.pop(connection, None)

    def _serve_stream(self, connection: socket.socket, stream: _Stream) -> None:
        address = stream.address
        try:
            with connection:
                while wire := _framed(connection):
                    stream.is_reading = False
                    for reply in self._answers(wire, address, is_stream=True):
                        # For the whole of it: a peer that reads an octet at a time is no faster.
                        connection.settimeout(MESSAGE_SECONDS)
                        connection.sendall(struct.pack("!H", len(reply)) + reply)
                    stream.is_reading = True
        except OSError:
            pass
        finally:
            self._leave(connection)

    def _answers(self, wire: bytes, address: str, is_stream: bool) -> Iterator[bytes]:
        """Answer one message of a listed peer. Whatever is in it costs that peer its answer, and no other."""
        try:
            yield from self._answer(wire, address, is_stream)
        except Exception as error:  # noqa: BLE001  the library's own, for messages that it takes and cannot answer
            self._refuse("error", "", address, f"its message cannot be answered: {type(error).__name__}")

    def _answer(self, wire: bytes, address: str, is_stream: bool) -> Iterator[bytes]:
        with self._lock:
            zones, keys, inbound = self._zones, self._keys, self._inbound
        try:
            query = dns.message.from_wire(wire, keyring=keys)
        except dns.tsig.BadSignature:
            self._refuse("signature", "", address, "its signature is wrong: the secrets of both sides differ")
            yield from _refused(wire, dns.rcode.NOTAUTH)
            return
        except (dns.exception.DNSException, ValueError, struct.error, IndexError):
            # An unknown key is among them.
            is_signed = b"\x00\xfa\x00\xff" in wire
            if is_signed:
                text = "it is signed with a key that is not among transfer.keys, or at another time"
                self._refuse("key", "", address, text)
            else:
                self._turn_away("malformed")
            yield from _refused(wire, dns.rcode.NOTAUTH if is_signed else dns.rcode.FORMERR)
            return
        if query.flags & dns.flags.QR or len(query.question) != 1:
            return
        question = query.question[0]
        if query.opcode() == dns.opcode.NOTIFY:
            yield self._notified(query, inbound.get(question.name, set()), address)
            return
        zone = zones.get(question.name)
        reply = dns.message.make_response(query)
        if zone is None or not zone.admits(address, query) or query.opcode() != dns.opcode.QUERY:
            if zone is None:
                self._refuse("zone", "", address, "it asks for a zone that there is not")
            else:
                self._count(zone, "refused")
                text = "it is not a secondary of this zone, or lacks its key"
                self._refuse("secondary", _text(zone.origin), address, text)
            reply.set_rcode(dns.rcode.REFUSED)
            yield reply.to_wire()
            return
        if question.rdtype in (dns.rdatatype.AXFR, dns.rdatatype.IXFR) and is_stream:
            yield from self._transfer(zone, query)
            return
        reply.flags |= dns.flags.AA
        if question.rdtype in (dns.rdatatype.SOA, dns.rdatatype.IXFR):
            # Over UDP the SOA alone: the secondary comes by TCP (RFC 1995 2).
            reply.answer.append(zone.soa(zone.versions[0].serial))
        elif question.rdtype == dns.rdatatype.AXFR:
            reply.set_rcode(dns.rcode.FORMERR)
        yield reply.to_wire()

    def _notified(
        self, query: dns.message.Message, primaries: set[tuple[str, dns.name.Name | None]], address: str
    ) -> bytes:
        """Take a NOTIFY of a zone that a list is made of: its primary's word counts, and nobody else's (RFC 1996)."""
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.AA
        signed_by = query.keyname if query.had_tsig else None
        name = query.question[0].name.canonicalize()
        if not any(host == address and key in (None, signed_by) for host, key in primaries):
            reply.set_rcode(dns.rcode.REFUSED)
            # What nobody lists is the sender's own word, and a new one each time.
            known = _text(name) if primaries else ""
            self._refuse("notify", known, address, "a NOTIFY of a zone that no list is, or without its key")
        else:
            self._hear(name)
        return reply.to_wire()

    def _hear(self, name: dns.name.Name) -> None:
        """Pass a NOTIFY on, at most one a second: who forges an address must not make us fetch without end.

        One that comes sooner is passed on when the second is over, for it may be of something newer.
        """

        def pass_on() -> None:
            self._heard[name] = time.monotonic()
            self._waiting.discard(name)
            self._say({"notify": _text(name)})

        if name in self._waiting:
            return
        wait = self._heard.get(name, -NOTIFY_PAUSE) + NOTIFY_PAUSE - time.monotonic()
        if wait <= 0:
            pass_on()
            return
        self._waiting.add(name)
        later = threading.Timer(wait, pass_on)
        later.daemon = True
        later.start()

    def _transfer(self, zone: Zone, query: dns.message.Message) -> Iterator[bytes]:
        newest = zone.versions[0]
        records = self._whole(zone, newest)
        kind = "AXFR"
        if query.question[0].rdtype == dns.rdatatype.IXFR:
            serial = next(
                (rdata.serial for rrset in query.authority for rdata in rrset if hasattr(rdata, "serial")), None
            )
            older = next((version for version in zone.versions if version.serial == serial), None)
            if older is newest:
                records = iter([zone.soa(newest.serial)])
            elif older is not None:
                older, records = self._step(zone, older, newest)
            if older is not None:
                kind = "IXFR"
        self._count(zone, kind)
        yield from _messages(query, records)

    def _whole(self, zone: Zone, version: Version) -> Iterator[dns.rrset.RRset]:
        yield zone.soa(version.serial)
        yield dns.rrset.from_text(zone.origin, REFRESH, dns.rdataclass.IN, dns.rdatatype.NS, "blockd.invalid.")
        for line in version.lines:
            yield _record(line, zone.origin)
        yield zone.soa(version.serial)

    def _step(self, zone: Zone, older: Version, newest: Version) -> tuple[Version | None, Iterator[dns.rrset.RRset]]:
        """Give what changed since a version, or all of it where that version has a line that is not a record."""
        try:
            return older, iter(list(self._difference(zone, older, newest)))
        except (dns.exception.DNSException, ValueError):
            return None, self._whole(zone, newest)

    def _difference(self, zone: Zone, older: Version, newer: Version) -> Iterator[dns.rrset.RRset]:
        """Give what changed as one step (RFC 1995 4)."""
        old, new = set(older.lines), set(newer.lines)
        yield zone.soa(newer.serial)
        yield zone.soa(older.serial)
        for line in older.lines:
            if line not in new:
                yield _record(line, zone.origin)
        yield zone.soa(newer.serial)
        for line in newer.lines:
            if line not in old:
                yield _record(line, zone.origin)
        yield zone.soa(newer.serial)

    def _refuse(self, reason: str, zone: str, address: str, why: str) -> None:
        """Count a refusal, and say once a generation who was refused, and why."""
        with self._lock:
            self.refused[reason] += 1
            if (zone, address, why) in self._told or len(self._told) >= TOLD:
                return
            self._told.add((zone, address, why))
        self._say({"zone": zone, "refused": address, "why": why})

    def _count(self, zone: Zone, kind: str) -> None:
        if not zone.group:
            return
        zone.transfers[kind] += 1
        self._say({"zone": _text(zone.origin), "group": zone.group, "transfers": zone.transfers})


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True)


def _record(line: str, origin: dns.name.Name) -> dns.rrset.RRset:
    owner, ttl, kind, data = line.split(" ", 3)
    return dns.rrset.from_text(dns.name.from_text(owner, origin), int(ttl), dns.rdataclass.IN, kind, data)


def _messages(query: dns.message.Message, records: Iterator[dns.rrset.RRset]) -> Iterator[bytes]:
    """Frame records into messages, signed one after the other where the question was (RFC 8945 5.3.1)."""
    context: Any = None

    def message(held: list[dns.rrset.RRset]) -> bytes:
        nonlocal context
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.AA
        reply.use_edns(False)
        reply.answer.extend(held)
        wire = reply.to_wire(multi=True, tsig_ctx=context, max_size=65_535)
        context = reply.tsig_ctx
        return wire

    held: list[dns.rrset.RRset] = []
    octets = 0
    for rrset in records:
        held.append(rrset)
        octets += len(rrset.name.to_wire() or b"") + 40
        if octets >= MESSAGE_OCTETS:
            yield message(held)
            held, octets = [], 0
    if held:
        yield message(held)


def _refused(wire: bytes, rcode: int) -> Iterator[bytes]:
    """A header alone, to a listed peer whose message cannot be read or believed."""
    if len(wire) >= 12 and not wire[2] & 0x80:
        yield wire[:2] + bytes([wire[2] & 0x78 | 0x80, rcode]) + bytes(8)


def _framed(connection: socket.socket) -> bytes:
    """Read a message; nothing at the end. TimeoutError when all of it takes too long, however it trickles in."""
    deadline = time.monotonic() + MESSAGE_SECONDS
    head = _exactly(connection, 2, deadline)
    return _exactly(connection, struct.unpack("!H", head)[0], deadline) if head else b""


def _exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    read = b""
    while len(read) < count:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(count - len(read))
        if not chunk:
            return b""
        read += chunk
    return read


def main(words: list[str]) -> int:
    """Run one for a daemon: its process ID, the directory of states, and where to listen, host and port in turn."""
    parent, state, *endpoints = words
    if not end_with_parent(int(parent)):
        return 1
    os.umask(0o027)
    log_format.set_up()
    lock = threading.Lock()

    def say(what: dict[str, Any]) -> None:
        with lock:
            print(json.dumps(what), flush=True)

    def live() -> None:
        while True:
            say({"lives": True, "turned_away": primary.refused.copy()})
            time.sleep(LIVES_SECONDS)

    primary = Primary(say, Path(state))
    threading.Thread(target=live, daemon=True).start()
    for host, port in zip(endpoints[::2], endpoints[1::2], strict=True):
        try:
            primary.listen(host, int(port))
        except OSError as error:
            say({"error": f"transfer.listen: {host} port {port}: {error.strerror}"})
            return 1
    for line in sys.stdin:
        try:
            primary.take(json.loads(line))
        except Exception as error:  # noqa: BLE001  of one generation; the zones of the one before are served
            # What was served before goes on being served.
            say({"error": f"the zones stay as they were: {error}"})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
