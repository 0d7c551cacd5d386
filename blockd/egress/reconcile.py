"""Has the kernel do what is wanted, and sees that it still does: a table that somebody changed is repaired, at once."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from blockd.egress import ruleset
from blockd.egress.learned import ROOM
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
        #: Whether the table was there before this process, whether it is ours, whether all of it is to be put in force.
        self._is_adopted = self._is_ours = self.is_due = False
        #: Addresses that are to be let go with the next transaction.
        self._gone: set[tuple[str, Address]] = set()
        self._chains: str | None = None
        self._networks: dict[tuple[str, str], Any] = {}

    def is_there(self) -> bool:
        """Say whether a table of ours is in force."""
        return self._nft.objects() is not None

    def want(self, wanted: Wanted, learned: Iterable[Learned], gone: Iterable[tuple[str, Address]] = ()) -> None:
        """Put all of it in force, whole or not at all; NftError says why not, and `look` tries again.

        `gone` are addresses of before that are not to be refused any more.
        """
        now = time.monotonic()
        apps = set(wanted.apps)
        until = {(app, address): now + seconds for app, address, seconds in learned if app in apps}
        # What the kernel has beside it ends by itself.
        kept = {key: end for key, end in self._until.items() if key[0] in apps and end > now}
        if self.wanted is None:
            self._is_adopted = self._nft.objects() is not None
            self._is_ours = self._is_adopted
        self.wanted, self._until, self.is_due = wanted, {**kept, **until}, True
        for key in gone:
            self._until.pop(key, None)
            self._gone.add(key)
        self._put()

    def _put(self) -> None:
        for _ in range(TRIES):
            if self._put_once():
                return
        log.error("egress: somebody changes rules all the time: what is read back as ours may be theirs")

    def _put_once(self) -> bool:
        """Put it in force and read it back; False when somebody changed anything in between."""
        assert self.wanted is not None
        wanted, now = self.wanted, time.monotonic()
        there = self._nft.objects(self._is_ours)
        text = ruleset.ruleset(wanted, time.time(), there or Objects())
        gone = [key for key in self._gone if key[0] in _named(wanted)]
        before = generation()
        try:
            self._apply(text + ruleset.forgetting(gone) + self._learning(now, there is not None))
        except NftError as error:
            if not _is_full(error):
                raise
            # A generation is put in force though there is no room for all that is known of addresses.
            self.refused["full"] += 1
            before = generation()
            self._apply(text + ruleset.forgetting(gone))
        self._is_ours, self._gone, self.is_due = True, set(), False
        self._chains = self._nft.chains()
        self._networks = {key: self._nft.elements(*key) for key in self._interval_sets(wanted)}
        # Not the generation of now: what came after our own is not seen yet.
        self._seen = before + 1
        return generation() == self._seen

    def _learning(self, now: float, is_there: bool) -> str:
        """Write what is known of addresses: of each set those that stand longest, where there are too many."""
        assert self.wanted is not None
        named, sets = _named(self.wanted), Counter[tuple[str, int]]()
        left: list[Learned] = []
        for (app, address), end in sorted(self._until.items(), key=lambda one: -one[1]):
            if app in named and end - now >= 1 and sets[app, address.version] < ROOM:
                sets[app, address.version] += 1
                left.append((app, address, int(end - now)))
        return ruleset.learning(left, refreshed=is_there and KEEPS_TIME)

    def _interval_sets(self, wanted: Wanted) -> list[tuple[str, str]]:
        apps = sorted({app for one in wanted.groups.values() for app in one.apps})
        sets = [(f"networks{version}-{app}", "set") for version in TYPES for app in apps]
        sets += [(f"resolvers{version}", "set") for version in TYPES]
        return [*((f"ranges{version}", "map") for version in TYPES), *sets]

    def learn(self, learned: list[Learned]) -> None:
        """Add addresses; what the kernel refuses for want of room is counted."""
        if self.wanted is None:
            return
        now, named = time.monotonic(), _named(self.wanted)
        learned = [one for one in learned if one[0] in named]
        # What is new here may be there all the same, where a process before this one knew it.
        old: list[Learned] = []
        new: list[Learned] = []
        for one in learned:
            (old if self._is_adopted or self._until.get(one[:2], 0.0) > now else new).append(one)
        before = {one[:2]: self._until.get(one[:2]) for one in learned}
        for app, address, seconds in learned:
            self._until[app, address] = now + seconds
            self._gone.discard((app, address))
        try:
            self._step(ruleset.learning(new, refreshed=False) + ruleset.learning(old, refreshed=KEEPS_TIME))
        except NftError as error:
            if not _is_full(error):
                raise
            self.is_due = False
            for key, end in before.items():
                if end is None:
                    del self._until[key]
                else:
                    self._until[key] = end
            self.refused["full"] += len(learned)
            self.problem = f"a set of learned addresses is full: {error}"

    def forget(self, addresses: list[tuple[str, Address]]) -> None:
        """Take addresses out."""
        if self.wanted is None:
            return
        named = _named(self.wanted)
        for key in addresses:
            self._until.pop(key, None)
            self._gone.add(key)
        self._step(ruleset.forgetting(one for one in addresses if one[0] in named))
        self._gone.difference_update(addresses)

    def move(self, places: dict[Address, str | None]) -> None:
        """Put sources in other groups; `ABSENT` leaves networks to decide."""
        if self.wanted is None:
            return
        now = self.wanted.places
        changes = [(a, now.get(a, ABSENT), after) for a, after in places.items() if now.get(a, ABSENT) != after]
        for address, _, after in changes:
            if after == ABSENT:
                now.pop(address, None)
            else:
                now[address] = after
        self._step(ruleset.moving(changes))

    def exempt(self, addresses: dict[str, dict[Address, float]], macs: dict[str, dict[str, float]]) -> None:
        """Have just these exempt."""
        if self.wanted is None:
            return
        self.wanted.exempt, self.wanted.exempt_macs = addresses, macs
        self._step(ruleset.exempting(self.wanted, time.time()))

    def look(self) -> bool:
        """See whether anybody changed what is ours, or something failed, and repair it; True when somebody did."""
        now = time.monotonic()
        self._until = {key: end for key, end in self._until.items() if end > now}
        if self.wanted is None:
            return False
        if self.is_due:
            self._put()
            return False
        now_at = generation()
        if now_at == self._seen:
            return False
        why = self._difference()
        if why is None:
            self._seen = now_at
            return False
        self.drift += 1
        log.error("egress: %s, by somebody else: repaired", why)
        self._put()
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
        maps: list[tuple[str, dict[str, str | None]]] = [("macs", dict(self.wanted.macs))]
        for version in TYPES:
            places = {str(a): group for a, group in self.wanted.places.items() if a.version == version}
            maps.append((f"sources{version}", places))
        for name, leads in maps:
            wanted = {key: ruleset.lead(group) for key, group in leads.items()}
            if {key: _lead(to) for key, to in self._nft.elements(name, "map").items()} != wanted:
                return f"{name} was changed"
        now, wall = time.monotonic(), time.time()
        lasting: defaultdict[str, list[Address]] = defaultdict(list)
        for (app, address), end in self._until.items():
            if end > now + 2:
                lasting[app].append(address)
        for app in sorted(_named(self.wanted)):
            for version in TYPES:
                exempt = {a: end for a, end in self.wanted.exempt.get(app, {}).items() if a.version == version}
                if _differs(self._nft.elements(f"exempt{version}-{app}").keys(), exempt, wall):
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
            if _differs(self._nft.elements(f"exemptmac-{app}").keys(), self.wanted.exempt_macs.get(app, {}), wall):
                return f"exemptmac-{app} was changed"
        return None

    def off(self) -> bool:
        """Take all of ours away; False when there was nothing."""
        self.wanted, self._chains, self._seen, self.is_due = None, None, -1, False
        self._until, self._gone = {}, set()
        return self._nft.remove()

    def _step(self, text: str) -> None:
        """Put a change in force; all of it is put in force again, now or soon, when that fails."""
        # What is wanted is known already: `look` has it done when this does not.
        was_due, self.is_due = self.is_due, True
        try:
            self._apply(text)
            self.is_due = was_due
        except NftError as error:
            if _is_full(error) or self._nft.chains() == self._chains:
                raise
            # It stands on what somebody took away.
            log.error("egress: %s", error)
            self.drift += 1
            self._put()

    def _apply(self, text: str) -> None:
        if not text.strip():
            return
        began, before = time.monotonic(), generation()
        self._nft.apply(text)
        self.took, self.applied = time.monotonic() - began, self.applied + 1
        self.problem = None
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
            "is_due": self.is_due,
            "counters": list(counters.values()),
            "refused_sources": dict(most),
        }


def _named(wanted: Wanted) -> set[str]:
    """Name the apps that have sets."""
    return {app for one in wanted.groups.values() for app in one.apps}


def _is_full(error: NftError) -> bool:
    return any(text in str(error) for text in ("space", "Too many open files in system", "No buffer"))


def _lead(to: Any) -> str:
    """Write what an element of a map leads to, as it was written."""
    target = to.get("goto", {}) if isinstance(to, dict) else {}
    return f"goto {target['target']}" if target else "accept"


def _differs(there: Iterable[str], ends: Mapping[Any, float], wall: float) -> bool:
    """Say whether a set has others than these; who ends just now may be there or not."""
    found = set(there)
    certain = {str(one) for one, end in ends.items() if end > wall + 2}
    return bool(certain - found or found - {str(one) for one, end in ends.items() if end > wall - 2})
