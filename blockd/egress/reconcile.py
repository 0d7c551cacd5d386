"""Has the kernel do what is wanted, and sees that it still does: a table that somebody changed is repaired, at once."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from blockd.egress import ruleset
from blockd.egress.connections import Destinations
from blockd.egress.learned import ROOM
from blockd.egress.nftables import Nftables, NftError
from blockd.egress.ruleset import ABSENT, GRACE, Objects
from blockd.egress.wanted import Wanted
from blockd.settings.values import Address

log = logging.getLogger("blockd")

Learned = tuple[str, Address, int]
#: Whether this kernel leaves an element's time as it is when it is added again: those before 6.12 do.
KEEPS_TIME = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) < (6, 12)
#: Seconds after which ends of addresses that are gone are forgotten.
TIDY = 10.0
#: Refused sources that are told, the busiest first.
MOST_SOURCES = 1_000


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
        self._tidied = 0.0
        #: Who was exempt when that was looked at last, and whose exemptions ended: app, and source or MAC.
        self._was_exempt: set[tuple[str, Address | str]] = set()
        self._ended: set[tuple[str, Address | str]] = set()
        #: Whether the table was there before this process, whether it is ours, whether all of it is to be put in force.
        self._is_adopted = self._is_ours = self.is_due = False
        #: Addresses that are to be let go with the next transaction.
        self._gone: set[tuple[str, Address]] = set()

    def is_there(self) -> bool:
        """Say whether a table of ours is in force."""
        return self._nft.objects() is not None

    def want(self, wanted: Wanted, learned: Iterable[Learned], gone: Iterable[tuple[str, Address]] = ()) -> None:
        """Put all of it in force, whole or not at all; NftError says why not, and `look` tries again.

        `gone` are addresses of before that are not to be refused any more.
        """
        now, before = time.monotonic(), self.wanted
        apps = set(wanted.apps)
        until = {(app, address): now + seconds for app, address, seconds in learned if app in apps}
        # What the kernel has beside it ends by itself.
        kept = {key: end for key, end in self._until.items() if key[0] in apps and end > now}
        if before is None:
            self._is_adopted = self._is_ours = self._nft.objects() is not None
            self._gone.update(self._strangers())
        is_same = before is not None and not self.is_due and _lasting(before) == _lasting(wanted)
        self.wanted, self._until, self.is_due = wanted, {**kept, **until}, True
        for key in gone:
            self._until.pop(key, None)
            self._gone.add(key)
        if before is not None and is_same:
            # A reload of names, most likely: the rules are as they should be.
            new = [(*key, int(end - now)) for key, end in until.items() if end - kept.get(key, 0.0) > 1]
            exempt = ruleset.exempting(wanted, time.time()) if _exempt(before) != _exempt(wanted) else ""
            with contextlib.suppress(NftError):
                self._apply(exempt + self._forgetting() + self._adding([one for one in new if one[:2] in self._until]))
                self._gone, self.is_due = set(), False
                self._note_ended()
                return
        self._put()

    def _strangers(self) -> set[tuple[str, Address]]:
        """Give what is among the learned addresses and was not learned."""
        there, found, now = self._nft.objects(self._is_ours), set(), time.monotonic()
        for name in sorted(there.sets if there else ()):
            if not name.startswith("learned"):
                continue
            for one, left in self._nft.elements(name).items():
                key = (name.partition("-")[2], ip_address(one))
                # What a process before this one learned has an end, and is not known here.
                if left is None or (not self._is_adopted and self._until.get(key, 0.0) < now):
                    found.add(key)
        return found

    def _put(self) -> None:
        """Put all of it in force."""
        assert self.wanted is not None
        # If somebody else changed something just then, once more: and what he changes from now on is heard.
        for is_all in (True, False):
            there = self._nft.objects(self._is_ours)
            text = ruleset.ruleset(self.wanted, time.time(), there or Objects()) + self._forgetting()
            try:
                is_alone = self._apply(text + self._learning(time.monotonic(), there is not None), is_all)
            except NftError as error:
                if not _is_full(error):
                    raise
                # A generation is put in force though there is no room for all that is known of addresses.
                self.refused["full"] += 1
                is_alone = self._apply(text, is_all)
            if is_alone:
                break
        self._is_ours, self._gone, self.is_due = True, set(), False
        self._note_ended()

    def _note_ended(self) -> None:
        """See whose exemption is not in force any more."""
        assert self.wanted is not None
        wall = time.time()
        now = {
            (app, one)
            for by_app in _exempt(self.wanted)
            for app, ends in by_app.items()
            for one, end in ends.items()
            if end + GRACE > wall
        }
        blocked = {app for one in self.wanted.groups.values() for app in one.block}
        self._ended |= {one for one in self._was_exempt - now if one[0] in blocked}
        self._was_exempt = now

    def take_ended(self) -> dict[Address | str, list[Destinations]]:
        """Give the sources, or MACs, whose exemptions ended since this was asked last, and what they were for."""
        if not self._ended or self.wanted is None:
            return {}
        there = {}
        for app in {app for app, _ in self._ended}:
            addresses = frozenset(address for own, address in self._until if own == app)
            there[app] = Destinations(app, addresses, self.wanted.apps.get(app, ()))
        ended: dict[Address | str, list[Destinations]] = {}
        for app, one in self._ended:
            ended.setdefault(one, []).append(there[app])
        self._ended = set()
        return ended

    def _forgetting(self) -> str:
        assert self.wanted is not None
        named = _named(self.wanted)
        return ruleset.forgetting(key for key in self._gone if key[0] in named)

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

    def learn(self, learned: list[Learned]) -> None:
        """Add addresses; what the kernel refuses for want of room is counted."""
        if self.wanted is None:
            return
        now, named = time.monotonic(), _named(self.wanted)
        learned = [one for one in learned if one[0] in named]
        text = self._adding(learned)
        before = {one[:2]: self._until.get(one[:2]) for one in learned}
        for app, address, seconds in learned:
            self._until[app, address] = now + seconds
            self._gone.discard((app, address))
        try:
            self._step(text)
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

    def _adding(self, learned: list[Learned]) -> str:
        """Write what adds addresses, before they are known."""
        now = time.monotonic()
        # What is new here may be there all the same, where a process before this one knew it.
        old: list[Learned] = []
        new: list[Learned] = []
        for one in learned:
            (old if self._is_adopted or self._until.get(one[:2], 0.0) > now else new).append(one)
        return ruleset.learning(new, refreshed=False) + ruleset.learning(old, refreshed=KEEPS_TIME)

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
        self._note_ended()

    def _repair(self, what: str) -> None:
        self.drift += 1
        log.error("egress: %s: repaired", what)
        self.is_due = True
        self._gone.update(self._strangers())
        self._put()

    def look(self, is_all: bool = False) -> bool:
        """Repair what somebody else changed of ours, and do what is due, or all; True when somebody did.

        NftError says why not: it is due from then on.
        """
        what = self._nft.changes()
        if what is not None and self.wanted is not None:
            self._repair(what)
            return True
        now = time.monotonic()
        if now > self._tidied + TIDY:
            self._until, self._tidied = {key: end for key, end in self._until.items() if end > now}, now
        if self.wanted is not None and (self.is_due or is_all):
            self._put()
        elif self.wanted is not None:
            self._note_ended()
        return False

    def off(self) -> bool:
        """Take all of ours away; False when there was nothing."""
        self.wanted, self.is_due = None, False
        self._until, self._gone, self._was_exempt, self._ended = {}, set(), set(), set()
        return self._nft.remove()

    def _step(self, text: str) -> None:
        """Put a change in force; all of it is put in force again, now or soon, when that fails."""
        # What is wanted is known already: `look` has it done when this does not.
        was_due, self.is_due = self.is_due, True
        try:
            self._apply(text)
            self.is_due = was_due
        except NftError as error:
            what = None if _is_full(error) else self._nft.changes()
            if what is None:
                raise
            # It stands on what somebody took away.
            self._repair(what)

    def _apply(self, text: str, is_all: bool = False) -> bool:
        if not text.strip():
            return True
        began = time.monotonic()
        is_alone = self._nft.apply(text, is_all)
        self.took, self.applied = time.monotonic() - began, self.applied + 1
        self.problem = None
        return is_alone

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


def _lasting(wanted: Wanted) -> Wanted:
    """Give what the rules are made of, beside what changes by itself."""
    return replace(wanted, generation="", exempt={}, exempt_macs={})


def _exempt(wanted: Wanted) -> tuple[Mapping[str, Mapping[Any, float]], Mapping[str, Mapping[Any, float]]]:
    return wanted.exempt, wanted.exempt_macs
