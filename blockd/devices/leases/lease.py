"""One lease, whoever wrote it down."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from blockd.devices.inventory import read_mac
from blockd.settings.values import Address

#: The end of a lease that has none.
ENDLESS = float("inf")


@dataclass(frozen=True)
class Lease:
    """An address, and who has it until when."""

    address: Address
    #: As `read_mac` gives it; empty where the server does not know it.
    mac: str
    #: As the client called itself: anybody may call himself anything.
    hostname: str
    #: Seconds since 1970; 0 when it was given back.
    expires: float


def read_lease(address: str, mac: str, hostname: str, expires: float) -> Lease | None:
    """Make one of texts; None when the address is none."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    try:
        known = read_mac(mac) if mac else ""
    except ValueError:
        known = ""
    name = hostname.rstrip(".").partition(".")[0].lower()
    return Lease(parsed, known, name if name.isprintable() else "", expires)


def read_time(text: str) -> float:
    """Read seconds since 1970; 0 when it is no number."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0.0


def mac_of_duid(duid: str) -> str:
    """Give the MAC that a DUID was made of (RFC 8415 11.2 and 11.4); empty when it was made of something else."""
    digits = "".join(digit for digit in duid.lower() if digit in "0123456789abcdef")
    for kind, at in (("00010001", 16), ("00030001", 8)):
        if digits.startswith(kind) and len(digits) == at + 12:
            return read_mac(digits[at:])
    return ""
