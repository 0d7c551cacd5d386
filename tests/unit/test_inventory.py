"""An asset list puts devices in their group; a bad line is a clear error, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockd.devices import read_inventory
from blockd.devices.inventory import lines_of
from blockd.problems import InputError
from tests.conftest import Serve
from tests.support.questions import CORPORATE, GUEST, PERSONAL, STRANGER, ask, rcode
from tests.support.upstream import Upstream

HEADER = "address,hostname,serial,owner\n"


def test_a_device_of_the_inventory_is_in_its_group(serve: Serve, upstream: Upstream) -> None:
    """By its single address, inside another group's network too; a reload takes changes in."""
    blockd = serve([upstream.address])
    devices = blockd.directory / "devices.csv"
    devices.write_bytes(
        b"\xef\xbb\xbf" + HEADER.encode() + b'127.0.0.9,"laptop-17, the old one",SER-4711,A. Person\r\n\r\n'
        b"127.0.0.10,laptop-18,SER-4712,\n"
    )
    blockd.values["groups"]["corporate"]["inventory"] = [{"file": "devices.csv"}]
    blockd.values["groups"]["guest"]["networks"] = ["127.0.0.0/24"]
    assert blockd.reload().returncode == 0
    assert rcode(ask(blockd, "tiktok.com", client=STRANGER)) == "NXDOMAIN"
    assert blockd.metric("blockd_decisions_total", group="corporate", app="tiktok", action="block") == 1
    shown = json.loads(blockd.run("explain", "--json", "--client", STRANGER, "tiktok.com").stdout)
    assert shown["group"] == "corporate"
    assert shown["device"] == f"laptop-17, the old one, serial SER-4711 ({devices}:2)"
    assert "A. Person" not in json.dumps(shown)
    devices.write_text(HEADER + "127.0.0.10,laptop-18,SER-4712,\n")
    assert blockd.reload().returncode == 0
    upstream.records["tiktok.com"] = ["tiktok.com. 60 IN A 192.0.2.1"]
    assert rcode(ask(blockd, "tiktok.com", client=STRANGER)) == "NOERROR"
    devices.write_text(HEADER + "127.0.0.300,x,y,z\n")
    refused = blockd.reload()
    assert refused.returncode == 1
    assert f"{devices}:2: address: expected one IPv4 or IPv6 address" in refused.stderr
    assert rcode(ask(blockd, "tiktok.com", client=CORPORATE)) == "NXDOMAIN", "the policy before it stands"


BAD = {
    "": "devices.csv:1: the file is empty; the first line must name columns: address or mac, and any of",
    "where,host\n": "devices.csv:1: the first line must name columns: address or mac, and any of hostname",
    HEADER + "10.0.0.1;a;b;c\n": "devices.csv:2: expected 4 columns, found 1",
    HEADER
    + "10.0.0.0/24,a,b,c\n": "devices.csv:2: address: expected one IPv4 or IPv6 address; networks go under groups:",
    HEADER + "\n10.0.0.1,a,b,c\n0.0.0.0,a,b,c\n": "devices.csv:4: address: no device has this address",
    HEADER
    + "::ffff:10.0.0.1,a,b,c\n": "devices.csv:2: address: no device has this address; write IPv4 addresses as IPv4",
    HEADER + '10.0.0.1,"a,b,c\n': "devices.csv:2: this is no CSV: unexpected end of data",
    HEADER + "10.0.0.1,a\x07,b,c\n": "devices.csv:2: a character that cannot be printed",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_line_is_named(text: str) -> None:
    """By file and line; no address is repeated, since whose it is may be private."""
    with pytest.raises(InputError) as raised:
        read_inventory(Path("devices.csv"), text.encode())
    assert str(raised.value).startswith(BAD[text]), str(raised.value)
    assert "10.0.0.1" not in str(raised.value)


def test_bytes_that_are_no_text_are_named() -> None:
    """With the line that they stand on; and twenty problems are enough."""
    with pytest.raises(InputError) as raised:
        read_inventory(Path("devices.csv"), HEADER.encode() + b"10.0.0.1,\xff,,\n")
    assert str(raised.value) == "devices.csv:2: the file is not UTF-8"
    with pytest.raises(InputError) as raised:
        read_inventory(Path("devices.csv"), HEADER.encode() + b"x,,,\n" * 1000)
    assert len(raised.value.problems) == 20


def test_a_device_has_one_group(serve: Serve, upstream: Upstream) -> None:
    """Two inventories, or an inventory and a network of one address, may not disagree."""
    blockd = serve([upstream.address])
    for name in ("a", "b"):
        (blockd.directory / f"{name}.csv").write_text(HEADER + "127.0.0.77,x,,\n")
    blockd.values["groups"]["corporate"]["inventory"] = [{"file": "a.csv"}]
    blockd.values["groups"]["guest"]["inventory"] = [{"file": "b.csv"}]
    refused = blockd.reload()
    assert "b.csv:2: address: this address is in the inventory of corporate already" in refused.stderr
    (blockd.directory / "b.csv").write_text(HEADER + f"{PERSONAL},x,,\n")
    refused = blockd.reload()
    assert "b.csv:2: address: groups.personal.networks names this address alone" in refused.stderr
    (blockd.directory / "b.csv").unlink()
    refused = blockd.reload()
    assert "groups.guest.inventory.0.file: " in refused.stderr
    assert rcode(ask(blockd, "tiktok.com", client=GUEST)) == "NXDOMAIN", "from upstream: the policy before it stands"


def test_check_asks_about_what_looks_wrong(serve: Serve, upstream: Upstream) -> None:
    """A group nobody is in, a forwarder in the inventory, an app that is monitored while what it needs is blocked."""
    blockd = serve([upstream.address])
    rows = "".join(f"127.0.0.50,host{at},S{at},\n" for at in range(9))
    (blockd.directory / "devices.csv").write_text(HEADER + rows)
    blockd.values["groups"]["corporate"]["inventory"] = [{"file": "devices.csv"}]
    blockd.values["groups"]["lab"] = {}
    blockd.values["policies"]["lab"] = {}
    blockd.values["policies"]["guest"] = {"monitor": ["tiktok"], "block": ["bytedance-platform"]}
    blockd.values["policies"]["personal"] = {"block": ["tiktok"]}
    blockd.write()
    done = blockd.run("check")
    assert done.returncode == 0
    assert "groups.lab: nobody is in this group" in done.stderr
    assert "devices.csv:2: address: 9 devices are behind this one address: a forwarder?" in done.stderr
    assert "tiktok is monitored, and bytedance-platform, which it needs, is blocked" in done.stderr
    assert "policies.personal.block.0: tiktok is blocked, and bytedance-platform, which it needs, is not" in done.stderr
    assert "corporate: 9 devices in its inventory" in done.stdout
    doubts = json.loads(blockd.run("check", "--json").stdout)["doubts"]
    assert len(doubts) == 4
    assert {"file", "line", "key", "text"} <= set(doubts[0])


MDM = (
    "Serial Number,Device name,Ethernet MAC address,Wi-Fi MAC,Device group\n"
    "SER-1,laptop-1,00:11:22:33:44:01,001122334402,Managed laptops\n"
    "SER-2,phone-2,,00:11:22:33:44:03,Own phones\n"
)


def test_one_export_serves_several_groups() -> None:
    """A line's own group chooses, each card's MAC is the device's; a group that nobody is in any more is an error."""
    read = read_inventory(Path("mdm.csv"), MDM.encode(), ["Managed laptops"])
    assert [(one.mac, one.serial, one.line) for one in read] == [
        ("00:11:22:33:44:01", "SER-1", 2),
        ("00:11:22:33:44:02", "SER-1", 2),
    ]
    assert read[0].is_one_with(read[1])
    assert lines_of(read) == 1
    assert [one.serial for one in read_inventory(Path("mdm.csv"), MDM.encode(), ["Own phones"])] == ["SER-2"]
    assert len(read_inventory(Path("mdm.csv"), MDM.encode())) == 3
    objects = [{"wifiMac": "00:11:22:33:44:05", "ethernetMac": "00:11:22:33:44:06", "serial": "S", "group": "x"}]
    assert len(read_inventory(Path("mdm.json"), json.dumps(objects).encode(), ["x"])) == 2
    with pytest.raises(InputError) as raised:
        read_inventory(Path("mdm.csv"), MDM.encode(), ["Managed laptops", "Managed phones"])
    assert str(raised.value) == ("mdm.csv:1: group: no line has Managed phones in its column group, as `only` wants")


def test_what_tools_write_around_it_is_left_alone() -> None:
    """Lists under usual keys, cells that are no text, placeholders, notes in headers; nothing empties what is known."""
    objects = {
        "@odata.context": "x",
        "value": [
            {"ipAddress": "10.0.0.5", "IP": None, "deviceName": "l", "wifiMac": "N/A", "apps": ["a"], "score": 1.5},
            {"wiFiMacAddress": "00:16:3e:00:47:11, 00:16:3e:00:47:12", "serialNumber": "N/A", "deviceName": "m"},
        ],
    }
    read = read_inventory(Path("x.json"), json.dumps(objects).encode())
    assert [(str(one.address), one.mac, one.serial, one.hostname) for one in read] == [
        ("10.0.0.5", "", "", "l"),
        ("None", "00:16:3e:00:47:11", "", "m"),
        ("None", "00:16:3e:00:47:12", "", "m"),
    ]
    text = b"MAC address (Wi-Fi),MAC address (LAN),User,Username,Name\n,00:16:3e:00:47:11,a,,x\n"
    [one] = read_inventory(Path("x.csv"), text)
    assert (one.mac, one.owner, one.hostname) == ("00:16:3e:00:47:11", "a", "x")


@pytest.mark.parametrize("mac", ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"])
def test_a_mac_that_is_no_devices_is_refused(mac: str) -> None:
    """As in a lease: many would be one device by it."""
    with pytest.raises(InputError, match="is no device's"):
        read_inventory(Path("x.csv"), f"mac\n{mac}\n".encode())
