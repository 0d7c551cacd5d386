"""The desk where exemptions are asked for, approved and revoked: who may, what the ledger says of it, what holds now.

Its calls may block, and come from one thread at a time. What the hot path is told is reckoned from what was read last.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blockd.control.caller import Caller
from blockd.devices.inventory import mac_number
from blockd.devices.placement import Placement
from blockd.exemptions.ledger import SKEW, Book, Head, Ledger, LedgerBroken, LedgerError, LedgerMoved, read_head
from blockd.exemptions.records import Exemption, Refused, Rules, exemptions, read_terms, show_moment
from blockd.exemptions.schedule import MAX_CHANGES, Term, changes
from blockd.observe.repeated import RepeatedFailure
from blockd.policy.inputs import Inputs
from blockd.policy.views import sets_of
from blockd.problems import Skipped
from blockd.review.decisions import WAYS, Decided, Decision, decisions, in_force
from blockd.settings.values import Address

log = logging.getLogger("blockd")

#: What reading a ledger may end with that somebody else has written.
UNREADABLE = (ArithmeticError, AttributeError, ImportError, LookupError, OSError, TypeError, ValueError)
#: Others that may write between a read and a write of ours.
WRITERS = 20
#: Seconds until the hot path is told of the days ahead anew.
FOLD_AGAIN = 3_600.0
#: Commands by which somebody may be exempt, or an app be let through.
GRANTS = ("approve", "agree")
#: Commands that root cannot give: they take two people.
BY_PERSONS = ("request", "approve", "decide", "agree")
#: Seconds until the whole ledger is read again, though nothing was added to it.
READ_AGAIN = 60.0
#: Seconds until somebody listens to the database again.
HEAR_AGAIN = 5.0
#: In the state directory: the last head that was seen.
HEAD = "ledger-head"


@dataclass
class Folded:
    """What the hot path is told: views behind those of a snapshot, slots behind them, addresses, the floor of time."""

    views: list[tuple[int, int]] = field(default_factory=list)
    slots: list[list[tuple[float, int]]] = field(default_factory=list)
    devices: list[tuple[Address, int]] = field(default_factory=list)
    #: The same for MACs, as forwarders convey them.
    macs: list[tuple[int, int]] = field(default_factory=list)
    floor: float = 0.0
    #: Of each view, the apps that are exempt in it.
    apps: list[frozenset[str]] = field(default_factory=list)
    #: Address, or MAC as a number -> the exemptions of its device, each with its term.
    granted: dict[Address | int, list[tuple[str, Term]]] = field(default_factory=dict)

    def exempting(self, whose: Address | int, app: str, now: float) -> list[str]:
        """Name the exemptions by which a device may use an app now; `now` in seconds since 1970."""
        return [
            name for name, term in self.granted.get(whose, ()) if app in term.apps and any(term.windows(now, now + 1))
        ]

    def meta(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Say what the numbers of all views mean, those of a snapshot and those behind them."""
        groups, views, masks = (list(meta[key]) for key in ("groups", "views", "masks"))
        sets = list(meta.get("sets", []))
        for (base, mask), apps in zip(self.views, self.apps, strict=True):
            groups.append(meta["groups"][base])
            parts = {key: [app for app in names if app not in apps] for key, names in meta["views"][base].items()}
            allowed = meta["views"][base]["allow"]
            views.append({**parts, "allow": allowed, "exempt": sorted(apps - set(allowed))})
            sets.append(sets_of(meta, base))
            exempt = mask & ~meta["masks"][base]["allow"]
            masks.append({**{key: own & ~exempt for key, own in meta["masks"][base].items()}, "exempt": exempt})
        return {**meta, "groups": groups, "views": views, "masks": masks, "sets": sets}


@dataclass
class Site:
    """What a config and its inventories say, as far as exemptions need it."""

    rules: Rules
    #: Serial or hostname -> addresses, each with the group that it is in.
    addresses: dict[str, list[tuple[Address, str]]]
    #: Serial or hostname -> MACs, likewise.
    macs: dict[str, list[tuple[int, str]]]
    #: Named sets of those.
    sets: dict[str, frozenset[str]]
    #: App -> groups whose policy names it, and blocks something: what a decision is about.
    decidable: dict[str, list[str]]
    #: App -> what it needs, itself included.
    needs: Callable[[str], frozenset[str]]
    #: Seconds for which what was known last holds while the ledger cannot be read.
    stands: float
    #: Everybody with a part in exemptions.
    people: frozenset[str]


def site_of(inputs: Inputs) -> Site:
    """Give what inputs say of who may be exempt, and how."""
    wanted = inputs.settings.exemptions
    addresses: dict[str, list[tuple[Address, str]]] = defaultdict(list)
    macs: dict[str, list[tuple[int, str]]] = defaultdict(list)
    known: set[str] = set(wanted.sets)
    whose: dict[str, set[str]] = {name: {""} for name in wanted.sets}
    for group, devices in inputs.devices.items():
        for device in devices:
            known |= device.names
            for identity in device.names:
                # A serial is a device; where there is none, a hostname is.
                whose.setdefault(identity, set()).add(device.serial or device.hostname)
            for identity in device.identities if device.mac else ():
                macs[identity].append((mac_number(device.mac), group))
            for identity in device.names if device.address is not None else ():
                assert device.address is not None
                addresses[identity].append((device.address, group))
    sets = {name: frozenset(members) for name, members in wanted.sets.items()}
    rules = Rules(
        wanted.longest,
        frozenset(wanted.mitigations),
        {team: frozenset(members) for team, members in wanted.teams.items()},
        frozenset(wanted.requesters),
        frozenset(inputs.live_apps()),
        frozenset(known),
        frozenset(identity for identity, devices in whose.items() if len(devices) > 1),
        inputs.sets.apps,
    )
    needs, decidable = inputs.catalogue.needs, inputs.decidable
    return Site(rules, dict(addresses), dict(macs), sets, decidable, needs, wanted.stands, wanted.people())


class Desk:
    """Grants, and says what holds."""

    def __init__(self, url: str, state: Path, clock: Callable[[], float]) -> None:
        """`url` names the ledger; `state` is a directory for the last head; `clock` gives seconds since 1970."""
        self._ledger, self._head_file, self._clock = Ledger(url), state / HEAD, clock
        self._book = Book()
        self._known: dict[str, Exemption] = {}
        #: Entries that are in the chain and cannot be used.
        self.skipped = Skipped()
        self._decisions: dict[str, Decision] = {}
        #: What was decided of apps and is in force.
        self.applied: Decided = {}
        #: When the ledger was read, or is known to be as it was read.
        self._confirmed = 0.0
        self._is_broken = False
        #: Why the ledger is not believed or not reached, if so.
        self.problem: str | None = "the ledger was not read yet"
        self._fold_again = 0.0
        #: What the hot path was told of: a head, and why nobody is exempt.
        self._folded: tuple[Head, str | None] | None = None
        #: Refusals of people without a part in it: who fills no ledger is not to fill a journal either.
        self._strangers = RepeatedFailure()
        #: What keeps the ledger from being read, and exemptions from holding.
        self._failure, self._folding = RepeatedFailure(), RepeatedFailure()
        self._is_first_reading = True
        #: Whether an empty ledger cannot be: decisions of it are in force.
        self.must_have_entries = False
        self._read_again = 0.0
        #: Why no exemption holds, as far as the hot path was told.
        self._closed: str | None = None
        self._is_over = threading.Event()
        #: Every device that an exemption names, by itself or in a set.
        self._named: set[str] = set()

    @property
    def head(self) -> Head:
        """Give the head of the ledger as it was read last."""
        return self._book.head

    def listen(self, news: Callable[[], None]) -> None:
        """Have `news` called by another thread as soon as somebody wrote, where the database says so.

        Beside it the ledger is looked at in turns: a connection that is lost must not be a revocation that is missed.
        """

        def hear() -> None:
            failure = RepeatedFailure()

            def heard() -> None:
                failure.worked("exemptions: the database tells of new entries again")
                news()

            while not self._is_over.is_set():
                try:
                    self._ledger.hear(heard, self._is_over.is_set)
                except LedgerError as error:
                    failure.failed(f"exemptions: {error}; it is looked at in turns", logging.WARNING)
                else:
                    return
                self._is_over.wait(HEAR_AGAIN)

        threading.Thread(target=hear, name="ledger", daemon=True).start()

    # What holds

    def read(self) -> None:
        """Read the ledger where it changed."""
        try:
            is_due = time.monotonic() >= self._read_again
            if self.problem is not None or is_due or self._ledger.head() != self.head:
                self._read_whole()
            self._confirmed = self._clock()
            self._complain(None)
        except LedgerBroken as error:
            self._break(error)
        except LedgerError as error:
            self._complain(str(error))
        except UNREADABLE as error:
            # Whatever it holds, nobody is exempt by what cannot be understood, and the resolver goes on.
            self._is_broken = True
            self._complain(f"the ledger cannot be read: {type(error).__name__}: {error}: no exemption holds")

    def _break(self, error: LedgerBroken) -> None:
        self._is_broken = True
        self._complain(f"{error}: no exemption holds")

    def _read_whole(self) -> None:
        began = time.monotonic()
        book = self._ledger.read(self._last_head())
        if self.must_have_entries and not book.head.number:
            text = "the ledger is empty, and decisions are in force that it should hold"
            raise LedgerBroken(f"{text}; `blockd apps decide` anew once it is known why, and remove decided.json")
        if book.head != self.head or self.problem is not None:
            self._take(book)
        else:
            # Names may have been erased.
            self._book = book
        took = time.monotonic() - began
        # A ledger that takes long to read is not read all the time; what is edited in it is found all the same.
        self._read_again = time.monotonic() + max(READ_AGAIN, 100 * took)

    def _take(self, book: Book) -> None:
        skipped = Skipped()
        known, decided = exemptions(book.entries, skipped), decisions(book.entries, skipped)
        for problem in skipped.samples:
            if problem not in self.skipped.samples:
                log.error("exemptions: %s; the entry is skipped, the others count", problem)
        self.skipped = skipped
        self._book, self._known, self._decisions, self._is_broken = book, known, decided, False
        if not book.head.number:
            return
        # The log is kept elsewhere: whoever cuts the ledger would have to cut that, too.
        log.info("ledger: entry %d, %s", book.head.number, book.head.hash)
        new = self._head_file.with_suffix(".new")
        try:
            with new.open("w") as file:
                file.write(f"{book.head}\n")
                file.flush()
                # Half a head after a power cut would be a ledger that nobody believes.
                os.fsync(file.fileno())
            new.replace(self._head_file)
        except OSError as error:
            self._failure.failed(f"exemptions: {self._head_file} cannot be written: {error.strerror}")

    def _last_head(self) -> Head | None:
        """Give the head that has to be in the ledger: the one that was read last, by this process or the one before."""
        if self.head.number:
            return self.head
        try:
            return read_head(self._head_file.read_text().strip())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise LedgerBroken(f"{self._head_file}: {error}; remove it if the ledger is known to be whole") from None

    def _complain(self, problem: str | None) -> None:
        if problem is not None:
            self._failure.failed(f"exemptions: {problem}")
        elif self._is_first_reading:
            log.info("exemptions: the ledger is read, %d entries", self.head.number)
            self._is_first_reading = False
        else:
            self._failure.worked(f"exemptions: the ledger is read again, {self.head.number} entries")
        self.problem = problem

    def why_closed(self, stands: float) -> str | None:
        """Say why no exemption holds, if none does."""
        now = self._clock()
        if self._is_broken:
            return self.problem
        if now < self._book.latest - SKEW:
            return "the clock stands before the ledger's newest entry"
        if now - self._confirmed > stands:
            return f"{self.problem or 'the ledger does not answer'}, for longer than exemptions.stands"
        return None

    def is_news(self, stands: float) -> bool:
        """Say whether the hot path was told of something else than what holds."""
        return self._folded != (self.head, self.why_closed(stands))

    def is_due(self, now: float) -> bool:
        """Say whether the hot path should be told anew."""
        return now >= self._fold_again

    def fold(self, site: Site, groups: list[str], apps: list[str], now: float, placement: Placement | None) -> Folded:
        """Reckon what the hot path is told, for views and apps in the order of a snapshot.

        `placement` is where devices are now, beside what inventories say.
        """
        self._fold_again = now + FOLD_AGAIN
        named = (exemption.terms.device for exemption in self._known.values())
        self._named = {identity for name in named for identity in site.sets.get(name, {name})}
        folded = Folded(floor=self._book.latest)
        why = self._closed = self.why_closed(site.stands)
        self._folded = (self.head, why)
        if why is not None:
            self._folding.failed(f"exemptions: none holds: {why}")
            return folded
        terms: dict[tuple[Address | int, str], list[Term]] = defaultdict(list)
        for exemption in self._known.values():
            if not exemption.is_granted(now):
                continue
            needed = frozenset().union(*(site.needs(app) for app in exemption.terms.apps if app in site.rules.live))
            try:
                term = exemption.term(needed)
            except ValueError as error:
                # Its zone is one that this machine does not know: it alone does not hold.
                self._folding.failed(f"exemptions: {exemption.name} does not hold here: {error}")
                continue
            if exemption.terms.device not in site.sets and exemption.terms.device in site.rules.ambiguous:
                self._folding.failed(f"exemptions: {exemption.name} does not hold: its device is more than one")
                continue
            for identity in site.sets.get(exemption.terms.device, {exemption.terms.device}):
                if exemption.terms.device in site.sets and identity in site.rules.ambiguous:
                    text = f"exemptions: {exemption.name}: a device of its set is more than one, and left out"
                    self._folding.failed(text)
                    continue
                held: list[tuple[Address | int, str]] = [
                    (address, group)
                    for address, group in _addresses(site, placement, identity)
                    if exemption.holds_at(address)
                ]
                if not exemption.terms.networks:
                    # The network of a device that a forwarder names by its MAC is not known.
                    held += site.macs.get(identity, ())
                for whose, group in held:
                    terms[whose, group].append(term)
                    folded.granted.setdefault(whose, []).append((exemption.name, term))
        numbers: dict[tuple[str, frozenset[str]], int] = {}
        slots: dict[tuple[tuple[float, int], ...], int] = {}
        bits = {app: 1 << at for at, app in enumerate(apps)}
        planned: list[tuple[Address | int, tuple[tuple[float, int], ...]]] = []
        for (whose, group), own in sorted(terms.items(), key=lambda item: str(item[0])):
            if group not in groups:
                # Of a config that is not in force yet.
                continue
            base = groups.index(group)
            steps, found = [], changes(own, now)
            if len(found) > MAX_CHANGES:
                # What comes after the last of them is told in time.
                self._fold_again = min(self._fold_again, found[-1][0] - 1)
            for moment, exempt in found:
                number = base
                if exempt:
                    number = numbers.setdefault((group, exempt), len(groups) + len(numbers))
                    if number == len(groups) + len(folded.views):
                        folded.views.append((base, sum(bits[app] for app in exempt if app in bits)))
                        folded.apps.append(exempt)
                steps.append((moment, number))
            planned.append((whose, tuple(steps)))
        for whose, slot in planned:
            if slot not in slots:
                slots[slot] = len(groups) + len(folded.views) + len(slots)
                folded.slots.append(list(slot))
            if isinstance(whose, int):
                folded.macs.append((whose, slots[slot]))
            else:
                folded.devices.append((whose, slots[slot]))
        return folded

    def concerns(self, placement: Placement, address: Address) -> bool:
        """Say whether an address is that of a device that some exemption names."""
        place = placement.places.get(address)
        if place is None or place.device is None:
            return False
        return not self._named.isdisjoint(place.device.identities)

    def standing(self) -> dict[str, Any]:
        """Give the head, and what is wrong with the ledger."""
        return {
            "entries": self.head.number,
            "head": self.head.hash,
            "problem": self.problem or self._closed,
            "skipped": self.skipped.total,
        }

    def states(self, now: float) -> Counter[str]:
        """Count exemptions by how they stand."""
        return Counter(exemption.state(now) for exemption in self._known.values())

    def expiring(self, now: float) -> int:
        """Count granted exemptions of more than two weeks that end within a week."""
        return sum(exemption.is_expiring(now) for exemption in self._known.values())

    # Commands

    def command(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a caller wants, or say why not; either is written to the ledger."""
        do = str(request.get("do"))
        commands: dict[str, Callable[[Site, Caller, dict[str, Any]], dict[str, Any]]] = {
            "request": self._request,
            "approve": self._approve,
            "revoke": self._revoke,
            "list": self._list,
            "show": self._show,
            "verify": self._verify,
            "export": self._export,
            "forget": self._forget,
            "decide": self._decide,
            "agree": self._agree,
            "decisions": self._list_decisions,
        }
        if do not in commands:
            return {"ok": False, "error": f"expected one of {', '.join(commands)}"}
        if (why := _lacking_right(site, caller, do)) is not None:
            # Before any work, and in the same words whatever there is: for whoever lacks the right nothing is read.
            self._strangers.failed(f"exempt: {do} was refused: {why}", logging.WARNING)
            return {"ok": False, "error": why}
        self.read()
        if self.problem is None and do in GRANTS:
            # Nothing is granted on the word of a ledger that somebody edited since it was read.
            self._read_again = 0.0
            self.read()
        if self.problem is not None and do != "verify":
            return {"ok": False, "error": self.problem}
        for _ in range(WRITERS):
            try:
                return {"ok": True, **commands[do](site, caller, request)}
            except LedgerMoved:
                # Judged anew, by what the ledger and the names beside it say now.
                self.problem = "the ledger moved"
                self.read()
            except Refused as refusal:
                with suppress(LedgerError):
                    keys = ("exemption", "device", "decision", "app")
                    about = next((str(request[key])[:100] for key in keys if request.get(key)), "")
                    self._append("refused", caller, {"command": do, "about": about, "why": refusal.reason})
                return {"ok": False, "error": str(refusal)}
            except LedgerBroken as error:
                self._break(error)
                return {"ok": False, "error": str(error)}
            except LedgerError as error:
                return {"ok": False, "error": str(error)}
        return {"ok": False, "error": "others write to the ledger without pause: try again"}

    def _append(self, kind: str, caller: Caller, body: dict[str, Any]) -> None:
        by = self._ledger.person(self._book, caller.identity)
        self._take(self._ledger.append(self._book, self._clock(), kind, {**body, "by": by}))

    def _request(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        terms = read_terms(request, site.rules, self._clock())
        self._append("request", caller, terms.as_body())
        name = f"E{self.head.number}"
        log.info("exemption %s requested by %s: %s for %s", name, caller.name, ", ".join(terms.apps), terms.device)
        return {"exemption": self._shown(name)}

    def _approve(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        name, exemption, now = *self._found(request), self._clock()
        if (state := exemption.state(now)) != "requested":
            raise Refused(f"{name} is {state}: there is nothing to approve")
        terms = exemption.terms
        if not caller.is_among(site.rules.teams.get(terms.team, ())):
            raise Refused(f"{caller.name} does not approve for {terms.team}", f"not of {terms.team}")
        requester = self._book.people.get(exemption.requester)
        if requester is None:
            raise Refused(f"who requested {name} was forgotten: it has to be requested anew")
        if requester.partition(":")[0] == caller.name or requester.partition(":")[2] == str(caller.uid):
            text = f"{name} was requested by {caller.name}, and somebody else has to approve it"
            raise Refused(text, "requested by the same person")
        if terms.expires_at - max(now, terms.not_before) > site.rules.longest:
            raise Refused(f"{name} would be longer than exemptions.longest allows now")
        if gone := [app for app in terms.apps if app not in site.rules.live]:
            raise Refused(
                f"{', '.join(gone)}: not live any more: no policy names it, and exemptions.apps does not either"
            )
        if terms.device not in site.rules.devices:
            raise Refused(f"{terms.device} is in no inventory any more")
        if terms.device in site.rules.ambiguous:
            raise Refused(f"{terms.device} is more than one device by now")
        self._append("approve", caller, {"exemption": name, "team": terms.team})
        log.info("exemption %s approved by %s of %s", name, caller.name, terms.team)
        return {"exemption": self._shown(name)}

    def _revoke(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        name, exemption = self._found(request)
        reason = str(request.get("reason") or "").strip()
        if not reason or not reason.isprintable() or len(reason) > 500:
            raise Refused("reason: expected a line of text, at most 500 characters")
        teams = site.rules.teams.get(exemption.terms.team, frozenset())
        own = self._book.people.get(exemption.requester) == caller.identity
        if caller.uid != 0 and not own and not caller.is_among(teams):
            text = f"{caller.name} may not revoke {name}: its requester, {exemption.terms.team} and root may"
            raise Refused(text, "neither its requester nor of its team")
        if (state := exemption.state(self._clock())) in ("revoked", "expired"):
            raise Refused(f"{name} is {state} already")
        self._append("revoke", caller, {"exemption": name, "reason": reason})
        log.warning("exemption %s revoked by %s: %s", name, caller.name, reason)
        return {"exemption": self._shown(name)}

    # Apps under review

    def decided(self) -> Decided | None:
        """Give what was decided of apps; None while the ledger is not believed, or was never read."""
        if self._is_broken or not self._confirmed:
            return None
        return in_force(self._decisions.values())

    def used(self, since: float, until: float) -> list[dict[str, Any]]:
        """Give the exemptions that held at some time of a span, for a report."""
        return [
            self._shown(name)
            for name, one in self._known.items()
            if one.approved_at is not None
            and max(one.approved_at, one.terms.not_before) < until
            and min(one.terms.expires_at, one.revoked_at or one.terms.expires_at) > since
        ]

    def all_decisions(self) -> list[dict[str, Any]]:
        """Give every decision, for people."""
        return [self._shown_decision(one) for one in self._decisions.values()]

    def _decide(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        if not caller.is_among(site.people):
            raise Refused(f"{caller.name} has no part in exemptions, nor in this", "no part in it")
        app, to, reason = (str(request.get(key) or "").strip() for key in ("app", "to", "reason"))
        if app in site.rules.app_sets:
            apps = ", ".join(name for name in site.rules.app_sets[app] if name in site.decidable)
            raise Refused(f"a decision is about one app; {app} has {apps or 'none that can be decided'}")
        if app not in site.decidable:
            raise Refused(f"{app[:40]!r}: no policy that blocks something names it: nothing is to be decided")
        if to not in WAYS:
            raise Refused(f"expected one of {', '.join(WAYS)}, and found {to[:40]!r}")
        if not reason or not reason.isprintable() or len(reason) > 500:
            raise Refused("reason: expected a line of text, at most 500 characters")
        self._append("decide", caller, {"app": app, "to": to, "reason": reason})
        name = f"D{self.head.number}"
        log.info("decision %s by %s: %s %s", name, caller.name, app, to)
        return {"decision": {**self._shown_decision(self._decisions[name]), "groups": site.decidable[app]}}

    def _agree(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        name = str(request.get("decision") or "")
        one = self._decisions.get(name)
        if one is None:
            raise Refused(f"there is no decision {name[:20]!r}")
        if one.state != "proposed":
            raise Refused(f"{name} is {one.state}: there is nothing to approve")
        proposer = self._book.people.get(one.proposer)
        if proposer is None:
            raise Refused(f"who decided {name} was forgotten: it has to be decided anew")
        if proposer.partition(":")[0] == caller.name or proposer.partition(":")[2] == str(caller.uid):
            text = f"{name} is {caller.name}'s own, and somebody else has to approve it"
            raise Refused(text, "decided by the same person")
        if one.app not in site.decidable:
            raise Refused(f"no policy that blocks something names {one.app} any more")
        self._append("agree", caller, {"decision": name})
        log.warning("decision %s approved by %s: %s %s", name, caller.name, one.app, one.to)
        return {"decision": {**self._shown_decision(self._decisions[name]), "groups": site.decidable[one.app]}}

    def _list_decisions(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        self._append("asked", caller, {"command": "decisions"})
        return {"decisions": self.all_decisions()}

    def _shown_decision(self, one: Decision) -> dict[str, Any]:
        holds, state = in_force(self._decisions.values()).get(one.app), one.state
        if holds is not None and holds[1] == one.name:
            # The ledger says so; whether it is so, whoever puts it in force knows.
            state = "in force" if self.applied.get(one.app) == holds else "approved, and not in force"
        return {
            "name": one.name,
            "state": state,
            "app": one.app,
            "to": one.to,
            "reason": one.reason,
            "by": self._who(one.proposer),
            "at": show_moment(one.proposed_at),
            "approver": self._who(one.approver),
            "approved_at": None if one.approved_at is None else show_moment(one.approved_at),
        }

    def _list(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        self._append("asked", caller, {"command": "list"})
        return {"exemptions": [self._shown(name) for name in self._known], "head": str(self.head)}

    def _show(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        name, _ = self._found(request)
        self._append("asked", caller, {"command": "show", "exemption": name})
        about = [
            {
                "number": entry.number,
                "at": show_moment(entry.at),
                "kind": entry.kind,
                "by": self._who(entry.body.get("by")),
            }
            for entry in self._book.entries
            if name == entry.body.get("exemption", f"E{entry.number}" if entry.kind == "request" else None)
        ]
        return {"exemption": self._shown(name), "entries": about}

    def _verify(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        try:
            wanted = read_head(str(request["head"])) if request.get("head") else self._last_head()
        except ValueError as error:
            raise Refused(str(error)) from None
        book = self._ledger.read(wanted)
        self._append("asked", caller, {"command": "verify"})
        return {"entries": len(book.entries), "head": str(book.head)}

    def _export(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        self._append("asked", caller, {"command": "export"})
        return {
            "entries": [entry.as_json() for entry in self._book.entries],
            "people": {own: name.partition(":")[0] for own, name in self._book.people.items()},
        }

    def _forget(self, site: Site, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        person = str(request.get("person") or "")
        if not any(name.partition(":")[0] == person for name in self._book.people.values()):
            raise Refused("nobody of that name is in the ledger")
        # Without the name, or it would not be forgotten; and first, since it may have to be tried again.
        self._append("asked", caller, {"command": "forget"})
        self._ledger.forget(self._book, person)
        return {}

    def _found(self, request: dict[str, Any]) -> tuple[str, Exemption]:
        name = str(request.get("exemption") or "")
        if name not in self._known:
            raise Refused(f"there is no exemption {name[:20]!r}")
        return name, self._known[name]

    def _who(self, digest: Any) -> str | None:
        return (
            None
            if not isinstance(digest, str)
            else self._book.people.get(digest, "somebody who was forgotten").partition(":")[0]
        )

    def _shown(self, name: str) -> dict[str, Any]:
        exemption = self._known[name]
        terms = {
            key: value for key, value in asdict(exemption.terms).items() if key not in ("not_before", "expires_at")
        }
        return {
            "name": name,
            "state": exemption.state(self._clock()),
            **terms,
            "not_before": show_moment(exemption.terms.not_before),
            "expires_at": show_moment(exemption.terms.expires_at),
            "requester": self._who(exemption.requester),
            "approver": self._who(exemption.approver),
            "revoker": self._who(exemption.revoker),
            "reason": exemption.reason,
        }

    def close(self) -> None:
        """Close the ledger."""
        self._is_over.set()
        self._ledger.close()


def _addresses(site: Site, placement: Placement | None, identity: str) -> Iterable[tuple[Address, str]]:
    """Give every address that is tied to a device now; not one that its inventory names and another device has."""
    if placement is None:
        return site.addresses.get(identity, ())
    found = {a: group for a, group in site.addresses.get(identity, ()) if not placement.is_elsewhere(a)}
    for address in placement.addresses.get(identity, ()):
        if (group := placement.places[address].group) is not None:
            found[address] = group
    return found.items()


def _lacking_right(site: Site, caller: Caller, do: str) -> str | None:
    """Say why somebody may not give a command at all, by who it is alone; None where the ledger has to be read."""
    if not caller.is_operator and not caller.is_among(site.people):
        return f"{caller.name} has no part in exemptions"
    if caller.uid == 0 and do in BY_PERSONS:
        return "root cannot request, decide or approve; use a named account"
    if do == "request" and not caller.is_among(site.rules.requesters):
        return f"{caller.name} is not among exemptions.requesters"
    if do in GRANTS and not caller.is_among(frozenset().union(*site.rules.teams.values())):
        return f"{caller.name} is of no team of exemptions.teams"
    return "only root erases a name" if do == "forget" and caller.uid != 0 else None


def export_lines(answer: dict[str, Any]) -> list[str]:
    """Write an export: a line for each entry, as it is hashed."""
    return [json.dumps(entry, sort_keys=True) for entry in answer["entries"]]
