"""A group's policy as a response policy zone (draft-vixie-dnsop-dns-rpz-00), for resolvers that a site runs already.

Owners are relative to the zone. The snapshot itself is asked about every name that a rule names, so that a zone says
what blockd would: once for the name, and once for what is below it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dns import rdata
from dns.rdataclass import RdataClass
from dns.rdatatype import RdataType, to_text

from blockd.fastpath import Fastpath, _native, list_names, load
from blockd.policy.compile import native_app
from blockd.policy.inputs import Inputs
from blockd.policy.views import GroupView, group_views
from blockd.settings.values import Network, to_ascii

#: Octets of a name, on the wire.
MAX_NAME_OCTETS = 255
#: A label that no rule names: what is below a name is judged by it.
PROBE = "_"

#: Types and data of an owner's records, with the TTLs that are their own.
Records = tuple[tuple[str, str, int | None], ...]
PASSTHRU: Records = (("CNAME", "rpz-passthru.", None),)
NXDOMAIN: Records = (("CNAME", ".", None),)
NODATA: Records = (("CNAME", "*.", None),)
DROP: Records = (("CNAME", "rpz-drop.", None),)
TCP_ONLY: Records = (("CNAME", "rpz-tcp-only.", None),)
#: What zones that are taken in have, and a zone that is given on cannot: their order would be lost.
NOT_EXPRESSED = {
    "answers": "rules about addresses of zones that are taken in",
    "clients": "rules about clients of zones that are taken in",
    "everything": "rules about every name of zones that are taken in",
    "expressions": "patterns",
}


@dataclass
class PolicyZone:
    """What a zone says, and what it could not."""

    #: `owner TTL type data`, in order, without SOA and NS.
    lines: list[str] = field(default_factory=list)
    #: What has no form in a response policy zone -> how many rules.
    not_expressed: Counter[str] = field(default_factory=Counter)


def policy_zone(inputs: Inputs, snapshot: Path, group: str, origin: str) -> PolicyZone:
    """Write the zone of a group. ValueError when there is no such group."""
    view = next((view for view in group_views(inputs) if view.group == group), None)
    if view is None:
        raise ValueError(f"there is no group {group}")
    return _Writer(inputs, snapshot, view, origin).zone()


class _Writer:
    def __init__(self, inputs: Inputs, snapshot: Path, view: GroupView, origin: str) -> None:
        loaded = load(str(snapshot))
        meta = json.loads(loaded.meta)
        self._fastpath = Fastpath(loaded, [], 0, 0)
        self._apps: list[str] = meta["apps"]
        self._view_number = meta["groups"].index(view.group)
        self._inputs, self._view = inputs, view
        self._longest = MAX_NAME_OCTETS - 2 - len(origin)
        self._zone = PolicyZone()
        self._written: dict[str, Records] = {}

    def zone(self) -> PolicyZone:
        zone, ttl = self._zone, self._inputs.settings.answers.ttl
        lines = {
            f"{owner} {ttl if own is None else own} {kind} {data}"
            for owner, records in self._records()
            for kind, data, own in records
        }
        zone.lines = sorted(lines)
        for app in sorted(self._view.block):
            entry = self._inputs.catalogue.entries[app]
            zone.not_expressed["patterns"] += len(entry.app.patterns)
            if entry.app.embedded:
                names = len(entry.app.suffixes) + len(entry.app.hosts)
                zone.not_expressed["names inside the zones of CDNs"] += names
        zone.not_expressed["apps that are monitored"] += len(self._view.monitor)
        if self._inputs.settings.exemptions.teams:
            zone.not_expressed["ledgers of exemptions"] += 1
        zone.not_expressed = +zone.not_expressed
        return zone

    def _records(self) -> Iterator[tuple[str, Records]]:
        owners = self._owners()
        alone = self._answers(owners, owners)
        below = self._answers(owners, [f"{PROBE}.{name}" for name in owners])
        covered: set[str] = set()
        above_open: set[str] = set()
        for name in owners:
            # Where the nearest owner above is blocked with all below, this one must say that it is not.
            nearest = next((parent for parent in _parents(name) if parent in alone), None)
            if nearest is not None and below[nearest]:
                covered.add(name)
                if not alone[name] or not below[name]:
                    above_open.update(_parents(name))
        for name in owners:
            records = alone[name]
            if records == NXDOMAIN and name in above_open:
                # It exists, for something below it is open (RFC 8020).
                records = NODATA
            yield from self._named(name, records, name in covered)
            yield from self._named(f"*.{name}", below[name], name in covered)
        for app in sorted(self._view.block):
            for network in self._inputs.catalogue.entries[app].app.networks:
                yield f"{_address_owner(network)}.rpz-ip", self._answer(app)

    def _named(self, owner: str, records: Records, is_covered: bool) -> Iterator[tuple[str, Records]]:
        records = records or (PASSTHRU if is_covered else ())
        if records and len(owner) > self._longest:
            self._zone.not_expressed["names that are too long beside the zone's"] += 1
        elif records:
            yield owner, records

    def _owners(self) -> list[str]:
        """Give the names that rules name, and those between them: a name that exists hides the wildcard above it."""
        named: set[str] = set()
        for app in sorted(self._view.block | self._view.allow):
            entry = self._inputs.catalogue.entries[app]
            named.update(entry.app.suffixes, entry.app.hosts, entry.app.holes)
            for item in native_app(entry, self._inputs.source, 0)["lists"]:
                names, others = list_names(item, to_ascii)
                named.update(names)
                if app in self._view.block:
                    for what, count in others.items():
                        self._zone.not_expressed[NOT_EXPRESSED[what]] += count
        between: set[str] = set()
        for name in named:
            parents = list(_parents(name))
            topmost = max((at for at, parent in enumerate(parents) if parent in named), default=-1)
            between.update(parents[:topmost])
        return list(named | between)

    def _answers(self, owners: list[str], names: list[str]) -> dict[str, Records]:
        """Give the records by which names are answered, by the owners that they stand for; none when one passes."""
        said = self._fastpath.policy_of(names, self._view_number)
        return {owner: self._write(policy) for owner, policy in zip(owners, said, strict=True)}

    def _write(self, policy: _native.Policy) -> Records:
        if policy is None:
            return ()
        if isinstance(policy, int):
            return self._answer(self._apps[policy])
        return _zone_act(policy)

    def _answer(self, app: str) -> Records:
        policy, own = self._view.policy, self._inputs.catalogue.entries[app].app
        kind = policy.answer_by_app.get(app, own.answer or policy.answer)
        if kind == "refused":
            self._zone.not_expressed["answers that are REFUSED, here NXDOMAIN"] += 1
        if app not in self._written:
            addresses: dict[str, tuple[object, object]] = {
                "null": ("0.0.0.0", "::"),  # noqa: S104  an answer, not a socket
                "sinkhole": (policy.sinkhole.ipv4, policy.sinkhole.ipv6),
            }
            pairs = zip(("A", "AAAA"), addresses.get(kind, ()), strict=False)
            prepared = tuple((of, str(address), None) for of, address in pairs if address is not None)
            self._written[app] = prepared or {"nodata": NODATA, "drop": DROP}.get(kind, NXDOMAIN)
        return self._written[app]


def _zone_act(act: _native.ZoneAct) -> Records:
    """Write what a rule of a zone that was taken in does."""
    if act[0] == "alias":
        return (("CNAME", f"{'*.' if act[2] else ''}{act[1]}.", act[3]),)
    if act[0] == "records":
        return tuple((to_text(RdataType.make(kind)), _data(kind, wire), ttl) for kind, ttl, wire in act[1])
    return {"nodata": NODATA, "drop": DROP, "tcp-only": TCP_ONLY}.get(act[0], NXDOMAIN)


def _data(kind: int, wire: bytes) -> str:
    return rdata.from_wire(RdataClass.IN, RdataType.make(kind), wire, 0, len(wire)).to_text()


def _parents(name: str) -> Iterator[str]:
    """Give the names above one, the nearest first, without the root."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _address_owner(network: Network) -> str:
    """Write a network as an owner: its length, then the address backwards, the longest run of zeros as zz."""
    if network.version == 4:
        return f"{network.prefixlen}.{'.'.join(reversed(str(network.network_address).split('.')))}"
    text = str(network.network_address)
    before, has_zeros, after = text.partition("::")
    words = [*before.split(":"), *(["zz"] if has_zeros else []), *after.split(":")]
    return f"{network.prefixlen}.{'.'.join(word for word in reversed(words) if word)}"
