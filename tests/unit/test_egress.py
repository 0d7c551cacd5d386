"""The firewall's half without a kernel: what is read of the daemon, ranges, what is learned and what is not."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.egress.ends import Ends
from blockd.egress.learned import LEAST, Book
from blockd.egress.nftables import Nftables, NftError, SetFullError
from blockd.egress.reconcile import Reconciler
from blockd.egress.ruleset import ABSENT, Objects, duration, moving, ruleset
from blockd.egress.wanted import Verdicts, Wanted, ranges, read_learned, read_status, read_wanted
from blockd.exemptions.schedule import HORIZON
from blockd.firewall import Firewall
from blockd.policy.egress import exempt_at
from blockd.review.usage import DAY
from blockd.settings.schema import Egress
from blockd.settings.values import Address, Network
from tests.conftest import Serve
from tests.support.questions import PERSONAL, ask
from tests.support.upstream import Upstream

EDGE, OTHER = ip_address("151.101.2.73"), ip_address("151.101.2.74")
WANTED = Wanted(
    "7",
    groups={"corporate": Verdicts(("tiktok",), ("temu",), ("lark",), True)},
    networks={ip_network("10.20.0.0/16"): "corporate", ip_network("10.20.5.0/24"): None},
    places={ip_address("10.9.9.9"): "corporate", ip_address("fd00::9"): None},
    macs={"00:16:3e:00:47:11": "corporate"},
    apps={"tiktok": (ip_network("71.18.0.0/16"), ip_network("2404:9dc0::/32")), "temu": (), "lark": ()},
    exempt={"tiktok": {ip_address("10.20.0.7"): 2_000.0}},
    exempt_macs={"tiktok": {"00:16:3e:00:47:12": 2_000.0}},
    resolvers=(ip_network("10.0.0.53/32"),),
)


def as_read(wanted: Wanted) -> Any:
    """Write it and read the text, as it goes over the socket."""
    return json.loads(json.dumps(wanted.as_json()))


def test_what_is_wanted_is_read_as_it_was_written() -> None:
    """And what could be text of nftables, or is half, is an error."""
    assert read_wanted(as_read(WANTED)) == WANTED
    bad: list[tuple[str, Any]] = [
        ("groups", {"x; flush ruleset": {"block": [], "monitor": [], "allow": [], "named": True}}),
        ("groups", {"corporate": {"block": ["tik tok"], "monitor": [], "allow": [], "named": True}}),
        ("groups", {"corporate": {"block": ["nobodys"], "monitor": [], "allow": [], "named": True}}),
        ("networks", [["10.0.0.0/8 }", "corporate"]]),
        ("networks", [["10.0.0.0/8", "nobody"]]),
        ("places", [["10.0.0.1\n", None]]),
        ("places", [["fe80::1%eth0", None]]),
        ("macs", [["00:16:3e:00:47:1", None]]),
        ("apps", {"tiktok": "71.18.0.0/16"}),
        ("answer", "accept"),
        ("exempt", {"tiktok": "10.0.0.1"}),
        ("exempt", {"tiktok": [["10.0.0.1", "soon"]]}),
        ("exempt", {"tiktok": [["10.0.0.1", float("nan")]]}),
        ("exempt_macs", {"tiktok": [["10.0.0.1", 5]]}),
        ("resolvers", 7),
    ]
    for key, value in bad:
        with pytest.raises(ValueError, match=r"."):
            read_wanted({**as_read(WANTED), key: value})
    for key in as_read(WANTED):
        half = as_read(WANTED)
        del half[key]
        with pytest.raises(ValueError, match="not whole"):
            read_wanted(half)
    with pytest.raises(ValueError, match="is no name"):
        read_learned([["x{", "1.2.3.4", 5]])


def test_a_status_is_read_or_refused() -> None:
    """What a peer says must not break what others show."""
    good: dict[str, Any] = {
        **{
            "generation": "7",
            "problem": None,
            "table": "boot/4711",
            "drift": 1,
            "applied": 2,
            "sources": 3,
            "ranges": 2,
            "macs": 1,
            "ended": 4,
            "took": 0.1,
        },
        **{"refused": {"full": 1}, "learned": {"tiktok": 2}, "networks": {}, "exempt": {}},
        "counters": [{"what": "blocked", "group": "g", "app": "tiktok", "packets": 1, "octets": 2}],
        "seen": {"10.0.0.1": 5},
    }
    assert read_status(good) == good
    assert read_status({"generation": None}) == {"generation": None, "problem": None, "table": ""}
    for key in good:
        if key not in ("problem", "generation", "table"):
            with pytest.raises(ValueError, match=r"."):
                read_status({**good, key: {"x": "y"} if key != "counters" else [{}]})
    others: list[Any] = [None, [], 7, "x", {}]
    for other in others:
        with pytest.raises(ValueError, match=r"."):
            read_status(other)


@st.composite
def networks(draw: st.DrawFn) -> dict[Network, str | None]:
    """Draw networks inside one another, within 256 addresses."""
    found: dict[Network, str | None] = {}
    for _ in range(draw(st.integers(0, 8))):
        length = draw(st.integers(24, 32))
        first = draw(st.integers(0, 255)) & ~((1 << (32 - length)) - 1)
        found[ip_network((0x0A000000 + first, length))] = draw(st.sampled_from(["a", "b", None]))
    return found


@given(networks())
def test_ranges_say_what_the_longest_network_says(drawn: dict[Network, str | None]) -> None:
    """For every address; they do not overlap, and come in order."""
    found = ranges(drawn, 4)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))  # type: ignore[operator]
    for last in range(256):
        address = IPv4Address(0x0A000000 + last)
        holding = [network for network in drawn if address in network]
        wanted = drawn[max(holding, key=lambda one: one.prefixlen)] if holding else None
        got = next((group for first, end, group in found if int(first) <= int(address) <= int(end)), None)
        assert got == wanted


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "drop", "tidy"]), st.integers(0, 5), st.integers(0, 50)),
        max_size=60,
    )
)
def test_ends_are_what_was_said_last(steps: list[tuple[str, int, int]]) -> None:
    """As a plain dictionary has it, whatever is put, dropped and put again; and one entry an address."""
    ends, plain, now = Ends(), dict[Address, float](), 0.0
    for what, at, number in steps:
        address = ip_address(0x20000000 + at)
        if what == "put":
            ends.put(address, now + number)
            plain[address] = now + number
        elif what == "drop":
            ends.drop(address)
            plain.pop(address, None)
        else:
            now += number
            gone = ends.tidy(now)
            assert sorted(gone) == sorted(a for a, end in plain.items() if end <= now)
            plain = {a: end for a, end in plain.items() if end > now}
        assert dict(ends.items()) == plain
        assert len(ends) == len(plain)
        assert len(ends._placed) <= 6


def test_times_are_as_nft_reads_them() -> None:
    """It takes eight digits of each unit, and one it does not read costs the whole transaction."""
    for seconds, text in ((0.5, "0d0s500ms"), (86_399.999, "0d86399s999ms"), (100_000.0, "1d13600s0ms")):
        assert duration(seconds) == text
    spaced = ["unshare", "--net", "nft", "-f", "-"]
    table = "add table inet t\nadd set inet t s { type ipv4_addr; flags timeout; }\n"
    for seconds in (0.001, 99_999.999, 100_000.0, HORIZON, 90 * DAY, 3_660 * DAY):
        element = f"add element inet t s {{ 192.0.2.1 timeout {duration(seconds)} }}\n"
        done = subprocess.run(spaced, input=table + element, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_transaction_takes_away_what_is_not_wanted_any_more() -> None:
    """Behind what leads nowhere any more, and never a set of learned addresses that stays."""
    there = Objects(frozenset({"forward", "group-old"}), frozenset({"learned4-tiktok", "learned4-old"}))
    lines = ruleset(WANTED, 1_000.0, there).splitlines()
    assert lines.index("flush chain inet blockd group-old") < lines.index("delete chain inet blockd group-old")
    assert "delete set inet blockd learned4-old" in lines
    assert not any("learned4-tiktok" in line and ("flush" in line or "delete" in line) for line in lines)
    assert "add element inet blockd ranges4 { 10.20.0.0-10.20.4.255 : goto group-corporate, " in "\n".join(lines)
    assert "add rule inet blockd refuse/corporate/tiktok meta l4proto tcp reject with tcp reset" in lines
    assert "add element inet blockd exempt4-tiktok { 10.20.0.7 timeout 0d1000s500ms }" in lines
    assert "exempt4-tiktok {" not in "\n".join(ruleset(WANTED, 2_000.0).split("exempt4-tiktok { type")[1:2])
    assert "add rule inet blockd refuse/corporate/tiktok update @seen6 { ip6 saddr counter }" in lines
    begun = "tcp flags & (syn | ack) == syn counter name connections/corporate/tiktok"
    assert f"add rule inet blockd refuse/corporate/tiktok {begun}" in lines
    drop = ruleset(Wanted("1", {"a": Verdicts(("tiktok",))}, apps={"tiktok": ()}, answer="drop"), 0.0).splitlines()
    assert "add rule inet blockd refuse/a/tiktok drop" in drop
    assert moving([(EDGE, "a", None), (OTHER, None, ABSENT)]).splitlines() == [
        "delete element inet blockd sources4 { 151.101.2.73 : goto group-a }",
        "add element inet blockd sources4 { 151.101.2.73 : accept }",
        "delete element inet blockd sources4 { 151.101.2.74 : accept }",
    ]


def test_what_is_renewed_all_day_takes_no_more_memory() -> None:
    """One end a key, put back when it comes; the last one counts."""
    one = book()
    for moment in range(0, 80_000, 10):
        one.hear("a.example", ["tiktok"], [EDGE], 400, float(moment))
    assert len(one.apps["tiktok"]._order) == 1
    assert one.enforced(80_389.0) == [("tiktok", EDGE, 1)]
    assert one.enforced(80_391.0) == []
    assert not one.apps["tiktok"]._order


def book(**values: Any) -> Book:
    """Give one that follows two apps."""
    one = Book()
    one.follow(["tiktok", "temu"])
    for key, value in values.items():
        setattr(one, key, value)
    return one


def test_addresses_stand_for_their_time_and_a_little_more() -> None:
    """A newer answer keeps them longer, an older one never shorter; then they are gone."""
    one = book()
    assert one.hear("a.example", ["tiktok"], [EDGE], 1_000, 0.0).add == [("tiktok", EDGE, 1_000)]
    assert one.hear("a.example", ["tiktok"], [EDGE], 10, 100.0).add == []
    assert one.hear("a.example", ["tiktok", "temu"], [EDGE], 1_000, 500.0).add == [
        ("tiktok", EDGE, 1_000),
        ("temu", EDGE, 1_000),
    ]
    assert one.hear("b.example", ["tiktok"], [OTHER], 1, 600.0).add == [("tiktok", OTHER, LEAST)]
    assert one.hear("c.example", ["unknown"], [OTHER], 1, 600.0).add == []
    assert sorted(one.enforced(1_499.0)) == [("temu", EDGE, 1), ("tiktok", EDGE, 1)]
    assert one.enforced(1_501.0) == []
    one.hear("a.example", ["tiktok"], [EDGE], 1_000, 2_000.0)
    one.follow(["temu"])
    assert one.enforced(2_001.0) == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "2001:db8::1",
    ],
)
def test_what_is_not_on_the_internet_is_never_learned(address: str) -> None:
    """Whatever an answer says: our own gateway would be cut off by whoever runs a zone."""
    one = book()
    assert one.hear("a.example", ["tiktok"], [ip_address(address)], 60, 0.0).add == []
    assert one.refused == {"reserved": 1}


def test_what_the_network_needs_is_never_learned() -> None:
    """An upstream on the Internet that a zone names as its own."""
    one = book(protected=frozenset({EDGE}))
    assert one.hear("a.example", ["tiktok"], [EDGE, IPv6Address(f"::ffff:{EDGE}")], 60, 0.0).add == []
    assert one.refused == {"protected": 2}
    one = book(never=(ip_network("151.101.0.0/16"),))
    assert one.hear("a.example", ["tiktok"], [EDGE], 60, 0.0).add == []
    assert one.refused == {"protected": 1}


@pytest.mark.parametrize("shared", ["allow", "log", "block"])
def test_an_address_that_others_have_too(shared: str) -> None:
    """Whoever comes first: it is listed with their names; enforced only where the config says so."""
    one = book(shared_is=shared)
    assert one.hear("shop.example", [], [EDGE], 60, 0.0).add == []
    one.hear("a.example", ["tiktok"], [EDGE, OTHER], 60, 1.0)
    news = one.hear("news.example", [], [OTHER], 60, 2.0)
    assert news.drop == ([] if shared == "block" else [("tiktok", OTHER)])
    assert one.shared == {EDGE: ["shop.example"], OTHER: ["news.example"]}
    enforced: list[tuple[str, Address, int]] = one.enforced(3.0)
    assert len(enforced) == (2 if shared == "block" else 0)
    one.enforced(10_000.0)
    assert one.shared == {}, "nobody's any more"


def test_what_is_shared_is_let_go_whatever_a_firewall_has_of_before() -> None:
    """Others' name first, with a firewall that has the address from an earlier daemon; and it is kept over restarts."""
    one = book()
    one.hear("shop.example", [], [EDGE], 60, 0.0)
    assert one.hear("a.example", ["tiktok"], [EDGE], 60, 1.0).drop == [("tiktok", EDGE)]
    one.hear("a.example", ["tiktok"], [OTHER], 600, 1.0)
    kept = json.loads(json.dumps(one.keep(1.0)))
    again = book()
    again.recall(kept, 100.0, 50.0)
    assert again.shared == {EDGE: ["shop.example"]}
    assert again.enforced(50.0) == [("tiktok", OTHER, 500)]
    assert again.hear("news.example", [], [OTHER], 60, 60.0).drop == [("tiktok", OTHER)]
    late = book()
    late.recall(kept, 10_000.0, 50.0)
    assert late.enforced(50.0) == []
    others: list[Any] = [{}, [], 7, {"shared": 7, "learned": {}}, {"shared": []}]
    for other in others:
        with pytest.raises(ValueError, match=r"."):
            book().recall(other, 0.0, 0.0)
    odd: list[Any] = [["x", 9], [str(EDGE)], [7, 9], [str(EDGE), "9"], [str(EDGE), None], 7, None, {}]
    mixed = book()
    rows = {"shared": [*odd, *kept["shared"]], "learned": {"tiktok": [*odd, *kept["learned"]["tiktok"]], "temu": 7}}
    assert mixed.recall(rows, 100.0, 50.0) >= 2 * len(odd)
    assert mixed.shared == {EDGE: ["shop.example"]}
    assert mixed.enforced(50.0) == [("tiktok", OTHER, 500)]


def test_an_exemption_ends_for_its_own_apps() -> None:
    """Where one of two ends, the other goes on, though nobody says so."""
    apps = [frozenset({"tiktok", "temu"}), frozenset({"temu"})]
    slots = [[(0.0, 2), (100.0, 3), (500.0, 0)]]
    addresses, _, change = exempt_at([(EDGE, 4)], slots, 2, apps, 50.0)
    assert addresses == {"tiktok": {EDGE: 100.0}, "temu": {EDGE: 500.0}}
    assert change == 100.0


def test_an_app_that_a_group_may_reach_spares_what_it_shares() -> None:
    """An address of two apps is refused by a group that blocks both; `shared: block` spares none."""
    groups = {"a": Verdicts(("tiktok",), ("temu",)), "b": Verdicts(("temu", "tiktok"))}
    wanted = Wanted("1", groups, apps={"tiktok": (), "temu": ()})
    text = ruleset(wanted, 0.0)
    assert "group-a ip daddr @learned4-tiktok ip daddr != @learned4-temu goto refuse/a/tiktok" in text
    assert "group-a ip daddr @networks4-tiktok goto refuse/a/tiktok" in text
    assert "group-b ip daddr @learned4-tiktok goto refuse/b/tiktok" in text
    text = ruleset(replace(wanted, spares=False), 0.0)
    assert "group-a ip daddr @learned4-tiktok goto refuse/a/tiktok" in text


class Refusing(Nftables):
    """A kernel that takes nothing any more, when it is told so."""

    def __init__(self) -> None:
        """Take everything, at first."""
        self.error: NftError | None = None
        self.full: NftError | None = None
        self.there, self.heard = Objects(), 0

    def apply(self, text: str, is_all: bool = False) -> bool:
        """Take it, or not."""
        if self.error is not None:
            raise self.error
        return True

    def learn(self, addresses: Any, is_renewed: bool = False) -> None:
        """Have room, or none."""
        if self.full is not None:
            raise self.full

    def objects(self, is_ours: bool = False) -> Objects:
        """Have nothing."""
        return self.there

    def changes(self) -> str | None:
        """Hear nothing of others, or that the table is gone."""
        self.heard -= 1
        return "the table was removed" if self.heard == 0 else None


def test_a_full_set_does_not_make_what_is_due_forgotten() -> None:
    """A generation that failed stays due over an address for which there is no room; so does a repair."""
    kernel = Refusing()
    one = Reconciler(kernel)
    kernel.error, kernel.full = NftError("busy"), SetFullError("full")
    with pytest.raises(NftError, match="busy"):
        one.want(replace(WANTED), [])
    one.learn([("tiktok", EDGE, 60)])
    assert one.is_due
    assert one.refused["full"] == 1
    kernel.error = kernel.full = None
    one.look()
    assert not one.is_due
    kernel.error = kernel.full = NftError("No buffer space available")
    kernel.heard = 1
    with pytest.raises(NftError, match="buffer"):
        one.learn([("tiktok", EDGE, 60)])
    assert one.is_due, "the table is gone, and is to be put back"


def test_who_is_exempt_follows_the_clock() -> None:
    """By the slots that the hot path is told: now, and when it changes next; addresses and MACs."""
    apps = [frozenset({"tiktok", "bytedance-platform"})]
    slots = [[(0.0, 0), (100.0, 2), (200.0, 0)]]
    devices: list[tuple[Address | int, int]] = [(EDGE, 3), (OTHER, 2), (0x00163E004711, 3)]
    addresses, macs, change = exempt_at(devices, slots, 2, apps, 50.0)
    assert addresses == {app: {OTHER: 50.0 + HORIZON} for app in apps[0]}
    assert (macs, change) == ({}, 100.0)
    addresses, macs, change = exempt_at(devices, slots, 2, apps, 150.0)
    assert addresses == {app: {EDGE: 200.0, OTHER: 150.0 + HORIZON} for app in apps[0]}
    assert macs == {app: {"00:16:3e:00:47:11": 200.0} for app in apps[0]}
    assert change == 200.0
    assert exempt_at(devices, slots, 2, apps, 200.0)[2] is None


def test_a_thousand_answers_a_second_are_few_transactions(tmp_path: Path) -> None:
    """What comes while a firewall is at work waits for it, together; who is exempt overtakes."""

    async def play() -> tuple[Firewall, list[dict[str, Any]], list[int], float]:
        gone: list[int] = []
        firewall = Firewall(gone.extend, lambda name, qtype: None, lambda source, seconds: True, lambda sources: {})
        place = tmp_path / "egress.sock"
        await firewall.listen(place)
        settings = Egress()
        firewall.want(replace(WANTED), settings, frozenset())
        reader, writer = await asyncio.open_unix_connection(str(place), limit=1 << 24)
        told: list[dict[str, Any]] = []

        async def enforce() -> None:
            while line := await reader.readline():
                told.append({**json.loads(line), "at": time.monotonic()})
                # What a transaction beside 50,000 addresses takes.
                await asyncio.sleep(0.02)
                writer.write(json.dumps({"done": told[-1]["serial"]}).encode() + b"\n")

        work = asyncio.create_task(enforce())
        while not firewall.peers:
            await asyncio.sleep(0.01)
        for at in range(1_000):
            firewall.learned(at + 1, f"n{at}.example", ["tiktok"], [IPv4Address(0x20000000 + at)], 60)
            if at == 500:
                asked = time.monotonic()
                firewall.exempt({"tiktok": {EDGE: 2e9}}, {})
            await asyncio.sleep(0.001)
        while len(gone) < 1_000:
            await asyncio.sleep(0.01)
        firewall.close()
        await work
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.05)
        took = next(one["at"] for one in told if "exempt" in one and "wanted" not in one) - asked
        return firewall, told, gone, took

    _, told, gone, took = asyncio.run(play())
    assert sorted(gone) == list(range(1, 1_001))
    assert len(told) < 300, len(told)
    assert sum(len(one.get("learn", ())) for one in told) == 1_000
    assert took < 0.3, took


def test_the_last_word_about_an_address_counts(tmp_path: Path) -> None:
    """Learned and found to be others' in one turn: the firewall is told to let it go, and not to refuse it."""

    async def play() -> list[dict[str, Any]]:
        gone: list[int] = []
        firewall = Firewall(gone.extend, lambda name, qtype: None, lambda source, seconds: True, lambda sources: {})
        place = tmp_path / "egress.sock"
        await firewall.listen(place)
        firewall.want(replace(WANTED), Egress(), frozenset())
        reader, writer = await asyncio.open_unix_connection(str(place), limit=1 << 24)
        await reader.readline()
        # Known, and not told yet: who asks in the same turn waits as well.
        writer.write(json.dumps({"done": 0}).encode() + b"\n")
        while not any(peer.is_ready for peer in firewall.peers):
            await asyncio.sleep(0.01)
        firewall.learned(1, "a.example", ["tiktok"], [EDGE], 3600)
        firewall.learned(2, "b.example", ["tiktok"], [EDGE], 60)
        await asyncio.sleep(0.1)
        assert gone == []
        await reader.readline()
        firewall.learned(1, "a.example", ["tiktok"], [EDGE], 3700)
        firewall.learned(0, "shop.example", [], [EDGE], 60)
        said = json.loads(await reader.readline())
        writer.close()
        await writer.wait_closed()
        firewall.close()
        await asyncio.sleep(0.05)
        return [said]

    [said] = asyncio.run(play())
    assert (said["learn"], said["forget"]) == ([], [["tiktok", str(EDGE)]])


def test_without_nft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that lacks the program is told its package."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(NftError, match="install the package nftables"):
        Nftables()


def test_what_was_learned_outlasts_the_daemon(serve: Serve, upstream: Upstream) -> None:
    """A firewall has it still; the next daemon knows it, and could let it go."""
    upstream.records["www.tiktok.com"] = [f"www.tiktok.com. 60 IN A {EDGE}"]
    blockd = serve([upstream.address], egress={"enabled": True, "socket": "egress.sock"})

    def learned() -> int:
        status = json.loads(blockd.run("egress", "status", "--json").stdout)
        return int(status["learned"]["tiktok"])

    ask(blockd, "www.tiktok.com", client=PERSONAL)
    deadline = time.monotonic() + 10
    while learned() != 1:
        assert time.monotonic() < deadline
    blockd.stop()
    upstream.records.clear()
    blockd.start()
    assert learned() == 1
