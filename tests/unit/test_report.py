"""Apps under review: what is counted, what a report says, and how a decision is taken."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from blockd.review.decisions import read_decided
from blockd.review.page import page
from blockd.review.report import AppFacts, report
from blockd.review.store import Store
from blockd.review.usage import DAY, MAX_NAMES, Usage
from tests.conftest import Serve
from tests.support.people import ALICE, BOB, CAROL, MALLORY, ask_as, socket_for_all
from tests.support.questions import CORPORATE, GUEST, PERSONAL, ask, rcode
from tests.support.upstream import Upstream

#: A day of 2026, at noon.
NOON = 20_600 * DAY + 12 * 3_600.0
STANDING = {"block": [], "monitor": ["guest", "personal"], "allow": []}
FACTS = {"temu": AppFacts("Temu", "PDD", {"contacts": "somebody"}, STANDING, ["guest"])}


def test_what_grows_is_counted_by_hour() -> None:
    """By group, app and action; what is no app's is not, nor what was counted before."""
    usage = Usage()
    usage.count(Counter({("guest", "temu", "monitor"): 3, ("guest", "", "pass"): 9, ("all", "temu", "block"): 1}), NOON)
    usage.count(Counter({("guest", "temu", "monitor"): 5, ("all", "temu", "block"): 1}), NOON + 60)
    usage.count(Counter({("guest", "temu", "monitor"): 6, ("all", "temu", "block"): 1}), NOON + 3_600)
    part = usage.take()
    found = {
        (cell.hour - int(NOON // 3_600), cell.group): (s.queries, s.first, s.last) for cell, s in part.sums.items()
    }
    assert found == {
        (0, "guest"): (5, NOON, NOON + 60),
        (0, "all"): (1, NOON, NOON),
        (1, "guest"): (1, NOON + 3_600, NOON + 3_600),
    }
    assert usage.take().is_empty
    usage.give_back(part)
    assert usage.take().sums == part.sums, "what could not be kept is not lost"


def test_a_name_is_no_candidate_before_enough_devices_asked() -> None:
    """One device that asks often is not many; the name is handed over without any of them; waiting names are few."""
    usage = Usage()
    for device in ("a", "a", "b", "a"):
        usage.led("x.example", "temu", device, 3, NOON)
    assert usage.take().is_empty
    usage.led("x.example", "temu", "c", 3, NOON)
    usage.led("x.example", "temu", "a", 3, NOON + 5)
    part = usage.take()
    assert {key: one.queries for key, one in part.names.items()} == {(int(NOON // DAY), "x.example", "temu"): 2}
    for at in range(MAX_NAMES + 10):
        usage.led(f"{at}.example", "temu", "a", 3, NOON)
    usage.led("0.example", "temu", "b", 3, NOON)
    usage.led("0.example", "temu", "c", 3, NOON)
    assert usage.take().is_empty, "it had to make room, and begins anew"


def filled(store: Store) -> None:
    """Keep two days of two groups."""
    usage = Usage()
    usage.count(Counter({("guest", "temu", "monitor"): 3}), NOON - DAY)
    usage.count(Counter({("guest", "temu", "monitor"): 10, ("all", "temu", "exempt"): 2}), NOON)
    for device in ("a", "b", "a"):
        usage.saw("temu", "guest", "monitor", device, NOON)
    usage.saw("temu", "guest", "monitor", "a", NOON - DAY)
    usage.led("x.example", "temu", "a", 1, NOON)
    store.keep(usage.take(), 0, ["guest"])


def test_what_is_kept_adds_up_and_ends(tmp_path: Path) -> None:
    """Twice the same is twice as much; devices are counted once over days; what is too old is forgotten."""
    store = Store(f"sqlite:///{tmp_path}/x.db")
    filled(store)
    filled(store)
    kept = store.read(NOON - 2 * DAY, NOON)
    assert [row[1:5] for row in kept.usage] == [
        ("temu", "guest", "monitor", 6),
        ("temu", "all", "exempt", 4),
        ("temu", "guest", "monitor", 14),
    ]
    assert kept.devices == {("temu", "guest"): 2}
    assert [row[:3] for row in kept.names] == [("x.example", "temu", 2)]
    assert store.read(NOON - 3 * DAY, NOON - 2 * DAY).names == [], "of that span nothing is known"
    found = report(kept, FACTS, NOON - 2 * DAY, NOON, [])
    [app] = found["apps"]
    assert app["block_would_touch"] == {"queries": 20, "devices": 2, "groups": ["guest"]}
    assert app["exempt_queries"] == 4
    refused = Usage()
    for number in range(9):
        refused.saw("temu", "guest", "block", f"r{number}", NOON)
    store.keep(refused.take(), 0, ["guest"])
    again = report(store.read(NOON - 2 * DAY, NOON), FACTS, NOON - 2 * DAY, NOON, [])["apps"][0]
    assert again["groups"][1]["devices"] == 11
    assert again["block_would_touch"]["devices"] == 2, "who was refused anyway is not touched by a block"
    assert [day.get("monitor", 0) for day in app["trend"]] == [0, 6, 14]
    assert [group["devices"] for group in app["groups"]] == [None, 2]
    odd = Usage()
    odd.saw("temu", "guest", "monitor", "half\ud800 a\0pair" + "x" * 300, NOON)
    odd.led("\ud800" * 2_000, "temu", "d", 1, NOON)
    store.keep(odd.take(), 0, ["guest"])
    assert store.read(NOON - 2 * DAY, NOON).devices == {("temu", "guest"): 12}, "kept, as every database takes it"
    store.keep(Usage().take(), NOON - 3_600, ["guest"])
    assert len(store.read(0, NOON).usage) == 2
    store.keep(Usage().take(), 0, ["corporate"])
    assert store.read(0, NOON).devices == {}, "a group that is logged by device no more is forgotten by device"
    store.close()


def test_a_block_touches_only_groups_that_a_decision_concerns(tmp_path: Path) -> None:
    """Personal devices are counted where their policy monitors an app, and no decision blocks it for them."""
    store = Store(f"sqlite:///{tmp_path}/x.db")
    usage = Usage()
    usage.count(Counter({("guest", "temu", "monitor"): 3, ("personal", "temu", "monitor"): 50}), NOON)
    for group, device in (("guest", "a"), ("personal", "b"), ("personal", "c")):
        usage.saw("temu", group, "monitor", device, NOON)
    store.keep(usage.take(), 0, ["guest", "personal"])
    [app] = report(store.read(NOON - DAY, NOON), FACTS, NOON - DAY, NOON, [])["apps"]
    assert app["block_would_touch"] == {"queries": 3, "devices": 1, "groups": ["guest"]}
    assert [group["group"] for group in app["groups"]] == ["guest", "personal"]
    store.close()


class Reader(HTMLParser):
    """Sees that every element is closed."""

    def __init__(self) -> None:
        """Start outside."""
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Go in."""
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        """Stay."""

    def handle_endtag(self, tag: str) -> None:
        """Go out."""
        assert self.open.pop() == tag


def test_a_page_is_whole_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    """A name that somebody chose is no markup; nothing is fetched from elsewhere."""
    store = Store(f"sqlite:///{tmp_path}/x.db")
    filled(store)
    usage = Usage()
    usage.led("<script>alert(1)</script>.example", "temu", "a", 1, NOON)
    store.keep(usage.take(), 0, ["guest"])
    found = report(store.read(NOON - 30 * DAY, NOON), FACTS, NOON - 30 * DAY, NOON, [])
    found["exemptions"] = [
        {
            **dict.fromkeys(("name", "purpose", "clearance", "expires_at", "state"), "<b>"),
            "device": "SER-1",
            "apps": ["temu"],
        }
    ]
    text = page(found)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert "<script" not in text
    assert "<b>\n" not in text
    assert "://" not in text
    assert (
        "A block would have refused <b>10</b> queries of guest; devices, where they are told apart: <b>2</b>." in text
    )
    store.close()


def test_a_daemon_reports(serve: Serve, upstream: Upstream, tmp_path: Path) -> None:
    """Usage by group with devices where they are logged alone; a name that leads to an app, once enough asked."""
    upstream.records["www.tiktok.com"] = ["www.tiktok.com. 300 IN A 192.0.2.1"]
    upstream.records["x.hidden.example"] = [
        "x.hidden.example. 300 IN CNAME www.tiktok.com.",
        "www.tiktok.com. 300 IN A 192.0.2.1",
    ]
    groups = {"corporate": {"networks": ["127.0.0.1/32"]}, "guest": {"networks": ["127.0.0.32/28"], "log": "decisions"}}
    policies = {
        "personal": {"monitor": ["tiktok"], "allow": ["lark"]},
        "guest": {"monitor": ["tiktok"], "block": ["wechat"]},
    }
    blockd = serve([upstream.address], groups=groups, policies=policies, report={"min_devices": 3})
    empty = blockd.run("report")
    assert (empty.returncode, "not used: " in empty.stdout) == (0, True), empty.stderr
    for client in ("127.0.0.33", "127.0.0.34"):
        for name in ("www.tiktok.com", "x.hidden.example"):
            assert rcode(ask(blockd, name, client=client)) == "NOERROR"
    ask(blockd, "x.hidden.example", client=PERSONAL)
    ask(blockd, "x.hidden.example", client=CORPORATE)
    ask(blockd, "www.larksuite.com", client=PERSONAL)
    found = json.loads(blockd.run("report", "--since", "24h", "--json").stdout)
    apps = {app["app"]: app for app in found["apps"]}
    rows = {group["group"]: (group["queries"], group["devices"]) for group in apps["tiktok"]["groups"]}
    assert rows == {
        "corporate": ({"block": 1}, 1),
        "guest": ({"monitor": 4}, 2),
        "personal": ({"monitor": 1}, None),
    }
    assert found["candidates"] == [{**found["candidates"][0], "name": "x.hidden.example", "app": "tiktok"}]
    assert "127.0.0." not in json.dumps(found["candidates"])
    shown = blockd.run("report", "--app", "lark").stdout
    assert re.search(r"^  personal +1 +- +- +- ", shown, re.MULTILINE), f"what is allowed is let through: {shown}"
    ask(blockd, "x.hidden.example", client="127.0.0.35")
    shown = blockd.run("report", "--app", "tiktok").stdout
    assert "x.hidden.example" in shown
    assert "a block would have refused 5 queries of guest, from 3 devices" in shown
    file = tmp_path / "page.html"
    assert blockd.run("report", "--html", str(file)).stdout == f"written to {file}\n"
    assert "TikTok" in file.read_text()
    blockd.stop()
    blockd.start()
    again = json.loads(blockd.run("report", "--json").stdout)
    assert again["apps"] == json.loads(json.dumps(again["apps"]))
    assert {app["app"]: app["groups"] for app in again["apps"]}["tiktok"][1]["queries"] == {"monitor": 5}
    assert "there is no app nobody" in blockd.run("report", "--app", "nobody").stderr
    assert blockd.run("report", "--since", "soon").returncode == 2


def test_counts_outlive_a_database_that_is_away(serve: Serve, upstream: Upstream) -> None:
    """What cannot be kept now is kept later, and a report says that it is behind."""
    blockd = serve([upstream.address])
    database = blockd.directory / "state" / "usage.db"
    assert blockd.run("report").returncode == 0
    with sqlite3.connect(database) as connection:
        connection.execute("alter table blockd_usage rename to elsewhere")
    ask(blockd, "www.tiktok.com", client=CORPORATE)
    assert blockd.run("report").returncode == 1
    assert "report: counts are not kept, and tried again" in blockd.log.read_text()
    with sqlite3.connect(database) as connection:
        connection.execute("alter table elsewhere rename to blockd_usage")
    found = json.loads(blockd.run("report", "--json").stdout)
    assert {app["app"]: app["groups"] for app in found["apps"]}["tiktok"][0]["queries"] == {"block": 1}


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a control socket that every user can reach."""
    with socket_for_all() as socket:
        yield socket


def decided(place: Path, app: str, to: str) -> str:
    """Have it decided and approved; give its name."""
    answer = ask_as(CAROL, place, "decide", app=app, to=to, reason="a review")
    assert answer["ok"], answer
    name: str = answer["decision"]["name"]
    answer = ask_as(ALICE, place, "agree", decision=name)
    assert answer["ok"], answer
    return name


def test_two_people_move_an_app(place: Path, serve: Serve, upstream: Upstream) -> None:
    """From monitor to block at once, over reload, restart and rollback; and back. Root decides nothing."""
    upstream.records["www.tiktok.com"] = ["www.tiktok.com. 300 IN A 192.0.2.1"]
    teams = {"teams": {"cyber": [ALICE, CAROL]}, "requesters": [BOB], "mitigations": ["x"]}
    policies = {"guest": {"block": ["capcut"], "monitor": ["tiktok"]}, "personal": {"monitor": ["tiktok"]}}
    blockd = serve([upstream.address], admin={"socket": str(place)}, exemptions=teams, policies=policies)
    assert rcode(ask(blockd, "www.tiktok.com", client=GUEST)) == "NOERROR"
    proposed = ask_as(CAROL, place, "decide", app="tiktok", to="block", reason="contacts leave the device")
    name = proposed["decision"]["name"]
    assert rcode(ask(blockd, "www.tiktok.com", client=GUEST)) == "NOERROR", "one person decides nothing"
    for user, said in (
        (CAROL, "somebody else has to approve it"),
        (BOB, "of no team"),
        ("root", "root cannot request, decide or approve"),
        (MALLORY, "no part in"),
    ):
        assert said in ask_as(user, place, "agree", decision=name)["error"]
    for values, said in (
        ({"app": "temu", "to": "block", "reason": "x"}, "no policy that blocks something names it"),
        ({"app": "canary-names", "to": "monitor", "reason": "x"}, "no policy that blocks something names it"),
        ({"app": "tiktok", "to": "allow", "reason": "x"}, "expected one of block, monitor, config"),
        ({"app": "tiktok", "to": "block", "reason": ""}, "reason: expected"),
    ):
        assert said in ask_as(CAROL, place, "decide", **values)["error"]
    assert "no part in" in ask_as(MALLORY, place, "decide", app="tiktok", to="block", reason="x")["error"]
    assert ask_as(ALICE, place, "agree", decision=name)["ok"]
    assert rcode(ask(blockd, "www.tiktok.com", client=GUEST)) == "NXDOMAIN", "in force when it is said"
    assert rcode(ask(blockd, "www.tiktok.com", client=PERSONAL)) == "NOERROR", (
        "a policy that blocks nothing bans nobody"
    )
    assert "there is nothing to approve" in ask_as(ALICE, place, "agree", decision=name)["error"]
    shown = blockd.run("apps", "decisions").stdout
    assert "in force" in shown
    assert "contacts leave the device" in shown
    assert f"tiktok: block by decision {name}, whatever the config says" in blockd.run("apps").stdout
    assert f"block by decision {name}" in blockd.run("apps", "show", "tiktok").stdout
    assert blockd.run("reload").returncode == 0
    assert rcode(ask(blockd, "www.tiktok.com", client=GUEST)) == "NXDOMAIN"
    blockd.stop()
    blockd.start()
    assert rcode(ask(blockd, "www.tiktok.com", client=GUEST)) == "NXDOMAIN"
    assert blockd.ready()["config_in_force"]
    # A generation from before the decision does not undo it.
    while blockd.run("lists", "rollback").returncode == 0:
        pass
    deadline = time.monotonic() + 20
    while rcode(ask(blockd, "www.tiktok.com", client=GUEST)) != "NXDOMAIN":
        assert time.monotonic() < deadline, blockd.log.read_text()
        time.sleep(0.1)
    assert blockd.ready()["is_held"]
    assert blockd.run("reload").returncode == 0
    decided(place, "tiktok", "monitor")
    assert rcode(ask(blockd, "www.tiktok.com", client=CORPORATE)) == "NOERROR"
    decided(place, "tiktok", "config")
    assert rcode(ask(blockd, "www.tiktok.com", client=CORPORATE)) == "NXDOMAIN"
    assert rcode(ask(blockd, "www.tiktok.com", client=GUEST)) == "NOERROR"
    assert ask_as(ALICE, place, "verify")["ok"]
    assert "contacts leave the device" in json.dumps(json.loads(blockd.run("report", "--json").stdout)["decisions"])


def test_a_decision_that_the_gate_refuses_is_said_to_be_not_in_force(
    place: Path, serve: Serve, upstream: Upstream
) -> None:
    """What must be blocked stays blocked, whoever decides otherwise; an edited ledger decides nothing."""
    teams = {"teams": {"cyber": [ALICE]}, "requesters": [CAROL], "mitigations": ["x"]}
    reload = {"must_block": ["www.tiktok.com"]}
    policies = {"corporate": {"block": ["tiktok"], "monitor": ["temu"]}}
    blockd = serve([upstream.address], admin={"socket": str(place)}, exemptions=teams, reload=reload, policies=policies)
    name = ask_as(CAROL, place, "decide", app="tiktok", to="monitor", reason="a review")["decision"]["name"]
    answer = ask_as(ALICE, place, "agree", decision=name)
    assert answer == {"ok": False, "error": "it is in the ledger, and not in force: the log says why"}
    assert "what was decided of tiktok is not in force: " in blockd.log.read_text()
    assert "www.tiktok.com would be blocked for no group" in blockd.log.read_text()
    assert "approved, and not in force" in blockd.run("apps", "decisions").stdout
    decided(place, "temu", "block")
    assert rcode(ask(blockd, "www.temu.com", client=CORPORATE)) == "NXDOMAIN", "it keeps no other out"
    assert blockd.run("reload").returncode == 0
    assert blockd.ready()["config_in_force"]
    blockd.stop()
    blockd.start()
    assert blockd.ready()["config_in_force"]
    assert rcode(ask(blockd, "www.tiktok.com", client=CORPORATE)) == "NXDOMAIN"
    decided(place, "tiktok", "block")
    database = blockd.directory / "state" / "exemptions.db"
    with sqlite3.connect(database) as connection:
        connection.execute("update blockd_ledger set body = replace(body, 'block', 'config') where kind = 'decide'")
    connection.close()
    blockd.stop()
    blockd.start()
    assert "the ledger is not whole" in blockd.log.read_text()
    file = blockd.directory / "state" / "decided.json"
    held, skipped = read_decided(file, file.read_bytes())
    assert {app: to for app, (to, _) in held.items()} == {"temu": "block", "tiktok": "block"}
    assert not skipped.total
    blockd.stop()
    items = json.loads(file.read_text())
    odds: list[Any] = [1, None, [], {"to": "elsewhere", "by": "D1"}, {"to": "block"}, {"to": ["block"], "by": "D1"}]
    for odd in odds:
        file.write_text(json.dumps({**items, "tiktok": odd}))
        checked = blockd.run("check")
        assert checked.returncode == 0, checked.stderr
        assert f"{file}: tiktok: skipped: expected where a decision moves an app" in checked.stderr
    file.write_text('{"tiktok": 1}')
    assert "is not what blockd writes of its ledger: remove it" in blockd.run("check").stderr
