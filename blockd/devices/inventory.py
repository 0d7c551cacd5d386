"""Devices from an asset list: a CSV file with ``address,hostname,serial,owner``, a device a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from blockd.problems import InputError, Problem
from blockd.settings.values import Address

COLUMNS = ("address", "hostname", "serial", "owner")
#: Devices in one file; a larger one is a mistake, or a network that should be written as one.
MAX_DEVICES = 1_000_000
#: Problems told of one file: with the wrong separator every line is one.
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Device:
    """One device, and the line that says so."""

    address: Address
    hostname: str
    serial: str
    owner: str
    file: Path
    line: int

    def __str__(self) -> str:
        """Name it as people do; never its owner, whom only those who may read the file should know."""
        name = self.hostname or "a device"
        return f"{name}, serial {self.serial}" if self.serial else name


def read_inventory(file: Path, data: bytes) -> list[Device]:
    """Read an inventory. InputError has the first lines that are wrong; it repeats no address and no name."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError([Problem(str(file), line, "", "the file is not UTF-8")]) from None
    problems: list[Problem] = []
    devices: list[Device] = []
    for line, row in _rows(file, text):
        result = _read(file, line, row)
        if isinstance(result, Problem):
            problems.append(result)
        else:
            devices.append(result)
        if len(problems) == MAX_PROBLEMS or len(devices) > MAX_DEVICES:
            break
    if len(devices) > MAX_DEVICES:
        text = f"more than {MAX_DEVICES} devices; write networks, or more than one file"
        problems.append(Problem(str(file), line, "", text))
    if problems:
        raise InputError(problems)
    return devices


def _rows(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Give each row below the header with the line that it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in reader:
            at, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if header is not None:
                yield at, row
                continue
            header = [cell.strip().lower() for cell in row]
            if tuple(header) != COLUMNS:
                text = f"the first line must be {','.join(COLUMNS)}"
                raise InputError([Problem(str(file), at, "", text)])
    except csv.Error as error:
        raise InputError([Problem(str(file), reader.line_num, "", f"this is no CSV: {error}")]) from None
    if header is None:
        raise InputError([Problem(str(file), 1, "", f"the file is empty; its first line must be {','.join(COLUMNS)}")])


def _read(file: Path, line: int, row: list[str]) -> Device | Problem:
    if len(row) != len(COLUMNS):
        text = f"expected {len(COLUMNS)} columns ({','.join(COLUMNS)}), found {len(row)}"
        return Problem(str(file), line, "", text)
    address, hostname, serial, owner = (cell.strip() for cell in row)
    if not all(cell.isprintable() for cell in row):
        return Problem(str(file), line, "", "a character that cannot be printed")
    try:
        parsed = ip_address(address)
    except ValueError:
        return Problem(str(file), line, "address", "expected one IPv4 or IPv6 address; networks go under groups:")
    mapped = getattr(parsed, "ipv4_mapped", None)
    if "%" in address or mapped is not None or parsed.is_unspecified or parsed.is_multicast:
        return Problem(str(file), line, "address", "no device has this address; write IPv4 addresses as IPv4")
    return Device(parsed, hostname, serial, owner, file, line)
