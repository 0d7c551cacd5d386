"""Devices from an asset list, as asset and device management tools export them: CSV with a header, or JSON objects.

A record that cannot be used is left out and counted; what leaves doubt about the file as a whole is an InputError.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from blockd.devices.inventory.cells import MAX_VALUES, TOO_MANY, read_addresses, read_macs, read_name
from blockd.devices.inventory.device import Device
from blockd.devices.inventory.objects import Objects
from blockd.devices.inventory.record import Record
from blockd.devices.inventory.table import Table
from blockd.devices.inventory.text import decode, ends_within_line, lines_of_text
from blockd.problems import InputError, Problem, Skipped
from blockd.settings.values import Address

#: Devices in one file; a larger one is a mistake, or a network that should be written as one.
MAX_DEVICES = 1_000_000
#: Of one file: what is made of it in memory is many times larger.
MAX_SIZE_MB = 256

INCOMPLETE = "no MAC and no address that identifies the device"

#: How a file ends: with a line end, with a whole record, or within a record, as one does that is being written.
WHOLE, WITHIN_LINE, WITHIN_RECORD = 0, 1, 2


_NO_ADDRESS: tuple[Address | None, ...] = (None,)


@dataclass
class Inventory:
    """What a file says, and what of it cannot be used."""

    file: Path
    only: tuple[str, ...] = ()
    devices: list[Device] = field(default_factory=list)
    #: Records that `only` takes, and those of them that give a device.
    records: int = 0
    used: int = 0
    #: Those of them with no MAC and address, or with one that cannot be read.
    unusable: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    #: What somebody should look at: pages that are missing, columns that are not read.
    notes: list[Problem] = field(default_factory=list)
    end: int = WHOLE


def read_inventory(file: Path, data: bytes, only: Collection[str] = ()) -> Inventory:
    """Read an inventory; with `only`, of its column `group` the records that say one of these.

    InputError when nothing of it can be used, or when its meaning is not certain; it repeats no address and no name.
    """
    if len(data) > MAX_SIZE_MB << 20:
        raise InputError([Problem(str(file), 0, "", f"more than {MAX_SIZE_MB} MiB; split it into several files")])
    text = decode(data)
    source = Objects(file, text) if _is_json(file, text) else Table(file, lines_of_text(text))
    inventory = Inventory(file, tuple(only))
    groups: set[str] = set()
    is_whole = True
    for line, record in source.records():
        is_whole = not isinstance(record, str)
        if isinstance(record, str):
            inventory.records += 1
            inventory.unusable += 1
            inventory.skipped.add(Problem(str(file), line, "", record))
            continue
        own = {group.strip() for group in record.get("group", ())} if only else groups
        groups |= own
        if not only or not own.isdisjoint(only):
            _take(inventory, line, record)
        if len(inventory.devices) > MAX_DEVICES:
            text = f"more than {MAX_DEVICES} devices; write networks, or more than one file"
            raise InputError([Problem(str(file), line, "", text)])
    if ends_within_line(text) and source.has_lines:
        inventory.end = WITHIN_LINE if is_whole else WITHIN_RECORD
    inventory.notes = source.notes
    if lacking := sorted(set(only) - groups):
        # A department that was renamed there would leave its devices to themselves.
        text = f"no line has {', '.join(lacking)} in its column group, as `only` wants"
        raise InputError([Problem(str(file), 1, "group", text)])
    if inventory.unusable and not inventory.devices:
        raise InputError(inventory.skipped.samples)
    return inventory


def _is_json(file: Path, text: str) -> bool:
    """Say whether a file is JSON: by its name, or by its first character, with which no header begins."""
    return file.suffix.lower() in (".json", ".jsonl", ".ndjson") or text.lstrip()[:1] in ("{", "[")


def _take(inventory: Inventory, line: int, record: Record) -> None:
    """Add the devices of a record, and count what of it cannot be used."""
    problems: dict[str, str] = {}
    macs: dict[str, None] = {}
    addresses: dict[Address, None] = {}
    for cell in record.get("mac", ()):
        found, wrong = read_macs(cell)
        macs.update(dict.fromkeys(found))
        if wrong:
            problems.setdefault("mac", wrong)
    for cell in record.get("address", ()):
        values, wrong = read_addresses(cell)
        for value in values:
            if isinstance(value, str):
                macs[value] = None
            else:
                addresses[value] = None
        if wrong:
            problems.setdefault("address", wrong)
    for column, count in (("mac", len(macs)), ("address", len(addresses))):
        if count > MAX_VALUES:
            problems[column] = TOO_MANY
    if not macs and not addresses and not problems:
        problems[""] = INCOMPLETE
    inventory.records += 1
    inventory.unusable += bool(problems)
    names: dict[str, str] = {}
    for column in ("hostname", "serial", "owner"):
        for cell in record.get(column, ()):
            name, wrong = read_name(cell)
            if wrong and (macs or addresses):
                problems.setdefault(column, wrong)
            if name:
                names[column] = name
                break
    for key, text in problems.items():
        inventory.skipped.add(Problem(str(inventory.file), line, key, text))
    if macs or addresses:
        inventory.used += 1
        hostname, serial, owner = (names.get(column, "") for column in ("hostname", "serial", "owner"))
        pairs = product(tuple(addresses)[:MAX_VALUES] or _NO_ADDRESS, list(macs)[:MAX_VALUES] or [""])
        inventory.devices += [
            Device(address, hostname, serial, owner, inventory.file, line, mac) for address, mac in pairs
        ]
