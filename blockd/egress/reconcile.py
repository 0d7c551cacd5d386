"""Has the kernel do what is wanted, and sees that it still does: a table that somebody changed is repaired, at once."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, TypeVar

from blockd.egress import ruleset
from blockd.egress.connections import Destinations
from blockd.egress.ends import Ends
from blockd.egress.learned import ROOM
from blockd.egress.nftables import Counted, Nftables, NftError, SetFullError
from blockd.egress.ruleset import ABSENT, GRACE, TABLE, TYPES, Objects
from blockd.egress.wanted import Wanted
from blockd.settings.values import Address

log = logging.getLogger("blockd")

Learned = tuple[str, Address, int]
Outcome = TypeVar("Outcome")
#: Whether this kernel leaves an element's time as it is when it is added again: those before 6.12 do.
KEEPS_TIME = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) < (6, 12)
#: For an app that is not known; an end that was not there.
NONE, NEVER = Ends(), -1.0
#: Seconds for which an address that has ended is remembered, for connections that are open to it.
PAST = 86_400.0
#: Sources that are told, the busiest first.
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
        #: What was learned, by app, and what of it has ended while somebody was exempt.
        self._known: dict[str, Ends] = {}
        self._past: dict[str, Ends] = {}
        #: Who was exempt when that was looked at last, and whose exemptions ended: app, and source or MAC.
        self._was_exempt: set[tuple[str, Address | str]] = set()
        self._ended: set[tuple[str, Address | str]] = set()
        #: Whether the table was there before this process, whether it is ours, whether all of it is to be put in force.
        self._is_adopted = self._is_ours = self.is_due = False
        #: Whether there may be what somebody else put among the learned addresses.
        self.has_strangers = False
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
        if before is None:
            self._is_adopted = self._is_ours = self.has_strangers = self._nft.objects() is not None
        if self.is_due:
            # It is not known what is in force.
            before = None
        self.wanted, self.is_due = wanted, True
        # What the kernel has beside it ends by itself.
        self._known = {app: self._known.get(app) or Ends() for app in wanted.apps}
        gone = set(gone)
        self._gone |= gone
        for app, address in gone:
            self._known.get(app, NONE).drop(address)
        new = []
        for app, address, seconds in learned:
            # Another second is not worth a word.
            is_wanted = app in self._known and (app, address) not in gone
            if is_wanted and now + seconds - self._known[app].get(address) > 1:
                self._known[app].put(address, now + seconds)
                new.append((app, address, seconds))
        if before is not None and _lasting(before) == _lasting(wanted):
            # A reload of names, most likely: the rules are as they should be.
            exempt = ruleset.exempting(wanted, time.time()) if _exempt(before) != _exempt(wanted) else ""
            with contextlib.suppress(NftError):
                if (text := exempt + self._forgetting()).strip():
                    self._do(self._nft.apply, text)
                if new:
                    with self._counting_full():
                        self._do(self._nft.learn, new, KEEPS_TIME)
                self._gone, self.is_due = set(), False
                self._note_ended()
                return
        self._put(before, new)

    def strangers(self) -> list[tuple[str, Address]]:
        """Give what is among the learned addresses and was not learned; on any thread, for to list them takes time."""
        there, found = self._nft.objects(self._is_ours), []
        for name in sorted(there.sets if there else ()):
            if not name.startswith("learned"):
                continue
            for one, left in self._nft.elements(name).items():
                app, address = name.partition("-")[2], ip_address(one)
                # What a process before this one learned has an end, and is not known here.
                if left is None or (not self._is_adopted and address not in self._known.get(app, NONE)):
                    found.append((app, address))
        return found

    def evict(self, strangers: list[tuple[str, Address]]) -> None:
        """Take them out; what was learned nevertheless is put back with its end."""
        if self.wanted is None:
            return
        now, named = time.monotonic(), _named(self.wanted)
        found = [(app, address) for app, address in strangers if app in named]
        known = [(*one, int(end - now)) for one in found if (end := self._known[one[0]].get(one[1])) > now + 1]
        self.has_strangers = False
        if found:
            self._step(self._nft.apply, ruleset.forgetting(found))
            self._step(self._nft.learn, known)

    def _put(self, before: Wanted | None = None, new: Iterable[Learned] = ()) -> None:
        """Put all of it in force, and then what is known of addresses.

        Where `before` is in force for certain, only what is not the same, and addresses that are new.
        """
        assert self.wanted is not None
        # If somebody else changed something just then, once more: and what he changes from now on is heard.
        for is_all in (True, False):
            there = self._nft.objects(self._is_ours) or Objects()
            if not there.maps:
                # It is gone by now.
                before = None
            self.has_strangers &= bool(there.sets)
            text = ruleset.ruleset(self.wanted, time.time(), there, before) + self._forgetting()
            try:
                is_alone = self._do(self._nft.apply, text, is_all)
            except NftError as error:
                if there == Objects():
                    raise
                # Something of ours has another definition: somebody else's, or that of another version of blockd.
                text = f"delete table {TABLE}\n{ruleset.ruleset(self.wanted, time.time())}"
                is_alone = self._do(self._nft.apply, text, is_all)
                log.error("egress: the table could not be changed, and was made anew: %s", error)
                there, before = Objects(), None
                self._is_adopted = self.has_strangers = False
            if is_alone:
                break
            before = None
        # A generation is in force though there may be no room for all that is known of addresses.
        with self._counting_full():
            self._nft.learn(self._known_best(there, None if before is None else new), KEEPS_TIME)
        self._is_ours, self._gone, self.is_due = True, set(), False
        self._note_ended()

    @contextlib.contextmanager
    def _counting_full(self) -> Iterator[None]:
        try:
            yield
        except SetFullError as error:
            self.refused["full"] += 1
            self.problem = str(error)

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
            addresses = frozenset((*self._known.get(app, NONE), *self._past.get(app, NONE)))
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

    def _known_best(self, there: Objects, new: Iterable[Learned] | None) -> list[Learned]:
        """Give what is known of addresses, or what is new; of too many those that stand longest."""
        assert self.wanted is not None
        now = time.monotonic()
        left: list[Learned] = []
        for app in sorted(_named(self.wanted)):
            for version in TYPES:
                known = [one for one in self._known[app].items() if one[0].version == version and one[1] - now >= 1]
                if new is not None and ruleset.learned(app, version) in there.sets:
                    known = [(address, now + seconds) for own, address, seconds in new if own == app]
                known.sort(key=lambda one: -one[1])
                left += [(app, address, int(end - now)) for address, end in known[:ROOM] if address.version == version]
        return left

    def learn(self, learned: list[Learned]) -> None:
        """Add addresses; what the kernel refuses for want of room is counted."""
        if self.wanted is None:
            return
        now, named = time.monotonic(), _named(self.wanted)
        learned = [one for one in learned if one[0] in named]
        before = {one[:2]: self._known[one[0]].get(one[1], NEVER) for one in learned}
        for app, address, seconds in learned:
            self._known[app].put(address, now + seconds)
            self._gone.discard((app, address))
        try:
            self._step(self._nft.learn, learned, KEEPS_TIME)
        except SetFullError as error:
            for (app, address), end in before.items():
                if end == NEVER:
                    self._known[app].drop(address)
                else:
                    self._known[app].put(address, end)
            self.refused["full"] += len(learned)
            self.problem = str(error)

    def forget(self, addresses: list[tuple[str, Address]]) -> None:
        """Take addresses out."""
        if self.wanted is None:
            return
        named = _named(self.wanted)
        for app, address in addresses:
            self._known.get(app, NONE).drop(address)
            self._gone.add((app, address))
        text = ruleset.forgetting(one for one in addresses if one[0] in named)
        self._step(self._nft.apply, text)
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
        self._step(self._nft.apply, ruleset.moving(changes))

    def exempt(self, addresses: dict[str, dict[Address, float]], macs: dict[str, dict[str, float]]) -> None:
        """Have just these exempt."""
        if self.wanted is None:
            return
        self.wanted.exempt, self.wanted.exempt_macs = addresses, macs
        text = ruleset.exempting(self.wanted, time.time())
        self._step(self._nft.apply, text)
        self._note_ended()

    def _repair(self, what: str) -> None:
        self.drift += 1
        log.error("egress: %s: repaired", what)
        self.is_due = self.has_strangers = True
        self._put()

    def look(self, is_all: bool = False) -> bool:
        """Repair what somebody else changed of ours, and do what is due, or all; True when somebody did.

        NftError says why not: it is due from then on.
        """
        what = self._nft.changes()
        if what is not None and self.wanted is not None:
            self._repair(what)
            return True
        now, exempt = time.monotonic(), {app for app, _ in self._was_exempt}
        for app, known in self._known.items():
            past = self._past.setdefault(app, Ends())
            past.tidy(now)
            for address in known.tidy(now):
                # Connections that are open to it end with the exemption all the same.
                if app in exempt:
                    past.put(address, now + PAST)
        if self.wanted is not None and (self.is_due or is_all):
            self._put()
        elif self.wanted is not None:
            self._note_ended()
        return False

    def off(self) -> bool:
        """Take all of ours away; False when there was nothing."""
        self.wanted, self.is_due = None, False
        self._known, self._gone, self._was_exempt, self._ended = {}, set(), set(), set()
        return self._nft.remove()

    def _step(self, do: Callable[..., object], *arguments: object) -> None:
        """Put a change in force; all of it is put in force again, now or soon, when that fails."""
        # What is wanted is known already: `look` has it done when this does not.
        was_due, self.is_due = self.is_due, True
        try:
            self._do(do, *arguments)
            self.is_due = was_due
        except SetFullError:
            self.is_due = was_due
            raise
        except NftError:
            what = self._nft.changes()
            if what is None:
                raise
            # It stands on what somebody took away.
            self._repair(what)

    def _do(self, do: Callable[..., Outcome], *arguments: object) -> Outcome:
        began = time.monotonic()
        outcome = do(*arguments)
        self.took, self.applied = time.monotonic() - began, self.applied + 1
        self.problem = None
        return outcome

    def status(self, counted: Counted) -> dict[str, Any]:
        """Say how it stands, for people and dashboards, with what was counted of late; on any thread."""
        wanted = self.wanted
        if wanted is None:
            return {"generation": None, "problem": self.problem}
        counters = {}
        for name, (packets, octets) in counted.counters.items():
            kind, _, rest = name.partition("/")
            if rest:
                group, _, app = rest.partition("/")
                counters[name] = {"what": kind, "group": group, "app": app, "packets": packets, "octets": octets}
        most = sorted(counted.seen.items(), key=lambda one: -one[1])[:MOST_SOURCES]
        return {
            "generation": wanted.generation,
            "problem": self.problem,
            "drift": self.drift,
            "applied": self.applied,
            "took": self.took,
            "refused": dict(self.refused),
            "sources": len(wanted.places),
            "ranges": len(wanted.networks),
            "macs": len(wanted.macs),
            "learned": {app: len(known) for app, known in list(self._known.items())},
            "networks": {app: len(own) for app, own in wanted.apps.items()},
            "exempt": {app: len(own) for app, own in wanted.exempt.items()},
            "is_due": self.is_due,
            "counters": list(counters.values()),
            "seen": dict(most),
        }


def _named(wanted: Wanted) -> set[str]:
    """Name the apps that have sets."""
    return {app for one in wanted.groups.values() for app in one.apps}


def _lasting(wanted: Wanted) -> Wanted:
    """Give what the rules are made of, beside what changes by itself."""
    return replace(wanted, generation="", exempt={}, exempt_macs={})


def _exempt(wanted: Wanted) -> tuple[Mapping[str, Mapping[Any, float]], Mapping[str, Mapping[Any, float]]]:
    return wanted.exempt, wanted.exempt_macs
