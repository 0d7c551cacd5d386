"""Exemptions: who may ask, who may approve, and that the next query obeys what was decided."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blockd.exemptions.ledger import Ledger
from blockd.exemptions.records import Exemption, Terms
from tests.conftest import Serve
from tests.support import warm
from tests.support.daemon import Blockd
from tests.support.people import ALICE, BOB, CAROL, DAVE, MALLORY, ask_as, socket_for_all
from tests.support.questions import ask, rcode
from tests.support.upstream import Upstream

#: Of the inventory: one device with two addresses, and another.
LAPTOP, LAPTOP_TOO, OTHER = "127.0.0.41", "127.0.0.42", "127.0.0.43"
INVENTORY = f"""address,hostname,serial,owner
{LAPTOP},laptop-1,SER-4711,ministry
{LAPTOP_TOO},laptop-1,SER-4711,ministry
{OTHER},laptop-2,SER-4712,ministry
"""
EXEMPTIONS = {
    "teams": {"cyber": [ALICE, CAROL], "other": [BOB]},
    "requesters": [CAROL, DAVE],
    "mitigations": ["dedicated device", "no work accounts"],
    "longest": "30d",
    "apps": ["telegram"],
    "sets": {"harms": ["SER-4711", "laptop-2"]},
}


def soon(**delta: float) -> str:
    """Write a time from now."""
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


def wish(**values: Any) -> dict[str, Any]:
    """Write a request that is in order, but for what a test changes."""
    usual = {
        "device": "SER-4711",
        "apps": ["tiktok"],
        "purpose": "online harms work",
        "team": "cyber",
        "clearance": "MIN-2026-014",
        "mitigations": ["dedicated device"],
        "expires_at": soon(days=5),
    }
    return {**usual, **values}


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a control socket that every user can reach."""
    with socket_for_all() as socket:
        yield socket


@pytest.fixture
def blockd(place: Path, serve: Serve, upstream: Upstream, tmp_path: Path) -> Blockd:
    """Give a daemon with an inventory and somebody who approves."""
    for name in ("www.tiktok.com", "log.byteoversea.com", "t.me", "fine.example"):
        upstream.records[name] = [f"{name}. 300 IN A 192.0.2.1"]
    (tmp_path / "devices.csv").write_text(INVENTORY)
    return serve(
        [upstream.address],
        admin={"socket": str(place)},
        groups={"corporate": {"networks": ["127.0.0.1/32"], "inventory": [{"file": str(tmp_path / "devices.csv")}]}},
        exemptions=EXEMPTIONS,
    )


def granted(place: Path, **values: Any) -> str:
    """Have an exemption requested and approved; give its name."""
    asked = ask_as(CAROL, place, "request", **wish(**values))
    assert asked["ok"], asked
    name: str = asked["exemption"]["name"]
    approved = ask_as(ALICE, place, "approve", exemption=name)
    assert approved["ok"], approved
    return name


@pytest.mark.parametrize(
    ("length", "age", "is_expiring"),
    [(5, 0, False), (5, 4, False), (14, 10, False), (30, 0, False), (30, 22.9, False), (30, 23, True), (30, 31, False)],
)
def test_only_long_exemptions_count_as_expiring(length: float, age: float, is_expiring: bool) -> None:
    """A short exemption ends soon from its first day, and nobody has to be told. Times in days."""
    day, now = 86_400.0, 1.8e9
    start = now - age * day
    terms = Terms("SER-1", ("tiktok",), "-", "cyber", "-", (), start, start + length * day, "", ())
    approved = Exemption("E1", terms, "a", start, "b", start)
    assert approved.is_expiring(now) is is_expiring
    assert not Exemption("E1", terms, "a", start).is_expiring(now), "what is only requested needs no renewal"


def verdict(blockd: Blockd, client: str, name: str = "www.tiktok.com") -> str:
    """Ask as a device."""
    return rcode(ask(blockd, name, client=client))


def test_the_next_query_obeys(blockd: Blockd, place: Path, upstream: Upstream) -> None:
    """Requested and approved, it passes at each address of the device, with what the app needs; revoked, no more."""
    for client in (LAPTOP, LAPTOP_TOO, OTHER):
        assert verdict(blockd, client) == "NXDOMAIN"
    asked = ask_as(CAROL, place, "request", **wish())
    assert asked["exemption"]["state"] == "requested"
    assert asked["exemption"]["requester"] == CAROL
    name = asked["exemption"]["name"]
    assert verdict(blockd, LAPTOP) == "NXDOMAIN", "a request grants nothing"
    own = ask_as(CAROL, place, "approve", exemption=name)
    assert not own["ok"]
    assert "somebody else has to approve it" in own["error"]
    assert "does not approve for cyber" in ask_as(BOB, place, "approve", exemption=name)["error"]
    assert "root cannot request, decide or approve" in ask_as("root", place, "approve", exemption=name)["error"]
    assert verdict(blockd, LAPTOP) == "NXDOMAIN"
    approved = ask_as(ALICE, place, "approve", exemption=name)
    assert (approved["exemption"]["state"], approved["exemption"]["approver"]) == ("active", ALICE)
    for client in (LAPTOP, LAPTOP_TOO):
        for tcp in (False, True):
            assert rcode(ask(blockd, "www.tiktok.com", client=client, tcp=tcp)) == "NOERROR"
        assert verdict(blockd, client, "log.byteoversea.com") == "NOERROR", "what it needs is open too"
    assert verdict(blockd, OTHER) == "NXDOMAIN", "another device is another device"
    assert verdict(blockd, "127.0.0.1") == "NXDOMAIN"
    assert blockd.metric("blockd_decisions_total", group="corporate", action="exempt", app="tiktok") >= 4
    explained = blockd.run("explain", "--client", LAPTOP, "www.tiktok.com").stdout
    assert "exempt (tiktok)" in explained, explained
    assert "exempt bytedance-platform, tiktok" in explained
    assert "laptop-1, serial SER-4711" in explained
    assert f"exemption {name}" in explained
    deadline = time.monotonic() + 10
    line = f"exempt tiktok for {LAPTOP} (corporate): www.tiktok.com A, by suffix tiktok.com, exemption {name}"
    while line not in blockd.log.read_text():
        assert time.monotonic() < deadline, blockd.log.read_text()
        time.sleep(0.05)
    assert blockd.metric("blockd_exemptions", state="active") == 1
    assert blockd.metric("blockd_exemptions_expiring") == 0, "the end of a short exemption surprises nobody"
    assert blockd.reload().returncode == 0
    assert verdict(blockd, LAPTOP) == "NOERROR", "a reload takes nothing away"
    revoked = ask_as(ALICE, place, "revoke", exemption=name, reason="the work is done")
    assert revoked["exemption"]["state"] == "revoked"
    assert verdict(blockd, LAPTOP) == "NXDOMAIN", "the cached answer is refused too"
    log = blockd.log.read_text()
    assert f"exemption {name} approved by {ALICE} of cyber" in log
    assert f"exempt tiktok for {LAPTOP} (corporate)" in log


def test_it_begins_and_ends_on_the_second(blockd: Blockd, place: Path) -> None:
    """By the clock of the hot path: nobody reloads, nobody is asked."""
    began = time.time()
    granted(place, not_before=soon(seconds=2), expires_at=soon(seconds=4))
    changes: list[tuple[str, float]] = []
    while time.time() < began + 6:
        said, now = verdict(blockd, LAPTOP), time.time()
        if not changes or changes[-1][0] != said:
            changes.append((said, now - began))
        time.sleep(0.01)
    assert [said for said, _ in changes] == ["NXDOMAIN", "NOERROR", "NXDOMAIN"]
    assert 2.0 <= changes[1][1] < 3.0, changes
    assert 4.0 <= changes[2][1] < 5.0, changes
    assert blockd.metric("blockd_exemptions", state="expired") == 1


def test_a_set_of_devices_and_a_place(blockd: Blockd, place: Path) -> None:
    """A named set is each of its devices; with networks, where they are counts; `exemptions.apps` may be exempt too."""
    granted(place, device="harms", networks=["127.0.0.43/32", "127.0.0.41/32"])
    assert [verdict(blockd, client) for client in (LAPTOP, LAPTOP_TOO, OTHER)] == ["NOERROR", "NXDOMAIN", "NOERROR"]
    blockd.values["policies"]["corporate"]["block"].append("telegram")
    assert blockd.reload().returncode == 0
    assert verdict(blockd, OTHER, "t.me") == "NXDOMAIN"
    granted(place, device="laptop-2", apps=["telegram"])
    assert verdict(blockd, OTHER, "t.me") == "NOERROR"
    assert verdict(blockd, OTHER) == "NOERROR", "two exemptions add up"
    assert verdict(blockd, LAPTOP, "t.me") == "NXDOMAIN"


def test_it_outlives_a_restart(blockd: Blockd, place: Path) -> None:
    """And a revocation does."""
    name = granted(place)
    blockd.stop()
    blockd.start()
    assert verdict(blockd, LAPTOP) == "NOERROR"
    assert ask_as("root", place, "revoke", exemption=name, reason="an incident")["ok"]
    blockd.stop()
    blockd.start()
    assert verdict(blockd, LAPTOP) == "NXDOMAIN"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"clearance": ""}, "clearance: expected a line of text"),
        ({"mitigations": []}, "mitigations: name one of these at least: dedicated device; no work accounts"),
        ({"mitigations": ["we will be careful"]}, "mitigations: name one of these"),
        ({"expires_at": soon(days=-1)}, "expires_at: that is over"),
        ({"expires_at": soon(days=40)}, "for 30 days at most"),
        ({"expires_at": None}, "expires_at: expected a time with its offset"),
        ({"expires_at": "2030-01-01T10:00:00"}, "expires_at: expected a time with its offset"),
        ({"not_before": soon(days=9)}, "expires_at: that is before not_before"),
        ({"device": "SER-9999"}, "device: SER-9999 is no serial or hostname"),
        ({"apps": []}, "apps: name one at least"),
        ({"apps": ["temu"]}, "apps: temu is not live: no policy names it, and exemptions.apps does not either"),
        ({"team": "nobodys"}, "team: there is no team nobodys; there are cyber, other"),
        ({"hours": "8 to 6"}, "are no hours, such as mon-fri"),
        ({"networks": ["10.0.0.1/8"]}, "is no network"),
        ({"purpose": "two\nlines"}, "purpose: expected a line of text"),
    ],
)
def test_a_request_that_is_not_in_order_is_refused(
    values: dict[str, Any], why: str, shared: tuple[Blockd, Path]
) -> None:
    """With what would be; and the ledger says that it was tried."""
    _, place = shared
    before = int(ask_as("root", place, "verify")["head"].split(":")[0])
    refused = ask_as(CAROL, place, "request", **wish(**values))
    assert not refused["ok"]
    assert why in refused["error"], refused
    exported = ask_as("root", place, "export")
    entry = exported["entries"][before + 1]
    assert (entry["kind"], entry["body"]["command"]) == ("refused", "request")
    assert exported["people"][entry["body"]["by"]] == CAROL


def test_who_has_no_part_in_it_is_refused(shared: tuple[Blockd, Path]) -> None:
    """Strangers see nothing and do nothing; people are no operators; uid 0 neither requests nor approves."""
    _, place = shared
    known = ask_as(CAROL, place, "request", **wish())["exemption"]["name"]
    before = ask_as("root", place, "export")["entries"]
    refusals = set()
    for do in ("request", "approve", "agree", "decide", "revoke", "list", "show", "verify", "export", "forget"):
        for name in (known, "E99999"):
            refused = ask_as(MALLORY, place, do, **wish(exemption=name, decision=name, person=CAROL, reason="why not"))
            assert not refused["ok"], do
            refusals.add(refused["error"])
    assert refusals == {f"{MALLORY} has no part in exemptions"}, "the same whether it exists or not"
    written = ask_as("root", place, "export")["entries"][len(before) :]
    assert [entry["body"]["command"] for entry in written] == ["export"], "nothing is written for a stranger"
    refusals = {ask_as(DAVE, place, "approve", exemption=name)["error"] for name in (known, "E99999")}
    assert refusals == {f"{DAVE} is of no team of exemptions.teams"}, "nor read for who does not approve"
    assert "only root" in ask_as(CAROL, place, "forget", person=CAROL)["error"]
    assert "root cannot request, decide or approve" in ask_as("root", place, "request", **wish())["error"]
    assert "is not among exemptions.requesters" in ask_as(ALICE, place, "request", **wish())["error"]
    name = ask_as(CAROL, place, "request", **wish())["exemption"]["name"]
    assert "reason: expected" in ask_as(CAROL, place, "revoke", exemption=name)["error"]
    assert "there is no exemption" in ask_as(ALICE, place, "approve", exemption="E99999")["error"]
    assert ask_as(CAROL, place, "revoke", exemption=name, reason="not needed")["ok"], "who asked may take it back"
    assert "is revoked" in ask_as(ALICE, place, "approve", exemption=name)["error"]
    assert ask_as(CAROL, place, "nonsense")["error"].startswith("expected one of request, approve")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Blockd, Path]]:
    """Give one daemon to tests that leave it as it is."""
    directory = tmp_path_factory.mktemp("shared")
    (directory / "devices.csv").write_text(INVENTORY)
    with Upstream({}) as upstream, socket_for_all() as place:
        blockd = Blockd(
            directory,
            [upstream.address],
            admin={"socket": str(place)},
            groups={"corporate": {"inventory": [{"file": "devices.csv"}]}},
            exemptions=EXEMPTIONS,
        )
        with blockd:
            yield blockd, place


def test_strangers_do_not_fill_the_ledger(shared: tuple[Blockd, Path]) -> None:
    """Their refusals are no entries, and of many the log has one line, and later a count."""
    blockd, place = shared
    before = int(ask_as("root", place, "verify")["entries"])
    for _ in range(120):
        assert not ask_as(MALLORY, place, "list")["ok"]
    assert int(ask_as("root", place, "verify")["entries"]) - before <= 1
    assert blockd.log.read_text().count(f"exempt: list was refused: {MALLORY} has no part") == 1, "nor the journal"


def test_who_decides_may_read(shared: tuple[Blockd, Path]) -> None:
    """Requesters and teams explain, look up devices and read reports; others learn only that they may not."""
    _, place = shared
    reading = [
        (["explain", "--client", LAPTOP, "www.tiktok.com"], "laptop-1, serial SER-4711"),
        (["devices", "who", LAPTOP], "laptop-1, serial SER-4711"),
        (["devices"], "corporate"),
        (["report"], "not used: "),
    ]
    for words, shown in reading:
        for user in (ALICE, CAROL, BOB):
            done = warm.run([*words, "--socket", str(place)], user=user)
            assert (done.returncode, shown in done.stdout) == (0, True), (user, words, done.stdout, done.stderr)
        done = warm.run([*words, "--socket", str(place)], user=MALLORY)
        assert (done.returncode, done.stdout) == (1, ""), words
        assert done.stderr.endswith(
            f"{words[0]} is for root, and for the users that exemptions.teams and exemptions.requesters name\n"
        )
        assert len(done.stderr.splitlines()) == 1


def test_commands_for_operators_stay_theirs(shared: tuple[Blockd, Path]) -> None:
    """The socket is open to all users; a reload is not."""
    _, place = shared
    assert (place.stat().st_mode & 0o777) == 0o666
    for words, refused in (
        (["reload"], "reload"),
        (["status"], "status"),
        (["top"], "status"),
        (["lists"], "lists"),
        (["lists", "fetch"], "fetch"),
        (["lists", "accept", "tiktok"], "accept"),
        (["lists", "rollback"], "rollback"),
        (["egress", "status"], "egress"),
    ):
        name = "lists" if refused == "lists" else " ".join(words[:2])
        done = warm.run([*words, "--socket", str(place)], user=CAROL)
        assert (done.returncode, done.stdout) == (1, ""), words
        assert done.stderr == f"blockd {name}: {refused} is for root alone\n"
    done = warm.run(["status", "--json", "--socket", str(place)], user=CAROL)
    assert json.loads(done.stdout) == {"ok": False, "error": "status is for root alone"}


def test_a_ledger_that_is_edited_meanwhile_grants_nothing(blockd: Blockd, place: Path) -> None:
    """Found by whoever verifies, and before anything is granted; what held ends, and is back when it is whole."""
    name = granted(place)
    assert rcode(ask(blockd, "www.tiktok.com", client=LAPTOP)) == "NOERROR"
    waiting = ask_as(CAROL, place, "request", **wish(device="SER-4712"))["exemption"]["name"]
    file = blockd.directory / "state" / "exemptions.db"
    with sqlite3.connect(file) as ledger:
        ledger.execute("update blockd_ledger set body = replace(body, 'online', 'no') where number = 1")
    refused = ask_as(ALICE, place, "approve", exemption=waiting)
    assert "entry 1 is not what was written" in refused["error"]
    wait_until_refused(blockd)
    assert blockd.metric("blockd_ledger_current") == 0
    with sqlite3.connect(file) as ledger:
        ledger.execute("update blockd_ledger set body = replace(body, 'no harms', 'online harms') where number = 1")
    deadline = time.monotonic() + 10
    while rcode(ask(blockd, "www.tiktok.com", client=LAPTOP)) != "NOERROR":
        assert time.monotonic() < deadline, blockd.log.read_text()
        time.sleep(0.1)
    assert ask_as(ALICE, place, "revoke", exemption=name, reason="done")["ok"]


def wait_until_refused(blockd: Blockd) -> None:
    """Wait until the laptop is exempt no more."""
    deadline = time.monotonic() + 10
    while rcode(ask(blockd, "www.tiktok.com", client=LAPTOP)) != "NXDOMAIN":
        assert time.monotonic() < deadline, blockd.log.read_text()
        time.sleep(0.1)


def test_another_file_in_its_place_is_found(blockd: Blockd, place: Path) -> None:
    """An old copy of the ledger takes the place of the one that is open: nobody is exempt by it, or by what is gone."""
    file = blockd.directory / "state" / "exemptions.db"
    ask_as("root", place, "list")
    copy = file.with_suffix(".old")
    copy.write_bytes(file.read_bytes())
    granted(place)
    assert rcode(ask(blockd, "www.tiktok.com", client=LAPTOP)) == "NOERROR"
    copy.replace(file)
    wait_until_refused(blockd)
    assert "it was cut" in ask_as("root", place, "verify")["error"]


def test_a_zone_that_is_unknown_here_holds_nothing_else_up(blockd: Blockd, place: Path) -> None:
    """A ledger that another resolver wrote to, with newer zones: that exemption does not hold, and all else goes on."""
    granted(place, hours="00:00-24:00 Europe/London")
    assert rcode(ask(blockd, "www.tiktok.com", client=LAPTOP)) == "NOERROR"
    ledger = Ledger(f"sqlite:///{blockd.directory / 'state' / 'exemptions.db'}")
    book = ledger.read()
    body = next(entry.body for entry in book.entries if entry.kind == "request")
    book = ledger.append(
        book, time.time(), "request", {**body, "device": "SER-4712", "hours": "08:00-18:00 Nowhere/Gone"}
    )
    approver = next(entry.body["by"] for entry in book.entries if entry.kind == "approve")
    ledger.append(book, time.time(), "approve", {"exemption": f"E{book.head.number}", "team": "cyber", "by": approver})
    ledger.close()
    deadline = time.monotonic() + 10
    while "does not hold here" not in blockd.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert rcode(ask(blockd, "www.tiktok.com", client=LAPTOP)) == "NOERROR"
    assert rcode(ask(blockd, "www.tiktok.com", client=OTHER)) == "NXDOMAIN"
    assert blockd.reload().returncode == 0
    assert ask_as("root", place, "list")["ok"]
    assert ask_as(ALICE, place, "revoke", exemption="E1", reason="done")["ok"]
    assert rcode(ask(blockd, "www.tiktok.com", client=LAPTOP)) == "NXDOMAIN"


def test_a_name_that_two_devices_have_exempts_neither(blockd: Blockd, place: Path, tmp_path: Path) -> None:
    """A hostname of two serials is refused; a serial of its own is meant; a placeholder is no serial."""
    text = INVENTORY + "127.0.0.44,macbook,SER-1,\n127.0.0.45,macbook,SER-2,\n127.0.0.46,a,N/A,\n127.0.0.47,b,N/A,\n"
    (tmp_path / "devices.csv").write_text(text)
    assert blockd.reload().returncode == 0
    refused = ask_as(CAROL, place, "request", **wish(device="macbook"))
    assert "macbook is more than one device's" in refused["error"]
    assert "is no serial or hostname" in ask_as(CAROL, place, "request", **wish(device="N/A"))["error"]
    granted(place, device="SER-1")
    assert rcode(ask(blockd, "www.tiktok.com", client="127.0.0.44")) == "NOERROR"
    assert rcode(ask(blockd, "www.tiktok.com", client="127.0.0.45")) == "NXDOMAIN"


def test_an_edited_ledger_grants_nothing(blockd: Blockd, place: Path) -> None:
    """Found by verify at once, and at the next start; a cut one is found while it runs. Nothing is exempt then."""
    name = granted(place)
    database = blockd.directory / "state" / "exemptions.db"

    def change(statement: str, *values: Any) -> None:
        with sqlite3.connect(database) as connection:
            connection.execute(statement, values)
        connection.close()

    assert ask_as(ALICE, place, "verify")["ok"]
    [(body,)] = sqlite3.connect(database).execute("select body from blockd_ledger where number = 1").fetchall()
    change("update blockd_ledger set body = replace(body, 'SER-4711', 'SER-4712') where number = 1")
    edited = ask_as(ALICE, place, "verify")
    assert edited["error"] == "the ledger is not whole: entry 1 is not what was written"
    blockd.stop()
    blockd.start()
    assert verdict(blockd, LAPTOP) == verdict(blockd, OTHER) == "NXDOMAIN"
    assert "exemptions: the ledger is not whole: entry 1" in blockd.log.read_text()
    assert blockd.metric("blockd_ledger_current") == 0
    assert blockd.ready()["ledger"]["problem"].startswith("the ledger is not whole")
    assert not ask_as(ALICE, place, "approve", exemption=name)["ok"]
    change("update blockd_ledger set body = ? where number = 1", body)
    deadline = time.monotonic() + 10
    while verdict(blockd, LAPTOP) != "NOERROR":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    change("delete from blockd_ledger where number = (select max(number) from blockd_ledger)")
    deadline = time.monotonic() + 10
    while verdict(blockd, LAPTOP) != "NXDOMAIN":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "it was cut" in blockd.ready()["ledger"]["problem"]


def test_the_command_line_tells_the_story(shared: tuple[Blockd, Path]) -> None:
    """What root may do of it: list, show, verify, export, forget; a refusal ends with 1."""
    blockd, place = shared
    name = granted(place)

    def exempt(*words: str) -> str:
        done = warm.run(["exempt", words[0], "--config", str(blockd.file), *words[1:]])
        return f"{done.returncode}\n{done.stdout}{done.stderr}"

    shown = exempt("list")
    assert name in shown
    assert "SER-4711" in shown
    assert "approve" in exempt("show", name)
    assert "entries, whole; head" in exempt("verify")
    assert exempt("verify", "--head", f"1:{'0' * 64}").startswith("1\n")
    request = ["request", "--device", "SER-4711", "--app", "tiktok", "--purpose", "p", "--team", "cyber"]
    request += ["--clearance", "c", "--mitigation", "dedicated device", "--until", "8h"]
    refused = exempt(*request)
    assert refused.startswith("1\n")
    assert "root cannot request, decide or approve" in refused
    assert exempt("forget", CAROL).startswith("0\n")
    assert CAROL not in exempt("export")
    assert "entries, whole" in exempt("verify")
    assert exempt("revoke", name, "--reason", "done").startswith("0\n")
