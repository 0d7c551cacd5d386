"""Exports of the usual tools, and CSV as spreadsheets and shells write it, by what their documentation shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockd.devices import read_inventory
from blockd.problems import InputError

ONE, TWO, THREE = "00:16:3e:00:53:01", "00:16:3e:00:53:02", "00:16:3e:00:53:03"
BARE_ONE, BARE_TWO = "00163E005301", "00163E005302"

#: Name -> (file, content, MACs and addresses, hostnames and serials, words of the notes).
SHAPES: dict[str, tuple[str, bytes | str, set[str], set[str], set[str]]] = {
    "Intune, all devices": (
        "DevicesWithInventory.csv",
        "Device ID,Device name,Enrollment date,OS version,Serial number,Maker,IMEI,Wi-Fi MAC,MEID,Management name,"
        "Primary user UPN,Primary user email address,WiFiIPv4Address,Ownership,OS,EthernetMAC,Model\n"
        f"8d,PC-1,2026-01-02,10.0,SER-1,Dell,,{BARE_ONE},,m,u@a.example,u@a.example,192.168.1.5,Corporate,Windows,"
        f"{BARE_TWO},L\n",
        {ONE, TWO},
        {"PC-1", "SER-1"},
        {"WiFiIPv4Address"},
    ),
    "Microsoft Graph, managedDevices": (
        "devices.json",
        json.dumps(
            {
                "@odata.context": "https://graph.example/v1.0/$metadata#deviceManagement/managedDevices",
                "@odata.count": 1,
                "@odata.nextLink": None,
                "value": [
                    {
                        "id": "8d",
                        "deviceName": "PC-1",
                        "serialNumber": "SER-1",
                        "wiFiMacAddress": BARE_ONE,
                        "ethernetMacAddress": BARE_TWO,
                        "emailAddress": "u@a.example",
                        "isEncrypted": True,
                        "totalStorageSpaceInBytes": 1e12,
                        "deviceActionResults": [{"actionName": "x"}],
                        "hardwareInformation": None,
                    }
                ],
            }
        ),
        {ONE, TWO},
        {"PC-1", "SER-1"},
        set(),
    ),
    "Jamf Pro, advanced search as CSV": (
        "export.csv",
        "Computer Name,Asset Tag,Bluetooth MAC Address,Full Name,Email Address,Serial Number,MAC Address,"
        "Secondary MAC Address,macOS Version,Mac App Store,Last IP Address\n"
        f"mac-1,A-1,{THREE},A. Person,a@a.example,SER-1,{ONE.upper()},{TWO.upper()},15.1,Yes,10.2.3.4\n",
        {ONE, TWO},
        {"mac-1", "SER-1"},
        {"Last IP Address"},
    ),
    "Jamf Pro, computers-inventory": (
        "computers.json",
        json.dumps(
            {
                "totalCount": 1,
                "results": [
                    {
                        "id": "1",
                        "general": {
                            "name": "mac-1",
                            "lastIpAddress": "10.2.3.4",
                            "site": {"id": "1", "name": "Paris"},
                            "extensionAttributes": [{"definitionId": "9", "name": "Dock MAC", "values": [THREE]}],
                        },
                        "hardware": {"serialNumber": "SER-1", "macAddress": ONE, "altMacAddress": TWO},
                        "userAndLocation": {"username": "u", "realname": "A. Person", "email": "a@a.example"},
                        "storage": {"disks": [{"serialNumber": "DISK-1"}]},
                    }
                ],
            }
        ),
        {ONE, TWO, THREE},
        {"mac-1", "SER-1"},
        {"lastIpAddress"},
    ),
    "Jamf Classic, one computer": (
        "computer.json",
        json.dumps(
            {
                "computer": {
                    "general": {"name": "mac-1", "serial_number": "SER-1", "mac_address": ONE, "alt_mac_address": TWO}
                }
            }
        ),
        {ONE, TWO},
        {"mac-1", "SER-1"},
        set(),
    ),
    "Jamf Classic, mobile devices": (
        "mobile.json",
        json.dumps({"mobile_devices": [{"id": 1, "name": "pad-1", "serial_number": "SER-1", "wifi_mac_address": ONE}]}),
        {ONE},
        {"pad-1", "SER-1"},
        set(),
    ),
    "Snipe-IT, custom asset report": (
        "report.csv",
        '"Asset Name","Asset Tag","Model","Serial","Location","Address","City","Zip","Username","MAC Address"\n'
        f'"PC-1","A-1","L","SER-1","Paris","1 Rue, x","Paris","75000","u","{ONE}"\n',
        {ONE},
        {"PC-1", "SER-1"},
        set(),
    ),
    "Snipe-IT, hardware": (
        "hardware.json",
        json.dumps(
            {
                "total": 1,
                "rows": [
                    {
                        "id": 1,
                        "name": "PC-1",
                        "serial": "SER-1",
                        "model": {"id": 1, "name": "L"},
                        "assigned_to": {"id": 1, "username": "u", "name": "A. Person", "email": "a@a.example"},
                        "location": {"id": 1, "name": "Paris", "address": "1 Rue"},
                        "custom_fields": {
                            "MAC Address": {"field": "_snipeit_mac_address_1", "value": ONE, "field_format": "MAC"},
                            "Dock MAC": {"field": "_snipeit_dock_mac_2", "value": None, "field_format": "MAC"},
                        },
                    }
                ],
            }
        ),
        {ONE},
        {"PC-1", "SER-1"},
        set(),
    ),
    "SCCM, a query as CSV": (
        "query.csv",
        '"Netbios_Name0","SerialNumber0","MACAddress0","IPAddress0"\r\n'
        f'"PC-1","SER-1","{ONE}","10.4.0.9,fe80::9c1:22"\r\n',
        {ONE, "10.4.0.9"},
        {"PC-1", "SER-1"},
        set(),
    ),
    "PowerShell, Export-Csv": (
        "ps.csv",
        f'#TYPE Selected.System\r\n"PSComputerName","MACAddress","SerialNumber"\r\n"PC-1","{ONE}","SER-1"\r\n',
        {ONE},
        {"PC-1", "SER-1"},
        set(),
    ),
    "PowerShell, ConvertTo-Json by Out-File": (
        "ps.json",
        b"\xff\xfe" + json.dumps({"Name": "PC-1", "MACAddress": [ONE, TWO], "IPAddress": None}).encode("utf-16-le"),
        {ONE, TWO},
        {"PC-1"},
        set(),
    ),
    "PowerShell, ConvertTo-Json of a list": (
        "ps.json",
        json.dumps({"value": [{"Name": "PC-1", "MACAddress": ONE}], "Count": 1}),
        {ONE},
        {"PC-1"},
        set(),
    ),
    "ServiceNow": (
        "cmdb.json",
        json.dumps({"result": [{"name": {"display_value": "PC-1", "value": "PC-1"}, "mac_address": {"value": ONE}}]}),
        {ONE},
        {"PC-1"},
        set(),
    ),
    "cards in a list, and a gateway that is another's": (
        "nics.json",
        json.dumps(
            [
                {
                    "hostname": "PC-1",
                    "interfaces": [{"name": "en0", "mac": ONE}, {"name": "en1", "mac": TWO, "address": "10.4.0.9"}],
                    "gateway": {"mac": THREE},
                }
            ]
        ),
        {ONE, TWO, "10.4.0.9"},
        {"PC-1"},
        {"gateway.mac"},
    ),
    "JSON Lines": (
        "x.jsonl",
        json.dumps({"hostname": "PC-1", "mac": ONE}) + "\n" + json.dumps({"hostname": "PC-2", "mac": TWO}) + "\n",
        {ONE, TWO},
        {"PC-1", "PC-2"},
        set(),
    ),
    "numbers and characters that JSON does not have": (
        "x.json",
        f'[{{"mac": "{ONE}", "size": {"9" * 6000}, "note": "a\nb"}}, {{"mac": "{TWO}", "size": NaN}}]',
        {ONE, TWO},
        set(),
        set(),
    ),
    "a key that is there twice": ("x.json", f'[{{"mac": "{ONE}", "mac": "{TWO}"}}]', {ONE, TWO}, set(), set()),
    "Excel, semicolons and Windows-1252": (
        "x.csv",
        f"Ger\xe4t;MAC-Adresse;Seriennummer;\r\nB\xfcro-1;{ONE};SER-1;\r\nB\xfcro-2;{TWO};SER-2\r\n".encode("cp1252"),
        {ONE, TWO},
        {"SER-1", "SER-2"},
        set(),
    ),
    "names in another language": (
        "x.csv",
        f"Direcci\xf3n MAC;Direcci\xf3n IP\n{ONE};10.4.0.9\n",
        {ONE, "10.4.0.9"},
        set(),
        set(),
    ),
    "Excel, sep=": ("x.csv", f"sep=;\nName;MAC\nPC-1, old;{ONE}\n", {ONE}, {"PC-1, old"}, set()),
    "Excel, Unicode text": (
        "x.csv",
        b"\xff\xfe" + f"Name\tMAC\r\nB\xfcro\t{ONE}\r\n".encode("utf-16-le"),
        {ONE},
        {"B\xfcro"},
        set(),
    ),
    "UTF-16 with its mark, big endian": (
        "x.csv",
        b"\xfe\xff" + f"Name,MAC\nPC-1,{ONE}\n".encode("utf-16-be"),
        {ONE},
        {"PC-1"},
        set(),
    ),
    "one name in another encoding": (
        "x.csv",
        f"Name,MAC\nB\xfcro,{ONE}\n".encode() + f"B\xe4r,{TWO}\n".encode("cp1252"),
        {ONE, TWO},
        {"B\xfcro", "B\xe4r"},
        set(),
    ),
    "CR alone": ("x.csv", f"Name,MAC\rPC-1,{ONE}\rPC-2,{TWO}\r", {ONE, TWO}, {"PC-1", "PC-2"}, set()),
    "titles, dates and blank lines above": (
        "x.csv",
        f"Device export,,\nOn:,1 May,\n# by a script, of ours, at night\n\nName,Serial,MAC\nPC-1,SER-1,{ONE}\n",
        {ONE},
        {"PC-1", "SER-1"},
        set(),
    ),
    "a title that names a column": ("x.csv", f"MAC addresses\nName,MAC\nPC-1,{ONE}\n", {ONE}, {"PC-1"}, set()),
    "line breaks in header and cells": (
        "x.csv",
        f'Name,"MAC\naddress",Notes\nPC-1,"{ONE}\n{TWO}","one, two\nthree, four, five"\nPC-2,{THREE},\n',
        {ONE, TWO, THREE},
        {"PC-1", "PC-2"},
        set(),
    ),
    "trailing columns without names, and too few of them": (
        "x.csv",
        f"Name,MAC,Notes,,\nPC-1,{ONE},,,\nPC-2,{TWO}\n",
        {ONE, TWO},
        {"PC-1", "PC-2"},
        set(),
    ),
    "a column twice, and unread ones": (
        "x.csv",
        f"Name,MAC,MAC,Old MAC,Battery serial,E-mail address\nPC-1,{ONE},{TWO},{THREE},B,x\n",
        {ONE, TWO},
        {"PC-1"},
        {"Old MAC", "Battery serial"},
    ),
    "a giant cell and a NUL": (
        "x.csv",
        f'Name,MAC,Notes\nPC-1,{ONE},"{"x" * 300_000}"\nPC-2\0,{TWO},\n',
        {ONE, TWO},
        {"PC-1"},
        set(),
    ),
    "quotation marks that nobody escaped": (
        "x.csv",
        f'Name,Serial,MAC\n"PC "7" old",SER-1,{ONE}\n"PC-2,SER-2,{TWO}\n"PC-3","SER-3","{THREE}"\n',
        {ONE, TWO, THREE},
        {'PC "7" old', "SER-1", "PC-2", "SER-2", "PC-3", "SER-3"},
        set(),
    ),
    "every separator and form of a MAC": (
        "x.csv",
        'MAC\n00 16 3e 00 53 01\n="00163E005302"\n{0016.3e00.5303; 00163e-005304}\n0:16:3e:0:53:5|00-16-3E-00-53-06\n',
        {f"00:16:3e:00:53:0{at}" for at in range(1, 7)},
        set(),
        set(),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_read(name: str) -> None:
    """All its MACs and addresses with the names of the device; nothing is skipped, and what is not read is said."""
    file, content, identities, names, noted = SHAPES[name]
    inventory = read_inventory(Path(file), content if isinstance(content, bytes) else content.encode())
    found = {one.mac for one in inventory.devices} | {str(one.address) for one in inventory.devices if one.address}
    assert found - {""} == identities
    assert {name for one in inventory.devices for name in one.names} == names
    assert inventory.unusable == 0, inventory.skipped
    said = " ".join(note.text for note in inventory.notes)
    assert bool(said) is bool(noted), said
    assert all(word in said for word in noted), said


PAGES: list[tuple[dict[str, Any], bool]] = [
    ({"@odata.nextLink": "https://graph.example/?$skiptoken=2"}, True),
    ({"next": "https://x.example/?page=2"}, True),
    ({"next": None, "previous": None, "count": 1}, False),
    ({"total": 2}, True),
    ({"total": 1, "next": ""}, False),
    ({"totalCount": 51}, True),
    ({"has_more": True}, True),
    ({"meta": {"has_next_results": True}}, True),
    ({"nextPageToken": "x"}, True),
    ({"has_more": False, "next_cursor": "null"}, False),
    ({"meta": {"pagination": {"total": 9}}}, True),
    ({"links": {"next": "https://x.example"}}, True),
    ({"links": [{"rel": "self", "href": "x"}, {"rel": "next", "href": "x"}]}, True),
    ({"page": 1, "total_pages": 4}, True),
    ({"page": 1, "total_pages": 1, "total": True}, False),
]


@pytest.mark.parametrize(("around", "is_page"), PAGES)
def test_one_page_of_several_is_noted(around: dict[str, Any], is_page: bool) -> None:
    """Its devices are in force; that the others are not is said once."""
    inventory = read_inventory(Path("x.json"), json.dumps({**around, "devices": [{"mac": ONE}]}).encode())
    assert [one.mac for one in inventory.devices] == [ONE]
    assert ["one page of several" in note.text for note in inventory.notes] == [True] * is_page


REFUSED = {
    '{"value": [{"mac": "00:16': "this is not JSON, or it is cut off",
    "[" * 100_000: "this is not JSON",
    '[{"name": "a", "os": "x"}]': "no object has a MAC or an address; the keys of the first: name, os",
    '{"a": [{"mac": "x"}], "b": [{"mac": "y"}]}': 'expected a list of objects, or {"devices": [...]}; found: a, b',
    '{"pc-1": {"mac": "x"}, "pc-2": {"mac": "y"}}': "found: one object for each device",
    '[{"name": "a", "net": {"mac": "x"}}]': "keys that look like identity and are not read: net.mac",
    '"x"': "expected a list of objects",
    '[{"mac": "x"}, 1, null]': "mac: expected a MAC",
}


@pytest.mark.parametrize("text", REFUSED)
def test_json_that_gives_no_device_is_refused(text: str) -> None:
    """With what was found."""
    with pytest.raises(InputError, match=r"x\.json") as raised:
        read_inventory(Path("x.json"), text.encode())
    assert REFUSED[text] in str(raised.value)


#: Rows beside a good one -> the reasons why they are skipped, and how many records are not used in full.
SKIPPED = {
    "PC-1,,\n": ("no MAC and no address that identifies the device", 1),
    "PC-1,02:00:00:00:00:00,127.0.0.1\n": ("no MAC and no address that identifies the device", 1),
    f"PC-1,{ONE},10.0.0.0/24\n": ("expected an IPv4 or IPv6 address; networks go under groups:", 1),
    f"PC-1,{ONE} 00:16:3e,\n": ("expected a MAC, such as 00:11:22:33:44:55", 1),
    f"PC-1,{ONE} 01:00:5e:00:00:01,\n": ("no device has this MAC: it is all zeros, or a group (multicast) address", 1),
    f"PC-1,{ONE},x,y\n": ("the row has more columns than the header", 1),
    f"PC-1,{ONE}\n": ("the row has fewer columns than the header", 1),
    f"PC\u200e-1,{ONE},\n": (
        "a name with a character that cannot be printed, or that is too long; the record is used without it",
        0,
    ),
    f'"PC-1,{ONE},\nPC-3,{TWO},\nx",{THREE},\n': (
        "the row is inside a quoted cell: a quotation mark is missing above it",
        2,
    ),
    f"PC-1,{' '.join(f'00:16:3e:00:00:{at:02x}' for at in range(40))},\n": ("more than 32 values in a record", 1),
    f"PC-1,{'x' * 3000},\n": ("a cell of more than 2048 characters", 1),
}


@pytest.mark.parametrize("rows", SKIPPED)
def test_a_record_that_cannot_be_used_costs_no_other(rows: str) -> None:
    """It is counted by reason, with its line; what of it can be used is."""
    reason, unusable = SKIPPED[rows]
    data = f"Name,MAC,IP\nPC-0,00:16:3e:ff:00:00,\n{rows}PC-9,00:16:3e:ff:00:09,\n".encode()
    inventory = read_inventory(Path("x.csv"), data)
    found = {one.mac for one in inventory.devices}
    assert {"00:16:3e:ff:00:00", "00:16:3e:ff:00:09"} <= found
    assert inventory.unusable == unusable
    assert reason in inventory.skipped.counts
    assert {problem.line for problem in inventory.skipped.samples} <= {3, 4}
    assert (ONE in found) is (rows.startswith(("PC-1,00:16:3e:00:53:01 ", "PC\u200e")) or "/24" in rows)


def test_what_only_leaves_out_is_not_judged() -> None:
    """Rows of others may lack everything; one with several groups is of each."""
    rows = f"Name,MAC,Group,Device group\nPC-1,{ONE},Own,Managed\nPC-2,,Own,\nPC-3,x,Own,\nPC-4,{TWO},Managed,\n"
    inventory = read_inventory(Path("x.csv"), rows.encode(), ["Managed"])
    assert {one.mac for one in inventory.devices} == {ONE, TWO}
    assert (inventory.records, inventory.unusable, inventory.skipped.total) == (2, 0, 0)
    objects = [{"mac": ONE, "groups": [], "group": ["Managed", "x"]}, {"name": "y", "group": "Own"}]
    inventory = read_inventory(Path("x.json"), json.dumps(objects).encode(), ["Managed"])
    assert (inventory.records, inventory.unusable) == (1, 0)


@pytest.mark.parametrize(("text", "end"), [("a,m\nx,{}\n", 0), ("a,m\nx,{}", 1), ("a,m,b\nx,{},\ny", 2)])
def test_how_a_file_ends_is_known(text: str, end: int) -> None:
    """With a line end, without, or within a record."""
    data = text.replace("m", "mac", 1).format(ONE).encode()
    assert read_inventory(Path("x.csv"), data).end == end


@pytest.mark.parametrize("bad", ['{"mac": "00:11', "[1]", "null", "#", '{"a": ' + "[" * 100_000])
def test_the_first_of_json_lines_costs_no_other(bad: str) -> None:
    """It is skipped as any other line is; an array that was cut off is not taken for lines."""
    rows = [json.dumps({"mac": ONE}), json.dumps({"mac": TWO})]
    for at in range(3):
        lines = [*rows[:at], bad, *rows[at:]]
        inventory = read_inventory(Path("x.jsonl"), "\n".join([*lines, ""]).encode())
        assert {one.mac for one in inventory.devices} == {ONE, TWO}
        assert [problem.line for problem in inventory.skipped.samples] == [at + 1]
    with pytest.raises(InputError, match="not JSON"):
        read_inventory(Path("x.json"), ("[\n" + ",\n".join(rows) + "\n").encode())
