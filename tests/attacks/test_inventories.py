"""What people may call their devices, against the inventory that an asset tool exports: no name frees a device."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from blockd.devices import read_inventory

row = pytest.mark.row
MACS = [f"00:16:3e:00:53:{at:02x}" for at in range(9)]
ANOTHERS = "00:16:3e:00:99:99"
NAMES = [
    '"',
    '"x',
    'x"',
    'x","y',
    '""',
    ",",
    "x,,,",
    "\n",
    "\r",
    f'x\nPC,{ANOTHERS},S\ny"',
    f'"\nPC,{ANOTHERS},S\n"',
    "mac",
    "MAC address",
    "#TYPE x",
    "sep=;",
    "N/A",
    "\u202e\u200b\u0000\x1b[2J",
    "=cmd|' /C calc'!A0",
    "x" * 100_000,
    "\ud7ff\ufffe\U0010ffff",
]


def excel(rows: list[list[str]]) -> bytes:
    """Write CSV as a tool does that knows how."""
    file = io.StringIO()
    csv.writer(file).writerows([["Name", "MAC", "Serial"], *rows])
    return file.getvalue().encode()


def unicode_text(rows: list[list[str]]) -> bytes:
    """Write it as Excel's Unicode text."""
    file = io.StringIO()
    csv.writer(file, dialect="excel-tab").writerows([["Name", "MAC", "Serial"], *rows])
    return b"\xff\xfe" + file.getvalue().encode("utf-16-le")


def naive(rows: list[list[str]]) -> bytes:
    """Write it as a script does that has never met a comma."""
    return "".join(",".join(row) + "\n" for row in [["Name", "MAC", "Serial"], *rows]).encode()


def quoted(rows: list[list[str]]) -> bytes:
    """Write it with quotation marks around everything, and none of them escaped."""
    return "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in [["Name", "MAC", "Serial"], *rows]).encode()


def objects(rows: list[list[str]]) -> bytes:
    """Write JSON."""
    return json.dumps([{"name": name, "mac": mac, "serial": serial} for name, mac, serial in rows]).encode()


@row("inventory-poisoning")
@pytest.mark.parametrize("export", [excel, unicode_text, objects])
def test_no_name_frees_a_device_or_adds_one(export: Callable[[list[list[str]]], bytes]) -> None:
    """Where the tool escapes names, every device is in force, whatever it is called, and no other is."""
    for name in NAMES:
        rows = [[name if at in (3, 5) else f"PC-{at}", mac, f"S-{at}"] for at, mac in enumerate(MACS)]
        inventory = read_inventory(Path("x.json" if export is objects else "x.csv"), export(rows))
        assert [one.mac for one in inventory.devices] == MACS, name
        assert {one.serial for one in inventory.devices} == {f"S-{at}" for at in range(9)}


@row("inventory-poisoning")
@pytest.mark.parametrize("export", [naive, quoted])
def test_a_name_that_breaks_its_row_is_counted(export: Callable[[list[list[str]]], bytes]) -> None:
    """Where it does not, a device is in force or its row is counted and shown; rows of others are in force."""
    for name in NAMES:
        rows = [[name if at in (3, 5) else f"PC-{at}", mac, f"S-{at}"] for at, mac in enumerate(MACS)]
        inventory = read_inventory(Path("x.csv"), export(rows))
        found = {one.mac for one in inventory.devices}
        others = set(MACS) - {MACS[3], MACS[5]}
        assert len(set(MACS) - found) <= inventory.unusable, name
        assert others <= found or any("inside a quoted cell" in reason for reason in inventory.skipped.counts), name
        assert all(problem.line > 1 for problem in inventory.skipped.samples)
