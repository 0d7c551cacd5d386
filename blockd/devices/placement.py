"""Whose an address is: what DHCP says, joined with the inventories.

By its MAC alone is a device known: a name is what a client calls itself. Sources in order: a lease, the kernel's
neighbour table, an inventory's address, networks. A feed that cannot be read any more, and a lease that ends without a
word, turn no device of ours into a stranger: what was said last stands for a time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from blockd.devices.inventory import Device, is_randomised
from blockd.devices.leases import Lease, Part
from blockd.devices.leases.lease import ENDLESS, Unusable, read_lease
from blockd.problems import Problem, Skipped
from blockd.settings.values import Address

#: Of an outcome: evidence counts for nothing, and networks decide.
NETWORKS = "networks"
#: What an address is known as.
KNOWN, STALE, CONFLICT, UNKNOWN, RANDOMISED = "known", "stale", "conflict", "unknown", "randomised"


@dataclass(frozen=True)
class Place:
    """What is known of an address, and by which feed."""

    lease: Lease
    feed: Source
    state: str
    #: None when its MAC is in no inventory.
    device: Device | None
    #: Where it belongs by that; None when networks decide.
    group: str | None


#: Seconds since 1970, for a lease without end where JSON is to be written.
NEVER = 1e18


class Source(Protocol):
    """What says which MAC has an address: lease files, and the neighbour table."""

    file: Path
    format: str
    leases: dict[Address, Lease]
    problem: str | None
    #: When it was read, or seen to be as it was read; seconds since 1970.
    confirmed: float
    #: Records that cannot be used.
    skipped: Skipped
    left_out: int

    @property
    def is_empty(self) -> bool:
        """Say whether it was read and has no lease, as one after a power cut, so that what was kept of it stands."""

    def fetch(self) -> Part:
        """Read what is new, which may take its time."""

    def take(self, part: Part, now: float) -> set[Address]:
        """Take in what was read; give the addresses of which something else is said than before."""


@dataclass
class Placement:
    """Every address that DHCP has given, and whose it is."""

    feeds: Sequence[Source]
    #: Seconds for which what was said of a device of ours stands, though its lease ends or its feed cannot be read.
    stands: float
    #: State -> the group of an address in it, or `networks` where networks decide; what is not named is as it is.
    outcomes: Mapping[str, str] = field(default_factory=dict)
    by_mac: dict[str, tuple[str, Device]] = field(default_factory=dict)
    #: Addresses that an inventory ties to MACs.
    tied: dict[Address, set[str]] = field(default_factory=dict)
    places: dict[Address, Place] = field(default_factory=dict)
    #: By serial and hostname: addresses now.
    addresses: defaultdict[str, set[Address]] = field(default_factory=lambda: defaultdict(set))
    #: Seconds since 1970, as of the last look.
    _now: float = 0.0

    def learn(self, devices: Mapping[str, Iterable[Device]], now: float | None = None) -> None:
        """Take inventories in: group -> devices. What they change is joined anew."""
        self._now = self._now if now is None else now
        before, self.by_mac, self.tied = (self.by_mac, self.tied), {}, {}
        for group, members in devices.items():
            for device in members:
                if device.mac:
                    self.by_mac.setdefault(device.mac, (group, device))
                if device.mac and device.address is not None:
                    self.tied.setdefault(device.address, set()).add(device.mac)
        if not self.places or before != (self.by_mac, self.tied):
            self._join({*self.places, *(address for feed in self.feeds for address in feed.leases)})

    def look(self, now: float) -> set[Address]:
        """Read what is new of every feed, and take it in."""
        return set().union(*[self.take(feed, feed.fetch(), now) for feed in self.feeds])

    def take(self, feed: Source, part: Part, now: float) -> set[Address]:
        """Take in what was read, and drop what has ended; give the addresses that belong elsewhere than before."""
        self._now, was_failing = now, feed.problem is not None
        touched = feed.take(part, now)
        if feed.problem is None:
            touched |= self._drop_ended(feed, now) if part.is_last else set()
        elif now - feed.confirmed > self.stands:
            # For so long, and not for as long as leases are: who has those addresses by now, nobody knows.
            touched |= feed.leases.keys()
            feed.leases.clear()
        if was_failing != (feed.problem is not None):
            # How certain it is changes, and not whose it is.
            touched |= feed.leases.keys()
        return self._join(touched)

    def kept(self, groups: Collection[str]) -> list[dict[str, Any]]:
        """Give what feeds say of devices of these groups; of others nothing is to be kept anywhere."""
        return [
            {
                "file": str(feed.file),
                "format": feed.format,
                "confirmed": feed.confirmed,
                "leases": [
                    [str(lease.address), lease.mac, min(lease.expires, NEVER)]
                    for lease in feed.leases.values()
                    if lease.expires and self.by_mac.get(lease.mac, ("",))[0] in groups
                ],
            }
            for feed in self.feeds
            if feed.leases
        ]

    def restore(self, kept: Any, now: float) -> Skipped:
        """Have feeds that said nothing yet say what they said before; give what of it cannot be used."""
        skipped = Skipped()

        def skip(at: int) -> None:
            skipped.add(Problem("", at, "", "is not what blockd keeps of a lease"))

        said = {}
        for at, one in enumerate(kept if isinstance(kept, list) else [kept], 1):
            if isinstance(one, dict) and isinstance(one.get("leases"), list):
                said[str(one.get("file")), str(one.get("format"))] = one
            else:
                skip(at)
        for feed in self.feeds:
            found = said.get((str(feed.file), feed.format))
            if found is None or feed.leases or (feed.problem is None and not feed.is_empty):
                continue
            # Nothing was confirmed later than now, whatever the file says.
            confirmed = min(_moment(found.get("confirmed")) or 0.0, now)
            for at, row in enumerate(found["leases"], 1):
                lease = _kept_lease(row)
                if lease is None:
                    skip(at)
                elif feed.problem is None:
                    # Read, and without any lease, as after a power cut: what was in it stands as what is gone does.
                    feed.leases[lease.address] = replace(lease, expires=min(lease.expires, confirmed))
                else:
                    feed.leases[lease.address] = lease
            if feed.problem is None:
                self._now = now
                self._join(feed.leases.keys() | self._drop_ended(feed, now))
                continue
            feed.confirmed = confirmed
            self.take(feed, Part(problem=feed.problem), now)
            self._join(feed.leases)
        return skipped

    def _drop_ended(self, feed: Source, now: float) -> set[Address]:
        """Forget leases that have ended; give their addresses. A device of ours keeps its own for a while.

        Unless it gave it back, or another has it: a client that goes on with an address whose lease has ended, as one
        does whose server is away, is no stranger for that.
        """
        ended = {address: lease for address, lease in feed.leases.items() if lease.expires <= now}
        touched = set()
        for address, lease in ended.items():
            is_ours = lease.mac in self.by_mac and lease.expires > 0 and now - lease.expires <= self.stands
            if not is_ours:
                del feed.leases[address]
                touched.add(address)
            elif (place := self.places.get(address)) is not None and place.lease == lease and place.state != STALE:
                # It held until now: who has the address is asked again.
                touched.add(address)
        return touched

    def _join(self, addresses: Iterable[Address]) -> set[Address]:
        changed = set()
        for address in addresses:
            before, after = self.places.get(address), self._place(address)
            if before is not None:
                for identity in before.device.identities if before.device else ():
                    self.addresses[identity].discard(address)
            if after is None:
                self.places.pop(address, None)
            else:
                self.places[address] = after
                for identity in after.device.identities if after.device else ():
                    self.addresses[identity].add(address)
            if _where(before) != _where(after):
                changed.add(address)
        return changed

    def _place(self, address: Address) -> Place | None:
        said = [
            (feed, lease) for feed in self.feeds if (lease := feed.leases.get(address)) is not None and lease.expires
        ]
        if not said:
            return None
        # Of feeds that differ, one that knows a device of ours is believed: none is lost by a mistake of the other.
        now = self._now
        said.sort(
            key=lambda one: (
                one[1].expires > now,
                one[1].mac in self.by_mac,
                one[0].format != "neighbours",
                one[1].expires,
            ),
            reverse=True,
        )
        feed, lease = said[0]
        group, device = self.by_mac.get(lease.mac, (None, None))
        if len({other.mac for _, other in said if other.mac and other.expires > now}) > 1:
            state = CONFLICT
        elif feed.problem is not None or lease.expires <= now:
            state = STALE
        elif device is not None:
            state = KNOWN
        else:
            state = RANDOMISED if lease.mac and is_randomised(lease.mac) else UNKNOWN
        outcome = self.outcomes.get(state)
        if outcome is not None:
            group = None if outcome == NETWORKS else outcome
        return Place(lease, feed, state, device, group)

    def is_elsewhere(self, address: Address) -> bool:
        """Say whether an inventory ties an address to a MAC that does not have it now."""
        place, tied = self.places.get(address), self.tied.get(address)
        return place is not None and tied is not None and place.lease.mac not in {"", *tied}

    def counts(self) -> Counter[tuple[str, str, str]]:
        """Count addresses by group (`networks` where those decide), format of the feed, and state."""
        return Counter(
            (place.group or NETWORKS, place.feed.format, place.state) for place in list(self.places.values())
        )


def _kept_lease(row: Any) -> Lease | None:
    """Read a lease as :meth:`Placement.kept` writes it; None for anything else."""
    if not isinstance(row, list) or len(row) != 3:
        return None
    address, mac, end = row
    expires = _moment(end)
    if expires is None or not isinstance(address, str) or not isinstance(mac, str):
        return None
    lease = read_lease(address, mac, "", ENDLESS if expires >= NEVER else expires)
    return None if isinstance(lease, Unusable) else lease


def _moment(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= NEVER:
        return None
    return float(value)


def _where(place: Place | None) -> tuple[str | None, frozenset[str]]:
    if place is None:
        return None, frozenset()
    return place.group, frozenset(place.device.identities) if place.device else frozenset()
