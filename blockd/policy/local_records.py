"""Names that are answered here: from the config's words to answers, by dnslib."""

from __future__ import annotations

import re
import struct
from contextlib import suppress

from dnslib import QTYPE, RR, DNSBuffer, DNSError
from dnslib.bimap import BimapError

from blockd.fastpath import _native
from blockd.policy.answers import MAX_BODY_OCTETS, Sections, any_refused, soa_sections
from blockd.problems import Problem
from blockd.settings.document import Document
from blockd.settings.schema import Settings
from blockd.settings.values import read_name

#: Seconds, of a record that gives no TTL.
USUAL_TTL = 300
#: What a name may have here, and how it is written.
EXAMPLES = {
    "A": "10.0.0.5",
    "AAAA": "2001:db8::5",
    "CNAME": "printer.corp.example",
    "MX": "10 mail.corp.example",
    "NS": "ns1.corp.example",
    "PTR": "printer.corp.example",
    "SRV": "0 5 389 dc1.corp.example",
    "TXT": '"at most 255 octets" "a string"',
    "CAA": '0 issue "ca.example"',
    "HTTPS": "1 . alpn=h2",
}
TYPES = tuple(EXAMPLES)
MAX_TTL = 604_800
#: Aliases in a row.
MAX_CHAIN = 8

_QUESTION_POINTER = b"\xc0\x0c"


class _Bad(ValueError):
    pass


def local_names(settings: Settings, document: Document) -> tuple[dict[str, _native.Template], list[Problem]]:
    """Build the answers of ``records:``, by name; and what is wrong with it."""
    problems: list[Problem] = []
    records: dict[str, list[RR]] = {}
    written = {read_name(key): key for key in document.values.get("records") or {}}
    for name, texts in settings.records.items():
        records[name] = []
        for at, text in enumerate(texts):
            try:
                records[name].append(_read(name, text))
            except _Bad as error:
                problems.append(document.problem(("records", written[name], at), str(error)))
        kinds = [QTYPE.get(record.rtype) for record in records[name]]
        if "CNAME" in kinds and len(kinds) > 1:
            text = "an alias has no other records; write the addresses, or the CNAME alone"
            problems.append(document.problem(("records", written[name]), text))
        if not texts:
            problems.append(document.problem(("records", written[name]), "expected a record, such as A 10.0.0.5"))
    templates: dict[str, _native.Template] = {}
    for name in records if not problems else ():
        try:
            templates[name] = _template(settings, name, records)
        except _Bad as error:
            problems.append(document.problem(("records", written[name]), str(error)))
    return templates, problems


def _read(name: str, text: str) -> RR:
    words = text.split()
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    ttl = USUAL_TTL
    if words and re.fullmatch("[0-9]+", words[0]):
        digits = words.pop(0)
        if len(digits) > 6 or int(digits) > MAX_TTL:
            raise _Bad(f"{shown!r}: a TTL of at most {MAX_TTL} seconds")
        ttl = int(digits)
    if len(words) < 2 or words[0].upper() not in TYPES:
        raise _Bad(f"{shown!r}: expected [TTL] TYPE DATA, such as A 10.0.0.5; types are {', '.join(TYPES)}")
    kind, data = words[0].upper(), text.split(words[0], 1)[1].strip()
    try:
        # One line and no more: a line break would begin another record.
        found = RR.fromZone(f"{name}. {ttl} IN {kind} {' '.join(data.splitlines())}")
        packed = _rdata(found[0])
    except (DNSError, BimapError, ValueError, IndexError, KeyError, TypeError, struct.error, AttributeError):
        found, packed = [], b""
    if len(found) != 1 or not packed:
        raise _Bad(f"{shown!r} is no {kind} record: expected such as {kind} {EXAMPLES[kind]}")
    return found[0]


def _rdata(record: RR) -> bytes:
    # In a buffer of its own, so that no name in it is compressed against anything.
    buffer = DNSBuffer()
    record.rdata.pack(buffer)
    return bytes(buffer.data)


def _wire(record: RR, owner: bytes) -> bytes:
    data = _rdata(record)
    return owner + struct.pack("!HHIH", record.rtype, 1, record.ttl, len(data)) + data


def _owner(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _template(settings: Settings, name: str, records: dict[str, list[RR]]) -> _native.Template:
    chain, end = _follow(name, records)
    negative = soa_sections(settings)
    bodies: dict[int, list[bytes]] = {}
    for record in records[end]:
        # One TTL a set (RFC 2181 5.2): the smallest.
        record.ttl = min(other.ttl for other in records[end] if other.rtype == record.rtype)
        owner = _QUESTION_POINTER if end == name else _owner(end)
        bodies.setdefault(record.rtype, []).append(_wire(record, owner))
    by_type: dict[int, Sections] = {
        kind: (len(chain) + len(own), 0, b"".join([*chain, *own])) for kind, own in bodies.items()
    }
    otherwise = (len(chain), 0, b"".join(chain)) if chain else negative
    if chain:
        by_type[QTYPE.CNAME] = (1, 0, chain[0])
    by_type[QTYPE.ANY] = any_refused()["otherwise"]
    for _, _, body in by_type.values():
        if len(body) > MAX_BODY_OCTETS:
            raise _Bad(f"the records of one type take {len(body)} octets; at most {MAX_BODY_OCTETS} fit every answer")
    return {
        "rcode": 0,
        "is_silent": False,
        "by_type": by_type,
        "otherwise": otherwise,
        "error": None,
        "structured_error": None,
    }


def _follow(name: str, records: dict[str, list[RR]]) -> tuple[list[bytes], str]:
    chain: list[bytes] = []
    at = name
    while records[at] and records[at][0].rtype == QTYPE.CNAME:
        alias = records[at][0]
        chain.append(_wire(alias, _QUESTION_POINTER if at == name else _owner(at)))
        target = str(alias.rdata).rstrip(".")
        with suppress(ValueError):
            target = read_name(target)
        if target not in records:
            # A stub resolver takes the answer as it is: nobody would look the target up.
            raise _Bad(f"the alias leads to {target}, which is no local name; write addresses instead")
        if len(chain) > MAX_CHAIN:
            raise _Bad(f"more than {MAX_CHAIN} aliases in a row, or a loop")
        at = target
    return chain, at
