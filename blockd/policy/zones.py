"""A group's policy as a response policy zone (draft-vixie-dnsop-dns-rpz-00), for resolvers that a site runs already.

Owners are relative to the zone. Every name that a rule names is asked for of the snapshot itself, so that a zone says
what blockd would: once for the name, and once for what is below it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blockd.fastpath import Fastpath, list_names, load
from blockd.policy.compile import native_app
from blockd.policy.inputs import Inputs
from blockd.policy.views import GroupView, group_views
from blockd.settings.values import Network, to_ascii

#: Octets of a name, on the wire.
MAX_NAME_OCTETS = 255
#: A label that no rule names: what is below a name is judged by it.
PROBE = "_"

#: Type and data of one record.
Record = tuple[str, str]
PASSTHRU: tuple[Record, ...] = (("CNAME", "rpz-passthru."),)
NXDOMAIN: tuple[Record, ...] = (("CNAME", "."),)
NODATA: tuple[Record, ...] = (("CNAME", "*."),)


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
        self._origin_octets = len(origin) + 2
        self._zone = PolicyZone()
        self._actions: dict[str, tuple[Record, ...]] = {}

    def zone(self) -> PolicyZone:
        zone, ttl = self._zone, self._inputs.settings.answers.ttl
        lines = [f"{owner} {ttl} {kind} {data}" for owner, records in self._records() for kind, data in records]
        zone.lines = sorted(set(lines))
        for app in sorted(self._view.block):
            entry = self._inputs.catalogue.entries[app]
            zone.not_expressed["patterns"] += len(entry.app.patterns)
            if entry.app.embedded:
                names = len(entry.app.suffixes) + len(entry.app.hosts)
                zone.not_expressed["names inside the zones of CDNs"] += names
        zone.not_expressed["apps that are monitored"] += len(self._view.monitor)
        zone.not_expressed = +zone.not_expressed
        return zone

    def _records(self) -> Iterator[tuple[str, tuple[Record, ...]]]:
        owners = self._owners()
        known = set(owners)
        covered: set[str] = set()
        above_open: set[str] = set()
        for name in owners:
            # Where the nearest owner above is blocked with all below, this one must say that it is not.
            nearest = next((parent for parent in _parents(name) if parent in known), None)
            if nearest is not None and self._action(f"{PROBE}.{nearest}"):
                covered.add(name)
                if not self._action(name) or not self._action(f"{PROBE}.{name}"):
                    above_open.update(_parents(name))
        for name in owners:
            alone = self._action(name)
            if alone == NXDOMAIN and name in above_open:
                # It exists, for something below it is open (RFC 8020).
                alone = NODATA
            yield from self._named(name, alone, name in covered)
            yield from self._named(f"*.{name}", self._action(f"{PROBE}.{name}"), name in covered)
        for app in sorted(self._view.block):
            for network in self._inputs.catalogue.entries[app].app.networks:
                yield f"{_address_owner(network)}.rpz-ip", self._answer(app)

    def _named(
        self, owner: str, action: tuple[Record, ...], is_covered: bool
    ) -> Iterator[tuple[str, tuple[Record, ...]]]:
        records = action or (PASSTHRU if is_covered else ())
        if records and len(owner) + self._origin_octets > MAX_NAME_OCTETS:
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
                named.update(list_names(item, to_ascii))
        named.discard(".")
        between: set[str] = set()
        for name in named:
            parents = list(_parents(name))
            topmost = max((at for at, parent in enumerate(parents) if parent in named), default=-1)
            between.update(parents[:topmost])
        return sorted(named | between, key=_from_the_top)

    def _action(self, name: str) -> tuple[Record, ...]:
        """Give the records by which a name is answered, none when it passes; each is asked for once."""
        if name not in self._actions:
            try:
                decision = self._fastpath.decide("0.0.0.0", name, 1, view=self._view_number)  # noqa: S104
            except ValueError:
                # Too long to be asked for.
                self._actions[name] = ()
            else:
                is_block = decision["action"] == "block"
                self._actions[name] = self._answer(self._apps[decision["app"] or 0]) if is_block else ()
        return self._actions[name]

    def _answer(self, app: str) -> tuple[Record, ...]:
        policy, own = self._view.policy, self._inputs.catalogue.entries[app].app
        kind = policy.answer_by_app.get(app, own.answer or policy.answer)
        if kind == "refused":
            self._zone.not_expressed["answers that are REFUSED, here NXDOMAIN"] += 1
        if kind == "sinkhole":
            addresses = (("A", policy.sinkhole.ipv4), ("AAAA", policy.sinkhole.ipv6))
            return tuple((kind, str(address)) for kind, address in addresses if address is not None)
        return {
            "nodata": NODATA,
            "null": (("A", "0.0.0.0"), ("AAAA", "::")),  # noqa: S104  an answer, not a socket
            "drop": (("CNAME", "rpz-drop."),),
        }.get(kind, NXDOMAIN)


def _parents(name: str) -> Iterator[str]:
    """Give the names above one, the nearest first, without the root."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _from_the_top(name: str) -> tuple[str, ...]:
    return tuple(reversed(name.split(".")))


def _address_owner(network: Network) -> str:
    """Write a network as an owner: its length, then the address backwards, the longest run of zeros as zz."""
    if network.version == 4:
        return f"{network.prefixlen}.{'.'.join(reversed(str(network.network_address).split('.')))}"
    text = str(network.network_address)
    before, has_zeros, after = text.partition("::")
    words = [*before.split(":"), *(["zz"] if has_zeros else []), *after.split(":")]
    return f"{network.prefixlen}.{'.'.join(word for word in reversed(words) if word)}"
