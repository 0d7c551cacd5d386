"""An asset list puts devices in their group; a bad line is a clear error, and nothing is lost."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from blockd.desk import site_of
from blockd.devices import read_inventory
from blockd.devices.inventory import lines_of
from blockd.devices.placement import Placement
from blockd.policy.inputs import read_inputs
from blockd.problems import InputError
from tests.conftest import Serve
from tests.support.daemon import Blockd
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
    assert f"{devices}:2: address: expected an IPv4 or IPv6 address" in refused.stderr
    assert rcode(ask(blockd, "tiktok.com", client=CORPORATE)) == "NXDOMAIN", "the policy before it stands"


BAD = {
    "": "devices.csv:1: the file is empty; the first line must name columns: address or mac, and any of",
    "where,host\n": "devices.csv:1: the first line must name columns: address or mac, and any of hostname, serial, "
    "owner, group; found: where, host",
    HEADER + "10.0.0.1;a;b;c\n": "devices.csv:2: the row has fewer columns than the header",
    HEADER + "10.0.0.1,a,b,c,d\n": "devices.csv:2: the row has more columns than the header",
    HEADER
    + "10.0.0.0/24,a,b,c\n": "devices.csv:2: address: expected an IPv4 or IPv6 address; networks go under groups:",
    HEADER + "\n0.0.0.0,a,b,c\n": "devices.csv:3: no MAC and no address that identifies the device",
    HEADER + "fe80::1%4,a,b,c\n": "devices.csv:2: no MAC and no address that identifies the device",
    HEADER + "224.0.0.1,a,b,c\n": "devices.csv:2: address: no device has this address",
    HEADER
    + "::ffff:10.0.0.1,a,b,c\n": "devices.csv:2: address: no device has this address; write IPv4 addresses as IPv4",
    HEADER + '10.0.0.1,"a,b\n': "devices.csv:2: a quotation mark without its other one",
    "10.0.0.1,laptop\n": "devices.csv:1: the first line must name columns",
    "mac;x,mac\n": "devices.csv:1: ',' and ';' could both be what is between columns",
    "a,b,c\nmac,address,c\n": "devices.csv:1: the first line must name columns",
    "<!doctype html>\n<p>mac</p>\n": "devices.csv:1: this is HTML or XML",
    "PK\x03\x04\x00\x00": "devices.csv:1: this is binary",
    "m\0a\0c\0\n\0": "devices.csv:1: this is binary, or UTF-16 without a byte order mark",
}


@pytest.mark.parametrize("text", BAD)
def test_a_file_that_gives_no_device_is_refused(text: str) -> None:
    """By file, line and reason; no address is repeated, since whose it is may be private."""
    with pytest.raises(InputError) as raised:
        read_inventory(Path("devices.csv"), text.encode())
    assert str(raised.value).startswith(BAD[text]), str(raised.value)
    assert "10.0.0.1" not in str(raised.value)


def test_twenty_problems_are_enough() -> None:
    """With the wrong separator every line is one."""
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


def wait_until_missing(blockd: Blockd, devices: Path) -> None:
    """Without a reload too, status says that the file of an inventory is missing."""
    content, deadline = devices.read_text(), time.monotonic() + 10
    devices.unlink()
    while f"{devices}: this inventory is missing" not in blockd.run("status").stdout.replace("\n", " "):
        assert time.monotonic() < deadline
    assert blockd.run("status").returncode == 1
    devices.write_text(content)


EXPORT = "Name,Serial,MAC,Old MAC\n" + "".join(f"PC-{at},S-{at},00:16:3e:00:53:0{at},\n" for at in range(8))
TABLET = "pad-1,T-1,,\n"


def test_a_skipped_record_is_shown_everywhere(serve: Serve, upstream: Upstream) -> None:
    """By check, the log, devices, metric and JSON; above the limit the gate wants a word, and is not asked again."""
    blockd = serve([upstream.address])
    devices = blockd.directory / "export.csv"
    blockd.values["groups"]["corporate"]["inventory"] = [{"file": "export.csv"}]
    devices.write_text(EXPORT + TABLET)
    assert blockd.reload().returncode == 0
    place = f"{devices}:10: skipped: no MAC and no address that identifies the device"
    total = f"{devices}: 1 skipped: no MAC and no address that identifies the device (1)"
    unread = f"{devices}:1: columns that are not read, though they look like identity: Old MAC"
    log, checked, shown = blockd.log.read_text(), blockd.run("check"), blockd.run("devices").stdout
    for said in (log, checked.stderr, shown):
        assert place in said
        assert total in said
    for said in (log, checked.stderr):
        assert said.count(unread) == 1, said
    assert "corporate: 8 devices in its inventory" in checked.stdout
    assert blockd.metric("blockd_records_skipped", source="inventory", file="export.csv") == 1
    for said in (blockd.run("check", "--json").stdout, blockd.run("devices", "--json").stdout):
        [report] = json.loads(said)["inventories"]
        assert (report["devices"], report["records"], list(report["skipped"].values())) == (8, 9, [1])
        assert report["samples"][0]["line"] == 10
    assert blockd.reload().returncode == 0
    assert blockd.log.read_text().count(place) == 1, "a file that is as it was is not logged again"

    devices.write_text(EXPORT + TABLET * 4)
    refused = blockd.reload()
    assert (
        f"{devices}:10: 4 of 12 records (33%) cannot be used, more than reload.largest_unparsed (20%)" in refused.stderr
    )
    assert blockd.metric("blockd_records_skipped", source="inventory", file="export.csv") == 1
    assert blockd.metric("blockd_generation_staged") == 1
    assert blockd.run("reload", "--accept").returncode == 0
    devices.write_text(EXPORT + TABLET * 4 + "127.0.0.1,,00:16:3e:00:53:99,\n")
    assert blockd.reload().returncode == 0
    assert blockd.metric("blockd_records_skipped", source="inventory", file="export.csv") == 4

    def is_refused(why: str) -> None:
        """The last good inventory stays in force, and each place where people look says why."""
        assert blockd.reload().returncode == 1
        status = blockd.run("status")
        assert status.returncode == 1
        checked = blockd.run("check")
        assert checked.returncode == 1
        for said in (status.stdout, checked.stderr, blockd.ready()["problems"][0]):
            assert why in said.replace("\n", " "), said
        assert json.loads(blockd.run("devices", "--json").stdout)["groups"][0]["inventory"] == 9

    wait_until_missing(blockd, devices)
    devices.write_text("")
    is_refused("the file is empty")
    devices.unlink()
    is_refused("export.csv cannot be read: No such file or directory; nothing is loaded without it")
    devices.mkdir()
    is_refused("export.csv cannot be read: it is no regular file; nothing is loaded without it")
    devices.rmdir()
    text = EXPORT + TABLET * 4
    devices.write_text(text[: text.index("PC-7") + 9])
    refused = blockd.reload()
    assert "ends within a line, and has 7 devices where it had 9" in refused.stderr
    blockd.stop()
    blockd.start()
    assert not blockd.ready()["config_in_force"], "a restart is no way around it"
    assert json.loads(blockd.run("devices", "--json").stdout)["groups"][0]["inventory"] == 9


def test_a_mac_of_several_devices_shows_their_group_alone(tmp_path: Path) -> None:
    """Of one serial it is one device's; of two it is a dock's: no device is known by it, and none is exempt by it."""
    rows = (
        "hostname,serial,mac\n"
        "desktop-1,S-1,00:16:3e:00:53:01\n"
        "laptop-1,S-1,00:16:3e:00:53:01 00:16:3e:00:53:d0\n"
        "laptop-2,S-2,00:16:3e:00:53:02 00:16:3e:00:53:d0\n"
    )
    (tmp_path / "a.csv").write_text(rows)
    (tmp_path / "b.csv").write_text("hostname,mac\nlaptop-1,00:16:3e:00:53:01\nother,00:16:3e:00:53:02\n")
    config = tmp_path / "blockd.yaml"
    config.write_text(
        "server: {listen: ['127.0.0.1:53']}\nadmin: {listen: '127.0.0.1:9153'}\nupstream: {servers: ['192.0.2.53']}\n"
        "groups: {corporate: {inventory: [{file: a.csv}, {file: b.csv}]}}\n"
        "policies: {corporate: {}, unidentified: {}}\n"
    )
    inputs = read_inputs(config)
    shared = {one.mac[-2:] for one in inputs.devices["corporate"] if one.is_shared}
    assert shared == {"d0", "02"}, "b.csv gives 02 another name"
    site = site_of(inputs)
    assert {name: {f"{mac:x}"[-2:] for mac, _ in macs} for name, macs in site.macs.items()} == {
        "S-1": {"01"},
        "desktop-1": {"01"},
        "laptop-1": {"01"},
    }
    assert {"laptop-2", "S-2"} <= site.rules.devices
    notes = [str(note) for _, _, one in inputs.inventories for note in one.notes]
    assert (
        "a.csv:3: mac: more than one device has this MAC, as a dock's is shared (also a.csv:4; 2 such MACs" in notes[0]
    )
    assert "b.csv:3: mac: more than one device has this MAC" in notes[1]
    placement = Placement([], 60.0)
    placement.learn(inputs.devices)
    group, device = placement.by_mac["00:16:3e:00:53:d0"]
    assert (group, device.identities) == ("corporate", set())


MDM = (
    "Serial Number,Device name,Ethernet MAC address,Wi-Fi MAC,Device group\n"
    "SER-1,laptop-1,00:11:22:33:44:01,001122334402,Managed laptops\n"
    "SER-2,phone-2,,00:11:22:33:44:03,Own phones\n"
)


def test_one_export_serves_several_groups() -> None:
    """A line's own group chooses, each card's MAC is the device's; a group that nobody is in any more is an error."""
    read = read_inventory(Path("mdm.csv"), MDM.encode(), ["Managed laptops"]).devices
    assert [(one.mac, one.serial, one.line) for one in read] == [
        ("00:11:22:33:44:01", "SER-1", 2),
        ("00:11:22:33:44:02", "SER-1", 2),
    ]
    assert read[0].is_one_with(read[1])
    assert lines_of(read) == 1
    assert [one.serial for one in read_inventory(Path("mdm.csv"), MDM.encode(), ["Own phones"]).devices] == ["SER-2"]
    assert len(read_inventory(Path("mdm.csv"), MDM.encode()).devices) == 3
    objects = [{"wifiMac": "00:11:22:33:44:05", "ethernetMac": "00:11:22:33:44:06", "serial": "S", "group": "x"}]
    assert len(read_inventory(Path("mdm.json"), json.dumps(objects).encode(), ["x"]).devices) == 2
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
    read = read_inventory(Path("x.json"), json.dumps(objects).encode()).devices
    assert [(str(one.address), one.mac, one.serial, one.hostname) for one in read] == [
        ("10.0.0.5", "", "", "l"),
        ("None", "00:16:3e:00:47:11", "", "m"),
        ("None", "00:16:3e:00:47:12", "", "m"),
    ]
    text = b"MAC address (Wi-Fi),MAC address (LAN),User,Username,Name\n,00:16:3e:00:47:11,a,,x\n"
    [one] = read_inventory(Path("x.csv"), text).devices
    assert (one.mac, one.owner, one.hostname) == ("00:16:3e:00:47:11", "a", "x")


MACS_OF_NOBODY = {
    "00:00:00:00:00:00": "no MAC and no address that identifies the device",
    "FF-FF-FF-FF-FF-FF": "no MAC and no address that identifies the device",
    "0200.0000.0000": "no MAC and no address that identifies the device",
    "01:00:5e:00:00:01": "no device has this MAC",
}


@pytest.mark.parametrize("mac", MACS_OF_NOBODY)
def test_a_mac_that_is_no_devices_is_refused(mac: str) -> None:
    """As in a lease: many would be one device by it."""
    with pytest.raises(InputError, match=MACS_OF_NOBODY[mac]):
        read_inventory(Path("x.csv"), f"mac\n{mac}\n".encode())
