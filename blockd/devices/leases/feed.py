"""A lease file that is read again when it changes: the new end of one that grows, all of one that is written anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from blockd.devices.leases.dhcpd import Dhcpd
from blockd.devices.leases.dnsmasq import Dnsmasq
from blockd.devices.leases.kea import Kea
from blockd.devices.leases.lease import Lease
from blockd.settings.values import Address

#: Octets of a file that are read: ten million leases.
MAX_OCTETS = 1 << 30
#: Octets before where a look ended, by which it is known again.
TAIL = 200
#: Leases of a file that are kept.
MAX_LEASES = 1_000_000


class Format(Protocol):
    """How a server writes its leases down."""

    #: Whether the file is written anew at each change, so that what is not in it is over.
    is_whole: bool

    def read(self, lines: Iterator[str]) -> Iterator[Lease | None]:
        """Give what each line, or the block that it ends, says."""


FORMATS: dict[str, type[Kea] | type[Dnsmasq] | type[Dhcpd]] = {"kea": Kea, "dnsmasq": Dnsmasq, "dhcpd": Dhcpd}


class Feed:
    """One file."""

    def __init__(self, file: Path, format: str) -> None:
        """Start without having read it."""
        self.file, self.format = file, format
        #: By address, the last that was said; ended ones stay until somebody drops them.
        self.leases: dict[Address, Lease] = {}
        #: Why it cannot be read, if so.
        self.problem: str | None = None
        #: When it was read, or seen to be as it was read; seconds since 1970.
        self.confirmed = 0.0
        #: Lines that say nothing.
        self.skipped = 0
        self._reader: Format = FORMATS[format]()
        self._state: tuple[int, int, int] | None = None
        self._offset, self._tail = 0, b""

    def look(self, now: float) -> set[Address]:
        """Read what is new; give the addresses of which something else is said than before."""
        try:
            with self.file.open("rb") as file:
                changed = self._look(file.fileno())
        except (OSError, ValueError) as error:
            self._state = None
            self.problem = f"{self.file}: {getattr(error, 'strerror', None) or error}"
            return set()
        self.problem, self.confirmed = None, now
        return changed

    def drop_ended(self, before: float) -> set[Address]:
        """Forget leases that ended before this time; give their addresses."""
        ended = {address for address, lease in self.leases.items() if lease.expires <= before}
        for address in ended:
            del self.leases[address]
        return ended

    def _look(self, descriptor: int) -> set[Address]:
        found = os.fstat(descriptor)
        state = (found.st_ino, found.st_size, found.st_mtime_ns)
        if state == self._state:
            return set()
        if found.st_size > MAX_OCTETS:
            raise ValueError(f"has more than {MAX_OCTETS >> 20} MiB: it is no lease file")
        is_longer = self._state is not None and found.st_size >= self._offset and self._has_tail(descriptor)
        if self._reader.is_whole or not is_longer:
            # Another file by this name: Kea begins a new one when it cleans up, and what it said before still stands.
            self._reader, self._offset = FORMATS[self.format](), 0
        before = self.leases if self._reader.is_whole else {}
        if self._reader.is_whole:
            self.leases = {}
        changed = self._take(self._lines(descriptor, found.st_size), before)
        if self._reader.is_whole:
            changed |= before.keys() - self.leases.keys()
        self._state = state
        self._tail = os.pread(descriptor, TAIL, max(0, self._offset - TAIL))
        return changed

    def _has_tail(self, descriptor: int) -> bool:
        """Say whether what was read last is still where it was: another file may have the same number."""
        return os.pread(descriptor, len(self._tail), max(0, self._offset - TAIL)) == self._tail

    def _take(self, lines: Iterator[str], before: dict[Address, Lease]) -> set[Address]:
        changed = set()
        for lease in self._reader.read(lines):
            if lease is None:
                self.skipped += 1
            elif len(self.leases) < MAX_LEASES or lease.address in self.leases:
                if before.get(lease.address, self.leases.get(lease.address)) != lease:
                    changed.add(lease.address)
                self.leases[lease.address] = lease
        return changed

    def _lines(self, descriptor: int, size: int) -> Iterator[str]:
        """Give whole lines from where the last look ended; one that is being written is left for the next."""
        rest = b""
        while self._offset < size:
            chunk = os.pread(descriptor, min(1 << 20, size - self._offset), self._offset)
            if not chunk:
                return
            whole, _, rest = chunk.rpartition(b"\n")
            if not whole and not chunk.startswith(b"\n"):
                if len(chunk) >= 1 << 20:
                    raise ValueError("has a line of a mebibyte: it is no lease file")
                return
            self._offset += len(chunk) - len(rest)
            yield from whole.decode(errors="replace").split("\n")
