"""What the ledger says of exemptions: who asked for which, who approved, and how each stands at a moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import ip_network
from itertools import chain
from typing import Any

from blockd.exemptions.ledger import END_MS, FIRST_MS, Entry
from blockd.exemptions.schedule import Term, read_hours
from blockd.problems import Skipped, escaped
from blockd.settings.values import Address, Network, read_network

#: Seconds before its end in which an exemption counts as expiring.
SOON = 7 * 86_400.0
#: Seconds: a shorter exemption never counts as expiring, because its end was near when it was approved.
SHORT = 2 * SOON

#: Of a text in the terms of an exemption.
MAX_CHARACTERS = 500

REQUESTED, APPROVED, ACTIVE, EXPIRED, REVOKED = "requested", "approved", "active", "expired", "revoked"


@dataclass(frozen=True)
class Terms:
    """What is asked for. Times are seconds since 1970."""

    #: A device by its serial or hostname in an inventory, or the name of a set of devices.
    device: str
    apps: tuple[str, ...]
    purpose: str
    #: The security team that has to approve.
    team: str
    #: The reference of the ministerial clearance.
    clearance: str
    mitigations: tuple[str, ...]
    not_before: float
    expires_at: float
    #: As :func:`blockd.exemptions.schedule.read_hours` reads it; empty for all day.
    hours: str
    #: Where the device has to be; nowhere in particular when empty.
    networks: tuple[str, ...]

    def as_body(self) -> dict[str, Any]:
        """Give it as the ledger has it."""
        return {
            "device": self.device,
            "apps": list(self.apps),
            "purpose": self.purpose,
            "team": self.team,
            "clearance": self.clearance,
            "mitigations": list(self.mitigations),
            "not_before_ms": round(self.not_before * 1000),
            "expires_at_ms": round(self.expires_at * 1000),
            "hours": self.hours,
            "networks": list(self.networks),
        }


@dataclass(frozen=True)
class Exemption:
    """One exemption, as the ledger has it."""

    name: str
    terms: Terms
    #: People are the digests that stand for them.
    requester: str
    requested_at: float
    approver: str | None = None
    approved_at: float | None = None
    revoker: str | None = None
    revoked_at: float | None = None
    reason: str = ""

    def state(self, now: float) -> str:
        """Say how it stands."""
        if self.revoked_at is not None:
            return REVOKED
        if now >= self.terms.expires_at:
            return EXPIRED
        if self.approved_at is None:
            return REQUESTED
        return ACTIVE if now >= self.terms.not_before else APPROVED

    def is_granted(self, now: float) -> bool:
        """Say whether it holds, or will without anybody's doing."""
        return self.state(now) in (APPROVED, ACTIVE)

    def is_expiring(self, now: float) -> bool:
        """Say whether it is a granted exemption of more than two weeks that ends within a week."""
        length, left = self.terms.expires_at - self.terms.not_before, self.terms.expires_at - now
        return self.is_granted(now) and length > SHORT and left <= SOON

    def term(self, apps: frozenset[str]) -> Term:
        """Give when it holds, for its apps and what they need."""
        hours = read_hours(self.terms.hours) if self.terms.hours else None
        return Term(apps, self.terms.not_before, self.terms.expires_at, hours)

    def holds_at(self, address: Address) -> bool:
        """Say whether a device of this address is where it has to be."""
        networks: list[Network] = [ip_network(text) for text in self.terms.networks]
        return not networks or any(address in network for network in networks)


def exemptions(entries: Iterable[Entry], skipped: Skipped) -> dict[str, Exemption]:
    """Read what a whole ledger says, in the order of requests.

    An entry that cannot be used grants nothing and is added to `skipped`; the others count. A revocation counts as far
    as it can be read: one that does not name its exemption ends each that was requested before it.
    """
    found: dict[str, Exemption] = {}
    for entry in entries:
        body = entry.body
        if entry.kind == "request":
            terms = read_entry_terms(body)
            if terms is None or not isinstance(body.get("by"), str):
                skipped.add(entry.skip("expected the terms of an exemption and who requested it"))
            else:
                name = f"E{entry.number}"
                found[name] = Exemption(name, terms, body["by"], entry.at)
        elif entry.kind == "approve":
            changed = _approved(entry, found.get(str(body.get("exemption"))))
            if changed is None:
                skipped.add(entry.skip("approves what this person cannot approve, or what is not a request"))
            else:
                found[changed.name] = changed
        elif entry.kind == "revoke":
            _revoke(entry, found, skipped)
    return found


def _approved(entry: Entry, exemption: Exemption | None) -> Exemption | None:
    by = entry.body.get("by")
    if exemption is None or exemption.state(entry.at) != REQUESTED or not isinstance(by, str):
        return None
    return None if by == exemption.requester else replace(exemption, approver=by, approved_at=entry.at)


def _revoke(entry: Entry, found: dict[str, Exemption], skipped: Skipped) -> None:
    name, by, reason = (entry.body.get(key) for key in ("exemption", "by", "reason"))
    if not isinstance(name, str):
        skipped.add(entry.skip("names no exemption: each that was requested before it is revoked"))
        revoked = list(found.values())
    elif name not in found or found[name].revoked_at is not None:
        skipped.add(entry.skip("revokes what is not an exemption, or is revoked already"))
        return
    else:
        revoked = [found[name]]
    for one in revoked:
        if one.revoked_at is None:
            found[one.name] = replace(
                one,
                revoker=by if isinstance(by, str) else None,
                revoked_at=entry.at,
                reason=escaped(reason) if isinstance(reason, str) else "",
            )


def read_entry_terms(body: dict[str, Any]) -> Terms | None:
    """Read terms as the ledger has them; None when they are something else."""
    texts: list[Any] = [body.get(key) for key in ("device", "purpose", "team", "clearance", "hours")]
    lists: list[Any] = [body.get(key) for key in ("apps", "mitigations", "networks")]
    times = [body.get(key) for key in ("not_before_ms", "expires_at_ms")]
    are_types = (
        all(isinstance(one, str) for one in texts)
        and all(isinstance(one, list) and all(isinstance(item, str) for item in one) for one in lists)
        and all(text.isprintable() and len(text) <= MAX_CHARACTERS for text in chain(texts, *lists))
        and all(type(one) is int and FIRST_MS <= one < END_MS for one in times)
    )
    if not are_types or not body["device"]:
        return None
    try:
        for network in body["networks"]:
            ip_network(network)
    except ValueError:
        return None
    return Terms(
        body["device"],
        tuple(body["apps"]),
        body["purpose"],
        body["team"],
        body["clearance"],
        tuple(body["mitigations"]),
        body["not_before_ms"] / 1000,
        body["expires_at_ms"] / 1000,
        body["hours"],
        tuple(body["networks"]),
    )


@dataclass(frozen=True)
class Rules:
    """What a config asks of exemptions."""

    longest: float
    #: Those that are known; others are free text, beside one of these.
    mitigations: frozenset[str]
    #: Team -> who approves for it.
    teams: dict[str, frozenset[str]]
    requesters: frozenset[str]
    #: Apps that are live: others are nothing that anybody is refused.
    live: frozenset[str]
    #: Serials, hostnames and sets of devices.
    devices: frozenset[str]
    #: Those of them that are several devices': nobody could say which of them is meant.
    ambiguous: frozenset[str] = frozenset()
    #: Sets of apps, by the word that a request names one with.
    app_sets: Mapping[str, Iterable[str]] = field(default_factory=dict)


class Refused(Exception):
    """A command is not granted; the text says why, and what would be.

    `reason` is what the ledger has of it: no person's name, for what is in the chain cannot be erased.
    """

    def __init__(self, text: str, reason: str = "") -> None:
        """Take both; without a reason the text names nobody."""
        super().__init__(text)
        self.reason = reason or text


def read_terms(values: dict[str, Any], rules: Rules, now: float) -> Terms:
    """Read what somebody asks for. Refused has everything that is wrong with it."""
    problems: list[str] = []

    def text(key: str, longest: int = MAX_CHARACTERS) -> str:
        value = values.get(key, "")
        if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > longest:
            problems.append(f"{key}: expected a line of text, at most {longest} characters")
            return ""
        return value.strip()

    def texts(key: str) -> tuple[str, ...]:
        value = values.get(key, [])
        if not isinstance(value, list) or not all(
            isinstance(item, str) and item.isprintable() and len(item) <= 200 and item.strip() for item in value
        ):
            problems.append(f"{key}: expected lines of text, at most 200 characters each")
            return ()
        return tuple(dict.fromkeys(item.strip() for item in value))

    device = text("device", 100)
    if device and device not in rules.devices:
        problems.append(f"device: {device} is no serial or hostname of an inventory, and no set of exemptions.sets")
    if device in rules.ambiguous:
        problems.append(
            f"device: {device} is more than one device's, or a set's as well: name one by a serial of its own"
        )
    apps: tuple[str, ...] = ()
    words = texts("apps")
    for word in words:
        # What is approved is a list of apps: one that an upgrade adds to a set is not exempt by a request before it.
        found = [app for app in rules.app_sets[word] if app in rules.live] if word in rules.app_sets else [word]
        if not found:
            problems.append(f"apps: no app of {word} is live: no policy names one, and exemptions.apps does not either")
        apps = tuple(dict.fromkeys((*apps, *found)))
    if not words:
        problems.append("apps: name one at least")
    for app in apps:
        if app not in rules.live:
            problems.append(f"apps: {app} is not live: no policy names it, and exemptions.apps does not either")
    team = text("team", 100)
    if team and team not in rules.teams:
        problems.append(f"team: there is no team {team}; there are {', '.join(sorted(rules.teams)) or 'none'}")
    mitigations = texts("mitigations")
    if not any(item in rules.mitigations for item in mitigations):
        known = "; ".join(sorted(rules.mitigations)) or "none: see exemptions.mitigations"
        problems.append(f"mitigations: name one of these at least: {known}")
    not_before = _moment(values.get("not_before"), "not_before", problems) if values.get("not_before") else now
    expires_at = _moment(values.get("expires_at"), "expires_at", problems)
    if expires_at and expires_at <= now:
        problems.append("expires_at: that is over")
    elif expires_at and expires_at <= not_before:
        problems.append("expires_at: that is before not_before")
    elif expires_at and expires_at - max(now, not_before) > rules.longest:
        problems.append(f"expires_at: an exemption is for {rules.longest / 86_400:g} days at most (exemptions.longest)")
    hours = " ".join(str(values.get("hours") or "").split())
    networks = texts("networks")
    try:
        if hours:
            read_hours(hours)
        for network in networks:
            read_network(network)
    except ValueError as error:
        problems.append(str(error))
    terms = Terms(
        device,
        apps,
        text("purpose"),
        team,
        text("clearance", 100),
        mitigations,
        not_before,
        expires_at,
        hours,
        networks,
    )
    if problems:
        raise Refused("; ".join(problems))
    return terms


def _moment(text: Any, key: str, problems: list[str]) -> float:
    """Read a time of RFC 3339, with its offset: without one it means another moment to each reader."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC).timestamp()
    except (TypeError, ValueError, OverflowError):
        problems.append(f"{key}: expected a time with its offset, such as 2026-12-01T18:00:00+00:00")
        return 0.0


def show_moment(seconds: float) -> str:
    """Write a time as it is read."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
