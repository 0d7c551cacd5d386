"""Devices from an asset list, as asset and device management tools export them: CSV with a header, or JSON objects."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path

from blockd.devices.inventory.cells import read_mac
from blockd.devices.inventory.device import Device
from blockd.problems import InputError, Problem
from blockd.settings.values import Address

COLUMNS = ("address", "mac", "hostname", "serial", "owner", "group")
#: How columns are called elsewhere, in small letters without anything between words.
ALIASES = {
    "ip": "address",
    "ipaddress": "address",
    "ipv4address": "address",
    "macaddress": "mac",
    "ethernetmac": "mac",
    "ethernetmacaddress": "mac",
    "wifimac": "mac",
    "wifimacaddress": "mac",
    "wlanmacaddress": "mac",
    "hardwareaddress": "mac",
    "name": "hostname",
    "devicename": "hostname",
    "computername": "hostname",
    "serialnumber": "serial",
    "serialno": "serial",
    "user": "owner",
    "username": "owner",
    "assigneduser": "owner",
    "primaryuser": "owner",
    "devicegroup": "group",
    "groupname": "group",
}
#: What tools write where they know nothing.
NOTHING = frozenset(
    {"n/a", "na", "none", "null", "unknown", "-", "0", "not specified", "default string", "system serial number"}
    | {"to be filled by o.e.m.", "not available", "undefined"}
)
#: Keys under which tools put their list.
LISTS = ("devices", "value", "rows", "results")
#: Devices in one file; a larger one is a mistake, or a network that should be written as one.
MAX_DEVICES = 1_000_000
#: Problems told of one file: with the wrong separator every line is one.
MAX_PROBLEMS = 20

#: Nobody's, and everybody's (RFC 919 7).
BROADCAST = "255.255.255.255"


def read_inventory(file: Path, data: bytes, only: Collection[str] = ()) -> list[Device]:
    """Read an inventory; with `only`, of its column `group` the lines that say one of these.

    InputError has the first lines that are wrong; it repeats no address and no name.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError([Problem(str(file), line, "", "the file is not UTF-8")]) from None
    problems: list[Problem] = []
    devices: list[Device] = []
    found: set[str] = set()
    line = 0
    for line, row in _json_rows(file, text) if file.suffix == ".json" else _rows(file, text):
        result = row if isinstance(row, Problem) else _read(file, line, row)
        if isinstance(result, Problem):
            problems.append(result)
        elif isinstance(row, dict) and (not only or row.get("group", "").strip() in only):
            devices += result
            found.add(row.get("group", "").strip())
        if len(problems) == MAX_PROBLEMS or len(devices) > MAX_DEVICES:
            break
    if len(devices) > MAX_DEVICES:
        text = f"more than {MAX_DEVICES} devices; write networks, or more than one file"
        problems.append(Problem(str(file), line, "", text))
    if not problems and (lacking := sorted(set(only) - found)):
        # A department that was renamed there would leave its devices to themselves.
        text = f"no line has {', '.join(lacking)} in its column group, as `only` wants"
        problems.append(Problem(str(file), 1, "group", text))
    if problems:
        raise InputError(problems)
    return devices


Row = dict[str, str]


def _cells(cells: Iterable[tuple[str, str]]) -> Row:
    """Give the cells by their columns; MACs together, for a device has one a card, and nothing over what is known."""
    row: Row = {}
    for column, text in cells:
        cell = "" if text.strip().lower() in NOTHING else text
        if column == "mac" and row.get(column):
            row[column] = f"{row[column]} {cell}"
        elif cell.strip() or column not in row:
            row[column] = cell
    return row


def _column(head: str) -> str:
    # `MAC address (Wi-Fi)` is one of several.
    plain = re.sub(r"[^a-z0-9]", "", re.sub(r"[(].*[)]", "", head.lower()))
    return ALIASES.get(plain, plain)


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, Row | Problem]]:
    """Give each object of a list, with its place in it for a line."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise InputError([Problem(str(file), line, "", "this is no JSON")]) from None
    rows = values
    if isinstance(values, dict):
        rows = next((values[key] for key in LISTS if isinstance(values.get(key), list)), None)
    if not isinstance(rows, list):
        raise InputError([Problem(str(file), 1, "", 'expected a list of objects, or {"devices": [...]}')])
    for at, value in enumerate(rows, 1):
        # What is in columns that are not ours is nobody's business here.
        own = {} if not isinstance(value, dict) else {k: cell for k, cell in value.items() if _column(k) in COLUMNS}
        if not isinstance(value, dict) or not all(isinstance(cell, str | int | None) for cell in own.values()):
            yield at, Problem(str(file), at, "", f"object {at} of the list is not one of texts")
            continue
        yield at, _cells((_column(key), "" if cell is None else str(cell)) for key, cell in own.items())


def _rows(file: Path, text: str) -> Iterator[tuple[int, Row | Problem]]:
    """Give each row below the header with the line that it begins on."""
    wanted = "the first line must name columns: address or mac, and any of hostname, serial, owner, group"
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in reader:
            at, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if header is not None:
                if len(row) != len(header):
                    text = f"expected {len(header)} columns, found {len(row)}"
                    yield at, Problem(str(file), at, "", text)
                else:
                    yield at, _cells(zip(header, row, strict=True))
                continue
            header = [_column(cell) for cell in row]
            if not {"address", "mac"} & set(header):
                raise InputError([Problem(str(file), at, "", wanted)])
    except csv.Error as error:
        raise InputError([Problem(str(file), reader.line_num, "", f"this is no CSV: {error}")]) from None
    if header is None:
        raise InputError([Problem(str(file), 1, "", f"the file is empty; {wanted}")])


def _read(file: Path, line: int, row: Row) -> list[Device] | Problem:
    cells = [row.get(column, "").strip() for column in COLUMNS]
    address, mac, hostname, serial, owner, _ = cells
    if not all(cell.isprintable() for cell in cells):
        return Problem(str(file), line, "", "a character that cannot be printed")
    parsed: Address | None = None
    if address:
        try:
            parsed = ip_address(address)
        except ValueError:
            text = "expected one IPv4 or IPv6 address; networks go under groups:"
            return Problem(str(file), line, "address", text)
        mapped = getattr(parsed, "ipv4_mapped", None)
        if "%" in address or mapped is not None or parsed.is_unspecified or parsed.is_multicast or address == BROADCAST:
            return Problem(str(file), line, "address", "no device has this address; write IPv4 addresses as IPv4")
    try:
        macs = [read_mac(one) for one in re.split(r"[\s,;]+", mac) if one]
    except ValueError as error:
        return Problem(str(file), line, "mac", str(error))
    if parsed is None and not macs:
        return Problem(str(file), line, "", "neither an address nor a MAC: nobody could know the device by this line")
    return [Device(parsed, hostname, serial, owner, file, line, one) for one in dict.fromkeys(macs or [""])]
