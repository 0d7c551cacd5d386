"""What the cells of an inventory contain: MACs and addresses, often several, and what tools write for nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import TypeVar

from blockd.settings.values import Address

#: What tools write where they know nothing, in small letters and without brackets around it.
NOTHING = frozenset(
    {"", "n/a", "na", "none", "null", "nil", "nan", "unknown", "not specified", "not available", "not applicable"}
    | {"undefined", "invalid", "empty", "not set", "tbd", "oem", "default string", "system serial number"}
    | {"chassis serial number", "no asset information", "to be filled by o.e.m", "o.e.m"}
)
#: MACs that many devices report and none can be known by: no value, what Android and iOS show to apps,
#: and constants of virtual adapters (Microsoft's loopback, host adapters of VMware and VirtualBox, AnyConnect).
PLACEHOLDER_MACS = frozenset(
    {"00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "02:00:00:00:00:00", "02:00:4c:4f:4f:50", "00:50:56:c0:00:01"}
    | {"00:50:56:c0:00:08", "0a:00:27:00:00:00", "00:05:9a:3c:7a:00"}
)
#: Addresses that every machine has, or none.
PLACEHOLDER_ADDRESSES = frozenset(map(ip_address, ("0.0.0.0", "::", "127.0.0.1", "::1", "255.255.255.255")))  # noqa: S104  nothing listens there
#: Of a cell with MACs or addresses: a longer one is not read, so that reading stays linear in the size of a file.
MAX_CELL_CHARACTERS = 2048
#: MACs, and addresses, of one record.
MAX_VALUES = 32
#: Of a hostname or serial: as long as a DNS name.
MAX_NAME_CHARACTERS = 255

NOT_A_MAC = "expected a MAC, such as 00:11:22:33:44:55"
GROUP_MAC = "no device has this MAC: it is all zeros, or a group (multicast) address"
NOT_AN_ADDRESS = "expected an IPv4 or IPv6 address; networks go under groups:"
NO_DEVICES_ADDRESS = "no device has this address; write IPv4 addresses as IPv4"
TOO_LONG = f"a cell of more than {MAX_CELL_CHARACTERS} characters"
TOO_MANY = f"more than {MAX_VALUES} values in a record"
UNPRINTABLE = "a name with a character that cannot be printed, or that is too long; the record is used without it"

_PAIRS = r"[0-9a-f]{2}([:-]?)(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}"
_MAC = re.compile(rf"{_PAIRS}|[0-9a-f]{{4}}([.:-])[0-9a-f]{{4}}\2[0-9a-f]{{4}}|[0-9a-f]{{6}}[:-][0-9a-f]{{6}}")
#: As Solaris and macOS print them: `0:1b:63:84:45:e6`.
_SHORT_MAC = re.compile(r"(?:[0-9a-f]{1,2}:){5}[0-9a-f]{1,2}")
_SPACED_MAC = re.compile(r"(?<![0-9a-f:.-])[0-9a-f]{2}(?: [0-9a-f]{2}){5}(?![0-9a-f:.-])")
#: Between values of a cell: line breaks, commas and the like, and what languages and Excel (`="..."`) put around them.
_BETWEEN = re.compile(r"[\s,;|{}()\[\]\"'=+&]+")
_BETWEEN_MACS = re.compile(r"[\s,;|{}()\[\]\"'=+&/]+")
#: Dashes that word processors write, and marks without width.
_TYPOGRAPHY = {**dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")} | dict.fromkeys(
    [0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF]
)
_MARKS = dict.fromkeys(map(ord, ":.-"))
#: Of the longest usual form of a MAC, with space around it.
_USUAL_LENGTH = 20
_ZEROS = "00:00:00:00:00:00"
_NO_VALUE = re.compile(r"[0.?*_#/-]*|x{3,}")


def is_nothing(cell: str) -> bool:
    """Say whether a cell is empty, in the words of any tool."""
    if not cell:
        return True
    text = cell.strip().lower().strip("<>()[]{}\"'. ")
    return text in NOTHING or _NO_VALUE.fullmatch(text) is not None


def read_mac(text: str) -> str:
    """Read a MAC in any usual form; give it as `00:11:22:33:44:55`. ValueError when it is none."""
    text = text.strip().lower()
    if _SHORT_MAC.fullmatch(text):
        text = ":".join(octet.zfill(2) for octet in text.split(":"))
    if not _MAC.fullmatch(text):
        raise ValueError(NOT_A_MAC)
    mac = _mac(text)
    if mac == _ZEROS or is_group(mac):
        raise ValueError(GROUP_MAC)
    return mac


def _mac(text: str) -> str:
    if len(text) == 17:
        return text.replace("-", ":")
    digits = text.translate(_MARKS)
    return f"{digits[:2]}:{digits[2:4]}:{digits[4:6]}:{digits[6:8]}:{digits[8:10]}:{digits[10:]}"


def is_group(mac: str) -> bool:
    """Say whether a MAC is a group's, all of a link among them: a source never has one (IEEE 802 8.2)."""
    return mac[1] in "13579bdf"


def read_macs(cell: str) -> tuple[list[str], str | None]:
    """Give the MACs of a cell, without placeholders, and what is wrong with the rest of it."""
    if len(cell) <= _USUAL_LENGTH:
        # Most cells are empty or have one MAC in the usual form.
        text = cell.strip().lower()
        if not text or (_MAC.fullmatch(text) and (mac := _mac(text)) not in PLACEHOLDER_MACS and not is_group(mac)):
            return ([mac], None) if text else ([], None)
    return _values(cell, _BETWEEN_MACS, _one_mac)


def read_addresses(cell: str) -> tuple[list[Address | str], str | None]:
    """Give the addresses of a cell, and what is wrong with the rest of it; MACs too, as some tools call them addresses.

    Placeholders and link-local addresses are left out: an address of one link identifies nobody on another.
    """
    return _values(cell, _BETWEEN, _one_address)


Value = TypeVar("Value")


def _values(cell: str, between: re.Pattern[str], one: Callable[[str], Value | None]) -> tuple[list[Value], str | None]:
    """Read each value of a cell; None is one that counts for nothing, and ValueError one that is wrong."""
    if len(cell) > MAX_CELL_CHARACTERS:
        return [], TOO_LONG
    if is_nothing(cell):
        return [], None
    text = cell.translate(_TYPOGRAPHY).strip().lower()
    values: dict[Value, None] = {}
    wrong: str | None = None
    spaced = _SPACED_MAC.sub(lambda found: found[0].replace(" ", ":"), text)
    for word in between.split(spaced):
        if is_nothing(word):
            continue
        try:
            value = one(word)
        except ValueError as error:
            wrong = wrong or str(error)
            continue
        if value is not None:
            values[value] = None
    return list(values), wrong


def _one_mac(word: str) -> str | None:
    try:
        mac = read_mac(word)
    except ValueError:
        # All bits are 0, or 1: what agents write where they know nothing.
        if word.translate(_MARKS) in ("0" * 12, "f" * 12):
            return None
        raise
    return None if mac in PLACEHOLDER_MACS else mac


def _one_address(word: str) -> Address | str | None:
    try:
        address = ip_address(word.partition("%")[0])
    except ValueError:
        try:
            return _one_mac(word)
        except ValueError:
            raise ValueError(NOT_AN_ADDRESS) from None
    if address in PLACEHOLDER_ADDRESSES or address.is_link_local:
        return None
    if address.is_multicast or getattr(address, "ipv4_mapped", None) is not None:
        raise ValueError(NO_DEVICES_ADDRESS)
    return address


def has_values(cells: Iterable[str]) -> bool:
    """Say whether cells have MACs, addresses or people, so that no error repeats them as names of columns."""
    return any("@" in cell[1:] or read_macs(cell)[0] or read_addresses(cell)[0] for cell in cells)


def read_name(cell: str) -> tuple[str, str | None]:
    """Give a hostname, serial or owner; empty, with the reason, when it cannot be shown to people."""
    text = cell.strip()
    if is_nothing(text):
        return "", None
    if not text.isprintable() or len(text) > MAX_NAME_CHARACTERS:
        return "", UNPRINTABLE
    return text, None


def mac_number(mac: str) -> int:
    """Give a MAC as a number, as the hot path knows it."""
    return int(mac.replace(":", ""), 16)


def is_randomised(mac: str) -> bool:
    """Say whether a MAC was made up by its device: the bit for locally administered ones is set (IEEE 802 8.2)."""
    return bool(int(mac[:2], 16) & 2)
