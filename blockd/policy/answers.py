"""The answers that the hot path copies: built once by dnslib, owners left as pointers to the question name."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from dnslib import AAAA, CLASS, QTYPE, RCODE, RR, SOA, A, DNSHeader, DNSQuestion, DNSRecord
from dnslib.dns import RD

from blockd.fastpath import _native, fold_rule_name
from blockd.settings.schema import Answer, Policy, Settings

#: Extended DNS Error "Blocked" (RFC 8914 4.16).
EDE_BLOCKED = 15
#: Longest text that goes with it: a refusal must fit the smallest UDP answer beside any question.
MAX_EDE_OCTETS = 180

#: Longest text of a structured one, JSON and all; the crate refuses more.
MAX_STRUCTURED_OCTETS = 400
#: Sub-error "network operator policy" (draft-ietf-dnsop-structured-dns-error 7.2).
SUBERROR_NETWORK_POLICY = 5
#: Longest body of a prepared answer: it must fit any reply beside any question.
MAX_BODY_OCTETS = 1_024

#: Records in the answer section, in the authority section, and the octets of both.
Sections = tuple[int, int, bytes]

#: TTL of what locally served zones say of themselves, and the times of their SOA (RFC 6303 3).
LOCAL_TTL = 10_800
LOCAL_TIMES = (1, 3_600, 1_200, 604_800, LOCAL_TTL)

_QUESTION = "x."
_QUESTION_POINTER = b"\xc0\x0c"
_BODY_AT = 12 + 3 + 4
_HINFO = 13


@dataclass(frozen=True)
class _Records:
    """The two sections of one answer, before they are packed."""

    answer: tuple[RR, ...] = ()
    authority: tuple[RR, ...] = ()

    def pack(self) -> tuple[int, int, bytes]:
        record = DNSRecord(DNSHeader(qr=1), q=DNSQuestion(_QUESTION))
        record.add_answer(*self.answer)
        record.add_auth(*self.authority)
        body = bytes(record.pack())[_BODY_AT:]
        return len(self.answer), len(self.authority), body


def _record(kind: str, data: RD, ttl: int) -> RR:
    return RR(_QUESTION, getattr(QTYPE, kind), CLASS.IN, ttl, data)


def _soa(settings: Settings, ttl: int) -> RR:
    # One name alone, so that nothing in the data can be compressed against the question.
    times = (1, 3600, 600, 86400, ttl)
    return _record("SOA", SOA(".", _mailbox(settings.answers.contact), times), ttl)


def _mailbox(contact: str | None) -> str:
    """Write a mailto: as a name (RFC 1035 8); any other contact has no mailbox."""
    try:
        parts = urlsplit(contact or "")
        user, _, host = unquote(parts.path).partition("@")
        # A dot in the user's part would need escaping, which few that read an SOA expect.
        is_plain = parts.scheme == "mailto" and user and host and "." not in user
        return f"{fold_rule_name(f'{user}.{host}')}." if is_plain else "."
    except ValueError:
        return "."


def blocked(settings: Settings, policy: Policy, answer: Answer, title: str, generation: str = "") -> _native.Template:
    """Build the answer of a policy for one app; `generation` is told where the config wants it."""
    ttl = settings.answers.ttl
    negative = _Records(authority=(_soa(settings, ttl),))
    by_type: dict[int, tuple[int, int, bytes]] = {}
    addresses: tuple[object, object] = (None, None)
    if answer == "null":
        addresses = ("0.0.0.0", "::")  # noqa: S104  an answer, not a socket
    elif answer == "sinkhole":
        addresses = (policy.sinkhole.ipv4, policy.sinkhole.ipv6)
    ipv4, ipv6 = addresses
    if ipv4 is not None:
        by_type[QTYPE.A] = _Records((_record("A", A(str(ipv4)), ttl),)).pack()
    if ipv6 is not None:
        by_type[QTYPE.AAAA] = _Records((_record("AAAA", AAAA(str(ipv6)), ttl),)).pack()
    rcode = {"nxdomain": RCODE.NXDOMAIN, "refused": RCODE.REFUSED}.get(answer, RCODE.NOERROR)
    return {
        "rcode": rcode,
        "is_silent": answer == "drop",
        "by_type": by_type,
        "otherwise": _Records().pack() if answer == "refused" else negative.pack(),
        "error": (EDE_BLOCKED, ede_text(settings, title, generation)) if settings.answers.ede else None,
        "structured_error": structured_error(settings, title),
    }


def ede_text(settings: Settings, title: str, generation: str = "") -> bytes:
    """Say what is blocked and whom to ask; nothing about the device (RFC 8914 4: UTF-8, no terminator)."""
    text = f"{title} is blocked by policy on this network"
    if settings.answers.ede_generation and generation:
        text += f" (generation {generation})"
    if settings.answers.contact:
        text += f"; ask {settings.answers.contact}"
    return text.encode()[:MAX_EDE_OCTETS].decode(errors="ignore").encode()


def structured_error(settings: Settings, title: str) -> bytes | None:
    """Say the same as JSON (draft-ietf-dnsop-structured-dns-error 4); none without a contact, which it needs."""
    answers = settings.answers
    if not (answers.ede and answers.structured_errors and answers.contact and ":" in answers.contact):
        return None
    said: dict[str, object] = {"c": [answers.contact], "j": f"{title} is blocked by policy on this network"}
    said["s"] = SUBERROR_NETWORK_POLICY
    if answers.organization:
        said["o"] = answers.organization
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    return text if len(text) <= MAX_STRUCTURED_OCTETS else None


def soa_sections(settings: Settings) -> Sections:
    """Build what a name without data gets."""
    return _Records(authority=(_soa(settings, 3600),)).pack()


def any_refused() -> _native.Template:
    """Build the short answer to ANY (RFC 8482 4.2)."""
    hinfo = RR(_QUESTION, _HINFO, CLASS.IN, 60, RD(b"\x07RFC8482\x00"))
    return _template(RCODE.NOERROR, _Records((hinfo,)))


def _template(rcode: int, otherwise: _Records, by_type: dict[int, _Records] | None = None) -> _native.Template:
    return {
        "rcode": rcode,
        "is_silent": False,
        "by_type": {qtype: records.pack() for qtype, records in (by_type or {}).items()},
        "otherwise": otherwise.pack(),
        "error": None,
        "structured_error": None,
    }


def _local_record(owner: bytes, kind: int, data: bytes) -> bytes:
    return owner + struct.pack("!HHIH", kind, CLASS.IN, LOCAL_TTL, len(data)) + data


def _locally_served_soa(zone: bytes = _QUESTION_POINTER) -> bytes:
    """Write the SOA of a zone as RFC 6303 3 has it; the crate turns the pointers to the zone's own name."""
    return _local_record(zone, QTYPE.SOA, zone + b"\x06nobody\x07invalid\0" + struct.pack("!5I", *LOCAL_TIMES))


def _local(rcode: int, soa: bytes) -> _native.Template:
    return {
        "rcode": rcode,
        "is_silent": False,
        "by_type": {},
        "otherwise": (0, 1, soa),
        "error": None,
        "structured_error": None,
    }


def special_use() -> tuple[list[_native.Template], dict[str, tuple[int, int]]]:
    """Build the answers of zones that never leave: templates, and zone -> (at its name, below it) by index."""
    soa = _locally_served_soa()
    missing, empty, apex = (_local(rcode, soa) for rcode in (RCODE.NXDOMAIN, RCODE.NOERROR, RCODE.NOERROR))
    apex["by_type"] = {
        QTYPE.SOA: (1, 0, soa),
        QTYPE.NS: (1, 0, _local_record(_QUESTION_POINTER, QTYPE.NS, _QUESTION_POINTER)),
    }
    loopback = _local(RCODE.NOERROR, soa)
    loopback["by_type"] = {
        QTYPE.A: _Records((_record("A", A("127.0.0.1"), 3600),)).pack(),
        QTYPE.AAAA: _Records((_record("AAAA", AAAA("::1"), 3600),)).pack(),
    }
    # The names of the loopback addresses (RFC 1912 4.1): one is a zone of its own, one is inside of another.
    pointer = {QTYPE.PTR: (1, 0, _local_record(_QUESTION_POINTER, QTYPE.PTR, b"\x09localhost\0"))}
    ipv6_apex = _local(RCODE.NOERROR, soa)
    ipv6_apex["by_type"] = {**apex["by_type"], **pointer}
    inside = _locally_served_soa(b"\x03127\x07in-addr\x04arpa\0")
    ipv4, below_ipv4 = _local(RCODE.NOERROR, inside), _local(RCODE.NXDOMAIN, inside)
    ipv4["by_type"] = pointer
    templates: list[_native.Template] = [missing, empty, apex, loopback, ipv6_apex, ipv4, below_ipv4]
    zones = {zone: (2, 0) for zone in REVERSE_ZONES}
    zones |= {zone: (0, 0) for zone in ("test", "invalid", "onion")}
    zones["localhost"] = (3, 3)
    zones["home.arpa"] = (2, 0)
    zones["1." + "0." * 31 + "ip6.arpa"] = (4, 0)
    zones["1.0.0.127.in-addr.arpa"] = (5, 6)
    # A resolver that designates no other says so with NODATA, or clients would ask upstreams (RFC 9462 4, 6.5).
    zones["resolver.arpa"] = (1, 0)
    zones["_dns.resolver.arpa"] = (1, 0)
    return templates, zones


#: Reverse zones of addresses that mean something here alone (RFC 6303 4, RFC 6761 6.1, RFC 7793).
REVERSE_ZONES = (
    "10.in-addr.arpa",
    *(f"{second}.172.in-addr.arpa" for second in range(16, 32)),
    "168.192.in-addr.arpa",
    "0.in-addr.arpa",
    "127.in-addr.arpa",
    "254.169.in-addr.arpa",
    "2.0.192.in-addr.arpa",
    "100.51.198.in-addr.arpa",
    "113.0.203.in-addr.arpa",
    "255.255.255.255.in-addr.arpa",
    *(f"{second}.100.in-addr.arpa" for second in range(64, 128)),
    "0." * 32 + "ip6.arpa",
    "1." + "0." * 31 + "ip6.arpa",
    "d.f.ip6.arpa",
    "8.e.f.ip6.arpa",
    "9.e.f.ip6.arpa",
    "a.e.f.ip6.arpa",
    "b.e.f.ip6.arpa",
    "8.b.d.0.1.0.0.2.ip6.arpa",
)
