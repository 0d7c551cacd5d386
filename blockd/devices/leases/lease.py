"""One lease, whichever server wrote it; and why a record that is not a lease cannot be used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from blockd.devices.inventory import read_mac
from blockd.settings.values import Address

#: The end of a lease that has none.
ENDLESS = float("inf")
#: A lifetime that has no end (RFC 2131 3.3).
INFINITE = 4_294_967_295
#: Kea's states of a lease: assigned, and registered by its client (RFC 9686); then declined, expired, released.
KEA_IN_USE, KEA_ENDED = (0, 4), (1, 2, 3)

#: Octets as servers write them: two digits each, with one kind of separator or none.
_OCTETS = re.compile(r"[0-9a-f]{2}(?:([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2})*|(?:[0-9a-f]{2})*)")


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


@dataclass(frozen=True)
class Unusable:
    """A record that gives no lease."""

    #: One of a fixed set of texts, so that counts by reason stay bounded.
    reason: str
    #: Lines between where the record begins and where it turned out to be unusable.
    lines_ago: int = 0


NO_ADDRESS = Unusable("expected an IPv4 or IPv6 address")
NO_END = Unusable("expected the time at which the lease ends")
NO_STATE = Unusable("the state of the lease is unknown")
CUT = Unusable("the record is cut: columns are missing")


def read_lease(address: str, mac: str, hostname: str, expires: float | None) -> Lease | Unusable:
    """Make a lease of texts. A MAC that no device can have is left out: the lease of its address is one all the same.

    `expires` is None where it could not be read.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return NO_ADDRESS
    if getattr(parsed, "scope_id", None) is not None:
        return NO_ADDRESS
    if expires is None:
        return NO_END
    name = hostname.rstrip(".").partition(".")[0].lower()
    return Lease(parsed, usable_mac(mac), name if name.isprintable() else "", expires)


def read_time(text: str) -> float | None:
    """Read seconds; None when it is not a number of them."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def usable_mac(text: str) -> str:
    """Give a MAC as inventories have it; empty for one that no single device can have, or for something else."""
    try:
        return read_mac(text) if text else ""
    except ValueError:
        return ""


def mac_of_duid(duid: str) -> str:
    """Give the MAC that a DUID was made of (RFC 8415 11.2 and 11.4); empty when it was made of something else.

    The client writes its DUID, so anything may be in it. Hardware type 1 is Ethernet, whose addresses have six octets.
    """
    text = duid.strip().lower()
    if not _OCTETS.fullmatch(text):
        return ""
    digits = text.replace(":", "").replace("-", "")
    for kind, at in (("00010001", 16), ("00030001", 8)):
        if digits.startswith(kind) and len(digits) == at + 12:
            return usable_mac(digits[at:])
    return ""
