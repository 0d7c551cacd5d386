"""dnsmasq's lease file: written anew at each change, a line a lease: its end, MAC, address, name, client ID.

IPv6 leases follow a line `duid ...`: their second word is an IAID, and the last the client's DUID. dnsmasq(8),
--dhcp-leasefile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from blockd.devices.leases.lease import ENDLESS, NO_END, Lease, Unusable, mac_of_duid, read_lease, read_time, usable_mac

#: First words of lines that are about the server, or add to a lease what nothing here needs.
OTHERS = ("duid", "agent-info", "vendorclass")
#: Seconds; a smaller number is how long a lease runs, as a dnsmasq that has no clock writes it (HAVE_BROKEN_RTC).
FIRST_MOMENT = 1e9

_FEW = Unusable("expected end, MAC, address and name")
#: A MAC of other hardware than Ethernet has the number of its kind before it; that of 6, IEEE 802, is an EUI-48 too.
#: Where there is no MAC, in a lease of IPv6, this is an IAID.
_HARDWARE = re.compile(r"(?:06-)?([0-9A-Fa-f]{2}:[0-9A-Fa-f:]+)")


class Dnsmasq:
    """Reads a whole file: what is not in it any more is over."""

    is_whole = True
    before: tuple[str, ...] = ()

    def __init__(self, written: float = 0.0) -> None:
        """`written` is when the file was, in seconds since 1970: durations count from there."""
        self._written = written

    def read(self, line: str) -> Iterator[Lease | Unusable]:
        """Give the lease of a line, if it has one."""
        words = line.split()
        if not words or words[0] in OTHERS:
            return
        yield self._lease(words)

    def _lease(self, words: list[str]) -> Lease | Unusable:
        end = read_time(words[0])
        if end is None:
            return NO_END
        if len(words) < 4:
            return _FEW
        if end < FIRST_MOMENT:
            # 0 is an endless lease in both forms.
            end = self._written + end if end else ENDLESS
        hardware = _HARDWARE.fullmatch(words[1])
        mac = usable_mac(hardware[1]) if hardware else mac_of_duid(words[4] if len(words) > 4 else "")
        return read_lease(words[2], mac, "" if words[3] == "*" else words[3], end)
