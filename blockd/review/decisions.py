"""What becomes of an app under review: decided by one person, approved by another, in the ledger of exemptions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from blockd.problems import InputError, Problem, Skipped

if TYPE_CHECKING:
    # Policy is read where there is no ledger: it need not wait for what a database takes to import.
    from blockd.exemptions.ledger import Entry

#: Where an app that policies name goes; `config`: where they say.
WAYS = ("block", "monitor", "config")
PROPOSED, SUPERSEDED, APPROVED = "proposed", "superseded", "approved"


@dataclass(frozen=True)
class Decision:
    """One decision. People are the digests that stand for them."""

    name: str
    app: str
    to: str
    reason: str
    proposer: str
    proposed_at: float
    approver: str | None = None
    approved_at: float | None = None
    is_newest: bool = True

    @property
    def state(self) -> str:
        """Say how it stands."""
        if self.approved_at is not None:
            return APPROVED
        return PROPOSED if self.is_newest else SUPERSEDED


def decisions(entries: Iterable[Entry], skipped: Skipped) -> dict[str, Decision]:
    """Read what a whole ledger says, in order; an entry that cannot be used decides nothing and goes to `skipped`."""
    found: dict[str, Decision] = {}
    #: App -> the name of its newest decision.
    newest: dict[str, str] = {}
    for entry in entries:
        body = entry.body
        if entry.kind == "decide":
            if (
                not all(isinstance(body.get(k), str) and body[k].isprintable() for k in ("app", "to", "reason", "by"))
                or body["to"] not in WAYS
            ):
                skipped.add(entry.skip("expected an app, where it goes, a reason and who decided it"))
                continue
            app, name = body["app"], f"D{entry.number}"
            if (before := newest.get(app)) is not None:
                found[before] = replace(found[before], is_newest=False)
            found[name], newest[app] = Decision(name, app, body["to"], body["reason"], body["by"], entry.at), name
        elif entry.kind == "agree":
            one, by = found.get(str(body.get("decision"))), body.get("by")
            if one is None or one.state != PROPOSED or not isinstance(by, str) or one.proposer == by:
                skipped.add(entry.skip("approves what this person cannot approve, or what is not a proposal"))
            else:
                found[one.name] = replace(one, approver=by, approved_at=entry.at)
    return found


#: App -> what was decided last, and the decision's name.
Decided = dict[str, tuple[str, str]]


def in_force(known: Iterable[Decision]) -> Decided:
    """Give what holds: of each app the one that was approved last; none where policies say it again."""
    approved = [one for one in known if one.approved_at is not None]
    newest = {one.app: (one.to, one.name) for one in sorted(approved, key=lambda one: one.approved_at or 0.0)}
    return {app: held for app, held in sorted(newest.items()) if held[0] != "config"}


def write_decided(decided: Decided) -> bytes:
    """Write it as :func:`read_decided` reads it."""
    return json.dumps({app: {"to": to, "by": by} for app, (to, by) in sorted(decided.items())}).encode()


def read_decided(file: Path, data: bytes) -> tuple[Decided, Skipped]:
    """Read what the daemon wrote of the ledger; an item that cannot be used is skipped.

    The daemon compares what holds with its ledger, and puts an item that is missing back in force by itself. InputError
    when no item can be used.
    """
    decided: Decided = {}
    skipped = Skipped()
    try:
        items = json.loads(data).items()
    except (ValueError, AttributeError, RecursionError):
        items = [("", None)]
    for app, held in items:
        to, by = (held.get("to"), held.get("by")) if isinstance(held, dict) else (None, None)
        if isinstance(to, str) and to in WAYS and isinstance(by, str):
            decided[app] = (to, by)
        else:
            skipped.add(Problem(str(file), 0, app, "expected where a decision moves an app, and its name"))
    if skipped.total and not decided:
        text = "is not what blockd writes of its ledger: remove it, and it is written anew"
        raise InputError([Problem(str(file), 0, "", text)])
    return decided, skipped
