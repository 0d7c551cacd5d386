"""dnsmasq's lease file: written anew at each change, a line a lease: its end, MAC, address, name, client ID.

IPv6 leases follow a line `duid ...`: their second word is an IAID, and the last the client's DUID. dnsmasq(8),
--dhcp-leasefile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blockd.devices.leases.lease import ENDLESS, Lease, mac_of_duid, read_lease, read_time


class Dnsmasq:
    """Reads a whole file: what is not in it any more is over."""

    is_whole = True
    before: tuple[str, ...] = ()

    def read(self, lines: Iterable[str]) -> Iterator[Lease | None]:
        """Give each line's lease, None for a line that has none."""
        for line in lines:
            words = line.split()
            if words[:1] == ["duid"]:
                continue
            if len(words) < 4 or not (words[0].isascii() and words[0].isdigit()):
                yield None
                continue
            mac = words[1] if ":" in words[1] else mac_of_duid(words[4] if len(words) > 4 else "")
            # A MAC of another kind of hardware has its number before it.
            mac = mac.rpartition("-")[2]
            hostname = "" if words[3] == "*" else words[3]
            # 0 is an endless lease.
            yield read_lease(words[2], mac, hostname, read_time(words[0]) or ENDLESS)
