"""Kea's lease files (memfile): CSV that grows by a line a change, the last one for an address counts.

https://kea.readthedocs.io/en/latest/arm/dhcp4-srv.html#memfile-basic-storage-for-leases
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from blockd.devices.leases.lease import (
    CUT,
    ENDLESS,
    INFINITE,
    KEA_ENDED,
    KEA_IN_USE,
    NO_STATE,
    Lease,
    Unusable,
    mac_of_duid,
    read_lease,
    read_time,
    usable_mac,
)

#: Columns of the oldest schemas; newer ones add columns behind them. Used where a file has no header that can be read.
LEASE4 = {"address": 0, "hwaddr": 1, "valid_lifetime": 3, "expire": 4, "hostname": 8, "state": 9}
LEASE6 = {
    "address": 0,
    "duid": 1,
    "valid_lifetime": 2,
    "expire": 3,
    "lease_type": 6,
    "hostname": 11,
    "hwaddr": 12,
    "state": 13,
}
#: Columns that every schema has; a row that does not reach the last of them was cut while it was written.
NEEDED = ("address", "valid_lifetime", "expire", "hostname")
#: `lease_type` of a delegated prefix, which is not an address that anybody has.
PREFIX = "2"

_BAD_HEADER = Unusable("a header without the columns address, valid_lifetime, expire and hostname")
#: How Kea writes a comma that is part of a value.
_ESCAPED = re.compile(r"&#x([0-9a-fA-F]{2})")


class Kea:
    """Reads lines as they come; the header, which begins each file, says what columns there are.

    Kea quotes nothing: a quote in a name is a character like any other.
    """

    is_whole = False
    #: Where it leaves leases while and after it cleans a file up, the oldest first.
    before: tuple[str, ...] = (".completed", ".2", ".1")

    def __init__(self, written: float = 0.0) -> None:
        """Start before the header. The file has its own times, so that when it was written does not matter."""
        self._columns: dict[str, int] | None = None

    def read(self, line: str) -> Iterator[Lease | Unusable]:
        """Give the lease of a line, if it has one."""
        row = line.rstrip("\r").split(",")
        if row == [""]:
            return
        if row[0] != "address":
            found = self._lease(row)
            if found is not None:
                yield found
        elif set(NEEDED) <= set(row):
            self._columns = {name: at for at, name in enumerate(row)}
        else:
            yield _BAD_HEADER

    def _lease(self, row: list[str]) -> Lease | Unusable | None:
        columns = self._columns or (LEASE6 if ":" in row[0] else LEASE4)
        if len(row) <= max(columns[name] for name in NEEDED):
            return CUT

        def value(name: str) -> str:
            at = columns.get(name, len(row))
            return row[at] if at < len(row) else ""

        if value("lease_type") == PREFIX:
            return None
        state = read_time(value("state") or "0")
        if state not in (*KEA_IN_USE, *KEA_ENDED):
            return NO_STATE
        expires = ENDLESS if read_time(value("valid_lifetime")) == INFINITE else read_time(value("expire"))
        hostname = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), value("hostname"))
        mac = usable_mac(value("hwaddr")) or mac_of_duid(value("duid"))
        return read_lease(row[columns["address"]], mac, hostname, 0.0 if state in KEA_ENDED else expires)
