"""Kea's leases by its control socket: whole at each reading, whatever database it keeps them in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from blockd.devices.leases.feed import MAX_LEASES, Part
from blockd.devices.leases.lease import (
    ENDLESS,
    INFINITE,
    KEA_ENDED,
    KEA_IN_USE,
    NO_ADDRESS,
    NO_END,
    NO_STATE,
    Lease,
    Unusable,
    mac_of_duid,
    read_lease,
    usable_mac,
)
from blockd.problems import Problem, Skipped
from blockd.settings.values import Address

#: Gives every lease as Kea writes it, None when it is not time yet. OSError or ValueError says what is wrong, also
#: between two leases.
Read = Callable[[], Iterable[Any] | None]

_NO_OBJECT = Unusable("expected a lease as an object")


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
        self.skipped = Skipped()
        self.left_out = 0

    @property
    def is_empty(self) -> bool:
        """Say whether it has no lease."""
        return self.confirmed > 0 and not self.leases

    def fetch(self) -> Part:
        """Ask for all of it, when it is time."""
        found: dict[Address, Lease] = {}
        skipped, left_out = Skipped(), 0
        try:
            rows = self.read()
            if rows is None:
                return Part(is_settled=True, problem=self.problem)
            for number, row in enumerate(rows, 1):
                lease = read_row(row)
                if isinstance(lease, Unusable):
                    skipped.add(Problem(str(self.file), number, "", lease.reason))
                elif lease is not None and len(found) < MAX_LEASES:
                    found[lease.address] = lease
                elif lease is not None:
                    left_out += 1
        except (OSError, ValueError) as error:
            return Part(problem=f"{self.file}: {getattr(error, 'strerror', None) or error}")
        if skipped.total and not found:
            return Part(problem=f"{self.file}: Kea's answer has no lease that can be read")
        return Part(list(found.values()), skipped, left_out, is_all=True)

    def take(self, part: Part, now: float) -> set[Address]:
        """Take it in; give the addresses of which something else is said than before."""
        self.problem = part.problem
        if part.problem is not None or part.is_settled:
            return set()
        self.confirmed = now
        found = {lease.address: lease for lease in part.leases}
        self.skipped, self.left_out = part.skipped, part.left_out
        # What is gone ends now: a database that lost all of it, as one after a failover, must not free a fleet at once.
        gone = {
            address: Lease(address, lease.mac, lease.hostname, now)
            for address, lease in self.leases.items()
            if address not in found and lease.expires > now
        }
        changed = gone.keys() | {address for address, lease in found.items() if self.leases.get(address) != lease}
        self.leases |= {**gone, **found}
        return changed


def read_row(row: Any) -> Lease | Unusable | None:
    """Read a lease as Kea answers it; None for a prefix, and a lease without end for what is declined or given back."""
    if not isinstance(row, dict):
        return _NO_OBJECT
    if row.get("type", "V4") == "IA_PD":
        return None
    state = row.get("state", 0)
    if not isinstance(state, int) or state not in (*KEA_IN_USE, *KEA_ENDED):
        return NO_STATE
    lifetime, began = _seconds(row.get("valid-lft")), _seconds(row.get("cltt"))
    if lifetime is None or began is None:
        return NO_END
    expires = ENDLESS if lifetime == INFINITE else float(began + lifetime)
    address = row.get("ip-address")
    if not isinstance(address, str):
        return NO_ADDRESS
    mac = usable_mac(_text(row.get("hw-address"))) or mac_of_duid(_text(row.get("duid")))
    return read_lease(address, mac, _text(row.get("hostname")), 0.0 if state in KEA_ENDED else expires)


def _seconds(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 10**15 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
