"""The kernel's neighbour table: which MAC has an address on a link of ours, also one that no DHCP server gave.

A thread of its own hears what changes; who looks takes what was heard.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from pathlib import Path
from typing import Any

from blockd.devices.leases.feed import Part
from blockd.devices.leases.lease import ENDLESS, Lease, Unusable, read_lease
from blockd.problems import Problem, Skipped
from blockd.settings.values import Address

log = logging.getLogger("blockd")

#: States of an entry that has a MAC: reachable, stale, delay, probe, permanent (linux/neighbour.h).
HAS_MAC = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
#: Changes that wait to be looked at; when more come, the table is read anew.
MAX_WAITING = 100_000
#: Entries that are kept.
MAX_ENTRIES = 1_000_000
#: Seconds until a table that could not be read is tried again.
PAUSE = 5.0


class Neighbours:
    """Looks as a lease file does: an entry is a lease without end, until the kernel forgets it."""

    format = "neighbours"
    file = Path("neighbours")

    def __init__(self) -> None:
        """Begin to listen."""
        self.leases: dict[Address, Lease] = {}
        self.problem: str | None = None
        self.confirmed = 0.0
        self.skipped = Skipped()
        self.left_out = 0
        self._heard: deque[Lease] = deque()
        #: Messages that could not be used, since the last look.
        self._odd = Skipped()
        #: Addresses that the kernel knows.
        self._seen: set[Address] = set()
        self._failed: str | None = None
        self._is_open = False
        self._end = threading.Event()
        threading.Thread(target=self._listen, name="neighbours", daemon=True).start()

    @property
    def is_empty(self) -> bool:
        """The kernel's table is whole, and fills by itself: nothing that was kept stands for it."""
        return False

    def close(self) -> None:
        """Stop listening: after the next change at the latest."""
        self._end.set()

    def fetch(self) -> Part:
        """Give what was heard since."""
        if self._failed is not None:
            # What was heard stays until it can be taken in.
            return Part(problem=self._failed)
        heard = []
        while self._heard:
            heard.append(self._heard.popleft())
        odd, self._odd = self._odd, Skipped()
        return Part(heard, odd)

    def take(self, part: Part, now: float) -> set[Address]:
        """Take in what was heard; give the addresses of which something else is said than before."""
        self.problem = part.problem
        if part.problem is not None:
            return set()
        self.skipped.update(part.skipped)
        if self._is_open:
            self.confirmed = now
        changed = set()
        for lease in part.leases:
            before = self.leases.get(lease.address)
            if lease.expires == ENDLESS:
                after = lease
            elif before is None:
                continue
            else:
                # The kernel forgets who is silent: what it said last stands for a while, by the end that it has now.
                after = Lease(lease.address, before.mac, "", min(before.expires, now))
            if before is None and len(self.leases) >= MAX_ENTRIES:
                self.left_out += 1
            elif before != after:
                self.leases[lease.address] = after
                changed.add(lease.address)
        return changed

    def _listen(self) -> None:
        while not self._end.is_set():
            try:
                self._listen_once()
            except Exception as error:  # noqa: BLE001  a library's own, whatever it is: said, and tried again
                self._failed = f"the kernel's neighbour table cannot be read: {type(error).__name__}: {error}"
                self._is_open = False
            self._end.wait(PAUSE)

    def _listen_once(self) -> None:
        from pyroute2 import IPRoute
        from pyroute2.netlink.rtnl import RTMGRP_NEIGH

        with IPRoute() as netlink:
            # First, so that nothing is missed in between.
            netlink.bind(groups=RTMGRP_NEIGH)
            before, self._seen = self._seen, set()
            for message in netlink.get_neighbours():
                self._hear(message)
            for address in before - self._seen:
                # Forgotten while nobody listened.
                self._heard.append(Lease(address, "", "", 0.0))
            self._failed, self._is_open = None, True
            while not self._end.is_set():
                for message in netlink.get():
                    self._hear(message)
                if len(self._heard) > MAX_WAITING:
                    raise OverflowError("more changes than anybody looks at")

    def _hear(self, message: Any) -> None:
        lease = read_message(message)
        if isinstance(lease, Unusable):
            self._odd.add(Problem(str(self.file), 0, "", lease.reason))
        elif lease is not None:
            self._heard.append(lease)
            (self._seen.add if lease.expires else self._seen.discard)(lease.address)


#: Families of entries that say which MAC has an address: IPv4 and IPv6. A bridge's say behind which port a MAC is.
FAMILIES = (2, 10)

_STRANGE = Unusable("a message of the kernel that is not an entry of the table")


def read_message(message: Any) -> Lease | Unusable | None:
    """Read an entry as a lease, one without end of an entry that is gone; None for what says nothing of a device."""
    try:
        if message["family"] not in FAMILIES:
            return None
        address, mac = message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")
        is_there = bool(message.get("event") == "RTM_NEWNEIGH" and message["state"] & HAS_MAC)
    except Exception:  # noqa: BLE001  of the library's own objects; an entry that is odd must not hide the others
        return _STRANGE
    if address is None:
        return None
    lease = read_lease(str(address), str(mac or ""), "", ENDLESS if is_there else 0.0)
    if isinstance(lease, Unusable):
        return lease
    return None if lease.address.is_multicast or (is_there and not lease.mac) else lease
