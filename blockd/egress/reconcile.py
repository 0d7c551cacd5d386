"""Has the kernel do what is wanted, and sees that it still does: a table that somebody changed is repaired, at once."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from blockd.egress import ruleset
from blockd.egress.nftables import Nftables, NftError, generation
from blockd.egress.ruleset import ABSENT, TYPES, Objects
from blockd.egress.wanted import Wanted
from blockd.settings.values import Address

log = logging.getLogger("blockd")

Learned = tuple[str, Address, int]
#: Whether this kernel leaves an element's time as it is when it is added again: those before 6.12 do.
KEEPS_TIME = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) < (6, 12)
#: Refused sources that are told, the busiest first.
MOST_SOURCES = 1_000
#: Times that all of it is put in force when somebody else changes rules meanwhile.
TRIES = 3


class Reconciler:
    """One table and what it should be. Every call may block for a moment; one thread at a time."""

    def __init__(self, nft: Nftables) -> None:
        """Nothing is wanted yet, and nothing is touched."""
        self._nft = nft
        self.wanted: Wanted | None = None
        #: How often somebody else's change was repaired.
        self.drift = 0
        #: What does not work, if anything does not.
        self.problem: str | None = None
        #: Seconds that the last transaction took.
        self.took = 0.0
        self.applied = 0
        self.refused: Counter[str] = Counter()
        self._until: dict[tuple[str, Address], float] = {}
        self._seen = -1
        #: Whether the table was there before this process.
        self._is_adopted = False
        self._chains: str | None = None
        self._networks: dict[tuple[str, str], Any] = {}

    def is_there(self) -> bool:
        """Say whether a table of ours is in force."""
        return self._nft.objects() is not None

    def want(self, wanted: Wanted, learned: Iterable[Learned]) -> None:
        """Put all of it in force, whole or not at all; NftError says why not."""
        now = time.monotonic()
        apps = set(wanted.apps)
        until = {(app, address): now + seconds for app, address, seconds in learned if app in apps}
        # What the kernel has beside it ends by itself.
        kept = {key: end for key, end in self._until.items() if key[0] in apps and end > now}
        self._put(wanted, {**kept, **until})

    def _put(self, wanted: Wanted, until: dict[tuple[str, Address], float]) -> None:
        for _ in range(TRIES):
            if self._put_once(wanted, until):
                return
        log.error("egress: somebody changes rules all the time: what is read back as ours may be theirs")

    def _put_once(self, wanted: Wanted, until: dict[tuple[str, Address], float]) -> bool:
        """Put it in force and read it back; False when somebody changed anything in between."""
        there = self._nft.objects()
        if self.wanted is None:
            self._is_adopted = there is not None
        text = ruleset.ruleset(wanted, there or Objects())
        now = time.monotonic()
        named = {app for one in wanted.groups.values() for app in one.apps}
        left = [
            (app, address, int(end - now)) for (app, address), end in until.items() if end - now >= 1 and app in named
        ]
        before = generation()
        self._apply(text + ruleset.learning(left, refreshed=there is not None and KEEPS_TIME))
        self.wanted, self._until = wanted, until
        self._chains = self._nft.chains()
        self._networks = {key: self._nft.elements(*key) for key in self._interval_sets(wanted)}
        # Not the generation of now: what came after our own is not seen yet.
        self._seen = before + 1
        return generation() == self._seen

    def _interval_sets(self, wanted: Wanted) -> list[tuple[str, str]]:
        apps = sorted({app for one in wanted.groups.values() for app in one.apps})
        sets = [(f"networks{version}-{app}", "set") for version in TYPES for app in apps]
        sets += [(f"resolvers{version}", "set") for version in TYPES]
        return [*((f"ranges{version}", "map") for version in TYPES), *sets]

    def learn(self, learned: list[Learned]) -> None:
        """Add addresses; what the kernel refuses for want of room is counted."""
        if self.wanted is None:
            return
        now = time.monotonic()
        named = {app for one in self.wanted.groups.values() for app in one.apps}
        learned = [one for one in learned if one[0] in named]
        # What is new here may be there all the same, where a process before this one knew it.
        old: list[Learned] = []
        new: list[Learned] = []
        for one in learned:
            (old if self._is_adopted or self._until.get(one[:2], 0.0) > now else new).append(one)
        try:
            self._step(ruleset.learning(new, refreshed=False) + ruleset.learning(old, refreshed=KEEPS_TIME))
        except NftError as error:
            if "space" not in str(error) and "Too many open files" not in str(error):
                raise
            self.refused["full"] += len(learned)
            self.problem = f"a set of learned addresses is full: {error}"
            return
        for app, address, seconds in learned:
            self._until[app, address] = now + seconds

    def forget(self, addresses: list[tuple[str, Address]]) -> None:
        """Take addresses out."""
        if self.wanted is None:
            return
        named = {app for one in self.wanted.groups.values() for app in one.apps}
        self._step(ruleset.forgetting(one for one in addresses if one[0] in named))
        for key in addresses:
            self._until.pop(key, None)

    def move(self, places: dict[Address, str | None]) -> None:
        """Put sources in other groups; `ABSENT` leaves networks to decide."""
        if self.wanted is None:
            return
        now = self.wanted.places
        changes = [(a, now.get(a, ABSENT), after) for a, after in places.items() if now.get(a, ABSENT) != after]
        self._step(ruleset.moving(changes))
        for address, _, after in changes:
            if after == ABSENT:
                now.pop(address, None)
            else:
                now[address] = after

    def exempt(self, addresses: dict[str, frozenset[Address]], macs: dict[str, frozenset[str]]) -> None:
        """Have just these exempt."""
        if self.wanted is None:
            return
        self.wanted.exempt, self.wanted.exempt_macs = addresses, macs
        self._step(ruleset.exempting(self.wanted))

    def look(self) -> bool:
        """See whether anybody changed what is ours, and repair it; True when somebody did."""
        now = time.monotonic()
        if len(self._until) > 1_000 or self._seen < 0:
            self._until = {key: end for key, end in self._until.items() if end > now}
        if self.wanted is None or generation() == self._seen:
            return False
        now_at = generation()
        why = self._difference()
        if why is None:
            self._seen = now_at
            return False
        self.drift += 1
        log.error("egress: %s, by somebody else: repaired", why)
        self._put(self.wanted, self._until)
        return True

    def _difference(self) -> str | None:
        assert self.wanted is not None
        chains = self._nft.chains()
        if chains is None:
            return "the table was removed"
        if chains != self._chains:
            return "rules were changed"
        for (name, kind), elements in self._networks.items():
            if self._nft.elements(name, kind) != elements:
                return f"{name} was changed"
        for version in TYPES:
            places = {str(address) for address in self.wanted.places if address.version == version}
            if self._nft.elements(f"sources{version}", "map").keys() != places:
                return f"sources{version} was changed"
        now = time.monotonic()
        apps = {app for one in self.wanted.groups.values() for app in one.apps}
        for app in sorted(apps):
            for version in TYPES:
                exempt = {str(a) for a in self.wanted.exempt.get(app, ()) if a.version == version}
                if self._nft.elements(f"exempt{version}-{app}").keys() != exempt:
                    return f"exempt{version}-{app} was changed"
                name = ruleset.learned(app, version)
                there = self._nft.elements(name).keys()
                # An element that is about to end may have gone first.
                known = {
                    str(a)
                    for (own, a), end in self._until.items()
                    if own == app and a.version == version and end > now + 2
                }
                if known - there:
                    return f"{name} lacks addresses"
            if self._nft.elements(f"exemptmac-{app}").keys() != set(self.wanted.exempt_macs.get(app, ())):
                return f"exemptmac-{app} was changed"
        return None

    def off(self) -> bool:
        """Take all of ours away; False when there was nothing."""
        self.wanted, self._chains, self._seen = None, None, -1
        return self._nft.remove()

    def _step(self, text: str) -> None:
        try:
            self._apply(text)
        except NftError as error:
            if self.wanted is None or self._difference() is None:
                raise
            # It stands on what somebody took away.
            log.error("egress: %s", error)
            self.drift += 1
            self._put(self.wanted, self._until)
            self._apply(text)

    def _apply(self, text: str) -> None:
        if not text.strip():
            return
        began, before = time.monotonic(), generation()
        self._nft.apply(text)
        self.took, self.applied, self.problem = time.monotonic() - began, self.applied + 1, None
        # One transaction is one generation: one more was somebody else's, and is looked at.
        if before == self._seen and generation() == before + 1:
            self._seen = before + 1

    def status(self) -> dict[str, Any]:
        """Say how it stands, for people and dashboards."""
        if self.wanted is None:
            return {"generation": None, "problem": self.problem}
        counters = {}
        for name, (packets, octets) in self._nft.counters().items():
            kind, _, rest = name.partition("/")
            if rest:
                group, _, app = rest.partition("/")
                counters[name] = {"what": kind, "group": group, "app": app, "packets": packets, "octets": octets}
        refused = {**self._nft.refused(4), **self._nft.refused(6)}
        most = sorted(refused.items(), key=lambda one: -one[1])[:MOST_SOURCES]
        now = time.monotonic()
        sizes = Counter(app for (app, _), end in self._until.items() if end > now)
        return {
            "generation": self.wanted.generation,
            "problem": self.problem,
            "drift": self.drift,
            "applied": self.applied,
            "took": self.took,
            "refused": dict(self.refused),
            "sources": len(self.wanted.places),
            "learned": {app: sizes[app] for app in self.wanted.apps},
            "networks": {app: len(own) for app, own in self.wanted.apps.items()},
            "exempt": {app: len(own) for app, own in self.wanted.exempt.items()},
            "counters": list(counters.values()),
            "refused_sources": dict(most),
        }
