"""Lease files as DHCP servers write them, joined with inventories: whose an address is, also when a feed ends."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.devices.inventory import Device, is_randomised, read_inventory, read_mac
from blockd.devices.leases import FORMATS, Feed, KeaSocket, Lease
from blockd.devices.leases.lease import ENDLESS, Unusable
from blockd.devices.placement import Placement
from tests.conftest import Serve
from tests.support.daemon import Blockd
from tests.support.questions import ask, rcode
from tests.support.upstream import Upstream

MAC, OTHER, PHONE = "00:16:3e:00:47:11", "00:16:3e:00:47:12", "da:a1:19:00:00:01"
KEA = f"""\
address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context,pool_id
10.0.0.5,{MAC},01:{MAC},3600,2000,1,0,0,laptop-7.dept.example,0,,0
10.0.0.6,{OTHER},,3600,2500,1,0,0,,0,,0
10.0.0.6,{OTHER},,0,2100,1,0,0,,2,,0
10.0.0.7,{PHONE},,4294967295,0,1,0,0,phone,0,,0
10.0.0.8,,01:02,3600,1,1,0,0,declined,1,,0
nonsense
"""
KEA6 = f"""\
address,duid,valid_lifetime,expire,subnet_id,pref_lifetime,lease_type,iaid,prefix_len,fqdn_fwd,fqdn_rev,hostname,hwaddr,state,user_context
2001:db8::5,00:01:00:01:2a:2b:2c:2d:{MAC},3600,2000,1,1800,0,7,128,0,0,laptop-7,,0,
2001:db8::6,00:02:00:00:ab:11:01,3600,2000,1,1800,0,7,128,0,0,,{OTHER},0,
2001:db8:9::,00:03:00:01:{MAC},3600,2000,1,1800,2,7,56,0,0,,,0,
"""
DNSMASQ = f"""\
2000 {MAC} 10.0.0.5 laptop-7 01:{MAC}
0 {OTHER} 10.0.0.6 * *
junk
duid 00:01:00:01:2a:2b:2c:2d:00:16:3e:ff:ff:ff
2000 12345 2001:db8::5 laptop-7 00:03:00:01:{MAC}
"""
DHCPD = f"""\
# The format of this file is documented in the dhcpd.leases(5) manual page.
authoring-byte-order little-endian;
lease 10.0.0.5 {{
  starts 4 1970/01/01 00:00:10;
  ends 4 1970/01/01 00:33:20;
  binding state active;
  hardware ethernet {MAC};
  client-hostname "Laptop-7";
}}
lease 10.0.0.6 {{
  ends never;
  binding state active;
  hardware ethernet {OTHER};
}}
lease 10.0.0.6 {{
  ends 4 1970/01/01 00:20:00;
  binding state free;
  hardware ethernet {OTHER};
}}
lease 10.0.0.7 {{
  ends epoch 2500; # Thu Jan  1 00:41:40 1970
  binding state active;
"""

#: What lease files are made of.
SIGNS = '0123456789abcdef:., {}"\\;leasndirt-\n'


def write(file: Path, text: str) -> None:
    """Write a file in 1970, from where the small numbers of dnsmasq's leases count."""
    file.write_text(text)
    os.utime(file, ns=(0, next(_ticks)))


#: A time of its own for each file that is written, so that it is seen to be another.
_ticks = itertools.count()


def feed(tmp_path: Path, format: str, text: str, name: str = "leases") -> Feed:
    """Read a file once."""
    write(tmp_path / name, text)
    one = Feed(tmp_path / name, format)
    one.look(1000.0)
    assert one.problem is None
    return one


def shown(one: Feed) -> dict[str, tuple[str, str, float]]:
    """Give leases as text, without those that ended."""
    return {str(a): (e.mac, e.hostname, e.expires) for a, e in one.leases.items() if e.expires}


@pytest.mark.parametrize(
    ("format", "text", "wanted", "skipped"),
    [
        ("kea", KEA, {"10.0.0.5": (MAC, "laptop-7", 2000.0), "10.0.0.7": (PHONE, "phone", ENDLESS)}, 1),
        ("kea", KEA6, {"2001:db8::5": (MAC, "laptop-7", 2000.0), "2001:db8::6": (OTHER, "", 2000.0)}, 0),
        (
            "dnsmasq",
            DNSMASQ,
            {
                "10.0.0.5": (MAC, "laptop-7", 2000.0),
                "10.0.0.6": (OTHER, "", ENDLESS),
                "2001:db8::5": (MAC, "laptop-7", 2000.0),
            },
            1,
        ),
        ("dhcpd", DHCPD, {"10.0.0.5": (MAC, "laptop-7", 2000.0)}, 0),
    ],
)
def test_each_format_says_who_has_what(
    tmp_path: Path, format: str, text: str, wanted: dict[str, tuple[str, str, float]], skipped: int
) -> None:
    """The last word for an address counts; what was given back, declined or is being written is none."""
    one = feed(tmp_path, format, text)
    assert shown(one) == wanted
    assert one.skipped.total == skipped


@pytest.mark.parametrize(("format", "text"), [("kea", KEA), ("dnsmasq", DNSMASQ), ("dhcpd", DHCPD + "}\n")])
def test_a_file_that_is_being_written_is_read_in_parts(tmp_path: Path, format: str, text: str) -> None:
    """Wherever the writer stands: after the last part, it is what was written."""
    whole = shown(feed(tmp_path, format, text))
    file = tmp_path / "parts"
    file.write_text("")
    one = Feed(file, format)
    for end in range(0, len(text) + 7, 7):
        if format == "dnsmasq":
            write(file, text[:end])
        else:
            with file.open("a") as growing:
                growing.write(text[max(0, end - 7) : end])
        one.look(1000.0)
        assert one.problem is None
    assert shown(one) == whole


@given(st.sampled_from(sorted(FORMATS)), st.lists(st.text(SIGNS, max_size=60) | st.binary(max_size=40), max_size=12))
def test_any_lines_are_read(format: str, lines: list[str | bytes]) -> None:
    """What is no lease says nothing; nothing that a server's file may hold ends the daemon."""
    texts = [line if isinstance(line, str) else line.decode(errors="replace") for line in lines]
    reader = FORMATS[format]()
    for text in texts:
        assert all(isinstance(found, Lease | Unusable) for found in reader.read(text))


def test_a_file_by_another_name_takes_its_place(tmp_path: Path) -> None:
    """Kea cleans up by beginning a new file: what was said before stands until it ends. None at all is a problem."""
    one = feed(tmp_path, "kea", KEA)
    head = KEA.splitlines()[0]
    (tmp_path / "new").write_text(f"{head}\n10.0.0.9,{OTHER},,3600,3000,1,0,0,,0,,0\n")
    (tmp_path / "new").replace(tmp_path / "leases")
    assert one.look(1001.0) == {ip_address("10.0.0.9")}
    assert set(shown(one)) == {"10.0.0.5", "10.0.0.7", "10.0.0.9"}
    (tmp_path / "leases").unlink()
    assert one.look(2001.0) == set()
    assert "No such file" in (one.problem or "")
    assert one.confirmed == 1001.0


def test_what_is_no_file_holds_nobody_up(tmp_path: Path) -> None:
    """A pipe that nobody writes to, a directory: a problem, at once."""
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        one = Feed(place, "kea")
        one.look(1000.0)
        assert one.problem == f"{place}: is no file"


def test_a_file_that_is_being_written_anew_ends_no_lease(tmp_path: Path) -> None:
    """dnsmasq empties its file and fills it again: who is not in it yet is not gone; who is not in it later is."""
    one = feed(tmp_path, "dnsmasq", DNSMASQ)
    have = set(one.leases)
    for text in ("", DNSMASQ.splitlines()[0] + "\n"):
        write(tmp_path / "leases", text)
        assert one.look(1001.0) == set()
        assert set(one.leases) == have
    assert one.look(1002.0) == have - {ip_address("10.0.0.5")}
    assert {address for address, lease in one.leases.items() if lease.expires > 1002.0} == {ip_address("10.0.0.5")}


@pytest.mark.parametrize("text", ["", "<html>\n<body>502 Bad Gateway</body>\n</html>\n", "\x00\x01\n" * 20])
def test_a_file_that_is_cut_or_overwritten_frees_no_device_of_ours(tmp_path: Path, text: str) -> None:
    """What it had stands for a time; a page of an error is a problem, an empty file may be true."""
    one = feed(tmp_path, "dnsmasq", f"9000 {MAC} 10.0.0.5 x *\n9000 {PHONE} 10.0.0.6 y *\n")
    placement = Placement([one], 100.0)
    placement.learn({"corporate": [device(MAC, "SER-1")]})
    placement.look(1000.0)
    write(tmp_path / "leases", text)
    for now in (1001.0, 1002.0, 1050.0):
        placement.look(now)
    assert states(placement)["10.0.0.5"] == ("corporate", "stale")
    assert (one.problem is None) == (text == "")
    placement.look(1200.0)
    assert "10.0.0.5" not in states(placement), "for a time"
    # A device that is somewhere else by now has left its address.
    write(tmp_path / "leases", f"9000 {MAC} 10.0.0.5 x *\n")
    placement.look(1300.0)
    write(tmp_path / "leases", f"9000 {MAC} 10.0.0.7 x *\n")
    placement.look(1301.0)
    placement.look(1302.0)
    assert states(placement) == {"10.0.0.7": ("corporate", "known")}


def device(mac: str, serial: str, address: str = "") -> Device:
    """Make one."""
    return Device(ip_address(address) if address else None, "", serial, "", Path("d.csv"), 2, mac)


def states(placement: Placement) -> dict[str, tuple[str | None, str]]:
    """Give group and state by address."""
    return {str(address): (place.group, place.state) for address, place in placement.places.items()}


def test_an_address_is_whose_mac_has_it(tmp_path: Path) -> None:
    """Known, unknown, randomised; two feeds that differ are a conflict, in which a device of ours wins."""
    one = feed(tmp_path, "kea", KEA)
    placement = Placement([one], 100.0)
    placement.learn({"corporate": [device(MAC, "SER-1")], "personal": []})
    placement.look(1000.0)
    assert states(placement) == {"10.0.0.5": ("corporate", "known"), "10.0.0.7": (None, "randomised")}
    assert placement.addresses["SER-1"] == {ip_address("10.0.0.5")}
    two = feed(tmp_path, "dnsmasq", f"9000 {PHONE} 10.0.0.5 x *\n9000 {OTHER} 10.0.0.8 x *\n", "other")
    placement = Placement([one, two], 100.0)
    placement.learn({"corporate": [device(MAC, "SER-1")]})
    placement.look(1000.0)
    assert states(placement) == {
        "10.0.0.5": ("corporate", "conflict"),
        "10.0.0.7": (None, "randomised"),
        "10.0.0.8": (None, "unknown"),
    }
    changed = placement.look(2000.0)
    assert changed == {ip_address("10.0.0.5")}, "its lease is over, and another has the address"
    assert states(placement)["10.0.0.5"] == (None, "randomised")


def test_a_feed_that_ends_makes_nobody_a_stranger(tmp_path: Path) -> None:
    """Its leases stand for a time though they end, and say so; then they are over."""
    one = feed(tmp_path, "kea", KEA)
    placement = Placement([one], 500.0)
    placement.learn({"corporate": [device(MAC, "SER-1")]})
    placement.look(1800.0)
    (tmp_path / "leases").unlink()
    assert placement.look(2100.0) == set(), "it is over since 2000, and nobody says so"
    assert states(placement)["10.0.0.5"] == ("corporate", "stale")
    assert placement.look(2301.0) == {ip_address("10.0.0.5")}
    write(tmp_path / "leases", KEA.replace(",2000,", ",3000,"))
    assert placement.look(2302.0) == {ip_address("10.0.0.5")}
    assert states(placement)["10.0.0.5"] == ("corporate", "known")


def test_what_kea_says_by_its_socket(tmp_path: Path) -> None:
    """Leases of both versions; what is gone was given back, what ended stands; junk and a silent server are told."""
    rows: list[Any] = [
        {"ip-address": "10.0.0.5", "hw-address": MAC, "valid-lft": 1000, "cltt": 1000, "state": 0, "hostname": "x."},
        {"ip-address": "10.0.0.6", "hw-address": OTHER, "valid-lft": 4_294_967_295, "cltt": 1000, "state": 0},
        {"ip-address": "10.0.0.7", "hw-address": PHONE, "valid-lft": 1000, "cltt": 1000, "state": 1},
        {"ip-address": "2001:db8::5", "duid": f"00:03:00:01:{MAC}", "valid-lft": 9, "cltt": 2000, "type": "IA_NA"},
        {"ip-address": "2001:db8:5::", "duid": f"00:03:00:01:{MAC}", "valid-lft": 9, "cltt": 2000, "type": "IA_PD"},
        {"ip-address": "junk", "valid-lft": "x"},
        7,
    ]
    answers: list[Any] = [rows, None, rows[1:2], OSError(2, "No such file or directory"), [rows[0]]]

    def read() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    one = KeaSocket(tmp_path / "kea.sock")
    one.read = read
    placement = Placement([one], 100.0)
    placement.learn({"corporate": [device(MAC, "SER-1"), device(OTHER, "SER-2")]})
    placement.look(1500.0)
    assert {str(a): (e.mac, e.expires) for a, e in one.leases.items() if e.expires} == {
        "10.0.0.5": (MAC, 2000.0),
        "10.0.0.6": (OTHER, ENDLESS),
        "2001:db8::5": (MAC, 2009.0),
    }
    assert one.skipped.total == 2
    assert placement.look(1501.0) == set()
    placement.look(1502.0)
    assert states(placement)["10.0.0.5"] == ("corporate", "stale"), "gone, and it stands a while"
    assert placement.look(1503.0) == set()
    assert states(placement)["10.0.0.6"] == ("corporate", "stale")
    assert one.problem == f"{tmp_path}/kea.sock: No such file or directory"
    placement.look(1504.0)
    assert states(placement)["10.0.0.5"] == ("corporate", "known")
    assert states(placement)["10.0.0.6"] == ("corporate", "stale")
    answers.append([rows[0]])
    placement.look(1700.0)
    assert states(placement) == {"10.0.0.5": ("corporate", "known")}, "it stood for as long as it may"


def test_a_state_may_have_an_outcome_of_its_own(tmp_path: Path) -> None:
    """A group for made-up MACs, another for what differs; or evidence that counts for nothing."""
    one = feed(tmp_path, "kea", KEA)
    two = feed(tmp_path, "dnsmasq", f"9000 {PHONE} 10.0.0.5 x *\n9000 {OTHER} 10.0.0.8 x *\n", "other")
    for outcomes, wanted in (
        ({"randomised": "guest", "conflict": "quarantine", "unknown": "personal"}, ["quarantine", "guest", "personal"]),
        ({"conflict": "networks"}, [None, None, None]),
    ):
        placement = Placement([one, two], 100.0, outcomes)
        placement.learn({"corporate": [device(MAC, "SER-1")]})
        placement.look(1000.0)
        assert [place.group for _, place in sorted(placement.places.items())] == wanted
    placement = Placement([one], 500.0, {"stale": "quarantine"})
    placement.learn({"corporate": [device(MAC, "SER-1")]})
    placement.look(1000.0)
    assert states(placement)["10.0.0.5"] == ("corporate", "known")
    assert placement.look(2100.0) == {ip_address("10.0.0.5")}
    assert states(placement)["10.0.0.5"] == ("quarantine", "stale")


def test_what_was_given_back_is_nobodys_at_once(tmp_path: Path) -> None:
    """A released address does not stand; one that another device got is the other's."""
    one = feed(tmp_path, "kea", KEA)
    placement = Placement([one], 500.0)
    placement.learn({"corporate": [device(MAC, "SER-1"), device(OTHER, "SER-2")]})
    placement.look(1000.0)
    with (tmp_path / "leases").open("a") as file:
        file.write(f"10.0.0.5,{MAC},,0,1500,1,0,0,,2,,0\n")
    assert placement.look(1600.0) == {ip_address("10.0.0.5")}
    with (tmp_path / "leases").open("a") as file:
        file.write(f"10.0.0.5,{OTHER},,3600,5000,1,0,0,,0,,0\n")
    placement.look(1700.0)
    assert placement.places[ip_address("10.0.0.5")].device == device(OTHER, "SER-2")


def test_an_address_of_the_inventory_that_another_has(tmp_path: Path) -> None:
    """Where the inventory has a MAC too, the lease says who is there; without one, the inventory's word stands."""
    placement = Placement([feed(tmp_path, "kea", KEA)], 100.0)
    tied = device(OTHER, "SER-2", "10.0.0.5")
    placement.learn({"corporate": [tied]})
    assert placement.is_elsewhere(ip_address("10.0.0.5"))
    placement.learn({"corporate": [device("", "SER-2", "10.0.0.5")]})
    assert not placement.is_elsewhere(ip_address("10.0.0.5"))


def test_many_leases_are_taken_in_fast(tmp_path: Path) -> None:
    """What is new alone is read: one line of a file of 20,000 changes one address."""
    head = KEA.splitlines()[0]
    rows = [
        f"10.1.{at // 250}.{at % 250},02:00:00:00:{at // 256:02x}:{at % 256:02x},,1,9000,1,0,0,,0,,0"
        for at in range(20_000)
    ]
    one = feed(tmp_path, "kea", "\n".join([head, *rows, ""]))
    assert len(one.leases) == 20_000
    with (tmp_path / "leases").open("a") as file:
        file.write(f"10.1.0.0,{MAC},,1,9000,1,0,0,,0,,0\n")
    before = one._offset
    assert one.look(1001.0) == {ip_address("10.1.0.0")}
    assert one._offset - before < 100


@pytest.mark.parametrize("text", ["0016.3E00.4711", "00-16-3e-00-47-11", "00163E004711", " 00:16:3e:00:47:11 "])
def test_a_mac_is_one_in_any_form(text: str) -> None:
    """As switches, Windows and asset tools write it."""
    assert read_mac(text) == MAC
    assert not is_randomised(MAC)
    assert is_randomised(PHONE)
    for wrong in ("00:16:3e:00:47", "00:16-3e:00:47:11", "zz:16:3e:00:47:11", ""):
        with pytest.raises(ValueError, match="expected a MAC"):
            read_mac(wrong)


def test_inventories_of_asset_tools_are_read() -> None:
    """Columns by other names, in another order, more than we need; JSON too; devices without an address."""
    head = '"Device name","Serial Number","Wi-Fi MAC","OS","Primary user"'
    text = f"{head}\nlaptop-7,SER-4711,{MAC.upper()},Windows,A. Person\n"
    (one,) = read_inventory(Path("export.csv"), text.encode()).devices
    assert (one.hostname, one.serial, one.mac, one.address) == ("laptop-7", "SER-4711", MAC, None)
    json = f'{{"devices": [{{"name": "laptop-7", "serialNumber": "SER-4711", "macAddress": "{MAC}", "ram": 16}}]}}'
    (two,) = read_inventory(Path("export.json"), json.encode()).devices
    assert (two.hostname, two.serial, two.mac) == (one.hostname, one.serial, one.mac)


@pytest.fixture
def blockd(serve: Serve, upstream: Upstream, tmp_path: Path) -> Blockd:
    """Give a daemon with an inventory of MACs and an empty lease file; the loopback is personal."""
    upstream.records["www.tiktok.com"] = ["www.tiktok.com. 300 IN A 192.0.2.1"]
    (tmp_path / "devices.csv").write_text(f"mac,hostname,serial\n{MAC},laptop-7,SER-4711\n")
    (tmp_path / "leases").write_text("")
    return serve(
        [upstream.address],
        groups={
            "corporate": {"networks": ["192.0.2.0/24"], "inventory": [{"file": str(tmp_path / "devices.csv")}]},
            "personal": {"networks": ["127.0.0.0/8"]},
        },
        devices={"leases": [{"file": str(tmp_path / "leases"), "format": "dnsmasq"}], "stands": "2s"},
    )


def wait_until(blockd: Blockd, client: str, wanted: str, seconds: float = 10) -> float:
    """Ask until the verdict is this; give the seconds that it took."""
    began = time.monotonic()
    while rcode(ask(blockd, "www.tiktok.com", client=client)) != wanted:
        assert time.monotonic() - began < seconds, blockd.log.read_text()
        time.sleep(0.02)
    return time.monotonic() - began


def test_a_device_is_followed_where_it_goes(blockd: Blockd, tmp_path: Path) -> None:
    """A lease makes an address corporate within a second, over a reload; it moves, and its old address is anybody's."""
    leases, soon = tmp_path / "leases", int(time.time()) + 3600
    assert rcode(ask(blockd, "www.tiktok.com", client="127.0.0.50")) == "NOERROR"
    took = []
    for last in (50, 51, 52):
        leases.write_text(f"{soon} {MAC} 127.0.0.{last} laptop-7 *\n{soon} {PHONE} 127.0.0.60 phone *\n")
        took.append(wait_until(blockd, f"127.0.0.{last}", "NXDOMAIN"))
        for other in {50, 51, 52, 60} - {last}:
            wait_until(blockd, f"127.0.0.{other}", "NOERROR")
    # Other tests may have the processor for a while; never in all three turns.
    assert min(took) < 1, took
    assert blockd.reload().returncode == 0
    assert rcode(ask(blockd, "www.tiktok.com", client="127.0.0.52")) == "NXDOMAIN"
    assert blockd.metric("blockd_device_leases", group="corporate", source="dnsmasq", state="known") == 1
    assert blockd.metric("blockd_device_leases", state="randomised") == 1
    explained = blockd.run("explain", "--client", "127.0.0.52", "www.tiktok.com").stdout
    assert f"laptop-7, serial SER-4711, by its lease ({leases}), for 3" in explained, explained
    shown = blockd.run("devices").stdout
    assert "corporate  1         1          1" in shown, shown
    assert "leases: 1 known, 1 randomised" in shown
    leases.write_text(f"{soon} {MAC} 127.0.0.52 laptop-7 *\n{soon} {MAC}\nbad\n{soon} {MAC}\n")
    deadline = time.monotonic() + 10
    while blockd.metric("blockd_records_skipped", source="leases", file=str(leases)) != 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert rcode(ask(blockd, "www.tiktok.com", client="127.0.0.52")) == "NXDOMAIN"
    listed = f"{leases}:3: expected the time at which the lease ends"
    assert listed in blockd.run("devices").stderr
    assert listed in blockd.run("check").stderr
    healthy = blockd.run("status")
    assert f"{leases}: 3;" in healthy.stdout
    assert healthy.returncode == 0, healthy.stdout
    assert blockd.log.read_text().count("the record is skipped") == 2, "one line a reason"
    leases.unlink()
    deadline = time.monotonic() + 10
    while blockd.metric("blockd_lease_file_current", file=str(leases)) != 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert rcode(ask(blockd, "www.tiktok.com", client="127.0.0.52")) == "NXDOMAIN", "a feed that stops frees nobody"
    assert "No such file" in blockd.log.read_text()
    sick = blockd.run("status")
    assert sick.returncode == 1
    assert f"leases: {leases}: No such file or directory" in sick.stdout
    checked = blockd.run("check")
    assert checked.returncode == 0, "the config can be taken in"
    assert f"devices.leases.0: {leases}: No such file or directory" in checked.stderr


def test_a_source_that_hangs_or_is_gone_at_a_start_holds_up_no_other(blockd: Blockd, tmp_path: Path) -> None:
    """A server that never answers is told; files are read beside it; what was known of our devices is known again."""
    leases, soon = tmp_path / "leases", int(time.time()) + 3600
    hanging = tmp_path / "kea.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(hanging))
        listener.listen(9)
        blockd.values["devices"]["stands"] = "1min"
        blockd.values["devices"]["leases"].append({"socket": str(hanging), "format": "kea", "every": "1s"})
        assert blockd.reload().returncode == 0
        took = []
        for last in (50, 51, 52):
            leases.write_text(f"{soon} {MAC} 127.0.0.{last} laptop-7 *\n{soon} {PHONE} 127.0.0.60 phone *\n")
            took.append(wait_until(blockd, f"127.0.0.{last}", "NXDOMAIN"))
        assert min(took) < 1, took
        deadline = time.monotonic() + 30
        while blockd.metric("blockd_lease_file_current", file=str(hanging)) != 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        blockd.stop()
        kept = (blockd.directory / "state" / "leases.json").read_text()
        assert MAC in kept
        assert PHONE not in kept, "whose device is personal stays private"
        leases.unlink()
        blockd.start()
        assert rcode(ask(blockd, "www.tiktok.com", client="127.0.0.52")) == "NXDOMAIN", "known from before"
        assert rcode(ask(blockd, "www.tiktok.com", client="127.0.0.60")) == "NOERROR"
        assert "stale" in blockd.run("devices", "who", "SER-4711").stdout
    leases.write_text(f"{soon} {PHONE} 127.0.0.52 phone *\n")
    wait_until(blockd, "127.0.0.52", "NOERROR")


def test_what_was_kept_ends_in_its_time(tmp_path: Path) -> None:
    """Counted from when it was confirmed, a lease without end included; what reads well needs nothing kept."""
    placement = Placement([feed(tmp_path, "dnsmasq", f"0 {MAC} 10.0.0.5 x *\n0 {PHONE} 10.0.0.6 y *\n")], 100.0)
    placement.learn({"corporate": [device(MAC, "SER-1")]})
    placement.look(1000.0)
    assert placement.kept(["personal"]) == [{**placement.kept([])[0], "leases": []}]
    kept = json.loads(json.dumps(placement.kept(["corporate"])))
    # Gone, or without a lease, as after a power cut: whole, or in a first line that is still being written.
    for text in (None, "", "duid 00:01\n", "<html>"):
        (tmp_path / "leases").unlink() if text is None else (tmp_path / "leases").write_text(text)
        for now, wanted in ((1050.0, {"10.0.0.5": ("corporate", "stale")}), (1101.0, {})):
            again = Placement([Feed(tmp_path / "leases", "dnsmasq")], 100.0)
            again.learn({"corporate": [device(MAC, "SER-1")]})
            again.look(now)
            again.restore(kept, now)
            assert states(again) == wanted, text
            again.look(now)
            assert states(again) == wanted, text
    # What was given back is over at once, also where nothing else is in the file.
    header = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state\n"
    (tmp_path / "leases").write_text(f"{header}10.0.0.5,{MAC},,3600,9000,1,0,0,x,2\n")
    again = Placement([Feed(tmp_path / "leases", "kea")], 100.0)
    again.learn({"corporate": [device(MAC, "SER-1")]})
    again.look(1050.0)
    again.restore([{**kept[0], "format": "kea"}], 1050.0)
    assert states(again) == {}
    assert again.restore([{"file": "x"}], 1.0).total == 1


def test_who_has_an_address_is_said_with_all_evidence(blockd: Blockd, tmp_path: Path) -> None:
    """By address, MAC, serial and hostname; nothing of personal devices by name."""
    soon = int(time.time()) + 3600
    text = f"{soon} {MAC} 127.0.0.50 laptop-7 *\n{soon} {MAC} ::1 laptop-7 *\n{soon} {PHONE} 127.0.0.60 phone *\n"
    (tmp_path / "leases").write_text(text)
    wait_until(blockd, "127.0.0.50", "NXDOMAIN")

    def who(name: str) -> str:
        return blockd.run("devices", "who", name).stdout

    for name in ("127.0.0.50", MAC.upper(), "SER-4711", "laptop-7", "::1"):
        said = who(name)
        assert "127.0.0.50 is in corporate" in said, (name, said)
        assert "::1 is in corporate" in said, (name, said)
        assert "corporate: laptop-7, serial SER-4711; known, for 3" in said
    phone = who("127.0.0.60")
    assert "127.0.0.60 is in personal" in phone
    assert PHONE not in phone
    assert "its MAC is in no inventory; randomised" in phone
    assert blockd.run("devices", "who", "nobody-7").returncode == 1
