"""The kernel's own nftables, in a namespace: what is put in force is there, others' changes are seen, bounds bite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lan import Lan

#: Runs in the namespace: what each test adds goes behind it.
HEAD = """
import json, logging, subprocess, time
from ipaddress import ip_address, ip_network
from blockd.egress import ruleset
from blockd.egress.nftables import Nftables, NftError
from blockd.egress.reconcile import Reconciler
from blockd.egress.ruleset import ABSENT
from blockd.egress.wanted import Verdicts, Wanted

def wanted(**values):
    usual = dict(
        groups={"corporate": Verdicts(("tiktok",), is_named=True)},
        networks={ip_network("10.20.0.0/16"): "corporate"},
        places={},
        apps={"tiktok": (ip_network("71.18.0.0/16"),)},
    )
    return Wanted("1", **{**usual, **values})

def nft(*words):
    return subprocess.run(["nft", *words], check=True, capture_output=True, text=True).stdout

def chains():
    return nft("-s", "-t", "list", "table", "inet", "blockd")

def look():
    is_changed = one.look()
    if one.has_strangers:
        one.evict(one.strangers())
    return is_changed

def address(at):
    return ip_address(0x20000000 + at)

kernel = Nftables()
one = Reconciler(kernel)
"""


def inside(tmp_path: Path, code: str) -> object:
    """Run it in a namespace of its own; give what its last line says."""
    with Lan(tmp_path) as lan:
        words = [*lan.prefix(lan.gateway), sys.executable, "-c", HEAD + code]
        done = subprocess.run(words, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("keeps", [True, False])
def test_what_is_moved_learned_and_exempt_is_in_the_kernel(tmp_path: Path, keeps: bool) -> None:
    """Each step by itself and after a whole new generation; an element's time is renewed, on old kernels too."""
    code = (
        f"""
from blockd.egress import reconcile
reconcile.KEEPS_TIME = {keeps} or reconcile.KEEPS_TIME
"""
        + """
one.want(wanted(), [("tiktok", address(1), 100)])
one.move({ip_address("10.1.1.1"): "corporate", ip_address("fd00::1"): None})
one.move({ip_address("10.1.1.1"): None, ip_address("fd00::1"): ABSENT})
one.learn([("tiktok", address(1), 5000), ("tiktok", address(2), 60), ("unknown", address(3), 60)])
one.forget([("tiktok", address(2)), ("tiktok", address(9))])
soon = time.time() + 60
one.exempt({"tiktok": {ip_address("10.20.0.7"): soon}}, {"tiktok": {"00:16:3e:00:47:11": soon}})
def shown():
    learned = kernel.elements("learned4-tiktok")
    return [
        sorted(kernel.elements("sources4", "map")), sorted(kernel.elements("sources6", "map")), sorted(learned),
        all(left > 1000 for left in learned.values()),
        sorted(kernel.elements("exempt4-tiktok")), sorted(kernel.elements("exemptmac-tiktok")),
    ]
before = shown()
assert not look(), "nobody else changed anything"
now = one.wanted
one.want(wanted(places=now.places, exempt=now.exempt, exempt_macs=now.exempt_macs), [])
assert shown() == before, (shown(), before)
assert one.drift == 0
print(json.dumps(before))
"""
    )
    assert inside(tmp_path, code) == [
        ["10.1.1.1"],
        [],
        ["32.0.0.1"],
        True,
        ["10.20.0.7"],
        ["00:16:3e:00:47:11"],
    ]


CHANGES = [
    "flush ruleset",
    "delete table inet blockd",
    "flush chain inet blockd forward",
    "flush set inet blockd learned4-tiktok",
    "flush set inet blockd networks4-tiktok",
    "flush map inet blockd ranges4",
    "delete element inet blockd sources4 { 10.1.1.1 }",
    "add element inet blockd exempt4-tiktok { 10.20.0.66 }",
    "insert rule inet blockd group-corporate accept",
    "flush map inet blockd macs",
    "delete element inet blockd macs { 00:16:3e:00:47:11 }",
    "add element inet blockd learned4-tiktok { 32.0.0.66 }",
    "add element inet blockd learned4-tiktok { 32.0.0.67 timeout 1h }",
    "add counter inet blockd theirs",
    "add chain inet blockd theirs { type filter hook forward priority -10; policy drop; }",
]


def test_whatever_somebody_changes_is_repaired_and_others_tables_are_left(tmp_path: Path) -> None:
    """Once for each change; a change of another's table is none of ours."""
    code = f"""
places, macs = {{ip_address("10.1.1.1"): "corporate"}}, {{"00:16:3e:00:47:11": "corporate", "00:16:3e:00:47:12": None}}
one.want(wanted(places=places, macs=macs), [("tiktok", address(1), 500)])
before = chains()
for at, change in enumerate({CHANGES!r}, 1):
    nft(*change.split(" "))
    assert look(), change
    assert one.drift == at, change
    assert chains() == before, change
    assert sorted(kernel.elements("learned4-tiktok")) == ["32.0.0.1"], change
    assert sorted(kernel.elements("sources4", "map")) == ["10.1.1.1"], change
    assert not kernel.elements("exempt4-tiktok"), change
    assert not look(), change
nft("delete", "element", "inet", "blockd", "sources4", "{{ 10.1.1.1 : goto group-corporate }}")
nft("add", "element", "inet", "blockd", "sources4", "{{ 10.1.1.1 : accept }}")
assert look(), "another verdict"
nft("flush", "chain", "inet", "blockd", "forward")
nft("delete", "counter", "inet", "blockd", "made-by-blockd")
assert look(), "the mark is gone, and it is ours all the same"
assert sorted(chains().split()) == sorted(before.split()) and kernel.objects() is not None
nft("add", "table", "inet", "others")
assert not look()
nft("flush", "ruleset")
one.learn([("tiktok", address(2), 60)])
assert sorted(kernel.elements("learned4-tiktok")) == ["32.0.0.1", "32.0.0.2"], "learning repairs, too"
nft("add", "table", "inet", "others")
assert one.off() and not one.off()
print(json.dumps(nft("list", "tables").split()))
"""
    assert inside(tmp_path, code) == ["table", "inet", "others"]


@pytest.mark.parametrize(
    "theirs",
    [
        "add chain inet blockd forward { type filter hook input priority 0; }",
        "add set inet blockd resolvers4 { type ipv4_addr; }",
        "add set inet blockd learned4-tiktok { type ipv4_addr; flags interval; }",
    ],
)
def test_what_has_another_definition_is_made_anew(tmp_path: Path, theirs: str) -> None:
    """Somebody else's, or that of another version of blockd: the table goes, and all of ours is in force."""
    code = f"""
one.want(wanted(places={{ip_address("10.1.1.1"): "corporate"}}), [("tiktok", address(1), 500)])
before = chains()
nft("delete", "table", "inet", "blockd")
nft("add", "table", "inet", "blockd")
nft(*{theirs!r}.split(" "))
assert look() and not look()
assert sorted(chains().split()) == sorted(before.split())
print(json.dumps([list(kernel.elements("sources4", "map")), list(kernel.elements("learned4-tiktok"))]))
"""
    assert inside(tmp_path, code) == [["10.1.1.1"], ["32.0.0.1"]]


def test_a_reload_of_names_touches_no_rule_and_others_may_be_busy(tmp_path: Path) -> None:
    """What is the same stays in force as it is; changes of others' tables at the same time are no drift."""
    code = """
import threading
from dataclasses import replace
places = {ip_address(0x0A000000 + at): "corporate" for at in range(20_000)}
soon = time.time() + 600
learned = [("tiktok", address(at), 500) for at in range(3)]
one.want(wanted(places=dict(places)), learned)
began, before = one.applied, nft("-a", "list", "chain", "inet", "blockd", "forward")
one.want(replace(wanted(places=dict(places)), generation="2"), learned)
assert (one.applied, one.wanted.generation) == (began, "2")
exempt = {"tiktok": {ip_address("10.20.0.7"): soon}}
one.want(wanted(places=dict(places), exempt=exempt), [*learned, ("tiktok", address(3), 500)], [("tiktok", address(0))])
assert nft("-a", "list", "chain", "inet", "blockd", "forward") == before, "no rule was made anew"
assert sorted(kernel.elements("learned4-tiktok")) == ["32.0.0.1", "32.0.0.2", "32.0.0.3"]
assert list(kernel.elements("exempt4-tiktok")) == ["10.20.0.7"]
ended = threading.Event()
def others():
    while not ended.is_set():
        nft("add", "table", "inet", "others")
        nft("delete", "table", "inet", "others")
busy = threading.Thread(target=others)
busy.start()
for turn in range(3):
    one.want(wanted(answer="drop" if turn % 2 else "reject", places=dict(places)), [])
    one.learn([("tiktok", address(100 + turn), 500)])
    assert not look()
ended.set()
busy.join()
assert len(kernel.elements("sources4", "map")) == 20_000
nft("flush", "map", "inet", "blockd", "sources4")
assert look() and not look()
assert len(kernel.elements("sources4", "map")) == 20_000
print(json.dumps([one.drift, len(kernel.elements("learned4-tiktok"))]))
"""
    assert inside(tmp_path, code) == [1, 6]


def test_killed_at_any_moment_there_is_one_whole_generation(tmp_path: Path) -> None:
    """Two generations in turn, addresses between them, SIGKILL at random moments: the one or the other is there."""
    code = """
import os, random, signal
first, second = wanted(), wanted(
    groups={"corporate": Verdicts((), ("tiktok", "temu")), "guest": Verdicts(("temu",))},
    networks={ip_network("10.30.0.0/16"): "guest"}, apps={"tiktok": (), "temu": (ip_network("1.2.0.0/16"),)},
)
def whole():
    ranges, there = kernel.elements("ranges4", "map"), kernel.objects()
    return [chains(), list(ranges), sorted(kernel.elements("networks4-tiktok")), len(there.sets)]
both = []
for each in (first, second):
    one.want(each, [])
    both.append(whole())
assert both[0] != both[1]
seen = set()
for turn in range(25):
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        own = Reconciler(Nftables())
        while True:
            own.want(first, [])
            own.learn([("tiktok", address(random.randrange(1 << 20)), 600) for _ in range(50)])
            own.want(second, [])
    time.sleep(0.05 + random.random() * 0.25)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # What it had started may still be at work.
    deadline = time.monotonic() + 5
    mine = ["pgrep", "-r", "D,R,S", "-g", str(child), "-x", "nft"]
    while subprocess.run(mine, capture_output=True).returncode == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    found = whole()
    assert found in both, (turn, found)
    seen.add(both.index(found))
one = Reconciler(Nftables())
one.want(first, [])
assert whole() == both[0]
print(json.dumps(sorted(seen)))
"""
    assert inside(tmp_path, code) in ([0], [1], [0, 1])


def test_what_fails_is_done_as_soon_as_it_can_be(tmp_path: Path) -> None:
    """A first generation, a revocation, a source, an address: none is forgotten; exemptions end by themselves."""
    code = """
fails = [True]
def failing(real):
    def call(*arguments):
        if fails[0]:
            raise NftError("nft: Device or resource busy")
        return real(*arguments)
    return call
kernel.apply, kernel.learn = failing(kernel.apply), failing(kernel.learn)
def tried(call, *arguments):
    try:
        call(*arguments)
    except NftError:
        return
    raise AssertionError("it should have failed")
soon = time.time() + 60
ends = {ip_address("10.20.0.7"): soon, ip_address("10.20.0.8"): time.time() + 2}
tried(one.want, wanted(exempt={"tiktok": ends}), [])
tried(one.look)
fails[0] = False
look()
assert one.drift == 0 and not one.is_due
assert sorted(kernel.elements("exempt4-tiktok")) == ["10.20.0.7", "10.20.0.8"]
time.sleep(3)
assert sorted(kernel.elements("exempt4-tiktok")) == ["10.20.0.7"], "it ended though nobody said so"
fails[0] = True
tried(one.exempt, {}, {})
tried(one.move, {ip_address("10.1.1.1"): "corporate"})
tried(one.learn, [("tiktok", address(1), 500)])
fails[0] = False
look()
assert one.drift == 0 and not look()
print(json.dumps([
    sorted(kernel.elements("exempt4-tiktok")), sorted(kernel.elements("sources4", "map")),
    sorted(kernel.elements("learned4-tiktok")),
]))
"""
    assert inside(tmp_path, code) == [[], ["10.1.1.1"], ["32.0.0.1"]]


def test_a_set_that_is_full_is_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    """What was learned before stays; a half of a generation is never there."""
    code = """
ruleset.LEARNED = 16
one.want(wanted(), [("tiktok", address(at), 500) for at in range(10)])
one.learn([("tiktok", address(100 + at), 500) for at in range(30)])
full = one.status(kernel.counted())
one.learn([("tiktok", address(5), 900)])
bad = wanted(networks={ip_network("10.20.0.0/16"): "corporate"}, apps={"tiktok": (ip_network("0.0.0.0/0"),)})
before = chains()
try:
    one._nft.apply(ruleset.ruleset(bad, time.time(), kernel.objects()) + "add rule inet blockd forward nonsense\\n")
except NftError as error:
    refused = "nonsense" in str(error)
assert chains() == before
assert list(kernel.elements("networks4-tiktok")) == ["71.18.0.0/16"]
print(json.dumps([full["refused"], "is full" in full["problem"], len(kernel.elements("learned4-tiktok")), refused]))
"""
    assert inside(tmp_path, code) == [{"full": 30}, True, 10, True]


@pytest.mark.timeout(180)
def test_fifty_thousand_addresses_and_a_thousand_a_second(tmp_path: Path) -> None:
    """A batch of what comes in 20 ms is in the kernel well within the time that an answer waits."""
    code = """
one.want(wanted(places={ip_address(0x0A000000 + at): "corporate" for at in range(50_000)}), [])
one.learn([("tiktok", address(at), 3600) for at in range(50_000)])
took = []
for turn in range(60):
    began = time.monotonic()
    one.learn([("tiktok", address(60_000 + turn * 20 + at), 3600) for at in range(20)])
    took.append(time.monotonic() - began)
    time.sleep(max(0.0, 0.02 - took[-1]))
assert len(kernel.elements("learned4-tiktok")) == 51_200
took.sort()
print(json.dumps({"p50": took[30] * 1000, "p95": took[57] * 1000, "most": took[-1] * 1000}))
"""
    measured = inside(tmp_path, code)
    assert isinstance(measured, dict)
    print(measured)


def test_connections_of_what_ended_are_forgotten_and_no_others(tmp_path: Path) -> None:
    """By address and by MAC, of both versions, to addresses, networks and ports of resolvers."""
    code = """
import socket
from blockd.egress.connections import GET, Destinations, _doomed, end
from blockd.egress.netlink import DUMP, NETLINK_NETFILTER, ask, request
for words in (
    "link add v0 type veth peer name v1", "link set v0 up", "link set v1 up", "route add default dev v0",
    "address add 10.9.0.1/24 dev v0", "address add 10.9.0.2/24 dev v0",
    "address add fd09::1/64 dev v0 nodad", "-6 route add default dev v0",
    "neighbour add 10.9.0.2 lladdr 00:16:3e:00:47:11 dev v0",
):
    subprocess.run(["ip", *words.split()], check=True)
nft("add", "table", "inet", "others")
nft("add", "chain", "inet", "others", "out", "{ type filter hook output priority 0; }")
nft("add", "rule", "inet", "others", "out", "ct", "state", "new", "accept")
def connect(source, to, port=443):
    with socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind((source, 0))
        one.sendto(b"x", (to, port))
def left():
    everything = {ip_address(at).packed: [Destinations("", (), (ip_network("0.0.0.0/0"), ip_network("::/0")))]
                  for at in ("10.9.0.1", "10.9.0.2", "fd09::1")}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        return sum(_doomed(entry, everything) is not None for _, entry in ask(netlink, request(GET, DUMP)))
for source in ("10.9.0.1", "10.9.0.2"):
    for to in ("32.0.0.1", "32.0.0.2", "71.18.0.1", "8.8.8.8"):
        connect(source, to)
    connect(source, "9.9.9.9", 853)
connect("fd09::1", "2404:9dc0::1")
connect("fd09::1", "2600::1")
assert left() == 12, left()
app = Destinations("tiktok", frozenset({address(1)}), (ip_network("71.18.0.0/16"), ip_network("2404:9dc0::/32")))
said = [end({ip_address("10.9.0.1"): [app]}), left(), end({ip_address("fd09::1"): [app]}), left()]
said += [end({"00:16:3e:00:47:11": [Destinations("encrypted-dns", frozenset(), (ip_network("8.8.8.8/32"),))]}), left()]
said += [end({ip_address("10.9.0.1"): [app]}), end({"00:16:3e:00:00:01": [app]})]
print(json.dumps(said))
"""
    assert inside(tmp_path, code) == [2, 10, 1, 9, 2, 7, 0, 0]
