"""Entries that are in the chain and cannot be used: each grants nothing, and costs no other entry anything."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.desk import Desk
from blockd.exemptions.ledger import BEGINNING, Entry, Ledger, LedgerBroken, digest, read_body
from blockd.exemptions.records import Exemption, exemptions, show_moment
from blockd.problems import Skipped
from blockd.review.decisions import decisions, in_force

NOW = 1_800_000_000.0
CAROL, ALICE = "c" * 64, "a" * 64
TERMS: dict[str, Any] = {
    "device": "SER-1",
    "apps": ["tiktok"],
    "purpose": "casework",
    "team": "cyber",
    "clearance": "MIN-1",
    "mitigations": ["dedicated device"],
    "not_before_ms": round(NOW * 1000) - 1000,
    "expires_at_ms": round(NOW * 1000) + 86_400_000,
    "hours": "",
    "networks": [],
    "by": CAROL,
}
GRANT = [("request", TERMS), ("approve", {"exemption": "E1", "team": "cyber", "by": ALICE})]


def entries(*said: tuple[str, Any]) -> list[Entry]:
    """Make entries of kinds and bodies; what their chain is does not matter here."""
    return [
        Entry(number, round(NOW * 1000), kind, read_body(json.dumps(body)), "", "")
        for number, (kind, body) in enumerate(said, 1)
    ]


def granted(*said: tuple[str, Any]) -> tuple[set[str], int]:
    """Say which exemptions hold, and how many entries were skipped."""
    skipped = Skipped()
    found = exemptions(entries(*said), skipped)
    return {name for name, one in found.items() if one.is_granted(NOW)}, skipped.total


WRONG_TERMS = [
    *({**TERMS, key: value} for key in TERMS for value in (None, 7.5, [7], {"x": 1}, True)),
    {**TERMS, "networks": ["10.0.0.0/99"]},
    {**TERMS, "device": ""},
    {**TERMS, "device": "SER-1\n\x1b[2J"},
    {**TERMS, "purpose": "\ud800"},
    {**TERMS, "clearance": "x" * 501},
    {**TERMS, "apps": ["tiktok", "\u202e"]},
    {**TERMS, "expires_at_ms": 10**30},
    {**TERMS, "expires_at_ms": float("nan")},
    {**TERMS, "expires_at_ms": float("inf")},
    {},
    [],
    "text",
]


def test_a_request_that_cannot_be_read_is_not_granted() -> None:
    """Not by its approval either; the exemption beside it holds."""
    for wrong in WRONG_TERMS:
        approval = ("approve", {"exemption": "E3", "team": "cyber", "by": ALICE})
        assert granted(*GRANT, ("request", wrong), approval) == ({"E1"}, 2), wrong


@pytest.mark.parametrize(
    "wrong",
    [
        {"exemption": "E3", "by": CAROL},
        {"exemption": "E3", "by": None},
        {"exemption": "E3"},
        {"exemption": ["E3"], "by": ALICE},
        {"exemption": "E1", "by": ALICE},
        {"exemption": "E99", "by": ALICE},
        {"by": ALICE},
        [],
        None,
    ],
)
def test_an_approval_that_cannot_be_is_none(wrong: Any) -> None:
    """By the person who requested, of something else, of what is approved already, or of nothing."""
    assert granted(*GRANT, ("request", TERMS), ("approve", wrong)) == ({"E1"}, 1)


def test_a_revocation_counts_as_far_as_it_can_be_read() -> None:
    """Without a reason or a name of a person, too; one of nothing in particular ends all before it, and none after."""
    second = [("request", TERMS), ("approve", {"exemption": "E4", "team": "cyber", "by": ALICE})]
    body: Any
    for body in ({"exemption": "E1"}, {"exemption": "E1", "by": 7, "reason": []}):
        assert granted(*GRANT, ("revoke", body), *second) == ({"E4"}, 0)
    for body in ({}, [], {"exemption": None, "by": ALICE}, {"exemption": 1}):
        assert granted(*GRANT, ("revoke", body), *second) == ({"E4"}, 1)
    for body in ({"exemption": "E99"}, {"exemption": ""}):
        assert granted(*GRANT, ("revoke", body), *second) == ({"E1", "E4"}, 1)


def test_a_decision_that_cannot_be_read_decides_nothing() -> None:
    """Another of the same app, and those of other apps, stay as they were."""
    good = {"app": "tiktok", "to": "block", "reason": "x", "by": CAROL}
    first = [("decide", good), ("agree", {"decision": "D1", "by": ALICE})]
    for key in good:
        for value in (None, 7, ["block"], "allow" if key == "to" else {}):
            skipped = Skipped()
            said = entries(*first, ("decide", {**good, key: value}), ("agree", {"decision": "D3", "by": ALICE}))
            assert in_force(decisions(said, skipped).values()) == {"tiktok": ("block", "D1")}
            assert skipped.total == 2
    not_approved: list[Any] = [
        {"decision": "D3", "by": CAROL},
        {"decision": "D3"},
        {"decision": [], "by": ALICE},
        [],
        7,
    ]
    for wrong in not_approved:
        skipped = Skipped()
        said = entries(*first, ("decide", {**good, "to": "monitor"}), ("agree", wrong))
        assert in_force(decisions(said, skipped).values()) == {"tiktok": ("block", "D1")}
        assert skipped.total == 1


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["E1", "D1", CAROL]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KINDS = st.sampled_from(["request", "approve", "revoke", "decide", "agree", "asked", "later"])
BODIES = JSON | st.dictionaries(st.sampled_from([*TERMS, "exemption", "decision", "app", "to", "reason"]), JSON)


@given(
    st.lists(st.tuples(KINDS, BODIES | BODIES.map(lambda b: {**TERMS, **b} if isinstance(b, dict) else b)), max_size=8)
)
def test_any_entries_are_read(said: list[tuple[str, Any]]) -> None:
    """What holds has terms that can be shown, a requester, and another person who approved."""
    for one in exemptions(entries(*said), Skipped()).values():
        assert isinstance(one, Exemption)
        assert show_moment(one.terms.expires_at)
        assert show_moment(one.terms.not_before)
        if one.is_granted(NOW):
            assert one.approver not in (None, one.requester)
    for decision in decisions(entries(*said), Skipped()).values():
        assert decision.approver is None or decision.approver != decision.proposer


def test_a_ledger_with_entries_that_cannot_be_used_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever writes to the database chains them as blockd does: they are told once, and the rest holds."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Ledger(url)
    book = ledger.read()
    for kind, body in (*GRANT, ("approve", {"exemption": "E1", "by": CAROL})):
        book = ledger.append(book, NOW, kind, body)
    desk = Desk(url, tmp_path, lambda: NOW)
    desk.read()
    assert desk.problem is None
    assert desk.states(NOW) == {"active": 1}
    assert desk.standing()["skipped"] == 1
    book = ledger.append(book, NOW, "asked", {"by": CAROL})
    desk.read()
    assert caplog.text.count("ledger:3: approve: approves what this person cannot approve") == 1
    for at, text in ((5, "[" * 100_000), (6, '"text"'), (7, '{"by": '), (8, "1" * 5_000)):
        with sqlite3.connect(tmp_path / "ledger.db") as connection:
            [(before,)] = connection.execute("select hash from blockd_ledger order by number desc limit 1").fetchall()
            row: tuple[Any, ...] = (at, round(NOW * 1000), "approve", text, before)
            connection.execute("insert into blockd_ledger values (?, ?, ?, ?, ?, ?)", (*row, digest(*row)))
        connection.close()
        desk.read()
        assert desk.problem is None, text[:50]
        assert desk.states(NOW) == {"active": 1}
    desk.close()
    ledger.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [("at_ms", "soon"), ("at_ms", 10**17), ("at_ms", 0.5), ("kind", 7), ("body", b"{}"), ("at_ms", -1)],
)
def test_an_entry_of_other_types_breaks_the_chain(tmp_path: Path, column: str, value: Any) -> None:
    """SQLite has them in any column; no writer of ours has, and then nothing holds."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.read()
    row: dict[str, Any] = {"number": 1, "at_ms": 1, "kind": "request", "body": "{}", "before": BEGINNING, column: value}
    try:
        own = digest(*row.values())
    except TypeError:
        own = "0" * 64
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("insert into blockd_ledger values (?, ?, ?, ?, ?, ?)", (*row.values(), own))
    connection.close()
    with pytest.raises(LedgerBroken, match="entry 1 is not what was written"):
        ledger.read()
    ledger.close()
