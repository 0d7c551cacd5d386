"""Kea's lease files (memfile): CSV that grows by a line a change, the last one for an address counts.

https://kea.readthedocs.io/en/latest/arm/dhcp4-srv.html#memfile-basic-storage-for-leases
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from blockd.devices.leases.lease import ENDLESS, Lease, mac_of_duid, read_lease, read_time

#: Of `state`: 0 is a lease; others are declined, expired or released.
ASSIGNED = "0"
#: A lifetime that has no end (RFC 2131 3.3).
INFINITE = "4294967295"


class Kea:
    """Reads lines as they come; the header, which begins each file, says what columns there are."""

    is_whole = False
    #: Where it leaves leases while and after it cleans a file up, the oldest first.
    before: tuple[str, ...] = (".completed", ".2", ".1")

    def __init__(self) -> None:
        """Start before the header."""
        self._header: list[str] = []

    def read(self, lines: Iterable[str]) -> Iterator[Lease | None]:
        """Give each line's lease, None for a line that has none."""
        for line in lines:
            try:
                row = next(csv.reader([line.rstrip("\r")]), [])
            except csv.Error:
                row = []
            if row[:1] == ["address"]:
                self._header = row
                continue
            # Commas inside a value are written as &#x2c.
            values = dict(zip(self._header, row, strict=False))
            if len(row) < 4 or "expire" not in values:
                yield None
                continue
            mac = values.get("hwaddr", "") or mac_of_duid(values.get("duid", ""))
            is_endless = values.get("valid_lifetime") == INFINITE
            until = ENDLESS if is_endless else read_time(values["expire"])
            if values.get("state", ASSIGNED) != ASSIGNED or values.get("lease_type", "0") not in ("0", "1"):
                until = 0.0
            yield read_lease(values["address"], mac, values.get("hostname", ""), until)
