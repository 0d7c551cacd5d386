"""Kea's leases by its control socket: whole at each reading, whatever database it keeps them in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockd.devices.leases.feed import MAX_LEASES, Part
from blockd.devices.leases.lease import ENDLESS, Lease, mac_of_duid, read_lease
from blockd.settings.values import Address

#: A lifetime that has no end (RFC 2131 3.3).
INFINITE = 4_294_967_295
#: Gives every lease as Kea writes it, None when it is not time yet. OSError or ValueError says what is wrong.
Read = Callable[[], list[dict[str, Any]] | None]


class KeaSocket:
    """Looks as a lease file does."""

    format = "kea"

    #: Asks it; whoever makes the source sets it.
    read: Read

    def __init__(self, path: Path) -> None:
        """`path` is the socket, for people."""
        self.file = path
        self.leases: dict[Address, Lease] = {}
        self.problem: str | None = None
        self.confirmed = 0.0
        self.skipped = self.left_out = 0

    def fetch(self) -> Part:
        """Ask for all of it, when it is time."""
        try:
            rows = self.read()
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Part(problem=f"{self.file}: {getattr(error, 'strerror', None) or error}")
        if rows is None:
            return Part(is_settled=True, problem=self.problem)
        return Part([lease for row in rows if (lease := self._lease(row)) is not None], is_all=True)

    def take(self, part: Part, now: float) -> set[Address]:
        """Take it in; give the addresses of which something else is said than before."""
        self.problem = part.problem
        if part.problem is not None or part.is_settled:
            return set()
        self.confirmed = now
        found = {lease.address: lease for lease in part.leases[:MAX_LEASES]}
        self.left_out = max(0, len(part.leases) - MAX_LEASES)
        # What is gone ends now: a database that lost all of it, as one after a failover, must not free a fleet at once.
        gone = {
            address: Lease(address, lease.mac, lease.hostname, now)
            for address, lease in self.leases.items()
            if address not in found and lease.expires > now
        }
        changed = gone.keys() | {address for address, lease in found.items() if self.leases.get(address) != lease}
        self.leases |= {**gone, **found}
        return changed

    def _lease(self, row: Any) -> Lease | None:
        """Read one; none of a prefix, and one without end of what is declined or given back."""
        try:
            if row.get("type", "IA_NA") not in ("IA_NA", "IA_TA", "V4"):
                return None
            lifetime, began = int(row["valid-lft"]), int(row["cltt"])
            until = ENDLESS if lifetime == INFINITE else float(began + lifetime)
            mac = str(row.get("hw-address") or "") or mac_of_duid(str(row.get("duid") or ""))
            lease = read_lease(str(row["ip-address"]), mac, str(row.get("hostname") or ""), until)
            if lease is not None and row.get("state", 0) != 0:
                lease = Lease(lease.address, lease.mac, lease.hostname, 0.0)
        except (KeyError, TypeError, ValueError, AttributeError):
            lease = None
        if lease is None:
            self.skipped += 1
        return lease
