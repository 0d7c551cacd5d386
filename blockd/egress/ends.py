"""Addresses that are known for a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from blockd.settings.values import Address


class Ends:
    """Addresses, each until when, seconds of a clock that never runs back. What has ended is there until `tidy`."""

    def __init__(self) -> None:
        """Know of none."""
        self._ends: dict[Address, float] = {}
        #: One entry an address, with an end that it has or had: put back with a later one when that has come.
        self._order: list[tuple[float, int, int, Address]] = []
        #: The entry of an address that counts, by its end.
        self._placed: dict[Address, float] = {}

    def put(self, address: Address, end: float) -> None:
        """Have it end then, whatever was said before."""
        self._ends[address] = end
        if address not in self._placed or end < self._placed[address]:
            self._place(address, end)

    def _place(self, address: Address, end: float) -> None:
        self._placed[address] = end
        heapq.heappush(self._order, (end, address.version, int(address), address))

    def drop(self, address: Address) -> None:
        """Know no more of it, if it was known."""
        self._ends.pop(address, None)

    def tidy(self, now: float) -> list[Address]:
        """Forget what has ended, and give it."""
        gone = []
        while self._order and self._order[0][0] <= now:
            placed, _, _, address = heapq.heappop(self._order)
            if self._placed.get(address) != placed:
                continue
            del self._placed[address]
            end = self._ends.get(address)
            if end is not None and end > now:
                self._place(address, end)
            elif end is not None:
                del self._ends[address]
                gone.append(address)
        return gone

    def get(self, address: Address, otherwise: float = 0.0) -> float:
        """Give its end, or what stands for one that is not known."""
        return self._ends.get(address, otherwise)

    def items(self) -> list[tuple[Address, float]]:
        """Give all, with their ends."""
        return list(self._ends.items())

    def __contains__(self, address: object) -> bool:
        """Say whether it is known."""
        return address in self._ends

    def __iter__(self) -> Iterator[Address]:
        """Give all."""
        return iter(self._ends)

    def __len__(self) -> int:
        """Count them."""
        return len(self._ends)
